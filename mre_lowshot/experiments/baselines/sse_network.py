"""The network of sSE-guided few-shot segmentation (Roy et al., 2020): a conditioner arm sees an annotated support slice
and a segmenter arm the query slice. After each block of the conditioner, channel squeeze and spatial excitation (sSE)
makes a map of weights from 0 to 1, which multiplies all channels of the segmenter's block of the same level."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 4  # encoder blocks of an arm, each followed by pooling by 2, and as many decoder blocks
KERNEL = 5
EPSILON = 1e-4  # of the Dice loss
Gates = list[Tensor]
"""Weights (B, 1, *size of the level): of the encoder blocks, the bottleneck and the decoder blocks, in this order."""


class SpatialExcitation(nn.Module):
    """Channel squeeze and spatial excitation: sigmoid(w . x + b) over the channels x of each pixel, (B, C, H, W) ->
    (B, 1, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        return torch.sigmoid(self.squeeze(features))


def block(in_channels: int, channels: int) -> nn.Sequential:
    """5x5 convolution, PReLU and batch normalisation."""
    conv = nn.Conv2d(in_channels, channels, KERNEL, padding=KERNEL // 2)
    return nn.Sequential(conv, nn.PReLU(), nn.BatchNorm2d(channels))


class Arm(nn.Module):
    """An encoder and a decoder without skip connections; the decoder puts values back where max pooling took them.

    ``forward`` returns the features after each block: `LEVELS` pooled ones, the bottleneck's, and `LEVELS` of the
    decoder, the last of the size of the input. ``gates`` multiply them one by one, before the next block.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(block(in_channels if n == 0 else channels, channels) for n in range(LEVELS))
        self.bottleneck = block(channels, channels)
        self.decoder = nn.ModuleList(block(channels, channels) for _ in range(LEVELS))

    def forward(self, x: Tensor, gates: Sequence[Tensor] | None = None) -> list[Tensor]:
        features: list[Tensor] = []

        def add(found: Tensor) -> Tensor:
            features.append(found if gates is None else found * gates[len(features)])
            return features[-1]

        places = []
        for module in self.encoder:
            x, place = F.max_pool2d(module(x), 2, return_indices=True)
            places.append(place)
            x = add(x)
        x = add(self.bottleneck(x))
        for module in self.decoder:
            x = add(module(F.max_unpool2d(x, places.pop(), (2, 2))))
        return features


class TwoArms(nn.Module):
    """Support slices with their masks and query slices -> logits of the mask in the queries.

    Args:
        channels: C of the images.
        conditioner, segmenter: feature channels of the two arms.
    """

    def __init__(self, channels: int, *, conditioner: int, segmenter: int) -> None:
        super().__init__()
        self.conditioner = Arm(channels + 1, conditioner)
        self.excitations = nn.ModuleList(SpatialExcitation(conditioner) for _ in range(2 * LEVELS + 1))
        self.segmenter = Arm(channels, segmenter)
        self.classifier = nn.Conv2d(segmenter, 1, 1)

    def gates(self, support: Tensor, mask: Tensor) -> Gates:
        """The weights that support slices (B, C, H, W) with ``mask`` (B, H, W) give; H and W divisible by 16."""
        features = self.conditioner(torch.cat([support, mask.unsqueeze(1).to(support)], dim=1))
        return [excite(found) for excite, found in zip(self.excitations, features, strict=True)]

    def segment(self, query: Tensor, gates: Gates) -> Tensor:
        """Logits (B, H, W) of query slices (B, C, H, W); ``gates`` of one support slice serve all of them."""
        logits: Tensor = self.classifier(self.segmenter(query, gates)[-1])
        return logits[:, 0]

    def forward(self, support: Tensor, mask: Tensor, query: Tensor) -> Tensor:
        return self.segment(query, self.gates(support, mask))


def dice_loss(logits: Tensor, mask: Tensor, known: Tensor | None = None) -> Tensor:
    """The mean over background and foreground of 1 - soft Dice, each over the whole batch.

    Args:
        logits: of the foreground, (B, H, W).
        mask: of the foreground, (B, H, W), true or 1 inside.
        known: where there is an annotation, (B, H, W); None: everywhere.
    """
    probability, inside = torch.sigmoid(logits), mask.to(logits)
    weight = torch.ones_like(inside) if known is None else known.to(logits)
    losses = []
    for found, truth in ((1 - probability, 1 - inside), (probability, inside)):
        overlap, total = (found * truth * weight).sum(), ((found + truth) * weight).sum()
        losses.append(1 - (2 * overlap + EPSILON) / (total + EPSILON))
    return torch.stack(losses).mean()
