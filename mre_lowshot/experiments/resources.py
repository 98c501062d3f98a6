"""Time and memory of a row: measured while it is trained and while it segments scans, and saved with the fold."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from mre_lowshot.errors import UserError
from mre_lowshot.files import read_json, write_json

FILE = "resources.json"
PERIOD = 0.25  # seconds between two looks at the memory of the process


@dataclass
class Resources:
    """What a fold of a row took.

    Attributes:
        device: on which.
        train_seconds: of training, over all its runs.
        train_gb: the peak of memory in training, 10^9 bytes: allocated on CUDA, else resident memory of the process and
            its children.
        runs: of training; above 1 where it was interrupted.
        scan_seconds: for each test scan, from the preprocessed scan to its label map on its own grid.
        scan_gb: the peak of memory meanwhile.
    """

    device: str = ""
    train_seconds: float = 0.0
    train_gb: float = math.nan
    runs: int = 0
    scan_seconds: dict[str, float] = field(default_factory=dict)
    scan_gb: float = math.nan

    @classmethod
    def load(cls, folder: Path) -> Resources:
        """Those saved in a fold's folder; empty ones where there are none, or where the file is damaged."""
        try:
            content = read_json(folder / FILE, "time and memory of a fold")
            scans = {str(name): float(value) for name, value in content["scan_seconds"].items()}
            numbers = {name: _number(content.get(name)) for name in ("train_seconds", "train_gb", "scan_gb")}
            return cls(device=str(content["device"]), runs=int(content["runs"]), scan_seconds=scans, **numbers)
        except (UserError, AttributeError, KeyError, TypeError, ValueError):
            return cls()

    def save(self, folder: Path) -> None:
        """Write them to a fold's folder."""
        write_json(folder / FILE, {k: None if v != v else v for k, v in asdict(self).items()})

    @property
    def seconds_per_scan(self) -> float:
        """The mean over test scans; NaN where there is none."""
        values = self.scan_seconds.values()
        return sum(values) / len(values) if values else math.nan

    @contextmanager
    def training(self, folder: Path, device: torch.device) -> Iterator[None]:
        """Measure a training; saved in any case, so that the time of an interrupted one counts."""
        self.device, self.runs = str(device), self.runs + 1
        begun = time.monotonic()
        peak: dict[str, float] = {}
        try:
            with peak_memory(device) as peak:
                yield
        finally:
            self.train_seconds = _or_zero(self.train_seconds) + time.monotonic() - begun
            self.train_gb = _larger(self.train_gb, peak.get("gb", math.nan))
            with suppress(UserError):  # the folder may be what cannot be written
                self.save(folder)

    @contextmanager
    def scan(self, name: str, device: torch.device) -> Iterator[None]:
        """Measure the segmentation of a scan; not saved."""
        begun = time.monotonic()
        with peak_memory(device) as peak:
            yield
        self.scan_seconds[name] = time.monotonic() - begun
        self.scan_gb = _larger(self.scan_gb, peak["gb"])


@contextmanager
def peak_memory(device: torch.device) -> Iterator[dict[str, float]]:
    """Yield a dict whose ``gb`` is the peak of memory of the block after it ends (`Resources.train_gb`)."""
    found = {"gb": math.nan}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        try:
            yield found
        finally:
            found["gb"] = torch.cuda.max_memory_allocated(device) / 1e9
        return
    process, ended = psutil.Process(), threading.Event()
    highest = [resident(process)]

    def watch() -> None:
        while not ended.wait(PERIOD):
            highest[0] = max(highest[0], resident(process))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()
        found["gb"] = max(highest[0], resident(process)) / 1e9


def resident(process: psutil.Process) -> float:
    """Bytes of memory that a process and its children hold."""
    total = float(process.memory_info().rss)
    with suppress(psutil.Error, OSError):
        for child in process.children(recursive=True):
            with suppress(psutil.Error, OSError):
                total += child.memory_info().rss
    return total


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _or_zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def _larger(one: float, other: float) -> float:
    return other if math.isnan(one) else one if math.isnan(other) else max(one, other)
