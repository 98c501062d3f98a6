"""Demons registration: the last, fine stage."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mre_lowshot.atlas.registration.volumes import downsampled, locally_normalised, resized, sampled, voxel_grid
from mre_lowshot.filters import along_axes

LEVELS = ((4, 25, 0.5), (2, 25, 0.7), (1, 12, 0.75))  # downsampling; iterations; longest step of one, in voxels
LEAST_DIFFERENCE = 1e-3  # of intensities, that moves a voxel
WEIGHTS = (0.0508, 0.2118, 0.4748, 0.2118, 0.0508)  # smoothing of the displacement after each iteration: sigma 1 voxel


def demons(fixed: Tensor, moving: Tensor, spacing: Sequence[float]) -> Tensor:
    """Fast symmetric forces demons (Vercauteren et al. 2007) from ``fixed`` to ``moving``, both (D, H, W), coarse to
    fine: displacement (3, D, H, W) in voxels.

    Demons compare intensities, which two scans do not share even in one organ. So both images are locally normalised,
    and edges and texture are compared.

    Args:
        fixed, moving: on one grid.
        spacing: its voxels' sides, in any unit.
    """
    field = fixed.new_zeros(3, 1, 1, 1)
    for factor, iterations, longest in LEVELS:
        one, other = (locally_normalised(downsampled(image, factor)) for image in (fixed, moving))
        ratio = [new / old for new, old in zip(one.shape, field.shape[1:], strict=True)]
        field = resized(field, one.shape) * field.new_tensor(ratio).view(3, 1, 1, 1)
        sides = [s * n / m for s, n, m in zip(spacing, fixed.shape, one.shape, strict=True)]
        field = level(one, other, field, sides, iterations=iterations, longest=longest)
    return field


def level(
    fixed: Tensor, moving: Tensor, field: Tensor, sides: Sequence[float], *, iterations: int, longest: float
) -> Tensor:
    """Demons at one resolution: ``field`` (3, D, H, W) in voxels after ``iterations``.

    Args:
        fixed, moving: (D, H, W).
        field: to begin with.
        sides: of a voxel, in any unit.
        iterations: number.
        longest: displacement in one iteration, in voxels (on average over the axes).
    """
    side = fixed.new_tensor(sides).view(3, 1, 1, 1)
    limit = float(np.mean(np.square(sides))) * longest**2
    home, matrices = voxel_grid(fixed.shape, fixed.device), [smoothing_matrix(n) for n in fixed.shape]
    own = gradient(fixed) / side
    for _ in range(iterations):
        warped = sampled(moving[None], home + field)[0]
        slope = own + gradient(warped) / side  # twice the mean of both
        difference = fixed - warped
        size = (slope**2).sum(dim=0) + difference**2 / limit
        force = torch.where((difference.abs() < LEAST_DIFFERENCE) | (size < 1e-9), 0.0, 2 * difference / size)
        field = along_axes(field + force * slope / side, matrices)
    return field


def gradient(image: Tensor) -> Tensor:
    """Central differences (3, D, H, W) of an image, per voxel; 0 at the edges."""
    found = image.new_zeros(3, *image.shape)
    for axis, n in enumerate(image.shape):
        if n > 2:
            inner = image.narrow(axis, 2, n - 2) - image.narrow(axis, 0, n - 2)
            found[axis].narrow(axis, 1, n - 2).copy_(inner / 2)
    return found


def smoothing_matrix(size: int) -> np.ndarray:
    """(size, size): `WEIGHTS` along an axis; beyond an edge its voxel is repeated."""
    matrix = np.zeros((size, size))
    for offset, weight in enumerate(WEIGHTS, start=-2):
        np.add.at(matrix, (np.arange(size), np.clip(np.arange(size) + offset, 0, size - 1)), weight)
    return matrix / sum(WEIGHTS)
