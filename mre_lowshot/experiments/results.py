"""What the rows of a table gave: read from the summaries of their folds."""

from __future__ import annotations

import math
import statistics as plain_statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mre_lowshot.config.plan_files import load_plan
from mre_lowshot.data.paper_datasets import plain
from mre_lowshot.data.pixel_size import UNIT_KEY, Unit, common_unit, unit_of
from mre_lowshot.errors import UserError
from mre_lowshot.evaluation.bus import BUS_METRICS
from mre_lowshot.experiments.records import Row
from mre_lowshot.experiments.resources import Resources
from mre_lowshot.experiments.runner import Setting, summary_path
from mre_lowshot.files import read_json

METRICS = ("Dice", "HD95", "NSD")
RunKey = tuple[int, int]  # seed, fold


@dataclass(frozen=True)
class Run:
    """The results of one fold of one row. NaN: undefined."""

    fold: int
    train: tuple[str, ...]  # training scans
    seed: int
    value: dict[str, float]  # metric -> mean over labels of the means over test scans, as mre_train prints it
    cases: dict[str, dict[str, float]]  # test scan -> metric -> mean over labels
    missed: int  # structures of which no voxel was predicted
    iterations: int  # 0: those of a baseline
    failed: tuple[str, ...] = ()  # reasons of scans that could not be scored
    labels: dict[str, dict[str, float]] = field(default_factory=dict)  # metric -> label -> mean over test scans
    resources: Resources = field(default_factory=Resources)
    folder: Path = Path()  # of the fold
    inputs: Mapping[str, str] = field(default_factory=dict)  # case -> hash of what was trained on and scored
    crop_given: bool = False  # whether the hashes cover boxes of crops.json
    unit: Unit = "mm"  # of HD95
    unlabelled: int | None = None  # scans of which a baseline used the image alone; None: not known


@dataclass(frozen=True)
class RowResult:
    """The runs of a row."""

    row: Row
    plan: str  # name of the row's plan, of the first seed
    runs: dict[RunKey, Run]

    def values(self, metric: str, label: str | None = None, without: Sequence[str] = ()) -> list[float]:
        """The defined values of ``metric``, one per run: of a label, or the mean over labels (without the labels of
        these names)."""
        found = []
        for run in self.runs.values():
            by_label = run.labels.get(metric, {})
            if label is not None:
                value = by_label.get(label, math.nan)
            elif without:
                value = mean([v for name, v in by_label.items() if plain(name) not in without])
            else:
                value = run.value[metric]
            if not math.isnan(value):
                found.append(value)
        return found

    def mean_sd(self, metric: str, label: str | None = None, without: Sequence[str] = ()) -> tuple[float, float]:
        """Mean and standard deviation over runs (ddof 1; NaN for fewer than two)."""
        return mean_sd(self.values(metric, label, without))

    def cost(self, value: Callable[[Resources], float]) -> float:
        """The mean over runs of what was measured; NaN where nothing was."""
        return mean([value(run.resources) for run in self.runs.values() if run.resources.runs])

    def bus(self) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation over all test images of the metrics of breast ultrasound, %."""
        values: dict[str, list[float]] = {name: [] for name in BUS_METRICS}
        for run in self.runs.values():
            for metrics in bus_of(run).values():
                for name in BUS_METRICS:
                    values[name].append(100 * metrics[name])
        return {name: mean_sd([v for v in found if not math.isnan(v)]) for name, found in values.items()}


def unit_of_rows(rows: Sequence[RowResult]) -> Unit:
    """The unit of HD95 in a table."""
    return common_unit(run.unit for row in rows for run in row.runs.values())


def mean_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and standard deviation (ddof 1); NaN where there are too few values."""
    return mean(values), plain_statistics.stdev(values) if len(values) > 1 else math.nan


def mean(values: Sequence[float | None]) -> float:
    """The mean of the defined values; NaN where there is none."""
    defined = [v for v in values if v is not None and not math.isnan(v)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def collect(
    rows: Sequence[Row],
    settings: Sequence[Setting],
    results: Path,
    dataset: str,
    folds: Sequence[int] | None,
    labels: Sequence[str] | None = None,
) -> list[RowResult]:
    """Read the existing runs of the rows.

    Args:
        rows: rows to read.
        settings: of the runs, one for each seed; a run with another seed than its plan's name claims is left out.
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
        runs = {}
        for setting in settings:
            name, level = setting.plan_of(row), setting.level_of(row)
            model = summary_path(results, dataset, name, level, 0).parents[2]
            for fold in sorted(int(p.name[5:]) for p in model.glob("fold_*") if p.name[5:].isdigit()):
                path = summary_path(results, dataset, name, level, fold)
                if path.is_file() and (folds is None or fold in folds):
                    run = _run(path, fold, labels)
                    if run.seed == setting.seed:
                        runs[(setting.seed, fold)] = run
        collected.append(RowResult(row, settings[0].plan_of(row), runs))
    return collected


def _run(path: Path, fold: int, labels: Sequence[str] | None) -> Run:
    summary = read_json(path, "summary of a fold")
    numbers = summary["labels"]
    for name in labels or ():
        if name not in numbers:
            raise UserError(f"--labels: {name!r} is not a label of {path.parents[3].name}; labels are {list(numbers)}")
    chosen = {name: str(numbers[name]) for name in (labels or numbers)}
    keys = list(chosen.values())
    cases = {
        case["case"]: {m: mean([case["metrics"][k].get(m) for k in keys]) for m in METRICS}
        for case in summary["metric_per_case"]
    }
    plan = load_plan(path.parents[1] / "plans.json")
    return Run(
        fold=fold,
        train=plan.fold.train if plan.fold else (),
        seed=plan.fold.seed if plan.fold else 0,
        value={m: mean([summary["mean"][k].get(m) for k in keys]) for m in METRICS},
        cases=cases,
        missed=sum(summary["missed_structures"][k] for k in keys),
        iterations=0 if "baseline" in summary else plan.recipe.optimizer.iterations,
        failed=tuple(summary["failed_cases"].values()),
        labels={m: {name: mean([summary["mean"][k].get(m)]) for name, k in chosen.items()} for m in METRICS},
        resources=Resources.load(path.parents[1]),
        folder=path.parents[1],
        inputs=inputs if isinstance(inputs := summary.get("inputs"), dict) else {},
        crop_given=plan.preprocessing.crop == "given",
        unit=unit_of(summary.get(UNIT_KEY)),
        unlabelled=_unlabelled(summary.get("learned_from"), plan.fold.train if plan.fold else ()),
    )


def _unlabelled(learned_from: object, train: Sequence[str]) -> int | None:
    return len(set(learned_from) - set(train)) if isinstance(learned_from, list) else None


def bus_of(run: Run) -> dict[str, Mapping[str, float]]:
    """The metrics of breast ultrasound of each test image of a run: the mean over its labels. None of volumes."""
    summary: dict[str, Any] = read_json(run.folder / "validation" / "summary.json", "summary of a fold")
    numbers = summary.get("labels", {})
    chosen = {str(numbers[name]) for name in next(iter(run.labels.values()), ()) if name in numbers}
    return {
        case["case"]: {
            name: mean([row[name] for n, row in case["bus"].items() if not chosen or n in chosen])
            for name in BUS_METRICS
        }
        for case in summary["metric_per_case"]
        if case.get("bus")
    }
