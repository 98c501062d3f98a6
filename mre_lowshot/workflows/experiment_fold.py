"""One fold of one row of a table: trained, scored and reported. All that it needs is in its arguments, so that it can
run on another machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from mre_lowshot import devices
from mre_lowshot.data.pixel_size import UNIT_KEY, unit_of
from mre_lowshot.errors import describe_failure, is_out_of_memory, log_unexpected
from mre_lowshot.experiments.baselines.registry import baseline
from mre_lowshot.experiments.baselines.running import run_baseline
from mre_lowshot.experiments.resources import Resources
from mre_lowshot.experiments.runner import is_done, summary_path_of, train_fold
from mre_lowshot.experiments.tables import Row
from mre_lowshot.files import read_json
from mre_lowshot.preprocessing.prepare import check_prepared
from mre_lowshot.trainers.fold import FoldJob, validate
from mre_lowshot.workflows.fold_run import training_progress
from mre_lowshot.workflows.reporting import Reporter


def run_fold(row: Row, job: FoldJob, iterations: int | None, *, workers: int | None, reporter: Reporter) -> int:
    """Train and score one fold of a row, which the caller holds for writing (`FoldJob.locked`); the number of scans
    that failed. A fold that is done is skipped, an interrupted one continued.

    A baseline that fails is reported, and counts as all its test scans: the other rows do not depend on it.

    Args:
        row: the row.
        job: the fold.
        iterations: of training, if the user gave a number.
        workers: data-loading processes; None: chosen for the device.
        reporter: receives progress and messages.

    Raises:
        UserError: the fold was trained with another plan, split or seed.
    """
    title = f"row {row.name} ({row.label}), fold {job.fold}"
    if is_done(job):
        failed = len(read_json(summary_path_of(job), "summary of a fold")["failed_cases"])
        reporter.info(f"{title}: already complete" + (f", {failed} scans could not be scored" if failed else ""))
        return failed
    begun = time.monotonic()
    if row.baseline:
        try:
            summary = _run_baseline(row, job, iterations, reporter)
        except Exception as problem:
            log_unexpected(problem, reporter.warning)
            text, short = describe_failure(problem), is_out_of_memory(problem)
            reporter.warning(f"{title}: {text}")
            if short:
                devices.free_memory()
            return len(job.split["val"])
    else:
        summary = _run_recipe(row, job, workers, reporter)
    mean, seconds = summary["foreground_mean"], time.monotonic() - begun
    scores = f"Dice {mean['Dice']:.4f}, HD95 {mean['HD95']:.2f} {unit_of(summary.get(UNIT_KEY))}, NSD {mean['NSD']:.4f}"
    reporter.info(f"{title}: {scores}, {seconds:.0f} s")
    for reason in summary["failed_cases"].values():
        reporter.info(f"  {reason}")
    return len(summary["failed_cases"])


def _run_recipe(row: Row, job: FoldJob, workers: int | None, reporter: Reporter) -> dict[str, Any]:
    progress: Callable[..., Any] = partial(
        training_progress, job, reporter=reporter, title=f"{row.name}, fold {job.fold}"
    )
    processes = devices.loader_processes(job.device) if workers is None else workers
    trainer = train_fold(job, workers=processes, progress=progress)
    names, resources = job.split["val"], Resources.load(job.folder)
    with reporter.bar(len(names), description="validate", unit="scan") as bar:

        def on_case(name: str) -> None:
            bar.update()

        summary = validate(
            job,
            trainer,
            names,
            job.folder / "validation",
            around=lambda name: resources.scan(name, job.device),
            on_case=on_case,
            log=reporter.warning,
        )
    resources.save(job.folder)
    return summary


def _run_baseline(row: Row, job: FoldJob, iterations: int | None, reporter: Reporter) -> dict[str, Any]:
    names = check_prepared(job.plan, job.prepared)
    reporter.info(f"{row.name}, fold {job.fold}: results in {job.folder}")
    with reporter.bar(len(job.split["val"]), description=f"{row.name}, fold {job.fold}", unit="scan") as bar:
        return run_baseline(
            baseline(row.baseline),
            job,
            names,
            iterations=iterations,
            on_case=lambda _: bar.update(),
            log=lambda line: reporter.info(f"  {line}"),
            ask=reporter.ask,
            warn=reporter.warning,
        )
