"""Registration without a network: our own and ANTs, as baselines."""

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from brains import LIKE
from references import tiny_plan
from test_against_ants import Fake
from toy_folds import head_case, image_plan, mean_dice, toy_fold

from mre_lowshot.config import MinHu
from mre_lowshot.data.volume import read_image, read_labels
from mre_lowshot.errors import UserError
from mre_lowshot.experiments.baselines import ants, ants_process, registration
from mre_lowshot.experiments.baselines.ants_process import AntsProcess, WarpedLabels, majority_vote
from mre_lowshot.experiments.baselines.dataaug import BASELINES as DATAAUG
from mre_lowshot.experiments.baselines.registration import REGISTRATION, REGISTRATION_REFINED
from mre_lowshot.experiments.baselines.requirements import require_data
from mre_lowshot.experiments.baselines.sse import BASELINES as SSE
from mre_lowshot.grid import IGNORE

pytestmark = pytest.mark.usefixtures("one_thread_only", "no_settings")
RECIPE = replace(LIKE.recipe, refinement=replace(LIKE.recipe.refinement, em_weight=0.5, crf_weight=1.0))
AFFINE = replace(LIKE, recipe=RECIPE)  # affine registration: a fraction of the time
TEST = head_case(9)


def unlabelled(case):
    return replace(case, label=None)


@pytest.fixture
def shifts(monkeypatch):
    """Stands for registration: scan n is moved against atlas m by no voxel. The names of what was registered."""
    found = []

    def align(atlases, image, spacing, *, plan):
        found.append((len(atlases), [a.mirrored for a in atlases], plan.recipe.atlas.registration))
        maps = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in image.shape[1:]], indexing="ij"))
        return np.concatenate([maps] * len(atlases)).astype(np.float32)

    monkeypatch.setattr(registration, "align", align)
    return found


def test_warped_labels_segment_a_scan(tmp_path):
    fold = toy_fold(tmp_path, [head_case(0)], AFFINE)
    probabilities = REGISTRATION.fit(fold)(unlabelled(TEST))
    assert probabilities.shape == (3, *TEST.image.shape[1:])
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=0), 1, atol=1e-5)
    assert mean_dice(probabilities, TEST) > 0.7


def test_one_atlas_gives_its_labels_and_several_are_weighted_by_similarity(tmp_path, shifts):
    cases = [head_case(0), head_case(1)]
    one = REGISTRATION.fit(toy_fold(tmp_path, cases[:1], AFFINE))(unlabelled(TEST))
    assert (one.argmax(axis=0) == cases[0].label).all()
    assert (REGISTRATION.fit(toy_fold(tmp_path, cases[:1], AFFINE))(unlabelled(TEST)) == one).all()
    same = replace(cases[0], label=None)  # alike the first atlas, so that its labels win
    both = REGISTRATION.fit(toy_fold(tmp_path, cases, AFFINE))(same)
    other = REGISTRATION.fit(toy_fold(tmp_path, cases, AFFINE))(unlabelled(cases[1]))
    assert mean_dice(both, cases[0]) > mean_dice(both, cases[1])
    assert mean_dice(other, cases[1]) > mean_dice(other, cases[0])
    assert [count for count, *_ in shifts] == [1, 1, 2, 2]


def test_at_most_five_atlases_are_used_and_the_log_names_them(tmp_path, shifts):
    fold = toy_fold(tmp_path, [replace(TEST, name=f"head_{n}") for n in range(7)], AFFINE)
    REGISTRATION.fit(fold)(unlabelled(TEST))
    assert shifts[0][0] == 5
    assert fold.log.__self__ == [
        "atlases: head_0, head_1, head_2, head_3, head_4; 2 further training scans are not used"
    ]


def test_refinement_is_that_of_the_recipe_and_leaves_the_plain_baseline_alone(tmp_path, shifts):
    limit = MinHu(2, 0, 5000.0)  # no voxel is that bright
    ct = replace(AFFINE.preprocessing, normalization=(replace(AFFINE.preprocessing.normalization[0], scheme="clip"),))
    plan = replace(AFFINE, preprocessing=ct, fold=replace(AFFINE.fold, min_hu=(limit,), mirrored_atlases=True))
    fold = toy_fold(tmp_path, [head_case(0)], plan)
    plain, refined = (b.fit(fold)(unlabelled(TEST)) for b in (REGISTRATION, REGISTRATION_REFINED))
    assert plain[2].max() == 1
    assert refined[2].max() < 0.01
    assert [mirrored for _, mirrored, _ in shifts] == [[False], [False, True]]
    assert (REGISTRATION.components, REGISTRATION_REFINED.components) == (False, True)


def test_a_plan_without_registration_registers_all_the_same(tmp_path, shifts):
    REGISTRATION.fit(toy_fold(tmp_path, [head_case(0)], tiny_plan()))(unlabelled(TEST))
    assert shifts[0][2] == "deformable"


def test_a_scan_that_cannot_be_registered_is_named(tmp_path):
    thin = replace(unlabelled(TEST), image=TEST.image[:, :2], name="thin")
    with pytest.raises(UserError, match="case thin: cannot be registered to a training scan: it has 2 x 30 x 36"):
        REGISTRATION.fit(toy_fold(tmp_path, [head_case(0)], AFFINE))(thin)


@pytest.mark.parametrize(
    "baseline",
    [REGISTRATION, REGISTRATION_REFINED, ants.ANTS, SSE["sse_10"], DATAAUG["dataaug_ids_5"]],
    ids=lambda b: b.name,
)
def test_2d_images_are_refused(baseline):
    words = f"baseline {baseline.name}: works on volumes only, Dataset001_Tiny holds 2D images; leave its row out"
    with pytest.raises(UserError, match=words):
        require_data(baseline, image_plan())


def test_volumes_of_one_slice_are_refused_where_a_method_needs_more():
    flat = replace(TEST, image=TEST.image[:, :1], name="flat")
    require_data(REGISTRATION, AFFINE, [flat])
    require_data(SSE["sse_10"], AFFINE, [TEST])
    for baseline in (SSE["sse_10"], DATAAUG["dataaug_ids_5"]):
        with pytest.raises(UserError, match=rf"{baseline.name}: case flat has 1 x 30 x 36 voxels.* along axis z"):
            require_data(baseline, AFFINE, [TEST, flat])


def test_ants_propagates_labels_in_its_own_process(tmp_path, monkeypatch):
    fake = Fake(tmp_path / "ants-env")  # copies labels voxel by voxel
    monkeypatch.setenv(ants.VARIABLE, str(fake.python))
    fold = toy_fold(tmp_path, [head_case(0)])
    probabilities = ants.ANTS.fit(fold)(unlabelled(TEST))
    assert (probabilities.argmax(axis=0) == fold.train[0].label).all()
    assert fold.log.__self__ == ["antspyx 0.6.3, transform SyN, interpolator genericLabel, seed 1"]
    assert len(fake.calls()) == 1


def test_ants_is_stopped_where_the_run_has_ended(tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho $$ > " + str(tmp_path / "pid") + "\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(ants_process, "ASK_SECONDS", 0.02)

    def ask():
        if (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text():
            raise KeyboardInterrupt

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        AntsProcess(program, "test", ask).version()
    assert time.monotonic() - begun < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.fixture
def copies(tmp_path, monkeypatch):
    """Stands for the program: labels are copied, and those of ``failing`` scans fail. The pairs that it was called for,
    and the smallest value of each image."""

    class Copies(AntsProcess):
        pairs, lowest, failing = [], [], set()

        def settings(self):
            return {"antspyx": "any"}

        def warp(self, fixed, grid, moving, labels, *, pair):
            self.pairs.append(pair)
            self.lowest.extend(float(read_image(path).array.min()) for path in (fixed, moving))
            if pair.split(" from ")[1] in self.failing:
                return WarpedLabels(np.zeros(grid.shape, int), 0.0, "no overlap")
            return WarpedLabels(read_labels(labels).array, 1.0)

    monkeypatch.setattr(ants, "find_ants", lambda: Copies(tmp_path, "test"))
    return Copies


def test_several_atlases_vote_and_a_failed_registration_counts_as_an_empty_label_map(tmp_path, copies):
    cases = [head_case(seed) for seed in range(3)]
    fold = toy_fold(tmp_path, cases)
    maps = [case.label for case in cases]
    assert (ants.ANTS.fit(fold)(unlabelled(TEST)).argmax(axis=0) == majority_vote(maps)).all()
    assert copies.pairs == [f"head_9 from head_{seed}" for seed in range(3)]
    assert set(copies.lowest) == {0}  # images of a negative sum have no centre of gravity
    copies.failing = {"head_0", "head_1"}
    assert (ants.ANTS.fit(fold)(unlabelled(TEST)).argmax(axis=0) == 0).all()
    assert fold.log.__self__[-1] == (
        "head_9: registration failed from head_1: no overlap; its label map counts as empty"
    )


def test_voxels_that_are_not_annotated_give_no_vote(tmp_path, copies):
    label = head_case(0).label.copy()
    label[:5] = IGNORE
    fold = toy_fold(tmp_path, [replace(head_case(0), label=label)])
    found = ants.ANTS.fit(fold)(unlabelled(TEST))
    np.testing.assert_allclose(found[:, :5], 1 / 3, rtol=1e-6)
    assert (found[:, 5:].argmax(axis=0) == label[5:]).all()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_votes_are_shares_and_ties_go_to_the_earliest_map(count):
    rng = np.random.default_rng(count)
    maps = [rng.integers(0, 4, (2, 3, 20)) for _ in range(count)]
    probabilities = ants.vote(maps, 4)
    assert (probabilities.argmax(axis=0) == majority_vote(maps)).all()
    plain = [[np.mean([m.flat[v] == k for m in maps]) for v in range(maps[0].size)] for k in range(4)]
    np.testing.assert_allclose(probabilities.reshape(4, -1), plain, atol=0.01)


def test_a_missing_antspyx_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch):
    fold = toy_fold(tmp_path, [head_case(0)])
    with monkeypatch.context() as patch:
        patch.setattr("mre_lowshot.experiments.baselines.requirements.find_spec", lambda name: None)
        with pytest.raises(UserError, match=r"ants-env/bin/pip install antspyx==0\.6\.3, and set MRE_ANTS_PYTHON"):
            ants.ANTS.fit(fold)
    monkeypatch.setenv(ants.VARIABLE, "nowhere/python")
    with pytest.raises(UserError, match="MRE_ANTS_PYTHON nowhere/python: is not a file"):
        ants.ANTS.fit(fold)
    monkeypatch.setenv(ants.VARIABLE, sys.executable)
    with pytest.raises(UserError, match=r"cannot import ants .*-m pip install antspyx==0\.6\.3"):
        ants.ANTS.fit(fold)


def test_this_environments_antspyx_is_used_where_it_is_installed(monkeypatch):
    monkeypatch.setattr("mre_lowshot.experiments.baselines.requirements.find_spec", lambda name: object())
    assert ants.find_ants().python == Path(sys.executable)
