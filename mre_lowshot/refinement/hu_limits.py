"""Keeping each class off voxels of a CT that are too dark for it: fat and air are no liver."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mre_lowshot.preprocessing.normalization import smoothed
from mre_lowshot.specs import HuFloor, Plan


def joint_floors(plans: Sequence[Plan]) -> tuple[HuFloor, ...]:
    """The floors of several folds' plans, in the units of their preprocessed images instead of HU: the lowest of each
    class and channel, none where a fold has none."""
    found: dict[tuple[int, int], list[float]] = {}
    for plan in plans:
        for floor in plan.fold.hu_floors if plan.fold else ():
            found.setdefault((floor.label, floor.channel), []).append(floor.hu)
    windows = plans[0].preprocessing.normalization
    return tuple(
        HuFloor(label, channel, (min(hu) - windows[channel].lower) / windows[channel].width)
        for (label, channel), hu in found.items()
        if len(hu) == len(plans)
    )


def keep_above(probabilities: np.ndarray, image: np.ndarray, floors: Sequence[HuFloor]) -> None:
    """Take from class probabilities (K, *size), in place, each class where the image (C, *size) lies below the class's
    floor (in the image's units). The others share what was taken; background gets it where nothing is left."""
    channels = {channel: smoothed(image[channel]) for channel in {f.channel for f in floors}}
    for floor in floors:
        probabilities[floor.label][channels[floor.channel] < floor.hu] = 0
    if floors:
        total = probabilities.sum(axis=0)
        probabilities[0][total == 0] = 1
        total[total == 0] = 1
        probabilities /= total
