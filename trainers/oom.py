"""A training step that does not fit into the GPU's memory is repeated with recomputation, at last in parts."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import torch

from mre_lowshot.errors import UserError
from mre_lowshot.network.build import MRENet

Result = TypeVar("Result")


class Memory:
    """What a training does to fit: nothing, recomputation (the same numbers), and last micro-batches, which change
    batch norm, N_k and OHEM and are warned of. What was found out stays for the steps that follow."""

    def __init__(self, network: MRENet, batch: int, smallest: int, say: Callable[[str], None]) -> None:
        """``batch`` patches a step, of which a micro-batch must keep at least ``smallest``."""
        self.network, self.batch, self.smallest, self.say = network, batch, smallest, say
        self.parts = 1

    def fit(self, step: Callable[[int], Result]) -> Result:
        """``step(parts)``, which computes the gradients of the mini-batch in so many parts; again, with the running
        statistics and gradients as before, as long as the memory does not hold it.

        Raises:
            UserError: even the smallest micro-batches do not fit.
        """
        before = {name: value.clone() for name, value in self.network.named_buffers()}
        while True:
            try:
                return step(self.parts)
            except torch.OutOfMemoryError:
                pass  # only now, outside the handler, is what the step held let go
            for name, value in self.network.named_buffers():
                value.copy_(before[name])
            self._forget()
            self._next()

    def _next(self) -> None:
        if not self.network.recomputes:
            self.network.recompute()
            self._tell("activations are computed twice from now on (recipe.recompute)")
            return
        further = [n for n in range(self.parts + 1, self.batch + 1) if self.batch % n == 0]
        if not further or self.batch // further[0] < self.smallest:
            raise UserError(
                f"the GPU's memory does not hold a training step even with recipe.recompute in {self.parts} parts; "
                "use a smaller network or patch (--set under another -p), or -device cpu"
            )
        self.parts = further[0]
        self._tell(
            f"WARNING: mini-batches are computed in {self.parts} parts from now on, each with a batch norm, class "
            "counts and hard examples of its own: the result is not the plan's (a smaller recipe.batch_size is)"
        )

    def _tell(self, what: str) -> None:
        line = f"the GPU's memory does not hold a training step: {what}"
        self.say(line)
        print(f"note: {line}", file=sys.stderr)

    def _forget(self) -> None:
        for p in self.network.parameters():
            p.grad = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def together(step: Callable[[int], Result]) -> Result:
    """``step(1)`` of one process among several: repeated by it alone, it would leave the others waiting.

    Raises:
        UserError: the memory does not hold it.
    """
    try:
        return step(1)
    except torch.OutOfMemoryError:
        raise UserError(
            "the GPU's memory does not hold this process's share of a training step; start more processes, or plan "
            "with --set recipe.recompute=true or a smaller recipe.batch_size"
        ) from None
