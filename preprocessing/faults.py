"""Faults of a scan that would decide every intensity statistic: constant slices, groups of voxels of extreme intensity
(metal, a corrupted slice), and isolated extreme voxels. A scan without them is returned as it is, not copied."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mre_lowshot.preprocessing.outliers import SAMPLE, limit_outliers
from mre_lowshot.preprocessing.regions import damaged, is_rough

NOTED = 3  # corrected voxels from which on a scan is named
MOST_PLANES = 0.25  # of an axis: with more constant planes the image is no scan with a fault
BODY = 10  # percent of the foreground at either end; the fault may be there
# In distances from the median to the tenth of the foreground that is brightest (darkest): what lies farther beyond it
# is examined, and limited to `KEPT` where it is damaged. Measured: at most 7.6 (hippocampus), 8.3 (BraTS 2013), 2.8
# (ultrasound), 27 (mouse brain).
EXTREME, KEPT = 60.0, 1.0
EXTREME_PLANE = 4.0  # likewise, of the tenth of a plane: it is examined
EXTREME_WHOLE = 20.0  # likewise, of nine tenths of a plane: no object fills one plane to its edges and is so bright
# Correlation of a plane with its neighbours from which on it shows the same on another scale. Neighbours in scans: 0.8
# and more (script not kept).
SAME, SAME_AT_BORDER = 0.7, 0.9


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
    where they are padding. Planes of another intensity: `_is_damaged_plane`.
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
            levels = np.percentile(coarse, [BODY, 100 - BODY], axis=others)
            far = (levels[1] > high + EXTREME_PLANE * spread) | (levels[0] < low - EXTREME_PLANE * spread)
            rest = [n for n in range(size) if n not in constant]
            for before, n, after in zip([None, *rest[:-1]], rest, [*rest[1:], None], strict=True):
                near = [m for m in (before, after) if m is not None]
                # an object begins at one plane and fills those beside it; a fault of several planes is not corrected
                alone = near and not any(far[m] for m in near)
                if far[n] and alone and _differs(levels, n, near, EXTREME_PLANE * spread):
                    gap = max(levels[0, n] - high, low - levels[1, n])  # of the whole plane, not only its tenth
                    whole = gap > EXTREME_WHOLE * spread
                    if whole or _is_damaged_plane(channel, axis, n, near, (median, EXTREME_PLANE * spread)):
                        planes.add(n)
        if planes and len(planes) <= MOST_PLANES * size:
            found.append((axis, sorted(planes)))
    return found


def _differs(levels: np.ndarray, plane: int, near: list[int], distance: float) -> bool:
    """Whether a tenth of the plane differs by more than ``distance`` from that of each plane of ``near``."""
    return all(float(np.abs(levels[:, plane] - levels[:, m]).max()) > distance for m in near)


def _is_damaged_plane(channel: np.ndarray, axis: int, n: int, near: list[int], level: tuple[float, float]) -> bool:
    """Whether a plane shows what the planes of ``near`` show, on another scale, or values without relation to each
    other. Anything else may be an object that one plane holds. ``level``: the median, and how far from it is extreme.
    """
    plane = np.take(channel, [n], axis=axis).astype(np.float64)
    height = np.abs(plane - level[0])
    if is_rough(height, height > level[1]):  # not of the plane's background, whose noise is rough
        return True
    alike = [_correlation(plane, np.take(channel, [m], axis=axis)) for m in near]
    # at the border an object may begin with the last plane, and its outline is that of the planes beside it
    return max(alike) > (SAME if len(near) == 2 else SAME_AT_BORDER)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """The absolute correlation of two planes, 0 where one is constant."""
    a, b = (p.astype(np.float64) / max(1e-300, float(np.abs(p).max())) for p in (one, other))
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return abs(float((a * b).sum())) / norm if norm > 0 else 0.0


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
    """The channel with damaged regions of extreme intensity (`regions.damaged`) limited."""
    if (levels := _levels(channel)) is None:
        return channel
    low, median, high = levels
    spread = max(high - median, median - low)
    result = channel
    for side, sign in ((low, -1), (high, 1)):
        limit, related = (side + sign * factor * spread for factor in (EXTREME, EXTREME / 2))
        if sign * float(channel.min() if sign < 0 else channel.max()) <= sign * limit:
            continue
        bad = damaged(channel, median=median, extreme=limit, related=related)
        if bad.any():
            result = channel.copy() if result is channel else result
            result[bad] = side + sign * KEPT * spread
    return result
