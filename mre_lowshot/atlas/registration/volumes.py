"""Volumes as torch tensors: smoothing, resampling, local normalisation, interpolation, on the device of their input.

A linear filter along an axis is a product with a matrix: the edges are part of the matrix, filters that follow each
other are one matrix, and no voxel's value depends on the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mre_lowshot.atlas.similarity import GLOBAL_SHARE, LOCAL_SIGMA

PARTS = 16  # of the positions of `sampled`: torch interpolates each part in one thread


@lru_cache(maxsize=256)
def gaussian_matrix(size: int, sigma: float) -> np.ndarray:
    """(size, size): Gaussian smoothing, cut off at 4 ``sigma`` voxels. The volume is mirrored at its edges, as by
    `scipy.ndimage.gaussian_filter`."""
    radius = int(4 * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    index = (np.arange(size)[:, None] + offsets) % (2 * size)
    index = np.minimum(index, 2 * size - 1 - index)
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
    """Multiply each of the last three axes of a volume (..., D, H, W) by a matrix (new, old); None leaves the axis."""
    z, y, x = (None if m is None else torch.as_tensor(m, dtype=volume.dtype).to(volume.device) for m in matrices)
    if x is not None:
        volume = volume @ x.T
    if y is not None:
        volume = torch.matmul(y, volume)
    if z is not None:
        volume = torch.matmul(z, volume.flatten(-2)).unflatten(-1, volume.shape[-2:])
    return volume


def smoothed(volume: Tensor, sigma: float) -> Tensor:
    """Gaussian smoothing (``sigma`` in voxels) of a volume (..., D, H, W)."""
    return along_axes(volume, [gaussian_matrix(n, sigma) for n in volume.shape[-3:]])


def downsampled(volume: Tensor, factor: int) -> Tensor:
    """A volume (..., D, H, W), smoothed and downsampled by ``factor`` along each axis, by less where fewer than 8
    voxels would remain; the outer edges stay."""
    if factor == 1:
        return volume
    matrices = []
    for n in volume.shape[-3:]:
        new = -(-n // max(1, min(factor, n // 8)))
        matrices.append(linear_matrix(n, new, n / new) @ gaussian_matrix(n, 0.5 * factor))
    return along_axes(volume, matrices)


def resized(volume: Tensor, size: Sequence[int]) -> Tensor:
    """A volume (..., D, H, W) interpolated linearly on a grid of ``size`` with the same outer edges."""
    pairs = zip(volume.shape[-3:], size, strict=True)
    return along_axes(volume, [None if old == new else linear_matrix(old, new, old / new) for old, new in pairs])


def mean_of(volume: Tensor) -> Tensor:
    """The mean (..., 1, 1, 1) of each volume (..., D, H, W), summed in an order that no number of threads changes."""
    rows = volume.sum(dim=-1, keepdim=True, dtype=torch.float64)
    total = rows.sum(dim=-2, keepdim=True).sum(dim=-3, keepdim=True)
    mean: Tensor = total / (volume.shape[-3] * volume.shape[-2] * volume.shape[-1])
    return mean.to(volume.dtype)


def locally_normalised(volume: Tensor) -> Tensor:
    """`similarity.normalize_locally` of each volume of (..., D, H, W)."""
    volume = volume - mean_of(volume)
    mean, square = smoothed(torch.stack([volume, volume**2]), LOCAL_SIGMA)
    spread = (square - mean**2).clamp_min(0).sqrt()
    normalised: Tensor = (volume - mean) / (spread + GLOBAL_SHARE * mean_of(volume**2).sqrt() + 1e-12)
    return normalised


def voxel_grid(size: Sequence[int], device: torch.device) -> Tensor:
    """Voxel indices (3, *size), float32."""
    lines = [torch.arange(n, dtype=torch.float32, device=device) for n in size]
    return torch.stack(torch.meshgrid(*lines, indexing="ij"))


def sampled(volume: Tensor, positions: Tensor) -> Tensor:
    """A volume (C, D, H, W) at ``positions`` (3, *any) in voxels, interpolated linearly: (C, *any). Beyond the edges
    the edge voxels are repeated."""
    flat = positions.flatten(1)
    count = flat.shape[1]
    part = -(-count // PARTS)
    flat = F.pad(flat, (0, PARTS * part - count))
    size = volume.shape[1:]
    grid = torch.stack([flat[axis] * (2 / max(size[axis] - 1, 1)) - 1 for axis in (2, 1, 0)], dim=-1)
    found = F.grid_sample(
        volume[None].expand(PARTS, *volume.shape), grid.view(PARTS, 1, 1, part, 3),
        padding_mode="border", align_corners=True,
    )  # fmt: skip
    whole = found.view(PARTS, len(volume), part).transpose(0, 1).reshape(len(volume), -1)[:, :count]
    return whole.reshape(len(volume), *positions.shape[1:])


def warped(volume: Tensor, positions: Tensor) -> Tensor:
    """A volume (D, H, W) at ``positions`` (3, *any) in voxels; outside it, its darkest value."""
    inside = torch.ones(positions.shape[1:], dtype=torch.bool, device=positions.device)
    for at, n in zip(positions, volume.shape, strict=True):
        inside &= (at >= -0.5) & (at <= n - 0.5)
    return torch.where(inside, sampled(volume[None], positions)[0], volume.amin())
