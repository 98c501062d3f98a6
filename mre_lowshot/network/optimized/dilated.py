"""Fast, exact 'same' convolution with a dilated 3x3(x3) kernel, stride 1 and zero padding, for small patches.

Where the dilation is close to the side of the patch, most taps read only padding, and the standard kernels are slow
for the others. Values and gradients equal those of ``torch.nn.functional.conv2d``/``conv3d`` with
``padding = dilation``, up to rounding. Three optimizations apply; the condition for each was measured on 2 CPU cores
(AVX-512, torch 2.13) at 115 -> 32 channels on 24^3 and 195 -> 256 channels on 12x36x36, dilations 2 to 18:

1. *Dead taps* (any device). Where the dilation is at least the side, the outer taps of that axis read only padding, so
   the weight is reduced to its central tap. This saves two thirds of the work along the axis.
2. *Channels-last layout* (CPU). oneDNN's kernels for this layout skip the padded part of every tap, in the forward
   pass and in the input gradient. For the default layout torch uses, from dilation 12 on, an im2col that is 3 to 9
   times slower.
3. *Phases* (CPU, weight gradient). oneDNN has no fast weight gradient for a dilated 3D convolution: after 1. and 2. it
   takes 50 to 90 % of a training step. Voxels whose distance is a multiple of the dilation form a phase: a side of
   ``L = q*d + r`` voxels has r phases of q + 1 voxels and d - r phases of q voxels, so no padding is needed. Within a
   phase the convolution is dense. Axes with at most two voxels per phase are folded into the channels (each pair of
   voxels is then one live tap), which leaves one matrix product, or a dense convolution over the longer axes. Speed-up
   1.3 to 1.6 at most sizes, 1.5 to 5.6 where all axes fold, 0.9 to 1.4 where z is dead and 3x3 phases remain. In 2D
   oneDNN's weight gradient is fast, so phases are used only where all axes fold (2.9).

The complete layer, forward and backward, is 1.3 to 5 times faster than the standard call, more with ``x``
channels-last.

Slower alternatives: phases in the forward pass as well (up to 2 times slower than 2. alone), and one product per tap
over shifted slices (2 to 7 times slower than the standard call at small dilations, because it copies the patch once per
tap).

CUDA uses only 1.; the other two have not been measured there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Group = tuple[int, int, int]
"""Phases of equal length along one axis: (first phase, number of phases, voxels per phase)."""


def dilated_conv(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: Sequence[int]) -> Tensor:
    """'Same' dilated convolution with zero padding, differentiable once.

    On the CPU the result has the channels-last memory format; a caller with several branches saves time by converting
    ``x`` once. bfloat16 and float16 are computed in float32 there, because torch 2.13 returns wrong bfloat16 weight
    gradients for a 3x3x3 convolution over a small grid such as 2x6x6. The dtype of the result is that of torch's
    convolution.

    Args:
        x: input (B, C, *S), with two or three spatial axes.
        weight: kernel (Co, C, 3, ...).
        bias: (Co,), or None.
        dilation: one integer of at least 1 per spatial axis.

    Returns:
        (B, Co, *S).

    Raises:
        ValueError: shapes or dilations do not match.
    """
    axes = x.dim() - 2
    if axes not in (2, 3) or len(dilation) != axes or any(d < 1 for d in dilation):
        raise ValueError(f"dilation {tuple(dilation)} for an input of shape {tuple(x.shape)}: give one >= 1 per axis")
    if weight.shape[1:] != (x.shape[1], *[3] * axes):
        raise ValueError(f"weight {tuple(weight.shape)} must be (Co, {x.shape[1]}, {', '.join('3' * axes)})")
    for axis, (side, d) in enumerate(zip(x.shape[2:], dilation, strict=True), start=2):
        if d >= side:
            weight = weight.narrow(axis, 1, 1)
    if x.device.type != "cpu":
        return _conv(x, weight, bias, dilation)
    low = x.dtype
    if torch.is_autocast_enabled("cpu") and low != torch.float64:
        low = torch.get_autocast_dtype("cpu")
    exact = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
    with torch.autocast("cpu", enabled=False):
        inputs = (x.to(exact), weight.to(exact), None if bias is None else bias.to(exact))
        result: Tensor = _DilatedConvCPU.apply(*inputs, tuple(dilation))  # type: ignore[no-untyped-call]
        return result.to(low)


class DilatedConv(nn.Module):
    """`dilated_conv` as a layer: parameter names, shapes and initialisation are those of ``nn.Conv2d``/``nn.Conv3d``.

    Args:
        axes: number of spatial axes, 2 or 3.
        in_channels: channels of the input.
        out_channels: channels of the output.
        dilation: one integer of at least 1 per axis.
        bias: add a bias per output channel.

    Raises:
        ValueError: ``axes`` or ``dilation`` is out of range.
    """

    def __init__(
        self, axes: int, in_channels: int, out_channels: int, dilation: Sequence[int], bias: bool = True
    ) -> None:
        super().__init__()
        if axes not in (2, 3) or len(dilation) != axes or any(d < 1 for d in dilation):
            raise ValueError(
                f"dilation {tuple(dilation)} for {axes} axes: give 2 or 3 axes and one dilation >= 1 per axis"
            )
        self.dilation = tuple(dilation)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *[3] * axes))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as torch's convolutions, drawing in the same order: one seed gives the same parameters."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, in_channels, *S) to (B, out_channels, *S)."""
        return dilated_conv(x, self.weight, self.bias, self.dilation)

    def extra_repr(self) -> str:
        out_channels, in_channels = self.weight.shape[:2]
        return f"{in_channels}, {out_channels}, dilation={self.dilation}, bias={self.bias is not None}"


class _DilatedConvCPU(torch.autograd.Function):
    """Optimizations 2 and 3 of the module docstring. ``weight`` has only its central tap along dead axes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dilation: tuple[int, ...]) -> Tensor:
        x, weight = _channels_last(x), _channels_last(weight)
        ctx.save_for_backward(x, weight)
        ctx.dilation = dilation
        return _conv(x, weight, bias, dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        with torch.autocast("cpu", enabled=False):
            grad = _channels_last(grad)
            if ctx.needs_input_grad[0]:
                grad_x = _conv_backward(grad, x, weight, ctx.dilation, wanted=0)
            if ctx.needs_input_grad[1]:
                grad_weight = _weight_gradient(grad, x, weight, ctx.dilation)
            if ctx.needs_input_grad[2]:
                grad_bias = grad.sum((0, *range(2, grad.dim())))
        return grad_x, grad_weight, grad_bias, None


def _channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last if t.dim() == 4 else torch.channels_last_3d)


def _padding(weight: Tensor, dilation: Sequence[int]) -> list[int]:
    return [d * (taps // 2) for taps, d in zip(weight.shape[2:], dilation, strict=True)]


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: Sequence[int]) -> Tensor:
    conv = F.conv2d if x.dim() == 4 else F.conv3d
    return conv(x, weight, bias, padding=_padding(weight, dilation), dilation=tuple(dilation))


def _conv_backward(grad: Tensor, x: Tensor, weight: Tensor, dilation: Sequence[int], wanted: int) -> Tensor:
    """Gradient of torch's convolution with respect to its input (``wanted`` 0) or its weight (``wanted`` 1)."""
    one, zero = [1] * len(dilation), [0] * len(dilation)
    mask, padding = [wanted == 0, wanted == 1, False], _padding(weight, dilation)
    backward = torch.ops.aten.convolution_backward
    gradient: Tensor = backward(grad, x, weight, None, one, padding, list(dilation), False, zero, 1, mask)[wanted]
    return gradient


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, dilation: Sequence[int]) -> Tensor:
    """Weight gradient: for each tap, the sum over voxels of grad (B, Co, *S) times the shifted x (B, C, *S)."""
    sides = x.shape[2:]
    short = all(side <= 2 * d for side, d in zip(sides, dilation, strict=True))
    if not short and (len(sides) == 2 or max(dilation) == 1):
        return _conv_backward(grad, x, weight, dilation, wanted=1)
    total = torch.zeros_like(weight)
    for groups in itertools.product(*map(_phase_groups, sides, dilation)):
        _add_group_gradient(total, grad, x, groups, dilation)
    return total


def _phase_groups(side: int, dilation: int) -> list[Group]:
    """The one or two groups of phases of an axis with side q*dilation + r: phases of q + 1 voxels, then of q."""
    q, r = divmod(side, dilation)
    return [group for group in ((0, r, q + 1), (r, dilation - r, q)) if group[1] and group[2]]


def _add_group_gradient(
    total: Tensor, grad: Tensor, x: Tensor, groups: tuple[Group, ...], dilation: Sequence[int]
) -> None:
    """Add to ``total`` the contribution of one combination of phase groups, one per axis.

    No tap connects two groups.
    """
    lengths = [length for _, _, length in groups]
    folded = [axis for axis, length in enumerate(lengths) if length <= 2]
    kept = [axis for axis, length in enumerate(lengths) if length > 2]
    g, v = (_phases_to_batch(t, groups, dilation, kept, folded) for t in (grad, x))
    if kept:
        shape = (g.shape[1], v.shape[1], *[3] * len(kept))
        dense = _conv_backward(g, v, g.new_empty(shape), [1] * len(kept), wanted=1)
    else:
        dense = g.t() @ v
    # dense: (folded voxels of the output, Co, folded voxels of the input, C, taps of the kept axes)
    n = [lengths[axis] for axis in folded]
    dense = dense.reshape(*n, total.shape[0], *n, total.shape[1], *[3] * len(kept))
    for pairs in itertools.product(*(itertools.product(range(length), repeat=2) for length in n)):
        # Tap i - o connects output voxel o and input voxel i of a phase (transpose of a Toeplitz matrix).
        taps: list[Any] = [slice(None)] * total.dim()
        for axis, (o, i) in zip(folded, pairs, strict=True):
            taps[2 + axis] = total.shape[2 + axis] // 2 + i - o
        where: list[Any] = [o for o, _ in pairs] + [slice(None)] + [i for _, i in pairs]
        total[tuple(taps)] += dense[tuple(where)]


def _phases_to_batch(
    t: Tensor, groups: tuple[Group, ...], dilation: Sequence[int], kept: list[int], folded: list[int]
) -> Tensor:
    """(B, C, *S) -> (B * phases, voxels along the folded axes * C, voxels along each kept axis), channels-last."""
    for axis, ((first, count, length), d) in enumerate(zip(groups, dilation, strict=True)):
        at = 2 + 2 * axis
        t = t.narrow(at, first, (length - 1) * d + count).unfold(at, count, d).movedim(-1, at + 1)
    # Now a view (B, C, voxel in phase, phase, voxel in phase, phase, ...), one pair per axis.
    phases = [3 + 2 * axis for axis in range(len(groups))]
    voxels, inner = [2 + 2 * axis for axis in kept], [2 + 2 * axis for axis in folded]
    size = [t.shape[dim] for dim in voxels]
    channels = math.prod(t.shape[dim] for dim in inner) * t.shape[1]
    return t.permute(0, *phases, *voxels, *inner, 1).reshape(-1, *size, channels).movedim(-1, 1)
