"""Decisions about a dataset: preprocessing, patch, the decisions of a fold, and the plan that holds all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mre_lowshot.config.check import require, require_range
from mre_lowshot.config.network import NetworkConfig
from mre_lowshot.config.recipe import Recipe

FORMAT_VERSION = 2
CropRule = Literal["none", "nonzero", "body", "centre", "given"]


@dataclass(frozen=True)
class ChannelNormalization:
    """How one channel's intensities are normalised (paper, IV-A)."""

    scheme: Literal["zscore", "clip"] = "zscore"  # clip: cut to [lower, upper] HU and scale to [0, 1]
    # z-score statistics over the foreground only: the non-zero voxels, or the patient where the bias field is corrected
    foreground_only: bool = False
    lower: float = -210.0  # HU
    upper: float = 290.0  # HU

    def __post_init__(self) -> None:
        require(self.lower < self.upper, f"lower {self.lower} must be below upper {self.upper}")

    @property
    def width(self) -> float:
        """Width of the HU window."""
        return self.upper - self.lower


@dataclass(frozen=True)
class PreprocessingConfig:
    """Crop, normalise and resample, in this order; undone at export."""

    # none; nonzero: box of the non-zero voxels; body: box of the largest bright object; centre: the middle
    # centre_fraction of each axis; given: boxes of a crops.json beside the dataset
    crop: CropRule
    normalization: tuple[ChannelNormalization, ...]  # one per channel
    grid: Literal["spacing", "size", "native"] = "spacing"  # resample to ``spacing`` mm, to ``size`` voxels, or not
    spacing: tuple[float, ...] = ()  # mm
    size: tuple[int, ...] = ()  # voxels
    centre_fraction: tuple[float, ...] = (1.0, 0.9, 0.9)
    crop_margin_mm: float = 0.0  # added to boxes nonzero and body
    keep_padding: bool = False  # crop rules apply to the image without constant border planes, unless true
    bias_field: bool = False  # estimate an MRI's bias field and divide by it before normalisation

    def __post_init__(self) -> None:
        require(
            self.grid != "spacing" or _three(self.spacing), f"spacing is {self.spacing}; three numbers above 0 (mm)"
        )
        require(self.grid != "size" or _three(self.size), f"size is {self.size}; three numbers above 0 (voxels)")
        require(
            _three(self.centre_fraction) and max(self.centre_fraction) <= 1,
            f"centre_fraction is {self.centre_fraction}; three numbers in (0, 1]",
        )
        require(
            not self.bias_field or all(channel.scheme == "zscore" for channel in self.normalization),
            "bias_field is for MRI: every channel's normalisation must be zscore",
        )
        require(self.crop_margin_mm >= 0, f"crop_margin_mm is {self.crop_margin_mm}; must not be negative")

    @property
    def is_ct(self) -> tuple[bool, ...]:
        """For each channel, whether it is a CT, in HU."""
        return tuple(channel.scheme == "clip" for channel in self.normalization)


def _three(values: tuple[float, ...]) -> bool:
    return len(values) == 3 and all(v > 0 for v in values)


@dataclass(frozen=True)
class PatchConfig:
    """Sides of the network's input patch and of the centre kept of it by centre tiling, (z, y, x) voxels."""

    size: tuple[int, ...] = (12, 36, 36)
    centre: tuple[int, ...] = (8, 28, 28)

    def __post_init__(self) -> None:
        require(
            len(self.size) == len(self.centre) and all(0 < c <= s for c, s in zip(self.centre, self.size, strict=True)),
            f"centre {self.centre} must fit into the patch {self.size}, axis by axis",
        )


@dataclass(frozen=True)
class MinHu:
    """The lowest value that a voxel of class ``label`` may have in CT channel ``channel``: HU in a plan, units of the
    preprocessed image in `inference.ensemble.ensemble_hu_limits`."""

    label: int
    channel: int
    value: float


@dataclass(frozen=True)
class FoldDecisions:
    """Decisions derived from labels, and therefore from the fold's own training scans only."""

    level: str
    fold: int
    train: tuple[str, ...]
    test: tuple[str, ...]
    majority: tuple[int, ...]  # classes of OHEM's majority group
    voxel_shares: dict[str, float]  # of each class in the training labels
    reasons: dict[str, str]
    seed: int = 0
    single_component: tuple[int, ...] = ()  # classes that are one connected component in every training scan
    min_hu: tuple[MinHu, ...] = ()
    mirrored_atlases: bool = False  # the training scans' mirror images are atlases too
    atlas_weight: float | None = None  # tuned on mirrored training scans after training; replaces the recipe's
    crf_weight: float | None = None  # likewise

    def __post_init__(self) -> None:
        if self.atlas_weight is not None:
            require_range("atlas_weight", self.atlas_weight, 0, 1, open_end=True)
        if self.crf_weight is not None:
            require_range("crf_weight", self.crf_weight, 0, 9)


@dataclass(frozen=True)
class Plan:
    """Everything that training and prediction need: the content of ``MREPlans.json``."""

    dataset_name: str
    plans_name: str
    channel_names: tuple[str, ...]
    labels: dict[str, int]
    file_ending: str
    preprocessing: PreprocessingConfig
    patch: PatchConfig
    network: NetworkConfig
    recipe: Recipe
    reasons: dict[str, str]  # why each decision was taken
    training_ranges: dict[str, Any]  # spacing, extent and intensities of the planned scans; prediction warns outside
    ignore_label: int | None = None
    fold: FoldDecisions | None = None  # in a fold's own plans.json only
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        require(self.format_version == FORMAT_VERSION, wrong_version(self.format_version))
        recipe, size, divisor = self.recipe, self.patch.size, self.network.divisor
        require(len(size) == len(divisor), f"patch {size} and network strides differ in dimensions")
        require(
            all(s % d == 0 for s, d in zip(size, divisor, strict=True)),
            f"patch.size {size} must be divisible by {divisor}, the product of the network's strides",
        )
        require(
            len(self.channel_names) == self.network.in_channels == len(self.preprocessing.normalization),
            f"{len(self.channel_names)} channels, {self.network.in_channels} network inputs and "
            f"{len(self.preprocessing.normalization)} normalisations must agree",
        )
        require(
            sorted(self.labels.values()) == list(range(self.network.classes)),
            f"labels {self.labels} must be numbered 0 to {self.network.classes - 1}, one per network class",
        )
        require(
            recipe.sampling.batch_size > 1 or not self.network.pooled_norm,
            "recipe.sampling.batch_size 1 leaves one vector to normalise in the image-level branch; "
            "make it 2 or more, or set network.image_level_norm to false",
        )
        registration = recipe.atlas.registration
        require(
            registration == "none" or (len(size) == 3 and self.network.coordinates == "volume"),
            f"recipe.atlas.registration {registration!r} needs a 3D network with coordinates 'volume'; set 'none'",
        )
        mirrored = {*recipe.augmentation.mirror_axes, *recipe.inference.mirror_axes}
        require(
            mirrored <= set(range(len(size))),
            f"mirror_axes {sorted(mirrored)} of recipe.augmentation or recipe.inference: the images have axes "
            f"0 to {len(size) - 1}",
        )
        unknown = [name for name in recipe.loss.majority if name not in self.labels]
        require(not unknown, f"recipe.loss.majority names {unknown}, which are not labels; labels are {[*self.labels]}")


def wrong_version(found: object) -> str:
    """The message for plans and checkpoints of another format."""
    return f"format_version is {found}, this mre_lowshot reads {FORMAT_VERSION}; plan the dataset again and train again"
