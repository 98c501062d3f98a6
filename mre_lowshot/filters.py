"""Linear filters and resampling along the axes of volumes, as torch tensors on the device of their input.

A linear filter along an axis is a product with a matrix: the edges are part of the matrix, filters that follow each
other are one matrix, and no voxel's value depends on the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

TRUNCATE = 4  # standard deviations at which a Gaussian is cut off, as in scipy


@lru_cache(maxsize=256)
def gaussian_matrix(size: int, sigma: float, *, repeat: bool = False) -> np.ndarray:
    """(size, size): Gaussian smoothing, cut off at `TRUNCATE` ``sigma`` voxels. The volume is mirrored at its edges, as
    by `scipy.ndimage.gaussian_filter`; with ``repeat`` the edge voxels are repeated (its mode ``nearest``)."""
    radius = int(TRUNCATE * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    index = np.arange(size)[:, None] + offsets
    if repeat:
        index = np.clip(index, 0, size - 1)
    else:
        index = np.minimum(index % (2 * size), 2 * size - 1 - index % (2 * size))
    return _matrix(index, np.broadcast_to(weights / weights.sum(), index.shape), size)


@lru_cache(maxsize=256)
def box_matrix(size: int, radius: int, inside: bool = False) -> np.ndarray:
    """(size, size): mean of the voxels up to ``radius`` away. Beyond an edge its voxel is repeated; with ``inside``,
    the mean of those that lie inside."""
    index = np.arange(size)[:, None] + np.arange(-radius, radius + 1)
    weights = ((index >= 0) & (index < size) if inside else np.ones(index.shape)).astype(float)
    return _matrix(np.clip(index, 0, size - 1), weights / weights.sum(axis=1, keepdims=True), size)


@lru_cache(maxsize=256)
def linear_matrix(old: int, new: int, scale: float) -> np.ndarray:
    """(new, old): linear interpolation at the centres of ``new`` voxels that are ``scale`` old ones wide, from the
    same edge on; the edge voxels are repeated."""
    at = np.clip((np.arange(new) + 0.5) * scale - 0.5, 0, old - 1)
    low = np.minimum(np.floor(at).astype(int), max(old - 2, 0))
    share = at - low
    return _matrix(np.stack([low, np.minimum(low + 1, old - 1)], 1), np.stack([1 - share, share], 1), old)


def _matrix(index: np.ndarray, weights: np.ndarray, size: int) -> np.ndarray:
    matrix = np.zeros((len(index), size))
    np.add.at(matrix, (np.arange(len(index))[:, None], index), weights)
    return matrix


def along_axes(volume: Tensor, matrices: Sequence[np.ndarray | None]) -> Tensor:
    """Multiply each of the last two or three axes of a volume (..., D, H, W) by a matrix (new, old), one for each of
    these axes; None leaves the axis."""
    *z, y, x = (None if m is None else torch.as_tensor(m, dtype=volume.dtype).to(volume.device) for m in matrices)
    if x is not None:
        volume = volume @ x.T
    if y is not None:
        volume = torch.matmul(y, volume)
    if z and z[0] is not None:
        volume = torch.matmul(z[0], volume.flatten(-2)).unflatten(-1, volume.shape[-2:])
    return volume


def gaussian_smoothed(volume: Tensor, sigma: float, axes: int = 3) -> Tensor:
    """The last ``axes`` axes of a volume smoothed as by `scipy.ndimage.gaussian_filter` (``sigma`` in voxels)."""
    return along_axes(volume, [gaussian_matrix(n, sigma) for n in volume.shape[-axes:]])


def resized_linear(volume: Tensor, size: Sequence[int]) -> Tensor:
    """The last axes of a volume (..., *old), two or three, resized linearly to ``size``; smoothed first along axes that
    shrink, with half the excess of the factor over 1 as sigma, and edge voxels repeated (as by `skimage.transform`).

    Computed in float64, one volume of the leading axes after the other: constant parts stay constant to the bit. With
    the rounding of float32 they would have a texture, which the self-similarity features of the registration enlarge.
    """
    matrices: list[np.ndarray | None] = []
    for old, new in zip(volume.shape[-len(size) :], size, strict=True):
        matrix = None if old == new else linear_matrix(old, new, old / new)
        if matrix is not None and new < old:
            matrix = matrix @ gaussian_matrix(old, (old / new - 1) / 2, repeat=True)
        matrices.append(matrix)
    leading = volume.shape[: volume.dim() - len(size)]
    flat = volume.reshape(-1, *volume.shape[len(leading) :])
    resized = [along_axes(one.double(), matrices).to(volume.dtype) for one in flat]
    return torch.stack(resized).reshape(*leading, *size)
