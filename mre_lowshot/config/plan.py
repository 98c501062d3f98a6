"""Decisions about a dataset: preprocessing, patch, the decisions of a fold, and the plan that holds all of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from mre_lowshot.config.check import (
    require,
    require_fields,
    require_file_name,
    require_plans_name,
    require_range,
    require_text,
)
from mre_lowshot.config.network import NetworkConfig
from mre_lowshot.config.recipe import Recipe
from mre_lowshot.plain import require_plain, shown

FORMAT_VERSION = 2
MAX_SIDE = 65_535  # voxels: no medical image format in use has more along an axis
MAX_PATCH = 2048  # voxels along an axis
MAX_SEED = 2**32 - 1  # of what numpy and torch take alike
_ENDING = re.compile(r"(\.[A-Za-z0-9]{1,8}){1,2}")
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
        require_fields(self)
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
    centre_fraction: tuple[float, ...] = (1.0, 0.9, 0.9)  # of each axis, for crop centre
    crop_margin_mm: float = 0.0  # added to boxes nonzero and body
    keep_padding: bool = False  # crop rules apply to the image without constant border planes, unless true
    # damaged planes, regions and voxels are replaced (not in CT); false: every voxel stays, damaged or not
    correct_faults: bool = True
    bias_field: bool = False  # estimate an MRI's bias field and divide by it before normalisation

    def __post_init__(self) -> None:
        require_fields(self)
        require(
            (self.grid != "spacing" and not self.spacing) or _three(self.spacing, 1e-6, 1e6),
            f"spacing is {self.spacing}; three numbers above 0, within 1e-6 to 1e6 (mm)",
        )
        require(
            (self.grid != "size" and not self.size) or _three(self.size, 1, MAX_SIDE),
            f"size is {self.size}; three numbers above 0, at most {MAX_SIDE} (voxels)",
        )
        require(
            _three(self.centre_fraction, 1e-6, 1),
            f"centre_fraction is {self.centre_fraction}; three numbers in (0, 1]",
        )
        require(
            not self.bias_field or all(channel.scheme == "zscore" for channel in self.normalization),
            "bias_field is for MRI: every channel's normalisation must be zscore",
        )
        require(
            0 <= self.crop_margin_mm <= 1e4,
            f"crop_margin_mm is {self.crop_margin_mm}; must not be negative, nor above 1e4",
        )

    @property
    def is_ct(self) -> tuple[bool, ...]:
        """For each channel, whether it is a CT, in HU."""
        return tuple(channel.scheme == "clip" for channel in self.normalization)


def _three(values: tuple[float, ...], low: float, high: float) -> bool:
    return len(values) == 3 and all(low <= v <= high for v in values)


@dataclass(frozen=True)
class PatchConfig:
    """Sides of the network's input patch and of the centre kept of it by centre tiling, (z, y, x) voxels."""

    size: tuple[int, ...] = (12, 36, 36)  # divisible by the product of the network's strides
    centre: tuple[int, ...] = (8, 28, 28)  # the part that tiling centre keeps

    def __post_init__(self) -> None:
        require_fields(self)
        require(
            len(self.size) in (2, 3) and max(self.size) <= MAX_PATCH,
            f"patch {self.size}: must have two (2D) or three (3D) sides of at most {MAX_PATCH} voxels",
        )
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

    def __post_init__(self) -> None:
        require_fields(self)


@dataclass(frozen=True)
class FoldDecisions:
    """Decisions derived from labels, and therefore from the fold's own training scans only."""

    level: str  # 1shot, 2shot, ..., loo, all
    fold: int  # its number
    train: tuple[str, ...]  # training cases
    test: tuple[str, ...]  # the other labelled cases, which are scored
    majority: tuple[int, ...]  # classes of OHEM's majority group
    voxel_shares: dict[str, float]  # of each class in the training labels
    reasons: dict[str, str]  # why each of these decisions was taken
    seed: int = 0  # of weights and patches
    single_component: tuple[int, ...] = ()  # classes that are one connected component in every training scan
    min_hu: tuple[MinHu, ...] = ()  # lowest CT value of each class that has a limit
    mirrored_atlases: bool = False  # the training scans' mirror images are atlases too
    atlas_weight: float | None = None  # tuned on mirrored training scans after training; replaces the recipe's
    crf_weight: float | None = None  # likewise

    def __post_init__(self) -> None:
        require_fields(self)
        require_file_name("level", self.level, 100)
        for name in (*self.train, *self.test):
            require_file_name("a case of train or test", name, 255)
        for field in ("fold", "seed"):
            require(0 <= getattr(self, field) <= MAX_SEED, f"{field} is {getattr(self, field)}; must lie in [0, 2^32)")
        if self.atlas_weight is not None:
            require_range("atlas_weight", self.atlas_weight, 0, 1, open_end=True)
        if self.crf_weight is not None:
            require_range("crf_weight", self.crf_weight, 0, 9)


@dataclass(frozen=True)
class Plan:
    """Everything that training and prediction need: the content of ``MREPlans.json``."""

    dataset_name: str  # DatasetXXX_Name
    plans_name: str  # name of the plan (-p)
    channel_names: tuple[str, ...]  # of dataset.json; they decide the normalisation
    labels: dict[str, int]  # name to value, background included
    file_ending: str  # of the scans and label maps
    preprocessing: PreprocessingConfig  # crop, normalisation, grid
    patch: PatchConfig  # input of the network
    network: NetworkConfig  # its architecture
    recipe: Recipe  # training and prediction
    reasons: dict[str, str]  # why each decision was taken
    training_ranges: dict[str, Any]  # spacing, extent and intensities of the planned scans; prediction warns outside
    ignore_label: int | None = None  # value of voxels that are not annotated
    # Labels of lesions among organs, whose position and number differ from scan to scan: no atlas prior, no fusion with
    # warped labels, no HU limit, all components kept. Empty where all labels are organs, or all are lesions.
    lesions: tuple[str, ...] = ()
    fold: FoldDecisions | None = None  # in a fold's own plans.json only
    format_version: int = FORMAT_VERSION  # of plans and checkpoints; another is refused

    def __post_init__(self) -> None:
        require_fields(self)
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
        no_class = [name for name in self.lesions if not self.labels.get(name)]
        self._require_names()
        self._require_fold()
        _require_ranges(self.training_ranges, len(self.channel_names))
        require(not unknown, f"recipe.loss.majority names {unknown}, which are not labels; labels are {[*self.labels]}")
        require(not no_class, f"lesions names {no_class}, which are not foreground labels; labels are {[*self.labels]}")

    @property
    def lesion_classes(self) -> tuple[int, ...]:
        """The classes of `lesions`."""
        return tuple(sorted({self.labels[name] for name in self.lesions}))

    def _require_names(self) -> None:
        """What becomes part of a path must not lead elsewhere; what is printed must fit on a line."""
        require_file_name("dataset_name", self.dataset_name)
        require_plans_name("plans_name", self.plans_name)
        require(
            _ENDING.fullmatch(self.file_ending) is not None,
            f"file_ending is {shown(self.file_ending)}; must be the ending of an image file, as .nii.gz",
        )
        for name in (*self.labels, *self.channel_names):
            require_text("the name of a label or channel", name)
        ignored = self.ignore_label
        require(
            ignored is None or self.network.classes <= ignored < 2**31,
            f"ignore_label is {ignored}; must be above the classes' values",
        )

    def _require_fold(self) -> None:
        """The fold's decisions name classes and channels that exist."""
        if self.fold is None:
            return
        classes, channels = range(self.network.classes), range(self.network.in_channels)
        for name in ("majority", "single_component"):
            labels = getattr(self.fold, name)
            require(all(k in classes for k in labels), f"fold.{name} {labels} names classes that do not exist")
        require(
            all(limit.label in classes and limit.channel in channels for limit in self.fold.min_hu),
            f"fold.min_hu {shown(self.fold.min_hu)} names classes or channels that do not exist",
        )


def _require_ranges(ranges: dict[str, Any], channels: int) -> None:
    """Require the form of training_ranges that prediction reads: lowest and highest values."""
    require_plain(ranges, "training_ranges")

    def pair(value: Any, length: int) -> bool:
        rows = value if isinstance(value, list | tuple) and len(value) == 2 else [None]
        if length:
            return all(isinstance(row, list | tuple) and len(row) == length and all(map(_is_real, row)) for row in rows)
        return all(map(_is_real, rows))

    for key in ("spacing", "extent_mm", "shape"):
        require(key not in ranges or pair(ranges[key], 3), f"training_ranges.{key} must be two lists of three numbers")
    for key in ("padding_share", "background_share", "outliers"):
        require(key not in ranges or pair(ranges[key], 0), f"training_ranges.{key} must be two numbers")
    require(_is_real(ranges.get("scans", 1)), "training_ranges.scans must be a number")
    listed = ranges.get("channels", [])
    require(
        isinstance(listed, list | tuple)
        and all(isinstance(of, dict) and all(pair(of[k], 0) for k in of if k != "layout") for of in listed)
        and all(isinstance(of.get("layout", []), list) and all(map(_is_real, of.get("layout", []))) for of in listed)
        and len(listed) <= channels,
        "training_ranges.channels must list an object for each channel, with two numbers for each property",
    )


def _is_real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def wrong_version(found: object) -> str:
    """The message for plans and checkpoints of another format."""
    return f"format_version is {found}, this mre_lowshot reads {FORMAT_VERSION}; plan the dataset again and train again"
