"""Bringing a scan to the labelled one, the atlas, so that its coordinates mean the same anatomy.

Registration looks at images alone. It gives each voxel of the scan its place in the atlas, which is what the network's
coordinate maps (paper, III-C) then hold; the atlas's labels at that place can be told to the network too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from mre_lowshot.errors import UserError
from mre_lowshot.preprocessing.resampling import resize_image, resize_linear
from mre_lowshot.sampling import Prior, TrainingCase, coordinate_maps, voxel_positions
from mre_lowshot.specs import Plan

MOST_ATLASES = 5  # a new scan is registered to each, and each training scan to each other
MOST_VOXELS = 500_000  # registered at; anatomy is found on a coarse grid as well, in seconds
STARTS = (-0.4, -0.2, 0.0, 0.2, 0.4)  # of the scan's length, along z
DEMONS_ITERATIONS = 50  # at each of three resolutions
DEMONS_SIGMA = 1.0  # voxels; smoothing of the displacement after each iteration
LOCAL_SIGMA = 2.0  # voxels; the surroundings whose mean and spread demons take out


@dataclass(frozen=True)
class Atlas:
    """A preprocessed labelled scan: image (C, *size) float32, label (*size) int16, spacing in mm."""

    image: np.ndarray
    label: np.ndarray
    spacing: tuple[float, ...]

    @classmethod
    def of(cls, case: TrainingCase) -> Atlas:
        """The atlas that a training case is, rounded as a checkpoint keeps it: scans align to the same later on."""
        return cls(case.image.astype(np.float16).astype(np.float32), case.label, case.spacing)

    def to_tensors(self) -> dict[str, Any]:
        """For a checkpoint; the image is kept in half precision."""
        return {
            "image": torch.from_numpy(self.image.astype(np.float16)),
            "label": torch.from_numpy(self.label.astype(np.int16)),
            "spacing": list(self.spacing),
        }

    @classmethod
    def from_tensors(cls, data: dict[str, Any]) -> Atlas:
        image = data["image"].cpu().numpy().astype(np.float32)
        return cls(image, data["label"].cpu().numpy(), tuple(data["spacing"]))


Atlases = tuple[Atlas, ...]
"""Of a fold, at most `MOST_ATLASES` of its training scans; the first is the frame of the coordinates. Empty where the
plan needs none."""


def make_atlases(cases: Sequence[TrainingCase], plan: Plan) -> Atlases:
    """The atlases of a fold: its first `MOST_ATLASES` training scans where they are registered and their labels are
    told to the network, only the first where it is but the frame of the coordinates."""
    aligned, prior = plan.recipe.alignment != "none", plan.network.atlas_prior
    chosen = cases[:MOST_ATLASES] if aligned and prior else cases[: int(aligned or prior)]
    return tuple(Atlas.of(case) for case in chosen)


def in_atlases(
    cases: Sequence[TrainingCase], atlases: Atlases, plan: Plan, names: Sequence[str] = ()
) -> list[TrainingCase]:
    """The training scans with their places in every atlas; in itself a scan lies where it lies.

    Raises:
        UserError: one cannot be registered to another; it is told by its place in ``names``.
    """
    placed = []
    for number, case in enumerate(cases):
        own = number if number < len(atlases) else None
        if len(atlases) > 1 or own is None:
            fields = []
            for other, atlas in enumerate(atlases):
                try:
                    field = _own_place(case) if other == own else align((atlas,), case.image, case.spacing, plan)
                except UserError as problem:
                    pair = [names[n] if names else str(n) for n in (number, other)]
                    raise UserError(f"training cases {pair[0]} and {pair[1]}: one {problem}") from None
                fields.append(field)
            there = [field for field in fields if field is not None]
            case = replace(case, coordinates=np.concatenate(there) if there else None)
        placed.append(replace(case, own=own))
    return placed


def _own_place(case: TrainingCase) -> np.ndarray:
    shape = case.label.shape
    return coordinate_maps(voxel_positions([0] * len(shape), shape), shape)


def make_prior(atlases: Atlases, plan: Plan) -> Prior | None:
    """The prior that the plan's network takes from the atlases, None for none."""
    if not atlases or not plan.network.atlas_prior:
        return None
    return Prior(tuple(atlas.label for atlas in atlases), plan.network.classes)


def align(atlases: Atlases, image: np.ndarray, spacing: tuple[float, ...], plan: Plan) -> np.ndarray | None:
    """Coordinates (atlases * 3, *size) of a preprocessed scan's voxels in each atlas, each axis -1 to 1 over it; None
    where the plan aligns nothing (the scan's own volume is the frame then).

    ``image`` (C, *size) with ``spacing`` in mm. Channels are averaged for the registration, large scans are thinned.

    Raises:
        UserError: the scan cannot be registered (a few slices only, constant, nothing in common).
    """
    if not atlases or plan.recipe.alignment == "none":
        return None
    try:
        return np.concatenate([_register(atlas, image, spacing, plan.recipe.alignment) for atlas in atlases])
    except RuntimeError as problem:  # too thin, constant, no overlap: SimpleITK says which, in its last line
        reason = str(problem).strip().splitlines()[-1]
        raise UserError(
            f"cannot be registered to a training scan ({reason}); if such scans are usual, "
            "plan with --set recipe.alignment=none network.atlas_prior=false"
        ) from None


def _register(atlas: Atlas, image: np.ndarray, spacing: tuple[float, ...], kind: str) -> np.ndarray:
    import SimpleITK as sitk

    fixed, moving = _image(image, spacing), _image(atlas.image, atlas.spacing)
    transform = affine(fixed, moving)
    if kind == "deformable":
        transform = sitk.CompositeTransform([transform, demons(fixed, moving, transform)])
    moved = sitk.TransformToDisplacementField(
        transform, sitk.sitkVectorFloat64, fixed.GetSize(), fixed.GetOrigin(), fixed.GetSpacing()
    )
    places = np.moveaxis(sitk.GetArrayFromImage(moved), -1, 0)[::-1]  # (x, y, z) to (z, y, x), mm
    index = np.indices(places.shape[1:])
    for axis in range(3):
        x = 2 - axis
        places[axis] += fixed.GetOrigin()[x] + index[axis] * fixed.GetSpacing()[x]
        last = atlas.label.shape[axis] - 1
        places[axis] = (2 * places[axis] / atlas.spacing[axis] - last) / max(last, 1)
    if not np.isfinite(places).all():
        raise RuntimeError("the transform is not finite")
    return np.stack([resize_linear(axis, image.shape[1:]) for axis in places])


def _image(array: np.ndarray, spacing: tuple[float, ...]) -> Any:
    """The channels' mean as a SimpleITK image, thinned to `MOST_VOXELS`; mm from the centre of the full grid's first
    voxel."""
    import SimpleITK as sitk

    size = array.shape[1:]
    factor = max(1.0, (np.prod(size) / MOST_VOXELS) ** (1 / 3))
    thinned = tuple(max(1, int(n / factor)) for n in size)
    mean = resize_image(array.mean(axis=0, keepdims=True), thinned, order=1)[0]
    image = sitk.GetImageFromArray(mean.astype(np.float32))
    coarse = [s * old / new for s, old, new in zip(spacing, size, thinned, strict=True)]
    image.SetSpacing([float(s) for s in reversed(coarse)])
    image.SetOrigin([float(c - s) / 2 for c, s in zip(reversed(coarse), reversed(spacing), strict=True)])
    return image


def affine(fixed: Any, moving: Any) -> Any:
    """Affine transform from ``fixed`` to ``moving`` (SimpleITK images): mutual information, coarse to fine.

    Scans cover different lengths of the body, people differ in size, and a start too far off ends in a wrong place:
    several starts along the body (z), as large as they are and scaled to each other's width and depth, are followed on
    a coarse grid. The one whose outcome correlates best over all of ``fixed``, both normalised by their surroundings
    (without that, more of the darkness around a body counts as much as its organs), goes on.
    """
    one, other = _coarser(fixed, 2), _coarser(moving, 2)
    normalised = _locally_normalised(one)
    best, best_score = None, -np.inf
    for start in _starts(fixed, moving):
        try:
            found = _descend(one, other, start, [2], [1])
        except RuntimeError:  # this start leaves too little in common
            continue
        score = _correlation(normalised, other, found)
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
    comes to lie; where ``moving`` ends, its darkest value stands."""
    import SimpleITK as sitk

    darkest = float(sitk.GetArrayViewFromImage(moving).min())
    moved = sitk.Resample(moving, normalised, transform, sitk.sitkLinear, darkest)
    one, other = (sitk.GetArrayFromImage(image).ravel() for image in (normalised, _locally_normalised(moved)))
    if one.std() == 0 or other.std() == 0:
        return -1.0
    return float(np.corrcoef(one, other)[0, 1])


def demons(fixed: Any, moving: Any, start: Any) -> Any:
    """Symmetric demons from ``fixed`` to ``moving`` after ``start``, coarse to fine: a displacement transform.

    They compare intensities, which scans of two people or two scanners do not share even in one organ: both images
    are first normalised by their surroundings, so that edges and texture are compared.
    """
    import SimpleITK as sitk

    outside = float(sitk.GetArrayViewFromImage(moving).min())
    moved = sitk.Resample(moving, fixed, start, sitk.sitkLinear, outside)
    method = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    method.SetNumberOfIterations(DEMONS_ITERATIONS)
    method.SetStandardDeviations(DEMONS_SIGMA)
    field = None
    for factor in (4, 2, 1):
        one, other = (_locally_normalised(_coarser(image, factor)) for image in (fixed, moved))
        if field is None:
            field = method.Execute(one, other)
        else:
            field = sitk.Resample(field, one, sitk.Transform(), sitk.sitkLinear, 0.0, field.GetPixelID())
            field = method.Execute(one, other, field)
    return sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))


def _locally_normalised(image: Any) -> Any:
    """Less the mean of its surroundings, over their standard deviation (a tenth of the whole image's is added, so that
    noise in even areas stays small)."""
    import SimpleITK as sitk
    from scipy.ndimage import gaussian_filter

    array = sitk.GetArrayFromImage(image).astype(np.float64)
    mean = gaussian_filter(array, LOCAL_SIGMA)
    spread = np.sqrt(np.maximum(gaussian_filter(array**2, LOCAL_SIGMA) - mean**2, 0))
    normalised = sitk.GetImageFromArray(((array - mean) / (spread + 0.1 * array.std() + 1e-12)).astype(np.float32))
    normalised.CopyInformation(image)
    return normalised


def _coarser(image: Any, factor: int) -> Any:
    import SimpleITK as sitk

    if factor == 1:
        return image
    smooth = sitk.SmoothingRecursiveGaussian(image, [0.5 * factor * s for s in image.GetSpacing()])
    return sitk.Shrink(smooth, [max(1, min(factor, n // 8)) for n in image.GetSize()])
