"""Patches and coordinate maps: the content of a mini-batch, and that it depends on (seed, n) only."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from references import (  # noqa: F401 - a fixture
    EVERYTHING,
    NONE,
    box,
    corner_of,
    numbered_case,
    sampler,
    single_thread,
    tiny_case,
    whole_map,
)
from torch.utils.data import DataLoader, Subset

from mre_lowshot.config import AugmentationConfig
from mre_lowshot.config.presets import DEFAULT
from mre_lowshot.grid import IGNORE, coordinate_maps, sample_image, sample_label, voxel_positions
from mre_lowshot.sampling import TrainingCase


def same(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("spec", [NONE, EVERYTHING, DEFAULT.augmentation], ids=["none", "all", "default"])
def test_a_batch_is_a_function_of_seed_and_number(spec):
    """Batches drawn before, and the state of the global generators, make no difference."""
    case = tiny_case()
    first = sampler(case, spec=spec, foreground_fraction=0.5)
    wanted = {n: first[n] for n in (0, 3, 7)}
    again = sampler(case, spec=spec, foreground_fraction=0.5)
    np.random.seed(99)  # noqa: NPY002 - the global state is tested
    random.seed(99)
    torch.manual_seed(99)
    assert all(same(again[n], wanted[n]) for n in (7, 3, 0))
    assert not torch.equal(wanted[0][0], wanted[3][0])
    assert not torch.equal(sampler(case, spec=spec, seed=1, foreground_fraction=0.5)[0][0], wanted[0][0])


def test_the_number_of_loader_workers_makes_no_difference():
    batches = sampler(tiny_case(), spec=EVERYTHING, batch=2)
    loaded = [
        list(DataLoader(Subset(batches, range(2, 8)), batch_size=None, num_workers=workers)) for workers in (0, 2)
    ]
    assert len(loaded[0]) == 6
    assert all(same(a, b) for a, b in zip(*loaded, strict=True))


def test_without_augmentation_a_patch_is_a_slice():
    sizes = ((7, 9, 8), (4, 12, 6))
    cases = [numbered_case(size) for size in sizes]
    cases[1] = replace(cases[1], image=cases[1].image + 1000)
    seen: set[tuple[int, ...]] = set()
    batches = sampler(*cases, batch=64)
    for n in range(4):
        images, maps, targets = (t.numpy() for t in batches[n])
        assert images.dtype == maps.dtype == np.float32
        assert targets.dtype == np.int64
        for image, position, target in zip(images, maps, targets, strict=True):
            which = int(image.max() >= 1000)
            corner = corner_of(position, sizes[which])
            seen.add((which, *corner))
            covered = box(corner)
            np.testing.assert_array_equal(image, cases[which].image[(slice(None), *covered)])
            np.testing.assert_array_equal(target, cases[which].label[covered])
            np.testing.assert_allclose(position, whole_map(sizes[which])[(slice(None), *covered)], atol=1e-6)
    everywhere = [
        (which, z, y, x)
        for which, (d, h, w) in enumerate(sizes)
        for z in range(d - 3)
        for y in range(h - 5)
        for x in range(w - 5)
    ]
    assert seen <= set(everywhere)
    assert len(seen) > 0.9 * len(everywhere)  # 256 draws: every scan, every position


def test_coordinates_run_from_minus_one_to_one_and_continue_outside():
    size = (5, 9)
    inside = coordinate_maps(voxel_positions((0, 0), size), size)
    np.testing.assert_allclose(inside, whole_map(size), atol=1e-6)
    outside = coordinate_maps(voxel_positions((-3, -2), (11, 13)), size)
    np.testing.assert_allclose(outside[:, 3:8, 2:11], inside, atol=1e-6)
    for axis, n in enumerate(size):
        np.testing.assert_allclose(np.diff(outside[axis], axis=axis), 2 / (n - 1), atol=1e-6)
        assert np.ptp(outside[axis], axis=1 - axis).max() == 0


def test_the_coordinate_of_a_single_slice_is_zero():
    """It is its own mirror image, so its coordinate must be its own negative."""
    assert coordinate_maps(voxel_positions((0, 0), (1, 3)), (1, 3))[0].tolist() == [[0, 0, 0]]


def test_foreground_sampling_reaches_rare_classes():
    label = np.zeros((20, 20, 20), np.int16)
    label[3:6, 3:6, 3:6], label[16, 2, 19] = 1, 2  # class 2: one voxel, in a corner that few patches reach
    case = TrainingCase(np.zeros((1, 20, 20, 20), np.float32), label, (1.0, 1.0, 1.0))

    def shares(foreground):
        targets = sampler(case, batch=100, foreground_fraction=foreground)[0][2].flatten(1)
        return [(targets == k).any(dim=1).float().mean() for k in (1, 2)]

    uniform, half, full = shares(0.0), shares(0.5), shares(1.0)
    assert uniform[1] < 0.05
    assert full[0] + full[1] > 0.999  # each patch is around one or the other
    assert all(0.3 < share < 0.7 for share in full)
    assert all(0.1 < share < 0.5 for share in half)


def test_a_volume_smaller_than_the_patch_is_padded_and_has_no_target_outside():
    case = numbered_case((3, 6, 4))
    images, maps, targets = (t.numpy() for t in sampler(case, batch=2)[0])
    inside = (np.abs(maps[0]) <= 1 + 1e-6).all(axis=0)
    assert inside.sum() == 3 * 6 * 4
    for image, target in zip(images, targets, strict=True):
        assert (target[~inside] == IGNORE).all()
        np.testing.assert_array_equal(target[inside].reshape(3, 6, 4), case.label)
        np.testing.assert_array_equal(image[:, inside].reshape(2, 3, 6, 4), case.image)
        assert set(np.unique(image[0])) == set(np.unique(case.image[0]))  # the edge voxels, repeated
    before = [int(np.argmax(inside.any(axis=tuple(a for a in range(3) if a != axis)))) for axis in range(3)]
    assert all(b in (m // 2, m - m // 2) for b, m in zip(before, (1, 0, 2), strict=True))  # centred


def test_the_ignore_label_is_kept():
    label = np.full((6, 8, 8), IGNORE, np.int16)
    label[2] = 1
    targets = sampler(numbered_case((6, 8, 8), label=label), foreground_fraction=1.0)[0][2]
    assert set(targets.unique().tolist()) == {IGNORE, 1}


def test_mirroring_mirrors_the_volume_and_not_the_coordinates():
    size = (6, 9, 10)
    case = numbered_case(size)
    images, maps, targets = (t.numpy() for t in sampler(case, batch=64, spec=AugmentationConfig(mirror_axes=(2,)))[0])
    mirrored = 0
    for image, position, target in zip(images, maps, targets, strict=True):
        covered = box(corner_of(position, size))
        np.testing.assert_allclose(position, whole_map(size)[(slice(None), *covered)], atol=1e-6)
        is_mirrored = not np.array_equal(image, case.image[(slice(None), *covered)])
        mirrored += is_mirrored
        step = -1 if is_mirrored else 1
        np.testing.assert_array_equal(image, case.image[..., ::step][(slice(None), *covered)])
        np.testing.assert_array_equal(target, case.label[..., ::step][covered])
    assert 16 < mirrored < 48  # p = 0.5


def test_between_voxels_images_are_interpolated_and_labels_nearest():
    case = numbered_case((5, 6, 7))
    position = np.array([1.25, 2.5, 3.0]).reshape(3, 1, 1, 1)
    wanted = (case.image[:, 1:3, 2:4, 3] * np.array([[0.75], [0.25]]) * 0.5).sum(axis=(1, 2))
    np.testing.assert_allclose(sample_image(case.image, position).ravel(), wanted, rtol=1e-5)
    assert sample_label(case.label, position + 0.1).item() == case.label[1, 3, 3]
    beyond = np.array([-2.4, 9.3, 3.0]).reshape(3, 1, 1, 1)
    np.testing.assert_allclose(sample_image(case.image, beyond).ravel(), case.image[:, 0, 5, 3])
    assert sample_label(case.label, beyond).item() == IGNORE


def test_two_dimensions():
    case = TrainingCase(np.zeros((1, 20, 30), np.float32), np.ones((20, 30), np.int16), (1.0, 1.0))
    images, maps, targets = sampler(case, patch=(8, 12), batch=3, spec=replace(EVERYTHING, mirror_axes=(1,)))[0]
    assert images.shape == (3, 1, 8, 12)
    assert maps.shape == (3, 2, 8, 12)
    assert targets.shape == (3, 8, 12)
