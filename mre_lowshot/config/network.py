"""Configuration of the network: one frozen record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mre_lowshot.config.check import require, require_fields

# Limits of what is built, far above any sensible network: a file from a stranger must not occupy the machine.
MAX_STAGES, MAX_CONVS, MAX_WIDTH, MAX_BRANCHES, MAX_STRIDE, MAX_DILATION = 8, 16, 4096, 16, 8, 128
MAX_CHANNELS, MAX_CLASSES, MAX_PROTOTYPES = 64, 1024, 256
MAX_PRIOR_WEIGHT = 10.0


@dataclass(frozen=True)
class NetworkConfig:
    """MRE-Net (paper, section III; Fig. 2). The defaults are the paper's network; K = ``classes``.

    Axes are (z, y, x); a 2D network has two, (y, x).
    """

    in_channels: int  # image channels C
    classes: int  # K, background included
    widths: tuple[int, ...] = (64, 128, 256)  # feature channels of the encoder blocks, finest first
    convs: tuple[int, ...] = (3, 4, 5)  # convolutions per encoder block
    strides: tuple[tuple[int, ...], ...] = ((2, 2, 2), (1, 2, 2))  # average pooling between the blocks
    norm: Literal["batch", "instance"] = "batch"  # normalisation layers
    # Coordinate maps: -1 to 1 over the whole volume, over the patch, or none.
    coordinates: Literal["volume", "patch", "none"] = "volume"
    # Beyond the paper: the atlases' labels at these coordinates are further location maps, one per foreground class.
    atlas_prior: bool = False
    # Their place: input of SE and ASPP beside the coordinates; or a term of the logits, the logarithm of the classes'
    # shares times a weight (`network.prior_term`).
    atlas_prior_at: Literal["input", "logits"] = "input"
    atlas_prior_weight: float = 0.5  # of the logarithm, where the prior is a term of the logits
    # The attentional multi-scale embedding (AMS): concatenated levels, SE and ASPP.
    multiscale: bool = True
    bottleneck_level: bool = False  # also concatenate the coarsest level
    se: bool = True  # squeeze-and-excitation
    se_reduction: int = 16  # of its hidden layer
    aspp: bool = True  # atrous spatial pyramid pooling
    aspp_channels: int = 256  # per branch
    dilations: tuple[tuple[int, ...], ...] = ((6, 6, 6), (12, 12, 12), (18, 18, 18))  # one row per branch
    image_level: bool = True  # the ASPP's global average branch
    image_level_norm: bool = True  # batch norm in it
    embedding_dim: int = 2048  # N_e; 0 keeps the features as they are (only without prototype_head)
    # Deep metric learning (DML): cosine distance to prototypes. Off: a plain 1x1x1 classifier (Table II, row f).
    prototype_head: bool = True
    prototypes_per_class: int = 3  # M
    mixing: Literal["adaptive", "average", "one_hot"] = "adaptive"  # equation 4, 1/M, or the nearest prototype alone
    mixing_dim: int = 512  # hidden width of the mixing network
    mixing_sigmoid: bool = True  # sigmoid before the softmax of equation 4
    distance: Literal["cosine", "euclidean"] = "cosine"  # of an embedding to the prototypes
    logit_scale: float = 10.0  # xi, its initial value
    logit_scale_learned: bool = True  # trained with the weights, or kept

    def __post_init__(self) -> None:
        require_fields(self)
        limits = {
            "in_channels": (1, MAX_CHANNELS),
            "classes": (2, MAX_CLASSES),
            "se_reduction": (1, MAX_WIDTH),
            "aspp_channels": (1, MAX_WIDTH),
            "prototypes_per_class": (1, MAX_PROTOTYPES),
            "mixing_dim": (1, 16 * MAX_WIDTH),
            # 0, no embedding, only without prototype_head
            "embedding_dim": (1 if self.prototype_head else 0, 16 * MAX_WIDTH),
        }
        for name, (low, high) in limits.items():
            found = getattr(self, name)
            require(low <= found <= high, f"{name} is {found}; must be at least {low} and at most {high}")
        require(0 < self.logit_scale <= 1000, f"logit_scale is {self.logit_scale}; must be above 0, at most 1000")
        require(
            0 < self.atlas_prior_weight <= MAX_PRIOR_WEIGHT,
            f"atlas_prior_weight is {self.atlas_prior_weight}; must be above 0, at most {MAX_PRIOR_WEIGHT:g}",
        )
        require(
            self.norm == "batch" or not self.pooled_norm,
            "image_level_norm needs norm 'batch' (an instance norm of a single value is always 0); set it to false",
        )
        require(
            not self.atlas_prior or self.coordinates == "volume",
            f"atlas_prior needs coordinates 'volume', not {self.coordinates!r}",
        )
        require(len(self.widths) == len(self.convs), f"widths {self.widths} and convs {self.convs} differ in length")
        require(
            len(self.strides) == len(self.widths) - 1 >= 1,
            f"strides {self.strides}: {len(self.widths)} encoder blocks need {len(self.widths) - 1} poolings (>= 1)",
        )
        require(len(self.widths) <= MAX_STAGES, f"widths {self.widths}; at most {MAX_STAGES} encoder blocks are built")
        require(
            all(4 <= w <= MAX_WIDTH for w in self.widths),
            f"widths {self.widths}; each must be at least 4, at most {MAX_WIDTH}",
        )
        require(
            all(1 <= c <= MAX_CONVS for c in self.convs),
            f"convs {self.convs}; each must be at least 1, at most {MAX_CONVS}",
        )
        require(
            len(self.dilations) <= MAX_BRANCHES, f"dilations has {len(self.dilations)} rows; at most {MAX_BRANCHES}"
        )
        require(self.axes in (2, 3), f"strides {self.strides}; must have two (2D) or three (3D) numbers each")
        for name, most in (("strides", MAX_STRIDE), ("dilations", MAX_DILATION)):
            rows = getattr(self, name)
            require(
                all(len(r) == self.axes and all(1 <= v <= most for v in r) for r in rows),
                f"{name} {rows}; every entry needs {self.axes} whole numbers from 1 to {most}, one per axis",
            )

    @property
    def axes(self) -> int:
        """Number of spatial axes: 3, or 2 for the 2D network."""
        return len(self.strides[0])

    @property
    def pooled_norm(self) -> bool:
        """Whether the image-level branch has a norm, which sees one vector per patch."""
        return self.multiscale and self.aspp and self.image_level and self.image_level_norm

    @property
    def location_channels(self) -> int:
        """Input maps of a voxel's position: one per coordinate, and with ``atlas_prior`` one per foreground class."""
        if self.coordinates == "none":
            return 0
        return self.axes + (self.classes - 1 if self.atlas_prior else 0)

    @property
    def prior_channels(self) -> int:
        """How many of the location maps, the last, are no input but a term of the logits."""
        return self.classes - 1 if self.atlas_prior and self.atlas_prior_at == "logits" else 0

    @property
    def divisor(self) -> tuple[int, ...]:
        """What each side of a patch must be divisible by: the product of the strides along that axis."""
        product = [1] * self.axes
        for stride in self.strides:
            product = [p * s for p, s in zip(product, stride, strict=True)]
        return tuple(product)
