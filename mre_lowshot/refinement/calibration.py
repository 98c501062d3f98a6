"""Probabilities that are no surer than the scan's quality estimate: a temperature for each scan.

Pooling, mending and neighbours that agree make labels better and every voxel surer. How sure it may be differs between
data, and one labelled scan cannot say: the network knows it by heart.
"""

from __future__ import annotations

import math

import numpy as np

from mre_lowshot.inference.quality import Quality, expected_dice

DOUBT = 0.02  # probability of any structure from which a voxel is softened in full; less below, without a step
HOTTEST = 5.0
STEPS = 8  # of a bisection between the logarithms of 1 and HOTTEST: to 1 %


def temperature(probabilities: np.ndarray, quality: Quality) -> float:
    """The least temperature, 1 to `HOTTEST`, with which softened class probabilities (K, *size) expect no more Dice
    than the scan's quality estimate says; nothing is made surer, and `HOTTEST` may leave them too sure.

    Dice: `expected_dice` over the voxels where any structure is at all likely (`DOUBT`), the mean over the classes that
    are in the prediction. 1 where no class was rated.
    """
    if all(math.isnan(v) for v in quality.classes.values()):
        return 1.0
    near = probabilities[:, probabilities[0] < 1 - DOUBT]
    there = [k for k in np.unique(near.argmax(axis=0)).tolist() if k] if near.size else []
    if not there:
        return 1.0

    def expected(logarithm: float) -> float:
        softened = near.copy()
        soften(softened, math.exp(logarithm))
        values = expected_dice(softened)
        return float(np.mean([values[k] for k in there]))

    low, high = 0.0, math.log(HOTTEST)
    if expected(low) <= quality.score:
        return 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if expected(middle) > quality.score else (low, middle)
    return math.exp(high)


def soften(probabilities: np.ndarray, temperature: float) -> None:
    """Make class probabilities (K, *size), in place, p^(1/T) over its sum (Guo et al. 2017), voxel by voxel: the most
    probable class stays the most probable. T falls to 1 where background is all but certain, far from any structure."""
    if temperature == 1:
        return
    doubt = np.clip((1 - probabilities[0]) / DOUBT, 0, 1)
    power = 1 / (1 + np.float32(temperature - 1) * doubt)
    np.power(probabilities, power, out=probabilities)
    probabilities /= probabilities.sum(axis=0)
