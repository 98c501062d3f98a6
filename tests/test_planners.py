"""Plans of typical datasets: golden values, and what each recipe and device changes."""

from dataclasses import replace

import numpy as np
import pytest
from references import with_settings

from mre_lowshot.config import AugmentationConfig, ChannelNormalization, Recipe
from mre_lowshot.config.presets import PRESETS
from mre_lowshot.errors import UserError
from mre_lowshot.planners.decisions import DECISIONS
from mre_lowshot.planners.draft import Draft
from mre_lowshot.planners.facts import DatasetFacts
from mre_lowshot.planners.fingerprint import dataset_fingerprint
from mre_lowshot.planners.hardware import Device
from mre_lowshot.planners.planner import make_plan, with_changes
from mre_lowshot.preprocessing.pipeline import grid_size

CPU, GPU12, GPU24, GPU80 = ("cpu", 16.0), ("cuda", 12.0), ("cuda", 24.0), ("cuda", 80.0)
PAPER_DILATIONS = ((6, 6, 6), (12, 12, 12), (18, 18, 18))
COARSE_Z, CUBIC = ((2, 2, 2), (1, 2, 2)), ((2, 2, 2), (2, 2, 2))
LABELS = {"background": 0, "organ": 1, "vessel": 2}


def case(shape, spacing, body=None, nonzero=None, background=0.0, channels=1):
    """The fingerprint of an invented scan; body and nonzero are the sizes of those boxes."""
    middle = dict.fromkeys(("min", "percentile_00_5", "percentile_25", "median", "percentile_75"), 100.0)
    channel = {**middle, "percentile_99_5": 400.0, "max": 500.0, "mean": 150.0, "std": 90.0}
    return {
        "shape": list(shape),
        "spacing": list(spacing),
        "orientation": "LPS",
        "background_share": background,
        "nonzero_shape": list(nonzero or shape),
        "body_shape": list(body or shape),
        "channels": [channel] * channels,
    }


BRAIN = [case((48, 240, 240), (3, 0.958, 0.958), body=(48, 215, 180))] * 3
CUBE = [case((180, 220, 180), (1, 1, 1), body=(178, 215, 178))] * 2
CT = [
    case((100, 512, 512), (3, 0.7, 0.7), body=(100, 350, 480)),
    case((150, 512, 512), (2.5, 0.8, 0.8), body=(150, 300, 440)),
    case((90, 512, 512), (5, 0.75, 0.75), body=(90, 340, 470)),
]
STRIPPED = [case((155, 240, 240), (1, 1, 1), nonzero=(140, 170, 140), background=0.85, channels=2)] * 2
ULTRASOUND = [case((1, 471, 562), (1, 1, 1)), case((1, 500, 600), (1, 0.5, 0.5)), case((1, 300, 400), (1, 1, 1))]


def facts_and_fingerprint(cases, channels=("MRI",), labels=LABELS, crops=False):
    facts = DatasetFacts("Dataset001_X", channels, labels, None, ".nii.gz", crops)
    return facts, dataset_fingerprint(facts.name, {str(n): c for n, c in enumerate(cases)})


def planned(cases, channels=("MRI",), device=CPU, recipe="default", crops=False, labels=LABELS, n4="auto"):
    facts, fingerprint = facts_and_fingerprint(cases, channels, labels, crops)
    return make_plan(facts, fingerprint, device=Device(*device), recipe=recipe, n4=n4)


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
                  ((2, 2), (2, 2)), ((6, 6), (12, 12), (18, 18))),
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
    bias_field = name in ("brain, cpu", "cube, cpu", "cube, gpu")
    inside = "stripped" in name or bias_field
    assert done.normalization == (scheme or ChannelNormalization("zscore", inside),) * len(channels)
    assert done.bias_field == bias_field


@pytest.mark.parametrize(
    ("device", "widths", "embedding", "batch"),
    [
        (CPU, (16, 32, 64), 64, 4),
        (("mps", 64.0), (16, 32, 64), 64, 4),
        (("cuda", 8.0), (16, 32, 64), 64, 4),
        (GPU12, (64, 128, 256), 2048, 24),
        (GPU24, (64, 128, 256), 2048, 24),
        (GPU80, (64, 128, 256), 2048, 24),
    ],
)
def test_network_and_batch_follow_the_device(device, widths, embedding, batch):
    plan = planned(BRAIN, device=device)
    assert (plan.network.widths, plan.network.embedding_dim) == (widths, embedding)
    assert plan.recipe.sampling.batch_size == batch


@pytest.mark.parametrize("device", [CPU, GPU80])
@pytest.mark.parametrize(("cases", "channel"), [(BRAIN, "MRI"), (CT, "CT"), (CUBE, "T1")])
def test_the_paper_recipe_is_the_papers_on_any_device(device, cases, channel):
    plan = planned(cases, (channel,), device, "paper")
    assert plan.recipe == with_settings(Recipe("paper"), iterations=3000, batch_size=24, learning_rate=1e-3)
    network = plan.network
    assert (network.widths, network.aspp_channels, network.embedding_dim) == ((64, 128, 256), 256, 2048)
    assert (network.mixing_dim, network.prototypes_per_class, network.dilations) == (512, 3, PAPER_DILATIONS)
    assert (plan.patch.size, plan.patch.centre) == ((12, 36, 36), (8, 28, 28))


@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_a_smaller_gpu_is_never_given_a_larger_load(recipe):
    plans = [planned(BRAIN, device=("cuda", gigabytes), recipe=recipe) for gigabytes in (4.0, 8.0, 12.0, 24.0, 80.0)]
    loads = [p.recipe.sampling.batch_size * sum(p.network.widths) for p in plans]
    assert loads == sorted(loads)


def test_2d_images_of_lesions_are_mirrored_and_others_are_not():
    lesion = {"background": 0, "lesion": 1}
    for name in ("default", "unet_default"):
        recipe = planned(ULTRASOUND, ("US",), recipe=name, labels=lesion).recipe
        assert recipe.augmentation.mirror_axes == recipe.inference.mirror_axes == (1,)
        assert (recipe.optimizer.iterations, recipe.augmentation.spatial_probability) == (400, 0.7)
        assert recipe.atlas.registration == "none"
    paper = planned(ULTRASOUND, ("US",), recipe="paper", labels=lesion)
    assert paper.recipe == with_settings(Recipe("paper"), iterations=3000, batch_size=24, learning_rate=1e-3)
    assert planned(ULTRASOUND, ("US",)).recipe.augmentation.mirror_axes == ()  # organ and vessel may have a side
    assert planned(BRAIN).recipe.augmentation.spatial_probability == 0.3


def test_scans_are_registered_unless_2d_or_of_lesions_or_planned_with_the_papers_recipe():
    plan = planned(BRAIN)
    assert (plan.recipe.atlas.registration, plan.network.atlas_prior) == ("deformable", True)
    assert "deformable registration to the training scans" in plan.reasons["registration"]
    for other in (planned(ULTRASOUND, ("US",)), planned(BRAIN, recipe="paper")):
        assert (other.recipe.atlas.registration, other.network.atlas_prior) == ("none", False)


def test_the_atlas_prior_is_a_term_of_the_logits_in_recipe_default():
    plan = planned(BRAIN)
    assert (plan.network.atlas_prior_at, plan.network.multiscale) == ("logits", False)
    assert "a term of the logits" in plan.reasons["atlas_prior"]
    abdomen = planned(CT, ("CT",))
    assert (abdomen.network.atlas_prior_at, abdomen.network.multiscale) == ("input", True)
    assert "on abdominal CT better" in abdomen.reasons["atlas_prior"]
    for other in (planned(ULTRASOUND, ("US",)), planned(BRAIN, recipe="paper"), planned(BRAIN, recipe="paper_small")):
        assert other.network.multiscale
        assert "atlas_prior" not in other.reasons


def test_a_small_batch_switches_off_the_norm_of_the_image_level():
    assert [planned(BRAIN, device=d).network.image_level_norm for d in (CPU, GPU12, GPU80)] == [False, True, True]
    assert planned(BRAIN, recipe="paper", device=GPU12).network.image_level_norm


def test_the_unet_baseline_is_a_recipe():
    paper = planned(BRAIN, recipe="unet")
    assert (paper.recipe.optimizer.iterations, paper.recipe.sampling.batch_size) == (20_000, 64)
    assert not paper.recipe.loss.ohem
    assert (paper.network.widths, paper.patch.size) == ((64, 128, 256), (12, 36, 36))
    assert planned(BRAIN, recipe="unet_spread").recipe.optimizer.step_every == 10_000
    small, ours = planned(BRAIN, recipe="unet_default"), planned(BRAIN)
    assert small.patch == ours.patch
    assert small.network.widths == ours.network.widths
    assert small.recipe.atlas.registration == "none"
    for plan in (paper, small):
        network = plan.network
        assert (network.multiscale, network.prototype_head, network.atlas_prior) == (False, False, False)
        assert network.coordinates == "none"


def numbered(*names):
    return {name: n for n, name in enumerate(("background", *names))}


BTCV = numbered(
    "spleen",
    "right_kidney",
    "left_kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior_vena_cava",
    "portal_and_splenic_vein",
    "pancreas",
    "right_adrenal_gland",
    "left_adrenal_gland",
)
MRBRAINS = numbered(
    "Cortical gray matter",
    "Basal ganglia",
    "White matter",
    "White matter lesions",
    "Cerebrospinal fluid in the extracerebral space",
    "Ventricles",
    "Cerebellum",
    "Brain stem",
    "Infarction",
    "Other",
)


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
def test_the_papers_augmentation_mirrors_mri_without_left_and_right_labels(channels, labels, mirrored):
    for name in ("paper_aug", "paper_aug_small"):
        plan = planned(BRAIN, channels, recipe=name, labels=labels)
        assert plan.recipe.augmentation.mirror_axes == mirrored
        assert plan.recipe.augmentation.brightness_probability == plan.recipe.augmentation.contrast_probability == 0.5
        assert "mirrored" in plan.reasons["mirror_axes"] or mirrored
    with_it, without = (planned(BRAIN, ("T1",), recipe=name) for name in ("paper_aug", "paper"))
    assert without.recipe.augmentation == AugmentationConfig()
    assert with_it.patch == without.patch
    assert with_it.network == without.network
    of_images = planned(ULTRASOUND, ("MRI",), recipe="paper_aug")
    assert of_images.recipe.augmentation.mirror_axes == (1,)


def test_the_papers_method_at_the_size_of_a_cpu():
    plan, default = planned(BRAIN, device=GPU80, recipe="paper_small"), planned(BRAIN)
    assert (plan.network.widths, plan.patch) == (default.network.widths, default.patch)
    assert plan.preprocessing.spacing == default.preprocessing.spacing
    assert plan.recipe.optimizer.iterations == default.recipe.optimizer.iterations
    assert plan.recipe.optimizer.learning_rate == 3e-3
    changed = {"iterations": 1200, "batch_size": 4, "learning_rate": 3e-3, "schedule": "cosine"}
    assert plan.recipe == with_settings(Recipe("paper_small", size="small"), **changed)  # the rest is the paper's
    assert (plan.network.atlas_prior, plan.network.coordinates) == (False, "volume")


def test_lesions_keep_the_coarser_grid_of_a_small_network():
    """Registration cannot find their position: a patch must show what is around them."""
    names = ("edema", "hippocampus")
    grids = [planned(CUBE, labels={"background": 0, name: 1}).preprocessing.spacing for name in names]
    assert grids == [(2.4247, 2.4247, 2.4247), (1.6812, 1.6812, 1.6812)]
    assert planned(CUBE, device=GPU24, labels={"background": 0, "edema": 1}).preprocessing.spacing == (1, 1, 1)


def test_a_scan_of_another_spacing_is_resampled_where_all_planned_scans_shared_one():
    plan = planned([CUBE[0]], device=GPU24)
    assert "all scans have this spacing and keep their own grid" in plan.reasons["grid"]
    assert grid_size((178, 215, 178), (1.0, 1.0, 1.0), plan.preprocessing) == (178, 215, 178)
    assert grid_size((356, 430, 89), (0.5, 0.5, 2.0), plan.preprocessing) == (178, 215, 178)


def test_where_every_label_is_a_lesion_the_network_is_the_plain_u_net():
    lesions, mixed = {"background": 0, "edema": 1, "necrosis": 2}, {"background": 0, "liver": 1, "liver_tumour": 2}
    plan = planned(CUBE, labels=lesions)
    assert plan.network == planned(CUBE, labels=lesions, recipe="unet_default").network
    assert (plan.network.coordinates, plan.network.multiscale, plan.network.prototype_head) == ("none", False, False)
    assert not plan.recipe.loss.ohem
    assert plan.recipe.refinement.em_weight == 1.0  # refined, which the baseline is not
    assert "plain U-Net" in plan.reasons["architecture"]
    organs = planned(CUBE, labels=mixed)  # the position of an organ is known
    assert organs.network.coordinates == "volume"
    assert (organs.network.multiscale, organs.network.prototype_head, organs.recipe.loss.ohem) == (True, True, True)
    for recipe in ("paper", "paper_small"):  # the paper's network always has them
        assert planned(CUBE, labels=lesions, recipe=recipe).network.coordinates == "volume"


def test_iterations_depend_on_the_size_of_volumes_and_not_in_the_papers_recipes():
    assert planned(CUBE).recipe.optimizer.iterations == 1200
    assert planned([case((48, 60, 50), (1, 1, 1))]).recipe.optimizer.iterations == 600
    assert planned(CUBE, recipe="paper").recipe.optimizer.iterations == 3000
    assert planned(ULTRASOUND, ("US",)).recipe.optimizer.iterations == 400


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


def test_an_unknown_channel_name_and_recipe_are_reported():
    assert planned(BRAIN, ("mystery",)).reasons["normalization_0"].startswith("NOTE channel name 'mystery' is unknown")
    with pytest.raises(UserError, match=r"'papper' is unknown; did you mean 'paper'\?"):
        planned(BRAIN, recipe="papper")


def test_the_training_ranges_cover_all_scans():
    ranges = planned(CT, ("CT",)).training_ranges
    assert ranges["spacing"] == [[2.5, 0.7, 0.7], [5, 0.8, 0.8]]
    assert ranges["extent_mm"] == [[300, pytest.approx(358.4), pytest.approx(358.4)], [450, 409.6, 409.6]]
    assert (ranges["scans"], ranges["shape"], ranges["padding_share"]) == (3, [[90, 512, 512], [150, 512, 512]], [0, 0])
    assert ranges["channels"][0]["median"] == [100.0, 100.0]
    assert [ranges["channels"][0][key] for key in ("percentile_99_5", "width")] == [[400, 400], [300, 300]]


@pytest.mark.parametrize("cases", [CT, CUBE, BRAIN])
def test_a_gpus_plan_keeps_the_memory_of_prediction_bounded(cases):
    """At most as many voxels as the paper's CT grid, on which 14 classes' probabilities are half a gigabyte."""
    plan = planned(cases, ("CT" if cases is CT else "T1",), GPU80)
    boxes = [case["body_shape"] for case in cases]
    extents = np.median([np.multiply(box, case["spacing"]) for box, case in zip(boxes, cases, strict=True)], axis=0)
    spacing = plan.preprocessing.spacing
    assert np.prod(extents / spacing) <= 72 * 324 * 396 * 1.01
    many = {"background": 0, **{f"part {n}": n for n in range(1, 60)}}
    note = planned(cases, ("CT" if cases is CT else "T1",), GPU80, labels=many).reasons.get("memory", "")
    assert ("GB (60 classes on a median scan's grid)" in note) == (60 * 4 * np.prod(extents / spacing) > 5e8)


DATASETS = {
    "brain": (BRAIN, ("MRI",), LABELS),
    "ct": (CT, ("CT",), BTCV),
    "stripped": (STRIPPED, ("T1", "FLAIR"), LABELS),
    "lesions": (CUBE, ("FLAIR",), {"background": 0, "edema": 1}),
    "2d": (ULTRASOUND, ("US",), {"background": 0, "lesion": 1}),
}


@pytest.mark.parametrize("device", [CPU, GPU80])
@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("recipe", PRESETS.values(), ids=PRESETS)
def test_no_decision_depends_on_the_name_of_the_recipe(recipe, dataset, device):
    """A renamed recipe gives the same plan, but for its name and the reasons that quote it."""
    cases, channels, labels = DATASETS[dataset]
    facts, fingerprint = facts_and_fingerprint(cases, channels, labels, crops=True)
    drafts = []
    for name in (recipe.name, "other"):
        draft = Draft(facts, fingerprint, Device(*device), replace(recipe, name=name))
        for decide in DECISIONS:
            draft = decide(draft)
        drafts.append(draft)
    ours, other = drafts
    assert (ours.recipe.name, other.recipe.name) == (recipe.name, "other")
    assert other.reasons.keys() == ours.reasons.keys()
    assert replace(other, recipe=replace(other.recipe, name=recipe.name), reasons=ours.reasons) == ours


@pytest.mark.parametrize("recipe", ["default", "paper_small", "paper_aug_small"])
def test_a_thin_slab_that_leaves_one_slice_on_the_grid_is_planned_in_2d(recipe):
    """Two slices 0.5 mm apart among scans of 3 mm: the network's grid has one slice."""
    slab = [case((2, 300, 400), (0.5, 1, 1)), case((1, 300, 400), (3, 1, 1)), case((1, 320, 380), (3, 1, 1))]
    plan = planned(slab, channels=("US",), recipe=recipe)
    assert len(plan.patch.size) == len(plan.network.strides[0]) == len(plan.network.dilations[0]) == 2
    assert set(plan.recipe.augmentation.mirror_axes) <= {0, 1}


def test_volumes_among_which_a_few_have_one_slice_are_planned_in_3d():
    plan = planned([*BRAIN, case((1, 240, 240), (3, 0.958, 0.958))])
    assert len(plan.patch.size) == 3


@pytest.mark.parametrize("key", ["recipe.planning", "recipe.size", "recipe.architecture"])
def test_what_the_rest_of_the_plan_follows_from_is_not_changed_afterwards(key):
    plan = planned(BRAIN)
    with pytest.raises(UserError, match=rf"--set: {key} is decided before the rest of the plan"):
        with_changes(plan, {key: "unet"})


def test_the_small_and_the_papers_network():
    for recipe, wanted in (("default", (32, 64, 64)), ("paper", (256, 2048, 512))):
        network = planned(BRAIN, recipe=recipe).network
        assert (network.aspp_channels, network.embedding_dim, network.mixing_dim) == wanted
