"""Scans as SimpleITK images for registration: downsampled, smoothed, locally normalised, warped."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from mre_lowshot.atlas.similarity import normalize_locally
from mre_lowshot.grid import coarsen_spacing, resize_image

SIDE = 8.0  # of a voxel, on average, in the unit of length that registration works in; 0.5 to 8 serve equally well
MAX_VOXELS = 500_000  # of an image that is registered: anatomy is matched as well on a coarse grid, in seconds


class _OneThread:
    """How many threads of Python need ITK with a single one, and ITK's number of threads before."""

    lock = threading.Lock()
    users = 0
    before = 0


@contextmanager
def one_itk_thread() -> Iterator[None]:
    """Within the block ITK computes in one thread, in the whole process: the number is restored when the last of
    several blocks that run at the same time ends.

    With several threads mutual information is summed in a random order, and results differ between runs. The number of
    threads of a registration method does not apply to its metric.
    """
    import SimpleITK as sitk

    with _OneThread.lock:
        if not _OneThread.users:
            _OneThread.before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
        _OneThread.users += 1
    try:
        yield
    finally:
        with _OneThread.lock:
            _OneThread.users -= 1
            if not _OneThread.users:
                sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(_OneThread.before)


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


def unit_of(image: Any) -> float:
    """The length (mm) in which the voxels of ``image`` have a side of `SIDE` on average."""
    unit = float(np.exp(np.mean(np.log(image.GetSpacing())))) / SIDE
    return 1.0 if abs(unit - 1) < 1e-9 else unit


def in_unit(image: Any, unit: float) -> Any:
    """The image with its lengths in ``unit`` (mm); rounded, because a result may hang on the last digit."""
    import SimpleITK as sitk

    made = sitk.Image(image)
    made.SetSpacing([float(f"{value / unit:.9g}") for value in image.GetSpacing()])
    made.SetOrigin([float(f"{value / unit:.9g}") for value in image.GetOrigin()])
    return made


def scaled_affine(transform: Any, factor: float) -> Any:
    """An affine transform with all lengths multiplied by ``factor``; it keeps its centre, which an optimiser turns
    about."""
    import SimpleITK as sitk

    start = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    fixed = transform.GetFixedParameters()
    centre = np.array(fixed if len(fixed) == 3 else (0.0, 0.0, 0.0))
    columns = [np.array(transform.TransformPoint(tuple(axis))) - start for axis in np.eye(3).tolist()]
    matrix = np.column_stack(columns)
    made = sitk.AffineTransform(3)
    made.SetCenter([float(f"{value:.12g}") for value in factor * centre])
    made.SetMatrix(np.round(matrix, 12).ravel().tolist())
    made.SetTranslation([float(f"{value:.12g}") for value in factor * (start + matrix @ centre - centre)])
    return made


def scaled_field(transform: Any, grid: Any, factor: float, scaled: Any) -> Any:
    """A transform, sampled on ``grid``, with all lengths multiplied by ``factor``; ``scaled`` is the grid so scaled."""
    import SimpleITK as sitk

    field = sitk.TransformToDisplacementField(
        transform, sitk.sitkVectorFloat64, grid.GetSize(), grid.GetOrigin(), grid.GetSpacing()
    )
    made = sitk.GetImageFromArray(sitk.GetArrayViewFromImage(field) * factor, isVector=True)
    made.CopyInformation(scaled)
    return sitk.DisplacementFieldTransform(made)


def downsampled(image: Any, factor: int) -> Any:
    """Smoothed and downsampled by ``factor`` along each axis, less where fewer than 8 voxels would remain."""
    import SimpleITK as sitk

    if factor == 1:
        return image
    smooth = sitk.SmoothingRecursiveGaussian(image, [0.5 * factor * s for s in image.GetSpacing()])
    return sitk.Shrink(smooth, [max(1, min(factor, n // 8)) for n in image.GetSize()])


def locally_normalised(image: Any) -> Any:
    """A SimpleITK image, locally normalised (`similarity.normalize_locally`)."""
    import SimpleITK as sitk

    made = sitk.GetImageFromArray(normalize_locally(sitk.GetArrayViewFromImage(image)))
    made.CopyInformation(image)
    return made


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
    """Positions of the voxels of ``grid`` after ``transform``: (3, *size) in mm, axes (z, y, x)."""
    import SimpleITK as sitk

    moved = sitk.TransformToDisplacementField(
        transform, sitk.sitkVectorFloat64, grid.GetSize(), grid.GetOrigin(), grid.GetSpacing()
    )
    positions = np.moveaxis(sitk.GetArrayFromImage(moved), -1, 0)[::-1]  # from (x, y, z)
    index = np.indices(positions.shape[1:])
    for axis in range(3):
        x = 2 - axis
        positions[axis] += grid.GetOrigin()[x] + index[axis] * grid.GetSpacing()[x]
    return positions
