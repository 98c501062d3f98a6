"""Spatial and intensity augmentation of training patches: where content moves, and what stays unchanged."""

from __future__ import annotations

import pickle
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import EVERYTHING, NONE, PATCH, STILL, box, corner_of, numbered_case, sampler, single_thread, tiny_case  # noqa: F401
from scipy.stats import binom

from mre_lowshot.augmentation import deform, intensity_transform
from mre_lowshot.config import AugmentationConfig
from mre_lowshot.grid import sample_image, sample_label, voxel_positions

INTENSITIES = ("noise", "blur", "brightness", "contrast", "low_resolution", "gamma")


def test_no_rotation_no_scaling_no_elastic_is_the_identity():
    home = voxel_positions((-2, 3, 4), PATCH)
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(deform(home, (3.0, 1.0, 0.5), (8, 9, 9), STILL, rng), home, atol=1e-9)
    case = numbered_case((6, 8, 8))
    plain, still = (sampler(case, spec=spec)[0] for spec in (NONE, STILL))
    assert plain[0].shape == still[0].shape
    for image, position, target in zip(*(t.numpy() for t in still), strict=True):
        covered = box(corner_of(position, (6, 8, 8)))
        np.testing.assert_allclose(image, case.image[(slice(None), *covered)], atol=1e-2)
        np.testing.assert_array_equal(target, case.label[covered])


def millimetres(positions: np.ndarray, spacing) -> np.ndarray:
    """Offsets from the middle of a patch, (axes, voxels) in mm."""
    columns = positions.reshape(len(spacing), -1)
    return (columns - columns.mean(axis=1, keepdims=True)) * np.asarray(spacing)[:, None]


@settings(max_examples=60, derandomize=True)
@given(
    st.lists(st.floats(0.3, 5), min_size=2, max_size=3),
    st.floats(1, 180),
    st.floats(0.5, 2),
    st.integers(0, 2**31),
)
def test_rotation_and_scaling_are_rigid_in_millimetres(spacing, rotation, factor, seed):
    patch, spec = PATCH[-len(spacing) :], replace(STILL, rotation=rotation, scaling=(factor, factor))
    home = voxel_positions([0] * len(spacing), patch)
    source = deform(home, tuple(spacing), patch, spec, np.random.default_rng(seed))
    np.testing.assert_allclose(source.mean(axis=(1, 2, 3)[: len(patch)]), home.mean(axis=(1, 2, 3)[: len(patch)]))
    before, after = millimetres(home, spacing), millimetres(source, spacing) * factor
    np.testing.assert_allclose(after.T @ after, before.T @ before, atol=1e-6 * np.abs(before.T @ before).max())
    rotated = after @ np.linalg.pinv(before)
    assert np.linalg.det(rotated) == pytest.approx(1)  # rotated, not mirrored
    if len(spacing) == 2:
        assert np.degrees(np.arccos(np.clip(rotated[0, 0], -1, 1))) <= rotation + 1e-4


class Highest:
    """Replaces a generator: every draw is the highest, and of several angles all but number ``axis`` are zero."""

    def __init__(self, axis: int = 0) -> None:
        self.axis = axis

    def random(self) -> float:
        return 0.0

    def uniform(self, low, high, size=None):
        return high if size is None else high * (np.arange(size) == (self.axis if size > 1 else 0))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_rotation_by_90_degrees_moves_a_point_by_the_right_number_of_voxels(axis):
    """Voxels of 3 x 1 x 1 mm: 6 mm from the middle is two slices or six pixels."""
    spacing, size = (3.0, 1.0, 1.0), (9, 17, 17)
    steps = [2, 6, 6]
    one, other = (a for a in range(3) if a != axis)
    middle = [n // 2 for n in size]
    start = list(middle)
    start[one] += steps[one]
    label = np.zeros(size, np.int16)
    label[tuple(start)] = 1
    home = voxel_positions((0, 0, 0), size)
    source = deform(home, spacing, size, replace(STILL, rotation=90.0), Highest(axis))
    found = np.argwhere(sample_label(label, source) == 1).mean(axis=0)  # one slice becomes three pixels
    image = sample_image(label[None].astype(np.float32), source)[0]
    offset = found - middle
    assert abs(offset[other]) == pytest.approx(steps[other])
    assert not offset[one]
    assert not offset[axis]
    end = tuple(found.round().astype(int))
    assert image[end] == pytest.approx(1, abs=1e-3)
    label[tuple(start)], label[end] = 0, 1  # rotated once more: on the opposite side of the start
    start[one] -= 2 * steps[one]
    np.testing.assert_allclose(np.argwhere(sample_label(label, source) == 1).mean(axis=0), start)


def test_a_factor_above_one_makes_the_content_larger():
    label = np.zeros((1, 15, 15), np.int16)
    label[0, 7, 10] = 1  # three voxels from the middle
    source = deform(
        voxel_positions((0, 0, 0), label.shape), (1.0,) * 3, label.shape, replace(STILL, scaling=(2, 2)), Highest()
    )
    assert [0, 7, 13] in np.argwhere(sample_label(label, source) == 1).tolist()


def test_elastic_displacements_are_smooth_and_of_the_given_size():
    patch, spacing = (8, 16, 24), (3.0, 1.0, 1.0)
    spec, home = replace(STILL, elastic=0.1), voxel_positions((0, 0, 0), patch)
    moved = np.stack([deform(home, spacing, patch, spec, np.random.default_rng(n)) - home for n in range(60)])
    for axis, side in enumerate(patch):
        assert 0.4 < moved[:, axis].std() / (0.1 * side) < 1.1
        assert abs(moved[:, axis].mean()) < 0.03 * side
    assert np.abs(np.diff(moved, axis=4)).mean() < 0.15 * np.abs(moved).mean()


def test_shift_moves_all_voxels_of_a_patch_equally():
    home, volume = voxel_positions((1, 2, 3), PATCH), (10, 40, 60)
    spec = replace(STILL, shift=0.25)
    moves = []
    for n in range(200):
        moved = deform(home, (3.0, 1.0, 0.5), volume, spec, np.random.default_rng(n)) - home
        assert np.ptp(moved.reshape(3, -1), axis=1).max() < 1e-9
        moves.append(moved[:, 0, 0, 0])
    reach = np.abs(moves).max(axis=0) / volume
    assert (reach <= 0.25 + 1e-9).all()
    assert (reach > 0.22).all()


@pytest.mark.parametrize("name", INTENSITIES)
def test_intensity_transforms_change_images_only(name):
    case = tiny_case()
    untouched = case.image.copy(), case.label.copy()
    plain, changed = (sampler(case, spec=AugmentationConfig(**{f"{name}_probability": p}))[0] for p in (0.0, 1.0))
    assert torch.equal(plain[1], changed[1])
    assert torch.equal(plain[2], changed[2])
    assert changed[0].dtype == torch.float32
    assert torch.isfinite(changed[0]).all()
    assert not torch.equal(plain[0], changed[0])
    assert np.array_equal(case.image, untouched[0])
    assert np.array_equal(case.label, untouched[1])


def likely_counts(trials: int, probability: float) -> tuple[float, float]:
    """From and to: all but one in 100,000 outcomes of the binomial distribution."""
    low, high = binom.interval(1 - 1e-5, trials, probability)
    return low, high


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("probability", [0.4, 1.0])
@pytest.mark.parametrize("name", INTENSITIES)
def test_the_share_of_patches_and_channels_that_are_changed(name, probability, channels):
    """Blur and low resolution change a channel of a chosen patch with probability 0.5, the others all channels."""
    patches, strong = 600, {"blur": (1.0, 1.0), "low_resolution": (0.5, 0.5)}  # a zoom near 1 changes no voxel
    spec = AugmentationConfig(**{f"{name}_probability": probability}, **{k: v for k, v in strong.items() if k == name})
    images = np.random.default_rng(0).normal(size=(patches, channels, 4, 6, 6)).astype(np.float32)
    seed_global_generators(4)
    changed = (intensity_transform(spec)(images.copy()) != images).reshape(patches, channels, -1).any(axis=2)
    chosen = 0.5 if name in strong else 1.0
    low, high = likely_counts(patches, probability * chosen)
    assert all(low <= count <= high for count in changed.sum(axis=0))  # of each channel
    low, high = likely_counts(patches, probability * (1 - (1 - chosen) ** channels))
    assert low <= changed.any(axis=1).sum() <= high


@pytest.mark.parametrize("largest", [0.05, 0.5])
def test_the_standard_deviation_of_the_noise_is_uniform_up_to_noise_variance(largest):
    """The field is named after batchgenerators, whose ``variance`` is a standard deviation."""
    seed_global_generators(5)
    spec = AugmentationConfig(noise_probability=1.0, noise_variance=largest)
    noise = intensity_transform(spec)(np.zeros((500, 1, 12, 12, 12), np.float32)).reshape(500, -1)
    found = noise.std(axis=1) / largest  # each to 2 %
    assert 0.97 < found.max() < 1.06
    counts = np.histogram(found, bins=4, range=(0, 1.06))[0][:3]
    low, high = likely_counts(500, 0.265)
    assert ((low <= counts) & (counts <= high)).all()
    assert np.abs(noise.mean(axis=1)).max() < 0.15 * largest


def seed_global_generators(seed: int) -> None:
    """Those from which batchgenerators draws."""
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


def test_intensity_probability_zero_changes_nothing():
    images = np.random.default_rng(0).normal(size=(2, 1, 4, 4, 4)).astype(np.float32)
    np.testing.assert_array_equal(intensity_transform(NONE)(images.copy()), images)


def test_gamma_keeps_the_mean_and_spread_of_every_channel():
    rng = np.random.default_rng(0)
    images = rng.gamma(2.0, size=(2, 2, 4, 6, 6)).astype(np.float32)
    images[:, 1] += 50  # a channel on another scale
    changed = intensity_transform(AugmentationConfig(gamma_probability=1.0))(images.copy())
    assert np.abs(changed - images).max() > 0.01
    np.testing.assert_allclose(changed.mean(axis=(2, 3, 4)), images.mean(axis=(2, 3, 4)), rtol=1e-4)
    np.testing.assert_allclose(changed.std(axis=(2, 3, 4)), images.std(axis=(2, 3, 4)), rtol=1e-3)


def test_spawned_loader_processes_give_the_same_batches():
    batches = sampler(tiny_case(), spec=EVERYTHING)
    for one, other in zip(batches[3], pickle.loads(pickle.dumps(batches))[3], strict=True):
        assert torch.equal(one, other)


def test_the_state_of_global_generators_is_unchanged():
    def states():
        name, keys, *rest = np.random.get_state()  # noqa: NPY002
        return {
            "numpy": (name, keys.tolist(), rest),
            "random": random.getstate(),
            "torch": torch.get_rng_state().tolist(),
        }

    batches = sampler(tiny_case(), spec=EVERYTHING)
    before = states()
    batches[0]
    after = states()
    assert [name for name in before if before[name] != after[name]] == []
