"""Voxels that are not tissue: constant padding and isolated extreme values change neither the plan nor the input."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mre_lowshot.config import ChannelNormalization, PreprocessingConfig
from mre_lowshot.data.synthetic import LABELS, make_subject
from mre_lowshot.data.volume import read_image
from mre_lowshot.grid import nominal_spacing
from mre_lowshot.planners.facts import DatasetFacts
from mre_lowshot.planners.fingerprint import case_fingerprint, dataset_fingerprint
from mre_lowshot.planners.hardware import Device
from mre_lowshot.planners.planner import make_plan
from mre_lowshot.preprocessing.outliers import limit_outliers
from mre_lowshot.preprocessing.padding import content_box, unpadded_box
from mre_lowshot.preprocessing.pipeline import forward

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SPACING = (1.0, 1.0, 1.0)
PAD = ((0, 0), (5, 4), (3, 6), (5, 0))


def cut_out(seed=0, shape=(30, 40, 34)):
    """A cut-out of an MRI: no background, smooth structures, noise, a bright vessel."""
    rng = np.random.default_rng(seed)
    z, y, x = np.indices(shape) / 10
    image = 500 + 150 * np.sin(z) * np.cos(y + x) + rng.normal(0, 20, shape)
    image[10:20, 12:14, 12:14] = 1500 + rng.normal(0, 50, (10, 2, 2))
    return image[None].astype(np.float32)


def ball(shape, radius):
    centred = [(np.arange(n) - n / 2 + 0.5) / (radius * n) for n in shape]
    z, y, x = (c.reshape([-1 if a == i else 1 for a in range(3)]) for i, c in enumerate(centred))
    return z**2 + y**2 + x**2 <= 1


def stripped(seed=0):
    image = cut_out(seed)
    return np.where(ball(image.shape[1:], 0.38), image, 0).astype(np.float32)


def head(seed=0, shape=(30, 60, 64)):
    """An MRI of a head in noisy air."""
    rng = np.random.default_rng(seed)
    inside = ball(shape, 0.35)
    return np.abs(np.where(inside, cut_out(seed, shape)[0], 0) + rng.normal(0, 5, shape))[None].astype(np.float32)


def ct(seed=0):
    return make_subject(seed, (20, 36, 44), (8.0, 8.0, 8.0))[0][None].astype(np.float32)


IMAGES = {"cut_out": (cut_out, "MRI"), "stripped": (stripped, "MRI"), "head": (head, "T1"), "ct": (ct, "CT")}


def planned(images, channel, spacing=SPACING, recipe="default"):
    spacings = [spacing] * len(images)
    cases = {
        f"c{n}": case_fingerprint(image, own, "LPS", ct=[channel == "CT"])
        for n, (image, own) in enumerate(zip(images, spacings, strict=True))
    }
    facts = DatasetFacts("Dataset001_X", (channel,), LABELS, None, ".nii.gz")
    return make_plan(facts, dataset_fingerprint("X", cases), device=Device("cpu", 8.0), recipe=recipe)


@pytest.mark.parametrize("value", [0.0, -1000.0, 2000.0])
@pytest.mark.parametrize("name", ["cut_out", "head", "ct"])
def test_a_padded_scan_gives_the_same_plan_and_the_same_input_bit_for_bit(name, value):
    make, channel = IMAGES[name]
    image = make()
    padded = np.pad(image, PAD, constant_values=value)
    plan = planned([image, make(1)], channel)
    assert planned([padded, make(1)], channel).preprocessing == plan.preprocessing
    expected, transform = forward(image, SPACING, plan.preprocessing)
    found, of_padded = forward(padded, SPACING, plan.preprocessing)
    assert np.array_equal(found, expected)
    assert of_padded.native_shape == padded.shape[1:]
    moved = tuple(
        (low + before, high + before) for (low, high), (before, _) in zip(transform.box, PAD[1:], strict=True)
    )
    assert of_padded.box == moved


def test_a_stripped_scan_keeps_its_background_and_loses_other_padding():
    image = stripped()
    plan = planned([image, stripped(1)], "MRI")
    assert plan.preprocessing.crop == "nonzero"
    assert plan.preprocessing.normalization[0].foreground_only
    expected = forward(image, SPACING, plan.preprocessing)[0]
    assert max(expected.shape) > max(unpadded_shape(image))  # the margin is still there
    wider, other = np.pad(image, PAD), np.pad(image, PAD, constant_values=-7.0)
    assert np.array_equal(forward(wider, SPACING, plan.preprocessing)[0], expected)
    assert np.array_equal(forward(other, SPACING, plan.preprocessing)[0], expected)
    assert planned([wider, other], "MRI").preprocessing == plan.preprocessing


def unpadded_shape(image):
    return [high - low for low, high in unpadded_box(image)]


def test_given_boxes_images_in_2d_constant_images_and_keep_padding_are_left_alone():
    image = np.pad(cut_out(), PAD)
    full = tuple((0, n) for n in image.shape[1:])
    inside = ((5, 35), (3, 43), (5, 39))
    assert unpadded_box(image) == content_box(image, crop="none") == inside
    assert content_box(image, crop="given") == full
    flat = np.pad(cut_out()[:, :1], ((0, 0), (0, 0), (4, 4), (4, 4)))
    assert unpadded_box(flat) == tuple((0, n) for n in flat.shape[1:])
    assert unpadded_box(np.full((1, 4, 5, 6), 3.0)) == ((0, 4), (0, 5), (0, 6))
    config = PreprocessingConfig("none", (ChannelNormalization(),), "native")
    assert forward(image, SPACING, config)[1].box == inside
    assert forward(image, SPACING, replace(config, keep_padding=True))[1].box == full
    two = np.concatenate([image, image + 1])  # padding of another value in the second channel
    assert unpadded_box(two) == inside
    two[1, 0, 0, 0] = 5  # one channel has a value there
    assert unpadded_box(two)[0][0] == 0


def test_clipped_air_around_a_ct_is_no_padding():
    image = np.full((1, 12, 40, 40), -1000.0, np.float32)
    image[:, 2:10, 8:30, 8:30] = np.random.default_rng(0).normal(40, 20, (8, 22, 22))
    assert content_box(image, crop="body", ct=[True]) == ((0, 12), (0, 40), (0, 40))
    assert content_box(image, crop="body", ct=[False]) == ((2, 10), (8, 30), (8, 30))
    assert content_box(np.pad(image, PAD), crop="body", ct=[True]) == ((5, 17), (3, 43), (5, 45))


@pytest.mark.parametrize("count", [1, 3, 60])
@pytest.mark.parametrize("value", [1e6, 1e30, 3.4e38, -32768.0, -3.4e38])
@pytest.mark.parametrize("name", ["cut_out", "stripped", "head"])
def test_isolated_extreme_voxels_hardly_change_the_input(name, value, count):
    make, channel = IMAGES[name]
    image = make()
    hot, rng = image.copy(), np.random.default_rng(1)
    hot.flat[rng.choice(hot.size, count, replace=False)] = value
    config = planned([image, make(1)], channel).preprocessing
    assert planned([hot, make(1)], channel).preprocessing == config
    with np.errstate(over="raise", invalid="raise"):
        found, transform = forward(hot, SPACING, config)
    expected, of_image = forward(image, SPACING, config)
    assert transform.box == of_image.box
    assert np.count_nonzero(np.abs(found - expected) > 0.05) <= 64 * count  # around the voxel, after resampling
    assert np.abs(found - expected).max() < np.ptp(expected)
    assert hot.flat[0] == image.flat[0] or count > 1  # the caller's array is not changed
    assert np.count_nonzero(hot == np.float32(value)) == count


def test_bright_vessels_hot_spots_and_metal_are_kept():
    for make in (cut_out, stripped, head):
        image = make()
        assert limit_outliers(image) is image
    pet = np.abs(np.random.default_rng(0).normal(0, 0.1, (1, 40, 60, 60))).astype(np.float32)
    pet[0, 10:30, 15:45, 15:45] += 1
    pet[0, 20:23, 20:24, 20:24] = 15  # a lesion of 48 voxels
    assert np.array_equal(limit_outliers(pet)[0, 20:23, 20:24, 20:24], np.full((3, 4, 4), 15, np.float32))
    scan = ct()
    scan[0, 10, 15:17, 20:22] = 30000
    assert limit_outliers(scan, [True]) is scan
    assert np.array_equal(limit_outliers(scan)[0] == scan[0], scan[0] < 30000)  # limited, where it is no CT
    block = cut_out()
    block[0, 4:6, 4:6, 4:6] = 1e6  # a group of voxels, not isolated
    limited = limit_outliers(block)
    assert 1000 < limited[0, 4, 4, 4] < 2000
    assert np.count_nonzero(limited != block) == 8


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the shared datasets are not at {DATA}")
def test_ordinary_scans_keep_every_bit():
    for name in ("Dataset004_Hippocampus", "Dataset020_MouseBrain", "Dataset021_BraTS2013"):
        for path in sorted((DATA / name / "imagesTr").iterdir()):
            image = read_image(path).array
            assert limit_outliers(image) is image


@pytest.mark.parametrize("scale", [0.05, 0.025, 0.01, 1000.0])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.5, 1.0, 1.0)])
@pytest.mark.parametrize("name", IMAGES)
def test_spacings_that_no_patient_has_change_neither_grid_nor_boxes_nor_input(name, spacing, scale):
    """Micro-CT, histology, a wrong unit: the same plan in voxels, and the same arrays."""
    make, channel = IMAGES[name]
    image, scaled = make(), tuple(scale * s for s in spacing)
    one, other = planned([image, make(1)], channel, spacing), planned([image, make(1)], channel, scaled)
    assert (other.patch, other.network, other.recipe) == (one.patch, one.network, one.recipe)
    assert other.preprocessing.spacing == pytest.approx([scale * s for s in one.preprocessing.spacing], rel=1e-4)
    assert other.preprocessing.bias_field == one.preprocessing.bias_field
    expected, transform = forward(image, spacing, one.preprocessing)
    found, of_scaled = forward(image, scaled, other.preprocessing)
    assert (of_scaled.box, of_scaled.size) == (transform.box, transform.size)
    assert np.allclose(found, expected, atol=1e-5)


def test_ordinary_spacings_are_taken_as_they_are():
    assert nominal_spacing((3.0, 0.15, 0.15)) == (3.0, 0.15, 0.15)
    assert nominal_spacing((0.05, 0.025, 0.025)) == (2.0, 1.0, 1.0)


@pytest.mark.parametrize("value", [0, -1, 1000, -32768])
def test_padding_of_one_channel_of_two_is_left_out_of_its_intensities(value):
    """The second channel has fewer slices; what it measured is normalised as without the padding."""
    both = np.concatenate([cut_out(0), 2 * cut_out(1)])
    padded = both.copy()
    padded[1, :6] = value
    padded[1, :, :, -3:] = value
    config = PreprocessingConfig(
        crop="none", grid="native", spacing=SPACING, normalization=(ChannelNormalization("zscore"),) * 2
    )
    made, _ = forward(padded, SPACING, config)
    alone, _ = forward(both[:, 6:, :, :-3], SPACING, config)
    assert np.allclose(made[0], forward(both, SPACING, config)[0][0], atol=1e-4)
    assert np.allclose(made[1, 6:, :, :-3], alone[1], atol=1e-4)
    assert (made[1, :6] == 0).all()
    assert np.abs(made).max() < 20
