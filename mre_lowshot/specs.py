"""The frozen records that everything reads: network, recipe, preprocessing, plan.

They are plain data: JSON in and out (`mre_lowshot.codec`), checked when built, changed with `dataclasses.replace`.
A variant of the method is a field here, never a subclass. Axes are (z, y, x) throughout; a 2D network has two (y, x).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from mre_lowshot.errors import UserError

FORMAT_VERSION = 1


def _need(condition: bool, rule: str) -> None:
    if not condition:
        raise UserError(rule)


@dataclass(frozen=True)
class NetworkSpec:
    """MRE-Net (paper, section III; Fig. 2). Defaults are the paper's network; K = ``classes`` with background.

    ``widths``/``convs`` describe the encoder blocks, ``strides`` the poolings between them. ``ams`` switches the
    attentional multi-scale embedding (SE, multi-level concatenation, ASPP); ``coordinates`` says over what the
    Cartesian maps run from -1 to 1; ``atlas_prior`` adds to them what labels the atlases (the training scans) have
    at these coordinates, one channel a class; ``dml`` off gives the plain 1x1x1 classifier of Table II row (f).
    """

    in_channels: int
    classes: int
    widths: tuple[int, ...] = (64, 128, 256)
    convs: tuple[int, ...] = (3, 4, 5)
    strides: tuple[tuple[int, ...], ...] = ((2, 2, 2), (1, 2, 2))
    norm: Literal["batch", "instance"] = "batch"
    coordinates: Literal["volume", "patch", "none"] = "volume"
    atlas_prior: bool = False
    ams: bool = True
    bottleneck_level: bool = False
    se: bool = True
    se_reduction: int = 16
    aspp: bool = True
    aspp_channels: int = 256
    dilations: tuple[tuple[int, ...], ...] = ((6, 6, 6), (12, 12, 12), (18, 18, 18))
    image_level: bool = True
    image_level_norm: bool = True
    embedding: int = 2048
    dml: bool = True
    modes: int = 3
    mixing: Literal["adaptive", "average", "one_hot"] = "adaptive"
    mixer_width: int = 512
    mixing_sigmoid: bool = True
    distance: Literal["cosine", "euclidean"] = "cosine"
    scale: float = 10.0
    scale_learned: bool = True

    def __post_init__(self) -> None:
        for name in ("in_channels", "se_reduction", "aspp_channels", "modes", "mixer_width"):
            _need(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; must be at least 1")
        _need(
            self.embedding >= (1 if self.dml else 0),
            f"embedding is {self.embedding}; must be at least 1 (0, no embedding, only with dml off)",
        )
        _need(
            self.norm == "batch" or not (self.ams and self.aspp and self.image_level and self.image_level_norm),
            "image_level_norm needs norm 'batch' (an instance norm of a single value is always 0); set it to false",
        )
        _need(
            not self.atlas_prior or self.coordinates == "volume",
            f"atlas_prior needs coordinates 'volume', not {self.coordinates!r}",
        )
        _need(self.classes >= 2, f"classes is {self.classes}; background and at least one label are needed")
        _need(self.scale > 0, f"scale is {self.scale}; must be above 0")
        _need(len(self.widths) == len(self.convs), f"widths {self.widths} and convs {self.convs} differ in length")
        _need(
            len(self.strides) == len(self.widths) - 1 >= 1,
            f"strides {self.strides}: {len(self.widths)} encoder blocks need {len(self.widths) - 1} poolings (>= 1)",
        )
        _need(all(w >= 4 for w in self.widths), f"widths {self.widths}; each must be at least 4")
        _need(all(c >= 1 for c in self.convs), f"convs {self.convs}; each must be at least 1")
        _need(self.axes in (2, 3), f"strides {self.strides}; must have two (2D) or three (3D) numbers each")
        for name in ("strides", "dilations"):
            rows = getattr(self, name)
            _need(
                all(len(r) == self.axes and all(v >= 1 for v in r) for r in rows),
                f"{name} {rows}; every entry needs {self.axes} whole numbers >= 1, one an axis",
            )

    @property
    def axes(self) -> int:
        """Number of spatial axes: 3, or 2 for the 2D network."""
        return len(self.strides[0])

    @property
    def location_channels(self) -> int:
        """Channels that say where a voxel lies: one a coordinate, and with ``atlas_prior`` one a foreground class."""
        if self.coordinates == "none":
            return 0
        return self.axes + (self.classes - 1 if self.atlas_prior else 0)

    @property
    def divisor(self) -> tuple[int, ...]:
        """What each side of a patch must be divisible by: the product of the strides along that axis."""
        product = [1] * self.axes
        for stride in self.strides:
            product = [p * s for p, s in zip(product, stride, strict=True)]
        return tuple(product)


@dataclass(frozen=True)
class AugmentationSpec:
    """Random changes of a training patch; every probability 0 means none (the paper's "no Aug.").

    Spatial changes move the content, not the coordinate map. Angles in degrees, factors multiply, ``mirror_axes``
    index (z, y, x). ``elastic`` is the standard deviation of the displacement at the control points, as a share of
    the patch side; ``shift`` moves the content against the coordinate map by up to that share of the volume's side.
    ``location_jitter`` bends the location maps (coordinates and atlas prior) of every patch as alignment to the atlas
    will be wrong: a smooth field of up to that standard deviation, again as a share of the patch side.
    """

    spatial_probability: float = 0.0
    rotation: float = 15.0
    scaling: tuple[float, ...] = (0.85, 1.15)
    elastic: float = 0.0
    shift: float = 0.0
    location_jitter: float = 0.0
    mirror_axes: tuple[int, ...] = ()
    brightness_probability: float = 0.0
    brightness: tuple[float, ...] = (0.75, 1.25)
    contrast_probability: float = 0.0
    contrast: tuple[float, ...] = (0.75, 1.25)
    gamma_probability: float = 0.0
    gamma: tuple[float, ...] = (0.7, 1.5)
    noise_probability: float = 0.0
    noise_variance: float = 0.05
    blur_probability: float = 0.0
    blur: tuple[float, ...] = (0.5, 1.0)
    low_resolution_probability: float = 0.0
    low_resolution: tuple[float, ...] = (0.5, 1.0)

    def __post_init__(self) -> None:
        for name, value in self.__dict__.items():
            if name.endswith("_probability"):
                _need(0 <= value <= 1, f"{name} is {value}; must lie between 0 and 1")
        for name in ("scaling", "brightness", "contrast", "gamma", "blur", "low_resolution"):
            value = getattr(self, name)
            _need(
                len(value) == 2 and 0 < value[0] <= value[1], f"{name} is {value}; must be two numbers 0 < low <= high"
            )
        for name in ("elastic", "shift", "location_jitter"):
            _need(0 <= getattr(self, name) < 0.5, f"{name} is {getattr(self, name)}; must lie in [0, 0.5)")
        _need(0 <= self.rotation <= 180, f"rotation is {self.rotation}; must lie in [0, 180] degrees")
        _need(set(self.mirror_axes) <= {0, 1, 2}, f"mirror_axes is {self.mirror_axes}; axes are 0 (z), 1 (y), 2 (x)")


@dataclass(frozen=True)
class InferenceSpec:
    """How a volume is covered with patches. ``centre``: consecutive tiles, only the centre of each kept (paper,
    IV-C); ``overlap``: tiles every ``step`` of a side, averaged with ``weighting``. ``prior_weight`` w pools the
    network's posterior with the labels that registration brings from the atlas, as p^(1-w) q^w (where scans are
    aligned and the network knows the prior). ``intensity_weight`` mends the result by what each class looks like in the
    scan itself, ``neighbour_weight`` lets like neighbours agree (`inference.appearance`). A scan whose network and
    registration agree less than ``realign_below`` (`inference.quality`) is registered again, by what was predicted too,
    and pooled anew. ``calibrate`` softens probabilities surer than that agreement (`inference.confidence`).
    ``skip_empty`` calls tiles background, unasked, where every channel is constant (surroundings set to one value)."""

    tiling: Literal["centre", "overlap"] = "centre"
    step: float = 0.5
    weighting: Literal["gaussian", "uniform"] = "gaussian"
    mirror_axes: tuple[int, ...] = ()
    prior_weight: float = 0.0
    intensity_weight: float = 0.0
    neighbour_weight: float = 0.0
    realign_below: float = 0.0
    calibrate: bool = False
    skip_empty: bool = False

    def __post_init__(self) -> None:
        _need(0 <= self.prior_weight < 1, f"prior_weight is {self.prior_weight}; must lie in [0, 1)")
        for name, most in (("intensity_weight", 2), ("neighbour_weight", 9), ("realign_below", 1)):
            value = getattr(self, name)
            _need(0 <= value <= most, f"{name} is {value}; must lie in [0, {most}]")
        _need(0 < self.step <= 1, f"step is {self.step}; must lie in (0, 1]")
        _need(set(self.mirror_axes) <= {0, 1, 2}, f"mirror_axes is {self.mirror_axes}; axes are 0 (z), 1 (y), 2 (x)")


@dataclass(frozen=True)
class Recipe:
    """How a fold is trained (paper, Table I and IV-C). Defaults are the paper's recipe.

    ``schedule`` ``step`` multiplies the rate by ``step_factor`` every ``step_every`` iterations, ``cosine`` lets it
    fall to zero at the last one. ``majority`` names the OHEM majority group; empty means it is derived from the
    training labels' voxel shares. ``n_lg`` is N_Lg, ``ohem_floor`` how many majority voxels are kept when a batch
    holds no minority voxel. ``class_balance`` 1 gives every class the same weight (equation 5), 0 every voxel.
    ``dice_weight`` adds the soft Dice loss, summed over classes. ``balanced_share`` is the share of patches centred on
    a voxel of a class drawn at random. ``ema`` is the decay of the weights' moving average, 0 for none.
    ``alignment`` is how a scan is registered to the atlas, so that coordinates mean anatomy. ``largest_component``
    keeps, in predictions, only the largest piece of each class that is one piece in the training labels, ``hu_floors``
    (CT) keeps each class off voxels too dark for it by the training labels.
    ``precision`` is what the network computes in while it is trained (``auto``: bf16 on CUDA devices that have it, else
    float32); weights and loss are float32 always. ``sync_batch_norm`` takes batch-norm statistics over all processes of
    a training (CUDA) instead of per process.
    ``recompute`` computes activations a second time in the backward pass instead of keeping them (less memory, more
    time, the same numbers); it turns itself on when a GPU's memory does not hold a training step.
    """

    name: str = "paper"
    iterations: int = 3000
    batch_size: int = 24
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    schedule: Literal["step", "cosine"] = "step"
    step_every: int = 1500
    step_factor: float = 0.1
    ohem: bool = True
    n_lg: int = 6
    ohem_floor: int = 256
    class_balance: float = 1.0
    majority: tuple[str, ...] = ()
    dice_weight: float = 0.0
    balanced_share: float = 0.0
    ema: float = 0.0
    alignment: Literal["none", "affine", "deformable"] = "none"
    largest_component: bool = False
    hu_floors: bool = False
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    sync_batch_norm: bool = False
    recompute: bool = False
    augmentation: AugmentationSpec = field(default_factory=AugmentationSpec)
    inference: InferenceSpec = field(default_factory=InferenceSpec)

    def __post_init__(self) -> None:
        for name in ("iterations", "batch_size", "step_every", "n_lg", "ohem_floor"):
            _need(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; must be at least 1")
        _need(self.learning_rate > 0, f"learning_rate is {self.learning_rate}; must be above 0")
        _need(0 < self.step_factor <= 1, f"step_factor is {self.step_factor}; must lie in (0, 1]")
        for name in ("weight_decay", "dice_weight"):
            _need(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}; must not be negative")
        _need(0 <= self.class_balance <= 1, f"class_balance is {self.class_balance}; must lie in [0, 1]")
        _need(0 <= self.balanced_share <= 1, f"balanced_share is {self.balanced_share}; must lie in [0, 1]")
        _need(0 <= self.ema < 1, f"ema is {self.ema}; must lie in [0, 1)")


@dataclass(frozen=True)
class ChannelNormalization:
    """One channel's intensities: ``zscore`` over the crop (or, ``inside_only``, over its non-zero voxels), or
    ``clip``: cut to [lower, upper] (HU) and scaled to [0, 1] (paper, IV-A)."""

    scheme: Literal["zscore", "clip"] = "zscore"
    inside_only: bool = False
    lower: float = -210.0
    upper: float = 290.0

    def __post_init__(self) -> None:
        _need(self.lower < self.upper, f"lower {self.lower} must be below upper {self.upper}")

    @property
    def width(self) -> float:
        """Of the window, in HU."""
        return self.upper - self.lower


@dataclass(frozen=True)
class PreprocessingSpec:
    """Crop, normalise, resample, in this order; undone at export.

    ``crop``: ``none``; ``nonzero`` (box of the non-zero voxels); ``body`` (box of the largest bright object);
    ``centre`` (the middle ``centre_fraction`` of each axis); ``given`` (a crops.json beside the dataset).
    ``grid``: ``spacing`` (resample to ``spacing`` mm), ``size`` (to ``size`` voxels), ``native``.
    """

    crop: Literal["none", "nonzero", "body", "centre", "given"]
    normalization: tuple[ChannelNormalization, ...]
    grid: Literal["spacing", "size", "native"] = "spacing"
    spacing: tuple[float, ...] = ()
    size: tuple[int, ...] = ()
    centre_fraction: tuple[float, ...] = (1.0, 0.9, 0.9)
    crop_margin_mm: float = 0.0

    def __post_init__(self) -> None:
        _need(self.grid != "spacing" or _three(self.spacing), f"spacing is {self.spacing}; three numbers above 0 (mm)")
        _need(self.grid != "size" or _three(self.size), f"size is {self.size}; three numbers above 0 (voxels)")
        _need(
            _three(self.centre_fraction) and max(self.centre_fraction) <= 1,
            f"centre_fraction is {self.centre_fraction}; three numbers in (0, 1]",
        )
        _need(self.crop_margin_mm >= 0, f"crop_margin_mm is {self.crop_margin_mm}; must not be negative")


def _three(values: tuple[float, ...]) -> bool:
    return len(values) == 3 and all(v > 0 for v in values)


@dataclass(frozen=True)
class PatchSpec:
    """Sides of the network's input and of the centre kept of it at prediction, (z, y, x) voxels."""

    size: tuple[int, ...] = (12, 36, 36)
    centre: tuple[int, ...] = (8, 28, 28)

    def __post_init__(self) -> None:
        _need(
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
    ``hu_floors`` keeps classes off what is too dark for them in a CT.
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
        _need(
            self.format_version == FORMAT_VERSION,
            f"format_version is {self.format_version}, this mre_lowshot reads {FORMAT_VERSION}; plan the dataset again",
        )
        size, divisor = self.patch.size, self.network.divisor
        _need(len(size) == len(divisor), f"patch {size} and network strides differ in dimensions")
        _need(
            all(s % d == 0 for s, d in zip(size, divisor, strict=True)),
            f"patch.size {size} must be divisible by {divisor}, the product of the network's strides",
        )
        _need(
            len(self.channel_names) == self.network.in_channels == len(self.preprocessing.normalization),
            f"{len(self.channel_names)} channels, {self.network.in_channels} network inputs and "
            f"{len(self.preprocessing.normalization)} normalisations must agree",
        )
        _need(
            sorted(self.labels.values()) == list(range(self.network.classes)),
            f"labels {self.labels} must be numbered 0 to {self.network.classes - 1}, one a network class",
        )
        pooled = self.network.ams and self.network.aspp and self.network.image_level and self.network.image_level_norm
        _need(
            self.recipe.batch_size > 1 or not pooled,
            "recipe.batch_size 1 leaves one vector to normalise in the image-level branch; "
            "make it 2 or more, or set network.image_level_norm to false",
        )
        _need(
            self.recipe.alignment == "none" or (len(size) == 3 and self.network.coordinates == "volume"),
            f"recipe.alignment {self.recipe.alignment!r} needs a 3D network with coordinates 'volume'; set 'none'",
        )
        mirrored = {*self.recipe.augmentation.mirror_axes, *self.recipe.inference.mirror_axes}
        _need(
            mirrored <= set(range(len(size))),
            f"mirror_axes {sorted(mirrored)} of recipe.augmentation or recipe.inference: the images have axes "
            f"0 to {len(size) - 1}",
        )
        unknown = [name for name in self.recipe.majority if name not in self.labels]
        _need(not unknown, f"recipe.majority names {unknown}, which are no labels; labels are {list(self.labels)}")
