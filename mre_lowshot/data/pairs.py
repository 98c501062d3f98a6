"""Whether a label map lies on its image's grid, and which of the possible fixes is the right one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.volume import Volume

RESAMPLE = "resample the label map onto the image (nearest neighbour), or export the pair again"
UNKNOWN = "orientation unknown"  # begins the note of a header without a position
TOLERANCE = 1e-3  # of a default header's values, which are whole numbers


def pair_problems(image: Volume, label: Volume, *, image_path: Path, label_path: Path) -> list[str]:
    """Problems of an image (C, D, H, W) with its label map (D, H, W): another grid, or the image itself."""
    different = image.geometry.differences(label.geometry)
    if different:
        fix = _fix(image, label, image_path, label_path)
        doubts = [f"{what}: {n}" for what, v in (("image", image), ("label map", label)) for n in v.notes]
        why = f" ({'; '.join(doubts)})" if doubts else ""
        return [f"image and label map are not on one grid: {'; '.join(different)}{why}; {fix}"]
    if len(image.array) == 1 and np.array_equal(image.array[0], label.array):
        return [f"the label map {label_path.name} is identical with the image; save the annotation in its place"]
    return []


def _fix(image: Volume, label: Volume, image_path: Path, label_path: Path) -> str:
    unknown = [any(note.startswith(UNKNOWN) for note in volume.notes) for volume in (image, label)]
    if image.geometry.file_grid().shape == label.geometry.file_grid().shape and unknown[0] != unknown[1]:
        lost, source, target = (
            ("image", label_path, image_path) if unknown[0] else ("label map", image_path, label_path)
        )
        return f"the {lost} has lost its position, so resample neither; copy the header of the other into it: " \
               f"{_copy_command(source, target)}"  # fmt: skip
    return grid_fix(image.geometry, label.geometry, image_path, label_path)


def grid_fix(image: Geometry, label: Geometry, image_path: Path, label_path: Path) -> str:
    """What to do with a label map whose grid is not its image's."""
    if image.dimensions == 2 and image.shape == label.shape:
        return "both have the same number of pixels; give both files the same pixel size"
    if image.file_grid().shape != label.file_grid().shape:
        return RESAMPLE
    copy = f"copy the image's header into it: {_copy_command(image_path, label_path)}"
    if _is_default(label):
        return f"the label map has lost its header (spacing 1, no position), so do not resample it; {copy}"
    return f"{RESAMPLE}; or, if it was drawn on this image's voxels, {copy}"


def _is_default(geometry: Geometry) -> bool:
    """Whether a header is what tools write without one: spacing 1, axes parallel to the patient's, position 0."""
    last = np.array(geometry.shape[::-1]) - 1.0  # the origin of an axis that is turned round lies at its other end
    origin = np.abs(np.array(geometry.origin))
    at_zero = (origin < TOLERANCE) | (np.abs(origin - last) < TOLERANCE)
    straight = np.allclose(np.abs(np.array(geometry.direction)), np.eye(3).ravel(), atol=TOLERANCE)
    return bool(np.allclose(geometry.spacing, 1) and at_zero.all() and straight)


def _copy_command(image: Path, label: Path) -> str:
    names = [f"{path.parent.name}/{path.name}" for path in (image, label)]
    return (
        f"python -c \"import SimpleITK as s; i, m = map(s.ReadImage, ('{names[0]}', '{names[1]}')); "
        f"m.CopyInformation(i); s.WriteImage(m, '{names[1]}', True)\""
    )
