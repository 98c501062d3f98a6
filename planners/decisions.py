"""The planner's decisions in order: each takes the draft of a plan and returns it with one thing decided.

A decision calls a pure rule (`planners.rules`, `planners.hardware`) and records its reason. What differs between
recipes is a field of the recipe (`planning`, `size`, `architecture`), never its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from mre_lowshot.config import PatchConfig
from mre_lowshot.config.presets import UNET_NETWORK, for_images
from mre_lowshot.data.paper_datasets import groups_of
from mre_lowshot.errors import UserError
from mre_lowshot.grid import nominal_spacing
from mre_lowshot.planners import hardware, rules
from mre_lowshot.planners.draft import Draft
from mre_lowshot.planners.fingerprint import content_shape

MIN_ROUNDED_MM = 0.1  # a smaller margin is not rounded: it would be another number of voxels
PAPER_CT_SIZE = (72, 324, 396)  # the paper's 324 x 396 x 72: the abdomen is wider than deep


Decision = Callable[[Draft], Draft]


def decide_normalization(draft: Draft) -> Draft:
    """How each channel's intensities are normalised."""
    stripped = draft.stripped and not draft.is_ct
    found = [rules.normalization_rule(channel, stripped) for channel in draft.facts.channel_names]
    config = replace(draft.preprocessing, normalization=tuple(scheme for scheme, _ in found))
    reasons = {f"normalization_{index}": reason for index, (_, reason) in enumerate(found)}
    return draft.decided({"preprocessing": config}, **reasons)


def decide_crop(draft: Draft) -> Draft:
    """Which box each scan is cropped to."""
    filled = [np.prod(c["body_shape"]) / np.prod(content_shape(c)) for c in draft.cases]
    crop, reason = rules.crop_rule(draft.is_ct, draft.stripped, float(np.median(filled)), draft.is_2d)
    margin = 3 * float(np.median(draft.spacings)) if crop == "nonzero" else 0.0
    if draft.recipe.is_literal and not draft.is_2d:
        if draft.is_ct and draft.facts.has_crops:
            crop, reason = "given", f"recipe {draft.recipe.name!r}: boxes of crops.json"
        elif draft.is_ct:
            reason = f"{rules.NO_CROPS}; used here: {reason}"
        elif crop != "nonzero":
            crop, reason = "centre", f"recipe {draft.recipe.name!r}: MRI, the central 100 % x 90 % x 90 %"
    margin = round(margin, 4) if margin >= MIN_ROUNDED_MM else margin
    config = replace(draft.preprocessing, crop=crop, crop_margin_mm=margin)
    return draft.decided({"preprocessing": config}, crop=reason)


def decide_bias_field(draft: Draft) -> Draft:
    """Whether an MRI's bias field is corrected: by the rule with adaptive planning, or as ``n4`` demands."""
    adaptive = draft.recipe.planning == "adaptive"
    if draft.n4 == "on":
        _require_n4(draft)
        return _corrected(draft, "corrected (N4): --n4 on", inside=adaptive)
    if draft.n4 == "off":
        return draft.decided({}, bias_field="not corrected: --n4 off")
    if not adaptive or draft.is_2d or draft.is_ct:
        return draft
    extents = np.array([nominal_spacing(c["spacing"]) for c in draft.cases]) * draft.shapes
    channels = [channel for c in draft.cases for channel in c["channels"]]
    lowest = min(c["percentile_00_5"] / max(abs(c["percentile_99_5"]), 1e-6) for c in channels)
    names, facts = draft.facts.channel_names, draft.facts
    corrected = rules.corrected_rule(names, draft.label_names, facts.bias_field_corrected)
    correct, reason = rules.bias_field_rule(names, draft.stripped, extents, lowest, corrected=corrected)
    return _corrected(draft, reason, inside=True) if correct else draft.decided({}, bias_field=reason)


def _require_n4(draft: Draft) -> None:
    """Refuse ``--n4 on`` for what has no bias field: 2D images, and channels in HU."""
    if draft.is_2d or any(channel.scheme != "zscore" for channel in draft.preprocessing.normalization):
        kind = "2D images" if draft.is_2d else f"channel {', '.join(draft.facts.channel_names)}"
        raise UserError(f"--n4 on: N4 corrects MRI volumes, found {kind}; leave --n4 out")


def _corrected(draft: Draft, reason: str, *, inside: bool) -> Draft:
    """With the bias field corrected, and z-scores taken ``inside`` the patient or over the whole crop."""
    config = replace(draft.preprocessing, bias_field=True)
    if inside:
        channels = tuple(replace(channel, foreground_only=True) for channel in config.normalization)
        config = replace(config, normalization=channels)
    return draft.decided({"preprocessing": config}, bias_field=reason)


def decide_size(draft: Draft) -> Draft:
    """The network's size and the number of patches per batch."""
    recipe, device = draft.recipe, draft.device
    wanted = recipe.sampling.batch_size
    if recipe.size == "paper":
        # the paper's own plans keep the norm of the image-level branch, also with more processes than it needs
        least = hardware.LEAST_NORM_BATCH if recipe.is_literal and recipe.architecture == "mre_net" else 1
        batch, recompute = hardware.paper_batch(device, wanted, recipe.architecture, least=least)
        size = replace(hardware.PAPER_SIZE, batch_size=batch)
        how = hardware.batch_reason(device, batch, wanted, recompute)
        reason = f"recipe {recipe.name!r}: the paper's widths, {how}"
    elif recipe.size == "small":
        size, reason = hardware.small_size(device, f"recipe {recipe.name!r}: the small network")
        recompute = False
    else:
        size, reason = hardware.size_rule(device)
        large = size.name == "paper"
        recompute = large and hardware.paper_batch(device, size.batch_size, recipe.architecture)[1]
    recipe = replace(
        recipe,
        sampling=replace(recipe.sampling, batch_size=size.batch_size),
        optimizer=replace(recipe.optimizer, recompute=recipe.optimizer.recompute or recompute),
    )
    return draft.decided({"size": size, "recipe": recipe}, network=reason)


def decide_grid(draft: Draft) -> Draft:
    """The grid that every scan is resampled to."""
    config, recipe = draft.preprocessing, draft.recipe
    shapes, spacings = draft.cropped_shapes(), draft.spacings
    if draft.is_2d:
        spacing, reason = rules.image_spacing_rule(spacings, shapes, draft.size.image_pixels)
        config = replace(config, grid="spacing", spacing=spacing) if spacing else config
        return draft.decided({"preprocessing": config}, grid=reason)
    if recipe.is_literal and draft.is_ct:
        config = replace(config, grid="size", size=PAPER_CT_SIZE)
        reason = f"recipe {recipe.name!r}: CT resized to {PAPER_CT_SIZE} voxels (z, y, x), a fixed size"
        return draft.decided({"preprocessing": config}, grid=reason)
    median = tuple(int(v) for v in np.median(shapes, axis=0))
    # independent of this recipe's registration: recipes that are compared on one device share a grid
    registrable = rules.registration_rule("deformable", draft.label_names, median)[0] != "none"
    limit = None if recipe.is_literal else hardware.scan_voxels_rule(draft.size, registrable)
    target, reason = rules.spacing_rule(spacings, shapes * spacings, limit)
    if np.allclose(spacings, target, rtol=1e-3, atol=0):
        reason = "all scans have this spacing and keep their own grid; a scan with another spacing is resampled"
    return draft.decided({"preprocessing": replace(config, grid="spacing", spacing=target)}, grid=reason)


def decide_patch(draft: Draft) -> Draft:
    """Patch, pooling strides and dilations."""
    if draft.recipe.is_literal and not draft.plans_2d:
        reason = f"recipe {draft.recipe.name!r}: 12 x 36 x 36, centre 8 x 28 x 28, dilations 6, 12, 18"
        return draft.decided({"patch": PatchConfig()}, patch=reason, dilations=reason)
    median_size, spacing = draft.median_grid()
    strides = rules.strides_rule(spacing)
    divisor = tuple(a * b for a, b in zip(*strides, strict=True))
    voxels = draft.size.image_pixels if draft.plans_2d else draft.size.patch_voxels
    patch, reason = rules.patch_rule(spacing, median_size, voxels, divisor)
    dilations, why = (rules.paper_dilations if draft.recipe.is_literal else rules.dilation_rule)(patch.size)
    network = replace(draft.network, strides=strides, dilations=dilations)
    return draft.decided({"patch": patch, "network": network}, patch=reason, dilations=why)


def decide_network(draft: Draft) -> Draft:
    """The network's widths, and whether the image-level branch has a norm."""
    size, facts, reasons = draft.size, draft.facts, {}
    synchronised = draft.recipe.optimizer.sync_batch_norm
    pooled_norm, why = hardware.pooled_norm_rule(draft.device, size.batch_size, synchronised=synchronised)
    if draft.recipe.is_literal:
        pooled_norm = True
    elif not pooled_norm:
        reasons["image_level_norm"] = why
    network = replace(
        draft.network,
        in_channels=len(facts.channel_names),
        classes=len(facts.labels),
        widths=size.widths,
        aspp_channels=size.aspp_channels,
        embedding_dim=size.embedding_dim,
        mixing_dim=size.mixing_dim,
        image_level_norm=pooled_norm,
    )
    if note := hardware.memory_rule(len(facts.labels), draft.median_grid()[0]):
        reasons["memory"] = note
    return draft.decided({"network": network}, **reasons)


def decide_registration(draft: Draft) -> Draft:
    """Whether scans are registered to the atlases, and what depends on it."""
    recipe, atlas = draft.recipe, draft.recipe.atlas
    wanted = "none" if recipe.architecture == "unet" else atlas.registration  # the U-Net takes no coordinates
    kind, reason = rules.registration_rule(wanted, draft.label_names, draft.median_grid()[0])
    reasons = {"registration": reason}
    mirrored = atlas.mirrored_atlases and kind != "none"
    if mirrored:
        reasons["mirrored_atlases"] = (
            "used in folds with at most three training scans whose labels are left-right symmetric"
        )
    below = recipe.refinement.reregister_below if kind == "deformable" else 0.0
    if below:
        reasons["reregistration"] = (
            f"scans with a quality score below {below:g} (Dice of the network's labels with the warped labels) are "
            "registered again"
        )
    recipe = replace(
        recipe,
        atlas=replace(atlas, registration=kind, mirrored_atlases=mirrored),
        refinement=replace(recipe.refinement, reregister_below=below),
    )
    network = replace(draft.network, atlas_prior=kind != "none")
    return draft.decided({"recipe": recipe, "network": network}, **reasons)


def decide_lesions(draft: Draft) -> Draft:
    """Which labels are lesions among organs, where a step beyond the paper asks."""
    recipe = draft.recipe
    registered = recipe.atlas.registration != "none"
    if not (registered or recipe.refinement.largest_component or recipe.refinement.min_hu):
        return draft
    lesions, reason = rules.lesions_rule(draft.label_names, registered=registered)
    return draft.decided({"lesions": lesions}, lesions=reason) if lesions else draft


def decide_architecture(draft: Draft) -> Draft:
    """MRE-Net, or the plain U-Net: the recipe's, or (adaptive planning) for volumes of lesions."""
    recipe, reasons = draft.recipe, {}
    if recipe.planning == "adaptive" and recipe.architecture == "mre_net" and not draft.plans_2d:
        use_unet, reasons["architecture"] = rules.lesion_unet_rule(draft.label_names)
        if use_unet:
            recipe = replace(recipe, architecture="unet", loss=replace(recipe.loss, ohem=False))
    changes = UNET_NETWORK if recipe.architecture == "unet" else {}
    return draft.decided({"recipe": recipe, "network": replace(draft.network, **changes)}, **reasons)


def decide_atlas_prior(draft: Draft) -> Draft:
    """Where the atlas prior joins the network, and whether the network has AMS then (adaptive planning)."""
    network = draft.network
    if draft.recipe.planning != "adaptive" or not network.atlas_prior:
        return draft
    place, reason = rules.prior_rule(draft.lesions, is_ct=draft.is_ct)
    if place == "logits":
        network = replace(network, atlas_prior_at=place, multiscale=False)
    return draft.decided({"network": network}, atlas_prior=reason)


def decide_refinement(draft: Draft) -> Draft:
    """Weights of the fusion with the warped labels, and of the refinement."""
    recipe, reasons = draft.recipe, {}
    refinement, reasons["refinement"] = rules.refinement_rule(
        recipe.refinement, draft.label_names, is_2d=draft.plans_2d, is_ct=draft.is_ct
    )
    registered = recipe.atlas.registration != "none"
    refinement, reason = rules.fusion_rule(refinement, registered=registered, is_ct=draft.is_ct)
    if reason:
        reasons["fusion"] = reason
    return draft.decided({"recipe": replace(recipe, refinement=refinement)}, **reasons)


def decide_tiling(draft: Draft) -> Draft:
    """How prediction covers a scan with tiles, and whether empty ones are skipped (adaptive planning)."""
    recipe, reasons = draft.recipe, {}
    if recipe.planning != "adaptive":
        return draft
    inference, reason = rules.tiling_rule(recipe.inference, registered=draft.network.atlas_prior, is_ct=draft.is_ct)
    if reason:
        reasons["tiling"] = reason
    if draft.preprocessing.crop == "nonzero":
        inference = replace(inference, skip_empty=True)
        reasons["skip_empty"] = (
            "constant background in every scan: tiles with background only are labelled background without running the "
            "network"
        )
    return draft.decided({"recipe": replace(recipe, inference=inference)}, **reasons)


def decide_ohem_groups(draft: Draft) -> Draft:
    """OHEM's groups: the paper's on its two datasets (planning ``paper``), else derived in each fold."""
    recipe = draft.recipe
    if not recipe.loss.ohem:
        return draft
    if recipe.planning == "paper" and (groups := groups_of(draft.label_names)):
        loss = replace(recipe.loss, majority=tuple(groups.majority(draft.label_names)), ohem_ratio=groups.ohem_ratio)
        reason = f"labels are those of {groups.dataset}: {groups.reason}, N_Lg {groups.ohem_ratio} (paper, Table I)"
        return draft.decided({"recipe": replace(recipe, loss=loss)}, ohem_groups=reason)
    reason = "the majority group is derived from the labels of each fold's training scans"
    return draft.decided({}, ohem_groups=reason)


def decide_mirroring(draft: Draft) -> Draft:
    """Axes along which training patches are mirrored; with adaptive planning, the recipe's changes for 2D images."""
    recipe, reasons = draft.recipe, {}
    axes = recipe.augmentation.mirror_axes
    if axes:
        allowed, reasons["mirror_axes"] = rules.mirror_rule(draft.facts.channel_names, draft.label_names)
        shift = int(draft.plans_2d)
        axes = tuple(a - shift for a in axes if a >= shift) if allowed else ()
        recipe = replace(recipe, augmentation=replace(recipe.augmentation, mirror_axes=axes))
    if draft.plans_2d and recipe.planning == "adaptive":
        axes, reasons["mirror_axes"] = rules.image_mirror_rule(draft.label_names)
        recipe = for_images(recipe, axes)
    return draft.decided({"recipe": recipe}, **reasons)


def decide_iterations(draft: Draft) -> Draft:
    """How long a fold is trained."""
    recipe, reasons = draft.recipe, {}
    optimizer, batch = recipe.optimizer, recipe.sampling.batch_size
    if not draft.plans_2d and not recipe.is_literal:
        voxels = float(np.prod(draft.median_grid()[0]))
        iterations, reasons["iterations"] = rules.iterations_rule(
            optimizer.iterations, voxels, batch * math.prod(draft.patch.size)
        )
        optimizer = replace(optimizer, iterations=iterations)
    reasons["recipe"] = f"recipe {recipe.name!r}: {optimizer.iterations} iterations of {batch} patches"
    return draft.decided({"recipe": replace(recipe, optimizer=optimizer)}, **reasons)


DECISIONS: tuple[Decision, ...] = (
    decide_normalization,
    decide_crop,
    decide_bias_field,
    decide_size,
    decide_grid,
    decide_patch,
    decide_network,
    decide_registration,
    decide_lesions,
    decide_architecture,
    decide_atlas_prior,
    decide_refinement,
    decide_tiling,
    decide_ohem_groups,
    decide_mirroring,
    decide_iterations,
)
