"""Whether left and right are alike in the training scans: measured for the rule of `planners.fold`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mre_lowshot.alignment import Atlas, align
from mre_lowshot.errors import UserError
from mre_lowshot.inference.quality import label_agreement
from mre_lowshot.losses import IGNORE
from mre_lowshot.mirroring import image_of
from mre_lowshot.sampling import TrainingCase, take_label
from mre_lowshot.specs import Plan

MOST_SCANS = 3  # with more there are enough atlases


def measured(cases: Sequence[TrainingCase], plan: Plan) -> list[dict[str, float]]:
    """How well each training scan's mirrored labels, registered to it (affine), agree with its own: Dice of each class
    that either has, by name, where neither is ignored; none where that cannot be told: the image cannot be registered,
    or all of a class lies where the image is ignored. An empty list where the recipe does not ask, or where there are
    more than `MOST_SCANS`."""
    told = plan.recipe.alignment != "none" and plan.network.atlas_prior
    if not (told and plan.recipe.mirror_images) or len(cases) > MOST_SCANS:
        return []
    affine = replace(plan, recipe=replace(plan.recipe, alignment="affine"))
    return [_likeness(case, affine) for case in cases]


def _likeness(case: TrainingCase, plan: Plan) -> dict[str, float]:
    image = image_of(Atlas.of(case), plan.labels)
    try:
        place = align((image,), case.image, case.spacing, plan)
    except UserError:
        place = None
    if place is None:
        return {}
    last = np.asarray(image.label.shape).reshape(-1, 1, 1, 1) - 1
    brought = take_label(image.label, (place + 1) / 2 * last)
    known = (case.label != IGNORE) & (brought != IGNORE)
    if set(np.unique(case.label)) - set(np.unique(case.label[known])) - {IGNORE}:
        return {}
    names = {number: name for name, number in plan.labels.items()}
    dice = label_agreement(brought[known], case.label[known], len(names))
    return {names[number]: value for number, value in dice.items() if np.isfinite(value)}
