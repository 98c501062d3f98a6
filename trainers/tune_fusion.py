"""How much registration weighs against the network, and whether neighbours should agree, found on a scan with labels
that neither has seen.

Where left and right are alike, the mirror image of a training scan is such a scan: another drawing of the same anatomy,
which the network was not trained on. Elsewhere every labelled scan is trained on, and the recipe's weights stand. The
table is made on the plan's grid, of the first registration, before pieces are dropped.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from mre_lowshot.alignment import Atlas, Atlases, align, make_prior
from mre_lowshot.inference.floors import joint_floors
from mre_lowshot.inference.predictor import Predictor
from mre_lowshot.inference.quality import label_agreement
from mre_lowshot.losses import IGNORE
from mre_lowshot.mirroring import image_of
from mre_lowshot.specs import InferenceSpec, Plan

WEIGHTS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


def found_weights(plan: Plan, network: nn.Module, atlases: Atlases, device: torch.device) -> tuple[float, float, str]:
    """Which of `WEIGHTS`, of the registration to the scans themselves, and whether neighbours agreeing as the recipe
    wants or not at all, predicts the labels of their mirror images best (Dice, mean over classes and images): the
    prior weight, the neighbour weight, and that in words.

    ``network`` is the trained one, ``atlases`` the fold's scans without their images.

    Raises:
        UserError: an image cannot be registered. NumericalError: a probability is not finite.
    """
    rule, prior = plan.recipe.inference, make_prior(atlases, plan)
    predictor = Predictor(
        [network], plan.network, plan.patch, rule, device, priors=[prior], floors=joint_floors([plan])
    )
    rules = [replace(rule, neighbour_weight=agree, prior_weight=w) for agree in _agreements(rule) for w in WEIGHTS]
    dice = np.mean([_dice(predictor, image_of(atlas, plan.labels), atlases, rules, plan) for atlas in atlases], axis=0)
    best = np.flatnonzero(dice == dice.max())
    chosen = min(  # of equals the one nearest to the recipe
        (rules[place] for place in best),
        key=lambda r: (r.neighbour_weight != rule.neighbour_weight, abs(r.prior_weight - rule.prior_weight)),
    )
    tables = []
    for agree in _agreements(rule):
        row = [f"{r.prior_weight:g} {d:.4f}" for r, d in zip(rules, dice, strict=True) if r.neighbour_weight == agree]
        tables.append(f"neighbours agreeing by {agree:g}: {', '.join(row)}")
    weight, agree, recipe = chosen.prior_weight, chosen.neighbour_weight, rule.neighbour_weight
    reason = (
        f"registration weighs {weight:g} against the network instead of the recipe's {rule.prior_weight:g}, and as "
        f"much again for the mirror images, and like neighbours agree by {agree:g} (recipe: {recipe:g}): how well "
        f"mirror images of the training scans are predicted from the scans with each weight (Dice): {'; '.join(tables)}"
    )
    return weight, agree, reason


def _agreements(rule: InferenceSpec) -> list[float]:
    """Thin structures may lose by what ragged borders gain by."""
    return sorted({rule.neighbour_weight, 0.0}, reverse=True)


def _dice(predictor: Predictor, image: Atlas, atlases: Atlases, rules: list[InferenceSpec], plan: Plan) -> list[float]:
    """The mean Dice over classes of a mirror image by each of ``rules``."""
    place = align(atlases, image.image, image.spacing, plan)
    posterior, brought = predictor.opinions(image.image, coordinates=[place])
    known, found = image.label != IGNORE, []
    for rule in rules:
        labels = predictor.mended(posterior, brought, image.image, rule).argmax(axis=0)
        values = label_agreement(labels[known], image.label[known], len(posterior)).values()
        found.append(float(np.nanmean(list(values))))
    return found
