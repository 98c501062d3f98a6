"""A copy of a trained network for prediction only: the kept centre of each tile, folded norms, lower precision.

Equal to the network in evaluation mode, cut to the kept part, to rounding. What is saved:

1. *The kept centre.* SE and the image-level branch pool over the whole patch, so everything up to them is computed for
   all of it; the ASPP's convolutions, the fusion and the head only for the voxels that are kept (40 % with the paper's
   8x28x28 of 12x36x36). A dilated convolution at [low, high) of a side reads [low - d, high + d): the input is cut or
   padded to that.
2. *Batch norms of the ASPP* follow their convolutions directly and go into them. The backbone's follow a ReLU and
   precede a zero-padded convolution: folding them there is exact only away from the border, and repairing the border
   costs the pass that it saves, so they stay.
3. *The folded head* (`network.folded`): its matrices are made once, not once a batch of tiles.
4. *Channels-last* layout on the CPU and CUDA.
5. *bfloat16* for convolutions and products where asked for; `agree` tells whether its answer is to be trusted.

An instance norm in the ASPP needs the whole patch: then only 4. and 5. are done, and the logits are cut.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mre_lowshot.network.backbone import CONV, TRANSPOSED
from mre_lowshot.network.build import MRENet
from mre_lowshot.network.dilated import DilatedConv
from mre_lowshot.network.embedding import ASPP, joined
from mre_lowshot.network.folded import folded_weights, logits_of, patch_lengths, triangle
from mre_lowshot.network.head import PrototypeHead

Keep = Sequence[tuple[int, int]]
LABELS_AGREE, MEAN_DIFFERENCE = 0.999, 0.005


class FastNetwork(nn.Module):
    """``forward(image (B, C, *size), coordinates, keep)`` gives logits (B, K, *kept), ``keep`` being (low, high) an
    axis (None: all), equal to ``network(image, coordinates)`` there. ``dtype`` is that of convolutions and products."""

    def __init__(self, network: MRENet, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        copied = copy.deepcopy(network).eval().requires_grad_(False)
        self.spec, self.dtype, self.folded = network.spec, dtype, network.folded
        self.backbone, self.embedding, self.head = copied.backbone, copied.embedding, copied.head
        self.layout: Any = torch.channels_last_3d if self.spec.axes == 3 else torch.channels_last
        aspp = self.embedding.aspp
        self.crops = aspp is None or self.spec.norm == "batch"
        if aspp is not None and self.spec.norm == "batch":
            for branch in (*aspp.branches, *([aspp.image_level] if aspp.image_level is not None else [])):
                _fold_norm(branch)
        if self.folded and isinstance(self.head, PrototypeHead):
            weight, linear = folded_weights(self.embedding.fusion, self.head, next(self.head.parameters()).dtype)
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

    def forward(self, image: Tensor, coordinates: Tensor | None = None, keep: Keep | None = None) -> Tensor:
        keep = [(0, n) for n in image.shape[2:]] if keep is None else keep
        image = image.to(self.dtype).contiguous(memory_format=self.layout)
        levels = self.backbone(image)
        if not self.crops:
            features, pooled = self.embedding.features(levels, coordinates)
            features = _cut(features, keep)
        else:
            x = self.embedding.stacked(levels, coordinates).contiguous(memory_format=self.layout)
            aspp = self.embedding.aspp
            features, pooled = (_cut(x, keep), None) if aspp is None else _aspp_centre(aspp, x, keep)
        if not self.folded:
            return self._written_out(features, pooled)
        return self._folded(features, None if pooled is None else pooled.flatten(1))

    def _written_out(self, features: Tensor, pooled: Tensor | None) -> Tensor:
        embedding = self.embedding.fusion(joined(features, pooled))
        return self.head(embedding).float()

    def _folded(self, features: Tensor, pooled: Tensor | None) -> Tensor:
        batch, varying, size = len(features), features.shape[1], features.shape[2:]
        rows = features.movedim(1, -1).reshape(batch, -1, varying)
        linear: Any = self.linear
        factor: Any = self.factor
        head: Any = self.head
        one = linear.new_ones(batch, 1)
        constant = one if pooled is None else torch.cat([pooled.to(one.dtype), one], dim=1)
        logits = []
        for patch, its in zip(rows, constant, strict=True):
            products = (patch @ linear[:, :varying].t().to(patch.dtype)).to(linear.dtype)
            products += linear[:, varying:] @ its
            logits.append(logits_of(products, patch_lengths(patch, its, factor), head))
        return torch.stack(logits).view(batch, *size, -1).movedim(-1, 1)


class _Cast(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.dtype)


def _fold_norm(branch: Any) -> None:
    """conv -> batch norm -> ReLU: the norm goes into the convolution (exact: nothing lies between)."""
    conv, norm = branch[0], branch[1]
    if isinstance(norm, nn.Identity):
        return
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    conv.weight.data = conv.weight * scale.view(-1, *[1] * (conv.weight.dim() - 1))
    conv.bias.data = (conv.bias - norm.running_mean) * scale + norm.bias
    branch[1] = nn.Identity()


def _cut(x: Tensor, keep: Keep) -> Tensor:
    return x[(slice(None), slice(None), *(slice(low, high) for low, high in keep))]


def _aspp_centre(aspp: ASPP, x: Tensor, keep: Keep) -> tuple[Tensor, Tensor | None]:
    """`ASPP.parts` at the kept voxels; the image level still sees all of ``x``."""
    outputs = []
    for branch in aspp.branches:
        conv: Any = branch[0]  # type: ignore[index]
        if conv.weight.shape[2] == 1:
            outputs.append(F.relu_(conv(_cut(x, keep))))
        else:
            outputs.append(F.relu_(dilated_at(x, conv.weight, conv.bias, conv.dilation, keep)))
    features = torch.cat(outputs, dim=1)
    if aspp.image_level is None:
        return features, None
    return features, aspp.image_level(x.mean(dim=tuple(range(2, x.dim())), keepdim=True))


def dilated_at(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: Sequence[int], keep: Keep) -> Tensor:
    """The 'same' dilated 3x3(x3) convolution of x (B, C, *S) at the voxels ``keep`` only: (B, Co, *kept)."""
    padding, extra = [], []
    for axis, (side, d, (low, high)) in enumerate(zip(x.shape[2:], dilation, keep, strict=True), start=2):
        if high - 1 < d and low + d >= side:  # both outer taps read padding only
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
    return conv(x, weight, bias, padding=padding, dilation=tuple(dilation))


@torch.inference_mode()
def agree(
    other: Callable[..., Tensor],
    exact: nn.Module,
    image: Tensor,
    coordinates: Tensor | None,
    keep: Keep | None,
    name: str = "float32",
) -> str | None:
    """Whether a network in low precision, or compiled, answers as ``exact`` does, on some tiles: None, or why not, in
    words (``name`` being that of ``exact``).

    Asked: finite; the same label at 99.9 % of the kept voxels; probabilities off by .005 at most in the mean.
    """
    a, b = (torch.softmax(n(image, coordinates, keep).float(), dim=1) for n in (other, exact))
    if not bool(torch.isfinite(a).all()):
        return "it gives non-finite values"
    same = float((a.argmax(dim=1) == b.argmax(dim=1)).float().mean())
    difference = float((a - b).abs().mean())
    tiles = "one tile" if len(image) == 1 else f"{len(image)} tiles"
    if same < LABELS_AGREE or difference > MEAN_DIFFERENCE:
        return f"on {tiles} {same:.2%} of the labels agree with {name}, probabilities differ by {difference:.4f}"
    return None
