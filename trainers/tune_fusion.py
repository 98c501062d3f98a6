"""Tuning of the fusion weights (atlas and CRF) on labelled scans that neither network nor registration has used.

Where left and right are symmetric, the mirror image of a training scan is such a scan. Elsewhere every labelled scan is
trained on, and the recipe's weights stay. The Dice table is computed on the plan's grid, with the first registration,
before small components are removed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from mre_lowshot.atlas.alignment import align
from mre_lowshot.atlas.atlas import Atlas, Atlases
from mre_lowshot.atlas.mirrored import mirrored
from mre_lowshot.config import Plan, RefinementConfig
from mre_lowshot.evaluation.agreement import agreement_of, most_probable
from mre_lowshot.grid import IGNORE
from mre_lowshot.inference.models import Model
from mre_lowshot.inference.predictor import Predictor
from mre_lowshot.refinement.pipeline import refine
from mre_lowshot.transfers import as_tensor

ATLAS_WEIGHTS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


@dataclass(frozen=True)
class TunedWeights:
    """The best weights, and the reason with the table of all."""

    atlas_weight: float
    crf_weight: float
    reason: str


def tune_weights(plan: Plan, network: nn.Module, atlases: Atlases, device: torch.device) -> TunedWeights:
    """Which of `ATLAS_WEIGHTS`, and whether the recipe's CRF or none, predicts the labels of the mirrored training
    scans best (Dice, mean over classes and scans).

    Args:
        plan: the fold's.
        network: the trained one.
        atlases: the fold's, without mirrored ones.
        device: to compute on.

    Raises:
        UserError: a mirrored scan cannot be registered.
        NumericalError: a probability is not finite.
    """
    recipe = plan.recipe.refinement
    predictor = Predictor(Model.of_fold(plan, network, atlases), device=device)
    weights = ATLAS_WEIGHTS if recipe.atlas_weight else (0.0,)  # without a product (CT) only the CRF is tuned
    candidates = [replace(recipe, crf_weight=crf, atlas_weight=w) for crf in _crf_weights(recipe) for w in weights]
    tables = [_dice(predictor, mirrored(atlas, plan.labels), atlases, candidates) for atlas in atlases]
    dice = np.mean(tables, axis=0)
    best = np.flatnonzero(dice == dice.max())
    chosen = min(  # of equals, the one nearest to the recipe
        (candidates[index] for index in best),
        key=lambda c: (c.crf_weight != recipe.crf_weight, abs(c.atlas_weight - recipe.atlas_weight)),
    )
    rows = []
    for crf in _crf_weights(recipe):
        row = [f"{c.atlas_weight:g} {d:.4f}" for c, d in zip(candidates, dice, strict=True) if c.crf_weight == crf]
        rows.append(f"crf_weight {crf:g}: {', '.join(row)}")
    reason = (
        f"atlas_weight {chosen.atlas_weight:g} (recipe {recipe.atlas_weight:g}), crf_weight {chosen.crf_weight:g} "
        f"(recipe {recipe.crf_weight:g}), tuned on mirrored training scans; Dice by atlas_weight: {'; '.join(rows)}"
    )
    return TunedWeights(chosen.atlas_weight, chosen.crf_weight, reason)


def _crf_weights(recipe: RefinementConfig) -> list[float]:
    """The recipe's, and none: the CRF smooths ragged borders but may remove thin structures."""
    return sorted({recipe.crf_weight, 0.0}, reverse=True)


def _dice(predictor: Predictor, scan: Atlas, atlases: Atlases, candidates: list[RefinementConfig]) -> list[float]:
    """The mean Dice over classes of a mirrored scan, with each of the candidates' weights."""
    coordinates = align(atlases, scan.image, scan.spacing, plan=predictor.plan, device=predictor.device)
    posterior, warped = predictor.raw_posteriors(scan.image, [coordinates])
    image, truth = (as_tensor(array, posterior.device) for array in (scan.image, scan.label))
    known, found = truth != IGNORE, []
    for config in candidates:
        settings = replace(predictor.settings, config=config)
        labels = most_probable(refine(posterior, warped, image, settings))
        values = agreement_of(labels, truth, known, len(posterior)).values()
        found.append(float(np.nanmean(list(values))))
    return found
