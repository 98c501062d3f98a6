"""Settings for the models of several folds: averages of the folds' decisions, or the decisions that all folds share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mre_lowshot.atlas.label_fusion import AtlasPrior
from mre_lowshot.config import MinHu, Plan, RefinementConfig
from mre_lowshot.refinement.fusion import registrations_per_scan
from mre_lowshot.refinement.pipeline import RefinementSettings


def ensemble_settings(plans: Sequence[Plan], priors: Sequence[AtlasPrior | None]) -> RefinementSettings:
    """The refinement settings of several folds, from their plans and atlas priors."""
    return RefinementSettings(
        config=ensemble_refinement(plans),
        min_hu=ensemble_hu_limits(plans),
        single_component=ensemble_single_component(plans),
        registrations=registrations_per_scan(priors),
        lesions=plans[0].lesion_classes,
    )


def ensemble_refinement(plans: Sequence[Plan]) -> RefinementConfig:
    """The recipe's refinement with the means of the folds' tuned ``atlas_weight`` and ``crf_weight``; for a fold
    without tuned weights those of the recipe count."""
    atlas, crf = (_mean_of(plans, name) for name in ("atlas_weight", "crf_weight"))
    return replace(plans[0].recipe.refinement, atlas_weight=atlas, crf_weight=crf)


def _mean_of(plans: Sequence[Plan], name: str) -> float:
    pairs = [(getattr(plan.fold, name, None), getattr(plan.recipe.refinement, name)) for plan in plans]
    return float(np.mean([default if tuned is None else tuned for tuned, default in pairs]))


def ensemble_hu_limits(plans: Sequence[Plan]) -> tuple[MinHu, ...]:
    """The folds' lower HU limits in units of their preprocessed images: the lowest of each class and channel, and none
    where a fold has none."""
    found: dict[tuple[int, int], list[float]] = {}
    for plan in plans:
        for limit in plan.fold.min_hu if plan.fold else ():
            found.setdefault((limit.label, limit.channel), []).append(limit.value)
    windows = plans[0].preprocessing.normalization
    return tuple(
        MinHu(label, channel, (min(hu) - windows[channel].lower) / windows[channel].width)
        for (label, channel), hu in found.items()
        if len(hu) == len(plans)
    )


def ensemble_single_component(plans: Sequence[Plan]) -> tuple[int, ...]:
    """The classes of which only the largest component is kept: those that are one component in every fold's training
    labels."""
    sets = [set(p.fold.single_component) if p.fold and p.recipe.refinement.largest_component else set() for p in plans]
    return tuple(sorted(set.intersection(*sets))) if sets else ()


def needs_tuning(plan: Plan) -> bool:
    """Whether the fold's fusion weights can be tuned and have not been: it fuses warped labels, and has mirrored
    atlases that neither training nor registration has used."""
    fold, recipe = plan.fold, plan.recipe
    if fold is None or not fold.mirrored_atlases or "atlas_weight" in fold.reasons:
        return False
    fuses = recipe.refinement.atlas_weight > 0 or recipe.refinement.atlas_share > 0
    return fuses and plan.network.axes - 1 not in recipe.augmentation.mirror_axes
