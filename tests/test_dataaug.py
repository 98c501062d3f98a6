"""The baseline DataAug: its equations against loops and scipy, the composition of transforms, and a fold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from baseline_folds import SIZE, ellipsoids, mean_dice, toy_fold
from conftest import interrupt_after
from references import NONE, single_thread, tiny_plan, whole_map  # noqa: F401
from scipy.ndimage import map_coordinates

from mre_lowshot.errors import UserError
from mre_lowshot.experiments.baselines import learned_transforms
from mre_lowshot.experiments.baselines.dataaug import BASELINES, unlabelled_scans
from mre_lowshot.experiments.baselines.learned_transforms import Transforms, align_to, coarse_size, to_coarse
from mre_lowshot.experiments.baselines.synthesis import Synthesis, SyntheticSampler
from mre_lowshot.experiments.baselines.transform_models import (
    EPSILON,
    TransformNetwork,
    contours_of,
    local_cross_correlation,
    smoothness,
    smoothness_within_structures,
    warp,
)
from mre_lowshot.grid import voxel_positions
from mre_lowshot.sampling import TrainingCase
from mre_lowshot.trainers.training_log import TrainingLog

RNG = np.random.default_rng(0)


def test_warp_is_linear_interpolation_at_the_displaced_positions():
    volume, field = RNG.random((2, 5, 6, 7)), RNG.normal(0, 2, (3, 5, 6, 7))
    moved = warp(*(torch.from_numpy(a)[None] for a in (volume, field)))[0].numpy()
    positions = np.indices((5, 6, 7)) + field
    for channel, found in zip(volume, moved, strict=True):
        np.testing.assert_allclose(found, map_coordinates(channel, positions, order=1, mode="nearest"), atol=1e-10)


def test_local_cross_correlation_is_that_of_each_window():
    one, other = RNG.random((6, 5, 7)), RNG.random((6, 5, 7))
    values = []
    for z, y, x in np.ndindex(6, 5, 7):
        window = tuple(slice(max(0, c - 4), c + 5) for c in (z, y, x))
        a, b = (np.zeros(9**3) for _ in range(2))  # 0 beyond the edges
        a[: one[window].size], b[: one[window].size] = one[window].ravel(), other[window].ravel()
        a, b = a - a.mean(), b - b.mean()
        values.append((a @ b) ** 2 / ((a @ a) * (b @ b) + EPSILON))
    found = local_cross_correlation(*(torch.from_numpy(v)[None, None] for v in (one, other)))
    assert float(found) == pytest.approx(np.mean(values), rel=1e-6)
    assert float(local_cross_correlation(*[torch.from_numpy(one)[None, None]] * 2)) == pytest.approx(1, abs=1e-4)


def test_smoothness_and_its_contours():
    field = RNG.random((3, 4, 5, 6))
    squares = [np.mean(np.diff(field, axis=axis) ** 2) for axis in (1, 2, 3)]
    assert float(smoothness(torch.from_numpy(field)[None])) == pytest.approx(np.mean(squares))
    label = np.zeros((4, 5, 6), int)
    label[1:3, 1:4, 2:5] = 1
    contours = contours_of(torch.from_numpy(label))[0, 0].numpy()
    for z, y, x in np.ndindex(4, 5, 6):
        near = [label[z + d, y, x] for d in (-1, 1) if 0 <= z + d < 4]
        near += [label[z, y + d, x] for d in (-1, 1) if 0 <= y + d < 5]
        near += [label[z, y, x + d] for d in (-1, 1) if 0 <= x + d < 6]
        assert contours[z, y, x] == any(other != label[z, y, x] for other in near)
    change = RNG.random((2, 4, 5, 6))
    steps = [np.abs(np.diff(change, axis=a + 1) * (1 - np.take(contours, range(1, n), a)))
             for a, n in enumerate((4, 5, 6))]  # fmt: skip
    found = smoothness_within_structures(torch.from_numpy(change)[None], torch.from_numpy(contours)[None, None])
    assert float(found) == pytest.approx(sum(s.mean() for s in steps), rel=1e-6)


def test_the_network_begins_near_the_identity_for_any_size():
    torch.manual_seed(0)
    field = TransformNetwork(2, 3, width=2)(*torch.randn(2, 1, 1, 5, 9, 7))
    assert field.shape == (1, 3, 5, 9, 7)
    assert float(field.detach().abs().max()) < 1e-3


def synthesis(size=(6, 8, 8)) -> Synthesis:
    """Two transforms on a coarser grid: a shift by one voxel along x and none, +1 and +2 of intensity."""
    image = RNG.random((1, *size)).astype(np.float32)
    label = (image[0] > 0.5).astype(np.int16)
    coarse = (3, 4, 4)
    still, shift = (np.zeros((3, *coarse), np.float32) for _ in range(2))
    shift[2] = 1
    changes = tuple(np.full((1, *coarse), value, np.float32) for value in (1, 2))
    return Synthesis(TrainingCase(image, label, (1.0, 1.0, 1.0)), Transforms((shift, still), changes, (image, image)))


def test_the_change_is_added_to_the_atlas_which_is_then_warped_with_its_labels():
    made = synthesis()
    atlas, positions = made.atlas, voxel_positions((0, 0, 0), (6, 8, 8))
    image, label = made.sample(positions, 0, 1)
    np.testing.assert_allclose(image[..., :-1], atlas.image[..., 1:] + 2, atol=1e-5)
    assert np.array_equal(label[..., :-1], atlas.label[..., 1:])
    assert np.array_equal(made.warped_labels(0)[..., :-1], atlas.label[..., 1:])
    plain, label = made.sample(positions, 2, 2)  # 2: none
    assert np.array_equal(plain, atlas.image)
    assert np.array_equal(label, atlas.label)


@pytest.mark.parametrize("coupled", [False, True])
def test_spatial_and_appearance_transforms_are_drawn_independently_or_together(coupled):
    made = synthesis((4, 8, 8))
    plan = tiny_plan(augmentation=NONE, batch_size=2)
    sampler = SyntheticSampler(made, plan, seed=0, coupled=coupled)
    drawn = set()
    for n in range(30):
        for image in sampler[n][0].numpy():
            warped = int(not np.allclose(image[..., :-1] % 1, made.atlas.image[..., :-1], atol=1e-4))
            drawn.add((warped, round(float((image[0, ..., 0] - made.atlas.image[0, ..., warped]).mean()))))
    together = {(1, 1), (0, 2), (0, 0)}
    assert drawn == (together if coupled else {(w, c) for w in (0, 1) for c in (0, 1, 2)})


def test_coarse_grids_are_bounded_and_cover_the_same_volume():
    coarse = coarse_size((10, 40, 40), (4.0, 1.0, 1.0), 500)
    assert np.prod(coarse) <= 500
    assert coarse[0] > 5  # thick slices are kept
    edges = np.array([[-0.5, 9.5], [-0.5, 39.5], [-0.5, 39.5]])
    np.testing.assert_allclose(to_coarse(edges, (10, 40, 40), coarse)[:, 1], np.array(coarse) - 0.5)
    np.testing.assert_allclose(to_coarse(edges, (10, 40, 40), coarse)[:, 0], -0.5)


def test_a_scan_that_cannot_be_registered_is_resized_to_the_atlas():
    flat = replace(ellipsoids(1), image=np.zeros((1, 3, 9, 9), np.float32), name="flat")
    ramp = replace(flat, image=whole_map((3, 9, 9))[2:])
    lines = []
    found = align_to(ellipsoids(0), ramp, toy_fold(None).plan, lines.append)
    assert "case flat: cannot be registered" in lines[0]
    np.testing.assert_allclose(found[0], whole_map(SIZE)[2], atol=1e-5)


def test_unlabelled_scans_are_the_first_and_the_log_names_test_scans(tmp_path):
    lines = []
    fold = toy_fold(tmp_path, unlabelled=[replace(ellipsoids(n), name=name) for n, name in ((1, "other"), (2, "two"))],
                    log=lines.append)  # fmt: skip
    assert [case.name for case in unlabelled_scans(fold, 5)] == ["other", "two"]
    assert "2 unlabelled scans (5 wanted): other, two; transductive: 1 of them are test scans" in lines[0]
    assert [case.name for case in unlabelled_scans(fold, 1)] == ["other"]
    assert "none of them is a test scan" in lines[1]
    with pytest.raises(UserError, match="no unlabelled scan"):
        unlabelled_scans(replace(fold, unlabelled=()), 5)


@pytest.fixture
def quick(monkeypatch):
    """Small networks, no picture of the curves, no affine registration."""
    monkeypatch.setattr(TrainingLog, "draw", lambda self: None)
    monkeypatch.setattr(learned_transforms, "WIDTH", 4)
    monkeypatch.setattr(learned_transforms, "align", lambda *a, **k: None)


def learned(folder, mode, unlabelled, iterations, **settings):
    fold = toy_fold(folder, unlabelled=unlabelled, iterations=iterations, batch_size=4, learning_rate=3e-2, **settings)
    return BASELINES[f"dataaug_{mode}_5"].fit(fold)


@pytest.mark.parametrize(("mode", "iterations"), [pytest.param("sas", 60, marks=pytest.mark.slow), ("ids", 25)])
def test_a_fold_is_learned(tmp_path, quick, mode, iterations):
    scan = ellipsoids(7)  # sas learns from registered labels too, which need a spatial model that is trained longer
    found = learned(tmp_path, mode, [ellipsoids(1)], iterations)(replace(scan, label=None))
    assert found.shape == (3, *SIZE)
    assert mean_dice(found, scan.label) > 0.4


@pytest.mark.parametrize("mode", ["sas", pytest.param("ids", marks=pytest.mark.slow)])
def test_a_seed_gives_the_same_result_with_and_without_labels_of_other_scans(tmp_path, quick, mode):
    scan = ellipsoids(1)
    with_labels, without = ([replace(scan, label=label)] for label in (scan.label, None))
    one, other = (learned(tmp_path / n, mode, scans, 1) for n, scans in (("one", with_labels), ("other", without)))
    assert np.array_equal(one(scan), other(replace(scan, label=None)))


def test_every_step_asks_whether_the_run_goes_on(tmp_path, quick):
    asked = []

    def ask():
        asked.append((tmp_path / "unet").is_dir())
        if asked[-1]:
            raise KeyboardInterrupt

    fold = toy_fold(tmp_path, unlabelled=[ellipsoids(1)], iterations=3, batch_size=2)
    with pytest.raises(KeyboardInterrupt):
        BASELINES["dataaug_ids_5"].fit(replace(fold, ask=ask))
    assert asked == [False] * (1 + 3 + 1) + [True]  # a scan aligned, both models, an iteration of the U-Net


@pytest.mark.slow
def test_an_interrupted_fit_goes_on_with_the_same_result(tmp_path, quick, monkeypatch):
    whole = learned(tmp_path / "whole", "ids", [ellipsoids(1)], 4)(ellipsoids(7))
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            learned(tmp_path / "part", "ids", [ellipsoids(1)], 4)
    assert np.array_equal(learned(tmp_path / "part", "ids", [ellipsoids(1)], 4)(ellipsoids(7)), whole)


@pytest.mark.slow
def test_the_spatial_model_registers_scans(tmp_path):
    """With affine registration before it, as in a real run."""
    others, atlas = [ellipsoids(n) for n in (1, 2)], ellipsoids(0)
    fold = toy_fold(tmp_path)
    found = learned_transforms.learn_transforms(
        atlas, others, plan=fold.plan, iterations=200, device=fold.device, seed=0, log=fold.log
    )
    made = Synthesis(TrainingCase(atlas.image, atlas.label, (1.0, 1.0, 1.0)), found)
    for number, image in enumerate(found.aligned):
        bright = (image[0] > 0.75).astype(int)
        before, after = (2 * ((label == 1) & (bright == 1)).sum() / ((label == 1).sum() + bright.sum())
                         for label in (atlas.label, made.warped_labels(number)))  # fmt: skip
        assert after > max(before, 0.85)
