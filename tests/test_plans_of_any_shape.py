"""Every shape of image gives a valid plan, on a CPU and on GPUs."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mre_lowshot.config.network import MAX_DILATION
from mre_lowshot.planners import rules
from mre_lowshot.planners.facts import DatasetFacts
from mre_lowshot.planners.fingerprint import dataset_fingerprint
from mre_lowshot.planners.hardware import Device
from mre_lowshot.planners.planner import make_plan

CHANNEL = {"min": 0.0, "percentile_00_5": 0.0, "percentile_25": 10.0, "median": 50.0, "percentile_75": 90.0,
           "percentile_99_5": 200.0, "max": 255.0, "mean": 60.0, "std": 40.0, "layout": []}  # fmt: skip
DEVICES = [Device("cpu", 4.0), Device("cpu", 16.0), Device("cuda", 4.0), Device("cuda", 12.0), Device("cuda", 80.0),
           Device("cuda", 24.0, 3)]  # fmt: skip


def planned(shape, spacing, channel="T1", device=DEVICES[0], recipe="default"):
    case = {
        "shape": list(shape),
        "content_shape": list(shape),
        "spacing": list(spacing),
        "orientation": "LPS",
        "outliers": 0,
        "background_share": 0.0,
        "content_background_share": 0.0,
        "nonzero_shape": list(shape),
        "body_shape": list(shape),
        "channels": [CHANNEL],
    }
    facts = DatasetFacts("Dataset001_X", (channel,), {"background": 0, "organ": 1}, None, ".nii.gz")
    return make_plan(facts, dataset_fingerprint("Dataset001_X", {"c": case}), device=device, recipe=recipe)


SIDE = st.one_of(st.integers(1, 40), st.integers(1, 2000))
MM = st.sampled_from([0.01, 0.1, 0.5, 1.0, 3.0, 10.0])


@settings(max_examples=300)
@given(
    st.one_of(st.tuples(st.just(1), SIDE, SIDE), st.tuples(SIDE, SIDE, SIDE)),
    st.tuples(MM, MM, MM),
    st.sampled_from(["T1", "CT", "US"]),
    st.sampled_from(DEVICES),
    st.sampled_from(["default", "paper", "unet", "unet_default"]),
)
def test_images_of_any_shape_can_be_planned(shape, spacing, channel, device, recipe):
    plan = planned(shape, spacing, channel, device, recipe)
    assert len(plan.network.strides[0]) == len(plan.patch.size) == (2 if shape[0] == 1 else 3)


@pytest.mark.parametrize(
    ("shape", "device"), [((1, 200, 900), DEVICES[4]), ((1, 100, 500), DEVICES[4]), ((1000, 6, 6), DEVICES[1])]
)
def test_long_images_get_the_largest_dilation_a_network_can_have(shape, device):
    plan = planned(shape, (1.0, 1.0, 1.0), device=device)
    sides = {max(row) for row in plan.network.dilations}
    assert max(sides) == min(MAX_DILATION, round(max(plan.patch.size) / 2))
    assert (max(plan.patch.size) > 257) == (f"at most {MAX_DILATION}" in plan.reasons["dilations"])


def test_dilations_of_ordinary_patches_are_shares_of_their_sides():
    rows, reason = rules.dilation_rule((12, 36, 36))
    assert rows == ((2, 6, 6), (4, 12, 12), (6, 18, 18))
    assert "at most" not in reason
    assert rules.dilation_rule((6, 1000, 6))[0] == ((1, 128, 1), (2, 128, 2), (3, 128, 3))
