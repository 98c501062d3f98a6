"""The Dice of the warped labels beside that of the prediction: ignored voxels, undefined values, the lines printed."""

import math

import numpy as np
import pytest

from mre_lowshot.evaluation.registration_alone import KEY, describe, label_dice, summarise

LABELS = {"liver": 1, "spleen": 2}


def test_dice_by_label_without_the_ignored_voxels():
    reference = np.array([1, 1, 1, 0, 9, 9, 0, 0]).reshape(2, 2, 2)
    warped = np.array([1, 1, 0, 1, 1, 1, 0, 0]).reshape(2, 2, 2)
    assert label_dice(reference, warped, LABELS)["1"] == pytest.approx(2 * 2 / (3 + 5))
    found = label_dice(reference, warped, LABELS, ignore_label=9)
    assert found["1"] == pytest.approx(2 * 2 / (3 + 3))
    assert math.isnan(found["2"])  # in neither map


def test_a_label_in_no_map_is_left_out_of_the_means():
    found = summarise([{"1": 0.6, "2": math.nan, "3": math.nan}, {"1": 0.8, "2": 0.3, "3": math.nan}])
    assert found["mean"]["1"]["Dice"] == pytest.approx(0.7)
    assert found["mean"]["2"]["Dice"] == pytest.approx(0.3)
    assert math.isnan(found["mean"]["3"]["Dice"])
    assert found["foreground_mean"]["Dice"] == pytest.approx(0.5)


def _summary(whole: float, alone: float) -> dict:
    return {"foreground_mean": {"Dice": whole}, KEY: {"foreground_mean": {"Dice": alone}}}


def test_the_lines_state_what_is_added_and_warn_of_a_loss():
    assert describe({"foreground_mean": {"Dice": 0.5}}) == []  # nothing was registered
    assert describe(_summary(math.nan, 0.4)) == []
    (line,) = describe(_summary(0.75, 0.5))
    assert line.endswith("Dice 0.5000; network and refinement add +0.2500")
    line, note = describe(_summary(0.5, 0.75))
    assert "-0.2500" in line
    assert "--iterations" in note
