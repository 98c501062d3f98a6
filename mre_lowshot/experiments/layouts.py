"""The tables in the paper's layout: our figures, and those that the paper prints, beside or below them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mre_lowshot.data.paper_datasets import KNOWN, plain
from mre_lowshot.evaluation.bus import BUS_METRICS
from mre_lowshot.evaluation.statistics import Method
from mre_lowshot.experiments.grid import Grid, Line
from mre_lowshot.experiments.notes import notes_of
from mre_lowshot.experiments.records import MEAN, MEAN_EXCL, Figure, Reference, Row, Table
from mre_lowshot.experiments.report import comparisons
from mre_lowshot.experiments.results import RowResult, unit_of_rows
from mre_lowshot.experiments.runner import Setting
from mre_lowshot.experiments.significance import image_stars, stars
from mre_lowshot.experiments.table_rows.ultrasound import NAMES

WIDE = 10  # labels above which the methods are the columns
# Abbreviations of the paper -> the place of the structure in `paper_datasets`.
_SHORT = {
    "MRBrainS18": ("GM", "BG", "WM", "WMH", "CSF", "VT", "CB", "BS"),
    "BTCV": ("Spleen", "R.kid.", "L.kid.", "Gallbladder", "Esophagus", "Liver", "Stomach", "Pancreas"),
}
PERCENT, MM, PIXELS = "Dice (%)", "HD95 (mm)", "HD95 (px)"
_NOTE = (
    "Means (SD over runs). * significant difference from {} in this metric (p corrected < .05, statistics {}); rows "
    "trained on other scans are not compared. Lines and columns 'paper': as printed, without its asterisks"
)


@dataclass(frozen=True)
class Content:
    """What a layout shows.

    Attributes:
        table: the table.
        rows: results of its rows.
        dataset: DatasetXXX_Name.
        level: of rows without their own.
        reference: name of the row of the comparison.
        labels: names of the scored labels, in the dataset's order.
        statistics: test and correction behind the asterisks.
    """

    table: Table
    rows: Sequence[RowResult]
    dataset: str
    level: str
    reference: str
    labels: Sequence[str]
    statistics: Method = "default"


def layout(content: Content, *, quick: str = "") -> Grid | None:
    """The table in the layout of the paper; None where it has none there. ``quick`` marks a quick run, in the title."""
    table = content.table
    if not table.layout:
        return None
    made = _LAYOUTS[table.layout](content)
    source = f" ({table.source} of the paper)" if table.source else ""
    title = f"{table.name}{source}: {table.title}. {content.dataset}, {content.level}"
    notes = [*made.notes, *([table.note] if table.note else []), *notes_of(table, content.rows, content.labels)]
    return replace(made, title=title + (f". {quick}" if quick else ""), notes=tuple(notes))


def plain_grid(
    table: Table, rows: Sequence[RowResult], setting: Setting, dataset: str, reference: str, *, quick: str = ""
) -> Grid:
    """A table that the paper does not have: scores of each row, and its difference in Dice to the reference row with
    the 95 % interval.

    Args:
        table: the table.
        rows: results of its rows.
        setting: base and level.
        dataset: DatasetXXX_Name.
        reference: name of the reference row.
        quick: how a quick run differs.
    """
    compared = comparisons(rows, reference, "Dice", "default")
    title = f"{table.name}: {table.title}. {dataset}, {setting.level}, base {setting.base}"
    lines = []
    for r in [r for r in rows if r.runs]:
        c = compared.get(r.row.name)
        difference = "-" if c is None else f"{100 * c.difference:+.2f}"
        interval = "-" if c is None or math.isnan(c.low) else f"[{100 * c.low:+.2f}, {100 * c.high:+.2f}]"
        cells = (r.row.label, str(len(r.runs)), _percent(r.mean_sd("Dice")), _mm(r.mean_sd("HD95")),
                 _percent(r.mean_sd("NSD")), difference, interval)  # fmt: skip
        lines.append(Line(cells))
    head = ("", "runs", PERCENT, _hd95(rows), "NSD (%)", f"Dice - {reference}", "95 % interval")
    note = "Means (SD over runs); intervals by resampling training scans and test scans, means over seeds."
    titled = title + (f". {quick}" if quick else "")
    return Grid(titled, (), head, _bold(lines, {2: True, 3: False, 4: True}), (note,))


def _by_rows(content: Content) -> Grid:
    """Tables II, VI and X: a line for each row, our columns first, then the paper's for each of its datasets."""
    table, level = content.table, content.level
    costs, dice, hd95 = table.costs, _stars(content), _stars(content, "HD95")
    ours = [PERCENT, _hd95(content.rows), *(["memory", "training"] if costs else [])]
    groups = [("", 1 + len(table.marks)), (content.dataset, len(ours))]
    head = ["", *(title for title, _ in table.marks), *ours]
    for name in table.datasets:
        found = dict.fromkeys(f.level for r in content.rows if (f := _printed(r.row, name, level)))
        other = [n for n in found if n != level.partition("_")[0]]  # the paper has the table at one level only
        groups.append((", ".join([f"paper: {name}", *other]), len(ours)))
        head += [PERCENT, MM, *ours[2:]]
    lines = []
    for r in content.rows:
        cells = [f"({r.row.name})" if table.marks else _title(r.row)]
        cells += ["-" if dict(off).items() <= dict(r.row.changes).items() else "x" for _, off in table.marks]
        name = r.row.name
        cells += [dice[name] + _percent(r.mean_sd("Dice")), hd95[name] + _mm(r.mean_sd("HD95"))]
        cells += [_gb(r), _minutes(r.cost(lambda c: c.train_seconds))] if costs else []
        for paper in table.datasets:
            figure = _printed(r.row, paper, level)
            cells += _of_paper(figure)
            cells += [figure.memory or "-", figure.time or "-"] if costs and figure else ["-", "-"] if costs else []
        lines.append(Line(tuple(cells)))
    first = 1 + len(table.marks)
    return Grid("", tuple(groups), tuple(head), _bold(lines, {first: True, first + 1: False}), (_note(content),))


def _by_columns(content: Content) -> Grid:
    """Tables III, IV and V: a column for each row of the table, a line for each figure."""
    table, (paper,) = content.table, content.table.datasets
    dice, hd95 = _stars(content), _stars(content, "HD95")
    lines = [
        Line((f"{PERCENT}, {content.dataset}",
              *(dice[r.row.name] + _percent(r.mean_sd("Dice")) for r in content.rows))),
        Line((f"{_hd95(content.rows)}, {content.dataset}",
              *(hd95[r.row.name] + _mm(r.mean_sd("HD95")) for r in content.rows))),
    ]  # fmt: skip
    if table.costs:
        lines.append(Line((f"memory, {content.dataset}", *map(_gb, content.rows))))
    levels = dict.fromkeys(f.level for r in content.rows for f in r.row.paper if f.dataset == paper)
    for level in levels:
        figures = [_printed(r.row, paper, level) for r in content.rows]
        where = f"paper: {paper}, {level}"
        lines.append(Line((f"{PERCENT}, {where}", *(_of_paper(f)[0] for f in figures)), printed=True))
        lines.append(Line((f"{MM}, {where}", *(_of_paper(f)[1] for f in figures)), printed=True))
        if table.costs:
            lines.append(Line((f"GPU memory, {where}", *(f.memory if f else "-" for f in figures)), printed=True))
    notes = [_note(content)]
    if len(levels) > 1:
        notes.append(f"The paper has this table with {' and '.join(levels)}; --level chooses one.")
    return Grid("", (), ("", *(_title(r.row) for r in content.rows)), tuple(lines), tuple(notes))


def _by_labels(content: Content) -> Grid:
    """Tables VII, VIII and XI: a column for each label, Dice above HD95, the paper's line below ours."""
    table, paper = content.table, content.table.datasets[0]
    columns, same = _columns(content, paper)
    excluded = [name for name in content.labels if plain(name) in table.excluded]
    head = ["", "", *columns, MEAN, *([MEAN_EXCL] if table.excluded else [])]
    lines = []
    for title, metric, form in ((PERCENT, "Dice", _percent), (_hd95(content.rows), "HD95", _mm)):
        lines.append(Line((title,)))
        block, group, marked = [], "", _stars(content, metric)
        for r in content.rows:
            if r.row.group and r.row.group != group:
                group = r.row.group
                block.append(Line((group,)))
            cells = [_title(r.row), "here", *(form(r.mean_sd(metric, name)) for name in columns.values())]
            cells.append(marked[r.row.name] + form(r.mean_sd(metric)))
            if table.excluded:
                cells.append(form(r.mean_sd(metric, without=table.excluded)) if excluded else "-")
            block.append(Line(tuple(cells)))
            if r.row.paper:
                block.append(Line(tuple(_paper_line("", r.row.paper[0], metric, head)), printed=True))
        numbers = range(2, len(head))
        lines += _bold(block, dict.fromkeys(numbers, metric == "Dice"))
        if same:
            for other in table.references:
                values = other.dice_by if metric == "Dice" else other.hd95_by
                lines.append(Line((other.label, "paper", *_cells(values, head)), printed=True))
    notes = [_note(content), *(f"{o.label}: {_listed(o, same)}{o.note}." for o in table.references)]
    grid = Grid("", (), tuple(head), tuple(lines), tuple(notes))
    return _turned(grid) if len(columns) > WIDE else grid


def _listed(other: Reference, same: bool) -> str:
    """The Dice of another work as text, where the table has no columns for it."""
    if same:
        return ""
    return PERCENT + " " + ", ".join(f"{name} {mean:g}" for name, (mean, _) in other.dice_by.items()) + "; "


def _columns(content: Content, paper: str) -> tuple[dict[str, str], bool]:
    """Titles of the label columns with the labels' names. Where the dataset has the structures of the paper's, they
    have its abbreviations and its order; and whether that is so."""
    known = next(groups for groups in KNOWN if groups.dataset == paper)
    found = {}
    for short, names in zip(_SHORT[paper], known.scored, strict=True):
        label = next((name for name in content.labels if plain(name) in names), None)
        if label is not None:
            found[short] = label
    if len(found) == len(known.scored):
        return {**found, **{name: name for name in content.labels if name not in found.values()}}, True
    return {name: name for name in content.labels}, False


def _turned(grid: Grid) -> Grid:
    """A table of many labels with a line for each label and a column for each method."""
    blocks: list[tuple[str, list[Line]]] = []
    for line in grid.lines:
        if line.is_heading and line.cells[0] in (PERCENT, MM, PIXELS):
            blocks.append((line.cells[0], []))
        elif not line.is_heading:
            blocks[-1][1].append(line)
    lines = []
    for title, block in blocks:
        lines.append(Line((title,)))
        for column in range(2, len(grid.head)):
            best = tuple(i + 1 for i, n in enumerate(block) if column in n.best)
            lines.append(Line((grid.head[column], *(n.cells[column] for n in block)), best=best))
    titles, latest = [], ""
    for line in blocks[0][1]:
        latest = line.cells[0] or latest
        titles.append(f"{latest} (paper)" if line.printed else latest)
    return Grid("", (), ("", *titles), tuple(lines), grid.notes)


def _efficiency(content: Content) -> Grid:
    """Table IX: training, inference for each scan, and memory, a column for each method."""
    rows, (paper,) = content.rows, content.table.datasets
    printed = [(f.time if (f := _printed(r.row, paper, "1shot")) else "-, -").split(", ") for r in rows]
    lines = [
        Line((f"training, {content.dataset}", *(_minutes(r.cost(lambda c: c.train_seconds)) for r in rows))),
        Line(
            (
                f"inference per scan, {content.dataset}",
                *(_amount(r.cost(lambda c: c.seconds_per_scan), "s") for r in rows),
            )
        ),
        Line((f"memory in training, {content.dataset}", *map(_gb, rows))),
        Line((f"memory in inference, {content.dataset}", *(_amount(r.cost(lambda c: c.scan_gb), "GB") for r in rows))),
        Line((f"Training (one-shot), paper: {paper}", *(p[0] for p in printed)), printed=True),
        Line((f"Inference (per sample), paper: {paper}", *(p[1] for p in printed)), printed=True),
    ]
    devices = sorted({run.resources.device for r in rows for run in r.runs.values() if run.resources.device})
    note = f"Measured on {', '.join(devices) or '-'}; memory: allocated on a GPU, else resident memory of the process."
    return Grid("", (), ("", *(_title(r.row) for r in rows)), tuple(lines), (note,))


def _ultrasound(content: Content) -> Grid:
    """Table XII: F1, ARE, TP and FP over all test images; ours, and the paper's below."""
    head = ["", "", *(f"{NAMES[m]} (%)" for m in BUS_METRICS)]
    lines, group, marked = [], "", image_stars(content.rows, content.statistics)
    for r in content.rows:
        if r.row.group != group:
            group = r.row.group
            lines.append(Line((group,)))
        values, name = r.bus(), r.row.name
        cells = (marked.get((name, m), "") + _pair(*values[m]) for m in BUS_METRICS)
        lines.append(Line((_title(r.row), "here", *cells)))
        for figure in r.row.paper:
            cells = (_pair(*figure.dice_by[m]) for m in BUS_METRICS)
            lines.append(Line(("", "paper", *cells), printed=True))
    for other in content.table.references:
        lines.append(Line((other.label, "paper", *(_pair(*other.dice_by[m]) for m in BUS_METRICS)), printed=True))
    note = (
        "* significant difference from MRE-Net of the same group, over the test images (p corrected < .05, statistics "
    )
    return Grid("", (), tuple(head), tuple(lines), (f"{note}{content.statistics}).",))


_LAYOUTS = {
    "rows": _by_rows, "columns": _by_columns, "labels": _by_labels, "efficiency": _efficiency,
    "ultrasound": _ultrasound,
}  # fmt: skip


def _title(row: Row) -> str:
    return f"({row.name}) {row.label}" if len(row.name) == 1 else row.label


def _printed(row: Row, dataset: str, level: str) -> Figure | None:
    """The paper's figure of the row: of the level, else its only one."""
    found = [f for f in row.paper if f.dataset == dataset]
    return next((f for f in found if f.level == (row.level or level)), found[0] if len(found) == 1 else None)


def _of_paper(figure: Figure | None) -> list[str]:
    if figure is None:
        return ["-", "-"]
    return [_pair(figure.dice, figure.dice_sd), _pair(figure.hd95, figure.hd95_sd)]


def _paper_line(title: str, figure: Figure, metric: str, head: Sequence[str]) -> list[str]:
    values = figure.dice_by if metric == "Dice" else figure.hd95_by
    mean = (figure.dice, figure.dice_sd) if metric == "Dice" else (figure.hd95, figure.hd95_sd)
    return [title, "paper", *_cells({**values, MEAN: mean}, head)]


def _cells(values: Mapping[str, tuple[float, float]], head: Sequence[str]) -> list[str]:
    return [_pair(*values[name]) if name in values else "-" for name in head[2:]]


def _stars(content: Content, metric: str = "Dice") -> dict[str, str]:
    return stars(content.rows, content.reference, metric, content.statistics)


def _bold(lines: Sequence[Line], columns: Mapping[int, bool]) -> tuple[Line, ...]:
    """``lines`` with the best of our values in each of ``columns`` (number -> whether the highest is best) in bold,
    within each group."""
    made, start = list(lines), 0
    ends = [i for i, line in enumerate(lines) if line.is_heading] + [len(lines)]
    for end in ends:
        block = [i for i in range(start, end) if not lines[i].is_heading and not lines[i].printed]
        for column, highest in columns.items():
            values = {i: v for i in block if not math.isnan(v := _value(lines[i].cells[column]))}
            if len(values) > 1:
                best = (max if highest else min)(values, key=lambda i: values[i])
                made[best] = replace(made[best], best=(*made[best].best, column))
        start = end
    return tuple(made)


def _value(cell: str) -> float:
    try:
        return float(cell.lstrip("*").split(" ")[0])
    except ValueError:
        return math.nan


def _note(content: Content) -> str:
    return _NOTE.format(content.table.row(content.reference).label, content.statistics) + "."


def _pair(mean: float, sd: float) -> str:
    if math.isnan(mean):
        return "-"
    return f"{mean:.2f} ({'-' if math.isnan(sd) else f'{sd:.2f}'})"


def _percent(pair: tuple[float, float]) -> str:
    return _pair(100 * pair[0], 100 * pair[1])


def _hd95(rows: Sequence[RowResult]) -> str:
    """The title of HD95; the paper's own figures are in mm."""
    return PIXELS if unit_of_rows(rows) == "px" else MM


def _mm(pair: tuple[float, float]) -> str:
    return _pair(*pair)


def _gb(row: RowResult) -> str:
    return _amount(row.cost(lambda c: c.train_gb), "GB")


def _minutes(seconds: float) -> str:
    return _amount(seconds / 60, "min")


def _amount(value: float, unit: str) -> str:
    return "-" if math.isnan(value) else f"{value:.2f} {unit}"
