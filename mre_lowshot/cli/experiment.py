"""``mre_experiment TABLE -d DATASET``: the paper's tables by name, on any datasets, resumable."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mre_lowshot.cli import common
from mre_lowshot.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from mre_lowshot.dataset import RawDataset
    from mre_lowshot.experiments.report import RowResult
    from mre_lowshot.experiments.runner import Setting
    from mre_lowshot.experiments.tables import Row, Table
    from mre_lowshot.specs import Plan
    from mre_lowshot.splits import Split
    from mre_lowshot.trainers.fold import FoldJob
    from mre_lowshot.workspace import Workspace

EPILOG = """Tables: table2 (or II) ablation, table3 N_e, table4 M, table5 mixing, table6 distance, baselines, readings,
candidates.
Each row is a plan of its own (preprocessed/DatasetXXX_Name/table2_a.json; the full method is table2_e in every table),
trained and scored as mre_train does; rows and folds that are done are skipped, a fold that was interrupted goes on.

--base small: the paper's method (recipe paper_small) with the network that is planned for a CPU.
--base paper: the paper's recipe at the paper's size; needs a GPU.
Table candidates: the recipe default, its parts taken away, and what was tried beyond it. Judge candidates on one half
of the scans (--cohort develop --cohorts benchmarks/halves.json) and report figures of the other; --iterations 300
screens. Several datasets after -d give a table each and one of all.

Writes results/DatasetXXX_Name/experiments/TABLE__LEVEL_BASE/: results.json, results.csv, pairs.csv (a line a training
and test scan), table.txt.

Examples:
  mre_experiment --list
  mre_experiment table2 -d Hippocampus --folds 0 1 2
  mre_experiment table2 -d BTCV --folds 0 --rows b e f --labels paper
  mre_experiment table2 -d Hippocampus --print
  mre_experiment candidates -d Hippocampus BTCV --folds 0 1 --cohort develop --cohorts benchmarks/halves.json

Exit code: 0 done, 1 some scans failed (named) or a training diverged, 2 wrong use, 130 interrupted (run it again)."""


def _parser() -> argparse.ArgumentParser:
    made = common.parser("mre_experiment", "Repeat the paper's tables by name, each row a plan.", EPILOG)
    made.add_argument("table", nargs="?", help="table2 ... table6, baselines, readings, candidates (--list shows them)")
    made.add_argument("-d", nargs="+", metavar="DATASET", help="id (17), name (BTCV), full name or path; one or more")
    made.add_argument("--rows", nargs="+", metavar="ROW", help="only these rows (default: all)")
    made.add_argument("--folds", nargs="+", type=int, metavar="N", help="folds (default: 0 1 2; --print: all there)")
    made.add_argument("--level", default="1shot", help="1shot, 2shot, 3shot, ... (default: %(default)s)")
    common.add_cohort(made)
    made.add_argument("--base", choices=("small", "paper"), default="small", help="size (default: %(default)s)")
    made.add_argument(
        "--iterations", type=int, metavar="N", help="train all rows this long, in plans of their own (table2_a_N)"
    )
    made.add_argument("--seed", type=int, default=0, help="seed of weights and patches (default: %(default)s)")
    made.add_argument("--workers", type=int, default=0, help="loader processes (default: %(default)s: in this one)")
    made.add_argument("--reference", metavar="ROW", help="row to compare the others with (default: the table's)")
    made.add_argument(
        "--statistics", choices=("default", "paper"), default="default",
        help="default: sign-flip permutation and Holm; paper: paired t and Bonferroni (results.json has both)",
    )  # fmt: skip
    made.add_argument(
        "--labels", nargs="+", metavar="NAME",
        help="labels to score (default: all); 'paper': those that the paper scores in its two datasets",
    )  # fmt: skip
    made.add_argument("--list", action="store_true", help="show all tables and rows, and leave")
    made.add_argument("--print", action="store_true", dest="only_print", help="train nothing, show what is there")
    common.add_device(made)
    common.add_workspace(made)
    return made


def _check(options: argparse.Namespace) -> None:
    if not options.table or not options.d:
        raise UserError("name a table and a dataset, as in: mre_experiment table2 -d Hippocampus (--list shows tables)")
    if options.iterations is not None and options.iterations < 1:
        raise UserError(f"--iterations {options.iterations}: must be at least 1")
    if options.workers < 0:
        raise UserError(f"--workers {options.workers}: must be 0 or more")
    if options.folds and min(options.folds) < 0:
        raise UserError(f"--folds {min(options.folds)}: folds count from 0")


def _chosen(options: argparse.Namespace, table: Table) -> list[Row]:
    rows = [table.row(name) for name in options.rows] if options.rows else list(table.rows_at(options.base))
    for row in rows:
        if row.base not in (None, options.base):
            raise UserError(f"--rows: row {row.name!r} of {table.name} is there with --base {row.base} only")
    return rows


def _fingerprint(raw: RawDataset, folder: Path) -> dict[str, Any]:
    """The scans as they are now, each read and checked."""
    from mre_lowshot.cli.plan import verified
    from mre_lowshot.planners.fingerprint import write_fingerprint

    _, fingerprint = verified(raw.folder)
    write_fingerprint(folder, fingerprint)
    return fingerprint


def _run(options: argparse.Namespace, setting: Setting, rows: Sequence[Row], raw: RawDataset, space: Workspace) -> int:
    """Plan, preprocess, train and score all rows; the number of scans that failed."""
    from functools import partial

    from tqdm import tqdm

    from mre_lowshot import devices
    from mre_lowshot.experiments.runner import plan_row, prepare_row, write_plan
    from mre_lowshot.planners.planner import DatasetFacts
    from mre_lowshot.planners.rules import Device
    from mre_lowshot.splits import load_or_make, read_cohort

    device = devices.resolve(options.device)
    planned_for = Device(device.type, devices.memory_gb(device))
    folder = space.preprocessed / raw.name
    fingerprint, facts = _fingerprint(raw, folder), DatasetFacts.of(raw)
    plans = [plan_row(row, setting, facts, fingerprint, planned_for) for row in rows]
    cohort = None
    if options.cohort:
        cohort = read_cohort(options.cohorts or folder / "cohorts.json", raw.name, options.cohort)
    splits = load_or_make(folder, setting.level, [case.name for case in raw.labelled], cohort=cohort)
    folds = options.folds or [n for n in (0, 1, 2) if n < len(splits)]
    if max(folds) >= len(splits):
        raise UserError(f"--folds {max(folds)}: level {setting.level} has folds 0 to {len(splits) - 1} here")
    if not all(splits[n]["val"] for n in folds):
        raise UserError(f"--level {setting.level}: leaves no labelled scan to score on; annotate more, or use fewer")
    failed = 0
    for row, plan in zip(rows, plans, strict=True):
        write_plan(plan, folder)
        prepare_row(plan, raw, folder, partial(tqdm, desc="preprocess", unit="scan", disable=None, delay=2))
        for fold in folds:
            failed += _fold(options, setting, row, plan, fold, splits[fold], folder, space, device)
    return failed


def _fold(
    options: argparse.Namespace, setting: Setting, row: Row, plan: Plan, fold: int, split: Split, folder: Path,
    space: Workspace, device: torch.device,
) -> int:  # fmt: skip
    import time

    from mre_lowshot.experiments.runner import is_done, summary_path_of
    from mre_lowshot.files import read_json
    from mre_lowshot.trainers.fold import FoldJob

    job = FoldJob(plan, setting.level, fold, split, folder, space.results, device, options.seed)
    title = f"row {row.name} ({row.label}), fold {fold}"
    if is_done(job):
        failed = len(read_json(summary_path_of(job), "summary of a fold")["failed_cases"])
        print(f"{title}: done before" + (f", {failed} scans could not be scored" if failed else ""), flush=True)
        return failed
    begun = time.monotonic()
    summary = _trained(options, job, f"{row.name}, fold {fold}")
    mean = summary["foreground_mean"]
    print(f"{title}: Dice {mean['Dice']:.4f}, HD95 {mean['HD95']:.2f} mm, {time.monotonic() - begun:.0f} s", flush=True)
    for reason in summary["failed_cases"].values():
        print(f"  {reason}")
    return len(summary["failed_cases"])


def _trained(options: argparse.Namespace, job: FoldJob, title: str) -> dict[str, Any]:
    from tqdm import tqdm

    from mre_lowshot.experiments.runner import run_fold

    with tqdm(total=job.plan.recipe.iterations, desc=title, unit="it", disable=None) as bar:

        def on_step(trainer: Any) -> None:
            bar.n = trainer.iteration
            bar.update(0)

        return run_fold(job, options.workers, on_step, lambda name: bar.set_postfix(scored=name))


def labels_to_score(wanted: Sequence[str] | None, known: Sequence[str]) -> list[str] | None:
    """The labels named with ``--labels`` (None: all); ``paper`` stands for those that the paper scores.

    Raises:
        UserError: one is none of ``known``, or ``paper`` and this is none of the paper's datasets.
    """
    from mre_lowshot.codec import nearest
    from mre_lowshot.paper_data import groups_of

    if wanted is None:
        return None
    if list(wanted) == ["paper"]:
        groups = groups_of(known)
        if groups is None:
            raise UserError(f"--labels paper: {', '.join(known)} are not those of MRBrainS18 or BTCV; name the labels")
        return groups.scored_labels(known)
    for name in wanted:
        if name not in known or name == "background":
            raise UserError(f"--labels: {name!r} is no label to score; {nearest(name, known)}")
    return list(wanted)


def _main(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    if options.list:
        from mre_lowshot.experiments.text import listing

        print(listing())
        return 0
    _check(options)

    from mre_lowshot.dataset import RawDataset
    from mre_lowshot.experiments.runner import Setting
    from mre_lowshot.experiments.tables import named
    from mre_lowshot.experiments.text import format_overview
    from mre_lowshot.splits import parse_level, with_cohort
    from mre_lowshot.workspace import Workspace

    table = named(options.table)
    rows = _chosen(options, table)
    reference = table.row(options.reference).name if options.reference else table.reference
    level = with_cohort(options.level, options.cohort) if options.cohort else parse_level(options.level)
    setting = Setting(options.base, level, options.iterations, options.seed)
    space = Workspace.resolve(options.workspace)
    datasets = [RawDataset.load(space.find(name, "raw")) for name in options.d]
    labels = [labels_to_score(options.labels, list(raw.labels)) for raw in datasets]
    failed, found = 0, {}
    for raw, scored in zip(datasets, labels, strict=True):
        failed += 0 if options.only_print else _run(options, setting, rows, raw, space)
        found[raw.name] = _told(options, table, rows, reference, setting, raw, scored, space)
    if len(found) > 1:
        print(format_overview(found, reference))
    return 1 if failed else 0


def _told(
    options: argparse.Namespace, table: Table, rows: Sequence[Row], reference: str, setting: Setting, raw: RawDataset,
    labels: list[str] | None, space: Workspace,
) -> list[RowResult]:  # fmt: skip
    """Print (and, where something was trained, write) the table of one dataset."""
    from mre_lowshot.experiments import report
    from mre_lowshot.experiments.text import format_rows

    # what was trained before counts too, though it was not asked for now
    shown = rows if options.rows and options.only_print else list(table.rows_at(options.base))
    folds = options.folds if options.only_print else None
    found = report.collect(table, shown, setting, space.results, raw.name, folds, labels)
    text = format_rows(table, found, setting, raw.name, reference, options.statistics)
    text += f"\nlabels scored: {', '.join(labels)}" if labels else ""
    print(text)
    if not options.only_print:
        folder = space.results / raw.name / "experiments" / f"{table.name}__{setting.name}"
        report.write(report.to_data(table, found, setting, raw.name, reference, labels), found, text, folder)
        print(f"written to {folder}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``mre_experiment``."""
    return common.run(_main, arguments)
