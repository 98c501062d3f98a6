"""Whether two rows of a table would train the same network, so that one of them is enough."""

from __future__ import annotations

from dataclasses import replace

from mre_lowshot.config import Plan
from mre_lowshot.config.plan_files import same_plan

# Fields of the network without effect where it has no prototypes, and where no atlas prior is given to it.
_OF_PROTOTYPES = (
    "prototypes_per_class", "mixing", "mixing_dim", "mixing_sigmoid", "distance", "logit_scale", "logit_scale_learned",
)  # fmt: skip
_OF_PRIOR = ("atlas_prior_at", "atlas_prior_weight")


def trains_the_same(one: Plan, other: Plan) -> bool:
    """Whether two plans give equal results: they differ in name, reasons and fields without effect at most.

    Args:
        one, other: plans of the same dataset.
    """
    networks = (one.network, other.network)
    idle: list[str] = []
    if not any(network.prototype_head for network in networks):
        idle += _OF_PROTOTYPES
    if not any(network.atlas_prior for network in networks):
        idle += _OF_PRIOR
    network = replace(other.network, **{name: getattr(one.network, name) for name in idle})
    recipe = other.recipe
    if one.recipe.atlas.registration == recipe.atlas.registration == "none":  # no warped labels to fuse
        kept = one.recipe.refinement
        refinement = replace(recipe.refinement, atlas_weight=kept.atlas_weight, atlas_share=kept.atlas_share)
        recipe = replace(recipe, refinement=refinement)
    return same_plan(one, replace(other, plans_name=one.plans_name, network=network, recipe=recipe))
