"""How much registration weighs against the network, found on a scan with labels that neither has seen.

Where left and right are alike, the mirror image of a training scan is such a scan: another drawing of the same anatomy,
which the network was not trained on. Elsewhere every labelled scan is trained on, and the recipe's weight stands. The
table is made on the plan's grid, of the first registration, before pieces are dropped.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from mre_lowshot.alignment import Atlas, Atlases, align, make_prior
from mre_lowshot.inference.floors import joint_floors
from mre_lowshot.inference.predictor import Predictor
from mre_lowshot.inference.quality import label_agreement
from mre_lowshot.losses import IGNORE
from mre_lowshot.mirroring import image_of
from mre_lowshot.specs import Plan

WEIGHTS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


def found_weight(plan: Plan, network: nn.Module, atlases: Atlases, device: torch.device) -> tuple[float, str]:
    """Which of `WEIGHTS`, of the registration to the scans themselves, predicts the labels of their mirror images best
    (Dice, mean over classes and images), and that in words.

    ``network`` is the trained one, ``atlases`` the fold's scans without their images.

    Raises:
        UserError: an image cannot be registered. NumericalError: a probability is not finite.
    """
    rule, prior = plan.recipe.inference, make_prior(atlases, plan)
    predictor = Predictor(
        [network], plan.network, plan.patch, rule, device, priors=[prior], floors=joint_floors([plan])
    )
    dice = np.mean([_dice(predictor, image_of(atlas, plan.labels), atlases, plan) for atlas in atlases], axis=0)
    best = np.flatnonzero(dice == dice.max())
    weight = min((WEIGHTS[place] for place in best), key=lambda w: abs(w - rule.prior_weight))
    told = ", ".join(f"{w:g} {value:.4f}" for w, value in zip(WEIGHTS, dice, strict=True))
    return weight, (
        f"registration weighs {weight:g} against the network instead of the recipe's {rule.prior_weight:g}, and as "
        "much again for the mirror images: how well mirror images of the training scans are predicted from the scans "
        f"with each weight (Dice): {told}"
    )


def _dice(predictor: Predictor, image: Atlas, atlases: Atlases, plan: Plan) -> list[float]:
    """The mean Dice over classes of a mirror image with each of `WEIGHTS`."""
    place = align(atlases, image.image, image.spacing, plan)
    posterior, brought = predictor.opinions(image.image, coordinates=[place])
    known, found = image.label != IGNORE, []
    for weight in WEIGHTS:
        labels = predictor.mended(posterior, brought, image.image, weight).argmax(axis=0)
        values = label_agreement(labels[known], image.label[known], len(posterior)).values()
        found.append(float(np.nanmean(list(values))))
    return found
