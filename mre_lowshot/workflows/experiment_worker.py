"""What runs on a worker of a dask scheduler for an experiment: one fold of one row."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mre_lowshot import devices, processes
from mre_lowshot.errors import UserError, describe_failure, log_unexpected
from mre_lowshot.experiments.tables import Row
from mre_lowshot.files import partial_name
from mre_lowshot.files import replace as replace_file
from mre_lowshot.locks import holders, remove_lost
from mre_lowshot.planners.hardware import Device
from mre_lowshot.preprocessing.prepare import check_prepared
from mre_lowshot.trainers.fold import FoldJob
from mre_lowshot.workflows.experiment_fold import run_fold
from mre_lowshot.workflows.reporting import Bar, Reporter

ASK_SECONDS = 2.0  # between two looks whether the run goes on
_lock = threading.Lock()  # a worker with several threads trains one fold at a time
LOST_SECONDS = 30.0  # in which a worker that dask took for lost sees that another one has its fold


class RunEnded(KeyboardInterrupt):
    """The run that sent the fold was interrupted, or another worker has the fold."""


@dataclass(frozen=True)
class FoldTask:
    """A fold of a row, and how it is run.

    Attributes:
        row: the row.
        job: the fold; its device is chosen on the worker.
        iterations: of training, if the user gave a number.
        workers: data-loading processes; None: chosen for the device.
        device: name of the device.
        running: a folder that exists as long as the run does.
    """

    row: Row
    job: FoldJob
    iterations: int | None
    workers: int | None
    device: str
    running: Path

    @property
    def title(self) -> str:
        """In messages."""
        return f"row {self.row.name}, fold {self.job.fold}"


@dataclass(frozen=True)
class FoldOutcome:
    """A fold that was run: how many scans failed, why the fold as a whole did, and its messages (warning or not)."""

    failed: int
    problem: str = ""
    lines: tuple[tuple[bool, str], ...] = ()


class _Claim:
    """A file that names the worker which has a fold. The last one that writes it has it: where dask has taken a worker
    for lost that still runs, that worker gives the fold up."""

    def __init__(self, task: FoldTask) -> None:
        job, plan = task.job, task.job.plan  # rows with their own levels share a plan
        self.path = task.running / f"{plan.dataset_name}__{plan.plans_name}__{job.level}__fold_{job.fold}.json"
        self.own = {"host": processes.host(), "pid": os.getpid(), "id": uuid.uuid4().hex}

    def read(self) -> dict[str, Any]:
        """The content of the file; empty where there is none."""
        try:
            found: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
            return found
        except (OSError, ValueError):
            return {}

    def take(self) -> dict[str, Any]:
        """Write the file; the worker that had the fold before, or nothing.

        Raises:
            RunEnded: the run has ended.
        """
        before = self.read()
        partial = self.path.with_name(partial_name(self.path))
        try:
            partial.write_text(json.dumps(self.own), encoding="utf-8", newline="")
            replace_file(partial, self.path)
        except FileNotFoundError:
            raise RunEnded from None
        return before

    @property
    def holds(self) -> bool:
        """Whether the run goes on, and this worker has the fold."""
        return self.read() == self.own


class _Collector(Reporter):
    """Keeps messages for the client, and ends the work where the run has ended."""

    def __init__(self, claim: _Claim) -> None:
        self.claim, self.lines = claim, list[tuple[bool, str]]()
        self._asked = time.monotonic()

    def info(self, line: str) -> None:
        self.lines.append((False, line))
        self.ask()

    def warning(self, line: str) -> None:
        self.lines.append((True, line))

    @contextmanager
    def bar(self, total: int, *, description: str, unit: str, initial: int = 0) -> Iterator[Bar]:
        yield _AskingBar(self)

    def ask(self) -> None:
        """Raise `RunEnded` where the run has ended; looked up every `ASK_SECONDS`."""
        if time.monotonic() - self._asked >= ASK_SECONDS:
            self._asked = time.monotonic()
            if not self.claim.holds:
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
    with _lock:
        return _run(task)


def _run(task: FoldTask) -> FoldOutcome:
    from distributed import get_worker

    collector = _Collector(_Claim(task))
    try:
        job = replace(task.job, device=devices.resolve(task.device))
        workers = task.workers
        if multiprocessing.current_process().daemon:  # as dask's nanny starts it: it may have no processes of its own
            workers = 0
        _free_lock(job, collector.claim.take())
        with job.reading(), job.locked():
            check_prepared(job.plan, job.prepared)
            failed = run_fold(task.row, job, task.iterations, workers=workers, reporter=collector)
        return FoldOutcome(failed, lines=tuple(collector.lines))
    except RunEnded:
        raise UserError(f"{task.title}: the run has ended, or another worker has the fold") from None
    except Exception as failure:
        log_unexpected(failure, collector.warning)
        problem = f"{task.title}, worker {get_worker().address}: {describe_failure(failure)}"
        return FoldOutcome(len(task.job.split["val"]), problem, tuple(collector.lines))


def _free_lock(job: FoldJob, before: dict[str, Any]) -> None:
    """Remove the lock of the fold that a lost worker of another machine has left. Whether its process still runs is not
    seen from here; it has some time to see that the fold was taken. A lost process of this machine needs nothing."""
    host, pid = before.get("host"), before.get("pid")
    folder, key = job.folder.parent, job.folder.name
    if not isinstance(host, str) or not isinstance(pid, int) or host == processes.host():
        return
    begun = time.monotonic()
    while key in holders(folder, key) and time.monotonic() - begun < LOST_SECONDS:
        time.sleep(ASK_SECONDS / 4)
    remove_lost(folder, key, host=host, pid=pid)
