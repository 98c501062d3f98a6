"""Adam, its learning-rate schedule, and the moving average of the weights, without waiting for a GPU."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from mre_lowshot.config import OptimizerConfig
from mre_lowshot.trainers.oom import place_counters

FLAGS = ("fused", "foreach", "capturable")  # how a group is computed, which depends on the device


def adam(parameters: Iterable[nn.Parameter], config: OptimizerConfig, device: torch.device) -> torch.optim.Adam:
    """Adam; on CUDA with one kernel for all parameters, which counts its steps on the device."""
    fused = True if device.type == "cuda" else None
    return torch.optim.Adam(parameters, config.learning_rate, weight_decay=config.weight_decay, fused=fused)


def load_adam(optimizer: torch.optim.Adam, state: dict[str, Any]) -> None:
    """Continue from ``state``, a state dict of Adam on any device: the steps are computed, and counted, where a new
    ``optimizer`` does so."""
    own = optimizer.param_groups
    saved = [{**group, **{name: here[name] for name in FLAGS}} for group, here in zip(state["param_groups"], own)]  # noqa: B905 - Adam compares their numbers
    optimizer.load_state_dict({**state, "param_groups": saved})
    place_counters(optimizer)


def schedule(optimizer: torch.optim.Optimizer, config: OptimizerConfig) -> torch.optim.lr_scheduler.LRScheduler:
    """The recipe's learning-rate schedule, stepped once per iteration."""
    if config.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.iterations)
    return torch.optim.lr_scheduler.StepLR(optimizer, config.step_every, config.step_factor)


class MovingAverage(AveragedModel):
    """The exponential moving average of weights and running statistics: torch's, but its counter stays on the CPU.

    Args:
        model: to average; ``module`` is a copy of it.
        decay: weight of the past.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Add the present state of ``model``; the first one is copied."""
        pairs = [*zip(_state(self.module), _state(model), strict=True)]
        if int(self.n_averaged) == 0:
            for mean, value in pairs:
                mean.copy_(value)
        else:
            real = [pair for pair in pairs if pair[0].is_floating_point()]
            torch._foreach_lerp_([mean for mean, _ in real], [value for _, value in real], 1 - self.decay)
            for mean, value in pairs:  # counters of the batch norms
                if not mean.is_floating_point():
                    mean.copy_(mean * self.decay + value * (1 - self.decay))
        self.n_averaged += 1


def _state(model: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]
