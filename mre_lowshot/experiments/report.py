"""What a table came to: read back from the folds' summaries, compared, written as JSON, CSV and text."""

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

from mre_lowshot.errors import UserError
from mre_lowshot.evaluation import statistics
from mre_lowshot.experiments.runner import Setting, summary_path
from mre_lowshot.experiments.tables import Row, Table, plan_name
from mre_lowshot.files import read_json, write_json, write_text
from mre_lowshot.plans import load_plan

METRICS = ("Dice", "HD95")


@dataclass(frozen=True)
class Run:
    """One fold of one row: ``value`` a metric's mean over labels (each label's mean over test scans, as mre_train
    prints it), ``cases`` test scan -> metric -> mean over labels; NaN undefined. ``missed``: structures not found;
    ``failed``: scans that could not be scored, with the reason."""

    fold: int
    train: tuple[str, ...]
    seed: int
    value: dict[str, float]
    cases: dict[str, dict[str, float]]
    missed: int
    iterations: int
    failed: tuple[str, ...] = ()


@dataclass(frozen=True)
class RowResult:
    """A row's runs, by fold."""

    row: Row
    plan: str
    runs: dict[int, Run]

    def values(self, metric: str) -> list[float]:
        return [v for run in self.runs.values() if not math.isnan(v := run.value[metric])]

    def mean_sd(self, metric: str) -> tuple[float, float]:
        """Mean and standard deviation (ddof 1; NaN with one run) over the runs."""
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
    """The runs with the setting's seed that are there; ``folds`` None takes all. ``labels`` scores these labels only.

    Raises:
        UserError: ``labels`` names a label that the dataset has not.
    """  # fmt: skip
    made = []
    for row in rows:
        name = plan_name(row, setting.base, setting.iterations)
        model = summary_path(results, dataset, name, setting.level, 0).parents[2]
        there = sorted(int(p.name[5:]) for p in model.glob("fold_*") if p.name[5:].isdigit())
        runs = {}
        for fold in there:
            path = summary_path(results, dataset, name, setting.level, fold)
            if path.is_file() and (folds is None or fold in folds):
                run = _run(path, fold, labels)
                if run.seed == setting.seed:
                    runs[fold] = run
        made.append(RowResult(row, name, runs))
    return made


def _run(path: Path, fold: int, labels: Sequence[str] | None) -> Run:
    summary = read_json(path, "summary of a fold")
    numbers = summary["labels"]
    for name in labels or ():
        if name not in numbers:
            raise UserError(f"--labels: {name!r} is no label of {path.parents[3].name}; labels are {list(numbers)}")
    keys = [str(numbers[name]) for name in (labels or numbers)]
    cases = {
        case["case"]: {m: _mean([case["metrics"][k][m] for k in keys]) for m in METRICS}
        for case in summary["metric_per_case"]
    }
    plan = load_plan(path.parents[1] / "plans.json")
    return Run(
        fold=fold,
        train=plan.fold.train if plan.fold else (),
        seed=plan.fold.seed if plan.fold else 0,
        value={m: _mean([summary["mean"][k][m] for k in keys]) for m in METRICS},
        cases=cases,
        missed=sum(summary["missed_structures"][k] for k in keys),
        iterations=plan.recipe.iterations,
        failed=tuple(summary["failed_cases"].values()),
    )


def _mean(values: Sequence[float | None]) -> float:
    defined = [v for v in values if v is not None and not math.isnan(v)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def common_folds(row: RowResult, reference: RowResult) -> list[int]:
    """Folds that both rows have and that trained on the same scans (a split may have been made again in between)."""
    both = [fold for fold in row.runs if fold in reference.runs]
    return [fold for fold in both if row.runs[fold].train == reference.runs[fold].train]


def differences(row: RowResult, reference: RowResult, metric: str) -> tuple[list[float], np.ndarray]:
    """Row minus reference: one number a common run, and one a (run, test scan) pair (NaN where there is none)."""
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
    """Every other row that has runs in common with the reference row, by name; they are one family."""
    base = next((r for r in rows if r.row.name == reference and r.runs), None)
    if base is None:
        return {}
    others = [r for r in rows if r is not base and common_folds(r, base)]
    both = [differences(r, base, metric) for r in others]
    made = statistics.compare([d for d, _ in both], [p for _, p in both], method)
    return {r.row.name: c for r, c in zip(others, made, strict=True)}


def to_data(
    table: Table,
    rows: Sequence[RowResult],
    setting: Setting,
    dataset: str,
    reference: str,
    labels: Sequence[str] | None,
) -> dict[str, Any]:
    """Everything about the table as plain data, for results.json."""
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
    """results.json, results.csv (a line a row), pairs.csv (a line a training and test scan), table.txt."""
    write_json(folder / "results.json", dict(data))
    write_text(folder / "table.txt", text + "\n")
    head = ["row", "label", "plan", "runs", *(f"{m}_{w}" for m in METRICS for w in ("mean", "sd")), "missed"]
    lines = [
        [r.row.name, r.row.label, r.plan, len(r.runs), *(v for m in METRICS for v in r.mean_sd(m)),
         sum(run.missed for run in r.runs.values())]
        for r in rows
    ]  # fmt: skip
    write_text(folder / "results.csv", _csv(head, lines))
    pairs = [
        [r.row.name, run.fold, " ".join(run.train), case, *(values[m] for m in METRICS)]
        for r in rows
        for run in r.runs.values()
        for case, values in run.cases.items()
    ]
    write_text(folder / "pairs.csv", _csv(["row", "fold", "training_scans", "test_scan", *METRICS], pairs))


def _csv(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    made = csv.writer(text, lineterminator="\n")
    made.writerow(head)
    made.writerows([["" if isinstance(v, float) and math.isnan(v) else v for v in line] for line in lines])
    return text.getvalue()
