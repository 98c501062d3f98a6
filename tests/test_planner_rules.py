"""Properties of the planner's rules, and of the fingerprint that they start from."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_planners import BRAIN, CT, planned

from mre_lowshot.config import InferenceConfig, RefinementConfig
from mre_lowshot.planners import rules
from mre_lowshot.planners.fingerprint import case_fingerprint, constant_background, dataset_fingerprint
from mre_lowshot.planners.hardware import PAPER_PATCH_VOXELS


def test_2d_images_are_downsampled_until_a_patch_holds_a_whole_one():
    def rule(shapes, spacings, limit):
        return rules.image_spacing_rule(np.array(spacings, float), np.array(shapes), limit)

    one = [(1, 1, 1)]
    assert rule([(1, 90, 100)], one, 9216)[0] is None  # small enough
    spacing, reason = rule([(1, 200, 288)], one, 9216)
    assert spacing == (1.0, 2.5, 2.5)
    assert "200 x 288 pixels (median) downsampled by 2.5, towards 9,216 pixels" in reason
    assert rule([(1, 2000, 3000)], one, 9216)[0] == (1.0, 4.0, 4.0)  # no further, so that small objects remain visible
    mixed = rule([(1, 90, 100), (1, 45, 50)], [(1, 0.5, 0.5), (1, 1, 1)], 9216)
    assert mixed[0] == (1.0, 0.75, 0.75)  # several spacings are resampled to one


def test_registration_is_for_volumes_of_structures_with_a_position_of_their_own():
    for names, lesions in ((["background", "Edema", "enhancing_tumor"], "Edema, enhancing_tumor"), (["organ"], None)):
        found, reason = rules.registration_rule("affine", names, (40, 60, 60))
        assert found == ("none" if lesions else "affine")
        assert lesions is None or f"labels {lesions} are lesions" in reason
    for slices, wanted in ((5, "none"), (7, "none"), (8, "affine")):
        assert rules.registration_rule("affine", ["organ"], (slices, 200, 200))[0] == wanted


@pytest.mark.parametrize(
    ("voxels", "iterations"), [(1_000, 600), (663_552, 600), (884_736, 800), (1_327_104, 1200), (9_000_000, 1200)]
)
def test_larger_scans_are_trained_on_for_more_iterations(voxels, iterations):
    """So that batches of 4 patches of 24^3 voxels make about 50 passes over a scan; never fewer than the recipe's."""
    found, reason = rules.iterations_rule(600, voxels, 4 * 24**3)
    assert found == iterations
    assert f"{iterations} iterations" in reason


SIDES = st.floats(0.3, 8.0)


@given(st.lists(st.tuples(SIDES, st.integers(1, 400)), min_size=2, max_size=3), st.sampled_from([2000, 15552, 60000]))
@settings(max_examples=300, derandomize=True)
def test_a_patch_fits_into_the_scan_is_divisible_and_has_about_its_number_of_voxels(axes, budget):
    spacing, size = tuple(a[0] for a in axes), tuple(a[1] for a in axes)
    strides = rules.strides_rule(spacing)
    divisor = tuple(np.prod(strides, axis=0).tolist())
    patch, _ = rules.patch_rule(spacing, size, budget, divisor)
    for side, centre, whole, part in zip(patch.size, patch.centre, size, divisor, strict=True):
        assert side % part == 0
        assert side <= max(whole, part)
        assert 0 < centre <= side
        assert (side - centre) % 2 == 0
    if len(axes) == 3 and budget == PAPER_PATCH_VOXELS and min(size) >= 160:
        assert 0.6 < math.prod(patch.size) / budget < 1.5
    dilations, _ = rules.dilation_rule(patch.size)
    assert all(1 <= d <= n for row in dilations for d, n in zip(row, patch.size, strict=True))


@given(
    st.lists(st.tuples(*[st.floats(0.1, 8.0)] * 3, *[st.integers(8, 600)] * 3), min_size=1, max_size=5),
    st.sampled_from([None, 100_000, 3_000_000]),
)
@settings(max_examples=200, derandomize=True)
def test_the_target_spacing_is_never_finer_than_the_median_and_keeps_the_voxel_limit(scans, limit):
    spacings = np.array([scan[:3] for scan in scans])
    extents = spacings * np.array([scan[3:] for scan in scans])
    target, _ = rules.spacing_rule(spacings, extents, limit)
    median = np.median(spacings, axis=0)
    assert (np.array(target) >= median - 1e-4).all()
    voxels = np.prod(np.median(extents, axis=0) / target)
    if limit is None:
        assert target == pytest.approx(tuple(median), abs=1e-4)
    else:
        assert voxels <= limit * 1.01
        if (np.array(target) > median + 1e-3).any():
            assert voxels >= limit * 0.99  # no coarser than needed


def test_a_microscopic_spacing_is_kept():
    """0.4 micrometres are not rounded to another number."""
    spacings = np.array([[0.00043, 0.00041, 0.00041]])
    target, _ = rules.spacing_rule(spacings, spacings * 100, None)
    assert target == pytest.approx((0.00043, 0.00041, 0.00041), rel=1e-3)


def test_the_fingerprint_of_a_case_is_measured_in_its_image():
    image = np.full((1, 10, 20, 20), -5.0, np.float32)
    image[0, 2:8, 4:16, 5:19] = np.linspace(10, 110, 6 * 12 * 14).reshape(6, 12, 14)
    image[0, 2:5, 4:10, 5:12] = -5.0
    measured = case_fingerprint(image, (2.0, 1.0, 1.0), "RAS")
    assert measured["nonzero_shape"] == [6, 12, 14]
    assert measured["background_share"] == pytest.approx(1 - 7 / 8 * 6 * 12 * 14 / 4000)
    assert measured["content_background_share"] == pytest.approx(1 / 8)
    assert (measured["channels"][0]["min"], measured["channels"][0]["max"]) == (-5, 110)
    assert measured["content_shape"] == [6, 12, 14]
    assert (measured["shape"], measured["spacing"], measured["orientation"]) == ([10, 20, 20], [2, 1, 1], "RAS")
    other = {**measured, "background_share": 0.1}
    assert constant_background(dataset_fingerprint("D", {"a": measured}))
    assert not constant_background(dataset_fingerprint("D", {"a": measured, "b": other}))


def test_the_margin_of_a_patch_is_a_ninth_of_its_side_and_a_sixth_on_a_coarse_axis():
    """Coarse: more than twice the finest spacing. A centre is a side less two margins."""
    for spacing, size, centre in (
        ((3.0, 1.0, 1.0), (36, 108, 108), (24, 84, 84)),
        ((2.0, 1.0, 1.0), (48, 92, 92), (38, 72, 72)),
        ((1.0, 1.0, 1.0), (72, 72, 72), (56, 56, 56)),
    ):
        patch, _ = rules.patch_rule(spacing, (200, 200, 200), 400_000, (4, 4, 4))
        assert (patch.size, patch.centre) == (size, centre)


def test_an_image_of_oblong_pixels_is_downsampled_by_its_number_of_pixels():
    """400 x 200 pixels against 20,000: half in both directions; at most a quarter."""
    spacings, shapes = np.array([[1.0, 0.5, 2.0]]), np.array([[1, 400, 200]])
    assert rules.image_spacing_rule(spacings, shapes, 20_000)[0] == (1.0, 1.0, 4.0)
    assert rules.image_spacing_rule(spacings, shapes, 100)[0] == (1.0, 2.0, 8.0)
    assert rules.image_spacing_rule(spacings, shapes, 80_000)[0] is None


def test_iterations_state_what_the_recipe_alone_would_cover():
    iterations, reason = rules.iterations_rule(600, 1_000_000.0, 50_000)
    assert iterations == 1000
    assert reason.endswith("50 times (the recipe's 600 iterations: 30 times)")
    assert rules.iterations_rule(600, 5_000_000.0, 50_000)[0] == 1200
    assert rules.iterations_rule(600, 100_000.0, 50_000)[0] == 600


@pytest.mark.parametrize(("registered", "is_ct", "found"), [
    (True, True, ("centre", 0.5)),
    (True, False, ("overlap", 0.75)),
    (False, True, ("overlap", 0.5)),
    (False, False, ("overlap", 0.5)),
])  # fmt: skip
def test_fewer_tiles_only_where_scans_are_registered(registered, is_ct, found):
    wanted = InferenceConfig(tiling="overlap")
    rule, reason = rules.tiling_rule(wanted, registered=registered, is_ct=is_ct)
    assert (rule.tiling, rule.step) == found
    assert bool(reason) == (rule != wanted)


def test_the_tiling_of_the_paper_is_kept():
    assert rules.tiling_rule(InferenceConfig(), registered=True, is_ct=False) == (InferenceConfig(), "")


@pytest.mark.parametrize(("registered", "is_ct", "found"), [
    (True, True, (0.0, 0.5)), (True, False, (0.4, 0.0)), (False, True, (0.4, 0.0)), (False, False, (0.4, 0.0)),
])  # fmt: skip
def test_registered_ct_takes_the_mean_of_network_and_warped_labels(registered, is_ct, found):
    wanted = RefinementConfig(atlas_weight=0.4, em_weight=0.5)
    chosen, reason = rules.fusion_rule(wanted, registered=registered, is_ct=is_ct)
    assert (chosen.atlas_weight, chosen.atlas_share) == found
    assert bool(reason) == (registered and is_ct)
    assert chosen.em_weight == 0.5
    none = RefinementConfig()
    assert rules.fusion_rule(none, registered=registered, is_ct=is_ct) == (none, "")  # nothing is fused


def test_a_plan_states_how_ct_is_fused():
    plan = planned(CT, channels=("CT",))
    assert (plan.recipe.refinement.atlas_weight, plan.recipe.refinement.atlas_share) == (0, 0.5)
    assert plan.reasons["fusion"].startswith("CT: the mean of")
    assert "fusion" not in planned(BRAIN).reasons
    paper = planned(CT, channels=("CT",), recipe="paper_small")
    assert (paper.recipe.refinement.atlas_weight, paper.recipe.refinement.atlas_share) == (0, 0)
