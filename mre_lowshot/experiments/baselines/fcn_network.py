"""The fully convolutional network FCN-8s (Long, Shelhamer and Darrell, CVPR 2015) on the encoder VGG-16, for 2D images.

Five blocks of 3 x 3 convolutions, each with a pooling of 2; the fully connected layers of VGG-16 as convolutions of
7 x 7 and 1 x 1 with dropout; class scores at strides 32, 16 and 8, added from coarse to fine:

    s16 = up2(score(fc7)) + score(pool4),  s8 = up2(s16) + score(pool3),  output = up8(s8)

up2 is a transposed convolution that begins as bilinear interpolation and is learned, up8 is bilinear interpolation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTHS, CONVS = (64, 128, 256, 512, 512), (2, 2, 3, 3, 3)  # channels and convolutions of VGG-16's blocks
FULLY_CONNECTED = 4096  # channels of fc6 and fc7
STRIDE = 2 ** len(WIDTHS)  # the sides of an input must be multiples of it
DROPOUT = 0.5


class FCN8s(nn.Module):
    """Maps images (B, C, H, W) to class scores (B, K, H, W); H and W are multiples of `STRIDE`.

    Args:
        channels: C.
        classes: K.
        width: factor of the channels, 1 for VGG-16's.
    """

    def __init__(self, channels: int, classes: int, width: float = 1.0) -> None:
        super().__init__()
        sizes = [max(4, round(n * width)) for n in WIDTHS]
        inner = max(4, round(FULLY_CONNECTED * width))
        pairs = zip([channels, *sizes], sizes, CONVS, strict=False)
        self.blocks = nn.ModuleList(_block(before, after, count) for before, after, count in pairs)
        self.fully_connected = nn.Sequential(*_dense(sizes[4], inner, 7), *_dense(inner, inner, 1))
        self.score32, self.score16, self.score8 = (nn.Conv2d(n, classes, 1) for n in (inner, sizes[3], sizes[2]))
        self.up32, self.up16 = (_upsampling(classes) for _ in range(2))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        for score in (self.score32, self.score16, self.score8):
            nn.init.zeros_(score.weight)
            if score.bias is not None:
                nn.init.zeros_(score.bias)

    def forward(self, images: Tensor) -> Tensor:
        levels = []
        features = images
        for block in self.blocks:
            features = block(features)
            levels.append(features)
        pool3, pool4, pool5 = levels[2:]
        scores = self.up32(self.score32(self.fully_connected(pool5))) + self.score16(pool4)
        scores = self.up16(scores) + self.score8(pool3)
        return functional.interpolate(scores, scale_factor=8, mode="bilinear", align_corners=False)


def _block(before: int, after: int, count: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number in range(count):
        convolution = nn.Conv2d(before if number == 0 else after, after, 3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.MaxPool2d(2))


def _dense(before: int, after: int, side: int) -> list[nn.Module]:
    """A fully connected layer of VGG-16 as a convolution."""
    convolution = nn.Conv2d(before, after, side, padding=side // 2, bias=False)
    return [convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True), nn.Dropout2d(DROPOUT)]


def _upsampling(classes: int) -> nn.ConvTranspose2d:
    """A transposed convolution that doubles each side; at first each class by itself, bilinearly."""
    layer = nn.ConvTranspose2d(classes, classes, 4, stride=2, padding=1, bias=False)
    line = torch.tensor([0.25, 0.75, 0.75, 0.25])
    with torch.no_grad():
        layer.weight.zero_()
        for k in range(classes):
            layer.weight[k, k] = line[:, None] * line
    return layer
