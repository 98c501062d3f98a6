"""The fusion weights (atlas and CRF), tuned on mirrored training scans."""

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
from references import single_thread, with_settings  # noqa: F401 - a fixture
from torch import nn

from mre_lowshot.atlas.alignment import align
from mre_lowshot.atlas.atlas import Atlas, make_atlases
from mre_lowshot.atlas.label_fusion import AtlasPrior
from mre_lowshot.config import AugmentationConfig, Plan
from mre_lowshot.config.plan_files import same_plan
from mre_lowshot.errors import NumericalError, UserError
from mre_lowshot.grid import IGNORE
from mre_lowshot.inference import checkpoint
from mre_lowshot.inference.ensemble import ensemble_refinement, needs_tuning
from mre_lowshot.inference.models import load_model
from mre_lowshot.refinement.fusion import fuse_posteriors
from mre_lowshot.trainers import tune_fusion
from mre_lowshot.trainers.trainer import MRETrainer
from mre_lowshot.trainers.tune_fusion import tune_weights

CPU = torch.device("cpu")
WEIGHTS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # that are compared


def mirrored(tuned: float | None = None, atlas_weight: float = 0.4) -> Plan:
    """A fold's plan with mirrored atlases, of whose refinement only fusion is on; the fold has ``tuned`` its weight."""
    recipe = with_settings(LIKE.recipe, atlas_weight=atlas_weight, em_weight=0.0, crf_weight=0.0)
    return replace(LIKE, recipe=recipe, fold=replace(LIKE.fold, mirrored_atlases=True, atlas_weight=tuned))


class NearestIntensity(nn.Module):
    """A network with logit ``confidence`` for the class whose mean intensity is nearest, or for the next one if not
    ``right``."""

    def __init__(self, confidence: float, right: bool = True) -> None:
        super().__init__()
        self.confidence, self.right = confidence, right

    def forward(self, image: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
        nearest = (image - torch.tensor([0.0, 1.0, 2.5]).view(1, 3, 1, 1, 1)).abs().argmin(dim=1)
        label = nearest if self.right else (nearest + 1) % 3
        return self.confidence * nn.functional.one_hot(label, 3).movedim(-1, 1).float()


def test_the_better_of_network_and_registration_has_the_larger_weight():
    """The heads are noisy at their rims: registration errs elsewhere than intensities."""
    plan = mirrored()
    atlases = make_atlases([brain(0)], plan)
    right = tune_weights(plan, NearestIntensity(6.0), atlases, CPU)
    wrong = tune_weights(plan, NearestIntensity(6.0, right=False), atlases, CPU)
    undecided = tune_weights(plan, NearestIntensity(0.0), atlases, CPU)
    assert right.atlas_weight <= 0.5 < wrong.atlas_weight == 0.8
    assert undecided.atlas_weight == 0.4  # each weight gives the same labels: the recipe's is kept
    assert f"atlas_weight {right.atlas_weight:g} (recipe 0.4)" in right.reason


def test_the_table_holds_the_dice_of_each_weight():
    """Against the formula, a class at a time, on the mirror image written out; ignored voxels do not count."""
    plan, case = mirrored(), brain(1)
    case.label[:2] = IGNORE
    atlases = make_atlases([case], plan)
    reason = tune_weights(plan, NearestIntensity(2.0), atlases, CPU).reason
    table = dict(pair.split() for pair in reason.split("crf_weight 0: ")[1].split(", "))
    flipped = Atlas(atlases[0].image[..., ::-1].copy(), atlases[0].label[..., ::-1].copy(), case.spacing)
    warped = AtlasPrior((case.label,), 3).fuse_labels(align(atlases, flipped.image, case.spacing, plan=plan)).numpy()
    network = torch.softmax(NearestIntensity(2.0)(torch.from_numpy(flipped.image[None]), None), dim=1)[0].numpy()
    known = flipped.label != IGNORE
    for weight in WEIGHTS:
        labels = (np.log(network) * (1 - weight) + np.log(warped + 0.01) * weight).argmax(axis=0)
        dice = []
        for k in (1, 2):
            mine, its = (labels == k) & known, flipped.label == k
            dice.append(2 * (mine & its).sum() / (mine.sum() + its.sum()))
        assert float(table[f"{weight:g}"]) == pytest.approx(np.mean(dice), abs=2e-4)


def test_several_scans_count_equally(monkeypatch):
    plan = mirrored()
    tables = iter([[0.5, 0.5, 0.5, 0.9, 0.5, 0.5, 0.8], [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.8]])
    monkeypatch.setattr(tune_fusion, "_dice", lambda *_: next(tables))
    tuned = tune_weights(plan, NearestIntensity(2.0), make_atlases([brain(0), brain(3)], plan), CPU)
    assert tuned.atlas_weight == 0.8
    assert "0.4 0.5000, 0.5 0.7000, 0.6 0.5000, 0.7 0.5000, 0.8 0.8000" in tuned.reason


@pytest.mark.parametrize(("gain", "crf"), [(-0.01, 0.0), (0.0, 2.0), (0.01, 2.0)])
def test_the_crf_is_used_unless_mirrored_scans_are_better_without(gain, crf, monkeypatch):
    plan = mirrored()
    plan = replace(plan, recipe=with_settings(plan.recipe, crf_weight=2.0))
    monkeypatch.setattr(
        tune_fusion,
        "_dice",
        lambda *given: [0.8 + gain * (c.crf_weight > 0) - (c.atlas_weight != 0.6) * 0.1 for c in given[3]],
    )
    tuned = tune_weights(plan, NearestIntensity(2.0), make_atlases([brain(0)], plan), CPU)
    assert (tuned.atlas_weight, tuned.crf_weight) == (0.6, crf)
    assert f"crf_weight {crf:g} (recipe 2)" in tuned.reason
    fold = replace(plan.fold, atlas_weight=tuned.atlas_weight, crf_weight=tuned.crf_weight)
    both = ensemble_refinement([replace(plan, fold=fold), plan])
    assert (both.atlas_weight, both.crf_weight) == (pytest.approx(0.5), (crf + 2) / 2)


def test_where_the_mean_is_taken_the_crf_alone_is_tuned(monkeypatch):
    plan = mirrored(atlas_weight=0)
    plan = replace(plan, recipe=with_settings(plan.recipe, atlas_share=0.5, crf_weight=2.0))
    assert needs_tuning(plan)
    monkeypatch.setattr(tune_fusion, "_dice", lambda *given: [0.8 - 0.1 * (c.crf_weight > 0) for c in given[3]])
    tuned = tune_weights(plan, NearestIntensity(2.0), make_atlases([brain(0)], plan), CPU)
    assert (tuned.atlas_weight, tuned.crf_weight) == (0, 0)


def test_weights_are_tuned_once_and_only_on_unused_mirrored_scans():
    assert needs_tuning(mirrored())
    trained_mirrored = AugmentationConfig(mirror_axes=(2,))
    for plan in (
        LIKE,
        replace(LIKE, fold=None),
        mirrored(atlas_weight=0),
        replace(mirrored(), fold=replace(mirrored().fold, reasons={"atlas_weight": "tuned"})),
        replace(mirrored(), recipe=replace(mirrored().recipe, augmentation=trained_mirrored)),
    ):
        assert not needs_tuning(plan)


@given(st.lists(st.sampled_from([None, 0.0, 0.2, 0.5, 0.8]), min_size=1, max_size=4))
def test_folds_are_averaged_and_the_recipe_replaces_missing_weights(found):
    plans = [mirrored(weight) for weight in found]
    assert ensemble_refinement(plans).atlas_weight == pytest.approx(np.mean([0.4 if w is None else w for w in found]))
    assert ensemble_refinement([replace(plan, fold=None) for plan in plans]).atlas_weight == pytest.approx(0.4)


@given(st.integers(0, 99), st.floats(0.05, 0.95), st.sampled_from([1, 1.5, 2]))
def test_fusion_adds_the_weighted_log_odds(seed, weight, registrations):
    """The log odds of two classes are the network's, weighted 1 - w, and w times each registration's."""
    rng = np.random.default_rng(seed)
    network, warped = (rng.dirichlet(np.ones(3), size=5).T for _ in range(2))
    both = fuse_posteriors(network, warped, weight, registrations).numpy()
    np.testing.assert_allclose(both.sum(axis=0), 1)
    of_network, of_other = np.log(network[0] / network[1]), np.log((warped[0] + 0.01) / (warped[1] + 0.01))
    wanted = (1 - weight) * of_network + weight * registrations * of_other
    np.testing.assert_allclose(np.log(both[0] / both[1]), wanted, atol=1e-9)
    ends = warped.copy()
    ends[:, 2] = 1 / 3  # without information from the atlases the posterior stays
    partly = fuse_posteriors(network, ends, weight, registrations).numpy()
    assert np.array_equal(partly[:, 2], network[:, 2])
    assert np.array_equal(np.delete(partly, 2, axis=1), np.delete(both, 2, axis=1))
    own = torch.from_numpy(network)
    assert fuse_posteriors(own, None, weight) is own
    assert fuse_posteriors(own, warped, 0) is own


def test_a_weight_out_of_range_is_refused():
    with pytest.raises(UserError, match=r"atlas_weight is 1\.0; must lie in \[0, 1\)"):
        replace(LIKE.fold, atlas_weight=1.0)


def test_tuned_weights_do_not_make_another_plan():
    plan = mirrored()
    assert same_plan(plan, mirrored(0.7))
    assert not same_plan(plan, replace(plan, fold=replace(plan.fold, mirrored_atlases=False)))


def trained(folder: Path) -> MRETrainer:
    plan, case = mirrored(), brain(0)
    trainer = MRETrainer(plan, [case], folder=folder, device=CPU, atlases=make_atlases([case], plan))
    trainer.fit()
    return trainer


def test_a_mirrored_scan_that_cannot_be_registered_leaves_the_recipes_weight(tmp_path, monkeypatch):
    def fails(*_: object, **__: object) -> None:
        raise UserError("cannot be registered to a training scan (no overlap)")

    monkeypatch.setattr(tune_fusion, "align", fails)
    log = trained(tmp_path).training_log.path.read_text()
    kept, _ = checkpoint.load(tmp_path / checkpoint.FINAL, CPU)
    assert kept.fold.atlas_weight is None
    reason = "atlas_weight 0.4 (recipe), not tuned: a mirrored training scan cannot be registered to a training scan"
    assert reason in kept.fold.reasons["atlas_weight"]
    assert kept.fold.reasons["atlas_weight"] in log
    assert not needs_tuning(kept)


def test_a_network_with_non_finite_output_is_not_final(tmp_path, monkeypatch):
    def fails(*_: object) -> None:
        raise NumericalError("the network gave non-finite probabilities")

    monkeypatch.setattr("mre_lowshot.trainers.trainer.tune_weights", fails)
    with pytest.raises(NumericalError):
        trained(tmp_path)
    assert (tmp_path / checkpoint.LATEST).is_file()
    assert not (tmp_path / checkpoint.FINAL).is_file()


@pytest.mark.slow
def test_through_the_commands(brains, tmp_path, capsys, monkeypatch):
    """Tuned at the end of training, kept when it continues, used in validation and by `mre_predict`."""
    root = tmp_path / "space"
    shutil.copytree(brains, root)
    common = ("901", "1shot", "fold0", "-p", "Tiny", "--workspace", root, "-device", "cpu")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mre_lowshot.trainers.trainer.tune_weights", interrupted)
        assert command("train", *common) == 130
    fold = root / "results/Dataset901_Brains/MRETrainer__Tiny__1shot/fold_0"
    assert load_model(fold.parent, None, CPU).unfinished == (0,)
    capsys.readouterr()
    assert command("train", *common, "--c") == 0
    decided, output = decisions(fold), capsys.readouterr().out
    reason = decided["reasons"]["atlas_weight"]
    assert decided["atlas_weight"] in WEIGHTS
    assert output.count(reason) == output.count("after training, the fusion weights are tuned") == 1
    for name in (checkpoint.LATEST, checkpoint.FINAL):
        assert checkpoint.load(fold / name, CPU)[0].fold.atlas_weight == decided["atlas_weight"]
    assert load_model(fold.parent, None, CPU).unfinished == ()
    scores = (fold / "validation/summary.json").read_text()
    monkeypatch.setattr("mre_lowshot.trainers.trainer.tune_weights", interrupted)  # not tuned again
    for more in ("--val", "--c"):
        assert command("train", *common, more) == 0
        assert decisions(fold) == decided
        assert (fold / "validation/summary.json").read_text() == scores
    assert capsys.readouterr().out.count(reason) == 2
    scans = tmp_path / "in"
    scans.mkdir()
    shutil.copy(root / "raw/Dataset901_Brains/imagesTr/brain_1_0000.nii.gz", scans)  # not the training scan
    options = ("predict", "-i", scans, "-f", 0, "--workspace", root, "-device", "cpu", "--save_probabilities")
    assert command(*options, "-o", tmp_path / "out") == 0
    assert (tmp_path / "out/brain_1.nii.gz").read_bytes() == (fold / "validation/brain_1.nii.gz").read_bytes()
    content = torch.load(fold / checkpoint.FINAL, weights_only=True)
    content["plan"]["fold"]["atlas_weight"] = 0.0  # another weight gives other probabilities
    torch.save(content, fold / checkpoint.FINAL)
    assert command(*options, "-o", tmp_path / "other") == 0
    first, other = (np.load(tmp_path / name / "brain_1.npz")["probabilities"] for name in ("out", "other"))
    assert np.abs(first - other).max() > 0.01
