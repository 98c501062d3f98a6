"""What registration alone reaches on the test scans of a fold: the Dice of the warped labels, before network and
refinement. The entry ``registration_alone`` of a validation's summary.json has it beside the Dice of the prediction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mre_lowshot.evaluation.metrics import dice
from mre_lowshot.evaluation.summary import mean_of_defined

KEY = "registration_alone"


def label_dice(
    reference: np.ndarray, warped: np.ndarray, labels: Mapping[str, int], ignore_label: int | None = None
) -> dict[str, float]:
    """Dice by label value (as text) of a warped label map (D, H, W); voxels of the ignore label are left out."""
    if ignore_label is not None:
        valid = reference != ignore_label
        reference, warped = reference[valid], warped[valid]
    return {str(value): dice(reference == value, warped == value) for value in labels.values()}


def summarise(cases: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Mean Dice of each label over the cases, and the mean of these (`evaluation.summary` leaves out the same)."""
    means = {value: mean_of_defined([case[value] for case in cases]) for value in (cases[0] if cases else ())}
    return {
        "foreground_mean": {"Dice": mean_of_defined(list(means.values()))},
        "mean": {value: {"Dice": mean} for value, mean in means.items()},
    }


def describe(summary: Mapping[str, Any]) -> list[str]:
    """Lines on what network and refinement add to registration; none where nothing was registered.

    Args:
        summary: of a validation, with ``registration_alone`` where its scans were registered.
    """
    if KEY not in summary:
        return []
    alone, whole = summary[KEY]["foreground_mean"]["Dice"], summary["foreground_mean"]["Dice"]
    if math.isnan(alone) or math.isnan(whole):
        return []
    lines = [f"labels warped by registration alone: Dice {alone:.4f}; network and refinement add {whole - alone:+.4f}"]
    if whole < alone:
        lines.append(
            "NOTE the prediction is worse than the warped labels alone: train with more iterations (--iterations), or "
            "with another labelled scan (another fold)"
        )
    return lines
