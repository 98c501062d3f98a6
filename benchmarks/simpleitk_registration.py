"""The registration as it was before 2026-11-28, in SimpleITK, as the reference for `benchmarks.registration`: affine
registration from each start by itself, and 50 iterations of demons at each resolution. The discrete stages between
them are the package's own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from mre_lowshot.atlas.registration.affine import STARTS
from mre_lowshot.atlas.registration.deformable import STAGES, blocks_of_spacing
from mre_lowshot.atlas.registration.discrete import blocks_of, displacement
from mre_lowshot.atlas.registration.images import voxels, warp
from mre_lowshot.atlas.similarity import normalize_locally
from mre_lowshot.filters import along_axes, linear_matrix

SIDE = 8.0  # of a voxel, on average, in the unit of length: the optimiser takes steps and stops at fixed lengths


def use_threads(number: int) -> None:
    """Let SimpleITK use ``number`` threads from now on."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(number)


def register(fixed: Any, moving: Any) -> tuple[list[Any], list[float]]:
    """The transform after the affine part and after all parts, from ``fixed`` to ``moving`` (SimpleITK images), and the
    seconds of the affine part and of the others."""
    unit = float(np.exp(np.mean(np.log(fixed.GetSpacing())))) / SIDE
    one, other = (_in_unit(image, unit) for image in (fixed, moving))
    marks = [time.perf_counter()]
    start = affine(one, other)
    marks.append(time.perf_counter())
    found = deformable(one, other, start)
    marks.append(time.perf_counter())
    return [_in_mm(transform, one, unit, fixed) for transform in (start, found)], np.diff(marks).tolist()


def _in_unit(image: Any, unit: float) -> Any:
    import SimpleITK as sitk

    made = sitk.Image(image)
    made.SetSpacing([float(f"{value / unit:.9g}") for value in image.GetSpacing()])
    made.SetOrigin([float(f"{value / unit:.9g}") for value in image.GetOrigin()])
    return made


def _in_mm(transform: Any, grid: Any, unit: float, fixed: Any) -> Any:
    import SimpleITK as sitk

    field = sitk.TransformToDisplacementField(
        transform, sitk.sitkVectorFloat64, grid.GetSize(), grid.GetOrigin(), grid.GetSpacing()
    )
    made = sitk.GetImageFromArray(sitk.GetArrayViewFromImage(field) * unit, isVector=True)
    made.CopyInformation(fixed)
    return sitk.DisplacementFieldTransform(made)


def affine(fixed: Any, moving: Any) -> Any:
    """Affine transform between two images, lengths in the unit."""
    one, other = _downsampled(fixed, 2), _downsampled(moving, 2)
    normalised, others = _normalised(one), _normalised(other)
    best, best_score = None, -np.inf
    for start in _starts(fixed, moving):
        try:
            found = _descend(one, other, start, [2], [1])
            back = found.GetInverse()
        except RuntimeError:  # too little overlap, or a singular transform
            continue
        score = _correlation(normalised, other, found) + _correlation(others, one, back)
        if score > best_score:
            best, best_score = found, score
    return _descend(fixed, moving, best, [2, 1], [1, 0])


def demons(fixed: Any, moving: Any, start: Any) -> Any:
    """Demons from ``fixed`` to ``moving`` after ``start``: a displacement transform."""
    import SimpleITK as sitk

    moved = warp(fixed, moving, start)
    method = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    method.SetNumberOfIterations(50)
    method.SetStandardDeviations(1.0)
    field = None
    for factor in (4, 2, 1):
        one, other = (_normalised(_downsampled(image, factor)) for image in (fixed, moved))
        if field is None:
            field = method.Execute(one, other)
        else:
            field = sitk.Resample(field, one, sitk.Transform(), sitk.sitkLinear, 0.0, field.GetPixelID())
            field = method.Execute(one, other, field)
    return sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))


def deformable(fixed: Any, moving: Any, start: Any) -> Any:
    """The transform from ``fixed`` to ``moving``, images with lengths in the unit, that refines ``start``."""
    import SimpleITK as sitk

    spacing, found = np.array(fixed.GetSpacing())[::-1], start
    for side, reach, radius, distance in STAGES:
        moved = warp(fixed, moving, found)
        step = blocks_of_spacing(spacing, fixed.GetSize()[::-1], side)
        mine, its = (blocks_of(torch.from_numpy(voxels(image)), step, radius, distance) for image in (fixed, moved))
        blocks = displacement(mine, its, reach) * torch.tensor(step).view(3, 1, 1, 1)
        sizes = zip(blocks.shape[1:], fixed.GetSize()[::-1], step, strict=True)
        whole = along_axes(blocks, [linear_matrix(old, new, 1 / s) for old, new, s in sizes]).numpy()
        vectors = np.moveaxis(whole * spacing.reshape(3, 1, 1, 1), 0, -1)[..., ::-1]  # to (x, y, z)
        field = sitk.GetImageFromArray(np.ascontiguousarray(vectors, dtype=np.float64), isVector=True)
        field.CopyInformation(fixed)
        found = sitk.CompositeTransform([found, sitk.DisplacementFieldTransform(field)])
    return sitk.CompositeTransform([found, demons(fixed, moving, found)])


def _starts(fixed: Any, moving: Any) -> Iterator[Any]:
    import SimpleITK as sitk

    extents = [np.multiply(image.GetSize(), image.GetSpacing()) for image in (fixed, moving)]
    x, y, _ = (extents[1] / extents[0]).tolist()
    for scales in ((1.0, 1.0, 1.0), (x, y, float(np.sqrt(x * y)))):
        for start in STARTS:
            transform = sitk.AffineTransform(
                sitk.CenteredTransformInitializer(
                    fixed, moving, sitk.AffineTransform(3), sitk.CenteredTransformInitializerFilter.GEOMETRY
                )
            )
            transform.SetMatrix(np.diag(scales).ravel().tolist())
            dx, dy, dz = transform.GetTranslation()
            transform.SetTranslation((dx, dy, dz + start * float(extents[0][2])))
            yield transform


def _descend(fixed: Any, moving: Any, start: Any, shrink: list[int], sigmas: list[float]) -> Any:
    import SimpleITK as sitk

    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.25, 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 100, relaxationFactor=0.6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(shrink)
    method.SetSmoothingSigmasPerLevel(sigmas)
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    method.SetInitialTransform(start, inPlace=False)
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # with several, sums differ between runs
    try:
        return method.Execute(fixed, moving)
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)


def _correlation(normalised: Any, moving: Any, transform: Any) -> float:
    moved = warp(normalised, moving, transform)
    one, other = (voxels(image).ravel() for image in (normalised, _normalised(moved)))
    if one.std() == 0 or other.std() == 0:
        return -1.0
    return float(np.corrcoef(one, other)[0, 1])


def _downsampled(image: Any, factor: int) -> Any:
    import SimpleITK as sitk

    if factor == 1:
        return image
    smooth = sitk.SmoothingRecursiveGaussian(image, [0.5 * factor * s for s in image.GetSpacing()])
    return sitk.Shrink(smooth, [max(1, min(factor, n // 8)) for n in image.GetSize()])


def _normalised(image: Any) -> Any:
    import SimpleITK as sitk

    made = sitk.GetImageFromArray(normalize_locally(voxels(image)))
    made.CopyInformation(image)
    return made
