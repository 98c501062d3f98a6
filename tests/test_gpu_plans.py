"""Plans for GPUs: the paper's batch wherever it fits, and the same method on every card that holds it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from references import with_settings
from test_planners import BRAIN, CT, GPU12, GPU24, GPU80, ULTRASOUND, planned

from mre_lowshot.config.presets import DEFAULT, PRESETS
from mre_lowshot.planners.hardware import POOLED_NORM_BATCH
from mre_lowshot.trainers.distributed import Processes


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


@hypothesis_settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.sampled_from(sorted(PRESETS)),
    st.integers(1, 24),
    st.sampled_from((0.5, 2.0, 4.0, 6.0, 8.0, 11.0, 12.0, 16.0, 24.0, 40.0, 80.0)),
    st.sampled_from(("cuda", "cpu")),
    st.sampled_from(((BRAIN, ("MRI",)), (CT, ("CT",)), (ULTRASOUND, ("US",)))),
)
def test_training_accepts_what_is_planned_for_several_processes(recipe, gpus, gigabytes, kind, data):
    """Every process gets the same number of patches, and a norm that it computes itself gets enough of them."""
    plan = planned(*data, (kind, gigabytes, gpus), recipe)
    for rank in {0, gpus - 1}:
        Processes(rank, gpus).require_shares(plan)
    share, network = plan.recipe.sampling.batch_size // gpus, plan.network
    if PRESETS[recipe].is_literal:
        assert network.image_level_norm
        assert share >= 2 or not network.pooled_norm
    else:
        assert network.image_level_norm == (share >= POOLED_NORM_BATCH)
        assert ("image_level_norm" in plan.reasons) == (share < POOLED_NORM_BATCH)


@pytest.mark.parametrize(
    ("recipe", "device", "batch", "words"),
    [
        ("paper_small", ("cuda", 80.0, 3), 3, "3 patches per batch instead of 4, as many on each of 3 GPUs"),
        ("paper_small", ("cuda", 80.0, 8), 8, "8 patches per batch instead of 4"),
        ("default", ("cuda", 4.0, 3), 3, "3 patches per batch instead of 4"),
        ("default", ("cpu", 16.0, 3), 3, "instead of 4, as many on each of 3 processes"),
        ("default", ("cuda", 80.0, 5), 20, "20 patches per batch instead of 24"),
        ("paper", ("cpu", 16.0, 5), 20, "20 patches per batch instead of 24 (5 processes)"),
        ("paper", ("cuda", 80.0, 24), 48, "48 patches per batch instead of 24"),
        ("paper_small", ("cuda", 80.0, 2), 4, "the small network"),
    ],
)
def test_a_number_of_patches_that_the_processes_cannot_share_is_changed_and_the_reason_says_so(
    recipe, device, batch, words
):
    plan = planned(BRAIN, device=device, recipe=recipe)
    assert plan.recipe.sampling.batch_size == batch
    assert words in plan.reasons["network"]
    assert ("instead of" in plan.reasons["network"]) == ("instead of" in words)


def test_the_norm_of_the_image_level_counts_the_patches_over_which_it_is_computed():
    """24 patches on one GPU; 3 in each of 8, unless the statistics are synchronised."""
    alone, shared = (planned(BRAIN, device=(*GPU80, gpus)) for gpus in (1, 8))
    assert alone.network.image_level_norm
    assert not shared.network.image_level_norm
    assert "3 patches per batch in each of 8 processes" in shared.reasons["image_level_norm"]
    together = planned(BRAIN, device=(*GPU80, 24), recipe=with_settings(DEFAULT, sync_batch_norm=True))
    assert together.network.image_level_norm
    assert together.recipe.sampling.batch_size == 24
    Processes(0, 24).require_shares(together)
