"""Beyond the paper: registering a scan to the atlases, so that its coordinates mean the same anatomy.

Registration gives each voxel of the scan its position in each atlas. The network's coordinate maps (paper, III-C) then
hold these positions, and the atlases' labels there are the atlas prior.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from mre_lowshot.atlas.atlas import Atlas, Atlases
from mre_lowshot.atlas.lesions import organ_shares, without_lesions
from mre_lowshot.atlas.registration.affine import MIN_VOXELS, affine, nearest_affine
from mre_lowshot.atlas.registration.deformable import Classes, deformable
from mre_lowshot.atlas.registration.images import (
    label_image,
    registration_size,
    to_image,
    transformed_positions,
)
from mre_lowshot.config import Plan
from mre_lowshot.devices import free_memory, volume_device
from mre_lowshot.errors import UserError, is_out_of_memory
from mre_lowshot.filters import resized_linear
from mre_lowshot.grid import coordinate_maps, resize_linear, voxel_positions
from mre_lowshot.sampling import TrainingCase
from mre_lowshot.transfers import Array, as_tensor


@dataclass(frozen=True)
class PreviousPass:
    """The results of a scan's first registration and prediction, which guide the next registration.

    Attributes:
        coordinates: (atlases * 3, *size).
        shares: predicted class probabilities (K, *`registration_size`), on any device.
    """

    coordinates: np.ndarray
    shares: Array

    @classmethod
    def each(
        cls, coordinates: Sequence[np.ndarray | None], probabilities: Array, spacing: tuple[float, ...]
    ) -> list[PreviousPass | None]:
        """One for each fold's coordinates, with the common class probabilities (K, *size); ``spacing`` in mm."""
        shares = resized_linear(as_tensor(probabilities), registration_size(probabilities.shape[1:], spacing))
        return [None if maps is None else cls(maps, shares) for maps in coordinates]

    def of_each_atlas(self, atlases: int) -> list[PreviousPass]:
        """One record for each of several atlases, with the same class probabilities."""
        return [PreviousPass(part, self.shares) for part in np.split(self.coordinates, atlases)]


def align(
    atlases: Atlases,
    image: np.ndarray,
    spacing: tuple[float, ...],
    *,
    plan: Plan,
    previous: PreviousPass | None = None,
    device: torch.device | None = None,
) -> np.ndarray | None:
    """Register a preprocessed scan to each atlas.

    Args:
        atlases: of one fold.
        image: (C, *size); channels are averaged, and large scans downsampled, for the registration.
        spacing: mm, one value per axis.
        plan: for the kind of registration.
        previous: the registration starts from the affine transform nearest to the previous one, and matches the
            predicted classes to the atlas's labels besides the image to the atlas's image (`Plan.lesions` apart).
        device: to compute on; default: the CPU, which is also used where a device has too little memory.

    Returns:
        Coordinates (atlases * 3, *size) of the scan's voxels in each atlas, each axis from -1 to 1 over the atlas; None
        where the plan registers nothing (the scan's own volume is the frame then).

    Raises:
        UserError: the scan cannot be registered (too few slices, constant, no overlap).
    """
    kind = plan.recipe.atlas.registration
    if not atlases or kind == "none":
        return None
    passes = previous.of_each_atlas(len(atlases)) if previous else [None] * len(atlases)
    try:
        pairs = zip(atlases, passes, strict=True)
        registered = [_register(atlas, image, spacing, plan=plan, previous=its, device=device) for atlas, its in pairs]
        return np.concatenate(registered)
    except RuntimeError as problem:  # SimpleITK gives the reason in its last line
        short = is_out_of_memory(problem)
        if short and (device is None or device.type == "cpu"):
            raise
        reason = str(problem).strip().splitlines()[-1]
        if not short and min(image.shape[1:]) < MIN_VOXELS:
            size = " x ".join(map(str, image.shape[1:]))
            raise UserError(
                f"cannot be registered to a training scan: it has {size} voxels on the plan's grid, and {MIN_VOXELS} "
                "or more are needed along each axis; give the whole scan, and check the voxel size in its header"
            ) from None
        if not short:
            raise UserError(
                f"cannot be registered to a training scan ({reason}); if such scans are common, "
                "plan with -p NAME --set recipe.atlas.registration=none network.atlas_prior=false"
            ) from None
    free_memory()  # the tensors in the traceback are gone by now
    return align(atlases, image, spacing, plan=plan, previous=previous)


def _register(
    atlas: Atlas,
    image: np.ndarray,
    spacing: tuple[float, ...],
    *,
    plan: Plan,
    previous: PreviousPass | None,
    device: torch.device | None,
) -> np.ndarray:
    device = None if device is None else volume_device(device)
    fixed, moving = to_image(image, spacing), to_image(atlas.image, atlas.spacing)
    classes = None
    if previous is None:
        transform = affine(fixed, moving, device)
    else:
        transform = nearest_affine(atlas_positions(atlas, previous.coordinates, fixed), fixed)
        lesions = plan.lesion_classes
        label = without_lesions(atlas.label, lesions, atlas.spacing)
        classes = Classes(organ_shares(previous.shares, lesions), label_image(label, atlas.spacing))
    if plan.recipe.atlas.registration == "deformable":
        transform = deformable(fixed, moving, transform, classes, device)
    return atlas_coordinates(atlas, transform, fixed, image.shape[1:])


def atlas_coordinates(atlas: Atlas, transform: Any, fixed: Any, size: tuple[int, ...]) -> np.ndarray:
    """Coordinates (3, *size) in the atlas of a scan of ``size``, from the transform found for ``fixed``, its image for
    the registration (`to_image`).

    Raises:
        RuntimeError: the transform is not finite.
    """
    positions = transformed_positions(transform, fixed)
    for axis, (side, length) in enumerate(zip(atlas.spacing, atlas.label.shape, strict=True)):
        positions[axis] = (2 * positions[axis] / side - (length - 1)) / max(length - 1, 1)
    if not np.isfinite(positions).all():
        raise RuntimeError("the transform is not finite")
    return np.stack([resize_linear(axis, size) for axis in positions])


def atlas_positions(atlas: Atlas, coordinates: np.ndarray, fixed: Any) -> np.ndarray:
    """The inverse of `atlas_coordinates`: positions in mm (3, *size of ``fixed``) of coordinates (3, *any size)."""
    positions = np.stack([resize_linear(axis, fixed.GetSize()[::-1]) for axis in coordinates]).astype(np.float64)
    for axis, (side, length) in enumerate(zip(atlas.spacing, atlas.label.shape, strict=True)):
        positions[axis] = (positions[axis] * max(length - 1, 1) + (length - 1)) / 2 * side
    return positions


def align_training_cases(
    cases: Sequence[TrainingCase],
    atlases: Atlases,
    *,
    plan: Plan,
    names: Sequence[str] = (),
    device: torch.device | None = None,
) -> list[TrainingCase]:
    """The training scans with their coordinates in every atlas; in the atlas made of the scan itself these are the
    coordinates of its own voxels.

    Raises:
        UserError: one cannot be registered to another; ``names`` are given in the message.
    """
    aligned = []
    for number, case in enumerate(cases):
        own = number if number < len(atlases) else None
        if len(atlases) > 1 or own is None:
            maps = []
            for other, atlas in enumerate(atlases):
                try:
                    if other == own:
                        found: np.ndarray | None = _own_coordinates(case)
                    else:
                        found = align((atlas,), case.image, case.spacing, plan=plan, device=device)
                except UserError as problem:
                    pair = [names[n] if names else str(n) for n in (number, other)]
                    raise UserError(f"training cases {pair[0]} and {pair[1]}: one {problem}") from None
                maps.append(found)
            present = [found for found in maps if found is not None]
            case = replace(case, coordinates=np.concatenate(present) if present else None)
        aligned.append(replace(case, own=own))
    return aligned


def _own_coordinates(case: TrainingCase) -> np.ndarray:
    shape = case.label.shape
    return coordinate_maps(voxel_positions([0] * len(shape), shape), shape)
