"""Backbone: a shallow 3D (or 2D) U-Net with transition convolutions on the skip connections (paper, III-B; Fig. 2a)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mre_lowshot.config import NetworkConfig
from mre_lowshot.network.optimized.recompute import run
from mre_lowshot.network.resize import AveragePool

# Layer classes by number of spatial axes. Typed as Any: torch's stubs fix the number of axes in each signature.
CONV: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM: dict[str, dict[int, Any]] = {
    "batch": {2: nn.BatchNorm2d, 3: nn.BatchNorm3d},
    "instance": {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d},
}


def norm_layer(spec: NetworkConfig, channels: int) -> nn.Module:
    """An affine normalisation layer of the kind ``spec.norm`` for ``channels`` channels."""
    layer: nn.Module = NORM[spec.norm][spec.axes](channels, affine=True)
    return layer


def conv_block(spec: NetworkConfig, in_channels: int, out_channels: int, count: int) -> nn.Sequential:
    """``count`` blocks of 3x3x3 'same' convolution -> ReLU -> normalisation (the order of the paper).

    The first convolution maps ``in_channels`` to ``out_channels``, the others keep ``out_channels``.
    """
    layers: list[nn.Module] = []
    for index in range(count):
        first = in_channels if index == 0 else out_channels
        layers += [CONV[spec.axes](first, out_channels, 3, padding=1), nn.ReLU(), norm_layer(spec, out_channels)]
    return nn.Sequential(*layers)


class Backbone(nn.Module):
    """Encoder blocks joined by average pooling, decoder blocks joined by transposed convolutions.

    A transition convolution reduces each skip connection to a quarter of its channels. ``forward`` takes
    (B, C, *size), every side divisible by ``spec.divisor``, and returns the decoder levels, finest first:
    (B, widths[0], *size), (B, widths[1], *size/strides[0]), ..., and the bottleneck last. With ``recompute`` each block
    stores only its input for the backward pass (`network.optimized.recompute`).
    """

    recompute = False

    def __init__(self, spec: NetworkConfig) -> None:
        super().__init__()
        widths = spec.widths
        inputs = (spec.in_channels, *widths[:-1])
        self.encoder = nn.ModuleList(
            conv_block(spec, i, w, n) for i, w, n in zip(inputs, widths, spec.convs, strict=True)
        )
        self.pools = nn.ModuleList(AveragePool(stride) for stride in spec.strides)
        self.transitions, self.ups, self.decoder = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for width, below, stride in zip(widths[:-1], widths[1:], spec.strides, strict=True):
            skip = max(1, width // 4)
            self.transitions.append(conv_block(spec, width, skip, 1))
            up = TRANSPOSED[spec.axes](below, below, stride, stride)
            self.ups.append(nn.Sequential(up, nn.ReLU(), norm_layer(spec, below)))
            self.decoder.append(conv_block(spec, below + skip, width, 2))

    def forward(self, x: Tensor) -> list[Tensor]:
        skips = []
        for index, block in enumerate(self.encoder):
            x = run(block, x if index == 0 else self.pools[index - 1](x), self.recompute)
            skips.append(x)
        levels = [skips.pop()]
        for index in reversed(range(len(self.decoder))):
            joined = torch.cat([self.ups[index](levels[0]), self.transitions[index](skips.pop())], dim=1)
            levels.insert(0, run(self.decoder[index], joined, self.recompute))
        return levels
