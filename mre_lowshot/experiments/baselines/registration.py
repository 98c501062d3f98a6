"""Registration without a network: the labels of the training scans, warped to a scan, with and without refinement.

`REGISTRATION` is classical segmentation by label propagation: one atlas, or several with locally weighted voting.
`REGISTRATION_REFINED` adds what the recipe `default` does after the network: mirrored atlases where the fold's plan has
them, HU limits, EM step, CRF and removal of small components. Both use the product's own registration, so that they
measure what the network adds to it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from mre_lowshot.atlas.alignment import align
from mre_lowshot.atlas.atlas import MAX_ATLASES, Atlas
from mre_lowshot.atlas.label_fusion import build_prior
from mre_lowshot.atlas.mirrored import with_mirrored
from mre_lowshot.config import Plan
from mre_lowshot.errors import UserError
from mre_lowshot.experiments.baselines.base import Baseline, BaselineFold, Segmenter
from mre_lowshot.inference.ensemble import ensemble_settings
from mre_lowshot.preprocessing.store import PreparedCase
from mre_lowshot.refinement.pipeline import refine
from mre_lowshot.trainers.fold import training_case


def fit(fold: BaselineFold, *, refined: bool) -> Segmenter:
    """Make atlases of the first `MAX_ATLASES` training scans; nothing is trained.

    Args:
        fold: the labelled scans; with ``refined`` its plan has the fold's decisions, otherwise there are no mirrored
            atlases and no HU limits.
        refined: apply the refinement of the plan's recipe.
    """
    plan = registering(fold.plan)
    cases = fold.train[:MAX_ATLASES]
    atlases = tuple(Atlas.of(training_case(case, 3)) for case in cases)
    fold.log(f"atlases: {', '.join(case.name for case in cases)}" + left_out(len(fold.train)))
    if refined:
        atlases = with_mirrored(atlases, plan)
    prior = build_prior(atlases, fold.classes)
    settings = ensemble_settings([plan], [prior])

    def segment(case: PreparedCase) -> np.ndarray:
        try:
            coordinates = align(atlases, case.image, case.transform.spacing, plan=plan)
        except UserError as problem:
            raise UserError(f"case {case.name}: {problem}") from None
        assert coordinates is not None  # the plan registers
        warped = prior.fuse_labels(coordinates, case.image)
        found: np.ndarray = (refine(warped, None, case.image, settings) if refined else warped).numpy()
        return found

    return segment


def registering(plan: Plan) -> Plan:
    """``plan`` with deformable registration where it has none, as that of a U-Net or of lesions."""
    if plan.recipe.atlas.registration != "none":
        return plan
    recipe = replace(plan.recipe, atlas=replace(plan.recipe.atlas, registration="deformable"))
    return replace(plan, recipe=recipe, network=replace(plan.network, coordinates="volume"))


def left_out(count: int) -> str:
    """What to add to a line that lists the atlases, of ``count`` training scans."""
    return f"; {count - MAX_ATLASES} further training scans are not used" if count > MAX_ATLASES else ""


_SOURCE = "own registration (docs/METHOD.md); label propagation as the paper's ANTs row, Tables VII and VIII"
REGISTRATION = Baseline(
    name="registration",
    title="registration alone: warped labels, no network",
    source=_SOURCE,
    fit=partial(fit, refined=False),
    recipe="default",
    axes=(3,),
    random=False,
)
REGISTRATION_REFINED = Baseline(
    name="registration_refined",
    title="registration and refinement, no network",
    source=_SOURCE,
    fit=partial(fit, refined=True),
    recipe="default",
    axes=(3,),
    random=False,
    components=True,
)
