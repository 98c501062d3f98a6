"""From backbone levels to one embedding per voxel: coordinates, SE attention, ASPP, fusion (paper, III-C; Fig. 2b)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mre_lowshot.config import NetworkConfig
from mre_lowshot.network.backbone import CONV, norm_layer
from mre_lowshot.network.optimized.dilated import DilatedConv
from mre_lowshot.network.optimized.recompute import run
from mre_lowshot.network.pointwise import POINTWISE, product
from mre_lowshot.network.resize import upsample


def patch_coordinates(size: torch.Size | tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Cartesian coordinate maps of a patch, (axes, *size): each axis runs from -1 to 1 across the patch."""
    lines = [torch.linspace(-1, 1, n, device=device, dtype=dtype) if n > 1 else torch.zeros(1) for n in size]
    return torch.stack(torch.meshgrid(*[line.to(device, dtype) for line in lines], indexing="ij"))


class SqueezeExcite(nn.Module):
    """Channel attention: global average -> C/reduction -> ReLU -> C -> sigmoid -> rescale.

    ``forward`` maps (B, C, *size) to the same shape.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)

    def weights(self, x: Tensor) -> Tensor:
        """The factor of each channel, (B, C, 1, ...)."""
        pooled = x.flatten(2).mean(dim=2)
        weight = torch.sigmoid(self.excite(F.relu(self.squeeze(pooled))))
        return weight.view(*weight.shape, *[1] * (x.dim() - 2))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weights(x)


def joined(features: Tensor, pooled: Tensor | None) -> Tensor:
    """Concatenate per-voxel features (B, V, *size) and per-patch features (B, P, 1, ...), the latter broadcast."""
    if pooled is None:
        return features
    return torch.cat([features, pooled.expand(-1, -1, *features.shape[2:])], dim=1)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: a 1x1x1 branch, one 3x3x3 branch per dilation, and the image-level branch.

    ``forward`` maps (B, C, *size) to (B, branches * aspp_channels, *size); each branch is convolution -> normalisation
    -> ReLU. The batch norm of the image-level branch averages over one vector per patch; ``spec.image_level_norm``
    switches it off. ``plain`` uses torch's convolutions. With ``recompute`` each branch stores only its
    input for the backward pass.
    """

    recompute = False

    def __init__(self, spec: NetworkConfig, channels: int, plain: bool = False) -> None:
        super().__init__()
        width, self.plain = spec.aspp_channels, plain
        first = (CONV if plain else POINTWISE)[spec.axes](channels, width, 1)
        self.branches = nn.ModuleList([self._branch(spec, first)])
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
    def _branch(spec: NetworkConfig, conv: nn.Module) -> nn.Sequential:
        return nn.Sequential(conv, norm_layer(spec, spec.aspp_channels), nn.ReLU())

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Output of the convolutional branches (B, V, *size) and of the image-level branch (B, aspp_channels, 1, ...).

        The second is None where the network has no image-level branch.
        """
        if x.device.type == "cpu" and not self.plain:  # convert the layout once for all dilated branches
            x = x.contiguous(memory_format=torch.channels_last_3d if x.dim() == 5 else torch.channels_last)
        outputs = torch.cat([run(branch, x, self.recompute) for branch in self.branches], dim=1)
        if self.image_level is None:
            return outputs, None
        return outputs, self.image_level(x.mean(dim=tuple(range(2, x.dim())), keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        return joined(*self.parts(x))


class Embedding(nn.Module):
    """Backbone levels and coordinates -> per-voxel features z, and their linear fusion to the embedding e = Wz + b.

    With ``multiscale`` (the paper's AMS) the levels are upsampled to the input size and concatenated with the
    coordinates (64 + 128 + 3 channels in the paper's network), pass SE and ASPP, and a 1x1x1 convolution fuses them to
    ``embedding_dim`` channels. Without it the finest level and the coordinates are fused directly. With
    ``embedding_dim`` 0, e = z.
    """

    def __init__(self, spec: NetworkConfig, plain: bool = False) -> None:
        super().__init__()
        self.spec, self.plain = spec, plain
        levels = len(spec.widths) if spec.bottleneck_level else len(spec.widths) - 1
        self.levels = levels if spec.multiscale else 1
        channels = sum(spec.widths[: self.levels]) + spec.location_channels - spec.prior_channels
        uses_se = spec.multiscale and spec.se
        self.se: nn.Module | None = SqueezeExcite(channels, spec.se_reduction) if uses_se else None
        self.aspp = ASPP(spec, channels, plain) if spec.multiscale and spec.aspp else None
        features = self.aspp.out_channels if self.aspp is not None else channels
        pointwise = (CONV if plain else POINTWISE)[spec.axes]
        self.fusion = pointwise(features, spec.embedding_dim, 1) if spec.embedding_dim else nn.Identity()
        self.constant_features = spec.aspp_channels if self.aspp is not None and spec.image_level else 0
        self.varying_features = features - self.constant_features
        self.out_channels = spec.embedding_dim or features

    def features(self, levels: list[Tensor], coordinates: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The features z before the fusion: per voxel (B, V, *size), and per patch (B, P, 1, ...) or None.

        ``coordinates`` (B, location_channels, *size) are the patch's location maps.
        """
        x = self.stacked(levels, coordinates)
        return self.aspp.parts(x) if self.aspp is not None else (x, None)

    def stacked(self, levels: list[Tensor], coordinates: Tensor | None) -> Tensor:
        """The input of the ASPP (B, C, *size): levels at the input size and coordinates, after SE.

        Raises:
            ValueError: the network takes location maps and ``coordinates`` is None.
        """
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
                raise ValueError("this network needs the coordinate maps of the patch")
            parts.append(coordinates[:, : coordinates.shape[1] - self.spec.prior_channels].to(finest.dtype))
        x = torch.cat(parts, dim=1)
        return self.se(x) if self.se is not None else x

    def forward(self, levels: list[Tensor], coordinates: Tensor | None) -> Tensor:
        features, pooled = self.features(levels, coordinates)
        if pooled is None or self.plain or not self.spec.embedding_dim or features.device.type != "cpu":
            embedding: Tensor = self.fusion(joined(features, pooled))
            return embedding
        return product(self.fusion, features.movedim(1, -1), pooled.flatten(1)).movedim(-1, 1)
