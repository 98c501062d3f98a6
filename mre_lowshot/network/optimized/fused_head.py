"""The linear fusion and the prototype head in one, without ever building the N_e-wide embedding.

The embedding e = Wz + b enters the head (equations 1 to 4) by three products only, and each can be had from the
F-wide features z:

- scores ``c^T e = (c^T W) z + c^T b``, and the mixer's first layer ``A e + a = (A W) z + (A b + a)``: one product with
  a matrix of K*M + mixer_width rows, made once a call;
- the length ``|e| = |R [z; 1]|``, R being the triangular factor of a QR decomposition of [W b]: F + 1 rows instead of
  N_e. As a sum of squares it is as stable as |e| itself where e is small; the Gram form z^T (W^T W) z is not.

So the work a voxel and the memory stop growing with N_e; what still grows is one N_e x F x F product a step.

The image-level branch gives each patch one vector p, the same for all its voxels: z = [v; p]. With v's columns first,
``R [v; p; 1] = [R11 v + d; r]``, d and r constant over the patch, so that the voxel's work is done for v alone
(1024 of the paper's 1280 features), and p is never broadcast.

The backward pass is written out. It recomputes R z by patches instead of keeping it, and visits only voxels whose
gradient is not zero: with OHEM most have none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mre_lowshot.network.head import PrototypeHead
from mre_lowshot.specs import NetworkSpec

SPARSE = 0.75  # below this share of voxels with a gradient, gathering them costs less than computing the others


def pays(spec: NetworkSpec, varying: int, constant: int) -> bool:
    """Whether the folded head takes fewer multiplications a voxel than building e: by shape alone.

    ``varying`` features differ from voxel to voxel, ``constant`` ones are the same all over a patch. With the paper's
    1024 and 256, from N_e = 879 on (four classes).
    """
    if not spec.dml or not spec.embedding:
        return False
    scores = spec.classes * spec.modes
    mixer = spec.mixer_width if spec.mixing == "adaptive" and spec.modes > 1 else 0
    plain = (varying + constant) * spec.embedding + spec.embedding * (scores + mixer)
    return varying * (varying + scores + mixer) < plain


def folded_logits(features: Tensor, pooled: Tensor | None, fusion: Any, head: PrototypeHead) -> Tensor:
    """Class logits (B, K, *size), equal to ``head(fusion(cat([features, pooled broadcast])))``, values and gradients.

    Args:
        features: v, (B, V, *size), the first V of the fusion's input channels.
        pooled: p, (B, P), the last P of them, constant over each patch; None if there are none.
        fusion: the 1x1x1 convolution, weight (N_e, V + P, 1, ...).

    Under autocast the voxels' products are made in the autocast type, everything after them in float32.
    """
    device = features.device.type
    low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else features.dtype
    exact = torch.promote_types(features.dtype, torch.float32)
    with torch.autocast(device, enabled=False):
        weight, linear = folded_weights(fusion, head, exact)
        batch, size = features.shape[0], features.shape[2:]
        rows = features.movedim(1, -1).reshape(batch, -1, features.shape[1]).to(low)
        one = rows.new_ones(batch, 1, dtype=exact)
        constant = one if pooled is None else torch.cat([pooled.to(exact), one], dim=1)
        products, lengths = _Products.apply(rows, constant, weight, linear)
        logits = logits_of(products.flatten(0, 1), lengths.flatten(), head)
    return logits.view(batch, *size, -1).movedim(-1, 1)


def folded_weights(fusion: Any, head: PrototypeHead, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """[W b], (N_e, F + 1), and the matrix of scores and mixer over [z; 1], (K*M + mixer_width, F + 1)."""
    weight = torch.cat([fusion.weight.flatten(1), fusion.bias[:, None]], dim=1).to(dtype)
    prototypes = F.normalize(head.prototypes.to(dtype), dim=1, eps=head.EPSILON)
    if head.mixer is None:
        return weight, prototypes @ weight
    first: Any = head.mixer[0]
    linear = torch.cat([prototypes, first.weight.to(dtype)]) @ weight
    bias = F.pad(first.bias.to(dtype), (prototypes.shape[0], 0))
    return weight, torch.cat([linear[:, :-1], (linear[:, -1] + bias)[:, None]], dim=1)


def logits_of(products: Tensor, lengths: Tensor, head: PrototypeHead) -> Tensor:
    """The head's logits (V, K) from scores and the mixer's first layer (V, K*M + mixer_width) and |e| (V,)."""
    count = head.prototypes.shape[0]
    cosine = products[:, :count] / lengths.clamp_min(head.EPSILON)[:, None]
    beta = None if head.mixer is None else head.mixer[2](F.relu(products[:, count:]))
    cosine = cosine.view(-1, head.spec.classes, head.spec.modes)
    return head.combine(cosine, head.log_mixing_of(beta, cosine))


def triangle(weight: Tensor) -> Tensor:
    """R of a QR decomposition of [W b] (N_e, F + 1): |R x| = |[W b] x|. Wide matrices are their own factor's size."""
    return torch.linalg.qr(weight, mode="r").R


def patch_lengths(rows: Tensor, constant: Tensor, factor: Tensor) -> Tensor:
    """|R [v; constant]| of one patch's voxels v (n, V) with their shared ``constant`` (P + 1,): (n,)."""
    varying = rows.shape[1]
    top = factor[:varying]
    shift, rest = top[:, varying:] @ constant, factor[varying:, varying:] @ constant
    across = (rows @ top[:, :varying].t().to(rows.dtype)).to(factor.dtype).add_(shift)
    return torch.hypot(torch.linalg.vector_norm(across, dim=1), rest.norm())


class _Products(torch.autograd.Function):
    """v (B, n, V), constant (B, P + 1), [W b] (N_e, F + 1), linear (H, F + 1) -> products (B, n, H) of ``linear`` with
    [v; constant], and the lengths (B, n) of [W b] [v; constant]. Both in the weights' precision."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, constant: Tensor, weight: Tensor, linear: Tensor) -> tuple[Tensor, Tensor]:
        varying, factor = rows.shape[2], triangle(weight)
        products = rows.new_empty(*rows.shape[:2], len(linear), dtype=weight.dtype)
        lengths = rows.new_empty(rows.shape[:2], dtype=weight.dtype)
        for index, (patch, its) in enumerate(zip(rows, constant, strict=True)):
            products[index] = patch @ linear[:, :varying].t().to(patch.dtype)
            products[index] += linear[:, varying:] @ its
            lengths[index] = patch_lengths(patch, its, factor)
        ctx.save_for_backward(rows, constant, weight, linear, factor, lengths)
        return products, lengths

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows, constant, weight, linear, factor, lengths = ctx.saved_tensors
        grad, share = grads[0], torch.where(lengths > 0, grads[1] / lengths, 0)  # d|e| = e . de / |e|
        gram, v = factor.t() @ factor, rows.shape[2]
        grad_rows = torch.empty_like(rows)
        grad_constant, grad_linear = torch.zeros_like(constant), torch.zeros_like(linear)
        spread = torch.zeros_like(gram)  # sum over voxels of share * [z; 1] [z; 1]^T
        live = (share != 0) | grad.any(dim=2)
        for index, its in enumerate(constant):
            patch, g, s = rows[index], grad[index], share[index]
            chosen = live[index].nonzero()[:, 0]
            sparse = len(chosen) < SPARSE * len(s)
            if sparse:
                patch, g, s = patch[chosen], g[chosen], s[chosen]
            low = g.to(patch.dtype)
            inner = (patch @ gram[:v, :v].to(patch.dtype)).to(s.dtype).add_(gram[:v, v:] @ its).mul_(s[:, None])
            inner += low @ linear[:, :v].to(patch.dtype)
            if sparse:
                grad_rows[index].zero_().index_copy_(0, chosen, inner.to(patch.dtype))
            else:
                grad_rows[index] = inner
            weighted = patch * s[:, None].to(patch.dtype)
            _add_lower(spread, weighted, patch)
            crossed, total, summed = weighted.sum(dim=0, dtype=s.dtype), s.sum(), g.sum(dim=0)
            spread[v:, :v] += torch.outer(its, crossed)
            spread[v:, v:] += total * torch.outer(its, its)
            grad_constant[index] = gram[v:, :v] @ crossed + total * (gram[v:, v:] @ its) + linear[:, v:].t() @ summed
            grad_linear[:, :v] += low.t() @ patch
            grad_linear[:, v:] += torch.outer(summed, its)
        spread = spread.tril() + spread.tril(-1).t()
        return grad_rows, grad_constant, weight @ spread, grad_linear


def _add_lower(total: Tensor, left: Tensor, right: Tensor, block: int = 256) -> None:
    """Add the lower triangle, by blocks, of the symmetric left^T right (V, V) to the leading part of ``total``."""
    width = left.shape[1]
    for low in range(0, width, block):
        high = min(low + block, width)
        total[low:high, :high] += left[:, low:high].t() @ right[:, :high]
