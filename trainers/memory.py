"""A training step that does not fit into the GPU's memory is repeated with recomputation, and says so."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from mre_lowshot.errors import UserError
from mre_lowshot.network.build import MRENet

Result = TypeVar("Result")


def within_memory(network: MRENet, step: Callable[[], Result], say: Callable[[str], None]) -> Result:
    """``step()``, which computes gradients from scratch; when it runs out of memory, once more with recomputation
    (the same numbers), which stays on. The running statistics and gradients are put back before.

    Raises:
        UserError: even so the memory does not hold a step. (Splitting the batch is left to the user: it changes batch
            norm, N_k and OHEM.)
    """
    before = {name: value.clone() for name, value in network.named_buffers()}
    try:
        return step()
    except torch.OutOfMemoryError:
        pass
    if network.recomputes:
        raise _refused()
    for name, value in network.named_buffers():
        value.copy_(before[name])
    _forget(network)
    network.recompute()
    line = (
        "the GPU's memory does not hold a training step: activations are computed twice from now on (recipe.recompute)"
    )
    say(line)
    print(f"note: {line}", file=sys.stderr)
    try:
        return step()
    except torch.OutOfMemoryError:
        raise _refused() from None


def _refused() -> UserError:
    return UserError(
        "the GPU's memory does not hold a training step even with recipe.recompute; lower recipe.batch_size "
        "(--set under another -p: it changes batch norm, class counts and OHEM), or use -device cpu"
    )


def _forget(network: nn.Module) -> None:
    for p in network.parameters():
        p.grad = None
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
