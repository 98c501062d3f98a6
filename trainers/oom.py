"""Out of memory in training: the step is repeated with recomputed activations, and finally in micro-batches; the step
of the optimizer is repeated tensor by tensor."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import torch

from mre_lowshot import devices
from mre_lowshot.errors import UserError, is_out_of_memory
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
            except RuntimeError as problem:  # repeated outside the handler, so that the failed step's memory is freed
                if not is_out_of_memory(problem):
                    raise
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
                f"the device's memory does not hold a training step even with recipe.optimizer.recompute in "
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
        line = f"the device's memory does not hold a training step: {what}"
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
    except RuntimeError as problem:
        if not is_out_of_memory(problem):
            raise
        raise UserError(
            "the device's memory does not hold this process's part of a training step; start more processes, or plan "
            "with --set recipe.optimizer.recompute=true or a smaller recipe.sampling.batch_size"
        ) from None


class OptimizerSteps:
    """Steps of the optimizer that change the weights completely or not at all.

    The optimizer makes its moments at the first step, and temporary tensors at each one. Where the memory does not hold
    them, weights and moments get the values from before the step, and it is repeated tensor by tensor, which needs less
    memory and gives the same numbers to rounding; so are all later steps.

    Args:
        optimizer: of the training.
        log: receives messages.
        repeats: false for one process among several, whose weights must stay equal to those of the others.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, log: Callable[[str], None], *, repeats: bool = True) -> None:
        self.optimizer, self.log, self.repeats = optimizer, log, repeats

    def step(self, step: Callable[[], None]) -> None:
        """``step()``, which updates the weights.

        Raises:
            UserError: the memory does not hold it; the weights are those from before the step.
        """
        before: _Before | None = None
        try:
            before = _Before(self.optimizer)
            step()
            return
        except RuntimeError as problem:
            if not is_out_of_memory(problem):
                raise
        if before is not None:
            before.restore()
        single = all(group.get("foreach") is False for group in self.optimizer.param_groups)
        devices.free_memory()
        if single or not self.repeats:
            raise UserError(
                "the device's memory does not hold a step of the optimizer; the weights are those from before the "
                "step; close other programs on the device, or plan a smaller network (--set under another -p)"
            )
        for group in self.optimizer.param_groups:
            group["foreach"] = False
        self.log("the device's memory does not hold a step of the optimizer: it is made tensor by tensor from now on")
        self.step(step)


class _Before:
    """Weights and state of an optimizer before a step."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        self.states = {weight: dict(optimizer.state.get(weight, {})) for weight in weights}
        found = (value for state in self.states.values() for value in state.values())
        self.tensors = [*weights, *(value for value in found if isinstance(value, torch.Tensor))]
        with torch.no_grad():
            arrays = iter(torch._foreach_mul([t for t in self.tensors if t.dim()], 1.0))  # few launches on a GPU
            self.copies = [next(arrays) if tensor.dim() else tensor.clone() for tensor in self.tensors]

    @torch.no_grad()
    def restore(self) -> None:
        """Set all values back; what the step has added to the state is removed."""
        for tensor, copy in zip(self.tensors, self.copies, strict=True):
            tensor.copy_(copy)
        for weight, state in self.states.items():
            self.optimizer.state.pop(weight, None)
            if state:
                self.optimizer.state[weight] = state


def place_counters(optimizer: torch.optim.Optimizer) -> None:
    """Move the counters of Adam's steps to where a fresh optimizer has them: the CPU, unless the step is fused or
    captured in a graph. A checkpoint is loaded to the device of the training; with counters on a GPU the CPU would wait
    for it in each step."""
    for group in optimizer.param_groups:
        on_device = bool(group.get("fused") or group.get("capturable"))
        for weight in group["params"]:
            counter = optimizer.state.get(weight, {}).get("step")
            if isinstance(counter, torch.Tensor):
                optimizer.state[weight]["step"] = counter.to(weight.device if on_device else "cpu")
