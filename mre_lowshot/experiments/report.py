"""Results of an experiment table: collection from the summaries of the folds, comparison, output as JSON and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mre_lowshot.evaluation import statistics
from mre_lowshot.experiments.grid import Grid, latex, markdown, to_csv, to_json
from mre_lowshot.experiments.records import Table
from mre_lowshot.experiments.results import METRICS, RowResult, RunKey, mean
from mre_lowshot.experiments.runner import Setting
from mre_lowshot.signed import changed_files, set_aside, write_signed


def common_runs(row: RowResult, reference: RowResult) -> dict[int, list[RunKey]]:
    """The runs that both rows have and that were trained on the same scans (the split may have changed between
    trainings), by fold."""
    found: dict[int, list[RunKey]] = {}
    for key in row.runs:
        if key in reference.runs and row.runs[key].train == reference.runs[key].train:
            found.setdefault(key[1], []).append(key)
    return found


def differences(row: RowResult, reference: RowResult, metric: str) -> tuple[list[float], np.ndarray]:
    """Differences of ``metric``, row minus reference, over their common folds; the mean over seeds.

    Returns:
        One value per fold, and an array (folds, test scans) with NaN where a scan was not tested in both runs.
    """
    folds = common_runs(row, reference)
    scans = sorted({name for keys in folds.values() for key in keys for name in row.runs[key].cases})
    values, pairs = [], np.full((len(folds), len(scans)), np.nan)
    for i, keys in enumerate(folds.values()):
        values.append(mean([row.runs[k].value[metric] - reference.runs[k].value[metric] for k in keys]))
        both = [(row.runs[k].cases, reference.runs[k].cases) for k in keys]
        for j, name in enumerate(scans):
            pairs[i, j] = mean(
                [one[name][metric] - two[name][metric] for one, two in both if {name} <= one.keys() & two]
            )
    return values, pairs


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
    others = [r for r in rows if r is not base and common_runs(r, base)]
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
    *,
    seeds: Sequence[int] = (0,),
    grid: Grid | None = None,
) -> dict[str, Any]:
    """The content of results.json: the table, its rows, runs and comparisons.

    Args:
        table: the table.
        rows: results of its rows.
        setting: base, level, iterations and seed.
        dataset: dataset name.
        reference: name of the reference row.
        labels: names of the scored labels; None for all.
        seeds: of the runs.
        grid: the table in the paper's layout.
    """
    tests = {method: {m: comparisons(rows, reference, m, method) for m in METRICS} for method in ("default", "paper")}
    return {
        "table": table.name, "title": table.title, "source": table.source, "dataset": dataset,
        "setting": asdict(setting), "seeds": list(seeds),
        "reference": reference, "labels": list(labels) if labels else "all",
        "rows": [
            {
                "name": r.row.name, "label": r.row.label, "plan": r.plan,
                "recipe": "" if r.row.baseline else r.row.recipe_at(setting.base), "baseline": r.row.baseline,
                "level": setting.level_of(r.row),
                "changes": dict(r.row.changes), "scaled": dict(r.row.scaled),
                "paper": [asdict(figure) for figure in r.row.paper],
                **{m: dict(zip(("mean", "sd"), r.mean_sd(m), strict=True)) for m in METRICS},
                "runs": [
                    {"fold": run.fold, "seed": run.seed, "train": run.train, "iterations": run.iterations,
                     "missed": run.missed, "failed": run.failed, **run.value, "labels": run.labels,
                     "resources": asdict(run.resources)}
                    for run in r.runs.values()
                ],
                "against_reference": {
                    method: {m: asdict(c[r.row.name]) for m, c in by_metric.items() if r.row.name in c}
                    for method, by_metric in tests.items()
                },
            }
            for r in rows
        ],
        "layout": None if grid is None else to_json(grid),
    }  # fmt: skip


def write(
    data: Mapping[str, Any], rows: Sequence[RowResult], text: str, folder: Path, *, grid: Grid | None = None
) -> None:
    """Write results.json, results.csv (one line per row), pairs.csv (one line per run and test scan) and table.txt;
    with a ``grid`` also table.md, table.tex and table.csv, the table in the paper's layout. Files of these names that
    someone has changed are kept as NAME.old.

    Args:
        data: content of results.json, from `to_data`.
        rows: results of the rows.
        text: content of table.txt.
        folder: output folder.
        grid: the table in the paper's layout.
    """
    head = ["row", "label", "plan", "runs", *(f"{m}_{w}" for m in METRICS for w in ("mean", "sd")), "missed"]
    head += ["train_seconds", "train_gb", "scan_seconds"]
    lines = [
        [r.row.name, r.row.label, r.plan, len(r.runs), *(v for m in METRICS for v in r.mean_sd(m)),
         sum(run.missed for run in r.runs.values()), r.cost(lambda c: c.train_seconds), r.cost(lambda c: c.train_gb),
         r.cost(lambda c: c.seconds_per_scan)]
        for r in rows
    ]  # fmt: skip
    pairs = [
        [r.row.name, run.folder.parent.name, run.seed, run.fold, " ".join(run.train), case,
         *(values[m] for m in METRICS)]
        for r in rows
        for run in r.runs.values()
        for case, values in run.cases.items()
    ]  # fmt: skip
    texts = {
        "table.txt": text + "\n",
        "results.csv": _csv(head, lines),
        "pairs.csv": _csv(["row", "model", "seed", "fold", "training_scans", "test_scan", *METRICS], pairs),
    }
    if grid is not None:
        texts |= {"table.md": markdown(grid), "table.tex": latex(grid), "table.csv": to_csv(grid)}
    set_aside(changed_files(folder / "results.json", texts))
    write_signed(folder / "results.json", data, texts)


def _csv(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([["" if isinstance(v, float) and math.isnan(v) else v for v in line] for line in lines])
    return text.getvalue()
