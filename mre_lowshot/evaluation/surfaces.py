"""Normalised surface Dice (NSD): the fraction of two surfaces that lies within a tolerance of the other one.

Definition: Nikolov et al., "Clinically applicable segmentation of head and neck anatomy for radiotherapy", J Med
Internet Res 23(7), 2021. NSD = (|S_A near S_B| + |S_B near S_A|) / (|S_A| + |S_B|), where |.| is an area: it is
independent of the voxels' shape, unlike a count of surface voxels.

The surface of a mask is its marching-cubes surface between voxel centres (a slice: its contour), divided into one
element for each 2x2x2 neighbourhood of voxels that contains voxels of the mask and others. The element's size is the
area of its part of the surface, its position the centre of the neighbourhood. Beyond the image there is background, so
that a structure that the border cuts has a surface there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import product

import numpy as np

ROUNDING = 1e-6  # of the finest voxel side: a distance that equals the tolerance counts as within it


def surface_dice(reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float], tolerance: float) -> float:
    """Normalised surface Dice (NSD) of two boolean masks, see the module docstring.

    Args:
        reference: boolean mask (D, H, W).
        prediction: boolean mask (D, H, W).
        spacing: voxel size (z, y, x) in mm.
        tolerance: largest distance in mm at which two surfaces agree.

    Returns:
        0 to 1: 0 if one mask is empty, NaN if both are.
    """
    from scipy.spatial import cKDTree

    # an axis of one voxel has no extent: the surface of a slice is its contour
    axes = tuple(axis for axis, size in enumerate(reference.shape) if size > 1) or tuple(range(reference.ndim))
    flat = tuple(axis for axis in range(reference.ndim) if axis not in axes)
    scale = tuple(float(spacing[axis]) for axis in axes)
    surfaces = [_elements(mask.squeeze(flat), scale) for mask in (reference, prediction)]
    total = sum(float(sizes.sum()) for _, sizes in surfaces)
    if not total:
        return math.nan
    if not all(len(sizes) for _, sizes in surfaces):
        return 0.0
    limit = tolerance + ROUNDING * min(scale)
    trees = [cKDTree(places, balanced_tree=False, compact_nodes=False) for places, _ in surfaces]
    near = 0.0
    for (places, sizes), other in zip(surfaces, reversed(trees), strict=True):
        distances = other.query(places, distance_upper_bound=limit)[0]  # infinite where none is within the limit
        near += float(sizes[np.isfinite(distances)].sum())
    return near / total


def default_tolerance(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """The longest side of a voxel in mm, without axes of one voxel: an error of one voxel is tolerated on any axis."""
    return float(max((s for n, s in zip(shape, spacing, strict=True) if n > 1), default=max(spacing)))


def bounding_box(mask: np.ndarray) -> tuple[slice, ...] | None:
    """Bounding box of the mask with a margin of one voxel, clipped to the image; None for an empty mask."""
    box = []
    for axis in range(mask.ndim):
        found = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        if not len(found):
            return None
        box.append(slice(max(int(found[0]) - 1, 0), int(found[-1]) + 2))
    return tuple(box)


def _elements(mask: np.ndarray, spacing: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Positions (N, axes) in mm and sizes (N,) of a mask's surface elements."""
    box = bounding_box(mask)
    if box is None:
        return np.zeros((0, mask.ndim)), np.zeros(0)
    padded = np.pad(mask[box], 1)
    codes = np.zeros([n - 1 for n in padded.shape], np.uint8)
    for bit, corner in enumerate(product((0, 1), repeat=mask.ndim)):
        shifted = padded[tuple(slice(c, c + n) for c, n in zip(corner, codes.shape, strict=True))]
        codes |= shifted.astype(np.uint8) << np.uint8(bit)
    found = np.nonzero((codes > 0) & (codes < 2 ** (2**mask.ndim) - 1))
    start = np.array([side.start for side in box])
    return (np.stack(found, axis=1) + start) * np.asarray(spacing), element_sizes(spacing)[codes[found]]


@lru_cache(maxsize=64)
def element_sizes(spacing: tuple[float, ...]) -> np.ndarray:
    """Size of the surface in a 2x2x2 neighbourhood (mm²; 2x2: mm; 2: 1) by its code.

    Bit i of the code is the voxel at place i of the neighbourhood in C order. A mask and its complement have the same
    surface; where it is ambiguous (voxels that touch at an edge or corner only), the smaller one is taken.
    """
    if len(spacing) == 1:
        return np.array([0.0, 1, 1, 0])
    if len(spacing) == 2:
        y, x = spacing
        corner = math.hypot(y, x) / 2  # the contour cuts off one corner
        straight = {0b0011: x, 0b1100: x, 0b0101: y, 0b1010: y, 0b0110: 2 * corner, 0b1001: 2 * corner}
        return np.array([0, *(straight.get(code, corner) for code in range(1, 15)), 0])
    from skimage.measure import marching_cubes, mesh_surface_area

    areas = np.zeros(256)
    for code in range(1, 255):
        cube = np.array([code >> bit & 1 for bit in range(8)], np.float32).reshape(2, 2, 2)
        areas[code] = mesh_surface_area(*marching_cubes(cube, 0.5, spacing=spacing, method="lorensen")[:2])
    areas = np.minimum(areas, areas[::-1])
    areas.setflags(write=False)
    return areas
