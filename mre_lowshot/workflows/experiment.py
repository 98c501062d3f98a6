"""Run the rows of a table on datasets, and report them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mre_lowshot import devices
from mre_lowshot.config.check import require_whole
from mre_lowshot.config.json import suggest
from mre_lowshot.data.dataset import Dataset
from mre_lowshot.data.paper_datasets import groups_of
from mre_lowshot.data.splits import load_or_make, parse_level, read_cohort, with_cohort
from mre_lowshot.data.workspace import Workspace
from mre_lowshot.errors import UserError
from mre_lowshot.evaluation.statistics import Method
from mre_lowshot.experiments import report
from mre_lowshot.experiments.report import RowResult
from mre_lowshot.experiments.runner import (
    Setting,
    is_prepared,
    plan_row,
    prepare_row,
    write_plan,
)
from mre_lowshot.experiments.tables import Base, Row, Table, named
from mre_lowshot.experiments.text import format_overview, format_rows
from mre_lowshot.inference.models import MAX_FOLD
from mre_lowshot.planners.fingerprint import write_fingerprint
from mre_lowshot.planners.hardware import Device
from mre_lowshot.planners.planner import facts_of
from mre_lowshot.preprocessing.prepare import check_prepared
from mre_lowshot.preprocessing.references import planning
from mre_lowshot.trainers.fold import FoldJob
from mre_lowshot.workflows.experiment_cluster import ExperimentCluster
from mre_lowshot.workflows.experiment_fold import run_fold
from mre_lowshot.workflows.plan import verified_dataset
from mre_lowshot.workflows.reporting import Reporter
from mre_lowshot.workflows.train import check_options


@dataclass(frozen=True)
class ExperimentResult:
    """Result of `experiment`: the rows' results by dataset, the text printed, and how many scans failed."""

    rows: dict[str, list[RowResult]]
    text: str
    failed: int = 0


@dataclass(frozen=True)
class _Run:
    """The settings that all rows and datasets of an experiment share."""

    table: Table
    rows: Sequence[Row]  # chosen
    named_rows: bool  # whether rows were chosen by name
    reference: str
    setting: Setting
    statistics: Method
    folds: Sequence[int] | None
    cohort: str | None
    cohorts_file: Path | None
    workers: int | None
    device: str
    space: Workspace
    reporter: Reporter
    cluster: ExperimentCluster | None = None


def experiment(
    table: str,
    datasets: Sequence[str | Path],
    *,
    rows: Sequence[str] | None = None,
    folds: Sequence[int] | None = None,
    level: str = "1shot",
    base: Base = "small",
    iterations: int | None = None,
    seed: int = 0,
    reference: str | None = None,
    statistics: Method = "default",
    labels: Sequence[str] | None = None,
    only_print: bool = False,
    workers: int | None = None,
    cohort: str | None = None,
    cohorts_file: str | Path | None = None,
    device: str = "auto",
    workspace: str | Path | None = None,
    scheduler: str | Path | None = None,
    reporter: Reporter | None = None,
) -> ExperimentResult:
    """Train and score the rows of one of the paper's tables on datasets, and compare them with the reference row.

    Rows and folds that are done are skipped, and an interrupted fold is continued.

    Args:
        table: its name (`experiments.tables.TABLES`); ``II`` and ``2`` mean ``table2``.
        datasets: ids, names, full names or paths of raw datasets.
        rows: names of rows; None: all.
        folds: numbers; None: 0, 1 and 2 (with ``only_print``: all that exist).
        level: as in training.
        base: the small network, or the paper's size.
        iterations: of all rows, which get separate plans; None: the recipes'.
        seed: of weights and patches.
        reference: name of the row to compare with; None: the table's.
        statistics: ``default`` (sign-flip permutation, Holm) or ``paper`` (paired t, Bonferroni).
        labels: to score; ``["paper"]``: those that the paper scores in its two datasets; None: all.
        only_print: train nothing.
        workers: data-loading processes; 0: this process loads; None: on CUDA up to four, else 0.
        cohort, cohorts_file: name of a cohort of cases, and its file.
        device: to train on.
        workspace: folder with raw/, preprocessed/ and results/.
        scheduler: address of a dask scheduler, or its scheduler file, on whose workers the folds are trained; None: in
            this process. Extra: ``mre-lowshot[cluster]``; see docs/CLUSTER.md.
        reporter: receives progress and messages.

    Raises:
        UserError: an option is wrong.
    """
    check_options(iterations=iterations, seed=seed, workers=workers)
    for fold in folds or ():
        require_whole("--folds", fold, 0, MAX_FOLD)
    found_table, reporter = named(table), reporter or Reporter()
    cluster = ExperimentCluster(scheduler, device=device, reporter=reporter) if scheduler is not None else None
    level = with_cohort(level, cohort) if cohort is not None else parse_level(level)
    run = _Run(
        table=found_table,
        rows=_chosen_rows(found_table, rows, base),
        named_rows=bool(rows),
        reference=found_table.row(reference).name if reference else found_table.reference,
        setting=Setting(base, level, iterations, seed),
        statistics=statistics,
        folds=folds,
        cohort=cohort,
        cohorts_file=Path(cohorts_file) if cohorts_file else None,
        workers=workers,
        device=device,
        space=Workspace.resolve(workspace),
        reporter=reporter,
        cluster=cluster,
    )
    loaded = [Dataset.load(run.space.find(str(name), "raw")) for name in datasets]
    scored = [labels_to_score(labels, list(dataset.labels)) for dataset in loaded]
    failed, results, texts = 0, {}, []
    with ExitStack() as held:
        if cluster is not None and not only_print:
            held.enter_context(cluster.connected(run.space))
        for dataset, names in zip(loaded, scored, strict=True):
            failed += 0 if only_print else _run_rows(run, dataset)
            results[dataset.name], text = _report(run, dataset, names, only_print=only_print)
            texts.append(text)
    if len(results) > 1:
        texts.append(format_overview(results, run.reference))
        run.reporter.info(texts[-1])
    return ExperimentResult(results, "\n".join(texts), failed)


def _chosen_rows(table: Table, names: Sequence[str] | None, base: Base) -> list[Row]:
    rows = [table.row(name) for name in names] if names else list(table.rows_at(base))
    for row in rows:
        if row.base not in (None, base):
            raise UserError(f"--rows: row {row.name!r} of {table.name} exists with --base {row.base} only")
    return rows


def _run_rows(run: _Run, dataset: Dataset) -> int:
    """Plan, preprocess, train and score all rows; the number of scans that failed."""
    device = devices.resolve("cpu" if run.cluster else run.device)  # each worker takes its own
    planned_for = run.cluster.planned_for() if run.cluster else Device(device.type, devices.memory_gb(device))
    folder = run.space.preprocessed / dataset.name
    _, fingerprint = verified_dataset(dataset.folder, run.reporter)
    write_fingerprint(folder, fingerprint)
    plans = [plan_row(row, run.setting, facts_of(dataset), fingerprint, planned_for) for row in run.rows]
    cohort = None
    if run.cohort is not None:
        cohort = read_cohort(run.cohorts_file or folder / "cohorts.json", dataset.name, run.cohort)
    level = run.setting.level
    splits = load_or_make(folder, level, [case.name for case in dataset.labelled], cohort=cohort, log=run.reporter.info)
    folds = run.folds or [n for n in (0, 1, 2) if n < len(splits)]
    if max(folds) >= len(splits):
        raise UserError(f"--folds {max(folds)}: level {level} has folds 0 to {len(splits) - 1} here")
    if not all(splits[n]["val"] for n in folds):
        raise UserError(f"--level {level}: leaves no test scan; annotate more scans, or train on fewer")
    failed, remote = 0, []
    bar = partial(run.reporter.iterate, description="preprocess", unit="scan")
    for row, plan in zip(run.rows, plans, strict=True):
        if not (is_prepared(plan, dataset, folder) and (folder / f"{plan.plans_name}.json").is_file()):
            with planning(folder, plan.plans_name):
                write_plan(plan, folder)
                prepare_row(plan, dataset, folder, bar)
        for fold in folds:
            job = FoldJob(
                plan,
                level,
                fold,
                splits[fold],
                prepared=folder,
                results=run.space.results,
                device=device,
                seed=run.setting.seed,
            )
            if run.cluster:
                remote.append((row, job))
                continue
            with job.reading(), job.locked():
                write_plan(plan, folder)
                check_prepared(plan, folder)
                failed += run_fold(row, job, run.setting.iterations, workers=run.workers, reporter=run.reporter)
    if run.cluster:
        failed += run.cluster.run_folds(remote, iterations=run.setting.iterations, workers=run.workers)
    return failed


def labels_to_score(wanted: Sequence[str] | None, known: Sequence[str]) -> list[str] | None:
    """The labels to score (None: all); ``["paper"]`` stands for those that the paper scores.

    Raises:
        UserError: one is not among ``known``, or ``paper`` is requested for another dataset than the paper's.
    """
    if wanted is None:
        return None
    if list(wanted) == ["paper"]:
        groups = groups_of(known)
        if groups is None:
            raise UserError(f"--labels paper: {', '.join(known)} are not those of MRBrainS18 or BTCV; name the labels")
        return groups.scored_labels(known)
    for name in wanted:
        if name not in known or name == "background":
            raise UserError(f"--labels: {name!r} is not a label to score; {suggest(name, known)}")
    return list(wanted)


def _report(run: _Run, dataset: Dataset, labels: list[str] | None, *, only_print: bool) -> tuple[list[RowResult], str]:
    """Print the table of one dataset, and write it where something was trained."""
    # rows that were trained before are included though they were not requested now
    shown = run.rows if run.named_rows and only_print else list(run.table.rows_at(run.setting.base))
    folds = run.folds if only_print else None
    results = run.space.results
    rows = report.collect(run.table, shown, run.setting, results, dataset.name, folds, labels)
    text = format_rows(run.table, rows, run.setting, dataset.name, run.reference, run.statistics)
    text += f"\nlabels scored: {', '.join(labels)}" if labels else ""
    run.reporter.info(text)
    if not only_print:
        folder = results / dataset.name / "experiments" / f"{run.table.name}__{run.setting.name}"
        data = report.to_data(run.table, rows, run.setting, dataset.name, run.reference, labels)
        report.write(data, rows, text, folder)
        run.reporter.info(f"written to {folder}")
    return rows, text
