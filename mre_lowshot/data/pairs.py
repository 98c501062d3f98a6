"""Whether a label map lies on its image's grid, and which of the possible fixes is the right one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mre_lowshot.data.geometry import GEOMETRY_TOLERANCE, Geometry
from mre_lowshot.data.volume import Volume

RESAMPLE = "resample the label map onto the image (nearest neighbour), or export the pair again"
_AXES = {"L": 2, "R": 2, "P": 1, "A": 1, "S": 0, "I": 0}  # axis of an LPS array (z, y, x) by a letter of the axis code


def pair_problems(image: Volume, label: Volume, *, image_path: Path, label_path: Path) -> list[str]:
    """Problems of an image (C, D, H, W) with its label map (D, H, W): another grid, or the image itself."""
    different = image.geometry.differences(label.geometry)
    if different:
        fix = _grid_fix(image.geometry, label.geometry, image_path, label_path)
        return [f"image and label map are not on one grid: {'; '.join(different)}; {fix}"]
    if len(image.array) == 1 and np.array_equal(image.array[0], label.array):
        return [f"the label map {label_path.name} is identical with the image; save the annotation in its place"]
    return []


def _grid_fix(image: Geometry, label: Geometry, image_path: Path, label_path: Path) -> str:
    if image.dimensions == 2 and image.shape == label.shape:
        return "both have the same number of pixels; give both files the same pixel size"
    if _stored_shape(image) != _stored_shape(label):
        return RESAMPLE
    copy = f"copy the image's header into it: {_copy_command(image_path, label_path)}"
    if _is_default(label):
        return f"the label map has lost its header (spacing 1, no position), so do not resample it; {copy}"
    return f"{RESAMPLE}; or, if it was drawn on this image's voxels, {copy}"


def _stored_shape(geometry: Geometry) -> tuple[int, ...]:
    """Number of voxels in the order of the file's own axes."""
    axes = [_AXES.get(letter, -1) for letter in geometry.orientation]
    if sorted(axes) != [0, 1, 2]:
        return tuple(sorted(geometry.shape))
    return tuple(geometry.shape[axis] for axis in axes)


def _is_default(geometry: Geometry) -> bool:
    """Whether a header is what tools write without one: spacing 1, axes parallel to the patient's, position 0."""
    last = np.array(geometry.shape[::-1]) - 1.0  # the origin of an axis that is turned round lies at its other end
    origin = np.abs(np.array(geometry.origin))
    at_zero = (origin < GEOMETRY_TOLERANCE) | (np.abs(origin - last) < GEOMETRY_TOLERANCE)
    straight = np.allclose(np.abs(np.array(geometry.direction)), np.eye(3).ravel(), atol=GEOMETRY_TOLERANCE)
    return bool(np.allclose(geometry.spacing, 1) and at_zero.all() and straight)


def _copy_command(image: Path, label: Path) -> str:
    names = [f"{path.parent.name}/{path.name}" for path in (image, label)]
    return (
        f"python -c \"import SimpleITK as s; i, m = map(s.ReadImage, ('{names[0]}', '{names[1]}')); "
        f"m.CopyInformation(i); s.WriteImage(m, '{names[1]}', True)\""
    )
