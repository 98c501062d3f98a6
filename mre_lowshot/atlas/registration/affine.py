"""Affine registration of scans that may cover different lengths of the body."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mre_lowshot.atlas.registration.images import (
    downsampled,
    locally_normalised,
    one_itk_thread,
    transformed_positions,
    warp,
)

STARTS = (-0.4, -0.2, 0.0, 0.2, 0.4)  # of the scan's length, along z


def affine(fixed: Any, moving: Any) -> Any:
    """Affine transform from ``fixed`` to ``moving`` (SimpleITK images): mutual information, coarse to fine.

    Scans cover different lengths of the body and people differ in size, and a start that is too far off converges to a
    wrong optimum. So several starts along the body axis (z), at the scans' own sizes and scaled to each other's width
    and depth, are optimised on a coarse grid. The result with the highest correlation, summed over all of ``fixed``
    and all of ``moving``, is refined. The sum matters: a start that lays one scan's end on the other's may correlate
    well in the overlap by chance. Both images are locally normalised for it; otherwise overlapping air would count as
    much as organs.

    Raises:
        RuntimeError: no start leaves an overlap.
    """
    one, other = downsampled(fixed, 2), downsampled(moving, 2)
    normalised, others = locally_normalised(one), locally_normalised(other)
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
    if best is None:
        raise RuntimeError("no start of the registration leaves an overlap of the images")
    return _descend(fixed, moving, best, [2, 1], [1, 0])


def _starts(fixed: Any, moving: Any) -> Iterator[Any]:
    """Initial affine transforms: centre on centre, shifted along z by `STARTS`; first at the scans' own sizes, then
    with equal extents in the plane (the plan crops to the patient where it can) and z scaled by their geometric
    mean."""
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


def nearest_affine(positions: np.ndarray, grid: Any) -> Any:
    """The affine transform of the voxels of ``grid`` (SimpleITK image) that fits their ``positions`` (3, *size) in mm,
    axes (z, y, x), in the least-squares sense."""
    import SimpleITK as sitk

    own = transformed_positions(sitk.Transform(), grid).reshape(3, -1)
    moments = np.vstack([own, np.ones(own.shape[1])])
    fitted = np.linalg.solve(moments @ moments.T, moments @ positions.reshape(3, -1).T).T[::-1]  # rows x, y, z
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
    with one_itk_thread():
        return method.Execute(fixed, moving)


def _correlation(normalised: Any, moving: Any, transform: Any) -> float:
    """Correlation, over the whole grid of a locally normalised image, with ``moving`` after warping, locally
    normalised there."""
    import SimpleITK as sitk

    moved = warp(normalised, moving, transform)
    one, other = (sitk.GetArrayFromImage(image).ravel() for image in (normalised, locally_normalised(moved)))
    if one.std() == 0 or other.std() == 0:
        return -1.0
    return float(np.corrcoef(one, other)[0, 1])
