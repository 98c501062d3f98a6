"""How a fold is trained and a scan predicted: seven small frozen records, and the recipe that holds them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mre_lowshot.config.check import require, require_fields, require_mirror_axes, require_range, require_text

Registration = Literal["none", "affine", "deformable"]
MAX_ITERATIONS = 10_000_000
MAX_BATCH = 1024
MIN_STEP = 0.05  # at a step of 5 % of the patch side a voxel is already predicted 8,000 times


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam, its schedule and how a step is computed. Defaults: the paper (Table I); it does not state the precision."""

    iterations: int = 3000  # mini-batches of a training
    learning_rate: float = 1e-3  # initial one of Adam
    weight_decay: float = 0.0  # of Adam
    schedule: Literal["step", "cosine"] = "step"  # cosine: down to 0 at the last iteration
    step_every: int = 1500  # iterations between two drops of schedule step
    step_factor: float = 0.1  # the learning rate is multiplied by this at each drop
    ema: float = 0.0  # decay of the weights' moving average, which predicts; 0: none
    # Forward pass in training; weights and loss are always float32. auto: bf16 on CUDA devices that support it. tf32
    # (CUDA): factors of products are rounded to TF32.
    precision: Literal["auto", "float32", "tf32", "bf16", "fp16"] = "float32"
    # Compute activations again in the backward pass: less memory, more time, the same numbers. Switched on
    # automatically when a training step does not fit into the GPU's memory.
    recompute: bool = False
    sync_batch_norm: bool = False  # batch-norm statistics over all processes of a training (CUDA), not per process

    def __post_init__(self) -> None:
        require_fields(self)
        for name in ("iterations", "step_every"):
            found = getattr(self, name)
            require(1 <= found <= MAX_ITERATIONS, f"{name} is {found}; must be at least 1, at most {MAX_ITERATIONS}")
        require(0 < self.learning_rate <= 1000, f"learning_rate is {self.learning_rate}; must be above 0, at most 1000")
        require(0 < self.step_factor <= 1, f"step_factor is {self.step_factor}; must lie in (0, 1]")
        require(
            0 <= self.weight_decay <= 10, f"weight_decay is {self.weight_decay}; must not be negative, nor above 10"
        )
        require_range("ema", self.ema, 0, 1, open_end=True)


@dataclass(frozen=True)
class LossConfig:
    """Per-category cross-entropy with online hard-example mining (paper, III-E; equation 5); beyond it, Dice."""

    ohem: bool = True  # keep the hardest voxels of the majority classes only
    ohem_ratio: int = 6  # N_Lg: majority voxels kept per minority voxel
    ohem_min_kept: int = 256  # majority voxels kept when a batch holds no minority voxel
    majority: tuple[str, ...] = ()  # labels of the majority group; empty: derived from each fold's training labels
    class_balance: float = 1.0  # 1: every class has the same weight (equation 5); 0: every voxel
    dice_weight: float = 0.0  # weight of the soft Dice loss, summed over classes

    def __post_init__(self) -> None:
        require_fields(self)
        for name, most in (("ohem_ratio", 1_000_000), ("ohem_min_kept", 1_000_000_000)):
            found = getattr(self, name)
            require(1 <= found <= most, f"{name} is {found}; must be at least 1, at most {most}")
        require(
            0 <= self.dice_weight <= 1000, f"dice_weight is {self.dice_weight}; must not be negative, nor above 1000"
        )
        require_range("class_balance", self.class_balance, 0, 1)


@dataclass(frozen=True)
class SamplingConfig:
    """Which patches make a mini-batch. Defaults: the paper (Table I, IV-C)."""

    batch_size: int = 24  # patches per mini-batch
    foreground_fraction: float = 0.0  # share of patches centred on a voxel of a random foreground class

    def __post_init__(self) -> None:
        require_fields(self)
        require(
            1 <= self.batch_size <= MAX_BATCH,
            f"batch_size is {self.batch_size}; must be at least 1, at most {MAX_BATCH}",
        )
        require_range("foreground_fraction", self.foreground_fraction, 0, 1)


@dataclass(frozen=True)
class AugmentationConfig:
    """Random changes of a training patch. Every probability 0 means none (the paper's "no Aug.").

    Spatial changes move the content, not the coordinate maps. Angles are in degrees, factors multiply.
    """

    spatial_probability: float = 0.0  # of rotation, scaling, elastic deformation and shift together
    rotation: float = 15.0  # degrees, up to, about each axis
    scaling: tuple[float, ...] = (0.85, 1.15)  # factor, from and to
    elastic: float = 0.0  # standard deviation of the control points' displacement, share of the patch side
    shift: float = 0.0  # content against the coordinate maps, up to this share of the volume's side
    # Bends the location maps (coordinates and atlas prior) of every patch, as registration errors do: a smooth field
    # of up to this standard deviation, share of the patch side.
    location_jitter: float = 0.0
    mirror_axes: tuple[int, ...] = ()  # of (z, y, x), each mirrored in half of the patches
    brightness_probability: float = 0.0  # of a patch
    brightness: tuple[float, ...] = (0.75, 1.25)  # factor of the intensities
    contrast_probability: float = 0.0  # of a patch
    contrast: tuple[float, ...] = (0.75, 1.25)  # factor of the distances from the mean
    gamma_probability: float = 0.0  # of a patch
    gamma: tuple[float, ...] = (0.7, 1.5)  # exponent
    noise_probability: float = 0.0  # of a patch
    # Largest standard deviation of Gaussian noise; a patch's is uniform up to it. The name is that of batchgenerators,
    # which calls it a variance, but draws with it as the standard deviation.
    noise_variance: float = 0.05
    blur_probability: float = 0.0  # of a patch, of which each channel is changed with probability 0.5
    blur: tuple[float, ...] = (0.5, 1.0)  # sigma, voxels
    low_resolution_probability: float = 0.0  # of a patch, of which each channel is changed with probability 0.5
    low_resolution: tuple[float, ...] = (0.5, 1.0)  # zoom factor

    def __post_init__(self) -> None:
        require_fields(self)
        for name, value in self.__dict__.items():
            if name.endswith("_probability"):
                require(0 <= value <= 1, f"{name} is {value}; must lie between 0 and 1")
        for name in ("scaling", "brightness", "contrast", "gamma", "blur", "low_resolution"):
            value = getattr(self, name)
            require(
                len(value) == 2 and 0.01 <= value[0] <= value[1] <= 100,
                f"{name} is {value}; must be two numbers 0 < low <= high, within 0.01 to 100",
            )
        for name in ("elastic", "shift", "location_jitter"):
            require_range(name, getattr(self, name), 0, 0.5, open_end=True)
        require(0 <= self.rotation <= 180, f"rotation is {self.rotation}; must lie in [0, 180] degrees")
        require_range("noise_variance", self.noise_variance, 0, 1000)
        require_mirror_axes(self.mirror_axes)


@dataclass(frozen=True)
class AtlasConfig:
    """Beyond the paper: the labelled scans as atlases, to which every scan is registered."""

    registration: Registration = "none"  # of each scan to the atlases, so that coordinates mean anatomy
    # The mirror image of each training scan is an atlas too, in folds whose labels are left-right symmetric.
    mirrored_atlases: bool = False

    def __post_init__(self) -> None:
        require_fields(self)


@dataclass(frozen=True)
class RefinementConfig:
    """Beyond the paper: what lies between the network's posterior and the label map (`refinement.pipeline`)."""

    # Weight w of the labels q warped from the atlases against the network's posterior p: p^(1-w) q^w. A fold with
    # mirrored atlases tunes its own w, unless this is 0. In CT the planner sets 0, and `atlas_share` instead.
    atlas_weight: float = 0.0
    # Share e of the warped labels in the posterior before that: p becomes (1-e) p + e q, so that a class that the
    # network has excluded by error remains possible.
    atlas_share: float = 0.0
    min_hu: bool = False  # CT: remove each class from voxels darker than its limit, derived from the training labels
    em_weight: float = 0.0  # exponent of the class intensity likelihoods estimated in the scan itself (one EM step)
    crf_weight: float = 0.0  # strength of the conditional random field's pairwise term
    # A scan with a quality score below this (Dice of the network's labels with the warped labels) is registered again,
    # guided by the prediction; 0: never.
    reregister_below: float = 0.0
    largest_component: bool = False  # remove small components of classes that are one component in training labels
    temperature_scaling: bool = False  # saved probabilities are no more confident than the quality estimate

    def __post_init__(self) -> None:
        require_fields(self)
        require_range("atlas_weight", self.atlas_weight, 0, 1, open_end=True)
        require_range("atlas_share", self.atlas_share, 0, 1, open_end=True)
        require_range("em_weight", self.em_weight, 0, 2)
        require_range("crf_weight", self.crf_weight, 0, 9)
        require_range("reregister_below", self.reregister_below, 0, 1)


@dataclass(frozen=True)
class InferenceConfig:
    """How a volume is covered with tiles."""

    # centre: consecutive tiles of which only the centre is kept (paper, IV-C); overlap: tiles every ``step`` of a
    # side, averaged.
    tiling: Literal["centre", "overlap"] = "centre"
    step: float = 0.5  # of a patch side, for overlap
    weighting: Literal["gaussian", "uniform"] = "gaussian"  # of overlapping tiles
    mirror_axes: tuple[int, ...] = ()  # axes of mirrored views that are averaged (test-time augmentation)
    skip_empty: bool = False  # tiles in which every channel is constant are background without computing them

    def __post_init__(self) -> None:
        require_fields(self)
        require(
            MIN_STEP <= self.step <= 1,
            f"step is {self.step}; must lie in [{MIN_STEP}, 1] (time grows with its inverse, cubed)",
        )
        require_mirror_axes(self.mirror_axes)


@dataclass(frozen=True)
class Recipe:
    """How a fold is trained and a scan predicted. The defaults are the paper's recipe."""

    name: str = "paper"  # of the recipe
    # paper: the paper's patch, grid, crop and OHEM groups; adaptive: planned from the fingerprint.
    planning: Literal["paper", "adaptive"] = "paper"
    # Size of the network: the paper's, the small one (for a CPU), or by the device's memory.
    size: Literal["paper", "small", "auto"] = "paper"
    architecture: Literal["mre_net", "unet"] = "mre_net"  # MRE-Net, or the U-Net baseline
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    atlas: AtlasConfig = field(default_factory=AtlasConfig)
    refinement: RefinementConfig = field(default_factory=RefinementConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)

    def __post_init__(self) -> None:
        require_fields(self)
        require_text("name", self.name)

    @property
    def is_literal(self) -> bool:
        """Whether the paper's fixed patch, grid and network size are taken."""
        return self.planning == "paper" and self.size == "paper"
