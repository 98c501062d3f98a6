"""Activation recomputation (gradient checkpointing): less memory for activations, one more forward computation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Leave the running statistics of batch norms unchanged during the second forward computation.

    The normalisation uses the batch statistics, as the first forward pass did.
    """
    norms: list[Any] = [m for m in module.modules() if isinstance(m, _NormBase) and m.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)


def run(module: nn.Module, x: Tensor, recompute: bool) -> Tensor:
    """Return ``module(x)``.

    With ``recompute``, in training, autograd stores only ``x`` and computes the module's activations again in the
    backward pass; values and gradients are the same.
    """
    result: Tensor
    if not (recompute and module.training and torch.is_grad_enabled()):
        result = module(x)
        return result
    result = checkpoint(module, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _statistics_kept(module)))
    return result
