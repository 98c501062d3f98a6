"""What runs on a worker of a dask scheduler for an experiment: one fold of one row."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from mre_lowshot import devices
from mre_lowshot.errors import UserError, describe_failure, log_unexpected
from mre_lowshot.experiments.tables import Row
from mre_lowshot.planners.hardware import Device
from mre_lowshot.preprocessing.prepare import check_prepared
from mre_lowshot.trainers.fold import FoldJob
from mre_lowshot.workflows.experiment_fold import run_fold
from mre_lowshot.workflows.reporting import Bar, Reporter

ASK_SECONDS = 2.0  # between two looks whether the run goes on


class RunEnded(KeyboardInterrupt):
    """The run that sent the fold was interrupted."""


@dataclass(frozen=True)
class FoldTask:
    """A fold of a row, and how it is run.

    Attributes:
        row: the row.
        job: the fold; its device is chosen on the worker.
        iterations: of training, if the user gave a number.
        workers: data-loading processes; None: chosen for the device.
        device: name of the device.
        running: a file that exists as long as the run does.
    """

    row: Row
    job: FoldJob
    iterations: int | None
    workers: int | None
    device: str
    running: Path


@dataclass(frozen=True)
class FoldOutcome:
    """A fold that was run: how many scans failed, why the fold as a whole did, and its messages (warning or not)."""

    failed: int
    problem: str = ""
    lines: tuple[tuple[bool, str], ...] = ()


class _Collector(Reporter):
    """Keeps messages for the client, and ends the work where the run has ended."""

    def __init__(self, running: Path) -> None:
        self.running, self.lines = running, list[tuple[bool, str]]()
        self._asked = time.monotonic()

    def info(self, line: str) -> None:
        self.lines.append((False, line))

    def warning(self, line: str) -> None:
        self.lines.append((True, line))

    @contextmanager
    def bar(self, total: int, *, description: str, unit: str, initial: int = 0) -> Iterator[Bar]:
        yield _AskingBar(self)

    def ask(self) -> None:
        """Raise `RunEnded` where the run has ended; looked up every `ASK_SECONDS`."""
        if time.monotonic() - self._asked >= ASK_SECONDS:
            self._asked = time.monotonic()
            if not self.running.exists():
                raise RunEnded


class _AskingBar(Bar):
    def __init__(self, collector: _Collector) -> None:
        self._collector = collector

    def update(self, count: int = 1) -> None:
        self._collector.ask()


def planning_device(name: str) -> Device:
    """The kind and the memory (GB) of a worker's device."""
    device = devices.resolve(name)
    return Device(device.type, devices.memory_gb(device))


def run_on_worker(task: FoldTask) -> FoldOutcome:
    """Train and score a fold, or continue it from its checkpoint. Whatever goes wrong with it is named in the result.

    Raises:
        UserError: the run has ended.
    """
    from distributed import get_worker

    collector = _Collector(task.running)
    title = f"row {task.row.name}, fold {task.job.fold}"
    try:
        job = replace(task.job, device=devices.resolve(task.device))
        workers = task.workers
        if multiprocessing.current_process().daemon:  # as dask's nanny starts it: it may have no processes of its own
            workers = 0
        with job.reading(), job.locked():
            check_prepared(job.plan, job.prepared)
            failed = run_fold(task.row, job, task.iterations, workers=workers, reporter=collector)
        return FoldOutcome(failed, lines=tuple(collector.lines))
    except RunEnded:
        raise UserError(f"{title}: the run has ended") from None
    except Exception as failure:
        log_unexpected(failure, collector.warning)
        problem = f"{title}, worker {get_worker().address}: {describe_failure(failure)}"
        return FoldOutcome(len(task.job.split["val"]), problem, tuple(collector.lines))
