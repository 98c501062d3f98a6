"""What is decided of a dataset: preprocessing, patch, the decisions of a fold, and the plan that holds all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mre_lowshot.specs.check import need
from mre_lowshot.specs.network import NetworkSpec
from mre_lowshot.specs.recipe import Recipe

FORMAT_VERSION = 1


@dataclass(frozen=True)
class ChannelNormalization:
    """One channel's intensities: ``zscore`` over the crop (or, ``inside_only``, over its non-zero voxels, over the
    patient where the bias field is divided out), or ``clip``: cut to [lower, upper] (HU) and scaled to [0, 1] (paper,
    IV-A)."""

    scheme: Literal["zscore", "clip"] = "zscore"
    inside_only: bool = False
    lower: float = -210.0
    upper: float = 290.0

    def __post_init__(self) -> None:
        need(self.lower < self.upper, f"lower {self.lower} must be below upper {self.upper}")

    @property
    def width(self) -> float:
        """Of the window, in HU."""
        return self.upper - self.lower


@dataclass(frozen=True)
class PreprocessingSpec:
    """Crop, normalise, resample, in this order; undone at export.

    ``crop``: ``none``; ``nonzero`` (box of the non-zero voxels); ``body`` (box of the largest bright object);
    ``centre`` (the middle ``centre_fraction`` of each axis); ``given`` (a crops.json beside the dataset).
    ``bias_field``: an MRI's smooth shading is found and divided out before it is normalised.
    ``grid``: ``spacing`` (resample to ``spacing`` mm), ``size`` (to ``size`` voxels), ``native``.
    """

    crop: Literal["none", "nonzero", "body", "centre", "given"]
    normalization: tuple[ChannelNormalization, ...]
    grid: Literal["spacing", "size", "native"] = "spacing"
    spacing: tuple[float, ...] = ()
    size: tuple[int, ...] = ()
    centre_fraction: tuple[float, ...] = (1.0, 0.9, 0.9)
    crop_margin_mm: float = 0.0
    bias_field: bool = False

    def __post_init__(self) -> None:
        need(self.grid != "spacing" or _three(self.spacing), f"spacing is {self.spacing}; three numbers above 0 (mm)")
        need(self.grid != "size" or _three(self.size), f"size is {self.size}; three numbers above 0 (voxels)")
        need(
            _three(self.centre_fraction) and max(self.centre_fraction) <= 1,
            f"centre_fraction is {self.centre_fraction}; three numbers in (0, 1]",
        )
        need(
            not self.bias_field or all(channel.scheme == "zscore" for channel in self.normalization),
            "bias_field is for MRI: every channel's normalisation must be zscore",
        )
        need(self.crop_margin_mm >= 0, f"crop_margin_mm is {self.crop_margin_mm}; must not be negative")


def _three(values: tuple[float, ...]) -> bool:
    return len(values) == 3 and all(v > 0 for v in values)


@dataclass(frozen=True)
class PatchSpec:
    """Sides of the network's input and of the centre kept of it at prediction, (z, y, x) voxels."""

    size: tuple[int, ...] = (12, 36, 36)
    centre: tuple[int, ...] = (8, 28, 28)

    def __post_init__(self) -> None:
        need(
            len(self.size) == len(self.centre) and all(0 < c <= s for c, s in zip(self.centre, self.size, strict=True)),
            f"centre {self.centre} must fit into the patch {self.size}, axis by axis",
        )


@dataclass(frozen=True)
class HuFloor:
    """The lowest HU that a voxel of class ``label`` may have in CT channel ``channel``."""

    label: int
    channel: int
    hu: float


@dataclass(frozen=True)
class FoldDecisions:
    """What was derived from labels, and therefore from the fold's own training scans only.

    ``majority`` is OHEM's majority group, ``single_component`` the classes that are one piece in every training scan,
    ``hu_floors`` keeps classes off what is too dark for them in a CT. ``mirror_images``: the training scans' mirror
    images are atlases too; ``prior_weight`` and ``neighbour_weight``, found on them when training has ended, take the
    place of the recipe's.
    """

    level: str
    fold: int
    train: tuple[str, ...]
    test: tuple[str, ...]
    majority: tuple[int, ...]
    voxel_shares: dict[str, float]
    reasons: dict[str, str]
    seed: int = 0
    single_component: tuple[int, ...] = ()
    hu_floors: tuple[HuFloor, ...] = ()
    mirror_images: bool = False
    prior_weight: float | None = None
    neighbour_weight: float | None = None

    def __post_init__(self) -> None:
        weight, agree = self.prior_weight, self.neighbour_weight
        need(weight is None or 0 <= weight < 1, f"prior_weight is {weight}; must lie in [0, 1)")
        need(agree is None or 0 <= agree <= 9, f"neighbour_weight is {agree}; must lie in [0, 9]")


@dataclass(frozen=True)
class Plan:
    """Everything that training and prediction need to know: the content of ``MREPlans.json``.

    ``reasons`` says of each decision why it was taken. ``seen`` records the ranges of the planned scans (spacing,
    size, intensities), against which prediction warns. ``fold`` is filled in a fold's own ``plans.json`` only.
    """

    dataset_name: str
    plans_name: str
    channel_names: tuple[str, ...]
    labels: dict[str, int]
    file_ending: str
    preprocessing: PreprocessingSpec
    patch: PatchSpec
    network: NetworkSpec
    recipe: Recipe
    reasons: dict[str, str]
    seen: dict[str, Any]
    ignore_label: int | None = None
    fold: FoldDecisions | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        need(
            self.format_version == FORMAT_VERSION,
            f"format_version is {self.format_version}, this mre_lowshot reads {FORMAT_VERSION}; plan the dataset again",
        )
        size, divisor = self.patch.size, self.network.divisor
        need(len(size) == len(divisor), f"patch {size} and network strides differ in dimensions")
        need(
            all(s % d == 0 for s, d in zip(size, divisor, strict=True)),
            f"patch.size {size} must be divisible by {divisor}, the product of the network's strides",
        )
        need(
            len(self.channel_names) == self.network.in_channels == len(self.preprocessing.normalization),
            f"{len(self.channel_names)} channels, {self.network.in_channels} network inputs and "
            f"{len(self.preprocessing.normalization)} normalisations must agree",
        )
        need(
            sorted(self.labels.values()) == list(range(self.network.classes)),
            f"labels {self.labels} must be numbered 0 to {self.network.classes - 1}, one a network class",
        )
        pooled = self.network.ams and self.network.aspp and self.network.image_level and self.network.image_level_norm
        need(
            self.recipe.batch_size > 1 or not pooled,
            "recipe.batch_size 1 leaves one vector to normalise in the image-level branch; "
            "make it 2 or more, or set network.image_level_norm to false",
        )
        need(
            self.recipe.alignment == "none" or (len(size) == 3 and self.network.coordinates == "volume"),
            f"recipe.alignment {self.recipe.alignment!r} needs a 3D network with coordinates 'volume'; set 'none'",
        )
        mirrored = {*self.recipe.augmentation.mirror_axes, *self.recipe.inference.mirror_axes}
        need(
            mirrored <= set(range(len(size))),
            f"mirror_axes {sorted(mirrored)} of recipe.augmentation or recipe.inference: the images have axes "
            f"0 to {len(size) - 1}",
        )
        unknown = [name for name in self.recipe.majority if name not in self.labels]
        need(not unknown, f"recipe.majority names {unknown}, which are no labels; labels are {list(self.labels)}")
