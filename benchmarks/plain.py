"""The plain reference: MRE-Net in torch's own operations, written directly from the method (docs/METHOD.md).

Nothing is optimised here: dilated convolutions are torch's, the embedding is computed with all N_e features, and tiles
are predicted whole and then cropped to the kept centres. Parameters have the same names as in our network, so that
weights can be copied and the results compared in the same run.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mre_lowshot.config import NetworkConfig, PatchConfig
from mre_lowshot.inference.tiles import centre_tiles


def _stack(channels: Sequence[int]) -> nn.Sequential:
    """Convolution -> ReLU -> BatchNorm from each width to the next."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(channels):
        layers += [nn.Conv3d(before, after, 3, padding=1), nn.ReLU(), nn.BatchNorm3d(after)]
    return nn.Sequential(*layers)


class _Backbone(nn.Module):
    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        widths = config.widths
        before = (config.in_channels, *widths)
        self.strides = config.strides
        self.encoder = nn.ModuleList(_stack([before[i], *[w] * config.convs[i]]) for i, w in enumerate(widths))
        self.transitions = nn.ModuleList(_stack([w, w // 4]) for w in widths[:-1])
        self.ups = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose3d(w, w, s, s), nn.ReLU(), nn.BatchNorm3d(w))  # type: ignore[arg-type]
            for w, s in zip(widths[1:], config.strides, strict=True)
        )
        self.decoder = nn.ModuleList(_stack([below + w // 4, w, w]) for w, below in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> list[Tensor]:
        skips = []
        for level, block in enumerate(self.encoder):
            x = block(x if level == 0 else F.avg_pool3d(x, self.strides[level - 1]))
            skips.append(x)
        levels: list[Tensor] = []
        for level in reversed(range(len(self.decoder))):
            x = self.decoder[level](torch.cat([self.ups[level](x), self.transitions[level](skips[level])], dim=1))
            levels.insert(0, x)
        return levels


class _SqueezeExcite(nn.Module):
    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, max(1, channels // reduction))
        self.excite = nn.Linear(max(1, channels // reduction), channels)

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3, 4))))))
        return x * weight[:, :, None, None, None]


class _ASPP(nn.Module):
    def __init__(self, config: NetworkConfig, channels: int) -> None:
        super().__init__()
        width = config.aspp_channels
        convs = [nn.Conv3d(channels, width, 1)]
        for dilation in config.dilations:
            convs.append(nn.Conv3d(channels, width, 3, padding=dilation, dilation=dilation))  # type: ignore[arg-type]
        self.branches = nn.ModuleList(nn.Sequential(conv, nn.BatchNorm3d(width), nn.ReLU()) for conv in convs)
        norm = nn.BatchNorm3d(width) if config.image_level_norm else nn.Identity()
        self.image_level = nn.Sequential(nn.Conv3d(channels, width, 1), norm, nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.image_level(x.mean((2, 3, 4), keepdim=True)).expand(-1, -1, *x.shape[2:])
        return torch.cat([*(branch(x) for branch in self.branches), pooled], dim=1)


class _Embedding(nn.Module):
    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        channels = sum(config.widths[:-1]) + config.location_channels
        self.se = _SqueezeExcite(channels, config.se_reduction)
        self.aspp = _ASPP(config, channels)
        self.fusion = nn.Conv3d(config.aspp_channels * (2 + len(config.dilations)), config.embedding_dim, 1)

    def forward(self, levels: list[Tensor], coordinates: Tensor) -> Tensor:
        size = levels[0].shape[2:]
        rest = [F.interpolate(x, size, mode="trilinear", align_corners=False) for x in levels[1:]]
        found: Tensor = self.fusion(self.aspp(self.se(torch.cat([levels[0], *rest, coordinates], dim=1))))
        return found


class _Head(nn.Module):
    """Equations 1 to 4. The products are 1x1x1 convolutions, and the similarities, not the embedding, are divided by
    |e|: the fastest form without fusing layers."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.shape = config.classes, config.prototypes_per_class
        outputs = config.classes * config.prototypes_per_class
        self.prototypes = nn.Parameter(torch.randn(outputs, config.embedding_dim))
        self.log_scale = nn.Parameter(torch.tensor(math.log(config.logit_scale)))
        self.mixer = nn.Sequential(
            nn.Linear(config.embedding_dim, config.mixing_dim), nn.ReLU(), nn.Linear(config.mixing_dim, outputs)
        )

    def forward(self, e: Tensor) -> Tensor:
        s = F.conv3d(e, _as_kernel(F.normalize(self.prototypes, dim=1))) / e.norm(dim=1, keepdim=True)
        u = torch.relu(_voxelwise(e, self.mixer[0]))
        beta = torch.sigmoid(_voxelwise(u, self.mixer[2]))
        beta, s = (x.view(len(x), *self.shape, *x.shape[2:]) for x in (beta, s))
        log_alpha = torch.log_softmax(beta, dim=2)
        return torch.logsumexp(log_alpha + self.log_scale.exp() * s, dim=2)


def _as_kernel(weight: Tensor) -> Tensor:
    return weight[:, :, None, None, None]


def _voxelwise(x: Tensor, layer: nn.Module) -> Tensor:
    """A fully connected layer at each voxel."""
    assert isinstance(layer, nn.Linear)
    return F.conv3d(x, _as_kernel(layer.weight), layer.bias)


class PlainMRENet(nn.Module):
    """Patch (B, C, *size) and coordinate maps (B, axes, *size) -> class logits (B, K, *size), of the method's default
    variant in 3D.

    Raises:
        ValueError: ``config`` is a variant that is not implemented here.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        default = (config.axes, config.norm, config.coordinates, config.mixing, config.distance) == (
            3, "batch", "volume", "adaptive", "cosine")  # fmt: skip
        parts = (
            config.multiscale,
            config.se,
            config.aspp,
            config.image_level,
            config.prototype_head,
            config.mixing_sigmoid,
            config.logit_scale_learned,
        )
        if not default or not all(parts) or config.bottleneck_level or config.prototypes_per_class == 1:
            raise ValueError(
                "the plain reference is the method's default variant in 3D, with two prototypes per class or more"
            )
        self.backbone = _Backbone(config)
        self.embedding = _Embedding(config)
        self.head = _Head(config)

    def forward(self, image: Tensor, coordinates: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embedding(self.backbone(image), coordinates))
        return logits


@torch.inference_mode()
def plain_prediction(
    network: nn.Module, image: Tensor, coordinates: Tensor, patch: PatchConfig, classes: int, batch: int
) -> Tensor:
    """Class probabilities (K, *size), on the CPU, of a scan (C, *size) with its coordinate maps: ``batch`` tiles at a
    time, of which the centres are kept, computed on the tensors' device."""
    size = tuple(image.shape[1:])
    result = torch.zeros((classes, *size))
    tiles = list(centre_tiles(size, patch.size, patch.centre))
    for first in range(0, len(tiles), batch):
        group = tiles[first : first + batch]
        cuts = [(slice(None), *tile.input_slices(patch.size)) for tile in group]
        logits = network(torch.stack([image[c] for c in cuts]), torch.stack([coordinates[c] for c in cuts]))
        for tile, probability in zip(group, torch.softmax(logits, dim=1).cpu(), strict=True):
            result[(slice(None), *tile.output_slices())] = probability[(slice(None), *tile.kept_slices())]
    return result
