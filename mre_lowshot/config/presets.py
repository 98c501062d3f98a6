"""Named recipes: complete `Recipe` records, so that what a name means is read in one place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mre_lowshot.config.json import suggest
from mre_lowshot.config.recipe import (
    AtlasConfig,
    AugmentationConfig,
    InferenceConfig,
    LossConfig,
    OptimizerConfig,
    Recipe,
    RefinementConfig,
    SamplingConfig,
)
from mre_lowshot.errors import UserError
from mre_lowshot.plain import shown

PAPER = Recipe()

# The paper's "Aug.": left-right mirroring (p = 0.5; the planner removes it except for MRI without left and right
# labels), random brightness and contrast. How often and how strongly is our reading: half the patches, up to a quarter.
_AUG = AugmentationConfig(mirror_axes=(2,), brightness_probability=0.5, contrast_probability=0.5)
PAPER_AUG = replace(PAPER, name="paper_aug", augmentation=_AUG)

DEFAULT = Recipe(
    name="default",
    planning="adaptive",
    size="auto",
    optimizer=OptimizerConfig(iterations=600, learning_rate=3e-3, schedule="cosine", ema=0.98, precision="auto"),
    loss=LossConfig(ohem_ratio=4, class_balance=0.0, dice_weight=1.0),
    sampling=SamplingConfig(batch_size=4, foreground_fraction=0.5),
    augmentation=AugmentationConfig(
        spatial_probability=0.3,
        rotation=12.0,
        scaling=(0.85, 1.18),
        elastic=0.05,
        location_jitter=0.1,
        brightness_probability=0.15,
        contrast_probability=0.15,
        gamma_probability=0.3,
        noise_probability=0.1,
        blur_probability=0.1,
        low_resolution_probability=0.1,
    ),
    atlas=AtlasConfig(registration="deformable", mirrored_atlases=True),
    refinement=RefinementConfig(
        atlas_weight=0.4,
        min_hu=True,
        em_weight=0.5,
        crf_weight=2.0,
        reregister_below=0.8,
        largest_component=True,
        temperature_scaling=True,
    ),
    inference=InferenceConfig(tiling="overlap", step=0.5),
)

# The paper's method at a size for a CPU: the paper's loss (equation 5 with OHEM), uniform patches and centre tiles, and
# no additions. The number of iterations and the learning rate are those of `default`, because with the paper's learning
# rate so few iterations would not converge.
PAPER_SMALL = replace(
    PAPER,
    name="paper_small",
    size="small",
    optimizer=replace(
        PAPER.optimizer,
        iterations=DEFAULT.optimizer.iterations,
        learning_rate=DEFAULT.optimizer.learning_rate,
        schedule=DEFAULT.optimizer.schedule,
    ),
    sampling=replace(PAPER.sampling, batch_size=DEFAULT.sampling.batch_size),
)
PAPER_AUG_SMALL = replace(PAPER_SMALL, name="paper_aug_small", augmentation=_AUG)

# The U-Net baseline: with the paper's literal schedule, whose learning rate is 1e-7 after 6,000 iterations; the same
# with the paper's "Aug."; with the drops spread over its 20,000 iterations as over MRE-Net's 3,000; and the recipe
# `default` without MRE-Net.
UNET = replace(
    PAPER,
    name="unet",
    architecture="unet",
    optimizer=OptimizerConfig(iterations=20_000),
    loss=LossConfig(ohem=False),
    sampling=SamplingConfig(batch_size=64),
)
UNET_AUG = replace(UNET, name="unet_aug", augmentation=_AUG)
UNET_SPREAD = replace(UNET, name="unet_spread", optimizer=replace(UNET.optimizer, step_every=10_000))
UNET_DEFAULT = replace(
    DEFAULT,
    name="unet_default",
    architecture="unet",
    loss=replace(DEFAULT.loss, ohem=False),
    augmentation=replace(DEFAULT.augmentation, location_jitter=0.0),
    atlas=AtlasConfig(),
    refinement=RefinementConfig(min_hu=True, largest_component=True),
    inference=DEFAULT.inference,
)

_ALL = (DEFAULT, PAPER, PAPER_AUG, PAPER_SMALL, PAPER_AUG_SMALL, UNET, UNET_AUG, UNET_SPREAD, UNET_DEFAULT)
PRESETS = {recipe.name: recipe for recipe in _ALL}

# Fields of the network that `architecture` "unet" changes.
UNET_NETWORK: dict[str, Any] = {
    "multiscale": False,
    "coordinates": "none",
    "prototype_head": False,
    "embedding_dim": 0,
}

# What 2D images change in a recipe with adaptive planning: single images vary more in pose and size than volumes do,
# and a patch that holds a whole image needs fewer iterations.
IMAGE_ITERATIONS = 400
IMAGE_AUGMENTATION: dict[str, Any] = {"spatial_probability": 0.7, "rotation": 20.0, "scaling": (0.7, 1.4)}


def for_images(recipe: Recipe, mirror_axes: tuple[int, ...] = ()) -> Recipe:
    """``recipe`` as it trains and predicts on 2D images, mirrored along ``mirror_axes`` (of y, x)."""
    return replace(
        recipe,
        optimizer=replace(recipe.optimizer, iterations=IMAGE_ITERATIONS),
        augmentation=replace(recipe.augmentation, mirror_axes=mirror_axes, **IMAGE_AUGMENTATION),
        refinement=replace(recipe.refinement, atlas_weight=0.0, atlas_share=0.0),
        inference=replace(recipe.inference, mirror_axes=mirror_axes),
    )


def preset(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        UserError: there is none; the message names the nearest, or all.
    """
    if not isinstance(name, str) or name not in PRESETS:
        raise UserError(f"--recipe {shown(name)} is unknown; {suggest(name, PRESETS)}")
    return PRESETS[name]
