"""A copy of a trained network optimized for prediction.

Its output equals that of the network in evaluation mode, cropped to the kept centre of each tile, up to rounding:

1. *Kept centre.* SE and the image-level branch pool over the entire patch, so the layers before them are computed for
   all voxels. The ASPP convolutions, the fusion and the head are computed for the kept voxels only (40 % with the
   paper's 8x28x28 of 12x36x36). A dilated convolution at [low, high) of a side reads [low - d, high + d): the input is
   cropped or padded to that range.
2. *Batch norms of the ASPP* directly follow a convolution and are folded into it. Those of the backbone follow a ReLU
   and precede a zero-padded convolution: folding them would be exact only away from the border, and a correction of
   the border costs as much as it saves, so they remain separate.
3. *Fused head* (`network.optimized.fused_head`): its matrices are computed once per model, not once per batch of tiles.
4. *Channels-last* memory format on the CPU and CUDA.
5. *bfloat16* for convolutions and products, optional; `compare_outputs` decides whether its result is accepted.

With instance norm the ASPP needs all voxels of the patch: then only 3., 4. and 5. apply, and the features are cropped.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mre_lowshot.grid import Box, as_slices, full_box
from mre_lowshot.network.backbone import CONV, TRANSPOSED
from mre_lowshot.network.build import MRENet
from mre_lowshot.network.embedding import ASPP, joined
from mre_lowshot.network.head import PrototypeHead
from mre_lowshot.network.optimized.dilated import DilatedConv
from mre_lowshot.network.optimized.fused_head import fused_weights, logits_of, patch_lengths, triangle
from mre_lowshot.network.prior_term import prior_term

MIN_EQUAL_LABELS, MAX_MEAN_DIFFERENCE = 0.999, 0.005


class InferenceNetwork(nn.Module):
    """``forward(image, coordinates, keep)``: logits (B, K, *kept) of the trained network inside the box ``keep``.

    ``image`` (B, C, *size) and ``coordinates`` (B, location_channels, *size) or None are the input of the network;
    ``keep`` is (low, high) per axis in voxels, None for the entire patch. ``dtype`` is the type of convolutions and
    products.
    """

    def __init__(self, network: MRENet, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        copied = copy.deepcopy(network).eval().requires_grad_(False)
        self.spec, self.dtype, self.fused = network.spec, dtype, network.fused
        self.backbone, self.embedding, self.head = copied.backbone, copied.embedding, copied.head
        self.layout: Any = torch.channels_last_3d if self.spec.axes == 3 else torch.channels_last
        aspp = self.embedding.aspp
        self.crops = aspp is None or self.spec.norm == "batch"
        if aspp is not None and self.spec.norm == "batch":
            for branch in (*aspp.branches, *([aspp.image_level] if aspp.image_level is not None else [])):
                _fold_norm(branch)
        if self.fused and isinstance(self.head, PrototypeHead):
            weight, linear = fused_weights(self.embedding.fusion, self.head, next(self.head.parameters()).dtype)
            self.register_buffer("factor", triangle(weight), persistent=False)
            self.register_buffer("linear", linear, persistent=False)
            self.embedding.fusion = nn.Identity()
        for module in self.modules():
            if isinstance(module, (CONV[self.spec.axes], TRANSPOSED[self.spec.axes], DilatedConv)):
                module.to(dtype=dtype)
                module.weight.data = module.weight.data.contiguous(memory_format=self.layout)
            elif isinstance(module, nn.ReLU):
                module.inplace = True
        if dtype != torch.float32:  # torch 2.13 has no bfloat16 average pooling on the CPU
            pools = self.backbone.pools
            self.backbone.pools = nn.ModuleList(nn.Sequential(_Cast(torch.float32), p, _Cast(dtype)) for p in pools)
        if self.embedding.se is not None:
            self.embedding.se.to(dtype)

    def forward(self, image: Tensor, coordinates: Tensor | None = None, keep: Box | None = None) -> Tensor:
        keep = full_box(image.shape[2:]) if keep is None else keep
        image = image.to(self.dtype).contiguous(memory_format=self.layout)
        levels = self.backbone(image)
        if not self.crops:
            features, pooled = self.embedding.features(levels, coordinates)
            features = _crop(features, keep)
        else:
            x = self.embedding.stacked(levels, coordinates).contiguous(memory_format=self.layout)
            aspp = self.embedding.aspp
            features, pooled = (_crop(x, keep), None) if aspp is None else _aspp_centre(aspp, x, keep)
        if not self.fused:
            logits = self._explicit_logits(features, pooled)
        else:
            logits = self._fused_logits(features, None if pooled is None else pooled.flatten(1))
        if self.spec.prior_channels and coordinates is not None:
            logits = logits + prior_term(_crop(coordinates, keep), self.spec)
        return logits

    def _explicit_logits(self, features: Tensor, pooled: Tensor | None) -> Tensor:
        embedding = self.embedding.fusion(joined(features, pooled))
        logits: Tensor = self.head(embedding).float()
        return logits

    def _fused_logits(self, features: Tensor, pooled: Tensor | None) -> Tensor:
        batch, varying, size = len(features), features.shape[1], features.shape[2:]
        rows = features.movedim(1, -1).reshape(batch, -1, varying)
        linear: Any = self.linear
        factor: Any = self.factor
        head: Any = self.head
        one = linear.new_ones(batch, 1)
        constant = one if pooled is None else torch.cat([pooled.to(one.dtype), one], dim=1)
        logits = []
        for patch, shared in zip(rows, constant, strict=True):
            products = (patch @ linear[:, :varying].t().to(patch.dtype)).to(linear.dtype)
            products += linear[:, varying:] @ shared
            logits.append(logits_of(products, patch_lengths(patch, shared, factor), head))
        return torch.stack(logits).view(batch, *size, -1).movedim(-1, 1)


class _Cast(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.dtype)


def _fold_norm(branch: Any) -> None:
    """Fold the batch norm of a branch (convolution -> batch norm -> ReLU) into its convolution, in place; exact."""
    conv, norm = branch[0], branch[1]
    if isinstance(norm, nn.Identity):
        return
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    conv.weight.data = conv.weight * scale.view(-1, *[1] * (conv.weight.dim() - 1))
    conv.bias.data = (conv.bias - norm.running_mean) * scale + norm.bias
    branch[1] = nn.Identity()


def _crop(x: Tensor, keep: Box) -> Tensor:
    return x[(slice(None), slice(None), *as_slices(keep))]


def _aspp_centre(aspp: ASPP, x: Tensor, keep: Box) -> tuple[Tensor, Tensor | None]:
    """`ASPP.parts` at the kept voxels; the image-level branch averages over all of ``x``."""
    outputs = []
    branches: Any = aspp.branches
    for branch in branches:
        conv = branch[0]
        if conv.weight.shape[2] == 1:
            outputs.append(F.relu_(conv(_crop(x, keep))))
        else:
            outputs.append(F.relu_(dilated_at(x, conv.weight, conv.bias, conv.dilation, keep)))
    features = torch.cat(outputs, dim=1)
    if aspp.image_level is None:
        return features, None
    return features, aspp.image_level(x.mean(dim=tuple(range(2, x.dim())), keepdim=True))


def dilated_at(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: Sequence[int], keep: Box) -> Tensor:
    """'Same' dilated 3x3(x3) convolution, computed at the voxels of ``keep`` only.

    Args:
        x: input (B, C, *S).
        weight: kernel (Co, C, 3, ...).
        bias: (Co,), or None.
        dilation: one integer of at least 1 per axis.
        keep: (low, high) per axis, in voxels.

    Returns:
        (B, Co, *kept).
    """
    padding, extra = [], []
    for axis, (side, d, (low, high)) in enumerate(zip(x.shape[2:], dilation, keep, strict=True), start=2):
        if high - 1 < d and low + d >= side:  # both outer taps read only padding
            weight = weight.narrow(axis, 1, 1)
            x = x.narrow(axis, low, high - low)
            padding.append(0)
            extra.append((0, 0))
            continue
        before, after = d - low, d - (side - high)
        start, end = max(0, -before), side - max(0, -after)
        x = x.narrow(axis, start, end - start)
        before, after = max(0, before), max(0, after)
        padding.append(min(before, after))
        extra.append((before - padding[-1], after - padding[-1]))
    if any(map(any, extra)):
        x = F.pad(x, [n for pair in reversed(extra) for n in pair])
    conv: Any = F.conv3d if x.dim() == 5 else F.conv2d
    layout: Any = torch.channels_last_3d if x.dim() == 5 else torch.channels_last
    x, weight = x.contiguous(memory_format=layout), weight.contiguous(memory_format=layout)
    result: Tensor = conv(x, weight, bias, padding=padding, dilation=tuple(dilation))
    return result


@torch.inference_mode()
def compare_outputs(
    other: Callable[..., Tensor],
    exact: nn.Module,
    image: Tensor,
    coordinates: Tensor | None,
    keep: Box | None,
    name: str = "float32",
) -> str | None:
    """Compare a network in low precision, or a compiled one, with the exact network on a batch of tiles.

    The outputs are equal enough if they are finite, if at least 99.9 % of the kept voxels have the same label
    (`MIN_EQUAL_LABELS`), and if probabilities differ by at most 0.005 in the mean (`MAX_MEAN_DIFFERENCE`).

    Args:
        other: the network to check, called as `InferenceNetwork`.
        exact: the reference network.
        image: tiles (B, C, *size).
        coordinates: their location maps (B, location_channels, *size), or None.
        keep: the kept box of each tile, in voxels; None for all voxels.
        name: how the message refers to ``exact``.

    Returns:
        None if the outputs are equal enough, else a message with the difference.
    """
    a, b = (torch.softmax(n(image, coordinates, keep).float(), dim=1) for n in (other, exact))
    if not bool(torch.isfinite(a).all()):
        return "it returns non-finite values"
    same = float((a.argmax(dim=1) == b.argmax(dim=1)).float().mean())
    difference = float((a - b).abs().mean())
    tiles = "one tile" if len(image) == 1 else f"{len(image)} tiles"
    if same < MIN_EQUAL_LABELS or difference > MAX_MEAN_DIFFERENCE:
        return f"on {tiles} {same:.2%} of the labels agree with {name}, probabilities differ by {difference:.4f}"
    return None
