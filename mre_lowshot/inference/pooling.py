"""The network's posterior and the one that registration brings from the atlases, fused (a logarithmic opinion pool)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mre_lowshot.sampling import Prior
from mre_lowshot.specs import Plan

PRIOR_FLOOR = 0.01  # what the atlas leaves a class that it does not have at a place: registration may be wrong


def pooled(posterior: np.ndarray, brought: np.ndarray | None, weight: float, registrations: float = 1) -> np.ndarray:
    """The network's posterior p (K, *size) and the labels q ``brought`` by registration (K, *size), as p^(1-w) q^(w r),
    normalised: ``weight`` w of one registration against the network, times the number r of ``registrations`` of each
    scan, for each is an opinion of its own. The posterior itself where there is none of the other."""
    if brought is None or not weight:
        return posterior
    both = posterior ** (1 - weight)
    both *= (brought + PRIOR_FLOOR) ** (weight * registrations)
    both /= both.sum(axis=0)
    return both


def to_weigh(plan: Plan) -> bool:
    """Whether the fold's ``plan`` has something to pool, and mirror images that neither training nor registration has
    seen, on which no weight was sought yet."""
    fold, recipe = plan.fold, plan.recipe
    if fold is None or not fold.mirror_images or "prior_weight" in fold.reasons:
        return False
    return recipe.inference.prior_weight > 0 and plan.network.axes - 1 not in recipe.augmentation.mirror_axes


def joint_weight(plans: Sequence[Plan]) -> float:
    """What one registration weighs in the mean of several folds' networks: the mean of what each fold found on mirror
    images of its training scans (`trainers.weighing`), the recipe's ``prior_weight`` where it found nothing."""
    own = [plan.fold.prior_weight if plan.fold else None for plan in plans]
    rules = [plan.recipe.inference.prior_weight for plan in plans]
    return float(np.mean([rule if found is None else found for found, rule in zip(own, rules, strict=True)]))


def registrations_of(priors: Sequence[Prior | None]) -> float:
    """How often each labelled scan is registered, itself and as mirror image: 1 without these, 2 with all of them."""
    told = [prior for prior in priors if prior is not None]
    registrations = sum(len(prior.labels) for prior in told)
    return registrations / (registrations - sum(prior.images for prior in told)) if told else 1.0
