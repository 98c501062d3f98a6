"""From backbone levels to one embedding a voxel: coordinates, SE attention, ASPP, fusion (paper, III-C; Fig. 2b)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mre_lowshot.network.backbone import CONV, norm_layer
from mre_lowshot.network.dilated import DilatedConv
from mre_lowshot.network.recompute import run
from mre_lowshot.network.resize import upsample
from mre_lowshot.specs import NetworkSpec


def patch_coordinates(size: torch.Size | tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Cartesian maps of one patch, (axes, *size), each axis running from -1 to 1 over the patch itself."""
    lines = [torch.linspace(-1, 1, n, device=device, dtype=dtype) if n > 1 else torch.zeros(1) for n in size]
    return torch.stack(torch.meshgrid(*[line.to(device, dtype) for line in lines], indexing="ij"))


class SqueezeExcite(nn.Module):
    """Channel attention: global average -> C/reduction -> ReLU -> C -> sigmoid -> rescale. (B, C, *size) -> same."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.flatten(2).mean(dim=2)
        weight = torch.sigmoid(self.excite(F.relu(self.squeeze(pooled))))
        return x * weight.view(*weight.shape, *[1] * (x.dim() - 2))


def joined(features: Tensor, pooled: Tensor | None) -> Tensor:
    """Features of every voxel and, after them, those that a whole patch shares, broadcast."""
    if pooled is None:
        return features
    return torch.cat([features, pooled.expand(-1, -1, *features.shape[2:])], dim=1)


class ASPP(nn.Module):
    """Atrous spatial pyramid: 1x1x1, one 3x3x3 a dilation, and the image-level branch, concatenated.

    (B, C, *size) -> (B, branches * aspp_channels, *size); each branch is conv -> norm -> ReLU. The image-level
    branch's batch norm sees one vector a patch; the spec's ``image_level_norm`` switches it off. ``plain`` uses torch's
    own dilated convolutions; ``recompute`` keeps only the input for the gradients.
    """

    recompute = False

    def __init__(self, spec: NetworkSpec, channels: int, plain: bool = False) -> None:
        super().__init__()
        width, self.plain = spec.aspp_channels, plain
        self.branches = nn.ModuleList([self._branch(spec, CONV[spec.axes](channels, width, 1))])
        for dilation in spec.dilations:
            conv = CONV[spec.axes](channels, width, 3, padding=dilation, dilation=dilation) if plain else None
            conv = conv or DilatedConv(spec.axes, channels, width, dilation)
            self.branches.append(self._branch(spec, conv))
        self.image_level: nn.Module | None = None
        if spec.image_level:
            norm = norm_layer(spec, width) if spec.image_level_norm else nn.Identity()
            self.image_level = nn.Sequential(CONV[spec.axes](channels, width, 1), norm, nn.ReLU())
        self.out_channels = width * (1 + len(spec.dilations) + int(spec.image_level))

    @staticmethod
    def _branch(spec: NetworkSpec, conv: nn.Module) -> nn.Sequential:
        return nn.Sequential(conv, norm_layer(spec, spec.aspp_channels), nn.ReLU())

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The branches that see places, (B, .., *size), and the image level's, (B, aspp_channels, 1, ...), if any."""
        if x.device.type == "cpu" and not self.plain:  # what the dilated branches want: converted once, not once each
            x = x.contiguous(memory_format=torch.channels_last_3d if x.dim() == 5 else torch.channels_last)
        outputs = torch.cat([run(branch, x, self.recompute) for branch in self.branches], dim=1)
        if self.image_level is None:
            return outputs, None
        return outputs, self.image_level(x.mean(dim=tuple(range(2, x.dim())), keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        return joined(*self.parts(x))


class Embedding(nn.Module):
    """Backbone levels and coordinates -> per-voxel features z, and their linear fusion to the embedding e = Wz + b.

    With AMS the levels are upsampled to the input's size and concatenated (64 + 128 + 3 channels in the paper's
    network), go through SE and ASPP, and are fused by a 1x1x1 convolution to ``embedding`` channels. Without AMS
    the finest level (with the coordinates, if any) is fused directly. ``embedding`` 0 leaves z as it is.
    """

    def __init__(self, spec: NetworkSpec, plain: bool = False) -> None:
        super().__init__()
        self.spec = spec
        levels = len(spec.widths) if spec.bottleneck_level else len(spec.widths) - 1
        self.levels = levels if spec.ams else 1
        channels = sum(spec.widths[: self.levels]) + spec.location_channels
        self.se = SqueezeExcite(channels, spec.se_reduction) if spec.ams and spec.se else None
        self.aspp = ASPP(spec, channels, plain) if spec.ams and spec.aspp else None
        features = self.aspp.out_channels if self.aspp is not None else channels
        self.fusion = CONV[spec.axes](features, spec.embedding, 1) if spec.embedding else nn.Identity()
        self.constant_features = spec.aspp_channels if self.aspp is not None and spec.image_level else 0
        self.varying_features = features - self.constant_features
        self.out_channels = spec.embedding or features

    def features(self, levels: list[Tensor], coordinates: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """z, everything up to the fusion: what differs from voxel to voxel (B, .., *size), and what a patch's voxels
        share (B, .., 1, ...) or None. ``coordinates`` (B, axes, *size) over the whole volume."""
        x = self.stacked(levels, coordinates)
        return self.aspp.parts(x) if self.aspp is not None else (x, None)

    def stacked(self, levels: list[Tensor], coordinates: Tensor | None) -> Tensor:
        """The levels at the input's size and the coordinates, after SE: (B, C, *size), what ASPP reads."""
        finest = levels[0]
        size = finest.shape[2:]
        parts = [finest]
        for level in levels[1 : self.levels]:
            parts.append(upsample(level, size))
        if self.spec.coordinates == "patch":
            own = patch_coordinates(size, finest.device, finest.dtype)
            parts.append(own.expand(finest.shape[0], *own.shape))
        elif self.spec.coordinates == "volume":
            if coordinates is None:
                raise ValueError("this network needs the patch's coordinate maps")
            parts.append(coordinates.to(finest.dtype))
        x = torch.cat(parts, dim=1)
        return self.se(x) if self.se is not None else x

    def forward(self, levels: list[Tensor], coordinates: Tensor | None) -> Tensor:
        return self.fusion(joined(*self.features(levels, coordinates)))
