"""Timing of alternatives in turns, and the machine's highest speed of matrix multiplication."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one quantity; printed as median (minimum to maximum)."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def __str__(self) -> str:
        return f"{self.median:.4g} ({min(self.values):.4g} to {max(self.values):.4g})"

    def record(self) -> dict[str, Any]:
        """For the JSON file."""
        return {"median": self.median, "min": min(self.values), "max": max(self.values), "values": list(self.values)}


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished all work submitted to it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], object], device: torch.device, clock: Callable[[], float] = time.perf_counter) -> float:
    """The duration of one call; with `time.process_time` its CPU time."""
    synchronise(device)
    begun = clock()
    call()
    synchronise(device)
    return clock() - begun


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    repeats: int,
    device: torch.device,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Spread]:
    """Time each call ``repeats`` times in turns (A B A B ...), so that a change of the machine's load affects all
    equally; ``clock`` as in `seconds`. Nothing is warmed up here."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            taken[name].append(seconds(call, device, clock))
    return {name: Spread(tuple(values)) for name, values in taken.items()}


def ratio(times: dict[str, Spread], slow: str = "plain", fast: str = "ours") -> Spread:
    """How many times as fast ``fast`` was, turn by turn."""
    return Spread(tuple(a / b for a, b in zip(times[slow].values, times[fast].values, strict=True)))


def matrix_ceiling(device: torch.device, side: int, repeats: int, dtype: torch.dtype = torch.float32) -> float:
    """GFLOP/s (2 per multiply-add) of the fastest of several products of two ``side`` x ``side`` matrices."""
    a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    torch.mm(a, b)
    return 2e-9 * side**3 / min(seconds(lambda: torch.mm(a, b), device) for _ in range(repeats))
