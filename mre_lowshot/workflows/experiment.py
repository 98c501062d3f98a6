"""Run the rows of a table on datasets, and report them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from mre_lowshot.config.check import require_whole
from mre_lowshot.config.json import suggest
from mre_lowshot.data.dataset import Dataset
from mre_lowshot.data.paper_datasets import groups_of
from mre_lowshot.data.splits import parse_level, with_cohort
from mre_lowshot.data.workspace import Workspace
from mre_lowshot.errors import UserError
from mre_lowshot.evaluation.statistics import Method
from mre_lowshot.experiments import report
from mre_lowshot.experiments.figures import FIGURES
from mre_lowshot.experiments.grid import FORMATS, Grid, in_format
from mre_lowshot.experiments.layouts import Content, layout, plain_grid
from mre_lowshot.experiments.notes import notes_of
from mre_lowshot.experiments.present import present_runs
from mre_lowshot.experiments.results import RowResult, collect
from mre_lowshot.experiments.runner import (
    Setting,
    is_prepared,
    prepare_row,
    write_plan,
)
from mre_lowshot.experiments.tables import Base, Row, Table, named
from mre_lowshot.experiments.text import format_overview, format_rows
from mre_lowshot.experiments.tsne import require_sklearn
from mre_lowshot.inference.models import MAX_FOLD
from mre_lowshot.preprocessing.prepare import check_prepared
from mre_lowshot.preprocessing.references import planning
from mre_lowshot.trainers.fold import FoldJob
from mre_lowshot.workflows.experiment_cluster import ExperimentCluster
from mre_lowshot.workflows.experiment_figures import draw
from mre_lowshot.workflows.experiment_fold import run_fold
from mre_lowshot.workflows.experiment_progress import RunTimes
from mre_lowshot.workflows.experiment_tasks import QUICK_MARK, Run, require_levels, tasks_of
from mre_lowshot.workflows.raw_folder import find_raw
from mre_lowshot.workflows.reporting import Marked, Reporter
from mre_lowshot.workflows.train import check_options


@dataclass(frozen=True)
class ExperimentResult:
    """Result of `experiment`: the rows' results by dataset, the text printed, how many scans failed, by dataset the
    table in the paper's layout, and the pictures drawn."""

    rows: dict[str, list[RowResult]]
    text: str
    failed: int = 0
    grids: dict[str, Grid] = field(default_factory=dict)
    pictures: tuple[Path, ...] = ()


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
    seeds: Sequence[int] | None = None,
    quick: bool = False,
    changes: Mapping[str, str] | None = None,
    formats: Sequence[str] = (),
    panels: bool = False,
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
        table: its name (`experiments.tables.TABLES`); ``II`` and ``2`` mean ``table2``. Or that of a figure
            (`experiments.figures.FIGURES`), whose rows are run on fold 0 unless ``folds`` names others, and drawn.
        datasets: ids, names, full names or paths of raw datasets.
        rows: names of rows; None: all.
        folds: numbers; None: 0, 1 and 2 (with ``only_print``: all that exist).
        level: as in training.
        base: the small network, or the paper's size.
        iterations: of all rows, which get separate plans; None: the recipes'.
        seed: of weights and patches.
        seeds: several, instead of ``seed``: every row and fold is trained with each.
        quick: fewer iterations, fold 0 only unless ``folds`` names others, and a few test scans in each fold; the rows
            get separate plans.
        changes: fields of the plan that are changed in every row, and their values, as ``--set`` of planning does; the
            rows get separate plans. A row's own fields are changed after these.
        formats: of `experiments.grid.FORMATS`: the table in the paper's layout is reported in them, instead of the text
            with comparisons.
        panels: draw the segmentations of the chosen rows on the same slices.
        reference: name of the row to compare with; None: the table's.
        statistics: ``default`` (sign-flip permutation, Holm) or ``paper`` (paired t, Bonferroni).
        labels: to score; ``["paper"]``: those that the paper scores in its two datasets; None: all.
        only_print: train nothing.
        workers: data-loading processes; 0: this process loads; None: on CUDA up to four, else 0.
        cohort, cohorts_file: name of a cohort of cases, and its file.
        device: to train on.
        workspace: folder with raw/, preprocessed/ and results/.
        scheduler: address of a dask scheduler, or its scheduler file, on whose workers the folds are trained; None: in
            this process. Extra: ``cluster``; see docs/CLUSTER.md.
        reporter: receives progress and messages.

    Raises:
        UserError: an option is wrong.
    """
    for number in seeds or (seed,):
        check_options(iterations=iterations, seed=number, workers=workers)
    for name in formats:
        if name not in FORMATS:
            raise UserError(f"--format: {name!r} is unknown; {suggest(name, FORMATS)}")
    for fold in folds or ():
        require_whole("--folds", fold, 0, MAX_FOLD)
    figure = FIGURES.get(str(table).strip().lower())
    if figure and figure.kind == "embeddings":
        require_sklearn()
    found_table = named(figure.table if figure else table, FIGURES)
    rows = rows or (figure.rows_at(base) if figure else None)
    reporter = Marked(reporter or Reporter(), QUICK_MARK) if quick else reporter or Reporter()
    cluster = ExperimentCluster(scheduler, device=device, reporter=reporter) if scheduler is not None else None
    level = with_cohort(level, cohort) if cohort is not None else parse_level(level)
    common = tuple(sorted((changes or {}).items()))
    run = Run(
        table=found_table,
        rows=_chosen_rows(found_table, rows, base),
        named_rows=bool(rows),
        reference=found_table.row(reference).name if reference else found_table.reference,
        settings=[Setting(base, level, iterations, n, quick, common) for n in dict.fromkeys(seeds or (seed,))],
        statistics=statistics,
        formats=formats,
        folds=folds or ([0] if (quick or figure) and not only_print else None),
        cohort=cohort,
        cohorts_file=Path(cohorts_file) if cohorts_file else None,
        workers=workers,
        device=device,
        space=Workspace.resolve(workspace),
        reporter=reporter,
        cluster=cluster,
    )
    require_levels(run)
    loaded = [Dataset.load(find_raw(run.space, str(name))) for name in datasets]
    scored = [labels_to_score(labels or _paper_labels(found_table, d), list(d.labels)) for d in loaded]
    failed, results, texts, grids, pictures = 0, {}, [], {}, []
    with ExitStack() as held:
        if cluster is not None and not only_print:
            held.enter_context(cluster.connected(run.space))
        for dataset, names in zip(loaded, scored, strict=True):
            failed += 0 if only_print else _run_rows(run, dataset)
            results[dataset.name], text, grid = _report(run, dataset, names, only_print=only_print)
            texts.append(text)
            if grid is not None:
                grids[dataset.name] = grid
            if figure or panels:
                path = draw(run, dataset, results[dataset.name], names, figure=figure)
                pictures.append(path)
                run.reporter.info(f"drawn to {path}")
    if len(results) > 1:
        texts.append(format_overview(results, run.reference, quick=run.remark))
        run.reporter.table(texts[-1])
    return ExperimentResult(results, "\n".join(texts), failed, grids, tuple(pictures))


def _chosen_rows(table: Table, names: Sequence[str] | None, base: Base) -> list[Row]:
    rows = [table.row(name) for name in names] if names else list(table.rows_at(base))
    for row in rows:
        if row.base not in (None, base):
            raise UserError(f"--rows: row {row.name!r} of {table.name} exists with --base {row.base} only")
    return rows


def _paper_labels(table: Table, dataset: Dataset) -> list[str] | None:
    """``["paper"]`` for the paper's own dataset in a table with the paper's figures of it, which are of some labels."""
    groups = groups_of(list(dataset.labels))
    shown = {figure.dataset for row in table.rows for figure in row.paper}
    return ["paper"] if groups and groups.dataset in shown else None


def _run_rows(run: Run, dataset: Dataset) -> int:
    """Plan, preprocess, train and score all rows; the number of scans that failed."""
    folder = run.space.preprocessed / dataset.name
    tasks, failed = tasks_of(run, dataset, folder)
    bar = partial(run.reporter.iterate, description="preprocess", unit="scan")
    times = RunTimes(tasks)
    remote: list[tuple[Row, FoldJob, int | None]] = []
    for number, task in enumerate(tasks):
        plan, job = task.job.plan, task.job
        if not (is_prepared(plan, dataset, folder) and (folder / f"{plan.plans_name}.json").is_file()):
            with planning(folder, plan.plans_name):
                write_plan(plan, folder)
                prepare_row(plan, dataset, folder, bar)
        if run.cluster:
            remote.append((task.row, job, task.iterations))
            continue
        with times.measured(number), job.reading(), job.locked():
            write_plan(plan, folder)
            check_prepared(plan, folder)
            failed += run_fold(task.row, job, task.iterations, workers=run.workers, reporter=run.reporter)
        if line := times.line(number):
            run.reporter.info(line)
    if run.cluster and remote:
        failed += run.cluster.run_folds(remote, workers=run.workers)
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


def _report(
    run: Run, dataset: Dataset, labels: list[str] | None, *, only_print: bool
) -> tuple[list[RowResult], str, Grid | None]:
    """Report the table of one dataset, and write it where something was trained."""
    # rows that were trained before are included though they were not requested now
    shown = run.rows if run.named_rows and only_print else list(run.table.rows_at(run.setting.base))
    folds = run.folds if only_print else None
    results = run.space.results
    found = collect(shown, run.settings, results, dataset.name, folds, labels)
    rows = present_runs(found, run.space.preprocessed / dataset.name, run.reporter.warning)
    arguments = (run.setting, dataset.name, run.reference)
    text = format_rows(run.table, rows, *arguments, run.statistics, quick=run.remark)
    text += f"\nlabels scored: {', '.join(labels)}" if labels else ""
    names = labels or [name for name, value in dataset.labels.items() if value]
    content = Content(run.table, rows, dataset.name, run.setting.level, run.reference, names, run.statistics)
    notes = notes_of(run.table, rows, names)
    grid = layout(content, quick=run.remark)
    if grid is None:
        grid = plain_grid(run.table, rows, *arguments, quick=run.remark)
        grid = replace(grid, notes=(*grid.notes, *notes))
    if not run.table.shows_more:
        text = "\n".join([text, *notes])
    else:
        text = f"{in_format(grid, 'text')}\n{text}"
    shown_text = "\n".join(in_format(grid, name) for name in run.formats) if run.formats else text
    run.reporter.table(shown_text)
    if not only_print:
        folder = run.folder_of(dataset.name)
        seeds = [setting.seed for setting in run.settings]
        data = report.to_data(run.table, rows, *arguments, labels, seeds=seeds, grid=grid)
        report.write(data, rows, text, folder, grid=grid)
        run.reporter.info(f"written to {folder}")
    return rows, shown_text, grid
