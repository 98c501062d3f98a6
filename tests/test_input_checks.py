"""What `mre_predict` says of a scan that is unlike the planned ones."""

from dataclasses import replace

import numpy as np
import pytest
from references import tiny_plan

from mre_lowshot.inference.checks import unlike_training
from mre_lowshot.specs import ChannelNormalization
from mre_lowshot.volume import Geometry, Volume

SEEN = {
    "spacing": [[2.0, 1.0, 1.0], [3.0, 1.0, 1.0]],
    "extent_mm": [[40.0, 20.0, 20.0], [60.0, 30.0, 30.0]],
    "channels": [{"median": [-50.0, 20.0], "percentile_99_5": [200.0, 400.0]}],
}


def scan(spacing=(2.0, 1.0, 1.0), shape=(20, 24, 24), inside=6, background=0.0):
    array = np.full((1, *shape), background, np.float32)
    array[:, inside:-inside, inside:-inside, inside:-inside] = 10 + np.arange(8 * 12 * 12).reshape(8, 12, 12) % 7
    return Volume(array, Geometry(shape, spacing, (0.0,) * 3, (1.0, 0, 0, 0, 1, 0, 0, 0, 1)))


def plan(scheme="zscore", crop="none"):
    made = replace(tiny_plan(), seen=SEEN)
    channel = ChannelNormalization(scheme)
    return replace(made, preprocessing=replace(made.preprocessing, crop=crop, normalization=(channel,)))


@pytest.mark.parametrize(
    ("image", "its_plan", "words"),
    [
        (scan(), plan(), []),
        (scan((7.0, 1.0, 1.0)), plan(), ["spacing along z is 7 mm, planned on 2 to 3 mm", "extent along z is 140 mm"]),
        (scan(background=900.0), plan("clip"), ["median intensity is 900 HU, planned on -50 to 20 HU; is the scan in"]),
        (scan(background=900.0), plan(), []),  # an MRI's intensities have no scale
        (scan(), plan(crop="nonzero"), []),
        (scan(background=np.nan), plan(crop="nonzero"), None),
    ],
)
def test_what_lies_far_from_the_planned_scans_is_said(image, its_plan, words):
    if words is None:  # stripped scans were planned, this one has noise around it
        image.array[np.isnan(image.array)] = np.random.default_rng(0).normal(size=int(np.isnan(image.array).sum()))
        words = ["of it is constant background, planned on skull-stripped scans; strip it as they were"]
    told = unlike_training(image, its_plan)
    assert len(told) == len(words)
    assert all(word in line for word, line in zip(words, told, strict=True))
