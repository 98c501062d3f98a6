"""Temperature scaling per scan: probabilities no more confident than the scan's quality estimate.

Fusion, EM step and CRF improve labels and make every voxel more confident. How confident the voxels may be differs
between scans and cannot be learned from one labelled scan, which the network fits perfectly.
"""

from __future__ import annotations

import math

import numpy as np

from mre_lowshot.evaluation.agreement import expected_dice
from mre_lowshot.refinement.foreground import FOREGROUND_MIN

MAX_TEMPERATURE = 5.0
BISECTIONS = 8  # between the logarithms of 1 and MAX_TEMPERATURE: to 1 %


def find_temperature(probabilities: np.ndarray, dice: float) -> float:
    """The least temperature, from 1 to `MAX_TEMPERATURE`, at which the expected Dice of class probabilities
    (K, *size) is at most ``dice``, the scan's quality estimate (NaN: there is none, and the temperature is 1).

    The expected Dice is that of `expected_dice` over the voxels in which a foreground class has a probability of
    `FOREGROUND_MIN`, its mean over the predicted classes. `MAX_TEMPERATURE` may leave more than ``dice``.
    """
    if math.isnan(dice):
        return 1.0
    near = probabilities[:, probabilities[0] < 1 - FOREGROUND_MIN]
    predicted = [k for k in np.unique(near.argmax(axis=0)).tolist() if k] if near.size else []
    if not predicted:
        return 1.0

    def expected(logarithm: float) -> float:
        scaled = near.copy()
        scale_temperature(scaled, math.exp(logarithm))
        values = expected_dice(scaled)
        return float(np.mean([values[k] for k in predicted]))

    low, high = 0.0, math.log(MAX_TEMPERATURE)
    if expected(low) <= dice:
        return 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if expected(middle) > dice else (low, middle)
    return math.exp(high)


def scale_temperature(probabilities: np.ndarray, temperature: float) -> None:
    """p^(1/T), normalised (Guo et al. 2017), of class probabilities (K, *size); in place. The most probable class stays
    the most probable. T falls to 1, without a step, where background is nearly certain."""
    if temperature == 1:
        return
    np.power(probabilities, exponent(probabilities[0], temperature), out=probabilities)
    probabilities /= probabilities.sum(axis=0)


def exponent(background: np.ndarray, temperature: float) -> np.ndarray:
    """The exponent 1/T of each voxel, from its probability of ``background``."""
    share = np.clip((1 - background) / FOREGROUND_MIN, 0, 1)
    return np.asarray(1 / (1 + np.float32(temperature - 1) * share))
