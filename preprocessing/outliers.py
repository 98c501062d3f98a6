"""Isolated extreme voxels (dead and hot pixels, salt and pepper), which would decide every intensity statistic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mre_lowshot.preprocessing.regions import damaged

RANK, SHARE = 100, 1e-4  # the extreme rank: at least so many voxels from either end, and this share of all
SAMPLE = 4_000_000  # voxels that the ranks are taken from, at most
# In spreads beyond the extreme ranks. Vessels reach 4.4 (MRI of 41 heads and mouse brains), but their neighbours are
# bright too; a hot pixel stands alone. Hot spots in PET, groups of voxels, reach 15.
ISOLATED, ANY = 3.0, 30.0
RAISED = 0.3  # of an isolated voxel's distance from the extreme rank: a neighbour that reaches this is comparable
NEIGHBOURS = 2  # at most so many of its 26 neighbours are comparable to an isolated voxel


def extreme_ranks(channel: np.ndarray) -> tuple[float, float, float] | None:
    """The intensities at the two extreme ranks of a (D, H, W) channel, and the larger of their distances from the
    median, the spread. None where there is no spread."""
    step = max(1, int(np.ceil((channel.size / SAMPLE) ** (1 / 3))))
    values = channel[tuple(slice(None, None, step if n > 4 * step else 1) for n in channel.shape)].ravel()
    count = values.size
    rank = min(max(int(RANK * count / channel.size), int(SHARE * count)), count // 20)
    if count < 40:
        return None
    ordered = np.partition(values, [rank, count // 2, count - 1 - rank])
    low, median, high = (float(ordered[i]) for i in (rank, count // 2, count - 1 - rank))
    spread = max(high - median, median - low)
    return (low, high, spread) if spread > 0 else None


def limit_outliers(image: np.ndarray, ct: Sequence[bool] = ()) -> np.ndarray:
    """A (C, D, H, W) image whose outliers are replaced; the image itself, not a copy, where it has none.

    A voxel more than `ISOLATED` spreads beyond the extreme ranks that is comparable to at most `NEIGHBOURS` of its
    neighbours becomes the median of its neighbours. What lies more than `ANY` spreads beyond them and is damaged
    (`regions.damaged`) becomes `ISOLATED` spreads; a small bright object stays.
    Channels of CT (``ct``: which are) stay as they are: clipping to the HU window limits them without a copy.
    """
    result = image
    for index, channel in enumerate(image):
        ranks = None if index < len(ct) and ct[index] else extreme_ranks(channel)
        if ranks is None:
            continue
        low, high, spread = ranks
        near = (low - ISOLATED * spread, high + ISOLATED * spread)
        far = (low - ANY * spread, high + ANY * spread)
        lowest, highest = float(channel.min()), float(channel.max())
        if near[0] <= lowest and highest <= near[1]:
            continue
        places = np.argwhere((channel < near[0]) | (channel > near[1]))
        if len(places) > 4 * max(RANK, SHARE * channel.size):
            places = places[:0]
        isolated = [(tuple(p), v) for p in places if (v := _replacement(channel, p, ranks)) is not None]
        corrected = channel.copy() if isolated else channel
        for place, value in isolated:
            corrected[place] = value
        for end, limit, sign in ((far[0], near[0], -1), (far[1], near[1], 1)):
            if sign * float(corrected.min() if sign < 0 else corrected.max()) <= sign * end:
                continue
            bad = damaged(corrected, median=(low + high) / 2, extreme=end, related=limit)
            if bad.any():
                corrected = corrected.copy() if corrected is channel else corrected
                corrected[bad] = limit
        if corrected is not channel:
            result = image.copy() if result is image else result
            result[index] = corrected
    return result


def _replacement(channel: np.ndarray, place: np.ndarray, ranks: tuple[float, float, float]) -> float | None:
    """The median of a voxel's neighbours that are not comparable to it; None where more than `NEIGHBOURS` are.

    Comparable: within `ISOLATED` spreads, or beyond the same extreme rank by at least `RAISED` of the voxel's own
    distance, as on the slopes of a small, steep spot.
    """
    low, high, spread = ranks
    around = channel[tuple(slice(max(0, p - 1), p + 2) for p in place)].astype(np.float64).ravel()
    value = float(channel[tuple(place)])
    raised = (around - high) >= RAISED * (value - high) if value > high else (low - around) >= RAISED * (low - value)
    others = around[(np.abs(around - value) > ISOLATED * spread) & ~raised]
    if around.size - 1 - others.size > NEIGHBOURS or not others.size:
        return None
    return float(np.median(others))
