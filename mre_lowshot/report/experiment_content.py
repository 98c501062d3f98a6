"""The content of a report on a table of mre_experiment (results.json)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mre_lowshot.config.plan_files import load_plan, results_folder
from mre_lowshot.errors import UserError
from mre_lowshot.files import read_json
from mre_lowshot.report import facts, stored
from mre_lowshot.report.content import Fact, PaperTable, Picture, Report, Row, TableLine, mean_of
from mre_lowshot.report.model_content import Sources, decisions, fold_cases, folds_of, plan_labels, training

RESULTS = "results.json"
QUICK = "quick version (--quick): fewer iterations, folds and test scans; not a result to report"
MOST_BYTES = 20_000_000  # of a picture


def is_experiment(folder: Path) -> bool:
    """Whether the folder holds the results of a table."""
    content = stored.json_of(folder / RESULTS)
    return "table" in content and isinstance(content.get("rows"), list)


def experiment_report(folder: Path, sources: Sources) -> Report:
    """The report on a table: its rows, and the test scans, curves and decisions of the reference row.

    Raises:
        UserError: results.json is damaged.
    """
    data = stored.table(read_json(folder / RESULTS, "results of an experiment"))
    setting, reference = stored.table(data.get("setting")), stored.text(data.get("reference"))
    rows = tuple(_row(stored.table(row), reference) for row in stored.items(data.get("rows")))
    title = f"{stored.text(data.get('dataset'))}: {stored.text(data.get('table'))}, {stored.text(data.get('title'))}"
    about = [
        ("results", str(folder)),
        ("source", stored.text(data.get("source"))),
        *((name, stored.text(value)) for name, value in setting.items() if name not in ("seed", "quick")),
        ("seeds", ", ".join(map(stored.text, stored.items(data.get("seeds"))))),
        ("reference row", reference),
        ("scans and curves below", f"of row {reference}"),
    ]
    made = Report(
        kind="experiment",
        title=title,
        about=tuple((name, value) for name, value in about if value),
        rows=tuple(row for row in rows if row.dice),
        rows_title=_rows_title(rows, reference),
        warnings=(*([QUICK] if setting.get("quick") is True else []), *_failures(data)),
        paper_table=_paper_table(data.get("layout")),
        pictures=_pictures(folder),
    )
    chosen = next(
        (row for row in map(stored.table, stored.items(data.get("rows"))) if row.get("name") == reference), {}
    )
    named = {"dataset": folder.parent.parent.name, "plan": stored.text(chosen.get("plan"))}
    level = stored.text(chosen.get("level")) or stored.text(setting.get("level"))
    model = results_folder(folder.parents[2], named["dataset"], named["plan"], level)
    numbers = {stored.table(run).get("fold") for run in stored.items(chosen.get("runs"))}
    folds = [fold for fold in folds_of(model) if int(fold.name[5:]) in numbers]
    counted = Fact(
        "runs",
        str(sum(len(row.dice) for row in rows)),
        f"in {len(made.rows)} of {len(rows)} rows; the other figures are those of row {reference}",
    )
    if not folds:
        return replace(made, facts=(counted,))
    try:
        plans = {fold: load_plan(fold / "plans.json") for fold in folds}
    except UserError as problem:
        return replace(made, facts=(counted,), warnings=(*made.warnings, str(problem)))
    labels = plan_labels(next(iter(plans.values())), model)
    cases = fold_cases(plans, labels, sources, named=True)
    trainings = (training(fold, plan, fold.name.replace("_", " ")) for fold, plan in plans.items())
    return replace(
        made,
        labels=labels,
        cases=cases,
        facts=(counted, *facts.headline(cases, labels)),
        trainings=tuple(t for t in trainings if t.iterations),
        decisions=decisions(plans),
    )


def _rows_title(rows: tuple[Row, ...], reference: str) -> str:
    waiting = ", ".join(row.name for row in rows if not row.dice)
    return f"Mean (SD over runs) of each row; difference in Dice to row {reference}" + (
        f". Not run yet: {waiting}" if waiting else ""
    )


def _row(row: Mapping[str, Any], reference: str) -> Row:
    runs = [stored.table(run) for run in stored.items(row.get("runs"))]
    name = stored.text(row.get("name"))
    return Row(
        name,
        stored.text(row.get("label")),
        tuple(stored.number(run.get("Dice")) for run in runs),
        tuple(stored.number(run.get("HD95")) for run in runs),
        tuple(stored.number(run.get("NSD")) for run in runs),
        _difference(row),
        is_reference=name == reference,
    )


def _paper_table(value: object) -> PaperTable | None:
    """The table in the paper's layout; None where there is none, or it is damaged."""
    layout = stored.table(value)
    head = _texts(layout.get("head"))
    lines = [
        TableLine(
            _texts(line.get("cells")),
            printed=line.get("printed") is True,
            best=tuple(n for n in stored.items(line.get("best")) if type(n) is int),
        )
        for line in map(stored.table, stored.items(layout.get("lines")))
    ]
    if not head or any(len(line.cells) not in (1, len(head)) for line in lines):
        return None
    groups = [
        (stored.text(group.get("title")), columns)
        for group in map(stored.table, stored.items(layout.get("groups")))
        if type(columns := group.get("columns")) is int and 0 < columns <= len(head)
    ]
    groups = groups if sum(count for _, count in groups) == len(head) else []
    return PaperTable(stored.text(layout.get("title")), tuple(groups), head, tuple(lines), _texts(layout.get("notes")))


def _texts(value: object) -> tuple[str, ...]:
    return tuple(map(stored.text, stored.items(value)))


def _pictures(folder: Path) -> tuple[Picture, ...]:
    """The pictures that mre_experiment has drawn into the folder."""
    found = []
    for path in sorted(folder.glob("*.png")):
        try:
            if path.is_file() and path.stat().st_size <= MOST_BYTES and not path.is_symlink():
                found.append(Picture(path.stem, path.read_bytes()))
        except OSError:
            continue
    return tuple(p for p in found if p.png.startswith(b"\x89PNG"))


def _difference(row: Mapping[str, Any]) -> str:
    """The difference in Dice to the reference row, with its interval and p value."""
    compared = stored.table(stored.table(stored.table(row.get("against_reference")).get("default")).get("Dice"))
    value, low, high = (stored.number(compared.get(key)) for key in ("difference", "low", "high"))
    if math.isnan(value):
        return ""
    interval = "" if math.isnan(low) else f" [{low:+.4f}, {high:+.4f}]"
    p = stored.number(compared.get("p_corrected"))
    return f"{value:+.4f}{interval}" + ("" if math.isnan(p) else f", p {p:.3g}")


def _failures(data: Mapping[str, Any]) -> tuple[str, ...]:
    found = []
    for row in map(stored.table, stored.items(data.get("rows"))):
        runs = [stored.table(run) for run in stored.items(row.get("runs"))]
        for run in runs:
            reasons = map(stored.text, stored.items(run.get("failed")))
            found += [f"row {stored.text(row.get('name'))}, fold {stored.text(run.get('fold'))}: {r}" for r in reasons]
    return tuple(found)


def spread(values: tuple[float, ...]) -> tuple[float, float]:
    """Mean and standard deviation (ddof 1) of the defined values; NaN where there are too few."""
    defined = [v for v in values if not math.isnan(v)]
    mean = mean_of(defined)
    if len(defined) < 2:
        return mean, math.nan
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in defined) / (len(defined) - 1))
