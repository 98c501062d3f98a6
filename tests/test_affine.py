"""Affine registration: mutual information and its gradient, and which start is chosen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from one_device import META, OneDevice
from scipy.ndimage import gaussian_filter, map_coordinates, zoom

from mre_lowshot.atlas.registration import affine
from mre_lowshot.atlas.registration.images import to_image, transformed_positions
from mre_lowshot.atlas.registration.mutual_information import BINS, MARGIN, Level, interpolate

sitk = pytest.importorskip("SimpleITK")


def texture(size, seed=0, sigma=1.5) -> np.ndarray:
    return gaussian_filter(np.random.default_rng(seed).normal(size=size), sigma).astype(np.float32)


def places(matrix: np.ndarray, fixed, moving) -> np.ndarray:
    """A transform (3, 4) of voxel indices as one of places, from -1 to 1 between the outer edges."""
    to_place = [np.diag([*(2 / np.array(size)), 1.0]) for size in (fixed, moving)]
    for each, size in zip(to_place, (fixed, moving), strict=True):
        each[:3, 3] = 1 / np.array(size) - 1
    return (to_place[1] @ np.vstack([matrix, [0, 0, 0, 1]]) @ np.linalg.inv(to_place[0]))[:3]


def test_a_start_that_fits_only_one_end_of_the_other_scan_is_not_chosen(monkeypatch):
    """``fixed`` lies in ``moving`` twice: small and clear at one end, which leaves most of ``moving`` unexplained, and
    less clear all along it. Measured over ``fixed`` alone the small one fits better."""
    random = np.random.default_rng(0)
    scan = gaussian_filter(random.normal(size=(48, 24, 24)), 1.5)
    scan /= scan.std()
    noise = gaussian_filter(random.normal(size=(80, 24, 24)), 1.5)
    long = zoom(scan, (80 / 48, 1, 1), order=1) + 0.7 * noise / noise.std()
    moving = np.concatenate([zoom(scan, (16 / 48, 1, 1), order=1), long]).astype(np.float32)
    matrices = [np.diag([(length - 1) / 47, 1, 1, 1])[:3] for length in (16, 80)]
    matrices[1][0, 3] = 16
    starts = np.stack([places(matrix, scan.shape, moving.shape) for matrix in matrices])
    monkeypatch.setattr(affine, "_starts", lambda *_: starts)
    monkeypatch.setattr(affine, "_ascend", lambda level, transforms, *_, **__: transforms)
    monkeypatch.setattr(affine, "downsampled", lambda image, _: image)
    one, other = (torch.from_numpy(array.astype(np.float32)) for array in (scan, moving))
    whole = np.concatenate([starts, np.tile([[[0, 0, 0, 1.0]]], (2, 1, 1))], axis=1)
    small, large = affine._correlation(one, other, whole)
    assert small > large
    found = affine.affine(*(sitk.GetImageFromArray(array.numpy()) for array in (one, other)))
    np.testing.assert_allclose(found.TransformPoint((3, 5, 7)), (3, 5, 16 + 7 * 79 / 47), atol=1e-6)


@pytest.mark.usefixtures("all_starts")
def test_a_scan_is_laid_on_both_ends_of_the_other_and_in_between():
    """At its own size, and scaled to the other's width and depth."""
    one, other = np.array([20.0, 5.0, 10.0]), np.array([40.0, 15.0, 5.0])  # half the extents
    found = set()
    for start in affine._starts(one, other):
        scales = np.diag(start) * other / one
        assert np.count_nonzero(start[:, :3] - np.diag(np.diag(start))) == 0
        found.add((*np.round(scales, 6), round(start[0, 3] * other[0], 6)))
    scales = ((1.0, 1.0, 1.0), (round(1.5**0.5, 6), 3.0, 0.5))
    assert found == {(*scale, round(part * 40, 6)) for scale in scales for part in (-0.4, -0.2, 0.0, 0.2, 0.4)}


def test_mutual_information_is_that_of_mattes():
    """Against its definition, written out sample by sample; each transform of a batch by itself."""
    fixed, moving = texture((6, 7, 8), 1), texture((7, 6, 9), 2)
    level = Level.of(torch.from_numpy(fixed), torch.from_numpy(moving), most=10_000)
    matrices = [np.eye(4)[:3], np.eye(4)[:3]]
    matrices[1] = matrices[1] + np.random.default_rng(0).normal(0, 0.1, (3, 4))
    value, _ = level.value_and_gradient(torch.from_numpy(np.stack(matrices)))
    for matrix, found in zip(matrices, value.tolist(), strict=True):
        joint = np.zeros((BINS, BINS))
        for at in np.ndindex(*fixed.shape):
            place = (2 * np.array(at) + 1) / fixed.shape - 1
            there = (matrix @ [*place, 1] + 1) / 2 * moving.shape - 0.5
            if np.any((there < -0.5) | (there > np.array(moving.shape) - 0.5)):
                continue
            their = map_coordinates(moving, there[:, None], order=1, mode="nearest")[0]
            bins = []
            for image, v in ((fixed, fixed[at]), (moving, their)):
                bins.append((v - image.min()) / (image.max() - image.min()) * (BINS - 2 * MARGIN) + MARGIN)
            own = min(int(bins[0]), BINS - MARGIN - 1)
            for cell in range(BINS):
                far = abs(cell - bins[1])
                spline = (2 / 3 - far**2 + far**3 / 2) if far < 1 else max(0, 2 - far) ** 3 / 6
                joint[own, cell] += spline
        joint /= joint.sum()
        apart = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0)
        wanted = (joint[joint > 0] * np.log(joint[joint > 0] / apart[joint > 0])).sum()
        assert found == pytest.approx(wanted, abs=2e-4)


def test_its_gradient_is_the_slope():
    fixed = texture((20, 22, 24), 1, sigma=3)
    level = Level.of(torch.from_numpy(fixed), torch.from_numpy(np.roll(fixed, 2, axis=1)), most=10**6)
    start = torch.eye(4, dtype=torch.float64)[None, :3].clone()
    _, gradient = level.value_and_gradient(start)
    for row, column in ((0, 0), (1, 3), (2, 1)):
        step = torch.zeros_like(start)
        step[0, row, column] = 2e-3
        high, low = (level.value_and_gradient(start + sign * step)[0].item() for sign in (1, -1))
        assert gradient[0, row, column].item() == pytest.approx((high - low) / 4e-3, rel=0.15, abs=0.02)


def test_interpolated_values_and_slopes_are_those_of_linear_interpolation():
    volume, random = texture((5, 1, 4)), np.random.default_rng(0)
    at = random.uniform(-1, 5, (1, 3, 50))
    values, slopes = interpolate(torch.from_numpy(volume), torch.from_numpy(at.astype(np.float32)))
    np.testing.assert_allclose(values[0], map_coordinates(volume, at[0], order=1, mode="nearest"), atol=1e-5)
    inside = at[0] * 0 + np.array([[1.25], [0], [2.5]])
    _, slopes = interpolate(torch.from_numpy(volume), torch.from_numpy(inside.astype(np.float32))[None])
    mixed = 0.75 * volume[1, 0] + 0.25 * volume[2, 0]
    np.testing.assert_allclose(slopes[0, 2], mixed[3] - mixed[2], atol=1e-5)
    assert not slopes[0, 1].any()


@pytest.mark.parametrize(("size", "spacing"), [((24, 28, 26), (2.0, 2.0, 2.0)), ((9, 40, 36), (6.0, 1.5, 1.5))])
def test_known_shifts_and_scales_are_recovered(size, spacing):
    """On an anisotropic grid too."""
    moving = texture(size, sigma=np.divide(5, spacing))
    scale, shift = np.array([1.0, 0.95, 1.04]), np.array([0.5, 2.0, -1.5])
    grid = np.indices(size) * scale.reshape(3, 1, 1, 1) + shift.reshape(3, 1, 1, 1)
    fixed = map_coordinates(moving, grid, order=1, mode="nearest")
    images = [to_image(image[None], spacing) for image in (fixed, moving)]
    found = transformed_positions(affine.affine(*images), images[0]) / np.reshape(spacing, (3, 1, 1, 1))
    assert np.abs(found - grid).mean() < 0.2


@pytest.mark.parametrize(("size", "reason"), [((3, 20, 20), "3 x 20 x 20"), ((1, 20, 20), "1 x 20 x 20")])
def test_slabs_and_constant_images_are_refused(size, reason):
    usable = sitk.GetImageFromArray(texture((12, 12, 12)))
    for pair in ((sitk.GetImageFromArray(texture(size)), usable), (usable, sitk.GetImageFromArray(texture(size)))):
        with pytest.raises(RuntimeError, match=reason):
            affine.affine(*pair)
    even = sitk.GetImageFromArray(np.ones((12, 12, 12), np.float32))
    with pytest.raises(RuntimeError, match="constant"):
        affine.affine(usable, even)


def test_tiny_images_give_finite_transforms():
    images = [sitk.GetImageFromArray(texture((4, 5, 6), seed, sigma=0.7)) for seed in (0, 1)]
    assert np.isfinite(affine.affine(*images).GetParameters()).all()


def test_every_tensor_of_the_ascent_is_on_the_device():
    with OneDevice() as mode:
        image = torch.zeros(8, 9, 10, device=META)
        level = Level.of(image, image, most=100)
        value, gradient = level.value_and_gradient(torch.zeros(2, 3, 4, dtype=torch.float64, device=META))
    assert value.device == gradient.device == META
    assert mode.operations > 50
