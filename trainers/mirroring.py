"""The mirror image of a labelled scan as another labelled scan, where left and right are alike.

A brain's halves are the same anatomy drawn twice. Registered as it is, never turned back, the mirror image lays each
half on the other: to the scan itself it is another subject with the errors that registration makes between subjects,
which no random bending of coordinates resembles as well; to a new scan it brings a second opinion. What it brings
counts half, for no half is quite like the other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from mre_lowshot.alignment import MOST_ATLASES, Atlas, align, make_prior
from mre_lowshot.errors import UserError
from mre_lowshot.inference.quality import label_agreement
from mre_lowshot.losses import IGNORE
from mre_lowshot.sampling import TrainingCase
from mre_lowshot.specs import Plan

WEIGHT = 0.5
SIDES = {"left": "right", "l": "r", "lh": "rh"}
_OPPOSITE = {**SIDES, **{right: left for left, right in SIDES.items()}}
_SIDE = re.compile(rf"(?<![a-z])({'|'.join(_OPPOSITE)})(?![a-z])")


def partners(labels: Mapping[str, int]) -> list[int]:
    """For each class, background first, the class that it is in a mirror image: ``left_kidney`` for ``right_kidney``,
    else itself."""
    named = {name.lower(): number for name, number in labels.items()}
    swapped = {number: _SIDE.sub(lambda side: _OPPOSITE[side[0]], name) for name, number in named.items()}
    return [named.get(swapped[number], number) for number in range(len(labels))]


def image_of(case: TrainingCase, labels: Mapping[str, int]) -> TrainingCase:
    """The scan with left and right (the last axis) exchanged, sides in the names of ``labels`` too; not placed."""
    table = np.array([*partners(labels), IGNORE], dtype=case.label.dtype)  # IGNORE, -1, finds the last
    return TrainingCase(
        np.ascontiguousarray(case.image[..., ::-1]),
        np.ascontiguousarray(table[case.label[..., ::-1]]),
        case.spacing,
        weight=WEIGHT,
    )


def images(cases: Sequence[TrainingCase], plan: Plan) -> list[TrainingCase]:
    """Each training scan's mirror image, in their order."""
    return [image_of(case, plan.labels) for case in cases]


def measured(cases: Sequence[TrainingCase], plan: Plan) -> list[float]:
    """How well each training scan's mirrored labels, registered to it (affine), agree with its own: Dice, mean over
    classes; 0 where the image cannot be registered. Nothing where the recipe does not ask, or where there are so many
    scans that not all of them and their images would be atlases."""
    told = plan.recipe.alignment != "none" and plan.network.atlas_prior
    if not (told and plan.recipe.mirror_images) or 2 * len(cases) > MOST_ATLASES:
        return []
    affine = replace(plan, recipe=replace(plan.recipe, alignment="affine"))
    return [_likeness(case, image_of(case, plan.labels), affine) for case in cases]


def _likeness(case: TrainingCase, image: TrainingCase, plan: Plan) -> float:
    atlases = (Atlas.of(image),)
    prior = make_prior(atlases, plan)
    try:
        place = align(atlases, case.image, case.spacing, plan)
    except UserError:
        return 0.0
    assert prior is not None
    assert place is not None  # a plan that asks for mirror images aligns and has a prior
    known = case.label != IGNORE
    brought = prior.posterior(place).argmax(axis=0)
    dice = [d for d in label_agreement(brought[known], case.label[known], prior.classes).values() if np.isfinite(d)]
    return float(np.mean(dice)) if dice else 0.0


def placed(case: TrainingCase, image: TrainingCase) -> TrainingCase:
    """``image`` with its places in the atlases, scans first, then their images: those of ``case``, mirrored. Where the
    scan lies in another one, its image lies in that one's image."""
    assert case.coordinates is not None
    assert case.own is not None
    fields = case.coordinates.reshape(2, -1, 3, *case.label.shape)[::-1, ..., ::-1].copy()
    fields[:, :, 2] *= -1
    half = fields.shape[1]
    return replace(image, coordinates=fields.reshape(case.coordinates.shape), own=case.own + half)
