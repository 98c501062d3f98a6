"""Plans for GPUs: the paper's batch wherever it fits, and the same method on every card that holds it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from references import with_settings
from test_planners import BRAIN, CT, GPU12, GPU24, GPU80, planned

from mre_lowshot.config.presets import PRESETS


@pytest.mark.parametrize(
    ("recipe", "device", "batch", "recompute"),
    [
        ("paper", GPU80, 24, False),
        ("paper", GPU24, 24, False),
        ("paper", GPU12, 24, True),
        ("paper", (*GPU12, 4), 24, False),  # as in the paper
        ("paper", ("cuda", 8.0), 15, True),
        ("paper", ("cuda", 8.0, 2), 24, True),
        ("paper", ("cuda", 8.0, 5), 20, False),  # 24 cannot be divided by 5
        ("unet", GPU12, 64, False),
        ("unet", ("cuda", 8.0), 64, True),
        ("default", (*GPU12, 2), 24, False),
    ],
)
def test_gpus_get_the_papers_batch_where_it_fits(recipe, device, batch, recompute):
    plan = planned(BRAIN, device=device, recipe=recipe)
    assert (plan.recipe.sampling.batch_size, plan.recipe.optimizer.recompute) == (batch, recompute)
    assert f"{batch} patches per batch" in plan.reasons["network"]
    assert ("recomputed" in plan.reasons["network"]) == recompute


@pytest.mark.parametrize("recipe", ["default", "unet_default"])
def test_the_method_is_the_same_on_every_gpu_that_holds_it(recipe):
    """Apart from how a step is computed; a smaller one gets the small network, and the plan says why."""
    plans = [planned(CT, ("CT",), ("cuda", gigabytes), recipe) for gigabytes in (11.6, 12.0, 24.0, 80.0)]
    same = [replace(plan, reasons={}, recipe=with_settings(plan.recipe, recompute=False)) for plan in plans]
    assert same == same[:1] * 4
    small = planned(CT, ("CT",), ("cuda", 8.0), recipe)
    assert small.network.widths == (16, 32, 64)
    assert "24 patches of the paper's network need about 12 GB" in small.reasons["network"]


def test_the_papers_recipes_train_in_float32_and_the_default_in_what_the_device_supports():
    found = {name: recipe.optimizer.precision for name, recipe in PRESETS.items()}
    assert {name for name, precision in found.items() if precision == "auto"} == {"default", "unet_default"}
    assert set(found.values()) == {"auto", "float32"}
