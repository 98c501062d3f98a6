"""The box and the mask of the patient, in difficult images."""

import numpy as np
import pytest

from mre_lowshot.planners.fingerprint import case_fingerprint, constant_background, dataset_fingerprint
from mre_lowshot.preprocessing.cropping import body_box, body_mask

SPACING = (4.0, 4.0, 4.0)


def ellipse(shape, centre, radii):
    positions = np.indices(shape)
    return sum(((p - c) / r) ** 2 for p, c, r in zip(positions, centre, radii, strict=True)) <= 1


@pytest.mark.parametrize("padding", [-1024.0, -2048.0, -3024.0])
def test_the_padding_around_the_circular_field_of_view_is_air(padding):
    """The circular field of view is -1000, the padding around it lower; fat is -100, the rest of the body 40."""
    shape, noise = (20, 80, 80), np.random.default_rng(0).normal(0, 8, (20, 80, 80))
    image = np.where(ellipse(shape, (10, 40, 40), (99, 40, 40)), -1000 + noise, padding)
    image = np.where(ellipse(shape, (10, 40, 40), (99, 14, 24)), -100 + noise, image)
    image = np.where(ellipse(shape, (10, 40, 40), (99, 11, 20)), 40 + noise, image)
    _, (top, bottom), (right, left) = body_box(image[None].astype(np.float32), SPACING)
    found = np.array([top, bottom, right, left])
    assert np.abs(found - [26, 55, 16, 65]).max() <= 3


def test_an_mri_whose_fat_is_much_brighter_than_the_rest_is_found_whole():
    shape, noise = (20, 80, 80), np.random.default_rng(0).normal(0, 3, (20, 80, 80))
    body, inner = ellipse(shape, (10, 40, 40), (99, 22, 32)), ellipse(shape, (10, 40, 40), (99, 18, 28))
    image = np.where(inner, 60, np.where(body, 1500, 5)) + noise
    mask = body_mask(image[None].astype(np.float32), SPACING)
    assert np.count_nonzero(mask & inner) > 0.95 * np.count_nonzero(inner)
    assert np.count_nonzero(mask & ~body) < 0.1 * np.count_nonzero(body)


def test_lungs_are_not_part_of_the_mask():
    shape, noise = (20, 80, 80), np.random.default_rng(0).normal(0, 3, (20, 80, 80))
    body = ellipse(shape, (10, 40, 40), (99, 24, 34))
    lungs = ellipse(shape, (10, 40, 26), (99, 12, 8)) | ellipse(shape, (10, 40, 54), (99, 12, 8))
    fat = body & ~ellipse(shape, (10, 40, 40), (99, 20, 30))
    image = np.where(fat, 600, np.where(lungs, 10, np.where(body, 300, 5))) + noise
    mask = body_mask(image[None].astype(np.float32), SPACING)
    assert np.count_nonzero(mask & lungs) < 0.1 * np.count_nonzero(lungs)
    assert np.count_nonzero(mask & body & ~lungs) > 0.9 * np.count_nonzero(body & ~lungs)


@pytest.mark.parametrize(("voxel", "stripped"), [(4.0, True), (8.0, False)])
def test_air_stored_as_zero_around_a_body_is_not_skull_stripping(voxel, stripped):
    """The same image once of the size of a brain (160 mm) and once of a body."""
    inside = ellipse((40, 60, 60), (20, 30, 30), (14, 20, 16))
    image = np.where(inside, np.random.default_rng(0).uniform(100, 200, inside.shape), 0)
    measured = case_fingerprint(image[None].astype(np.float32), (voxel, voxel, voxel), "LPS")
    assert measured["background_share"] > 0.5
    assert constant_background(dataset_fingerprint("D", {"a": measured})) == stripped
