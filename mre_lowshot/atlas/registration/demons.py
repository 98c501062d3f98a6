"""Demons registration: the last, fine stage."""

from __future__ import annotations

from typing import Any

from mre_lowshot.atlas.registration.images import downsampled, locally_normalised, warp

DEMONS_ITERATIONS = 50  # at each of three resolutions
DEMONS_SIGMA = 1.0  # voxels; smoothing of the displacement field after each iteration


def demons(fixed: Any, moving: Any, start: Any) -> Any:
    """Fast symmetric forces demons from ``fixed`` to ``moving`` after ``start``, coarse to fine: a displacement
    transform.

    Demons compare intensities, which two scans do not share even in one organ. So both images are locally normalised,
    and edges and texture are compared.
    """
    import SimpleITK as sitk

    moved = warp(fixed, moving, start)
    method = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    method.SetNumberOfIterations(DEMONS_ITERATIONS)
    method.SetStandardDeviations(DEMONS_SIGMA)
    field = None
    for factor in (4, 2, 1):
        one, other = (locally_normalised(downsampled(image, factor)) for image in (fixed, moved))
        if field is None:
            field = method.Execute(one, other)
        else:
            field = sitk.Resample(field, one, sitk.Transform(), sitk.sitkLinear, 0.0, field.GetPixelID())
            field = method.Execute(one, other, field)
    return sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))
