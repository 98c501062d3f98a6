"""Faults of a scan that would decide every intensity statistic: constant slices, groups of voxels of extreme intensity
(metal, a corrupted slice), and isolated extreme voxels. A scan without them is returned as it is, not copied."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mre_lowshot.preprocessing.outliers import SAMPLE, limit_outliers

MOST_PLANES = 0.25  # of an axis: with more constant planes the image is no scan with a fault
BODY = 10  # percent of the foreground at either end that hot regions may take
# In distances from the median to the tenth of the foreground that is brightest (darkest): what lies farther beyond it
# is limited to `KEPT`. Measured: at most 7.6 (hippocampus), 8.3 (BraTS 2013), 2.8 (ultrasound), 27 (mouse brain).
EXTREME, KEPT = 60.0, 1.0


def correct_faults(image: np.ndarray, ct: Sequence[bool] = ()) -> np.ndarray:
    """A (C, D, H, W) image whose constant planes are interpolated from their neighbours and whose extreme regions and
    voxels are limited; the image itself where it has none. Channels of CT (``ct``: which are) stay as they are:
    clipping to the HU window limits them."""
    result = image
    for index, channel in enumerate(image):
        if index < len(ct) and ct[index]:
            continue
        corrected = _limit_regions(_fill_planes(channel))
        if corrected is channel:
            continue
        if result is image:
            result = image.copy()
        result[index] = corrected
    return limit_outliers(result, ct)


def constant_planes(channel: np.ndarray) -> list[tuple[int, list[int]]]:
    """Planes of a (D, H, W) channel that hold one value, other than the background's (the median of the eight corners)
    and not at the border, where they are padding: for each axis that has any, their numbers. None in a 2D image."""
    if min(channel.shape) < 4:
        return []
    background = np.median(channel[np.ix_(*[[0, -1]] * 3)])
    found = []
    for axis, size in enumerate(channel.shape):
        others = tuple(a for a in range(3) if a != axis)
        coarse = channel[tuple(slice(None) if a == axis else slice(None, None, 8) for a in range(3))]
        maybe = np.flatnonzero(coarse.max(axis=others) == coarse.min(axis=others))
        planes = [int(n) for n in maybe if np.ptp(np.take(channel, n, axis=axis)) == 0]
        constant = set(planes)
        low, high = 0, size - 1
        while low in constant:
            low += 1
        while high in constant:
            high -= 1
        inner = [n for n in planes if low < n < high and np.take(channel, n, axis=axis).flat[0] != background]
        if inner and len(inner) <= MOST_PLANES * size:
            found.append((axis, inner))
    return found


def _fill_planes(channel: np.ndarray) -> np.ndarray:
    """The channel with its constant planes interpolated between the nearest other planes."""
    result = channel
    for axis, planes in constant_planes(channel):
        result = result.copy() if result is channel else result
        moved = np.moveaxis(result, axis, 0)
        for n in planes:
            before = next(m for m in range(n - 1, -1, -1) if m not in planes)
            after = next(m for m in range(n + 1, len(moved)) if m not in planes)
            share = (n - before) / (after - before)
            moved[n] = (1 - share) * moved[before].astype(np.float64) + share * moved[after].astype(np.float64)
    return result


def _limit_regions(channel: np.ndarray) -> np.ndarray:
    """The channel with regions of extreme intensity limited, up to `BODY` percent of the foreground (all voxels but
    those of the background's value)."""
    step = max(1, int(np.ceil((channel.size / SAMPLE) ** (1 / 3))))
    values = channel[tuple(slice(None, None, step if n > 4 * step else 1) for n in channel.shape)].ravel()
    values = values[values != np.median(channel[np.ix_(*[[0, -1]] * 3)])].astype(np.float64)
    if values.size < 100:
        return channel
    low, median, high = np.percentile(values, [BODY, 50, 100 - BODY])
    spread = max(high - median, median - low)
    lowest, highest = low - EXTREME * spread, high + EXTREME * spread
    if not spread > 0 or (lowest <= float(channel.min()) and float(channel.max()) <= highest):
        return channel
    result = channel.copy()
    result[channel < lowest] = low - KEPT * spread
    result[channel > highest] = high + KEPT * spread
    return result
