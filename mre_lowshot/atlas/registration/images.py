"""Scans as SimpleITK images for registration, as torch tensors on a device, and transforms between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mre_lowshot.grid import coarsen_spacing
from mre_lowshot.resampling import resize_image

MAX_VOXELS = 500_000  # of an image that is registered: anatomy is matched as well on a coarse grid, in seconds


def to_image(array: np.ndarray, spacing: tuple[float, ...]) -> Any:
    """The channels' mean as a SimpleITK image, downsampled to `MAX_VOXELS`. The origin of its frame (mm) is the centre
    of the full grid's first voxel."""
    import SimpleITK as sitk

    size = array.shape[1:]
    coarse_size = registration_size(size, spacing)
    mean = resize_image(array.mean(axis=0, keepdims=True), coarse_size, order=1)[0]
    image = sitk.GetImageFromArray(mean.astype(np.float32))
    coarse = [s * old / new for s, old, new in zip(spacing, size, coarse_size, strict=True)]
    image.SetSpacing([float(s) for s in reversed(coarse)])
    image.SetOrigin([float(c - s) / 2 for c, s in zip(reversed(coarse), reversed(spacing), strict=True)])
    return image


def registration_size(size: tuple[int, ...], spacing: tuple[float, ...]) -> tuple[int, ...]:
    """The size of an image that is registered: ``size``, reduced to `MAX_VOXELS`. The finest axes are coarsened first,
    so that thick slices are kept."""
    own = np.asarray(spacing, dtype=float)
    coarse = coarsen_spacing(MAX_VOXELS, own, own * size)
    return tuple(max(1, int(n * s / c + 1e-6)) for n, s, c in zip(size, own, coarse, strict=True))


def label_image(label: np.ndarray, spacing: tuple[float, ...]) -> Any:
    """A label map (*size) as a SimpleITK image in the frame of `to_image`, not downsampled."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(label.astype(np.int16))
    image.SetSpacing([float(s) for s in reversed(spacing)])
    return image


@dataclass(frozen=True)
class Scan:
    """An image for the registration, in torch.

    Attributes:
        voxels: (D, H, W) float32.
        spacing, origin: mm, (z, y, x).
    """

    voxels: Tensor
    spacing: np.ndarray
    origin: np.ndarray

    @property
    def half(self) -> np.ndarray:
        """Half the extents between the outer edges (mm)."""
        half: np.ndarray = self.spacing * self.voxels.shape / 2
        return half

    @property
    def centre(self) -> np.ndarray:
        """The middle between the outer edges (mm)."""
        centre: np.ndarray = self.origin + self.half - self.spacing / 2
        return centre

    @property
    def unit(self) -> float:
        """The side (mm) of a voxel, on average."""
        return float(np.exp(np.mean(np.log(self.spacing))))


def scan_of(image: Any, device: torch.device | None = None) -> Scan:
    """A SimpleITK image on ``device`` (default: the CPU)."""
    spacing, origin = (np.array(values[::-1]) for values in (image.GetSpacing(), image.GetOrigin()))
    return Scan(torch.from_numpy(voxels(image).astype(np.float32)).to(device or "cpu"), spacing, origin)


def affine_transform(matrix: np.ndarray, shift: np.ndarray, centre: np.ndarray) -> Any:
    """The SimpleITK transform x -> ``matrix`` (x - ``centre``) + ``centre`` + ``shift``, given in (z, y, x), mm."""
    import SimpleITK as sitk

    made = sitk.AffineTransform(3)
    made.SetCenter(centre[::-1].tolist())
    made.SetMatrix(matrix[::-1, ::-1].ravel().tolist())
    made.SetTranslation(shift[::-1].tolist())
    return made


def displacement_transform(positions: Tensor, fixed: Scan, moving: Scan, grid: Any) -> Any:
    """The SimpleITK transform that moves the voxels of ``fixed`` to ``positions`` (3, *size) in voxels of ``moving``;
    ``grid`` is the image of ``fixed``."""
    import SimpleITK as sitk

    vectors = positions.cpu().numpy().astype(np.float64)
    for axis, (line, n) in enumerate(zip(vectors, positions.shape[1:], strict=True)):
        own = fixed.origin[axis] + fixed.spacing[axis] * np.arange(n)
        line *= moving.spacing[axis]
        line += moving.origin[axis] - own.reshape([-1 if a == axis else 1 for a in range(3)])
    field = sitk.GetImageFromArray(np.ascontiguousarray(np.moveaxis(vectors[::-1], 0, -1)), isVector=True)
    field.CopyInformation(grid)
    return sitk.DisplacementFieldTransform(field)


def index_matrix(transform: Any, fixed: Scan, moving: Scan) -> np.ndarray:
    """An affine SimpleITK transform as one of voxel indices, (3, 4)."""
    shift = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    columns = [np.array(transform.TransformPoint(tuple(axis))) - shift for axis in np.eye(3).tolist()]
    matrix, shift = np.column_stack(columns)[::-1, ::-1], shift[::-1]
    offset = (matrix @ fixed.origin + shift - moving.origin) / moving.spacing
    return np.column_stack([matrix * fixed.spacing / moving.spacing[:, None], offset])


def warp(fixed: Any, moving: Any, transform: Any) -> Any:
    """``moving`` resampled to the grid of ``fixed``; outside it, its darkest value."""
    import SimpleITK as sitk

    darkest = float(sitk.GetArrayViewFromImage(moving).min())
    return sitk.Resample(moving, fixed, transform, sitk.sitkLinear, darkest)


def voxels(image: Any) -> np.ndarray:
    """The voxels of a SimpleITK image as an array (*size)."""
    import SimpleITK as sitk

    array: np.ndarray = sitk.GetArrayFromImage(image)
    return array


def transformed_positions(transform: Any, grid: Any) -> np.ndarray:
    """Positions of the voxels of ``grid`` after ``transform`` (None: their own): (3, *size) in mm, axes (z, y, x)."""
    import SimpleITK as sitk

    size = grid.GetSize()[::-1]
    if transform is None:
        positions = np.zeros((3, *size))
    else:
        moved = sitk.TransformToDisplacementField(
            transform, sitk.sitkVectorFloat64, grid.GetSize(), grid.GetOrigin(), grid.GetSpacing()
        )
        positions = np.moveaxis(sitk.GetArrayFromImage(moved), -1, 0)[::-1]  # from (x, y, z)
    for axis, n in enumerate(size):
        x = 2 - axis
        line = grid.GetOrigin()[x] + np.arange(n) * grid.GetSpacing()[x]
        positions[axis] += line.reshape([-1 if a == axis else 1 for a in range(3)])
    return positions
