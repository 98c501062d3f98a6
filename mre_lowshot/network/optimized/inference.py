"""A copy of a trained network optimized for prediction.

Its output equals that of the network in evaluation mode, cropped to the kept centre of each tile, up to rounding:

1. *Kept centre.* SE and the image-level branch pool over the entire patch, so the layers before them are computed for
   all voxels. The ASPP convolutions, the fusion and the head are computed for the kept voxels only (40 % with the
   paper's 8x28x28 of 12x36x36). A dilated convolution at [low, high) of a side reads [low - d, high + d): the input is
   cropped or padded to that range.
2. *Batch norms of the ASPP* directly follow a convolution and are folded into it. Those of the backbone follow a ReLU
   and precede a zero-padded convolution: folding them would be exact only away from the border, and a correction of
   the border costs as much as it saves, so they remain separate.
3. *Head*: its matrices, fused or not (`network.optimized.fused_head`), are computed once per model, not once per batch
   of tiles. The image-level branch is one vector per patch: its share of the fusion is computed once per patch.
4. *Channels-last* memory format on the CPU and CUDA. The features of a voxel lie together, so a 1x1x1 convolution is a
   matrix product (on the CPU torch's convolution takes five times as long), and prototypes are mixed
   (`network.optimized.mixing`) and pooled blocks averaged without torch's slow operations on short axes.
5. *bfloat16* for convolutions and products, optional; `compare_outputs` decides whether its result is accepted.

With instance norm the ASPP needs all voxels of the patch: then 1. and 2. do not apply, and the features are cropped.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mre_lowshot.grid import Box, as_slices, full_box
from mre_lowshot.network.backbone import CONV, TRANSPOSED
from mre_lowshot.network.build import MRENet
from mre_lowshot.network.embedding import ASPP, SqueezeExcite
from mre_lowshot.network.head import PrototypeHead
from mre_lowshot.network.optimized.dilated import DilatedConv
from mre_lowshot.network.optimized.fused_head import fused_weights, patch_lengths, triangle
from mre_lowshot.network.optimized.mixing import Mixing
from mre_lowshot.network.pointwise import product
from mre_lowshot.network.prior_term import prior_term
from mre_lowshot.network.resize import AveragePool

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
        self._prepare_head()
        for module in self.modules():
            if isinstance(module, (CONV[self.spec.axes], TRANSPOSED[self.spec.axes], DilatedConv)):
                module.to(dtype=dtype)
                module.weight.data = module.weight.data.contiguous(memory_format=self.layout)
            elif isinstance(module, nn.ReLU):
                module.inplace = True
        averages: Any = self.backbone.pools
        pools: list[nn.Module] = [_BlockMean(pool) for pool in averages]
        if dtype != torch.float32:  # the sum of a block in float32
            pools = [nn.Sequential(_Cast(torch.float32), pool, _Cast(dtype)) for pool in pools]
        self.backbone.pools = nn.ModuleList(pools)
        if isinstance(self.embedding.se, SqueezeExcite):
            self.embedding.se = _InPlace(self.embedding.se.to(dtype))

    def _prepare_head(self) -> None:
        """Keep what the head multiplies with, as buffers: of the fused head the triangle R, and scores and mixer on
        [z; 1]; else the normalised prototypes."""
        self.mixing: Mixing | None = None
        if not isinstance(self.head, PrototypeHead):
            return
        self.mixing, self.scores = Mixing(self.head), len(self.head.prototypes)
        if self.fused:
            weight, linear = fused_weights(self.embedding.fusion, self.head, next(self.head.parameters()).dtype)
            self.register_buffer("factor", triangle(weight), persistent=False)
            self.embedding.fusion = nn.Identity()
        else:
            linear = F.normalize(self.head.prototypes, dim=1, eps=self.head.EPSILON)
        self.register_buffer("linear", linear, persistent=False)

    def forward(self, image: Tensor, coordinates: Tensor | None = None, keep: Box | None = None) -> Tensor:
        keep = full_box(image.shape[2:]) if keep is None else keep
        image = image.to(self.dtype).contiguous(memory_format=self.layout)
        maps = None if coordinates is None else coordinates.to(self.dtype).contiguous(memory_format=self.layout)
        levels = self.backbone(image)
        aspp = self.embedding.aspp
        if not self.crops:
            features, pooled = self.embedding.features(levels, maps)
            features = _crop(features, keep)
        else:
            x = self.embedding.stacked(levels, maps).contiguous(memory_format=self.layout)
            features, pooled = (_crop(x, keep), None) if aspp is None else _aspp_centre(aspp, x, keep)
        batch, varying, size = len(features), features.shape[1], features.shape[2:]
        rows = features.movedim(1, -1).reshape(batch, -1, varying)
        logits = self._row_logits(rows, None if pooled is None else pooled.flatten(1))
        logits = logits.view(batch, *size, -1).movedim(-1, 1)
        if self.spec.prior_channels and coordinates is not None:
            logits = logits + prior_term(_crop(coordinates, keep), self.spec)
        return logits

    def _row_logits(self, rows: Tensor, pooled: Tensor | None) -> Tensor:
        """Logits (B * n, K) of the features (B, n, V) of n voxels of each patch, and of the patch (B, P) or None."""
        if self.mixing is not None and self.fused:
            return self._fused_logits(rows, pooled)
        embedding = self._embedding(rows, pooled).flatten(0, 1)
        if self.mixing is None:
            return product(self.head, embedding).float()
        linear: Any = self.linear
        mixer: Any = self.mixing.head.mixer
        embedding = embedding.to(linear.dtype)
        lengths = torch.linalg.vector_norm(embedding, dim=1)
        logits: Tensor = self.mixing(embedding @ linear.t(), None if mixer is None else mixer[0](embedding), lengths)
        return logits

    def _embedding(self, rows: Tensor, pooled: Tensor | None) -> Tensor:
        """e (B, n, N_e)."""
        fusion: Any = self.embedding.fusion
        if isinstance(fusion, nn.Identity):
            return rows if pooled is None else torch.cat([rows, pooled[:, None].expand(-1, rows.shape[1], -1)], dim=-1)
        return product(fusion, rows, pooled)

    def _fused_logits(self, rows: Tensor, pooled: Tensor | None) -> Tensor:
        linear: Any = self.linear
        factor: Any = self.factor
        mixing: Any = self.mixing
        batch, _, varying = rows.shape
        one = linear.new_ones(batch, 1)
        constant = one if pooled is None else torch.cat([pooled.to(one.dtype), one], dim=1)
        logits = []
        for patch, shared in zip(rows, constant, strict=True):
            products = (patch @ linear[:, :varying].t().to(patch.dtype)).to(linear.dtype)
            products += linear[:, varying:] @ shared
            scores, hidden = products[:, : self.scores], products[:, self.scores :]
            logits.append(mixing(scores, hidden if hidden.shape[1] else None, patch_lengths(patch, shared, factor)))
        return torch.cat(logits)


class _BlockMean(nn.Module):
    """`AveragePool`, as sums of strided views: on the CPU torch's pooling of a channels-last tensor takes six times as
    long."""

    def __init__(self, pool: AveragePool) -> None:
        super().__init__()
        self.stride = pool.stride

    def forward(self, x: Tensor) -> Tensor:
        for axis, stride in enumerate(self.stride, start=2):
            if stride > 1:
                shifted = [x[(slice(None),) * axis + (slice(first, None, stride),)] for first in range(stride)]
                x = shifted[0] + shifted[1]
                for other in shifted[2:]:
                    x += other
        return x / math.prod(self.stride)


class _InPlace(nn.Module):
    """`SqueezeExcite` that overwrites its input, which no other layer reads (`Embedding.stacked`)."""

    def __init__(self, attention: SqueezeExcite) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(self.attention.weights(x))


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
            rows = _crop(x, keep).movedim(1, -1).contiguous()  # else one small product for each row of voxels
            outputs.append(F.relu_(product(conv, rows).movedim(-1, 1)))
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
