"""Probabilities that are no surer than the scan's quality score: a temperature for each scan.

Pooling, mending and neighbours that agree make labels better and every voxel surer. How sure it may be differs between
data, and one labelled scan cannot say: the network knows it by heart.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import find_objects

from mre_lowshot.inference.quality import expected_dice, mean_over_classes

DOUBT = 0.02  # probability of any structure from which a voxel's surroundings count
HOTTEST = 8.0
STEPS = 8  # of a bisection between the logarithms of 1 and HOTTEST: to 1 %
LEAST = 1e-6  # probability


def calibrate(probabilities: np.ndarray, score: float) -> float:
    """Soften class probabilities (K, *size), in place, until they expect no more Dice than ``score``, the scan's
    quality estimate; gives the temperature T >= 1.

    p_k, at least 1e-6, becomes p_k^(1/T) over its sum (Guo et al. 2017), T the least with which `expected_dice`, the
    mean over classes, is at most ``score``. A voxel's most probable class stays what it was. Nothing is made surer.
    """
    near = 1 - probabilities[0] > DOUBT
    if not near.any():
        return 1.0
    box = probabilities[(slice(None), *find_objects(near.astype(np.uint8))[0])]

    def expected(temperature: float) -> float:
        softened = box.copy()
        _soften(softened, temperature)
        return mean_over_classes(expected_dice(softened))

    if expected(1.0) <= score:
        return 1.0
    low, high = 0.0, float(np.log(HOTTEST))
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if expected(np.exp(middle)) > score else (low, middle)
    temperature = float(np.exp(high))
    _soften(probabilities, temperature)
    return temperature


def _soften(probabilities: np.ndarray, temperature: float) -> None:
    np.maximum(probabilities, LEAST, out=probabilities)
    np.power(probabilities, np.float32(1 / temperature), out=probabilities)
    probabilities /= probabilities.sum(axis=0)
