"""Patches of mirrored volumes (`recipe.augmentation.mirror_axes`)."""

import numpy as np
import pytest
from test_sampling import box, corner_of, numbered_case, sampler, whole_map

from mre_lowshot.config.recipe import AugmentationConfig


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


@pytest.mark.parametrize("axes", [(2,), (1, 2)])
def test_class_centred_patches_of_a_mirrored_volume_hold_the_class(axes):
    """The class lies at one side, so its mirror image lies outside a patch that is placed before mirroring."""
    label = np.zeros((4, 24, 40), np.int16)
    label[2, 3, 4] = 1
    case = numbered_case(label.shape, label=label)
    spec = AugmentationConfig(mirror_axes=axes)
    _, maps, targets = (t.numpy() for t in sampler(case, batch=64, spec=spec, foreground_fraction=1.0)[0])
    assert (targets.reshape(64, -1) == 1).any(axis=1).all()
    sides = {tuple(np.sign(position[1:].mean(axis=(1, 2, 3)))) for position in maps}
    assert len(sides) == 2 ** len(axes)  # at the voxel and at its mirror images


def test_a_mirror_axis_that_the_scan_does_not_have_is_left_out():
    case = numbered_case((20, 30), channels=1)
    spec = AugmentationConfig(mirror_axes=(1, 2))
    images, maps, _ = (t.numpy() for t in sampler(case, patch=(8, 12), batch=40, spec=spec)[0])
    rising = images[:, 0, 0, 1] > images[:, 0, 0, 0]
    assert 10 < rising.sum() < 30
    assert (maps[:, 1, 0, 1] > maps[:, 1, 0, 0]).all()
