"""Deformable registration: discrete stages for large displacements, then demons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mre_lowshot.atlas.label_fusion import class_shares
from mre_lowshot.atlas.registration import discrete
from mre_lowshot.atlas.registration.demons import demons
from mre_lowshot.atlas.registration.images import in_unit, scaled_affine, scaled_field, unit_of, warp

# Of the discrete search, per stage: side of a block in voxels, search radius in blocks; radius of the patches whose
# self-similarity is the feature, and their distance, in voxels. Large blocks need features of a larger neighbourhood.
STAGES = ((4, 4, 2, 3), (4, 2, 2, 3), (3, 3, 1, 2), (2, 2, 1, 2))
MIN_BLOCKS = 4  # along an axis


@dataclass(frozen=True)
class Classes:
    """Class probabilities that are matched besides the images.

    All K classes take part, background too: an ignored voxel then differs equally from every class.

    Attributes:
        fixed: (K, *size) in the fixed image.
        moving: the moving image's label map (SimpleITK, int16, any grid).
    """

    fixed: np.ndarray
    moving: Any

    def on_grid(self, fixed: Any, transform: Any) -> tuple[np.ndarray, np.ndarray]:
        """The class probabilities of the fixed image, and of the moving one after warping: each (K, *size)."""
        import SimpleITK as sitk

        moved = sitk.Resample(self.moving, fixed, transform, sitk.sitkNearestNeighbor, 0.0)
        return self.fixed, class_shares(sitk.GetArrayViewFromImage(moved), len(self.fixed))


def deformable(fixed: Any, moving: Any, start: Any, classes: Classes | None = None) -> Any:
    """The transform from ``fixed`` to ``moving`` (SimpleITK images) that refines ``start``.

    Discrete stages displace blocks of decreasing size to where image features, and ``classes`` where given, match best
    (`discrete`), each stage after the one before; demons follow (`demons`). Lengths are given in
    a unit that follows the voxels. ``start`` is affine.
    """
    unit = unit_of(fixed)
    if unit == 1:
        return _deformable(fixed, moving, start, classes)
    own, other = in_unit(fixed, unit), in_unit(moving, unit)
    scaled = Classes(classes.fixed, in_unit(classes.moving, unit)) if classes else None
    found = _deformable(own, other, scaled_affine(start, 1 / unit), scaled)
    return scaled_field(found, own, unit, fixed)


def _deformable(fixed: Any, moving: Any, start: Any, classes: Classes | None) -> Any:
    import SimpleITK as sitk

    found = start
    for stage in STAGES:
        known = classes.on_grid(fixed, found) if classes else None
        moved = warp(fixed, moving, found)
        found = sitk.CompositeTransform([found, _discrete_stage(fixed, moved, known, *stage)])
    return sitk.CompositeTransform([found, demons(fixed, moving, found)])


def _discrete_stage(
    fixed: Any,
    moved: Any,
    classes: tuple[np.ndarray, np.ndarray] | None,
    side: int,
    reach: int,
    radius: int,
    distance: int,
) -> Any:
    """The displacement from ``fixed`` to ``moved`` found with blocks about ``side`` voxels wide. On anisotropic grids
    the blocks' sides are equal in mm, as far as voxels allow."""
    import SimpleITK as sitk

    spacing = np.array(fixed.GetSpacing())[::-1]
    length = side * spacing.prod() ** (1 / 3)
    step = [
        int(np.clip(np.rint(length / s), 1, max(1, n // MIN_BLOCKS)))
        for s, n in zip(spacing, fixed.GetSize()[::-1], strict=True)
    ]
    arrays = sitk.GetArrayFromImage(fixed), sitk.GetArrayFromImage(moved)
    found = discrete.displacement(*arrays, step, reach, radius, distance, classes)
    vectors = np.moveaxis(found * spacing.reshape(3, 1, 1, 1), 0, -1)[..., ::-1]  # (z, y, x) voxels to (x, y, z) mm
    field = sitk.GetImageFromArray(np.ascontiguousarray(vectors, dtype=np.float64), isVector=True)
    field.CopyInformation(fixed)
    return sitk.DisplacementFieldTransform(field)
