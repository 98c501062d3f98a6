"""1x1x1 convolutions on the CPU as products, where the features of a voxel lie together (channels-last). torch's
convolution takes longer there; a training step of the small network with AMS gets up to a tenth faster (docs/LOG.md,
2026-11-29)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Product:
    """A 1x1x1 convolution with the weights and names of torch's. Features in another layout are left to torch, which
    needs no copy of them."""

    weight: Any
    bias: Any

    def forward(self, x: Tensor) -> Tensor:
        layout: Any = torch.channels_last_3d if x.dim() == 5 else torch.channels_last
        if x.device.type != "cpu" or not x.is_contiguous(memory_format=layout):
            result: Tensor = super().forward(x)  # type: ignore[misc]
            return result
        return product(self, x.movedim(1, -1)).movedim(-1, 1)


class _Pointwise2d(_Product, nn.Conv2d):
    pass


class _Pointwise3d(_Product, nn.Conv3d):
    pass


POINTWISE: dict[int, Any] = {2: _Pointwise2d, 3: _Pointwise3d}
"""Layer classes by number of spatial axes, constructed as ``nn.Conv3d`` with kernel 1."""


def product(conv: Any, rows: Tensor, constant: Tensor | None = None) -> Tensor:
    """A 1x1x1 convolution of features (B, ..., V), which lie together: (B, ..., Co).

    Args:
        conv: with ``weight`` (Co, V + P, 1, ...) and ``bias``.
        rows: the features of each voxel.
        constant: (B, P) further features, the same at all voxels of a patch; they are multiplied once for each patch.
    """
    weight = conv.weight.flatten(1)
    if constant is None:
        return F.linear(rows, weight, conv.bias)
    varying = rows.shape[-1]
    shared = F.linear(constant, weight[:, varying:], conv.bias)
    return F.linear(rows, weight[:, :varying]).add_(shared.view(len(rows), *[1] * (rows.dim() - 2), -1))
