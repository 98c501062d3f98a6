"""How a fold is trained and predicted: augmentation, inference, and the recipe that holds both."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mre_lowshot.specs.check import need


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
                need(0 <= value <= 1, f"{name} is {value}; must lie between 0 and 1")
        for name in ("scaling", "brightness", "contrast", "gamma", "blur", "low_resolution"):
            value = getattr(self, name)
            need(
                len(value) == 2 and 0 < value[0] <= value[1], f"{name} is {value}; must be two numbers 0 < low <= high"
            )
        for name in ("elastic", "shift", "location_jitter"):
            need(0 <= getattr(self, name) < 0.5, f"{name} is {getattr(self, name)}; must lie in [0, 0.5)")
        need(0 <= self.rotation <= 180, f"rotation is {self.rotation}; must lie in [0, 180] degrees")
        need(set(self.mirror_axes) <= {0, 1, 2}, f"mirror_axes is {self.mirror_axes}; axes are 0 (z), 1 (y), 2 (x)")


@dataclass(frozen=True)
class InferenceSpec:
    """How a volume is covered with patches. ``centre``: consecutive tiles, only the centre of each kept (paper,
    IV-C); ``overlap``: tiles every ``step`` of a side, averaged with ``weighting``. ``prior_weight`` w pools the
    network's posterior with the labels that registration brings from the atlas, as p^(1-w) q^w (where scans are
    aligned and the network knows the prior); with mirror images a fold finds a w of its own, unless this is 0
    (`trainers.weighing`). ``intensity_weight`` mends the result by what each class looks like in the
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
        need(0 <= self.prior_weight < 1, f"prior_weight is {self.prior_weight}; must lie in [0, 1)")
        for name, most in (("intensity_weight", 2), ("neighbour_weight", 9), ("realign_below", 1)):
            value = getattr(self, name)
            need(0 <= value <= most, f"{name} is {value}; must lie in [0, {most}]")
        need(0 < self.step <= 1, f"step is {self.step}; must lie in (0, 1]")
        need(set(self.mirror_axes) <= {0, 1, 2}, f"mirror_axes is {self.mirror_axes}; axes are 0 (z), 1 (y), 2 (x)")


@dataclass(frozen=True)
class Recipe:
    """How a fold is trained (paper, Table I and IV-C). Defaults are the paper's recipe.

    ``schedule`` ``step`` multiplies the rate by ``step_factor`` every ``step_every`` iterations, ``cosine`` lets it
    fall to zero at the last one. ``majority`` names the OHEM majority group; empty means it is derived from the
    training labels' voxel shares. ``n_lg`` is N_Lg, ``ohem_floor`` how many majority voxels are kept when a batch
    holds no minority voxel. ``class_balance`` 1 gives every class the same weight (equation 5), 0 every voxel.
    ``dice_weight`` adds the soft Dice loss, summed over classes. ``balanced_share`` is the share of patches centred on
    a voxel of a class drawn at random. ``ema`` is the decay of the weights' moving average, 0 for none.
    ``alignment`` is how a scan is registered to the atlas, so that coordinates mean anatomy. ``mirror_images``: at
    prediction each training scan's mirror image is an atlas too, where left and right are alike (and scans are
    aligned, with ``network.atlas_prior``). ``largest_component`` keeps, in predictions, only the largest piece of each
    class that is one piece in the training labels, ``hu_floors`` (CT) keeps each class off voxels too dark for it by
    these labels.
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
    mirror_images: bool = False
    largest_component: bool = False
    hu_floors: bool = False
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    sync_batch_norm: bool = False
    recompute: bool = False
    augmentation: AugmentationSpec = field(default_factory=AugmentationSpec)
    inference: InferenceSpec = field(default_factory=InferenceSpec)

    def __post_init__(self) -> None:
        for name in ("iterations", "batch_size", "step_every", "n_lg", "ohem_floor"):
            need(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; must be at least 1")
        need(self.learning_rate > 0, f"learning_rate is {self.learning_rate}; must be above 0")
        need(0 < self.step_factor <= 1, f"step_factor is {self.step_factor}; must lie in (0, 1]")
        for name in ("weight_decay", "dice_weight"):
            need(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}; must not be negative")
        need(0 <= self.class_balance <= 1, f"class_balance is {self.class_balance}; must lie in [0, 1]")
        need(0 <= self.balanced_share <= 1, f"balanced_share is {self.balanced_share}; must lie in [0, 1]")
        need(0 <= self.ema < 1, f"ema is {self.ema}; must lie in [0, 1)")
