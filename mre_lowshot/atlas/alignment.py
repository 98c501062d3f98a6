"""Bringing a scan to the labelled one, the atlas, so that its coordinates mean the same anatomy.

Registration looks at images, and once more at what was predicted where that helps. It gives each voxel of the scan its
place in the atlas, which is what the network's coordinate maps (paper, III-C) then hold; the atlas's labels at that
place can be told to the network too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from mre_lowshot.errors import UserError
from mre_lowshot.preprocessing.resampling import resize_image, resize_linear
from mre_lowshot.registration.affine import affine, nearest_affine
from mre_lowshot.registration.deformable import Classes, deformable
from mre_lowshot.registration.images import label_image, mapped, thinned_size, to_image
from mre_lowshot.sampling import Prior, TrainingCase, coordinate_maps, voxel_positions
from mre_lowshot.specs import Plan

MOST_ATLASES = 5  # a new scan is registered to each, and each training scan to each other


@dataclass(frozen=True)
class Atlas:
    """A preprocessed labelled scan: image (C, *size) float32, label (*size) int16, spacing in mm; ``mirrored``: the
    mirror image of one (`mirroring`)."""

    image: np.ndarray
    label: np.ndarray
    spacing: tuple[float, ...]
    mirrored: bool = False

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
plan needs none. Mirror images follow (`mirroring.with_images`)."""


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
    return together(atlases, plan.network.classes)


def together(atlases: Sequence[Atlas], classes: int) -> Prior:
    """What several atlases say of ``classes`` classes; their images, channels averaged as for the registration, tell
    which to believe where."""
    images = sum(atlas.mirrored for atlas in atlases)
    scans = tuple(atlas.image.mean(axis=0) for atlas in atlases) if len(atlases) > 1 else ()
    return Prior(tuple(atlas.label for atlas in atlases), classes, images, scans)


@dataclass(frozen=True)
class Former:
    """What a first registration and prediction found of a scan: coordinates (atlases * 3, *size), and the classes'
    shares (K, *`thinned_size`)."""

    coordinates: np.ndarray
    shares: np.ndarray

    @classmethod
    def each(
        cls, fields: Sequence[np.ndarray | None], probabilities: np.ndarray, spacing: tuple[float, ...]
    ) -> list[Former | None]:
        """One for each model's coordinates, from the class probabilities (K, *size) of them all; ``spacing`` in mm."""
        shares = resize_image(probabilities, thinned_size(probabilities.shape[1:], spacing), order=1)
        return [None if field is None else cls(field, shares) for field in fields]

    def of_each_atlas(self, atlases: int) -> list[Former]:
        return [Former(part, self.shares) for part in np.split(self.coordinates, atlases)]


def align(
    atlases: Atlases,
    image: np.ndarray,
    spacing: tuple[float, ...],
    plan: Plan,
    former: Former | None = None,
) -> np.ndarray | None:
    """Coordinates (atlases * 3, *size) of a preprocessed scan's voxels in each atlas, each axis -1 to 1 over it; None
    where the plan aligns nothing (the scan's own volume is the frame then).

    ``image`` (C, *size) with ``spacing`` in mm. Channels are averaged for the registration, large scans are thinned.
    What is known from a ``former`` registration and prediction makes another: the affine transform is the one nearest
    to the former registration, and what was predicted is brought to the atlas's labels as the image to its image.

    Raises:
        UserError: the scan cannot be registered (a few slices only, constant, nothing in common).
    """
    if not atlases or plan.recipe.alignment == "none":
        return None
    known = former.of_each_atlas(len(atlases)) if former else [None] * len(atlases)
    try:
        return np.concatenate(
            [
                _register(atlas, image, spacing, plan.recipe.alignment, its)
                for atlas, its in zip(atlases, known, strict=True)
            ]
        )
    except RuntimeError as problem:  # too thin, constant, no overlap: SimpleITK says which, in its last line
        reason = str(problem).strip().splitlines()[-1]
        raise UserError(
            f"cannot be registered to a training scan ({reason}); if such scans are usual, "
            "plan with --set recipe.alignment=none network.atlas_prior=false"
        ) from None


def _register(
    atlas: Atlas, image: np.ndarray, spacing: tuple[float, ...], kind: str, former: Former | None
) -> np.ndarray:
    fixed, moving = to_image(image, spacing), to_image(atlas.image, atlas.spacing)
    classes = None
    if former is None:
        transform = affine(fixed, moving)
    else:
        transform = nearest_affine(places_in(atlas, former.coordinates, fixed), fixed)
        classes = Classes(former.shares, label_image(atlas.label, atlas.spacing))
    if kind == "deformable":
        transform = deformable(fixed, moving, transform, classes)
    return coordinates_in(atlas, transform, fixed, image.shape[1:])


def coordinates_in(atlas: Atlas, transform: Any, fixed: Any, size: tuple[int, ...]) -> np.ndarray:
    """Coordinates (3, *size) in the atlas of a scan of ``size`` whose registered image (`to_image`) is ``fixed``.

    Raises:
        RuntimeError: the transform is not finite.
    """
    places = mapped(transform, fixed)
    for axis, (side, length) in enumerate(zip(atlas.spacing, atlas.label.shape, strict=True)):
        places[axis] = (2 * places[axis] / side - (length - 1)) / max(length - 1, 1)
    if not np.isfinite(places).all():
        raise RuntimeError("the transform is not finite")
    return np.stack([resize_linear(axis, size) for axis in places])


def places_in(atlas: Atlas, coordinates: np.ndarray, fixed: Any) -> np.ndarray:
    """The other way round: `mapped`'s places (3, *size of ``fixed``), mm, of coordinates (3, *any size)."""
    places = np.stack([resize_linear(axis, fixed.GetSize()[::-1]) for axis in coordinates]).astype(np.float64)
    for axis, (side, length) in enumerate(zip(atlas.spacing, atlas.label.shape, strict=True)):
        places[axis] = (places[axis] * max(length - 1, 1) + (length - 1)) / 2 * side
    return places
