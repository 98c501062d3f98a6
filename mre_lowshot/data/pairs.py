"""Whether a label map lies on its image's grid, and which of the possible fixes is the right one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.lost_headers import UNKNOWN, copy_command, is_default
from mre_lowshot.data.lost_headers import grid_fix as lost_fix
from mre_lowshot.data.volume import Volume

RESAMPLE = "resample the label map onto the image (nearest neighbour), or export the pair again"


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
    if unknown[0] or not is_default(label.geometry):
        return lost_fix(
            [image.geometry, label.geometry],
            [image.notes, label.notes],
            [image_path, label_path],
            names=("image", "label map"),
            resample=grid_fix(image.geometry, label.geometry, image_path, label_path),
        )
    return grid_fix(image.geometry, label.geometry, image_path, label_path)


def grid_fix(image: Geometry, label: Geometry, image_path: Path, label_path: Path) -> str:
    """What to do with a label map whose grid is not its image's."""
    if image.dimensions == 2 and image.shape == label.shape:
        return "both have the same number of pixels; give both files the same pixel size"
    if image.file_grid().shape != label.file_grid().shape:
        return RESAMPLE
    copy = f"copy the image's header into it: {copy_command(image_path, label_path)}"
    if is_default(label):
        return f"the label map has lost its header (spacing 1, no position), so do not resample it; {copy}"
    return f"{RESAMPLE}; or, if it was drawn on this image's voxels, {copy}"
