"""Deformable registration: discrete stages for large displacements, then demons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mre_lowshot.atlas.registration.demons import demons
from mre_lowshot.atlas.registration.discrete import blocks_of, displacement
from mre_lowshot.atlas.registration.images import displacement_transform, index_matrix, scan_of, voxels
from mre_lowshot.atlas.registration.volumes import sampled, voxel_grid, warped
from mre_lowshot.filters import along_axes, linear_matrix
from mre_lowshot.grid import IGNORE
from mre_lowshot.transfers import Array, as_tensor

# Of the discrete search, per stage: side of a block in voxels, search radius in blocks; radius of the patches whose
# self-similarity is the feature, and their distance, in voxels. Large blocks need features of a larger neighbourhood.
STAGES = ((4, 4, 2, 3), (4, 2, 2, 3), (3, 3, 1, 2), (2, 2, 1, 2))
MIN_BLOCKS = 4  # along an axis


@dataclass(frozen=True)
class Classes:
    """Class probabilities that are matched besides the images.

    All K classes take part, background too: an ignored voxel then differs equally from every class.

    Attributes:
        fixed: (K, *size) in the fixed image.
        moving: the moving image's label map (SimpleITK, int16, any grid).
    """

    fixed: Array
    moving: Any

    def at(self, positions: Tensor) -> Tensor:
        """The moving image's class shares (K, *size) at ``positions`` (3, *size) in mm; background outside it."""
        labels = torch.from_numpy(voxels(self.moving).astype(np.int64)).to(positions.device)
        spacing = _column(self.moving.GetSpacing()[::-1], positions)
        origin = _column(self.moving.GetOrigin()[::-1], positions)
        found = torch.zeros(positions.shape[1:], dtype=torch.int64, device=positions.device)
        inside = torch.ones_like(found, dtype=torch.bool)
        for index, n in zip(((positions - origin) / spacing).round().long(), labels.shape, strict=True):
            inside &= (index >= 0) & (index < n)
            found = found * n + index.clamp(0, n - 1)
        label = torch.where(inside, labels.flatten()[found], 0)
        shares = torch.stack([label == k for k in range(len(self.fixed))]).to(positions.dtype)
        return torch.where(label == IGNORE, 1 / len(self.fixed), shares)


def deformable(
    fixed: Any, moving: Any, start: Any, classes: Classes | None = None, device: torch.device | None = None
) -> Any:
    """The transform from ``fixed`` to ``moving`` (SimpleITK images) that refines ``start``, as a displacement of the
    voxels of ``fixed``.

    Discrete stages displace blocks of decreasing size to where image features, and ``classes`` where given, match best
    (`discrete`), each stage after the one before; demons follow (`demons`). Lengths are measured in voxels. ``start``
    is affine.
    """
    one, other = scan_of(fixed, device), scan_of(moving, device)
    # rounded: the same at every voxel size
    spacing = np.array([float(f"{value / one.unit:.9g}") for value in one.spacing])
    whole, matrix = one.voxels.shape, index_matrix(start, one, other)
    steps = [blocks_of_spacing(spacing, whole, side) for side, *_ in STAGES]
    # The composed displacement is held on a grid of the last stage's blocks, and interpolated
    lattice = [-(-n // s) for n, s in zip(whole, steps[-1], strict=True)]
    wide = [linear_matrix(old, n, 1 / s) for old, n, s in zip(lattice, whole, steps[-1], strict=True)]
    home, side = voxel_grid(lattice, one.voxels.device), _column(steps[-1], one.voxels)
    field = torch.zeros_like(home)
    for (_, reach, radius, distance), step in zip(STAGES, steps, strict=True):
        places = voxel_grid(whole, home.device) + along_axes(field, wide)
        at = _mapped(matrix, places)
        moved = warped(other.voxels, at)
        shares: tuple[Tensor | None, ...] = (None, None)
        if classes:
            mm = at * _column(other.spacing, moved) + _column(other.origin, moved)
            shares = as_tensor(classes.fixed, moved.device), classes.at(mm)
        pairs = zip((one.voxels, moved), shares, strict=True)
        mine, its = (blocks_of(image, step, radius, distance, known) for image, known in pairs)
        blocks = displacement(mine, its, reach)
        ratios = [last / s for last, s in zip(steps[-1], step, strict=True)]
        fit = [linear_matrix(old, n, r) for old, n, r in zip(blocks.shape[1:], lattice, ratios, strict=True)]
        found = along_axes(blocks * _column(step, blocks), fit)
        field = found + sampled(field, home + found / side)
    last = voxel_grid(whole, home.device)
    moved = warped(other.voxels, _mapped(matrix, last + along_axes(field, wide)))
    fine = demons(one.voxels, moved, spacing.tolist())
    at = last + fine
    at = at + sampled(field, (at + 0.5) / side - 0.5)
    return displacement_transform(_mapped(matrix, at), one, other, fixed)


def blocks_of_spacing(spacing: np.ndarray, size: Sequence[int], side: int) -> list[int]:
    """Sides in voxels of blocks about ``side`` voxels wide. On anisotropic grids they are equal in mm, as far as voxels
    allow."""
    length = side * spacing.prod() ** (1 / 3)
    pairs = zip(spacing, size, strict=True)
    return [int(np.clip(np.rint(length / s), 1, max(1, n // MIN_BLOCKS))) for s, n in pairs]


def _column(values: Sequence[float] | np.ndarray, like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype).to(like.device).view(3, 1, 1, 1)


def _mapped(matrix: np.ndarray, places: Tensor) -> Tensor:
    """Places (3, *size) after a linear map (3, 4)."""
    made = torch.tensor(matrix, dtype=places.dtype).to(places.device)
    return (made[:, :3] @ places.flatten(1) + made[:, 3:]).view_as(places)
