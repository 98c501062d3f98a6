"""The network's posterior and the one that registration brings from the atlases, fused (a logarithmic opinion pool)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mre_lowshot.sampling import Prior
from mre_lowshot.specs import InferenceSpec, Plan

EVEN = 1e-4  # shares no further apart are the same
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
    unknown = ~told(brought)
    both[:, unknown] = posterior[:, unknown]
    return both


def told(brought: np.ndarray) -> np.ndarray:
    """Where the labels ``brought`` by registration (K, *size) say anything, (*size) bool: not where every class has the
    same share, for the atlases are not annotated there, or their edge cuts a structure."""
    return brought.max(axis=0) - brought.min(axis=0) > EVEN


def to_weigh(plan: Plan) -> bool:
    """Whether the fold's ``plan`` has something to pool, and mirror images that neither training nor registration has
    seen, on which no weight was sought yet."""
    fold, recipe = plan.fold, plan.recipe
    if fold is None or not fold.mirror_images or "prior_weight" in fold.reasons:
        return False
    return recipe.inference.prior_weight > 0 and plan.network.axes - 1 not in recipe.augmentation.mirror_axes


def joint_rule(plans: Sequence[Plan]) -> InferenceSpec:
    """The recipe's inference with the weights of several folds' networks together: ``prior_weight``, of one
    registration, and ``neighbour_weight`` are the means of what each fold found on mirror images of its training scans
    (`trainers.weighing`), the recipe's where it found nothing."""
    prior, neighbour = (_mean_of(plans, name) for name in ("prior_weight", "neighbour_weight"))
    return replace(plans[0].recipe.inference, prior_weight=prior, neighbour_weight=neighbour)


def _mean_of(plans: Sequence[Plan], name: str) -> float:
    own = [(getattr(plan.fold, name, None), getattr(plan.recipe.inference, name)) for plan in plans]
    return float(np.mean([rule if found is None else found for found, rule in own]))


def registrations_of(priors: Sequence[Prior | None]) -> float:
    """How often each labelled scan is registered, itself and as mirror image: 1 without these, 2 with all of them."""
    told = [prior for prior in priors if prior is not None]
    registrations = sum(len(prior.labels) for prior in told)
    return registrations / (registrations - sum(prior.images for prior in told)) if told else 1.0
