"""Activations thrown away after the forward pass and computed again in the backward pass: memory for time."""

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
    """The second forward pass normalises by the batch as the first did, and leaves the running statistics alone."""
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
    """``module(x)``; with ``recompute``, in training, nothing of what it computes inside is kept for the gradients,
    which are the same: only ``x`` is."""
    if not (recompute and module.training and torch.is_grad_enabled()):
        return module(x)
    return checkpoint(module, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _statistics_kept(module)))
