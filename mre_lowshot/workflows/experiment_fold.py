"""One fold of one row of a table: trained, scored and reported. All that it needs is in its arguments, so that it can
run on another machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from mre_lowshot import devices
from mre_lowshot.experiments.runner import is_done, summary_path_of, train_fold
from mre_lowshot.experiments.tables import Row
from mre_lowshot.files import read_json
from mre_lowshot.trainers.fold import FoldJob, validate
from mre_lowshot.workflows.fold_run import training_progress
from mre_lowshot.workflows.reporting import Reporter


def run_fold(row: Row, job: FoldJob, iterations: int | None, *, workers: int | None, reporter: Reporter) -> int:
    """Train and score one fold of a row, which the caller holds for writing (`FoldJob.locked`); the number of scans
    that failed. A fold that is done is skipped, an interrupted one continued.

    Args:
        row: the row.
        job: the fold.
        iterations: of training, if the user gave a number.
        workers: data-loading processes; None: chosen for the device.
        reporter: receives progress and messages.

    Raises:
        UserError: the fold was trained with another plan, split or seed.
    """
    split = job.split
    title = f"row {row.name} ({row.label}), fold {job.fold}"
    if is_done(job):
        failed = len(read_json(summary_path_of(job), "summary of a fold")["failed_cases"])
        reporter.info(f"{title}: already complete" + (f", {failed} scans could not be scored" if failed else ""))
        return failed
    begun = time.monotonic()
    progress: Callable[..., Any] = partial(
        training_progress, job, reporter=reporter, title=f"{row.name}, fold {job.fold}"
    )
    processes = devices.loader_processes(job.device) if workers is None else workers
    trainer = train_fold(job, workers=processes, progress=progress)
    with reporter.bar(len(split["val"]), description="validate", unit="scan") as bar:
        summary = validate(
            job,
            trainer,
            split["val"],
            job.folder / "validation",
            on_case=lambda _: bar.update(),
            log=reporter.warning,
        )
    mean, seconds = summary["foreground_mean"], time.monotonic() - begun
    scores = f"Dice {mean['Dice']:.4f}, HD95 {mean['HD95']:.2f} mm, NSD {mean['NSD']:.4f}"
    reporter.info(f"{title}: {scores}, {seconds:.0f} s")
    for reason in summary["failed_cases"].values():
        reporter.info(f"  {reason}")
    return len(summary["failed_cases"])
