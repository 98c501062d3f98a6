"""Out of memory in training: the step is repeated with recomputed activations, and finally in micro-batches."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import torch

from mre_lowshot.errors import UserError
from mre_lowshot.network.build import MRENet

Result = TypeVar("Result")


class OutOfMemoryPolicy:
    """How a training step is made to fit: as it is, with recomputed activations (the same numbers), and finally in
    micro-batches, which change batch norm, N_k and OHEM and cause a warning. The mode that fits is kept for the next
    steps.

    Args:
        network: that is trained.
        batch: patches per step.
        smallest: patches that a micro-batch needs at least.
        log: receives messages.
    """

    def __init__(self, network: MRENet, batch: int, smallest: int, log: Callable[[str], None]) -> None:
        self.network, self.batch, self.smallest, self.log = network, batch, smallest, log
        self.parts = 1

    def fit(self, step: Callable[[int], Result]) -> Result:
        """``step(parts)``, which computes the gradients of the mini-batch in so many parts; repeated, with the running
        statistics and gradients restored, until the memory holds it.

        Raises:
            UserError: even the smallest micro-batches do not fit.
        """
        before = {name: value.clone() for name, value in self.network.named_buffers()}
        while True:
            try:
                return step(self.parts)
            except torch.OutOfMemoryError:
                pass  # outside the handler, so that the failed step's memory is freed
            for name, value in self.network.named_buffers():
                value.copy_(before[name])
            self._free()
            self._reduce()

    def _reduce(self) -> None:
        if not self.network.recomputes:
            self.network.recompute()
            self._report("activations are recomputed from now on (recipe.optimizer.recompute)")
            return
        further = [n for n in range(self.parts + 1, self.batch + 1) if self.batch % n == 0]
        if not further or self.batch // further[0] < self.smallest:
            raise UserError(
                f"the GPU's memory does not hold a training step even with recipe.optimizer.recompute in "
                f"{self.parts} parts; "
                "use a smaller network or patch (--set under another -p), or -device cpu"
            )
        self.parts = further[0]
        self._report(
            f"WARNING: mini-batches are computed in {self.parts} parts from now on, each with its own batch norm, "
            "class counts and hard examples, so the result differs from the plan's; plan a smaller "
            "recipe.sampling.batch_size instead"
        )

    def _report(self, what: str) -> None:
        line = f"the GPU's memory does not hold a training step: {what}"
        self.log(line)
        print(f"note: {line}", file=sys.stderr)

    def _free(self) -> None:
        for p in self.network.parameters():
            p.grad = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def step_distributed(step: Callable[[int], Result]) -> Result:
    """``step(1)`` of one process among several. It is not repeated: the other processes would wait for this one.

    Raises:
        UserError: the memory does not hold the step.
    """
    try:
        return step(1)
    except torch.OutOfMemoryError:
        raise UserError(
            "the GPU's memory does not hold this process's part of a training step; start more processes, or plan "
            "with --set recipe.optimizer.recompute=true or a smaller recipe.sampling.batch_size"
        ) from None
