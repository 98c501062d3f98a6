"""Average pooling and linear upsampling, with a formulation whose CUDA gradient is deterministic.

On CUDA, torch's gradients of average pooling and trilinear interpolation use atomic additions in an order that varies
between runs, and torch raises an error for them under ``torch.use_deterministic_algorithms``. In that mode this module
uses block means and one interpolation matrix per axis instead, which give the same values up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _must_be_deterministic(x: Tensor) -> bool:
    return x.device.type == "cuda" and torch.are_deterministic_algorithms_enabled()


class AveragePool(nn.Module):
    """Average pooling over blocks of ``stride`` voxels: (B, C, *size) -> (B, C, *size / stride).

    Every side must be divisible by its stride.
    """

    def __init__(self, stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = tuple(stride)

    def forward(self, x: Tensor) -> Tensor:
        if _must_be_deterministic(x):
            return block_mean(x, self.stride)
        pool = F.avg_pool3d if len(self.stride) == 3 else F.avg_pool2d
        return pool(x, self.stride, self.stride)


def upsample(x: Tensor, size: Sequence[int]) -> Tensor:
    """Linear upsampling of (B, C, *smaller) to (B, C, *size), with half-pixel voxel centres (align_corners off)."""
    if _must_be_deterministic(x):
        return separable_upsample(x, size)
    return F.interpolate(x, size=tuple(size), mode="trilinear" if len(size) == 3 else "bilinear", align_corners=False)


def block_mean(x: Tensor, stride: Sequence[int]) -> Tensor:
    """Average pooling of (B, C, *size) as a mean over the inner axes of a block view."""
    sides = [part for side, s in zip(x.shape[2:], stride, strict=True) for part in (side // s, s)]
    return x.reshape(*x.shape[:2], *sides).mean(dim=tuple(range(3, 3 + 2 * len(stride), 2)))


def separable_upsample(x: Tensor, size: Sequence[int]) -> Tensor:
    """Linear upsampling of (B, C, *smaller) as one matrix product per axis whose length changes."""
    for axis, (old, new) in enumerate(zip(x.shape[2:], size, strict=True), start=2):
        if old != new:
            weights = interpolation_matrix(old, new).to(x.device, x.dtype)
            x = (x.movedim(axis, -1) @ weights.t()).movedim(-1, axis)
    return x


def interpolation_matrix(old: int, new: int) -> Tensor:
    """Matrix (new, old) float64 of linear interpolation: row i holds the weights of the old voxels in new voxel i.

    Positions beyond the outer voxel centres take the value of the nearest voxel.
    """
    position = ((torch.arange(new, dtype=torch.float64) + 0.5) * old / new - 0.5).clamp(0, old - 1)
    low = position.floor().long().clamp_max(max(old - 2, 0))
    share = position - low
    matrix = torch.zeros(new, old, dtype=torch.float64)
    matrix.scatter_(1, low[:, None], (1 - share)[:, None])
    return matrix.scatter_add(1, (low + 1).clamp_max(old - 1)[:, None], share[:, None])
