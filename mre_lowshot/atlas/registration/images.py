"""Scans as SimpleITK images: thinned, coarser, normalised by their surroundings."""

from __future__ import annotations

from typing import Any

import numpy as np

from mre_lowshot.likeness import normalised
from mre_lowshot.preprocessing.resampling import resize_image, spacing_with

MOST_VOXELS = 500_000  # registered at; anatomy is found on a coarse grid as well, in seconds


def to_image(array: np.ndarray, spacing: tuple[float, ...]) -> Any:
    """The channels' mean as a SimpleITK image, thinned to `MOST_VOXELS`; mm from the centre of the full grid's first
    voxel."""
    import SimpleITK as sitk

    size = array.shape[1:]
    thinned = thinned_size(size, spacing)
    mean = resize_image(array.mean(axis=0, keepdims=True), thinned, order=1)[0]
    image = sitk.GetImageFromArray(mean.astype(np.float32))
    coarse = [s * old / new for s, old, new in zip(spacing, size, thinned, strict=True)]
    image.SetSpacing([float(s) for s in reversed(coarse)])
    image.SetOrigin([float(c - s) / 2 for c, s in zip(reversed(coarse), reversed(spacing), strict=True)])
    return image


def thinned_size(size: tuple[int, ...], spacing: tuple[float, ...]) -> tuple[int, ...]:
    """``size`` itself, or as much smaller as `MOST_VOXELS` asks: the finest axes are made coarser first, so that thick
    slices stay."""
    own = np.asarray(spacing, dtype=float)
    coarse = spacing_with(MOST_VOXELS, own, own * size)
    return tuple(max(1, int(n * s / c + 1e-6)) for n, s, c in zip(size, own, coarse, strict=True))


def label_image(label: np.ndarray, spacing: tuple[float, ...]) -> Any:
    """A label map (*size) as a SimpleITK image in the frame of `to_image`, not thinned."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(label.astype(np.int16))
    image.SetSpacing([float(s) for s in reversed(spacing)])
    return image


def coarser(image: Any, factor: int) -> Any:
    """Smoothed and thinned by ``factor`` along each axis, less where fewer than 8 voxels would be left."""
    import SimpleITK as sitk

    if factor == 1:
        return image
    smooth = sitk.SmoothingRecursiveGaussian(image, [0.5 * factor * s for s in image.GetSpacing()])
    return sitk.Shrink(smooth, [max(1, min(factor, n // 8)) for n in image.GetSize()])


def locally_normalised(image: Any) -> Any:
    """A SimpleITK image `normalised` by its surroundings."""
    import SimpleITK as sitk

    made = sitk.GetImageFromArray(normalised(sitk.GetArrayViewFromImage(image)))
    made.CopyInformation(image)
    return made


def brought(fixed: Any, moving: Any, transform: Any) -> Any:
    """``moving`` on the grid of ``fixed``; beyond its edge stands its darkest value."""
    import SimpleITK as sitk

    darkest = float(sitk.GetArrayViewFromImage(moving).min())
    return sitk.Resample(moving, fixed, transform, sitk.sitkLinear, darkest)


def mapped(transform: Any, grid: Any) -> np.ndarray:
    """Where the voxels of ``grid`` lie after ``transform``: (3, *size) in mm, the axes (z, y, x)."""
    import SimpleITK as sitk

    moved = sitk.TransformToDisplacementField(
        transform, sitk.sitkVectorFloat64, grid.GetSize(), grid.GetOrigin(), grid.GetSpacing()
    )
    places = np.moveaxis(sitk.GetArrayFromImage(moved), -1, 0)[::-1]  # from (x, y, z)
    index = np.indices(places.shape[1:])
    for axis in range(3):
        x = 2 - axis
        places[axis] += grid.GetOrigin()[x] + index[axis] * grid.GetSpacing()[x]
    return places
