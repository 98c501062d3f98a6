"""Warnings about a scan that differs from the training scans."""

from dataclasses import replace

import numpy as np
import pytest
from references import tiny_plan

from mre_lowshot.config import ChannelNormalization
from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.volume import Volume
from mre_lowshot.inference.input_checks import differences_from_training

RANGES = {
    "spacing": [[2.0, 1.0, 1.0], [3.0, 1.0, 1.0]],
    "extent_mm": [[40.0, 20.0, 20.0], [60.0, 30.0, 30.0]],
    "channels": [{"median": [-50.0, 20.0], "percentile_99_5": [200.0, 400.0]}],
}

FAR_SPACING = "spacing along z is 7 mm, training scans 2 to 3 mm"
FAR_MEDIAN = "median intensity is 900 HU, training scans -50 to 20 HU; is the scan in HU?"


def scan(spacing=(2.0, 1.0, 1.0), shape=(20, 24, 24), inside=6, background=0.0):
    array = np.full((1, *shape), background, np.float32)
    array[:, inside:-inside, inside:-inside, inside:-inside] = 10 + np.arange(8 * 12 * 12).reshape(8, 12, 12) % 7
    return Volume(array, Geometry(shape, spacing, (0.0,) * 3, (1.0, 0, 0, 0, 1, 0, 0, 0, 1)))


def plan(scheme="zscore", crop="none"):
    made = replace(tiny_plan(), training_ranges=RANGES)
    channel = ChannelNormalization(scheme)
    return replace(made, preprocessing=replace(made.preprocessing, crop=crop, normalization=(channel,)))


@pytest.mark.parametrize(
    ("image", "its_plan", "words"),
    [
        (scan(), plan(), []),
        (scan((7.0, 1.0, 1.0)), plan(), [FAR_SPACING, "extent along z is 140 mm"]),
        (scan(background=900.0), plan("clip"), [FAR_MEDIAN]),
        (scan(background=900.0), plan(), []),  # an MRI's intensities have no scale
        (scan(), plan(crop="nonzero"), []),
        (scan(background=np.nan), plan(crop="nonzero"), None),
    ],
)
def test_values_far_outside_the_training_ranges_give_warnings(image, its_plan, words):
    if words is None:  # the training scans are stripped, this one has noise around the head
        image.array[np.isnan(image.array)] = np.random.default_rng(0).normal(size=int(np.isnan(image.array).sum()))
        words = ["of it is constant background, the training scans are skull-stripped; skull-strip this scan too"]
    warnings = differences_from_training(image, its_plan)
    assert len(warnings) == len(words)
    assert all(word in line for word, line in zip(words, warnings, strict=True))
