"""An experiment on the workers of a dask scheduler: one task for each fold of a row. A fold whose worker is lost is
continued on another one, from its checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mre_lowshot.data.workspace import Workspace
from mre_lowshot.errors import UserError, describe_failure, log_unexpected
from mre_lowshot.experiments.runner import write_plan
from mre_lowshot.experiments.tables import Row
from mre_lowshot.files import not_written, partial_name, remove_leftovers
from mre_lowshot.planners.hardware import Device
from mre_lowshot.preprocessing.prepare import check_prepared
from mre_lowshot.trainers.fold import FoldJob
from mre_lowshot.workflows.cluster_client import ClusterClient, is_lost, require_cluster
from mre_lowshot.workflows.experiment_worker import FoldOutcome, FoldTask, planning_device, run_on_worker
from mre_lowshot.workflows.reporting import Reporter


class ExperimentCluster(ClusterClient):
    """Runs the folds of an experiment on the workers of a scheduler; see `ClusterClient`."""

    waiting_for = "folds"
    go_on = "folds that are done are kept; run it again"

    def __init__(self, scheduler: str | Path, *, device: str, reporter: Reporter) -> None:
        super().__init__(require_cluster(scheduler), device=device, reporter=reporter)
        self._running: Path | None = None

    @contextmanager
    def connected(self, space: Workspace) -> Iterator[None]:
        """Hold a connection to the scheduler for folders that all machines see.

        Raises:
            UserError: as `ClusterClient.connection`, or the folder of results cannot be written to.
        """
        root = space.results.absolute()
        self._running = running = root / partial_name(root)
        try:
            running.mkdir(parents=True)
        except OSError as failure:
            raise UserError(not_written(root, failure)) from None
        try:
            remove_leftovers(root)
            with self.connection([space.preprocessed.absolute(), running], root):
                yield
        finally:
            shutil.rmtree(running, ignore_errors=True)

    def planned_for(self) -> Device:
        """The device that rows are planned for: that of the worker with the least memory.

        Raises:
            UserError: no worker has it, or workers have different kinds.
        """
        found: list[Device] = list(self._on_workers(planning_device, self.device).values())
        kinds = sorted({device.kind for device in found})
        if len(kinds) != 1:
            raise UserError(
                f"-device {self.device}: the workers of {self.scheduler} have {' and '.join(kinds) or 'none'}; give "
                "-device cpu or -device cuda, so that all rows are planned for the same device"
            )
        return min(found, key=lambda device: device.memory_gb)

    def run_folds(self, jobs: Sequence[tuple[Row, FoldJob, int | None]], *, workers: int | None) -> int:
        """Train and score the folds of rows whose cases are preprocessed; the number of scans that failed. A fold that
        fails as a whole counts as all its test scans; the others are run all the same.

        Args:
            jobs: rows with their folds, and the iterations of training of a baseline, if they are limited.
            workers: data-loading processes; None: chosen for the device.

        Raises:
            UserError: the scheduler is gone.
        """
        assert self._running is not None
        for _, job, _ in jobs:
            write_plan(job.plan, job.prepared)
            check_prepared(job.plan, job.prepared)
        there = [
            (row, replace(job, prepared=job.prepared.absolute(), results=job.results.absolute()), iterations)
            for row, job, iterations in jobs
        ]
        tasks = [
            FoldTask(row, job, iterations=iterations, workers=workers, device=self.device, running=self._running)
            for row, job, iterations in there
        ]
        failed = 0
        with (
            self.reporter.bar(len(tasks), description="folds", unit="fold") as bar,
            closing(self.calls(run_on_worker, [(task,) for task in tasks])) as calls,
        ):
            for number, future in calls:
                outcome = self._outcome(future, tasks[number])
                for warns, line in outcome.lines:
                    (self.reporter.warning if warns else self.reporter.info)(line)
                if outcome.problem:
                    self.reporter.warning(f"failed: {outcome.problem}")
                failed += outcome.failed
                bar.update()
        return failed

    def _outcome(self, future: Any, task: FoldTask) -> FoldOutcome:
        failure = self.failure_of(future)
        if failure is None:
            found: FoldOutcome = future.result()
            return found
        if is_lost(failure):
            problem = (
                f"{task.title}: the workers that trained it were lost, several in a row; see their logs (often the "
                "memory was short), and give workers more memory (dask worker --memory-limit)"
            )
        else:
            log_unexpected(failure, self.reporter.warning)
            problem = f"{task.title}: {describe_failure(failure)}"
        return FoldOutcome(len(task.job.split["val"]), problem)
