"""Left-right symmetry of the training scans, measured for `planners.fold.mirrored_atlases_rule`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from mre_lowshot.atlas.alignment import align
from mre_lowshot.atlas.atlas import Atlas
from mre_lowshot.atlas.lesions import without_lesions
from mre_lowshot.atlas.mirrored import mirrored
from mre_lowshot.config import Plan
from mre_lowshot.errors import UserError
from mre_lowshot.evaluation.agreement import label_agreement
from mre_lowshot.grid import IGNORE, sample_label
from mre_lowshot.sampling import TrainingCase

MAX_SCANS = 3  # with more, there are enough atlases


def left_right_dice(
    cases: Sequence[TrainingCase], plan: Plan, device: torch.device | None = None
) -> list[dict[str, float]]:
    """For each training scan, Dice of each class (by name) between the scan's labels and the labels of its mirror image
    after affine registration, where neither is ignored. Lesions (`Plan.lesions`) are no classes here.

    A scan's entry is empty where this cannot be measured: the mirror image cannot be registered, or all of a class lies
    where the mirror image is ignored. The list is empty where the recipe uses no mirrored atlases, or there are more
    than `MAX_SCANS` scans. Scans are registered on ``device`` (default: the CPU).
    """
    fused = plan.recipe.atlas.registration != "none" and plan.network.atlas_prior
    if not (fused and plan.recipe.atlas.mirrored_atlases) or len(cases) > MAX_SCANS:
        return []
    affine = replace(plan, recipe=replace(plan.recipe, atlas=replace(plan.recipe.atlas, registration="affine")))
    organs = (replace(c, label=without_lesions(c.label, plan.lesion_classes, c.spacing)) for c in cases)
    return [_dice(case, affine, device) for case in organs]


def _dice(case: TrainingCase, plan: Plan, device: torch.device | None) -> dict[str, float]:
    image = mirrored(Atlas.of(case), plan.labels)
    try:
        coordinates = align((image,), case.image, case.spacing, plan=plan, device=device)
    except UserError:
        coordinates = None
    if coordinates is None:
        return {}
    last = np.asarray(image.label.shape).reshape(-1, 1, 1, 1) - 1
    warped = sample_label(image.label, (coordinates + 1) / 2 * last)
    known = (case.label != IGNORE) & (warped != IGNORE)
    if set(np.unique(case.label)) - set(np.unique(case.label[known])) - {IGNORE}:
        return {}
    names = {number: name for name, number in plan.labels.items()}
    dice = label_agreement(warped[known], case.label[known], len(names))
    return {names[number]: value for number, value in dice.items() if np.isfinite(value)}
