"""From fingerprint to plan: calls the rules one after the other and keeps each one's reason."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mre_lowshot.codec import all_changed
from mre_lowshot.paper_data import groups_of
from mre_lowshot.planners import rules
from mre_lowshot.planners.fingerprint import constant_background, seen_ranges
from mre_lowshot.recipes import NETWORKS, OF_THE_PAPER, SMALL, UNET_NETWORK, for_images, named
from mre_lowshot.specs import NetworkSpec, PatchSpec, Plan, PreprocessingSpec, Recipe

if TYPE_CHECKING:
    from mre_lowshot.dataset import RawDataset

PAPER_CT_SIZE = (72, 324, 396)  # the paper's 324 x 396 x 72: the abdomen is wider than deep


@dataclass(frozen=True)
class DatasetFacts:
    """What the plan takes over from dataset.json, and whether a crops.json lies beside it."""

    name: str
    channel_names: tuple[str, ...]
    labels: dict[str, int]
    ignore_label: int | None
    file_ending: str
    has_crops: bool = False

    @classmethod
    def of(cls, dataset: RawDataset) -> DatasetFacts:
        crops = (dataset.folder / "crops.json").is_file()
        return cls(
            dataset.name, dataset.channel_names, dataset.labels, dataset.ignore_label, dataset.file_ending, crops
        )


def make_plan(
    facts: DatasetFacts,
    fingerprint: dict[str, Any],
    device: rules.Device,
    recipe_name: str = "default",
    plans_name: str = "MREPlans",
) -> Plan:
    """Decide everything that images and device decide. What labels decide waits for the fold (`planners.fold`)."""
    reasons: dict[str, str] = {}
    recipe = named(recipe_name)
    if recipe.name in SMALL:
        device = replace(device, kind="cpu")
    preprocessing = _preprocessing(facts, fingerprint, device, recipe, reasons)
    sizes = _grid_sizes(fingerprint, preprocessing)
    median_size = tuple(int(v) for v in np.median(sizes, axis=0))
    spacing = _grid_spacing(fingerprint, preprocessing)
    flat = median_size[0] == 1
    if flat:
        median_size, spacing = median_size[1:], spacing[1:]
    size, reasons["network"] = rules.size_rule(device)
    if reason := rules.memory_rule(len(facts.labels), median_size):
        reasons["memory"] = reason
    of_the_paper = recipe.name in OF_THE_PAPER
    beyond_the_paper = recipe.name not in (*OF_THE_PAPER, *SMALL)
    if of_the_paper:
        size = replace(rules.PAPER_SIZE, batch_size=rules.paper_batch(device, recipe.batch_size))
        reasons["network"] = f"recipe {recipe.name!r}: the paper's widths, {size.batch_size} patches a batch"
    strides = rules.strides_rule(spacing)
    divisor = tuple(a * b for a, b in zip(*strides, strict=True))
    budget = size.budget if not flat else size.pixel_limit
    patch, reasons["patch"] = rules.patch_rule(spacing, median_size, budget, divisor)
    dilations, reasons["dilations"] = rules.dilation_rule(patch.size)
    if of_the_paper and not flat:
        patch, strides = PatchSpec(), NetworkSpec(1, 2).strides
        dilations = NetworkSpec(1, 2).dilations
        reasons["patch"] = reasons["dilations"] = (
            f"recipe {recipe.name!r}: 12 x 36 x 36, centre 8 x 28 x 28, dilations 6, 12, 18"
        )
    pooled_norm = of_the_paper or size.batch_size >= rules.POOLED_NORM_BATCH
    if not pooled_norm:
        reasons["image_level_norm"] = (
            f"off: with {size.batch_size} patches a batch it would take its statistics from {size.batch_size} vectors"
        )
    network = NetworkSpec(
        in_channels=len(facts.channel_names),
        classes=len(facts.labels),
        widths=size.widths,
        strides=strides,
        aspp_channels=size.aspp_channels,
        dilations=dilations,
        embedding=size.embedding,
        mixer_width=size.mixer_width,
        image_level_norm=pooled_norm,
    )
    alignment, reasons["alignment"] = rules.alignment_rule(recipe.alignment, list(facts.labels), median_size)
    of_the_recipe = NETWORKS.get(recipe.name, {})
    if beyond_the_paper and not flat and not of_the_recipe:
        plain, reasons["method"] = rules.plain_rule(list(facts.labels))
        if plain:
            of_the_recipe, recipe = UNET_NETWORK, replace(recipe, ohem=False)
    network = replace(network, atlas_prior=alignment != "none", **of_the_recipe)
    recipe = replace(recipe, batch_size=size.batch_size, alignment=alignment)
    if alignment == "none":
        recipe = replace(recipe, mirror_images=False)
    elif recipe.mirror_images:
        reasons["mirror_images"] = (
            "where left and right are alike by a fold's labels, mirror images are used too (up to three training scans)"
        )
    is_ct = any(channel.scheme == "clip" for channel in preprocessing.normalization)
    if alignment != "deformable":
        recipe = replace(recipe, inference=replace(recipe.inference, realign_below=0.0))
    elif recipe.inference.realign_below:
        reasons["realignment"] = (
            f"again, by what was predicted too, where network and registration agree less than "
            f"{recipe.inference.realign_below:g} (Dice)"
        )
    inference, reasons["mending"] = rules.mending_rule(recipe.inference, list(facts.labels), flat, is_ct)
    recipe = replace(recipe, inference=inference)
    if preprocessing.crop == "nonzero" and beyond_the_paper:
        recipe = replace(recipe, inference=replace(recipe.inference, skip_empty=True))
        reasons["empty_tiles"] = "constant background in every scan: tiles that hold nothing else are not computed"
    recipe = _of_the_data(recipe, facts, flat, reasons)
    if flat and beyond_the_paper:
        mirror_axes, reasons["mirroring"] = rules.flat_mirror_rule(list(facts.labels))
        recipe = for_images(recipe, mirror_axes)
    if not flat and not of_the_paper:
        seen = recipe.batch_size * math.prod(patch.size)
        iterations, reasons["length"] = rules.length_rule(recipe.iterations, float(np.prod(median_size)), seen)
        recipe = replace(recipe, iterations=iterations)
    reasons["recipe"] = f"recipe {recipe.name!r}: {recipe.iterations} iterations of {recipe.batch_size} patches"
    if recipe.ohem:
        derived = "OHEM's majority group is derived from the labels of each fold's training scans, in the fold"
        reasons.setdefault("groups", derived)
    return Plan(
        dataset_name=facts.name,
        plans_name=plans_name,
        channel_names=facts.channel_names,
        labels=facts.labels,
        file_ending=facts.file_ending,
        preprocessing=preprocessing,
        patch=patch,
        network=network,
        recipe=recipe,
        reasons=reasons,
        seen=seen_ranges(fingerprint),
        ignore_label=facts.ignore_label,
    )


def with_changes(plan: Plan, changes: dict[str, str], where: str = "--set") -> Plan:
    """``plan`` with fields changed as ``--set KEY=VALUE`` does; ``network.dilations`` may also name a rule (`paper`,
    `patch`).

    Raises:
        UserError: a key names no field (the nearest is named), or a value breaks a rule.
    """
    if not changes:
        return plan
    rule = rules.DILATION_RULES.get(changes.get("network.dilations", ""))
    plan_now = all_changed(plan, {k: v for k, v in changes.items() if not (rule and k == "network.dilations")}, where)
    if rule:
        rows, _ = rule(plan_now.patch.size)
        plan_now = replace(plan_now, network=replace(plan_now.network, dilations=rows))
    said = ", ".join(f"{key}={value}" for key, value in changes.items())
    return replace(plan_now, reasons={**plan.reasons, "set": f"by {where}, whatever is said above: {said}"})


def _of_the_data(recipe: Recipe, facts: DatasetFacts, flat: bool, reasons: dict[str, str]) -> Recipe:
    """What of the recipe depends on the dataset: the paper's OHEM groups where it is one of the paper's two, and
    whether patches may be mirrored."""
    if recipe.name in (*OF_THE_PAPER, *SMALL) and recipe.ohem and (groups := groups_of(facts.labels)):
        majority = tuple(groups.majority(facts.labels))
        recipe = replace(recipe, majority=majority, n_lg=groups.n_lg)
        reasons["groups"] = f"labels are those of {groups.dataset}: {groups.reason}, N_Lg {groups.n_lg} (paper, IV-C)"
    axes = recipe.augmentation.mirror_axes
    if axes:
        allowed, reasons["mirroring"] = rules.mirror_rule(facts.channel_names, list(facts.labels))
        axes = tuple(a - flat for a in axes if a >= flat) if allowed else ()
        recipe = replace(recipe, augmentation=replace(recipe.augmentation, mirror_axes=axes))
    return recipe


def _preprocessing(
    facts: DatasetFacts, fingerprint: dict[str, Any], device: rules.Device, recipe: Recipe, reasons: dict[str, str]
) -> PreprocessingSpec:
    cases = list(fingerprint["cases"].values())
    stripped = constant_background(fingerprint)
    is_ct = any(name.strip().lower() in rules.CT_NAMES for name in facts.channel_names)
    normalization = []
    for index, channel in enumerate(facts.channel_names):
        scheme, reasons[f"normalization_{index}"] = rules.normalization_rule(channel, stripped and not is_ct)
        normalization.append(scheme)
    filled = [np.prod(c["body_shape"]) / np.prod(c["shape"]) for c in cases]
    flat = all(c["shape"][0] == 1 for c in cases)
    crop, reasons["crop"] = rules.crop_rule(is_ct, stripped, float(np.median(filled)), flat)
    spacings = np.array([c["spacing"] for c in cases])
    margin = 3 * float(np.median(spacings)) if crop == "nonzero" else 0.0
    spec = PreprocessingSpec(crop, tuple(normalization), grid="native", crop_margin_mm=round(margin, 4))
    if recipe.name not in (*OF_THE_PAPER, *SMALL) and not flat and not is_ct:
        extents = spacings * np.array([c["shape"] for c in cases])
        channels = [channel for c in cases for channel in c["channels"]]
        lowest = min(c["percentile_00_5"] / max(abs(c["percentile_99_5"]), 1e-6) for c in channels)
        shaded, reasons["bias_field"] = rules.bias_field_rule(facts.channel_names, stripped, extents, lowest)
        if shaded:
            inside = tuple(replace(channel, inside_only=True) for channel in spec.normalization)
            spec = replace(spec, normalization=inside, bias_field=True)
    if recipe.name in OF_THE_PAPER:
        if is_ct and not flat:
            reasons["grid"] = f"recipe {recipe.name!r}: CT resized to {PAPER_CT_SIZE} voxels (z, y, x), a fixed size"
            if facts.has_crops:
                spec, reasons["crop"] = replace(spec, crop="given"), f"recipe {recipe.name!r}: boxes of crops.json"
            return replace(spec, grid="size", size=PAPER_CT_SIZE)
        if crop != "nonzero" and not flat:
            reasons["crop"] = f"recipe {recipe.name!r}: MRI, the central 100 % x 90 % x 90 %"
            spec = replace(spec, crop="centre")
    shapes = np.array([_cropped_shape(c, spec) for c in cases])
    if flat:
        size = rules.PAPER_SIZE if recipe.name in OF_THE_PAPER else rules.size_rule(device)[0]
        coarser, reasons["grid"] = rules.flat_spacing_rule(spacings, shapes, size.pixel_limit)
        return replace(spec, grid="spacing", spacing=coarser) if coarser else spec
    median = tuple(int(v) for v in np.median(shapes, axis=0))
    # whatever this recipe aligns: recipes that are compared on one device have one grid
    placed = rules.alignment_rule("deformable", list(facts.labels), median)[0] != "none"
    limit = None if recipe.name in OF_THE_PAPER else rules.voxel_limit_rule(device, placed)
    spacing, reasons["grid"] = rules.spacing_rule(spacings, shapes * spacings, limit)
    if np.allclose(spacings, spacing, rtol=1e-3):
        reasons["grid"] = "the one spacing of all scans: they stay on their own grid, a scan with another is resampled"
    return replace(spec, grid="spacing", spacing=spacing)


def _cropped_shape(case: dict[str, Any], spec: PreprocessingSpec) -> list[int]:
    if spec.crop in ("nonzero", "body"):
        return case[f"{spec.crop}_shape"]
    if spec.crop == "centre":
        return [round(n * f) for n, f in zip(case["shape"], spec.centre_fraction, strict=True)]
    return case["shape"]


def _grid_sizes(fingerprint: dict[str, Any], spec: PreprocessingSpec) -> np.ndarray:
    from mre_lowshot.preprocessing.pipeline import grid_size

    cases = fingerprint["cases"].values()
    return np.array([grid_size(tuple(_cropped_shape(c, spec)), tuple(c["spacing"]), spec) for c in cases])


def _grid_spacing(fingerprint: dict[str, Any], spec: PreprocessingSpec) -> tuple[float, ...]:
    """Median spacing (z, y, x) mm of the network's grid."""
    spacings = []
    for case, size in zip(fingerprint["cases"].values(), _grid_sizes(fingerprint, spec), strict=True):
        spacings.append(np.multiply(_cropped_shape(case, spec), case["spacing"]) / size)
    return tuple(float(v) for v in np.median(spacings, axis=0))
