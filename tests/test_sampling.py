"""Patches and coordinate maps: the content of a mini-batch, and that it depends on (seed, n) only."""

from __future__ import annotations

import random
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
from references import (  # noqa: F401 - a fixture
    EVERYTHING,
    NONE,
    PATCH,
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
from mre_lowshot.sampling import TrainingCase, location_maps


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


def drawn_corners(*cases: TrainingCase, patch: tuple[int, ...] = PATCH, **settings) -> np.ndarray:
    """First voxels (patches, axes) of one mini-batch of scans of the same size."""
    maps = sampler(*cases, patch=patch, **settings)[0][1].numpy()
    return np.array([corner_of(m[: len(patch)], cases[0].label.shape) for m in maps])


def single_voxel(size: tuple[int, ...], voxel: tuple[int, ...]) -> TrainingCase:
    label = np.zeros(size, np.int16)
    label[voxel] = 1
    return numbered_case(size, channels=1, label=label)


def test_a_foreground_voxel_lies_within_a_quarter_of_the_patch_from_its_centre():
    """In an even and an odd patch the first voxel is that far from the voxel, each distance equally often."""
    corners = drawn_corners(
        single_voxel((40, 50, 60), (20, 25, 30)), patch=(8, 12, 13), batch=500, foreground_fraction=1.0
    )
    wanted = ([14, 15, 16, 17, 18], [16, 17, 18, 19, 20, 21, 22], [21, 22, 23, 24, 25, 26, 27])
    for axis in range(3):
        values, counts = np.unique(corners[:, axis], return_counts=True)
        assert values.tolist() == wanted[axis]
        assert counts.min() * len(values) / 500 > 0.7
        assert counts.max() * len(values) / 500 < 1.3
    assert np.abs(np.corrcoef(corners.T) - np.eye(3)).max() < 0.15  # the axes are independent


@pytest.mark.parametrize(("voxel", "corner"), [((0, 0, 0), (0, 0, 0)), ((8, 13, 14), (5, 8, 9))])
def test_around_a_voxel_at_the_border_the_patch_is_moved_inside(voxel, corner):
    corners = drawn_corners(single_voxel((9, 14, 15), voxel), batch=40, foreground_fraction=1.0)
    assert {tuple(c) for c in corners.tolist()} == {corner}


def test_near_the_border_the_patch_moves_no_further_than_needed():
    """A patch of 6 around voxel 3 would begin at -1 to 1, around voxel 11 at 7 to 9, of which 8 is the last inside."""
    low = drawn_corners(single_voxel((9, 14, 15), (2, 3, 3)), batch=120, foreground_fraction=1.0)
    high = drawn_corners(single_voxel((9, 14, 15), (6, 11, 12)), batch=120, foreground_fraction=1.0)
    assert [set(axis) for axis in low.T.tolist()] == [{0, 1}, {0, 1}, {0, 1}]
    assert [set(axis) for axis in high.T.tolist()] == [{3, 4, 5}, {7, 8}, {8, 9}]
    assert 0.55 < (low[:, 2] == 0).mean() < 0.78  # two of three jitters


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_the_share_of_patches_around_a_foreground_voxel(fraction):
    case = single_voxel((30, 60, 60), (15, 30, 30))
    targets = sampler(case, batch=250, foreground_fraction=fraction)[0][2].flatten(1)
    share = (targets == 1).any(dim=1).float().mean().item()
    assert abs(share - fraction) < (0.01 if fraction in (0.0, 1.0) else 0.08)


def test_the_foreground_is_of_the_scan_that_was_drawn_and_a_scan_without_any_is_drawn_as_often():
    case = single_voxel((30, 60, 60), (15, 30, 30))
    cases = case, replace(case, image=case.image + 200_000, label=np.zeros_like(case.label))
    images, _, targets = sampler(*cases, batch=100, foreground_fraction=1.0)[0]
    with_foreground = (targets == 1).flatten(1).any(dim=1)
    assert torch.equal(with_foreground, images.flatten(1).amax(dim=1) < 200_000)
    assert 0.35 < with_foreground.float().mean() < 0.65


@pytest.mark.parametrize("plane", [0, 1, 2])
def test_patches_of_a_partly_annotated_scan_are_uniform_over_those_with_an_annotated_voxel(plane):
    """Also where the volume is thinner than the patch. Around the voxel itself, they would be 11 to 13 only."""
    label = np.full((3, 30, 9), IGNORE, np.int16)
    label[plane, 15, :] = 0
    corners = drawn_corners(numbered_case(label.shape, label=label), batch=180)
    assert set(corners[:, 0].tolist()) == {-1}
    for axis, wanted in ((1, [10, 11, 12, 13, 14, 15]), (2, [0, 1, 2, 3])):
        values, counts = np.unique(corners[:, axis], return_counts=True)
        assert values.tolist() == wanted
        assert counts.min() > 0.55 * 180 / len(wanted)


def test_every_patch_of_a_partly_annotated_scan_has_an_annotated_voxel_however_rare():
    """The voxel, of the background, is found by chance in one of 357 draws."""
    label = np.full((20, 60, 60), IGNORE, np.int16)
    label[9, 30, 20] = 0
    corners = drawn_corners(numbered_case(label.shape, label=label), batch=60)
    assert ((corners >= (6, 25, 15)) & (corners <= (9, 30, 20))).all()
    near = ((corners >= (6, 26, 16)) & (corners <= (8, 28, 18))).all(axis=1)
    assert near.mean() > 0.8  # placed around it
    assert len(np.unique(corners[near], axis=0)) > 15  # of 27


def test_a_scan_without_any_annotated_voxel_is_drawn_uniformly():
    label = np.full((6, 9, 8), IGNORE, np.int16)
    corners = drawn_corners(numbered_case(label.shape, label=label), batch=120, foreground_fraction=1.0)
    assert [set(axis) for axis in corners.T.tolist()] == [{0, 1, 2}, {0, 1, 2, 3}, {0, 1, 2}]


def test_a_much_larger_patch_is_centred_on_the_volume():
    corners = drawn_corners(numbered_case((3, 2, 9)), patch=(12, 11, 9), batch=3, foreground_fraction=0.5)
    assert corners.tolist() == [[-5, -5, 0]] * 3  # padded by 5 before and 4 after, 5 and 4, none


@pytest.mark.parametrize("spec", [NONE, EVERYTHING], ids=["none", "all"])
def test_the_global_generators_are_left_as_they_were(spec):
    np.random.seed(5)  # noqa: NPY002 - the global state is tested
    random.seed(5)
    wanted = np.random.random(), random.random()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    _ = sampler(tiny_case(), spec=spec)[0]
    assert (np.random.random(), random.random()) == wanted  # noqa: NPY002


def test_intensity_augmentation_differs_between_mini_batches():
    """Their seeds come from a wide range: of 50 batches no two have the same noise."""
    case = TrainingCase(np.zeros((1, *PATCH), np.float32), np.zeros(PATCH, np.int16), (1.0, 1.0, 1.0))
    batches = sampler(case, batch=1, spec=AugmentationConfig(noise_probability=1.0))
    assert len({batches[n][0].sum().item() for n in range(50)}) == 50


class NamedShares:
    """A location prior of one map: the number of the atlas left out, -1 for none."""

    axes = 3

    def __init__(self, count: int) -> None:
        self.count = count

    def foreground_shares(self, coordinates: np.ndarray, *, without: int | None = None) -> np.ndarray:
        return np.full((1, *coordinates.shape[1:]), -1 if without is None else without, np.float32)


def case_with_atlases(size: tuple[int, ...], count: int, own: int | None) -> TrainingCase:
    """A scan with coordinates in ``count`` atlases: its own map plus 10 per atlas."""
    coordinates = np.concatenate([whole_map(size) + 10 * k for k in range(count)])
    return replace(numbered_case(size), coordinates=coordinates, own=own)


def left_out(count: int, own: int | None) -> list[float]:
    """The atlas left out of each of 150 patches."""
    maps = sampler(case_with_atlases((6, 9, 8), count, own), batch=150, prior=NamedShares(count))[0][1].numpy()
    assert maps.shape[1] == 4
    assert (np.ptp(maps[:, 3].reshape(150, -1), axis=1) == 0).all()
    return maps[:, 3, 0, 0, 0].tolist()


@pytest.mark.parametrize(("count", "own"), [(2, 0), (2, 1), (3, 2)])
def test_the_scans_own_atlas_is_left_out_of_half_of_the_patches(count, own):
    numbers = left_out(count, own)
    assert set(numbers) == {-1, own}
    assert 55 < numbers.count(own) < 95


@pytest.mark.parametrize(("count", "own"), [(1, 0), (1, None), (3, None)])
def test_a_single_atlas_is_never_left_out_nor_one_of_another_scan(count, own):
    assert set(left_out(count, own)) == {-1}


def test_with_a_prior_the_coordinates_are_those_in_the_first_atlas():
    size = (6, 9, 8)
    for prior in (NamedShares(2), None):
        case = case_with_atlases(size, 2, own=1)
        maps = sampler(case, batch=20, prior=prior)[0][1].numpy()
        assert maps.shape[1] == (6 if prior is None else 4)
        for position in maps:
            covered = box(corner_of(position[:3], size))
            np.testing.assert_array_equal(position[:3], case.coordinates[(slice(3), *covered)])


def test_location_maps_names_the_atlas_to_leave_out():
    coordinates = np.zeros((6, 2, 2, 2), np.float32)
    maps = location_maps(coordinates=coordinates, prior=NamedShares(2), without=1)
    assert maps.shape == (4, 2, 2, 2)
    assert (maps[3] == 1).all()
    assert location_maps(coordinates, None) is coordinates
    with pytest.raises(TypeError):
        location_maps(coordinates, NamedShares(2), 1)


def test_a_patch_has_as_many_axes_as_the_scan():
    with pytest.raises(ValueError, match="zip"):
        _ = sampler(numbered_case((8, 12)))[0]


def test_a_training_case_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        tiny_case().own = 1


def test_the_random_stream_is_the_recorded_one():
    """Trained models can be reproduced only while every draw stays the same, in number, order and range.

    A fully annotated scan and one with a single annotated voxel, as thick as the patch; the draws of all kinds.
    """
    size = (4, 90, 90)
    label = np.zeros(size, np.int16)
    label[1, 20:24, 30:40], label[2, 60, 70] = 1, 2
    rare = np.full(size, IGNORE, np.int16)
    rare[2, 50, 40] = 0
    image = numbered_case(size, channels=1).image / 10_000  # small, that the sums notice the noise
    cases = [TrainingCase(image, each, (3.0, 1.0, 1.0), own=k) for k, each in enumerate((label, rare))]
    spec = AugmentationConfig(spatial_probability=0.5, mirror_axes=(2,), noise_probability=0.5)
    batches = sampler(*cases, seed=7, batch=8, spec=spec, prior=NamedShares(2), foreground_fraction=0.5)
    corners, left_out_atlases, sums = [], [], []
    for n in (0, 1):
        images, maps, targets = (t.numpy().astype(np.float64) for t in batches[n])
        corners += [tuple(corner_of(m[:3], size)) for m in maps]
        left_out_atlases += maps[:, 3, 0, 0, 0].tolist()
        weights = np.arange(images.size) % 97  # that their order counts
        sums += [images.ravel() @ weights, targets.ravel() @ weights]
    assert corners[:8] == [
        *((0, 46, 37), (0, 46, 57), (0, 46, 40), (0, 19, 28)),
        *((0, 58, 45), (0, 49, 49), (0, 17, 35), (0, 47, 38)),
    ]
    assert corners[8:] == [
        *((0, 48, 47), (0, 19, 31), (0, 64, 65), (0, 18, 29)),
        *((0, 48, 36), (0, 19, 28), (0, 52, 40), (0, 46, 75)),
    ]
    assert left_out_atlases == [1, 0, -1, 0, -1, 1, -1, -1, -1, -1, -1, -1, -1, -1, 0, -1]
    assert sums == pytest.approx([89966.76226, -25161, 88358.34661, -9490], rel=1e-6)
