"""Volumes as torch tensors: resampling, local normalisation, interpolation, on the device of their input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mre_lowshot.atlas.similarity import GLOBAL_SHARE, LOCAL_SIGMA
from mre_lowshot.filters import along_axes, gaussian_matrix, gaussian_smoothed, linear_matrix

PARTS = 16  # of the positions of `sampled`: torch interpolates each part in one thread


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
    mean, square = gaussian_smoothed(torch.stack([volume, volume**2]), LOCAL_SIGMA)
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
