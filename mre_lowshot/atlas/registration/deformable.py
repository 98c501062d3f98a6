"""Deformable registration: large displacements by trying many, then demons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mre_lowshot.registration import discrete
from mre_lowshot.registration.images import brought, coarser, locally_normalised
from mre_lowshot.sampling import class_shares

# Of the discrete search: side of a block in voxels, reach in blocks; radius of the patches whose likeness is the
# feature, and their distance from the voxel, in voxels. Large blocks want features that stand for more of the image.
STAGES = ((4, 4, 2, 3), (4, 2, 2, 3), (3, 3, 1, 2), (2, 2, 1, 2))
FEWEST_BLOCKS = 4  # along an axis
DEMONS_ITERATIONS = 50  # at each of three resolutions
DEMONS_SIGMA = 1.0  # voxels; smoothing of the displacement after each iteration


@dataclass(frozen=True)
class Classes:
    """What is known of classes: their shares in the fixed image (K, *size), and the moving one's label map (SimpleITK,
    int16, any grid). All K, background too: an ignored voxel is then as unlike one class as any other."""

    fixed: np.ndarray
    moving: Any

    def both(self, fixed: Any, transform: Any) -> tuple[np.ndarray, np.ndarray]:
        """The shares in the fixed image, and in the moving one brought to it by ``transform``."""
        import SimpleITK as sitk

        moved = sitk.Resample(self.moving, fixed, transform, sitk.sitkNearestNeighbor, 0.0)
        return self.fixed, class_shares(sitk.GetArrayViewFromImage(moved), len(self.fixed))


def deformable(fixed: Any, moving: Any, start: Any, classes: Classes | None = None) -> Any:
    """The transform from ``fixed`` to ``moving`` (SimpleITK images) after ``start``: blocks of shrinking size are each
    moved to where they fit (`discrete`), by what is known of ``classes`` too, each stage after the one before; then
    demons."""
    import SimpleITK as sitk

    found = start
    for stage in STAGES:
        known = classes.both(fixed, found) if classes else None
        moved = brought(fixed, moving, found)
        found = sitk.CompositeTransform([found, _moved_blocks(fixed, moved, known, *stage)])
    return sitk.CompositeTransform([found, demons(fixed, moving, found)])


def _moved_blocks(
    fixed: Any,
    moved: Any,
    classes: tuple[np.ndarray, np.ndarray] | None,
    side: int,
    reach: int,
    radius: int,
    distance: int,
) -> Any:
    """The displacement from ``fixed`` to ``moved`` that blocks about ``side`` voxels wide find; on anisotropic grids
    their sides are alike in mm, as far as voxels allow."""
    import SimpleITK as sitk

    spacing = np.array(fixed.GetSpacing())[::-1]
    length = side * spacing.prod() ** (1 / 3)
    step = [
        int(np.clip(np.rint(length / s), 1, max(1, n // FEWEST_BLOCKS)))
        for s, n in zip(spacing, fixed.GetSize()[::-1], strict=True)
    ]
    arrays = sitk.GetArrayFromImage(fixed), sitk.GetArrayFromImage(moved)
    found = discrete.displacement(*arrays, step, reach, radius, distance, classes)
    vectors = np.moveaxis(found * spacing.reshape(3, 1, 1, 1), 0, -1)[..., ::-1]  # (z, y, x) voxels to (x, y, z) mm
    field = sitk.GetImageFromArray(np.ascontiguousarray(vectors, dtype=np.float64), isVector=True)
    field.CopyInformation(fixed)
    return sitk.DisplacementFieldTransform(field)


def demons(fixed: Any, moving: Any, start: Any) -> Any:
    """Symmetric demons from ``fixed`` to ``moving`` after ``start``, coarse to fine: a displacement transform.

    They compare intensities, which scans of two people or two scanners do not share even in one organ: both images
    are first normalised by their surroundings, so that edges and texture are compared.
    """
    import SimpleITK as sitk

    moved = brought(fixed, moving, start)
    method = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    method.SetNumberOfIterations(DEMONS_ITERATIONS)
    method.SetStandardDeviations(DEMONS_SIGMA)
    field = None
    for factor in (4, 2, 1):
        one, other = (locally_normalised(coarser(image, factor)) for image in (fixed, moved))
        if field is None:
            field = method.Execute(one, other)
        else:
            field = sitk.Resample(field, one, sitk.Transform(), sitk.sitkLinear, 0.0, field.GetPixelID())
            field = method.Execute(one, other, field)
    return sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))
