"""Discrete registration: features and displacements against slow references, and large displacements."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from one_device import META, OneDevice
from scipy import ndimage

from mre_lowshot.atlas.label_fusion import class_shares
from mre_lowshot.atlas.registration import demons as demons_module
from mre_lowshot.atlas.registration import discrete
from mre_lowshot.atlas.registration.demons import demons
from mre_lowshot.atlas.registration.demons import level as demons_level
from mre_lowshot.atlas.registration.discrete import blocks_of, self_similarity
from mre_lowshot.filters import along_axes, linear_matrix
from mre_lowshot.grid import IGNORE


def texture(size, seed=0, sigma=1.5) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=size)
    return ndimage.gaussian_filter(noise, sigma).astype(np.float32)


def displacement(fixed, moving, step, reach, classes=(None, None), radius=1, distance=2) -> np.ndarray:
    """Displacement (3, *size) of voxels: that of the blocks, interpolated."""
    pairs = zip((fixed, moving), classes, strict=True)
    features = [
        blocks_of(torch.from_numpy(i).float(), step, radius, distance, None if c is None else torch.from_numpy(c))
        for i, c in pairs
    ]
    found = discrete.displacement(*features, reach) * torch.tensor(step).view(3, 1, 1, 1)
    sizes = zip(found.shape[1:], fixed.shape, step, strict=True)
    return along_axes(found, [linear_matrix(old, new, 1 / s) for old, new, s in sizes]).numpy()


def test_features_are_mind_ssc_as_defined():
    image = texture((5, 6, 7))
    found = self_similarity(torch.from_numpy(image), 1, 2).numpy()
    # Differences of two neighbours' patches, each the mean over a 3 x 3 x 3 patch; beyond the edge, the edge voxel.
    neighbours = [(a, s) for a in range(3) for s in (-2, 2)]

    def voxel(z, y, x):
        at = [min(max(v, 0), n - 1) for v, n in zip((z, y, x), image.shape, strict=True)]
        return float(image[tuple(at)])

    def squared(centre, one, other):
        values = []
        for axis, side in (one, other):
            at = [min(max(c, 0), n - 1) for c, n in zip(centre, image.shape, strict=True)]
            at[axis] += side
            values.append(voxel(*at))
        return (values[0] - values[1]) ** 2

    pairs = [(a, b) for i, a in enumerate(neighbours) for b in neighbours[i + 1 :] if a[0] != b[0]]
    assert len(pairs) == 12
    raw = np.zeros((12, *image.shape))
    for at in np.ndindex(*image.shape):
        for number, (a, b) in enumerate(pairs):
            around = [squared(np.add(at, d), a, b) for d in product((-1, 0, 1), repeat=3)]
            raw[(number, *at)] = np.mean(around)
    raw -= raw.min(axis=0)
    spread = raw.mean(axis=0)
    wanted = np.exp(-raw / np.clip(spread, 1e-3 * spread.mean(), 1e3 * spread.mean()))
    np.testing.assert_allclose(found, wanted, atol=2e-4)


@settings(max_examples=20)
@given(gain=st.floats(0.2, 5), offset=st.floats(-3, 3), seed=st.integers(0, 5))
def test_features_do_not_depend_on_brightness_or_contrast(gain, offset, seed):
    image = texture((8, 9, 7), seed)
    plain, changed = (self_similarity(torch.from_numpy(i), 2, 3) for i in (image, np.float32(gain) * image + offset))
    torch.testing.assert_close(changed, plain, atol=1e-2, rtol=0)


def test_an_even_image_has_features_without_a_nan():
    assert torch.isfinite(self_similarity(torch.ones(6, 6, 6), 1, 2)).all()
    assert np.isfinite(displacement(np.ones((12, 12, 12)), np.ones((12, 12, 12)), (3, 3, 3), 2)).all()


def smoothed(field: np.ndarray) -> np.ndarray:
    """Mean over the 3 x 3 x 3 neighbours inside, of the last three axes."""
    out = np.empty_like(field)
    for at in np.ndindex(*field.shape[-3:]):
        box = tuple(slice(max(a - 1, 0), a + 2) for a in at)
        out[(..., *at)] = field[(..., *box)].mean(axis=(-3, -2, -1))
    return out


def test_the_choice_of_each_block_is_coupled_convex_optimisation():
    rng = np.random.default_rng(0)
    size, reach = (4, 5, 3), 1
    fixed, moving = rng.random((2, 12, *size)).astype(np.float32)
    choices = list(product(range(-reach, reach + 1), repeat=3))
    cost = np.zeros((len(choices), *size))
    for number, d in enumerate(choices):
        for at in np.ndindex(*size):
            there = tuple(np.add(at, d))
            inside = all(0 <= t < n for t, n in zip(there, size, strict=True))
            other = moving[(slice(None), *there)] if inside else 0.0
            cost[(number, *at)] = ((fixed[(slice(None), *at)] - other) ** 2).sum()
    cost = smoothed(smoothed(cost))
    table = np.array(choices, dtype=float)
    chosen = cost.argmin(axis=0)
    for weight in discrete.COUPLING:
        around = smoothed(np.moveaxis(table[chosen], -1, 0))
        far = ((table.T[:, :, None, None, None] - around[:, None]) ** 2).sum(axis=0)
        chosen = (cost + weight * far).argmin(axis=0)
    wanted = smoothed(np.moveaxis(table[chosen], -1, 0))
    found = discrete.best(discrete.costs(torch.from_numpy(fixed), torch.from_numpy(moving), reach), reach)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize("shift", [(0, 0, 0), (8, 0, -4), (-4, 12, 8)])
def test_a_large_displacement_is_found(shift):
    whole = texture((76, 80, 78), sigma=2)
    inner = tuple(slice(14, n - 14) for n in whole.shape)
    there = tuple(slice(14 - s, n - 14 - s) for s, n in zip(shift, whole.shape, strict=True))
    fixed, moving = whole[inner], whole[there]  # fixed(x) = moving(x + shift)
    found = displacement(fixed, moving, (4, 4, 4), 4)
    assert found.shape == (3, *fixed.shape)
    middle = found[:, 16:-16, 16:-16, 16:-16]
    assert np.abs(middle - np.reshape(shift, (3, 1, 1, 1))).mean() < 1


def test_sides_not_divisible_by_the_block_and_anisotropic_blocks():
    whole = texture((30, 47, 41), sigma=2)
    fixed, moving = whole[2:27, 5:43, :], whole[:25, :38, :]  # by 2 and 5 voxels
    found = displacement(fixed, moving, (1, 3, 2), 3)
    assert found.shape == (3, *fixed.shape)
    middle = found[:, 8:-8, 10:-10, 10:-10]
    np.testing.assert_allclose(middle.mean(axis=(1, 2, 3)), (2, 5, 0), atol=1)


def body(centre: tuple[float, float, float], size=(40, 48, 44)) -> tuple[np.ndarray, np.ndarray]:
    """A textured body with one bright organ at ``centre`` (voxels), and the organ's mask."""
    z, y, x = np.indices(size).astype(float)
    middle = [(n - 1) / 2 for n in size]
    inside = sum(((v - m) / (0.45 * n)) ** 2 for v, m, n in zip((z, y, x), middle, size, strict=True)) < 1
    organ = sum((v - p) ** 2 for v, p in zip((z, y, x), centre, strict=True)) < 25
    image = inside * (1 + 0.2 * texture(size, seed=3, sigma=3) / 0.1) + 1.5 * organ
    return ndimage.gaussian_filter(image, 0.7).astype(np.float32), organ


@pytest.mark.slow
def test_an_organ_far_from_its_position_in_the_other_scan_is_found():
    """By twice its radius: demons alone, which follow the images' gradients, do not reach it."""
    import SimpleITK as sitk

    from mre_lowshot.atlas.registration.deformable import deformable
    from mre_lowshot.atlas.registration.images import to_image, transformed_positions

    (fixed, there), (moving, organ) = body((19, 17, 21)), body((19, 27, 21))
    images = [to_image(image[None], (2.0, 2.0, 2.0)) for image in (fixed, moving)]
    alone = demons(*(torch.from_numpy(image) for image in (fixed, moving)), (2.0, 2.0, 2.0)).numpy()
    complete = transformed_positions(deformable(*images, sitk.AffineTransform(3)), images[0]) / 2
    scores = []
    for positions in (np.indices(fixed.shape) + alone, complete):
        warped = ndimage.map_coordinates(organ.astype(float), positions, order=1) > 0.5
        scores.append(2 * (warped & there).sum() / (warped.sum() + there.sum()))
    assert scores[0] < 0.5
    assert scores[1] > 0.8


def bent(size=(32, 32, 32)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A texture, the same deformed smoothly along x, and the displacement."""
    moving = texture(size)
    z, y, x = np.indices(moving.shape).astype(float)
    shift = 1.5 * np.sin(2 * np.pi * y / size[1])
    return ndimage.map_coordinates(moving, [z, y, x + shift], order=3, mode="nearest"), moving, shift


def test_demons_follow_a_smooth_deformation_to_a_tenth_of_a_voxel():
    """The field's error with 5 instead of 12 iterations at the finest level is 0.125 voxels."""
    fixed, moving, shift = bent()
    found = demons(torch.from_numpy(fixed), torch.from_numpy(moving), (1.0, 1.0, 1.0)).numpy()
    error = found - np.stack([0 * shift, 0 * shift, shift])
    assert np.linalg.norm(error, axis=0)[4:-4, 4:-4, 4:-4].mean() < 0.1


def test_an_iteration_of_demons_is_simpleitks():
    """On an anisotropic grid, away from the edges."""
    import SimpleITK as sitk

    fixed, moving, _ = bent((18, 24, 22))
    sides = (2.0, 1.0, 1.5)
    images = [sitk.GetImageFromArray(array) for array in (fixed, moving)]
    for image in images:
        image.SetSpacing(sides[::-1])
    method = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    method.SetNumberOfIterations(4)
    method.SetStandardDeviations(1.0)
    wanted = np.moveaxis(sitk.GetArrayFromImage(method.Execute(*images)), -1, 0)[::-1]
    tensors = [torch.from_numpy(array) for array in (fixed, moving)]
    found = demons_level(*tensors, torch.zeros(3, *fixed.shape), sides, iterations=4, longest=0.5)
    inner = (slice(None), *[slice(6, -6)] * 3)
    ours = found.numpy() * np.reshape(sides, (3, 1, 1, 1))
    assert np.abs(wanted[inner]).mean() > 0.05
    np.testing.assert_allclose(ours[inner], wanted[inner], atol=0.02)


@pytest.mark.parametrize("size", [(1, 16, 18), (2, 3, 4), (9, 30, 28)])
def test_refinement_is_finite_on_slabs_flat_and_tiny_images(size):
    import SimpleITK as sitk

    from mre_lowshot.atlas.registration.deformable import deformable

    images = [sitk.GetImageFromArray(array) for array in (texture(size), np.zeros(size, np.float32))]
    for pair in (images, images[::-1], images[:1] * 2):
        field = deformable(*pair, sitk.AffineTransform(3)).GetDisplacementField()
        assert np.isfinite(sitk.GetArrayFromImage(field)).all()


@pytest.mark.slow
def test_the_number_of_threads_does_not_change_a_registration():
    """To the bit."""
    from mre_lowshot.atlas.registration.affine import affine
    from mre_lowshot.atlas.registration.deformable import deformable
    from mre_lowshot.atlas.registration.images import to_image, transformed_positions

    images = [to_image(array[None], (2.0, 1.0, 1.0)) for array in (texture((26, 40, 36), n, 3) for n in (0, 1))]
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            start = affine(*images)
            found.append(transformed_positions(deformable(*images, start), images[0]))
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_every_tensor_of_the_deformable_stages_is_on_the_device(monkeypatch):
    monkeypatch.setattr(demons_module, "LEVELS", ((2, 1, 0.5), (1, 1, 1.0)))
    with OneDevice() as mode:
        image, shares = torch.zeros(9, 10, 12, device=META), torch.zeros(3, 9, 10, 12, device=META)
        features = [blocks_of(image, (2, 3, 2), 1, 2, shares) for _ in range(2)]
        assert discrete.displacement(*features, 1).device == META
        assert demons(image, image, (1.0, 1.0, 2.0)).device == META
    assert mode.operations > 100


def test_classes_are_matched_where_the_images_are_uniform():
    size, shift = (28, 32, 30), (4, -6, 2)
    shares = np.zeros((2, *size), np.float32)
    shares[0, 8:18, 12:22, 8:16] = 1
    shares[1, 8:18, 12:22, 16:24] = 1
    there = np.roll(shares, shift, axis=(1, 2, 3))  # shares(x) = there(x + shift)
    even = np.ones(size, np.float32)
    found = displacement(even, even, (2, 2, 2), 4, classes=(shares, there))
    inside = shares.sum(axis=0) > 0
    np.testing.assert_allclose(found[:, inside].mean(axis=1), shift, atol=0.7)
    assert not displacement(even, even, (2, 2, 2), 4).any()


def test_class_shares_are_one_for_the_label_and_equal_where_it_is_ignored():
    label = np.array([[[0, 2, IGNORE, 1]]], dtype=np.int16)
    wanted = np.array([[1, 0, 1 / 3, 0], [0, 0, 1 / 3, 1], [0, 1, 1 / 3, 0]], dtype=np.float32)
    assert np.array_equal(class_shares(label, 3)[:, 0, 0], wanted)


@pytest.mark.parametrize("known", [0, 2])
def test_an_ignored_voxel_of_the_atlas_differs_equally_from_every_class(known):
    from mre_lowshot.atlas.registration.deformable import Classes
    from mre_lowshot.atlas.registration.images import label_image

    ignored = label_image(np.full((4, 5, 6), IGNORE), (1.0, 1.0, 1.0))
    mine = class_shares(np.full((4, 5, 6), known), 3)
    its = Classes(mine, ignored).at(torch.from_numpy(np.indices((4, 5, 6)).astype(np.float32))).numpy()
    np.testing.assert_allclose(((mine - its) ** 2).sum(axis=0), 2 / 3, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "spacing", "wanted"),
    [
        ((30, 40, 50), (3.0, 1.0, 1.0), (30, 40, 50)),
        ((20, 512, 512), (9.0, 0.8, 0.8), (20, 158, 158)),  # thick slices are kept
        ((200, 200, 200), (1.0, 1.0, 1.0), (79, 79, 79)),
    ],
)
def test_large_scans_are_downsampled_along_their_finest_axes(size, spacing, wanted):
    from mre_lowshot.atlas.registration.images import registration_size

    assert registration_size(size, spacing) == wanted
    assert np.prod(wanted) <= 500_000


def test_the_moving_scans_labels_are_warped_as_its_image_is():
    import SimpleITK as sitk

    from mre_lowshot.atlas.registration.deformable import Classes
    from mre_lowshot.atlas.registration.images import (
        label_image,
        registration_size,
        to_image,
        transformed_positions,
        warp,
    )

    size, spacing = (60, 110, 100), (3.0, 1.5, 2.0)
    organ = np.zeros(size, np.int16)
    organ[20:40, 30:70, 50:90] = 1
    fixed = to_image(np.zeros((1, *size), np.float32), spacing)
    moving = to_image(organ[None].astype(np.float32), spacing)
    assert np.prod(size) > 500_000  # images are downsampled, labels are not
    move = sitk.TranslationTransform(3, (6.0, -4.5, 9.0))
    shares = np.zeros((2, *registration_size(size, spacing)), np.float32)
    positions = torch.from_numpy(transformed_positions(move, fixed).astype(np.float32))
    warped = Classes(shares, label_image(organ, spacing)).at(positions).numpy()
    image = sitk.GetArrayFromImage(warp(fixed, moving, move))
    assert warped.shape == shares.shape
    assert ((image > 0.5) != (warped[1] > 0.5)).mean() < 0.01
    assert np.array_equal(warped[0], 1 - warped[1])
    assert warped[1].sum() > 0.1 * np.count_nonzero(organ)
