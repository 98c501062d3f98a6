"""The training step (forward, loss, backward, optimizer): plain against ours, and ours with several widths of the
embedding."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.flops import multiply_adds, peak_memory, saved_bytes
from benchmarks.setting import Setting
from benchmarks.timing import interleaved, ratio
from mre_lowshot.trainers.trainer import MRETrainer

WIDTHS = (512, 1024, 2048, 4096)


class PlainStep:
    """One training step with torch's operations only: the trainer's loss on the plain network, and Adam. It leaves out
    what our trainer adds: the check for finite values, the running Dice and the moving average."""

    def __init__(self, network: nn.Module, trainer: MRETrainer) -> None:
        self.network, self.criterion, self.device = network, trainer.loss, trainer.device
        self.optimizer = torch.optim.Adam(network.parameters(), trainer.plan.recipe.optimizer.learning_rate)
        self.loss = float("nan")

    def __call__(self, images: Tensor, coordinates: Tensor, targets: Tensor) -> None:
        images, coordinates, targets = (t.to(self.device) for t in (images, coordinates, targets))
        loss = self.criterion(self.network(images, coordinates), targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
        self.optimizer.step()
        self.loss = loss.item()


def training(setting: Setting) -> dict[str, Any]:
    """Times, multiply-adds and memory of a step, plain and ours, and the agreement of loss and gradients."""
    trainer, plain = setting.pair
    step = PlainStep(plain, trainer)
    batch = trainer.sampler[0]
    calls: dict[str, Callable[[], None]] = {"plain": lambda: step(*batch), "ours": lambda: trainer.step(*batch)}
    networks: dict[str, nn.Module] = {"plain": plain, "ours": trainer.network}
    side = "x".join(map(str, setting.size.patch.size))
    setting.log(f"training step, {setting.batch} patches of {side}, {setting.device.type} float32")
    result: dict[str, Any] = {"patches": setting.batch, "patch": list(setting.size.patch.size)}
    for name, call in calls.items():  # the first step, not timed
        result[name] = _counted(call, networks[name])
    losses = [step.loss, trainer.training_log.history["loss"][-1]]
    difference = gradient_difference(plain, trainer.network)
    result["agreement"] = {"loss": losses, "gradient_difference": difference}
    for name, call in calls.items():  # the second step: counting in the first one keeps tensors
        with peak_memory(setting.device) as peak:
            call()
        result[name]["peak_gb"] = peak["gb"]
    times = interleaved(calls, setting.repeats, setting.device)
    for name, spread in times.items():
        own = result[name]
        own["seconds"] = spread.record()
        own["share_of_ceiling"] = setting.share(own["multiply_adds"], spread.median)
        peak_text = "not measured" if own["peak_gb"] is None else f"{own['peak_gb']:.2f} GB"
        setting.log(
            f"  {name:5} {spread} s; {own['multiply_adds'] / 1e9 / setting.batch:.1f} GMAC a patch, "
            f"{own['share_of_ceiling']:.0%} of the ceiling; kept for backward {own['saved_bytes'] / 1e9:.2f} GB, "
            f"peak {peak_text}"
        )
    result["ratio"] = ratio(times).record()
    setting.log(f"  plain / ours: {ratio(times)}")
    setting.log(
        f"  first step: loss {losses[0]:.6f} plain, {losses[1]:.6f} ours; gradients differ by {difference:.1e} of "
        "their norm"
    )
    if setting.cuda and setting.size.name == "paper":
        minutes = 3000 * times["ours"].median / 60
        result["minutes_3000_steps"] = minutes
        setting.log(f"  3,000 such steps: {minutes:.1f} min (extrapolated)")
    return result


def _counted(call: Callable[[], None], network: nn.Module) -> dict[str, Any]:
    counts: list[int] = []
    saved = saved_bytes(lambda: counts.append(multiply_adds(call)), network.parameters())
    return {"multiply_adds": counts[0], "saved_bytes": saved}


def gradient_difference(plain: nn.Module, ours: nn.Module) -> float:
    """|g_plain - g_ours| / |g_plain| over all parameters, paired by name."""
    other = dict(ours.named_parameters())
    pairs = [(p.grad, other[name].grad) for name, p in plain.named_parameters()]
    differences = _norm((a if b is None else a - b) for a, b in pairs if a is not None)
    return differences / _norm(a for a, _ in pairs if a is not None)


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors))


def embedding_width(setting: Setting) -> dict[str, Any]:
    """Our training step with several N_e: time and bytes kept for backward, which should not grow with N_e."""
    setting.log(f"training step with several N_e, ours, {setting.batch} patches")
    calls: dict[str, Callable[[], None]] = {}
    result: dict[str, Any] = {}
    for width in WIDTHS:
        size = replace(setting.size, network=replace(setting.size.network, embedding_dim=width))
        trainer = setting.trainer(size)
        batch = trainer.sampler[0]
        calls[str(width)] = partial(trainer.step, *batch)
        result[str(width)] = {"saved_bytes": saved_bytes(calls[str(width)], trainer.network.parameters())}
    for name, spread in interleaved(calls, setting.repeats, setting.device).items():
        result[name]["seconds"] = spread.record()
        setting.log(f"  N_e {name}: {spread} s, kept for backward {result[name]['saved_bytes'] / 1e9:.3f} GB")
    first, last = result[str(WIDTHS[0])], result[str(WIDTHS[-1])]
    growth = {
        "seconds": last["seconds"]["median"] / first["seconds"]["median"] - 1,
        "saved_bytes": last["saved_bytes"] / first["saved_bytes"] - 1,
    }
    setting.log(
        f"  from {WIDTHS[0]} to {WIDTHS[-1]}: time {growth['seconds']:+.1%}, kept bytes {growth['saved_bytes']:+.1%}"
    )
    return {**result, "growth": growth}
