"""Affine registration: where in the other scan this one lies, whatever length of the body each covers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mre_lowshot.registration.images import brought, coarser, locally_normalised, mapped

STARTS = (-0.4, -0.2, 0.0, 0.2, 0.4)  # of the scan's length, along z


def affine(fixed: Any, moving: Any) -> Any:
    """Affine transform from ``fixed`` to ``moving`` (SimpleITK images): mutual information, coarse to fine.

    Scans cover different lengths of the body, people differ in size, and a start too far off ends in a wrong place:
    several starts along the body (z), as large as they are and scaled to each other's width and depth, are followed on
    a coarse grid. The one whose outcome correlates best, over all of ``fixed`` and over all of ``moving``, goes on: a
    start that lays one scan's end on the other's may fit there by chance. Both are normalised by their surroundings
    (without that, more of the darkness around a body counts as much as its organs).
    """
    one, other = coarser(fixed, 2), coarser(moving, 2)
    normalised, others = locally_normalised(one), locally_normalised(other)
    best, best_score = None, -np.inf
    for start in _starts(fixed, moving):
        try:
            found = _descend(one, other, start, [2], [1])
            back = found.GetInverse()
        except RuntimeError:  # this start leaves too little in common, or flattens a scan
            continue
        score = _correlation(normalised, other, found) + _correlation(others, one, back)
        if score > best_score:
            best, best_score = found, score
    if best is None:
        raise RuntimeError("the images have nothing in common")
    return _descend(fixed, moving, best, [2, 1], [1, 0])


def _starts(fixed: Any, moving: Any) -> Iterator[Any]:
    """Affine transforms to start from: centre on centre, moved along z by `STARTS`; first in the scans' own sizes, then
    with the extents in the plane made equal (the plan crops to the patient where it can), z scaled by their mean."""
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


def nearest_affine(places: np.ndarray, grid: Any) -> Any:
    """The affine transform that takes the voxels of ``grid`` (SimpleITK image) nearest to ``places`` (3, *size) in mm,
    axes (z, y, x), by least squares."""
    import SimpleITK as sitk

    own = mapped(sitk.Transform(), grid).reshape(3, -1)
    moments = np.vstack([own, np.ones(own.shape[1])])
    fitted = np.linalg.solve(moments @ moments.T, moments @ places.reshape(3, -1).T).T[::-1]  # rows x, y, z
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(fitted[:, 2::-1].ravel().tolist())
    transform.SetTranslation(fitted[:, 3].tolist())
    return transform


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
    # Several threads add up mutual information in any order: another rounding in every run. The method's own
    # SetNumberOfThreads does not reach the metric.
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        return method.Execute(fixed, moving)
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)


def _correlation(normalised: Any, moving: Any, transform: Any) -> float:
    """Correlation over all of an image normalised by its surroundings with ``moving``, which is normalised where it
    comes to lie."""
    import SimpleITK as sitk

    moved = brought(normalised, moving, transform)
    one, other = (sitk.GetArrayFromImage(image).ravel() for image in (normalised, locally_normalised(moved)))
    if one.std() == 0 or other.std() == 0:
        return -1.0
    return float(np.corrcoef(one, other)[0, 1])
