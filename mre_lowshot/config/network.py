"""The network: one frozen record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mre_lowshot.specs.check import need


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
            need(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; must be at least 1")
        need(
            self.embedding >= (1 if self.dml else 0),
            f"embedding is {self.embedding}; must be at least 1 (0, no embedding, only with dml off)",
        )
        need(
            self.norm == "batch" or not (self.ams and self.aspp and self.image_level and self.image_level_norm),
            "image_level_norm needs norm 'batch' (an instance norm of a single value is always 0); set it to false",
        )
        need(
            not self.atlas_prior or self.coordinates == "volume",
            f"atlas_prior needs coordinates 'volume', not {self.coordinates!r}",
        )
        need(self.classes >= 2, f"classes is {self.classes}; background and at least one label are needed")
        need(self.scale > 0, f"scale is {self.scale}; must be above 0")
        need(len(self.widths) == len(self.convs), f"widths {self.widths} and convs {self.convs} differ in length")
        need(
            len(self.strides) == len(self.widths) - 1 >= 1,
            f"strides {self.strides}: {len(self.widths)} encoder blocks need {len(self.widths) - 1} poolings (>= 1)",
        )
        need(all(w >= 4 for w in self.widths), f"widths {self.widths}; each must be at least 4")
        need(all(c >= 1 for c in self.convs), f"convs {self.convs}; each must be at least 1")
        need(self.axes in (2, 3), f"strides {self.strides}; must have two (2D) or three (3D) numbers each")
        for name in ("strides", "dilations"):
            rows = getattr(self, name)
            need(
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
