"""The mirror image of a labelled scan as another labelled scan, where left and right are alike.

A brain's halves are the same anatomy drawn twice. Registered as it is, never turned back, the mirror image lays each
half on the other: to the scan itself it is another subject with the errors that registration makes between subjects,
which no random bending of coordinates resembles as well; to a new scan it brings a second opinion. What it brings
counts half, for no half is quite like the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from mre_lowshot.alignment import Atlas, align
from mre_lowshot.errors import UserError
from mre_lowshot.inference.quality import label_agreement
from mre_lowshot.losses import IGNORE
from mre_lowshot.planners.rules import other_side
from mre_lowshot.sampling import TrainingCase, take_label
from mre_lowshot.specs import Plan

WEIGHT = 0.5
MOST_SCANS = 3  # with more there are enough atlases


def partners(labels: Mapping[str, int]) -> list[int]:
    """For each class, background first, the class that it is in a mirror image: ``left_kidney`` for ``right_kidney``,
    else itself."""
    numbers = {name.lower(): number for name, number in labels.items()}
    found = {number: numbers.get(other_side(name) or "", number) for name, number in labels.items()}
    return [found[number] for number in range(len(labels))]


def image_of(case: TrainingCase, labels: Mapping[str, int]) -> TrainingCase:
    """The scan with left and right (the last axis) exchanged, sides in the names of ``labels`` too; not placed."""
    table = np.array([*partners(labels), IGNORE], dtype=case.label.dtype)  # IGNORE, -1, finds the last
    return TrainingCase(
        np.ascontiguousarray(case.image[..., ::-1]),
        np.ascontiguousarray(table[case.label[..., ::-1]]),
        case.spacing,
        weight=WEIGHT,
    )


def measured(cases: Sequence[TrainingCase], plan: Plan) -> list[dict[str, float]]:
    """How well each training scan's mirrored labels, registered to it (affine), agree with its own: Dice of each class
    that either has, by name, where neither is ignored; none where the image cannot be registered. An empty list where
    the recipe does not ask, or where there are more than `MOST_SCANS`."""
    told = plan.recipe.alignment != "none" and plan.network.atlas_prior
    if not (told and plan.recipe.mirror_images) or len(cases) > MOST_SCANS:
        return []
    affine = replace(plan, recipe=replace(plan.recipe, alignment="affine"))
    return [_likeness(case, image_of(case, plan.labels), affine) for case in cases]


def _likeness(case: TrainingCase, image: TrainingCase, plan: Plan) -> dict[str, float]:
    try:
        place = align((Atlas.of(image),), case.image, case.spacing, plan)
    except UserError:
        place = None
    if place is None:
        return {}
    last = np.asarray(image.label.shape).reshape(-1, 1, 1, 1) - 1
    brought = take_label(image.label, (place + 1) / 2 * last)
    known = (case.label != IGNORE) & (brought != IGNORE)
    names = {number: name for name, number in plan.labels.items()}
    dice = label_agreement(brought[known], case.label[known], len(names))
    return {names[number]: value for number, value in dice.items() if np.isfinite(value)}


def placed(case: TrainingCase, image: TrainingCase) -> TrainingCase:
    """``image`` with its places in the atlases, scans first, then their images: those of ``case``, mirrored. Where the
    scan lies in another one, its image lies in that one's image."""
    if case.coordinates is None or case.own is None:
        raise ValueError("the scan has no place among the atlases")
    fields = case.coordinates.reshape(2, -1, 3, *case.label.shape)[::-1, ..., ::-1].copy()
    fields[:, :, 2] *= -1
    return replace(image, coordinates=fields.reshape(case.coordinates.shape), own=case.own + fields.shape[1])
