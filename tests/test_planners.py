"""What is decided for which dataset: golden plans, literal, and the rules' properties."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mre_lowshot.errors import UserError
from mre_lowshot.planners import rules
from mre_lowshot.planners.fingerprint import case_fingerprint, constant_background, dataset_fingerprint
from mre_lowshot.planners.planner import DatasetFacts, make_plan, with_changes
from mre_lowshot.preprocessing.pipeline import grid_size
from mre_lowshot.specs import AugmentationSpec, ChannelNormalization, Recipe

CPU, GPU12, GPU24, GPU80 = ("cpu", 16.0), ("cuda", 12.0), ("cuda", 24.0), ("cuda", 80.0)
PAPER_DILATIONS = ((6, 6, 6), (12, 12, 12), (18, 18, 18))
COARSE_Z, CUBIC = ((2, 2, 2), (1, 2, 2)), ((2, 2, 2), (2, 2, 2))
LABELS = {"background": 0, "organ": 1, "vessel": 2}


def case(shape, spacing, body=None, nonzero=None, background=0.0, channels=1):
    """A made-up scan's fingerprint; body and nonzero are the sizes of those boxes."""
    middle = dict.fromkeys(("min", "percentile_00_5", "percentile_25", "median", "percentile_75"), 100.0)
    channel = {**middle, "percentile_99_5": 400.0, "max": 500.0, "mean": 150.0, "std": 90.0}
    return {
        "shape": list(shape), "spacing": list(spacing), "orientation": "LPS", "background_share": background,
        "nonzero_shape": list(nonzero or shape), "body_shape": list(body or shape), "channels": [channel] * channels,
    }  # fmt: skip


BRAIN = [case((48, 240, 240), (3, 0.958, 0.958), body=(48, 215, 180))] * 3
CUBE = [case((180, 220, 180), (1, 1, 1), body=(178, 215, 178))] * 2
CT = [case((100, 512, 512), (3, 0.7, 0.7), body=(100, 350, 480)),
      case((150, 512, 512), (2.5, 0.8, 0.8), body=(150, 300, 440)),
      case((90, 512, 512), (5, 0.75, 0.75), body=(90, 340, 470))]  # fmt: skip
STRIPPED = [case((155, 240, 240), (1, 1, 1), nonzero=(140, 170, 140), background=0.85, channels=2)] * 2
ULTRASOUND = [case((1, 471, 562), (1, 1, 1)), case((1, 500, 600), (1, 0.5, 0.5)), case((1, 300, 400), (1, 1, 1))]


def planned(cases, channels=("MRI",), device=CPU, recipe="default", crops=False, labels=LABELS):
    facts = DatasetFacts("Dataset001_X", channels, labels, None, ".nii.gz", crops)
    fingerprint = dataset_fingerprint(facts.name, {str(n): c for n, c in enumerate(cases)})
    return make_plan(facts, fingerprint, rules.Device(*device), recipe)


# the scans, channels, device, recipe -> crop, grid, its spacing or size, patch, centre, strides, dilations
GOLDEN = {
    "brain, cpu": (BRAIN, ("MRI",), CPU, "default", "body", "spacing", (3.0, 1.0661, 1.0661), (12, 36, 36),
                   (8, 28, 28), COARSE_Z, ((2, 6, 6), (4, 12, 12), (6, 18, 18))),
    "brain, paper": (BRAIN, ("T1",), GPU80, "paper", "centre", "spacing", (3.0, 0.958, 0.958), (12, 36, 36),
                     (8, 28, 28), COARSE_Z, PAPER_DILATIONS),
    "cube, cpu": (CUBE, ("MRI",), CPU, "default", "none", "spacing", (1.6812, 1.6812, 1.6812), (24, 24, 24),
                  (18, 18, 18), CUBIC, ((4, 4, 4), (8, 8, 8), (12, 12, 12))),
    "cube, gpu": (CUBE, ("MRI",), GPU24, "default", "none", "spacing", (1.0, 1.0, 1.0), (24, 24, 24), (18, 18, 18),
                  CUBIC, ((4, 4, 4), (8, 8, 8), (12, 12, 12))),
    "cube, paper": (CUBE, ("MRI",), CPU, "paper", "centre", "spacing", (1.0, 1.0, 1.0), (12, 36, 36), (8, 28, 28),
                    COARSE_Z, PAPER_DILATIONS),
    "ct, cpu": (CT, ("CT",), CPU, "default", "body", "spacing", (3.0, 2.6808, 2.6808), (24, 24, 24), (18, 18, 18),
                CUBIC, ((4, 4, 4), (8, 8, 8), (12, 12, 12))),
    "ct, gpu": (CT, ("CT",), GPU24, "default", "body", "spacing", (3.0, 1.0802, 1.0802), (12, 36, 36), (8, 28, 28),
                COARSE_Z, ((2, 6, 6), (4, 12, 12), (6, 18, 18))),
    "ct, paper": (CT, ("ct",), CPU, "paper", "body", "size", (72, 324, 396), (12, 36, 36), (8, 28, 28), COARSE_Z,
                  PAPER_DILATIONS),
    "stripped": (STRIPPED, ("T1", "FLAIR"), CPU, "default", "nonzero", "spacing", (1.3048, 1.3048, 1.3048),
                 (24, 24, 24), (18, 18, 18), CUBIC, ((4, 4, 4), (8, 8, 8), (12, 12, 12))),
    "stripped, paper": (STRIPPED, ("T1", "FLAIR"), GPU80, "paper", "nonzero", "spacing", (1.0, 1.0, 1.0),
                        (12, 36, 36), (8, 28, 28), COARSE_Z, PAPER_DILATIONS),
    "2d": (ULTRASOUND, ("US",), CPU, "default", "none", "spacing", (1.0, 3.6084, 3.6084), (80, 108), (62, 84),
           ((2, 2), (2, 2)), ((13, 18), (27, 36), (40, 54))),
    "2d, gpu": (ULTRASOUND, ("US",), GPU24, "default", "none", "spacing", (1.0, 2.7063, 2.7063), (108, 148),
                (84, 116), ((2, 2), (2, 2)), ((18, 25), (36, 49), (54, 74))),
    "2d, small": ([case((1, 50, 62), (1, 1, 1))], ("US",), CPU, "paper", "none", "native", (), (48, 60), (38, 46),
                  ((2, 2), (2, 2)), ((8, 10), (16, 20), (24, 30))),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_plans(name):
    cases, channels, device, recipe, *wanted = GOLDEN[name]
    plan = planned(cases, channels, device, recipe)
    done, patch, network = plan.preprocessing, plan.patch, plan.network
    found = [done.crop, done.grid, done.spacing or done.size, patch.size, patch.centre]
    assert [*found, network.strides, network.dilations] == wanted
    assert network.in_channels == len(channels)
    assert network.classes == 3
    assert {"crop", "grid", "patch", "network", "dilations", "recipe", "normalization_0"} <= set(plan.reasons)
    scheme = ChannelNormalization("clip", lower=-210.0, upper=290.0) if channels[0].lower() == "ct" else None
    shaded = name in ("brain, cpu", "cube, cpu", "cube, gpu")
    inside = "stripped" in name or shaded
    assert done.normalization == (scheme or ChannelNormalization("zscore", inside),) * len(channels)
    assert done.bias_field == shaded


@pytest.mark.parametrize(
    ("device", "widths", "embedding", "batch"),
    [
        (CPU, (16, 32, 64), 64, 4),
        (("mps", 64.0), (16, 32, 64), 64, 4),
        (("cuda", 8.0), (16, 32, 64), 64, 4),
        (GPU12, (64, 128, 256), 2048, 6),
        (GPU24, (64, 128, 256), 2048, 12),
        (GPU80, (64, 128, 256), 2048, 24),
    ],
)
def test_network_and_batch_follow_the_device(device, widths, embedding, batch):
    plan = planned(BRAIN, device=device)
    assert (plan.network.widths, plan.network.embedding, plan.recipe.batch_size) == (widths, embedding, batch)


@pytest.mark.parametrize("device", [CPU, GPU80])
@pytest.mark.parametrize(("cases", "channel"), [(BRAIN, "MRI"), (CT, "CT"), (CUBE, "T1")])
def test_the_paper_recipe_is_the_papers_on_any_device(device, cases, channel):
    plan = planned(cases, (channel,), device, "paper")
    assert plan.recipe == Recipe(name="paper", iterations=3000, batch_size=24, learning_rate=1e-3)
    network = plan.network
    assert (network.widths, network.aspp_channels, network.embedding) == ((64, 128, 256), 256, 2048)
    assert (network.mixer_width, network.modes, network.dilations) == (512, 3, PAPER_DILATIONS)
    assert (plan.patch.size, plan.patch.centre) == ((12, 36, 36), (8, 28, 28))


@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_a_smaller_card_never_gets_a_larger_load(recipe):
    plans = [planned(BRAIN, device=("cuda", gigabytes), recipe=recipe) for gigabytes in (4.0, 8.0, 12.0, 24.0, 80.0)]
    loads = [p.recipe.batch_size * sum(p.network.widths) for p in plans]
    assert loads == sorted(loads)


def test_2d_images_are_shrunk_until_a_patch_sees_one():
    def rule(shapes, spacings, limit):
        return rules.flat_spacing_rule(np.array(spacings, float), np.array(shapes), limit)

    one = [(1, 1, 1)]
    assert rule([(1, 90, 100)], one, 9216)[0] is None  # small enough
    spacing, reason = rule([(1, 200, 288)], one, 9216)
    assert spacing == (1.0, 2.5, 2.5)
    assert "200 x 288 pixels (median) made 2.5 times coarser, towards 9,216 pixels" in reason
    assert rule([(1, 2000, 3000)], one, 9216)[0] == (1.0, 4.0, 4.0)  # no further, for small objects' sake
    mixed = rule([(1, 90, 100), (1, 45, 50)], [(1, 0.5, 0.5), (1, 1, 1)], 9216)
    assert mixed[0] == (1.0, 0.75, 0.75)  # several spacings are brought to one


def test_2d_images_of_lesions_are_mirrored_and_others_are_not():
    facts = DatasetFacts("Dataset001_X", ("US",), {"background": 0, "lesion": 1}, None, ".png")
    fingerprint = dataset_fingerprint(facts.name, {str(n): c for n, c in enumerate(ULTRASOUND)})
    plans = {name: make_plan(facts, fingerprint, rules.Device(*CPU), name) for name in ("default", "unet_default")}
    for plan in plans.values():
        recipe = plan.recipe
        assert recipe.augmentation.mirror_axes == recipe.inference.mirror_axes == (1,)
        assert (recipe.iterations, recipe.augmentation.spatial_probability, recipe.alignment) == (400, 0.7, "none")
    paper = make_plan(facts, fingerprint, rules.Device(*CPU), "paper")
    assert paper.recipe == Recipe(name="paper", iterations=3000, batch_size=24, learning_rate=1e-3)
    assert planned(ULTRASOUND, ("US",)).recipe.augmentation.mirror_axes == ()  # organ and vessel may have a side
    assert planned(BRAIN).recipe.augmentation.spatial_probability == 0.3


def test_scans_are_aligned_unless_flat_or_lesions_or_the_papers_recipe():
    plan = planned(BRAIN)
    assert (plan.recipe.alignment, plan.network.atlas_prior) == ("deformable", True)
    assert "registration to the training scans" in plan.reasons["alignment"]
    for other in (planned(ULTRASOUND, ("US",)), planned(BRAIN, recipe="paper")):
        assert (other.recipe.alignment, other.network.atlas_prior) == ("none", False)
    for names, lesions in ((["background", "Edema", "enhancing_tumor"], "Edema, enhancing_tumor"), (["organ"], None)):
        found, reason = rules.alignment_rule("affine", names, (40, 60, 60))
        assert found == ("none" if lesions else "affine")
        assert lesions is None or f"labels {lesions} name lesions" in reason
    assert rules.alignment_rule("affine", ["organ"], (5, 200, 200))[0] == "none"


def test_a_small_batch_switches_the_image_levels_norm_off():
    assert [planned(BRAIN, device=d).network.image_level_norm for d in (CPU, GPU12, GPU80)] == [False, False, True]
    assert planned(BRAIN, recipe="paper", device=GPU12).network.image_level_norm


def test_the_unet_baseline_is_a_recipe():
    paper = planned(BRAIN, recipe="unet")
    assert (paper.recipe.iterations, paper.recipe.batch_size, paper.recipe.ohem) == (20_000, 64, False)
    assert (paper.network.widths, paper.patch.size) == ((64, 128, 256), (12, 36, 36))
    assert planned(BRAIN, recipe="unet_spread").recipe.step_every == 10_000
    small, ours = planned(BRAIN, recipe="unet_default"), planned(BRAIN)
    assert small.patch == ours.patch
    assert small.network.widths == ours.network.widths
    assert small.recipe.alignment == "none"
    for plan in (paper, small):
        network = plan.network
        assert (network.ams, network.dml, network.coordinates, network.atlas_prior) == (False, False, "none", False)


def numbered(*names):
    return {name: n for n, name in enumerate(("background", *names))}


BTCV = numbered("spleen", "right_kidney", "left_kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta",
                "inferior_vena_cava", "portal_and_splenic_vein", "pancreas", "right_adrenal_gland",
                "left_adrenal_gland")  # fmt: skip
MRBRAINS = numbered("Cortical gray matter", "Basal ganglia", "White matter", "White matter lesions",
                    "Cerebrospinal fluid in the extracerebral space", "Ventricles", "Cerebellum", "Brain stem",
                    "Infarction", "Other")  # fmt: skip


@pytest.mark.parametrize("recipe", ["paper", "paper_small"])
def test_the_papers_groups_go_with_the_papers_datasets(recipe):
    ct = planned(CT, ("CT",), recipe=recipe, labels=BTCV)
    assert set(ct.labels) - set(ct.recipe.majority) == {"gallbladder", "esophagus"}
    assert (ct.recipe.n_lg, "BTCV" in ct.reasons["groups"]) == (4, True)
    brain = planned(BRAIN, ("T1", "T1IR", "FLAIR"), recipe=recipe, labels=MRBRAINS)
    assert brain.recipe.majority == ("background", "Cortical gray matter", "White matter", "Ventricles")
    assert brain.recipe.n_lg == 6
    other = planned(CT, ("CT",), recipe=recipe, labels={k: v for k, v in BTCV.items() if v < 4})
    assert (other.recipe.majority, other.recipe.n_lg) == ((), 6)  # derived in each fold
    assert planned(CT, ("CT",), labels=BTCV).recipe.majority == ()


@pytest.mark.parametrize(
    ("channels", "labels", "mirrored"),
    [
        (("T1", "FLAIR"), LABELS, (2,)),
        (("CT",), LABELS, ()),
        (("MRI",), numbered("left hippocampus", "right hippocampus"), ()),
        (("MRI",), numbered("Kidney_L"), ()),
        (("MRI",), numbered("bright", "cleft"), (2,)),
    ],
)
def test_the_papers_augmentation_mirrors_mri_without_sides(channels, labels, mirrored):
    for name in ("paper_aug", "paper_aug_small"):
        plan = planned(BRAIN, channels, recipe=name, labels=labels)
        assert plan.recipe.augmentation.mirror_axes == mirrored
        assert plan.recipe.augmentation.brightness_probability == plan.recipe.augmentation.contrast_probability == 0.5
        assert "mirrored" in plan.reasons["mirroring"] or mirrored
    with_it, without = (planned(BRAIN, ("T1",), recipe=name) for name in ("paper_aug", "paper"))
    assert without.recipe.augmentation == AugmentationSpec()
    assert with_it.patch == without.patch
    assert with_it.network == without.network
    flat = planned(ULTRASOUND, ("MRI",), recipe="paper_aug")
    assert flat.recipe.augmentation.mirror_axes == (1,)


def test_the_papers_method_at_the_size_of_a_cpu():
    plan, default = planned(BRAIN, device=GPU80, recipe="paper_small"), planned(BRAIN)
    assert (plan.network.widths, plan.patch) == (default.network.widths, default.patch)
    assert plan.preprocessing.spacing == default.preprocessing.spacing
    assert (plan.recipe.iterations, plan.recipe.learning_rate) == (default.recipe.iterations, 3e-3)
    paper = Recipe(name="paper_small", iterations=1200, batch_size=4, learning_rate=3e-3, schedule="cosine")
    assert plan.recipe == paper  # all the rest is the paper's: Recipe's own defaults
    assert (plan.network.atlas_prior, plan.network.coordinates) == (False, "volume")


def test_lesions_keep_the_coarser_grid_of_a_small_network():
    """They have no place that registration finds: a patch must show what is around them."""
    grids = [
        planned(CUBE, labels={"background": 0, name: 1}).preprocessing.spacing for name in ("edema", "hippocampus")
    ]
    assert grids == [(2.4247, 2.4247, 2.4247), (1.6812, 1.6812, 1.6812)]
    assert planned(CUBE, device=GPU24, labels={"background": 0, "edema": 1}).preprocessing.spacing == (1, 1, 1)


def test_a_scan_of_another_spacing_is_resampled_where_all_planned_ones_had_one():
    plan = planned([CUBE[0]], device=GPU24)
    assert "the one spacing of all scans" in plan.reasons["grid"]
    assert grid_size((178, 215, 178), (1.0, 1.0, 1.0), plan.preprocessing) == (178, 215, 178)
    assert grid_size((356, 430, 89), (0.5, 0.5, 2.0), plan.preprocessing) == (178, 215, 178)


def test_where_only_lesions_are_looked_for_the_network_is_the_plain_u_net():
    lesions, mixed = {"background": 0, "edema": 1, "necrosis": 2}, {"background": 0, "liver": 1, "liver_tumour": 2}
    plan = planned(CUBE, labels=lesions)
    assert plan.network == planned(CUBE, labels=lesions, recipe="unet_default").network
    assert (plan.network.coordinates, plan.network.ams, plan.network.dml, plan.recipe.ohem) == ("none", *[False] * 3)
    assert plan.recipe.inference.intensity_weight == 1.0  # mended, which the baseline is not
    assert "plain U-Net" in plan.reasons["method"]
    organs = planned(CUBE, labels=mixed)  # an organ has its place
    assert organs.network.coordinates == "volume"
    assert (organs.network.ams, organs.network.dml, organs.recipe.ohem) == (True, True, True)
    for recipe in ("paper", "paper_small"):  # the paper's network always has them
        assert planned(CUBE, labels=lesions, recipe=recipe).network.coordinates == "volume"


@pytest.mark.parametrize(
    ("voxels", "iterations"), [(1_000, 600), (663_552, 600), (884_736, 800), (1_327_104, 1200), (9_000_000, 1200)]
)
def test_larger_scans_are_trained_on_for_longer(voxels, iterations):
    """So that 4 patches of 24^3 an iteration see each voxel about 50 times; never less than the recipe's length."""
    found, reason = rules.length_rule(600, voxels, 4 * 24**3)
    assert found == iterations
    assert f"{iterations} iterations" in reason


def test_the_length_by_size_is_for_volumes_and_not_for_the_papers_recipes():
    assert planned(CUBE).recipe.iterations == 1200
    assert planned([case((48, 60, 50), (1, 1, 1))]).recipe.iterations == 600
    assert planned(CUBE, recipe="paper").recipe.iterations == 3000
    assert planned(ULTRASOUND, ("US",)).recipe.iterations == 400


def test_dilations_may_be_given_by_name():
    plan = planned(BRAIN, recipe="paper")
    by_patch = with_changes(plan, {"network.dilations": "patch"})
    assert by_patch.network.dilations == ((2, 6, 6), (4, 12, 12), (6, 18, 18))
    assert with_changes(by_patch, {"network.dilations": "paper"}).network == plan.network
    larger = with_changes(plan, {"network.dilations": "patch", "patch.size": "[24, 36, 36]"})
    assert larger.network.dilations[2] == (12, 18, 18)
    assert "network.dilations=patch" in by_patch.reasons["set"]
    with pytest.raises(UserError, match=r"network\.dilations: is 'papr'"):
        with_changes(plan, {"network.dilations": "papr"})


def test_crops_are_taken_by_the_paper_recipe_only():
    assert planned(CT, ("CT",), recipe="paper", crops=True).preprocessing.crop == "given"
    assert planned(CT, ("CT",), crops=True).preprocessing.crop == "body"


def test_an_unknown_channel_name_and_recipe_are_spoken_of():
    assert planned(BRAIN, ("mystery",)).reasons["normalization_0"].startswith("NOTE channel name 'mystery' is unknown")
    with pytest.raises(UserError, match=r"'papper' is unknown; did you mean 'paper'\?"):
        planned(BRAIN, recipe="papper")


def test_what_prediction_compares_with_is_the_range_of_all_scans():
    seen = planned(CT, ("CT",)).seen
    assert seen["spacing"] == [[2.5, 0.7, 0.7], [5, 0.8, 0.8]]
    assert seen["extent_mm"] == [[300, pytest.approx(358.4), pytest.approx(358.4)], [450, 409.6, 409.6]]
    assert seen["channels"] == [{"median": [100.0, 100.0], "percentile_99_5": [400.0, 400.0]}]


SIDES = st.floats(0.3, 8.0)


@given(st.lists(st.tuples(SIDES, st.integers(1, 400)), min_size=2, max_size=3), st.sampled_from([2000, 15552, 60000]))
@settings(max_examples=300, derandomize=True, deadline=None)
def test_a_patch_fits_divides_and_uses_its_budget(axes, budget):
    spacing, size = tuple(a[0] for a in axes), tuple(a[1] for a in axes)
    strides = rules.strides_rule(spacing)
    divisor = tuple(np.prod(strides, axis=0).tolist())
    patch, _ = rules.patch_rule(spacing, size, budget, divisor)
    for side, centre, whole, part in zip(patch.size, patch.centre, size, divisor, strict=True):
        assert side % part == 0
        assert side <= max(whole, part)
        assert 0 < centre <= side
        assert (side - centre) % 2 == 0
    if len(axes) == 3 and budget == rules.PAPER_BUDGET and min(size) >= 160:
        assert 0.6 < math.prod(patch.size) / budget < 1.5
    dilations, _ = rules.dilation_rule(patch.size)
    assert all(1 <= d <= n for row in dilations for d, n in zip(row, patch.size, strict=True))


@given(
    st.lists(st.tuples(*[st.floats(0.1, 8.0)] * 3, *[st.integers(8, 600)] * 3), min_size=1, max_size=5),
    st.sampled_from([None, 100_000, 3_000_000]),
)
@settings(max_examples=200, derandomize=True, deadline=None)
def test_the_target_spacing_is_never_finer_and_keeps_the_voxel_limit(scans, limit):
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
    """0.4 micrometres are rounded to no other number."""
    spacings = np.array([[0.00043, 0.00041, 0.00041]])
    target, _ = rules.spacing_rule(spacings, spacings * 100, None)
    assert target == pytest.approx((0.00043, 0.00041, 0.00041), rel=1e-3)


def test_a_case_is_measured_from_its_image():
    image = np.full((1, 10, 20, 20), -5.0, np.float32)
    image[0, 2:8, 4:16, 5:19] = np.linspace(10, 110, 6 * 12 * 14).reshape(6, 12, 14)
    measured = case_fingerprint(image, (2.0, 1.0, 1.0), "RAS")
    assert measured["nonzero_shape"] == [6, 12, 14]
    assert measured["background_share"] == pytest.approx(1 - 6 * 12 * 14 / 4000)
    assert (measured["channels"][0]["min"], measured["channels"][0]["max"]) == (-5, 110)
    assert (measured["shape"], measured["spacing"], measured["orientation"]) == ([10, 20, 20], [2, 1, 1], "RAS")
    other = {**measured, "background_share": 0.1}
    assert constant_background(dataset_fingerprint("D", {"a": measured}))
    assert not constant_background(dataset_fingerprint("D", {"a": measured, "b": other}))


@pytest.mark.parametrize("cases", [CT, CUBE, BRAIN])
def test_a_gpus_plan_keeps_the_memory_of_prediction_bounded(cases):
    """At most as many voxels as the paper's CT grid, on which 14 classes' probabilities are half a gigabyte."""
    plan = planned(cases, ("CT" if cases is CT else "T1",), GPU80)
    boxes = [case["body_shape"] for case in cases]
    extents = np.median([np.multiply(box, case["spacing"]) for box, case in zip(boxes, cases, strict=True)], axis=0)
    spacing = plan.preprocessing.spacing
    assert np.prod(extents / spacing) <= 72 * 324 * 396 * 1.01
    many = {"background": 0, **{f"part {n}": n for n in range(1, 60)}}
    told = planned(cases, ("CT" if cases is CT else "T1",), GPU80, labels=many).reasons.get("memory", "")
    assert ("GB (60 classes on a median scan's grid)" in told) == (60 * 4 * np.prod(extents / spacing) > 5e8)
