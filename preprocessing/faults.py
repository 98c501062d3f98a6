"""Faults of a scan that would decide every intensity statistic: constant slices, groups of voxels of extreme intensity
(metal, a corrupted slice), and isolated extreme voxels. A scan without them is returned as it is, not copied."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mre_lowshot.preprocessing.outliers import SAMPLE, limit_outliers

NOTED = 3  # corrected voxels from which on a scan is named
MOST_PLANES = 0.25  # of an axis: with more constant planes the image is no scan with a fault
BODY = 10  # percent of the foreground at either end that hot regions may take
# In distances from the median to the tenth of the foreground that is brightest (darkest): what lies farther beyond it
# is limited to `KEPT`. Measured: at most 7.6 (hippocampus), 8.3 (BraTS 2013), 2.8 (ultrasound), 27 (mouse brain).
EXTREME, KEPT = 60.0, 1.0
EXTREME_PLANE = 4.0  # likewise, of the tenths of a plane


def correct_faults(image: np.ndarray, ct: Sequence[bool] = ()) -> np.ndarray:
    """A (C, D, H, W) image whose faulty planes are interpolated from their neighbours and whose extreme regions and
    voxels are limited; the image itself where it has none. Channels of CT (``ct``: which are) stay as they are:
    clipping to the HU window limits them."""
    filled = _each(image, ct, _fill_planes)
    return _each(limit_outliers(filled, ct), ct, _limit_regions)  # isolated voxels have become their neighbours'


def _each(image: np.ndarray, ct: Sequence[bool], correct: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The image with ``correct`` applied to each channel that is no CT; the image itself where nothing changes."""
    result = image
    for index, channel in enumerate(image):
        if index < len(ct) and ct[index]:
            continue
        corrected = correct(channel)
        if corrected is channel:
            continue
        if result is image:
            result = image.copy()
        result[index] = corrected
    return result


def faulty_planes(channel: np.ndarray) -> list[tuple[int, list[int]]]:
    """For each axis of a (D, H, W) channel that has any, the numbers of the planes that hold no image. None in a 2D
    image.

    Constant planes: of one value, other than the background's (the median of the eight corners), and not at the border,
    where they are padding. Planes of another intensity: their own tenth lies more than `EXTREME_PLANE` beyond that of
    all.
    """
    if min(channel.shape) < 4:
        return []
    background, found = _background(channel), []
    low, median, high = _levels(channel) or (-np.inf, 0.0, np.inf)
    spread = max(high - median, median - low)
    for axis, size in enumerate(channel.shape):
        others = tuple(a for a in range(3) if a != axis)
        coarse = channel[tuple(slice(None) if a == axis else slice(None, None, 8) for a in range(3))]
        maybe = np.flatnonzero(coarse.max(axis=others) == coarse.min(axis=others))
        constant = {int(n) for n in maybe if np.ptp(np.take(channel, n, axis=axis)) == 0}
        first = next((n for n in range(size) if n not in constant), size)
        last = next((n for n in reversed(range(size)) if n not in constant), -1)
        planes = {n for n in constant if first < n < last and np.take(channel, n, axis=axis).flat[0] != background}
        if np.isfinite(spread):
            darkest, brightest = np.percentile(coarse, [BODY, 100 - BODY], axis=others)
            far = (brightest > high + EXTREME_PLANE * spread) | (darkest < low - EXTREME_PLANE * spread)
            planes |= {int(n) for n in np.flatnonzero(far)} - constant
        if planes and len(planes) <= MOST_PLANES * size:
            found.append((axis, sorted(planes)))
    return found


def _background(channel: np.ndarray) -> float:
    return float(np.median(channel[np.ix_(*[[0, -1]] * 3)]))


def _levels(channel: np.ndarray) -> tuple[float, float, float] | None:
    """The tenth, the median and the ninetieth percent of the foreground (all voxels but those of the background's
    value); None where they do not differ."""
    step = max(1, int(np.ceil((channel.size / SAMPLE) ** (1 / 3))))
    values = channel[tuple(slice(None, None, step if n > 4 * step else 1) for n in channel.shape)].ravel()
    values = values[values != _background(channel)]
    if values.size < 100:
        return None
    low, median, high = (float(v) for v in np.percentile(values, [BODY, 50, 100 - BODY]))
    return (low, median, high) if high > median or median > low else None


def _fill_planes(channel: np.ndarray) -> np.ndarray:
    """The channel with its faulty planes interpolated between the nearest other planes."""
    result = channel
    for axis, planes in faulty_planes(channel):
        result = result.copy() if result is channel else result
        moved = np.moveaxis(result, axis, 0)
        for n in planes:
            before = next((m for m in range(n - 1, -1, -1) if m not in planes), None)
            after = next((m for m in range(n + 1, len(moved)) if m not in planes), None)
            one, other = (before if before is not None else after), (after if after is not None else before)
            if one is None or other is None:
                continue
            share = (n - one) / (other - one) if other > one else 0.0
            moved[n] = (1 - share) * moved[one].astype(np.float64) + share * moved[other].astype(np.float64)
    return result


def _limit_regions(channel: np.ndarray) -> np.ndarray:
    """The channel with regions of extreme intensity limited, up to `BODY` percent of the foreground."""
    if (levels := _levels(channel)) is None:
        return channel
    low, median, high = levels
    spread = max(high - median, median - low)
    lowest, highest = low - EXTREME * spread, high + EXTREME * spread
    if lowest <= float(channel.min()) and float(channel.max()) <= highest:
        return channel
    result = channel.copy()
    result[channel < lowest] = low - KEPT * spread
    result[channel > highest] = high + KEPT * spread
    return result
