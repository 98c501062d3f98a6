"""Bringing a scan to the labelled one, the atlas, so that its coordinates mean the same anatomy.

Registration looks at images alone. It gives each voxel of the scan its place in the atlas, which is what the network's
coordinate maps (paper, III-C) then hold; the atlas's labels at that place can be told to the network too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mre_lowshot.sampling import Prior
from mre_lowshot.specs import Plan

DEMONS_ITERATIONS = 50  # at each of three resolutions
DEMONS_SIGMA = 1.0  # voxels; smoothing of the displacement after each iteration


@dataclass(frozen=True)
class Atlas:
    """A preprocessed labelled scan: image (C, *size) float32, label (*size) int16, spacing in mm."""

    image: np.ndarray
    label: np.ndarray
    spacing: tuple[float, ...]

    def to_tensors(self) -> dict[str, Any]:
        """For a checkpoint; the image is kept in half precision."""
        return {
            "image": torch.from_numpy(self.image.astype(np.float16)),
            "label": torch.from_numpy(self.label.astype(np.int16)),
            "spacing": list(self.spacing),
        }

    @classmethod
    def from_tensors(cls, data: dict[str, Any] | None) -> Atlas | None:
        if data is None:
            return None
        image = data["image"].cpu().numpy().astype(np.float32)
        return cls(image, data["label"].cpu().numpy(), tuple(data["spacing"]))


def make_prior(atlas: Atlas | None, plan: Plan) -> Prior | None:
    """The prior that the plan's network takes from the atlas, None for none."""
    if atlas is None or not plan.network.atlas_prior:
        return None
    return Prior(atlas.label, plan.network.classes)


def align(atlas: Atlas | None, image: np.ndarray, spacing: tuple[float, ...], plan: Plan) -> np.ndarray | None:
    """Coordinates (3, *size) of a preprocessed scan's voxels in the atlas, each axis -1 to 1 over the atlas; None
    where the plan aligns nothing (the scan's own volume is the frame then).

    ``image`` (C, *size) with ``spacing`` in mm. Channels are averaged for the registration.
    """
    if atlas is None or plan.recipe.alignment == "none":
        return None
    import SimpleITK as sitk

    fixed, moving = _image(image, spacing), _image(atlas.image, atlas.spacing)
    transform = affine(fixed, moving)
    if plan.recipe.alignment == "deformable":
        transform = sitk.CompositeTransform([transform, demons(fixed, moving, transform)])
    moved = sitk.TransformToDisplacementField(
        transform, sitk.sitkVectorFloat64, fixed.GetSize(), fixed.GetOrigin(), fixed.GetSpacing()
    )
    # physical (x, y, z) = index * spacing, for both images start at the origin
    size = image.shape[1:]
    index = np.stack(np.meshgrid(*[np.arange(n, dtype=np.float64) for n in size], indexing="ij"))
    places = index * np.reshape(spacing, (3, 1, 1, 1)) + np.moveaxis(sitk.GetArrayViewFromImage(moved), -1, 0)[::-1]
    last = (np.array(atlas.label.shape) - 1).reshape(3, 1, 1, 1)
    voxels = places / np.reshape(atlas.spacing, (3, 1, 1, 1))
    return ((2 * voxels - last) / np.maximum(last, 1)).astype(np.float32)


def _image(array: np.ndarray, spacing: tuple[float, ...]) -> Any:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(array.mean(axis=0).astype(np.float32))
    image.SetSpacing([float(s) for s in reversed(spacing)])
    return image


def affine(fixed: Any, moving: Any) -> Any:
    """Affine transform from ``fixed`` to ``moving`` (SimpleITK images): mutual information, three resolutions."""
    import SimpleITK as sitk

    start = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.AffineTransform(3), sitk.CenteredTransformInitializerFilter.GEOMETRY
    )
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.25, 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 100, relaxationFactor=0.6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([2, 1, 0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    method.SetInitialTransform(start, inPlace=False)
    return method.Execute(fixed, moving)


def demons(fixed: Any, moving: Any, start: Any) -> Any:
    """Diffeomorphic demons from ``fixed`` to ``moving`` after ``start``, coarse to fine: a displacement transform."""
    import SimpleITK as sitk

    outside = float(sitk.GetArrayViewFromImage(moving).min())
    moved = sitk.Resample(moving, fixed, start, sitk.sitkLinear, outside)
    moved = sitk.HistogramMatching(moved, fixed, 256, 12, True)
    method = sitk.DiffeomorphicDemonsRegistrationFilter()
    method.SetNumberOfIterations(DEMONS_ITERATIONS)
    method.SetStandardDeviations(DEMONS_SIGMA)
    field = None
    for factor in (4, 2, 1):
        one, other = (_coarser(image, factor) for image in (fixed, moved))
        if field is None:
            field = method.Execute(one, other)
        else:
            field = sitk.Resample(field, one, sitk.Transform(), sitk.sitkLinear, 0.0, field.GetPixelID())
            field = method.Execute(one, other, field)
    return sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))


def _coarser(image: Any, factor: int) -> Any:
    import SimpleITK as sitk

    if factor == 1:
        return image
    smooth = sitk.SmoothingRecursiveGaussian(image, [0.5 * factor * s for s in image.GetSpacing()])
    return sitk.Shrink(smooth, [max(1, min(factor, n // 8)) for n in image.GetSize()])
