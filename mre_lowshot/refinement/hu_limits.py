"""Lower HU limits: fat and air belong to no organ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mre_lowshot.config import MinHu
from mre_lowshot.preprocessing.normalization import smoothed


def apply_min_hu(probabilities: np.ndarray, image: np.ndarray, limits: Sequence[MinHu]) -> None:
    """Remove each class from the voxels below its limit, and normalise; in place.

    Args:
        probabilities: (K, *size). Where no class is left, background becomes certain.
        image: (C, *size), preprocessed.
        limits: in the units of ``image`` (`inference.ensemble.ensemble_hu_limits`).
    """
    channels = {channel: smoothed(image[channel]) for channel in {limit.channel for limit in limits}}
    for limit in limits:
        probabilities[limit.label][channels[limit.channel] < limit.value] = 0
    if limits:
        total = probabilities.sum(axis=0)
        probabilities[0][total == 0] = 1
        total[total == 0] = 1
        probabilities /= total
