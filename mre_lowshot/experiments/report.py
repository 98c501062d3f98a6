"""Results of an experiment table: collection from the summaries of the folds, comparison, output as JSON and CSV."""

from __future__ import annotations

import csv
import io
import math
import statistics as plain_statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mre_lowshot.config.plan_files import load_plan
from mre_lowshot.errors import UserError
from mre_lowshot.evaluation import statistics
from mre_lowshot.experiments.runner import Setting, summary_path
from mre_lowshot.experiments.tables import Row, Table, plan_name
from mre_lowshot.files import read_json
from mre_lowshot.signed import changed_files, set_aside, write_signed

METRICS = ("Dice", "HD95", "NSD")


@dataclass(frozen=True)
class Run:
    """The results of one fold of one row. NaN: undefined."""

    fold: int
    train: tuple[str, ...]  # training scans
    seed: int
    value: dict[str, float]  # metric -> mean over labels of the means over test scans, as mre_train prints it
    cases: dict[str, dict[str, float]]  # test scan -> metric -> mean over labels
    missed: int  # structures of which no voxel was predicted
    iterations: int
    failed: tuple[str, ...] = ()  # reasons of scans that could not be scored


@dataclass(frozen=True)
class RowResult:
    """The runs of a row."""

    row: Row
    plan: str  # name of the row's plan
    runs: dict[int, Run]  # by fold

    def values(self, metric: str) -> list[float]:
        """The defined values of ``metric``, one per run."""
        return [v for run in self.runs.values() if not math.isnan(v := run.value[metric])]

    def mean_sd(self, metric: str) -> tuple[float, float]:
        """Mean and standard deviation over runs (ddof 1; NaN for fewer than two)."""
        values = self.values(metric)
        mean = math.fsum(values) / len(values) if values else math.nan
        return mean, plain_statistics.stdev(values) if len(values) > 1 else math.nan


def collect(
    table: Table,
    rows: Sequence[Row],
    setting: Setting,
    results: Path,
    dataset: str,
    folds: Sequence[int] | None,
    labels: Sequence[str] | None = None,
) -> list[RowResult]:
    """Read the existing runs of the rows that were trained with the seed of ``setting``.

    Args:
        table: the table of the rows.
        rows: rows to read.
        setting: base, level, iterations and seed.
        results: root folder of results.
        dataset: dataset name, DatasetXXX_Name.
        folds: fold numbers; None reads all existing folds.
        labels: names of the labels to score; None scores all.

    Returns:
        One `RowResult` per row, possibly without runs.

    Raises:
        UserError: ``labels`` contains a label that the dataset does not have.
    """
    collected = []
    for row in rows:
        name = plan_name(row, setting.base, setting.iterations)
        model = summary_path(results, dataset, name, setting.level, 0).parents[2]
        trained = sorted(int(p.name[5:]) for p in model.glob("fold_*") if p.name[5:].isdigit())
        runs = {}
        for fold in trained:
            path = summary_path(results, dataset, name, setting.level, fold)
            if path.is_file() and (folds is None or fold in folds):
                run = _run(path, fold, labels)
                if run.seed == setting.seed:
                    runs[fold] = run
        collected.append(RowResult(row, name, runs))
    return collected


def _run(path: Path, fold: int, labels: Sequence[str] | None) -> Run:
    summary = read_json(path, "summary of a fold")
    numbers = summary["labels"]
    for name in labels or ():
        if name not in numbers:
            raise UserError(f"--labels: {name!r} is not a label of {path.parents[3].name}; labels are {list(numbers)}")
    keys = [str(numbers[name]) for name in (labels or numbers)]
    cases = {
        case["case"]: {m: _mean([case["metrics"][k].get(m) for k in keys]) for m in METRICS}
        for case in summary["metric_per_case"]
    }
    plan = load_plan(path.parents[1] / "plans.json")
    return Run(
        fold=fold,
        train=plan.fold.train if plan.fold else (),
        seed=plan.fold.seed if plan.fold else 0,
        value={m: _mean([summary["mean"][k].get(m) for k in keys]) for m in METRICS},
        cases=cases,
        missed=sum(summary["missed_structures"][k] for k in keys),
        iterations=plan.recipe.optimizer.iterations,
        failed=tuple(summary["failed_cases"].values()),
    )


def _mean(values: Sequence[float | None]) -> float:
    defined = [v for v in values if v is not None and not math.isnan(v)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def common_folds(row: RowResult, reference: RowResult) -> list[int]:
    """Folds of both rows that were trained on the same scans (the split may have changed between trainings)."""
    both = [fold for fold in row.runs if fold in reference.runs]
    return [fold for fold in both if row.runs[fold].train == reference.runs[fold].train]


def differences(row: RowResult, reference: RowResult, metric: str) -> tuple[list[float], np.ndarray]:
    """Differences of ``metric``, row minus reference, over their common folds.

    Returns:
        One value per run, and an array (runs, test scans) with NaN where a scan was not tested in both runs.
    """
    folds = common_folds(row, reference)
    runs = [row.runs[f].value[metric] - reference.runs[f].value[metric] for f in folds]
    scans = sorted({name for f in folds for name in row.runs[f].cases})
    pairs = np.full((len(folds), len(scans)), np.nan)
    for i, fold in enumerate(folds):
        one, other = row.runs[fold].cases, reference.runs[fold].cases
        for j, name in enumerate(scans):
            if name in one and name in other:
                pairs[i, j] = one[name][metric] - other[name][metric]
    return runs, pairs


def comparisons(
    rows: Sequence[RowResult], reference: str, metric: str, method: statistics.Method
) -> dict[str, statistics.Comparison]:
    """Compare all rows that have runs in common with the reference row; the comparisons form one family.

    Args:
        rows: the rows of a table.
        reference: name of the reference row.
        metric: one of `METRICS`.
        method: tests and correction, see `statistics.compare`.

    Returns:
        Comparisons by row name; empty if the reference row has no runs.
    """
    base = next((r for r in rows if r.row.name == reference and r.runs), None)
    if base is None:
        return {}
    others = [r for r in rows if r is not base and common_folds(r, base)]
    both = [differences(r, base, metric) for r in others]
    compared = statistics.compare([d for d, _ in both], [p for _, p in both], method)
    return {r.row.name: c for r, c in zip(others, compared, strict=True)}


def to_data(
    table: Table,
    rows: Sequence[RowResult],
    setting: Setting,
    dataset: str,
    reference: str,
    labels: Sequence[str] | None,
) -> dict[str, Any]:
    """The content of results.json: the table, its rows, runs and comparisons.

    Args:
        table: the table.
        rows: results of its rows.
        setting: base, level, iterations and seed.
        dataset: dataset name.
        reference: name of the reference row.
        labels: names of the scored labels; None for all.
    """
    tests = {method: {m: comparisons(rows, reference, m, method) for m in METRICS} for method in ("default", "paper")}
    return {
        "table": table.name, "title": table.title, "source": table.source, "dataset": dataset,
        "setting": asdict(setting), "reference": reference, "labels": list(labels) if labels else "all",
        "rows": [
            {
                "name": r.row.name, "label": r.row.label, "plan": r.plan, "recipe": r.row.recipe_at(setting.base),
                "changes": dict(r.row.changes), "scaled": dict(r.row.scaled),
                "paper": [asdict(figure) for figure in r.row.paper],
                **{m: dict(zip(("mean", "sd"), r.mean_sd(m), strict=True)) for m in METRICS},
                "runs": [
                    {"fold": run.fold, "train": run.train, "iterations": run.iterations, "missed": run.missed,
                     "failed": run.failed, **run.value}
                    for run in r.runs.values()
                ],
                "against_reference": {
                    method: {m: asdict(c[r.row.name]) for m, c in by_metric.items() if r.row.name in c}
                    for method, by_metric in tests.items()
                },
            }
            for r in rows
        ],
    }  # fmt: skip


def write(data: Mapping[str, Any], rows: Sequence[RowResult], text: str, folder: Path) -> None:
    """Write results.json, results.csv (one line per row), pairs.csv (one line per run and test scan) and table.txt.
    Files of these names that someone has changed are kept as NAME.old.

    Args:
        data: content of results.json, from `to_data`.
        rows: results of the rows.
        text: content of table.txt.
        folder: output folder.
    """
    head = ["row", "label", "plan", "runs", *(f"{m}_{w}" for m in METRICS for w in ("mean", "sd")), "missed"]
    lines = [
        [r.row.name, r.row.label, r.plan, len(r.runs), *(v for m in METRICS for v in r.mean_sd(m)),
         sum(run.missed for run in r.runs.values())]
        for r in rows
    ]  # fmt: skip
    pairs = [
        [r.row.name, run.fold, " ".join(run.train), case, *(values[m] for m in METRICS)]
        for r in rows
        for run in r.runs.values()
        for case, values in run.cases.items()
    ]
    texts = {
        "table.txt": text + "\n",
        "results.csv": _csv(head, lines),
        "pairs.csv": _csv(["row", "fold", "training_scans", "test_scan", *METRICS], pairs),
    }
    set_aside(changed_files(folder / "results.json", texts))
    write_signed(folder / "results.json", data, texts)


def _csv(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([["" if isinstance(v, float) and math.isnan(v) else v for v in line] for line in lines])
    return text.getvalue()
