"""Preprocessing of images by the plan, and its inverse on the scan's own grid."""

import json

import numpy as np
import pytest
from scipy import ndimage

from mre_lowshot.config import ChannelNormalization, PreprocessingConfig
from mre_lowshot.data.synthetic import make_subject
from mre_lowshot.errors import UserError
from mre_lowshot.preprocessing.cropping import body_box, centre_box, nonzero_box
from mre_lowshot.preprocessing.normalization import normalize
from mre_lowshot.preprocessing.pipeline import (
    GridTransform,
    find_box,
    forward,
    forward_labels,
    inverse_labels,
    inverse_probabilities,
)
from mre_lowshot.resampling import resize_image

ZSCORE, SPACING = (ChannelNormalization(),), (2.0, 1.0, 1.0)
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def scan(shape=(14, 30, 26), seed=0, channels=1):
    """Noise on a constant background of -3, away from the borders."""
    image = np.full((channels, *shape), -3.0, np.float32)
    inside = tuple(slice(2, n - 3) for n in shape)
    image[(slice(None), *inside)] = np.random.default_rng(seed).normal(100, 30, image[(slice(None), *inside)].shape)
    return image


def ball(shape, centre, radius):
    z, y, x = np.ogrid[tuple(slice(0, n) for n in shape)]
    return sum(((a - c) / r) ** 2 for a, c, r in zip((z, y, x), centre, radius, strict=True)) <= 1


def one_hot(labels, classes):
    return np.stack([labels == k for k in range(classes)]).astype(np.float32)


def config(crop="none", grid="native", **fields):
    return PreprocessingConfig(crop, fields.pop("normalization", ZSCORE), grid, **fields)


BOX = ((3, 9), (5, 25), (1, 20))
CROPS = {
    "none": ((2, 11), (2, 27), (2, 23)),
    "nonzero": ((2, 11), (2, 27), (2, 23)),
    "given": BOX,
    "centre": ((2, 11), (3, 25), (3, 22)),
}


@pytest.mark.parametrize("crop", CROPS)
def test_labels_are_restored_on_the_native_grid_with_background_outside_the_crop(crop):
    labels = np.random.default_rng(1).integers(0, 4, (14, 30, 26))
    image, transform = forward(scan(), SPACING, config(crop), BOX)
    assert transform.box == CROPS[crop]
    assert image.dtype == np.float32
    assert image.shape[1:] == transform.size
    cut = forward_labels(labels, transform)
    inside = np.zeros(labels.shape, bool)
    inside[tuple(slice(*side) for side in transform.box)] = True
    probabilities = one_hot(cut, 4)
    assert np.array_equal(inverse_labels(probabilities, transform), np.where(inside, labels, 0))
    native = inverse_probabilities(probabilities, transform)
    assert np.array_equal(native, one_hot(np.where(inside, labels, 0), 4))


COARSER = {"spacing": {"spacing": (2.6, 1.3, 1.3)}, "size": {"size": (15, 30, 23)}}


@pytest.mark.parametrize("grid", COARSER)
def test_a_smooth_shape_is_kept_on_a_coarser_grid(grid):
    labels = np.zeros((24, 40, 36), np.int16)
    labels[ball(labels.shape, (12, 18, 16), (8, 12, 11))] = 1
    labels[ball(labels.shape, (12, 18, 16), (4, 6, 6))] = 2
    _, transform = forward(scan(labels.shape), SPACING, config("nonzero", grid, **COARSER[grid]))
    back = inverse_labels(one_hot(forward_labels(labels, transform), 3), transform)
    for label in (1, 2):
        assert 2 * ((back == label) & (labels == label)).sum() / ((back == label).sum() + (labels == label).sum()) > 0.9


def test_the_grid_follows_from_crop_and_spacing():
    _, transform = forward(scan(), SPACING, config("given", "spacing", spacing=(4.0, 0.5, 1.3)), BOX)
    assert transform.size == (3, 40, 15)  # 6 * 2 / 4, 20 / 0.5, 19 / 1.3
    assert transform.spacing == pytest.approx((4.0, 0.5, 19 / 15))
    assert GridTransform.from_json(json.loads(json.dumps(transform.to_json()))) == transform
    one_slice = forward(scan()[:, 5:6], SPACING, config("none", "spacing", spacing=(9.0, 2.0, 2.0)))[1]
    assert one_slice.size == (1, 15, 13)


@pytest.mark.parametrize("low", [-1024, -125])
@pytest.mark.parametrize("seed", range(3))
def test_the_body_box_contains_the_patient_and_not_the_table(seed, low):
    """With true and with clipped air: in exported scans it may read -125 HU."""
    image, labels = make_subject(seed)
    box = body_box(np.clip(image, low, 275)[None], (4.0, 4.0, 4.0))
    cut = tuple(slice(*side) for side in box)
    assert np.count_nonzero(labels[cut]) == np.count_nonzero(labels)
    parts, _ = ndimage.label(ndimage.binary_opening(image > -400))
    body = np.nonzero(parts == np.bincount(parts[labels > 0]).argmax())
    for (first, end), where in zip(box, body, strict=True):
        assert first >= where.min() - 3  # 12 mm; the table reaches 30 mm further to both sides
        assert end <= where.max() + 4


def test_the_body_box_of_an_mri_with_noise_and_of_an_empty_image():
    rng = np.random.default_rng(0)
    inside = ball((20, 64, 64), (10, 30, 34), (30, 20, 22))
    image = np.abs(rng.normal(0, 6, inside.shape)) + inside * rng.normal(200, 30, inside.shape)
    (z0, z1), (y0, y1), (x0, x1) = body_box(image[None].astype(np.float32), (3.0, 1.0, 1.0))
    assert (z0, z1) == (0, 20)
    for found, true in zip((y0, y1, x0, x1), (10, 51, 12, 57), strict=True):
        assert abs(found - true) <= 3
    wider = body_box(image[None].astype(np.float32), (3.0, 1.0, 1.0), margin_mm=4)
    assert wider[1] == (y0 - 4, y1 + 4)
    assert body_box(np.zeros((1, 5, 6, 7), np.float32), SPACING) == ((0, 5), (0, 6), (0, 7))


def test_the_body_is_found_in_any_channel_that_shows_it():
    """PET before CT: the first channel shows a hot spot only."""
    inside, hot = ball((24, 64, 64), (12, 30, 34), (30, 20, 22)), ball((24, 64, 64), (12, 30, 34), (4, 5, 5))
    pet, ct = np.where(hot, 40.0, np.where(inside, 0.5, 0.0)), np.where(inside, 40.0, -1000.0)
    rng = np.random.default_rng(0)
    both = np.stack([pet + rng.normal(0, 0.05, pet.shape), ct + rng.normal(0, 20, ct.shape)]).astype(np.float32)
    assert body_box(both, (3.0, 1.0, 1.0)) == body_box(both[1:], (3.0, 1.0, 1.0))


def test_slight_ringing_of_a_constant_background_is_ignored():
    image = scan()
    ringing = image + np.random.default_rng(0).uniform(-1e-5, 1e-5, image.shape).astype(np.float32) * np.ptp(image)
    assert nonzero_box(ringing, SPACING) == nonzero_box(image, SPACING)


def test_boxes_have_the_expected_voxels():
    image = scan(channels=2)
    image[1, 1, 1, 1] = 0  # one channel is enough
    assert nonzero_box(image, SPACING) == ((1, 11), (1, 27), (1, 23))
    assert nonzero_box(scan(), SPACING, margin_mm=2) == ((1, 12), (0, 29), (0, 25))
    assert nonzero_box(np.zeros((1, 3, 4, 5)), SPACING) == ((0, 3), (0, 4), (0, 5))
    assert centre_box((48, 240, 240), (1.0, 0.9, 0.9)) == ((0, 48), (12, 228), (12, 228))  # the paper's 216 x 216 x 48
    for given, words in ((None, "no box for this case"), (((0, 15), (0, 30), (0, 26)), "does not lie inside")):
        with pytest.raises(UserError, match=words):
            find_box(scan(), SPACING, config("given"), given)


def test_zscore_statistics_are_accurate_for_values_near_a_million():
    """Float32 has steps of 1/16 there: sums in float32 would lose the spread."""
    image = (1e6 + np.random.default_rng(0).normal(0, 20, (1, 40, 90, 90))).astype(np.float32)
    done = normalize(image, ZSCORE)
    assert done.dtype == np.float32
    assert abs(done.mean(dtype=np.float64)) < 1e-3
    assert done.std(dtype=np.float64) == pytest.approx(1, abs=1e-3)


def test_normalisation_gives_the_expected_values():
    image = np.array([-1000, -210, 40, 290, 3000], np.float32).reshape(1, 1, 1, 5)
    assert normalize(image, (ChannelNormalization("clip"),)).ravel().tolist() == [0, 0, 0.5, 1, 1]
    stripped = scan()
    done = normalize(stripped, (ChannelNormalization(foreground_only=True),))
    inside = done[stripped != -3]
    assert abs(inside.mean()) < 1e-3
    assert inside.std() == pytest.approx(1, abs=1e-3)
    assert done.mean() < -0.5  # the background is not part of the statistics, and lies below


def test_images_that_cannot_be_normalised_are_refused():
    with pytest.raises(UserError, match=r"channel 1 is constant \(4\)"):
        normalize(np.stack([scan()[0], np.full((14, 30, 26), 4.0)]), ZSCORE * 2)
    with pytest.raises(UserError, match="has 2 channels, the plan 1"):
        forward(scan(channels=2), SPACING, config())
    image = scan()
    image[0, 0, 0, :2] = np.nan, np.inf
    with pytest.raises(UserError, match="2 voxels are NaN or infinite"):
        forward(image, SPACING, config("given"), BOX)  # also outside the crop


def test_ct_is_clipped_before_it_is_resampled():
    """Our reading; the paper resizes first (IV-A). METHOD states how much the two differ on this torso."""
    _, y, x = np.mgrid[:16, :128, :128]
    hu = np.where((y - 64) ** 2 + (x - 64) ** 2 < 50**2, 50.0, -1000.0)
    hu[(y - 80) ** 2 + (x - 64) ** 2 < 12**2] = 900  # bone
    hu[(y - 40) ** 2 + (x - 50) ** 2 < 8**2] = -900  # gas
    image = (hu + np.random.default_rng(0).normal(0, 15, hu.shape)).astype(np.float32)[None]
    size = (12, 90, 90)
    scaled = (np.clip(image, -210, 290) + 210) / 500
    ours, _ = forward(image, (1.0,) * 3, config(normalization=(ChannelNormalization("clip"),), grid="size", size=size))
    np.testing.assert_allclose(ours, resize_image(scaled, size), atol=1e-5)
    resized_first = (np.clip(resize_image(image, size), -210, 290) + 210) / 500
    differences = np.abs(ours - resized_first)[0, 3:9, 10:80, 10:80]
    assert (differences > 0.1).mean() == pytest.approx(0.054, abs=0.0006)
    assert differences.mean() == pytest.approx(0.014, abs=0.0006)
