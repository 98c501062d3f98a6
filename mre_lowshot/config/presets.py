"""Named recipes: complete `Recipe` records, so that what a name means is read in one place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mre_lowshot.codec import nearest
from mre_lowshot.errors import UserError
from mre_lowshot.specs import AugmentationSpec, InferenceSpec, Recipe

PAPER = Recipe()

# The paper's "Aug.": left-right mirroring (p = 0.5; the planner takes it away but for MRI without left and right
# labels), random brightness and contrast. How often and how strongly is our reading: half the patches, up to a quarter.
_AUG = AugmentationSpec(mirror_axes=(2,), brightness_probability=0.5, contrast_probability=0.5)
PAPER_AUG = replace(PAPER, name="paper_aug", augmentation=_AUG)

DEFAULT = Recipe(
    name="default",
    iterations=600,
    batch_size=4,
    learning_rate=3e-3,
    schedule="cosine",
    n_lg=4,
    class_balance=0.0,
    balanced_share=0.5,
    dice_weight=1.0,
    ema=0.98,
    alignment="deformable",
    mirror_images=True,
    largest_component=True,
    hu_floors=True,
    augmentation=AugmentationSpec(
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
    inference=InferenceSpec(
        tiling="overlap",
        step=0.5,
        prior_weight=0.4,
        intensity_weight=0.5,
        neighbour_weight=2.0,
        realign_below=0.8,
        calibrate=True,
    ),
)

# The paper's method at the size of a CPU: its loss (equation 5 with OHEM), uniform patches, centre tiles, nothing that
# goes beyond it; but the length and the learning rate of `default`, for its own would not converge in so few steps.
PAPER_SMALL = replace(
    PAPER,
    name="paper_small",
    iterations=DEFAULT.iterations,
    batch_size=DEFAULT.batch_size,
    learning_rate=DEFAULT.learning_rate,
    schedule=DEFAULT.schedule,
)
PAPER_AUG_SMALL = replace(PAPER_SMALL, name="paper_aug_small", augmentation=_AUG)

# The U-Net baseline: the paper's literal schedule, whose rate is 1e-7 after 6,000 iterations; the same with
# the drops spread over its 20,000 iterations as over MRE-Net's 3,000; and the recipe `default` without MRE-Net.
UNET = replace(PAPER, name="unet", iterations=20_000, batch_size=64, ohem=False)
UNET_SPREAD = replace(UNET, name="unet_spread", step_every=10_000)
UNET_DEFAULT = replace(
    DEFAULT,
    name="unet_default",
    ohem=False,
    alignment="none",
    mirror_images=False,
    augmentation=replace(DEFAULT.augmentation, location_jitter=0.0),
    inference=InferenceSpec(tiling="overlap", step=0.5),
)

_ALL = (DEFAULT, PAPER, PAPER_AUG, PAPER_SMALL, PAPER_AUG_SMALL, UNET, UNET_SPREAD, UNET_DEFAULT)
RECIPES = {recipe.name: recipe for recipe in _ALL}
OF_THE_PAPER = ("paper", "paper_aug", "unet", "unet_spread")  # planned as the paper did: its network, patch, crop, grid
SMALL = ("paper_small", "paper_aug_small")  # the small network on any device
UNET_NETWORK: dict[str, Any] = {"ams": False, "coordinates": "none", "dml": False, "embedding": 0}
# Fields of the network that a recipe changes.
NETWORKS: dict[str, dict[str, Any]] = dict.fromkeys(("unet", "unet_spread", "unet_default"), UNET_NETWORK)


# What 2D images change in a recipe that is not the paper's: a few single images vary more in pose and size than
# volumes do, and a patch that holds a whole image needs fewer iterations.
FLAT_ITERATIONS = 400
FLAT_AUGMENTATION: dict[str, Any] = {"spatial_probability": 0.7, "rotation": 20.0, "scaling": (0.7, 1.4)}


def for_images(recipe: Recipe, mirror_axes: tuple[int, ...] = ()) -> Recipe:
    """``recipe`` as it trains and predicts on 2D images, mirrored along ``mirror_axes`` (y, x)."""
    return replace(
        recipe,
        iterations=FLAT_ITERATIONS,
        augmentation=replace(recipe.augmentation, mirror_axes=mirror_axes, **FLAT_AUGMENTATION),
        inference=replace(recipe.inference, mirror_axes=mirror_axes, prior_weight=0.0),
    )


def named(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        UserError: there is none; the message names those there are.
    """
    if name not in RECIPES:
        raise UserError(f"--recipe {name!r} is unknown; {nearest(name, RECIPES)}")
    return RECIPES[name]
