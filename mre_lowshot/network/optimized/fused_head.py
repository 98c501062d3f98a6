"""Linear fusion and prototype head in one operation that does not compute the N_e-wide embedding.

The head (equations 1 to 4) uses the embedding e = Wz + b in three products, which follow from the F-wide features z:

- scores ``c^T e = (c^T W) z + c^T b`` and the first layer of the mixer ``A e + a = (A W) z + (A b + a)``: one product
  with a matrix of K*M + mixing_dim rows, computed once per call;
- the length ``|e| = |R [z; 1]|`` with the triangular factor R of a QR decomposition of [W b]: F + 1 rows instead of
  N_e. As a sum of squares it is as accurate as |e| for small e; the Gram form z^T (W^T W) z is not.

The work per voxel and the memory therefore do not grow with N_e. One N_e x F x F product per step does.

The image-level branch computes one vector p per patch, so z = [v; p] with v per voxel. With the columns of v first,
``R [v; p; 1] = [R11 v + d; r]`` with d and r constant over the patch: the work per voxel depends on v only (1024 of the
paper's 1280 features), and p is not broadcast.

The backward pass is explicit. It recomputes R z patch by patch instead of storing it, and skips voxels whose gradient
is zero, which under OHEM are the majority.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mre_lowshot import devices
from mre_lowshot.config import NetworkConfig
from mre_lowshot.network.head import PrototypeHead
from mre_lowshot.transfers import positions, to_host

SPARSE = 0.75  # below this fraction of voxels with a gradient, gathering them is faster than computing all


def is_cheaper(spec: NetworkConfig, varying: int, constant: int) -> bool:
    """Whether the fused head takes fewer multiplications per voxel than computing e; depends on layer widths only.

    ``varying`` is the number of features per voxel, ``constant`` the number of features per patch. With the paper's
    1024 and 256 and four classes the fused head is cheaper from N_e = 879 on.
    """
    if not spec.prototype_head or not spec.embedding_dim:
        return False
    scores = spec.classes * spec.prototypes_per_class
    mixer = spec.mixing_dim if spec.mixing == "adaptive" and spec.prototypes_per_class > 1 else 0
    plain = (varying + constant) * spec.embedding_dim + spec.embedding_dim * (scores + mixer)
    return varying * (varying + scores + mixer) < plain


def fused_logits(features: Tensor, pooled: Tensor | None, fusion: Any, head: PrototypeHead) -> Tensor:
    """Class logits; values and gradients equal ``head(fusion(joined(features, pooled)))`` up to rounding.

    Under autocast the features keep the autocast type, in which |e| is computed; the scores, the mixer and all later
    steps are computed in float32.

    Args:
        features: v (B, V, *size), the first V input channels of the fusion.
        pooled: p (B, P), the last P input channels, constant over each patch; None without image-level branch.
        fusion: the 1x1x1 convolution, with weight (N_e, V + P, 1, ...).
        head: the prototype head.

    Returns:
        Logits (B, K, *size).
    """
    low = devices.autocast_type(features.device) or features.dtype
    exact = torch.promote_types(features.dtype, torch.float32)
    with devices.without_autocast(features.device):
        weight, linear = fused_weights(fusion, head, exact)
        batch, size = features.shape[0], features.shape[2:]
        rows = features.movedim(1, -1).reshape(batch, -1, features.shape[1]).to(low)
        one = rows.new_ones(batch, 1, dtype=exact)
        constant = one if pooled is None else torch.cat([pooled.to(exact), one], dim=1)
        products, lengths = _Products.apply(rows, constant, weight, linear)  # type: ignore[no-untyped-call]
        logits = logits_of(products.flatten(0, 1), lengths.flatten(), head)
    return logits.view(batch, *size, -1).movedim(-1, 1)


def fused_weights(fusion: Any, head: PrototypeHead, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The matrix [W b] (N_e, F + 1), and the matrix of scores and mixer on [z; 1] (K*M + mixing_dim, F + 1)."""
    weight = torch.cat([fusion.weight.flatten(1), fusion.bias[:, None]], dim=1).to(dtype)
    prototypes = F.normalize(head.prototypes.to(dtype), dim=1, eps=head.EPSILON)
    if head.mixer is None:
        return weight, prototypes @ weight
    first: Any = head.mixer[0]
    linear = torch.cat([prototypes, first.weight.to(dtype)]) @ weight
    bias = F.pad(first.bias.to(dtype), (prototypes.shape[0], 0))
    return weight, torch.cat([linear[:, :-1], (linear[:, -1] + bias)[:, None]], dim=1)


def logits_of(products: Tensor, lengths: Tensor, head: PrototypeHead) -> Tensor:
    """Logits (V, K) from ``lengths`` |e| (V,) and ``products`` (V, K*M + mixing_dim): scores, then mixer layer 1."""
    count = head.prototypes.shape[0]
    cosine = products[:, :count] / lengths.clamp_min(head.EPSILON)[:, None]
    beta = None if head.mixer is None else head.mixer[2](F.relu(products[:, count:]))
    cosine = cosine.view(-1, head.spec.classes, head.spec.prototypes_per_class)
    return head.combine(cosine, head.log_mixing_of(beta, cosine))


def triangle(weight: Tensor) -> Tensor:
    """The factor R (min(N_e, F + 1), F + 1) of a QR decomposition of [W b] (N_e, F + 1): |R x| = |[W b] x|."""
    factor: Tensor = torch.linalg.qr(weight, mode="r").R
    return factor


def patch_lengths(rows: Tensor, constant: Tensor, factor: Tensor) -> Tensor:
    """|R [v; constant]| (n,) for the voxels ``rows`` v (n, V) of one patch and its ``constant`` [p; 1] (P + 1,)."""
    varying = rows.shape[1]
    top = factor[:varying]
    shift, rest = top[:, varying:] @ constant, factor[varying:, varying:] @ constant
    across = (rows @ top[:, :varying].t().to(rows.dtype)).to(factor.dtype).add_(shift)
    return torch.hypot(torch.linalg.vector_norm(across, dim=1), rest.norm())


class _Products(torch.autograd.Function):
    """Products of ``linear`` (H, F + 1) with [v; constant], and lengths of [W b] [v; constant].

    Inputs are v (B, n, V), ``constant`` [p; 1] (B, P + 1) and ``weight`` [W b] (N_e, F + 1). Outputs are the products
    (B, n, H) and the lengths (B, n), both in the precision of the weights.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, constant: Tensor, weight: Tensor, linear: Tensor) -> tuple[Tensor, Tensor]:
        varying, factor = rows.shape[2], triangle(weight)
        products = rows.new_empty(*rows.shape[:2], len(linear), dtype=weight.dtype)
        lengths = rows.new_empty(rows.shape[:2], dtype=weight.dtype)
        for index, (patch, shared) in enumerate(zip(rows, constant, strict=True)):
            products[index] = patch.to(weight.dtype) @ linear[:, :varying].t()
            products[index] += linear[:, varying:] @ shared
            lengths[index] = patch_lengths(patch, shared, factor)
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
        outer = torch.zeros_like(gram)  # sum over voxels of share * [z; 1] [z; 1]^T
        for index, (shared, chosen) in enumerate(zip(constant, _live((share != 0) | grad.any(dim=2)), strict=True)):
            patch, g, s = rows[index], grad[index], share[index]
            sparse = len(chosen) < SPARSE * len(s)
            if sparse:
                patch, g, s = patch[chosen], g[chosen], s[chosen]
            inner = (patch @ gram[:v, :v].to(patch.dtype)).to(s.dtype).add_(gram[:v, v:] @ shared).mul_(s[:, None])
            inner += g @ linear[:, :v]
            if sparse:
                grad_rows[index].zero_().index_copy_(0, chosen, inner.to(patch.dtype))
            else:
                grad_rows[index] = inner
            weighted = patch * s[:, None].to(patch.dtype)
            _add_lower(outer, weighted, patch)
            crossed, total, summed = weighted.sum(dim=0, dtype=s.dtype), s.sum(), g.sum(dim=0)
            outer[v:, :v] += torch.outer(shared, crossed)
            outer[v:, v:] += total * torch.outer(shared, shared)
            grad_constant[index] = gram[v:, :v] @ crossed + total * (gram[v:, v:] @ shared) + linear[:, v:].t() @ summed
            grad_linear[:, :v] += g.t() @ patch.to(g.dtype)
            grad_linear[:, v:] += torch.outer(summed, shared)
        outer = outer.tril() + outer.tril(-1).t()
        return grad_rows, grad_constant, weight @ outer, grad_linear


def _live(mask: Tensor) -> list[Tensor]:
    """For each patch the positions of the true voxels of ``mask`` (B, n); waits for the device once."""
    numbers = to_host(mask.sum(dim=1))[0].tolist()
    found = positions(mask, sum(numbers)).split(numbers)
    return [chosen - index * mask.shape[1] for index, chosen in enumerate(found)]


def _add_lower(total: Tensor, left: Tensor, right: Tensor, block: int = 256) -> None:
    """Add the lower triangle of the symmetric product left^T right (V, V), block by block, to ``total[:V, :V]``."""
    width = left.shape[1]
    for low in range(0, width, block):
        high = min(low + block, width)
        total[low:high, :high] += left[:, low:high].t() @ right[:, :high]
