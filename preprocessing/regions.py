"""Regions of extreme intensity: which are damage of the file, and which show something.

An object may be brighter than the rest by any factor: a lesion in PET, a small sample in a large noisy field of view.
So intensity alone is no evidence. Damage is recognised by what no measurement gives: one and the same value without
noise and without a slope at the border, values without relation to their neighbours, single voxels.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

# Scattered voxels: fewer than half of a region's neighbours along the axes belong to it (1/3 in a line, 0.5 in a cube
# of 8, 0.8 in a ball of radius 3), and at most 5 % of the voxels in it and around it are on a slope: at 0.1 to 0.8 of
# the brightest voxel beside them. A thin vessel has slopes, because scanners blur.
SCATTERED, SLOPE, SLOPING = 0.5, (0.1, 0.8), 0.05
# Median difference of neighbours, in median heights above the tissue. Uniform random values: 0.5 or more; noise of
# 30 %: 0.28. The steep slopes of a small object reach it too, but have no dips.
ROUGH = 0.4
DIP, DIPS = 0.5, 0.05  # voxels below half of both neighbours along an axis; random values: 1/6 of all


def damaged(channel: np.ndarray, *, median: float, extreme: float, related: float) -> np.ndarray:
    """Which voxels of a (D, H, W) channel are extreme and damaged, bool (D, H, W).

    Args:
        channel: finite intensities.
        median: of the tissue.
        extreme: voxels beyond this intensity are examined; above ``median`` it is a highest, below it a lowest value.
        related: between ``median`` and ``extreme``; what is connected to an extreme voxel and beyond this value belongs
            to its region. An object whose noise crosses ``extreme`` is thus judged as a whole.
    """
    sign = 1 if extreme > median else -1
    beyond = channel > extreme if sign > 0 else channel < extreme
    if not beyond.any():
        return beyond
    raised = channel > related if sign > 0 else channel < related
    box = _box(raised)
    # rescaled before any difference: values may be as large as float32 can hold
    height = (channel[box].astype(np.float64) - median) / (extreme - median)
    regions, _ = ndimage.label(raised[box], np.ones((3, 3, 3)))
    examined = set(np.unique(regions[beyond[box]]).tolist())
    bad = np.zeros(int(regions.max()) + 1, dtype=bool)
    for number, place in enumerate(ndimage.find_objects(regions), start=1):
        if number in examined:
            wider = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in place)
            bad[number] = _is_damaged(height[wider], regions[wider] == number)
    beyond[box] &= bad[regions]
    return beyond


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    """The box of the true voxels of a mask, and one voxel around it."""
    axes = (np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis))) for axis in range(mask.ndim))
    return tuple(slice(max(0, int(found[0]) - 1), int(found[-1]) + 2) for found in axes)


def _is_damaged(height: np.ndarray, region: np.ndarray) -> bool:
    """Whether a region (D, H, W), with its heights and those around it, shows nothing."""
    values = height[region]
    return bool(values.min() == values.max()) or _is_scattered(height, region) or _is_scrambled(height, region)


def _is_scattered(height: np.ndarray, region: np.ndarray) -> bool:
    """Whether a region is a loose cluster of voxels that stand out from what is around them without a slope."""
    links = sum(np.count_nonzero(one & other) for one, other in _neighbours(region))
    if 2 * links >= SCATTERED * 6 * np.count_nonzero(region):
        return False
    wider, top = ndimage.binary_dilation(region, np.ones((3, 3, 3))), ndimage.maximum_filter(height, 3)
    sloping = (height > SLOPE[0] * top) & (height < SLOPE[1] * top) & wider
    return bool(np.count_nonzero(sloping) <= SLOPING * np.count_nonzero(wider))


def _neighbours(array: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each axis, the values (views) of all voxels with a next one, and of these next ones."""
    moved = [np.moveaxis(array, axis, 0) for axis in range(array.ndim)]
    return [(m[:-1], m[1:]) for m in moved]


def _is_scrambled(height: np.ndarray, region: np.ndarray) -> bool:
    """Whether the values of a region (D, H, W) have no relation to their neighbours': they differ by a large part of
    their height, up and down."""
    return is_rough(height, region) and _share_of_dips(height, region) > DIPS


def is_rough(height: np.ndarray, region: np.ndarray) -> bool:
    """Whether neighbours along an axis in a region (D, H, W) differ by more than `ROUGH` of the region's height."""
    pairs = zip(_neighbours(height), _neighbours(region), strict=True)
    found = np.concatenate([np.abs(two - one)[inside & next_to] for (one, two), (inside, next_to) in pairs])
    return not found.size or float(np.median(found)) > ROUGH * float(np.median(height[region]))


def _share_of_dips(height: np.ndarray, region: np.ndarray) -> float:
    """The share of a region's voxels, of those between two others of it along an axis, that are far below both."""
    dips = triples = 0
    for axis in range(height.ndim):
        values, inside = np.moveaxis(height, axis, 0), np.moveaxis(region, axis, 0)
        within = inside[:-2] & inside[1:-1] & inside[2:]
        dips += int(np.count_nonzero(within & (values[1:-1] < DIP * np.minimum(values[:-2], values[2:]))))
        triples += int(np.count_nonzero(within))
    return dips / max(1, triples)
