"""The weight of registration against the network, found on mirror images of the training scans."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from brains import LABELS, LIKE, brain, decisions, two_brains  # noqa: F401 - a fixture
from conftest import command
from hypothesis import given
from hypothesis import strategies as st
from references import single_thread, tiny_plan  # noqa: F401 - a fixture
from torch import nn

from mre_lowshot import checkpoint
from mre_lowshot.alignment import Atlas, align, make_atlases
from mre_lowshot.errors import NumericalError, UserError
from mre_lowshot.inference.models import load_model
from mre_lowshot.inference.pooling import PRIOR_FLOOR, joint_rule, pooled, to_weigh
from mre_lowshot.losses import IGNORE
from mre_lowshot.plans import same_plan
from mre_lowshot.sampling import Prior
from mre_lowshot.specs import AugmentationSpec, Plan
from mre_lowshot.trainers import weighing
from mre_lowshot.trainers.trainer import MRETrainer
from mre_lowshot.trainers.weighing import WEIGHTS, found_weights

CPU = torch.device("cpu")


def mirrored(weight: float | None = None, prior_weight: float = 0.4) -> Plan:
    """A fold's plan that uses mirror images, and nothing mends what is pooled; the fold found ``weight``."""
    rule = replace(LIKE.recipe.inference, prior_weight=prior_weight, intensity_weight=0, neighbour_weight=0)
    fold = replace(LIKE.fold, mirror_images=True, prior_weight=weight)
    return replace(LIKE, recipe=replace(LIKE.recipe, inference=rule), fold=fold)


class Says(nn.Module):
    """A network that is ``sure`` of the class whose mean intensity is nearest, or of the one after it if not
    ``right``."""

    def __init__(self, sure: float, right: bool = True) -> None:
        super().__init__()
        self.sure, self.right = sure, right

    def forward(self, image: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
        nearest = (image - torch.tensor([0.0, 1.0, 2.5]).view(1, 3, 1, 1, 1)).abs().argmin(dim=1)
        said = nearest if self.right else (nearest + 1) % 3
        return self.sure * nn.functional.one_hot(said, 3).movedim(-1, 1).float()


def test_the_better_of_the_two_weighs_more():
    """The heads are noisy at their rims: registration is wrong elsewhere than intensities."""
    plan = mirrored()
    atlases = make_atlases([brain(0)], plan)
    right, _, why = found_weights(plan, Says(6.0), atlases, CPU)
    wrong, _, _ = found_weights(plan, Says(6.0, right=False), atlases, CPU)
    unsure, _, _ = found_weights(plan, Says(0.0), atlases, CPU)
    assert right <= 0.5 < wrong == WEIGHTS[-1]
    assert unsure == 0.4  # each weight labels alike: the recipe's stands
    assert f"weighs {right:g}" in why


def test_the_table_is_what_each_weight_gives():
    """Against the formula, a class at a time, on the mirror image turned by hand; ignored voxels do not count."""
    plan, case = mirrored(), brain(1)
    case.label[:2] = IGNORE
    atlases = make_atlases([case], plan)
    _, _, why = found_weights(plan, Says(2.0), atlases, CPU)
    told = dict(pair.split() for pair in why.split("by 0: ")[1].split(", "))
    flipped = Atlas(atlases[0].image[..., ::-1].copy(), atlases[0].label[..., ::-1].copy(), case.spacing)
    brought = Prior((case.label,), 3).posterior(align(atlases, flipped.image, case.spacing, plan))
    network = torch.softmax(Says(2.0)(torch.from_numpy(flipped.image[None]), None), dim=1)[0].numpy()
    known = flipped.label != IGNORE
    for weight in WEIGHTS:
        labels = (np.log(network) * (1 - weight) + np.log(brought + PRIOR_FLOOR) * weight).argmax(axis=0)
        dice = []
        for k in (1, 2):
            mine, its = (labels == k) & known, flipped.label == k
            dice.append(2 * (mine & its).sum() / (mine.sum() + its.sum()))
        assert float(told[f"{weight:g}"]) == pytest.approx(np.mean(dice), abs=2e-4)


def test_several_scans_count_alike(monkeypatch):
    plan = mirrored()
    tables = iter([[0.5, 0.5, 0.5, 0.9, 0.5, 0.5, 0.8], [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.8]])
    monkeypatch.setattr(weighing, "_dice", lambda *_: next(tables))
    weight, _, why = weighing.found_weights(plan, Says(2.0), make_atlases([brain(0), brain(3)], plan), CPU)
    assert weight == 0.8
    assert "0.4 0.5000, 0.5 0.7000, 0.6 0.5000, 0.7 0.5000, 0.8 0.8000" in why


@pytest.mark.parametrize(("gain", "agree"), [(-0.01, 0.0), (0.0, 2.0), (0.01, 2.0)])
def test_neighbours_agree_unless_mirror_images_are_better_without(gain, agree, monkeypatch):
    plan = mirrored()
    plan = replace(plan, recipe=replace(plan.recipe, inference=replace(plan.recipe.inference, neighbour_weight=2.0)))
    monkeypatch.setattr(
        weighing,
        "_dice",
        lambda *given: [0.8 + gain * (r.neighbour_weight > 0) - (r.prior_weight != 0.6) * 0.1 for r in given[3]],
    )
    weight, found, why = weighing.found_weights(plan, Says(2.0), make_atlases([brain(0)], plan), CPU)
    assert (weight, found) == (0.6, agree)
    assert f"like neighbours agree by {agree:g} (recipe: 2)" in why
    fold = replace(plan.fold, prior_weight=weight, neighbour_weight=found)
    rule = joint_rule([replace(plan, fold=fold), plan])
    assert (rule.prior_weight, rule.neighbour_weight) == (pytest.approx(0.5), (agree + 2) / 2)


def test_it_is_sought_once_and_where_nobody_has_seen_the_image():
    assert to_weigh(mirrored())
    seen = AugmentationSpec(mirror_axes=(2,))
    for plan in (
        LIKE,
        replace(LIKE, fold=None),
        mirrored(prior_weight=0),
        replace(mirrored(), fold=replace(mirrored().fold, reasons={"prior_weight": "found"})),
        replace(mirrored(), recipe=replace(mirrored().recipe, augmentation=seen)),
    ):
        assert not to_weigh(plan)


@given(st.lists(st.sampled_from([None, 0.0, 0.2, 0.5, 0.8]), min_size=1, max_size=4))
def test_folds_are_averaged_and_the_recipe_stands_in(found):
    plans = [mirrored(weight) for weight in found]
    assert joint_rule(plans).prior_weight == pytest.approx(np.mean([0.4 if w is None else w for w in found]))
    assert joint_rule([replace(plan, fold=None) for plan in plans]).prior_weight == pytest.approx(0.4)


@given(st.integers(0, 99), st.floats(0.05, 0.95), st.sampled_from([1, 1.5, 2]))
def test_pooling_adds_the_odds_of_each_opinion(seed, weight, registrations):
    """The log odds of two classes are the network's, weighted 1 - w, and w times each registration's."""
    rng = np.random.default_rng(seed)
    network, brought = (rng.dirichlet(np.ones(3), size=5).T for _ in range(2))
    both = pooled(network, brought, weight, registrations)
    np.testing.assert_allclose(both.sum(axis=0), 1)
    of_network, of_other = np.log(network[0] / network[1]), np.log((brought[0] + 0.01) / (brought[1] + 0.01))
    wanted = (1 - weight) * of_network + weight * registrations * of_other
    np.testing.assert_allclose(np.log(both[0] / both[1]), wanted, atol=1e-9)
    ends = brought.copy()
    ends[:, 2] = 1 / 3  # where no atlas knows anything the network alone is asked
    told = pooled(network, ends, weight, registrations)
    assert np.array_equal(told[:, 2], network[:, 2])
    assert np.array_equal(np.delete(told, 2, axis=1), np.delete(both, 2, axis=1))
    assert pooled(network, None, weight) is network
    assert pooled(network, brought, 0) is network


def test_a_weight_out_of_range_is_refused():
    with pytest.raises(UserError, match=r"prior_weight is 1\.0; must lie in \[0, 1\)"):
        replace(LIKE.fold, prior_weight=1.0)


def test_what_was_found_is_no_other_plan():
    plan = mirrored()
    assert same_plan(plan, mirrored(0.7))
    assert not same_plan(plan, replace(plan, fold=replace(plan.fold, mirror_images=False)))


def trained(folder: Path) -> MRETrainer:
    plan, case = mirrored(), brain(0)
    trainer = MRETrainer(plan, [case], folder, CPU, make_atlases([case], plan))
    trainer.fit()
    return trainer


def test_an_image_that_cannot_be_registered_leaves_the_recipes_weight(tmp_path, monkeypatch):
    def fails(*_: object) -> None:
        raise UserError("cannot be registered to a training scan (no overlap)")

    monkeypatch.setattr(weighing, "align", fails)
    told = trained(tmp_path).logbook.log.read_text()
    kept, _ = checkpoint.load(tmp_path / checkpoint.FINAL, CPU)
    assert kept.fold.prior_weight is None
    assert "the recipe's 0.4 against the network: on a mirror image: cannot be" in kept.fold.reasons["prior_weight"]
    assert kept.fold.reasons["prior_weight"] in told
    assert not to_weigh(kept)


def test_a_network_that_answers_nonsense_is_not_final(tmp_path, monkeypatch):
    def fails(*_: object) -> None:
        raise NumericalError("the network gave non-finite probabilities")

    monkeypatch.setattr("mre_lowshot.trainers.trainer.found_weights", fails)
    with pytest.raises(NumericalError):
        trained(tmp_path)
    assert (tmp_path / checkpoint.LATEST).is_file()
    assert not (tmp_path / checkpoint.FINAL).is_file()


def test_through_the_commands(brains, tmp_path, capsys, monkeypatch):
    """Found at the end of training, kept by all that goes on from it, used in validation and by `mre_predict`."""
    root = tmp_path / "space"
    shutil.copytree(brains, root)
    common = ("901", "1shot", "fold0", "-p", "Tiny", "--workspace", root, "-device", "cpu")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mre_lowshot.trainers.trainer.found_weights", interrupted)
        assert command("train", *common) == 130
    fold = root / "results/Dataset901_Brains/MRETrainer__Tiny__1shot/fold_0"
    assert load_model(fold.parent, None, CPU).unfinished == (0,)
    capsys.readouterr()
    assert command("train", *common, "--c") == 0
    told, said = decisions(fold), capsys.readouterr().out
    assert told["prior_weight"] in WEIGHTS
    assert said.count(told["reasons"]["prior_weight"]) == said.count("when trained, mirror images are") == 1
    for name in (checkpoint.LATEST, checkpoint.FINAL):
        assert checkpoint.load(fold / name, CPU)[0].fold.prior_weight == told["prior_weight"]
    assert load_model(fold.parent, None, CPU).unfinished == ()
    scores = (fold / "validation/summary.json").read_text()
    monkeypatch.setattr("mre_lowshot.trainers.trainer.found_weights", interrupted)  # not sought again
    for more in ("--val", "--c"):
        assert command("train", *common, more) == 0
        assert decisions(fold) == told
        assert (fold / "validation/summary.json").read_text() == scores
    assert capsys.readouterr().out.count(told["reasons"]["prior_weight"]) == 2
    scans = tmp_path / "in"
    scans.mkdir()
    shutil.copy(root / "raw/Dataset901_Brains/imagesTr/brain_1_0000.nii.gz", scans)  # not the training scan
    asked = ("predict", "-i", scans, "-f", 0, "--workspace", root, "-device", "cpu", "--save_probabilities")
    assert command(*asked, "-o", tmp_path / "out") == 0
    assert (tmp_path / "out/brain_1.nii.gz").read_bytes() == (fold / "validation/brain_1.nii.gz").read_bytes()
    content = torch.load(fold / checkpoint.FINAL, weights_only=True)
    content["plan"]["fold"]["prior_weight"] = 0.0  # another weight is another answer
    torch.save(content, fold / checkpoint.FINAL)
    assert command(*asked, "-o", tmp_path / "other") == 0
    first, other = (np.load(tmp_path / name / "brain_1.npz")["probabilities"] for name in ("out", "other"))
    assert np.abs(first - other).max() > 0.01
