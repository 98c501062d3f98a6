"""The prototype head's mixture (equations 3 and 4) for prediction, without operations on short axes.

A softmax or logsumexp over the M prototypes of a class is an operation on an axis of, say, three values, which torch
computes slowly on the CPU. Cosines s lie in [-1, 1] and the sigmoid's values b in [0, 1], so their exponentials can be
summed as they are, by one product with a matrix of ones (xi: the scale)::

    log sum_j alpha_kj exp(xi s_kj) = log(sum_j exp(b_kj) exp(xi s_kj) / sum_j exp(b_kj))

With Euclidean distances the exponent is 2 xi s - 2 xi. Where xi (or 2 xi) exceeds `MAX_SCALE`, the exponentials could
leave the range of float32, and `fused_head.logits_of` computes the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mre_lowshot.network.head import PrototypeHead
from mre_lowshot.network.optimized.fused_head import logits_of

MAX_SCALE = 40.0  # exp(40) is 2e17, exp(-40) 4e-18


class Mixing(nn.Module):
    """``forward(scores, hidden, lengths)``: logits (n, K), the values of `logits_of` up to rounding, from the products
    of e with the prototypes (n, K*M), the mixer's layer 1 before its ReLU (n, mixing_dim) or None, and |e| (n,).
    ``scores`` and ``hidden`` are overwritten.

    Args:
        head: trained; it is not changed.
    """

    def __init__(self, head: PrototypeHead) -> None:
        super().__init__()
        spec = head.spec
        self.head = head
        learned = 1.0 if head.log_scale.is_meta else float(head.log_scale.detach().exp())  # meta: there are no values
        self.scale = learned * (2 if spec.distance == "euclidean" else 1)
        self.constant = -self.scale if spec.distance == "euclidean" else 0.0
        bounded = head.mixer is None or spec.mixing_sigmoid
        self.direct = spec.mixing != "one_hot" and bounded and self.scale <= MAX_SCALE
        groups = torch.eye(spec.classes).repeat_interleave(spec.prototypes_per_class, dim=0)
        self.register_buffer("groups", groups.to(head.prototypes), persistent=False)

    def forward(self, scores: Tensor, hidden: Tensor | None, lengths: Tensor) -> Tensor:
        if not self.direct:
            return logits_of(scores if hidden is None else torch.cat([scores, hidden], dim=1), lengths, self.head)
        groups: Any = self.groups
        shares = scores.mul_(self.scale / lengths.clamp_min(self.head.EPSILON)[:, None]).exp_()
        if hidden is None or self.head.mixer is None:
            return torch.log(shares @ groups / self.head.spec.prototypes_per_class).add_(self.constant)
        weights = self.head.mixer[2](hidden.relu_()).sigmoid_().exp_()
        return shares.mul_(weights).matmul(groups).div_(weights @ groups).log_().add_(self.constant)
