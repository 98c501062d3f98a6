"""The parts of a report page as HTML. Every text of a record passes through `text`, which escapes it."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from mre_lowshot.files import printable
from mre_lowshot.report import plots
from mre_lowshot.report.content import CaseContent, Label, Report, amount, mean_of
from mre_lowshot.report.experiment_content import spread
from mre_lowshot.report.facts import label_mean, shown

Section = tuple[str, str, str]  # id, title, HTML
_SHOWN_WARNINGS = 12
_KEYS = (
    ("\u2190 \u2192", "previous, next scan"), ("\u2191 \u2193", "slice"), ("Page up, down", "five slices"),
    ("1 2 3 0", "axial, coronal, sagittal, all planes"), ("H", "labels on, off"),
)  # fmt: skip


def text(value: object) -> str:
    """A text of a file, escaped for HTML; bytes that are no UTF-8 are written out."""
    return escape(printable(str(value)))


def sections(report: Report) -> list[Section]:
    """All parts that have content, in their order on the page."""
    found = [
        ("summary", "", _facts(report) + _warnings(report)),
        ("layout", "Table", _paper_table(report)),
        ("table", "Rows", _rows(report)),
        ("pictures", "Figures", _pictures(report)),
        ("cases", "Scans", _viewer(report)),
        ("labels", "Structures", _labels(report)),
        ("calibration", "Estimates and calibration", _calibration(report)),
        ("training", "Training", _training(report)),
        ("plan", "Plan and reasons", _plan(report)),
        ("timing", "Time", _timing(report)),
        ("warnings", "All warnings", _all_warnings(report)),
        ("about", "About", _definitions(report.about)),
    ]
    return [section for section in found if section[2]]


def _facts(report: Report) -> str:
    facts = "".join(
        f'<div class="fact" title="{text(f.note)}">{text(f.name)}<b>{text(f.value)}</b>'
        f"<span>{text(f.note)}</span></div>"
        for f in report.facts
    )
    return f'<div class="facts">{facts}</div>'


def _warnings(report: Report) -> str:
    """What a reader must not miss: failures, and warnings that concern the whole."""
    lines = [_failure(case) for case in report.cases if case.failed] + [*report.warnings]
    if not lines:
        return ""
    more = len(lines) - _SHOWN_WARNINGS
    listed = _list([*lines[:_SHOWN_WARNINGS], *([f"and {more} more, see below"] if more > 0 else [])])
    return f'<div class="alert" role="status"><b>Attention</b>{listed}</div>'


def _failure(case: CaseContent) -> str:
    return f"{f'{case.name} {case.group}'.strip()}: not segmented: {case.failed.removeprefix(f'case {case.name}: ')}"


def _all_warnings(report: Report) -> str:
    lines = [*report.warnings]
    for case in report.cases:
        where = f"{case.name} {case.group}".strip()
        lines += [_failure(case)] if case.failed else []
        lines += [f"{where}: {line}" for line in case.warnings]
        lines += [f"{where}: not shown: {line}" for line in case.missing]
    return _list(lines) if lines else ""


def _viewer(report: Report) -> str:
    if not report.cases:
        return ""
    has_dice = any(not math.isnan(case.mean("Dice")) for case in report.cases)
    by = "mean Dice" if has_dice else "quality score"
    buttons = "".join(_button(number, case, has_dice) for number, case in enumerate(report.cases))
    compared = any(case.images is not None and case.images.reference for case in report.cases)
    kinds = "".join(
        f'<label><input type="checkbox" id="show-{kind}" checked> {kind}</label>'
        for kind in ("prediction", "reference", "difference")
    )
    key = (
        '<p class="note hint"><span class="key missed"></span>missed: in the reference only'
        '<span class="key extra"></span>extra: in the prediction only<span class="key other"></span>another structure; '
        "white lines: the reference</p>"
    )
    keys = " ".join(f"<kbd>{key}</kbd> {what}" for key, what in _KEYS)
    planes = "".join(f'<option value="{p}">{p}</option>' for p in ("all", "axial", "coronal", "sagittal"))
    return f"""
<div id="viewer">
<div class="side">
<input type="search" id="filter" placeholder="Find a scan" aria-label="Find a scan by name">
<div id="list"><div class="head"><span>worst first</span><span>{by}</span></div>{buttons}</div>
<div id="scores"><table><caption class="note">Structures <button type="button" id="all">all</button>
<button type="button" id="none">none</button> <span id="scores-note"></span></caption>
<thead><tr id="scores-head"></tr></thead><tbody id="scores-body"></tbody></table></div>
</div>
<div class="case">
<div class="case-head"><button type="button" id="previous" aria-label="previous scan">\u25c0</button>
<button type="button" id="next" aria-label="next scan">\u25b6</button>
<h3 id="case-name" aria-live="polite"></h3><span class="note" id="case-group"></span></div>
<ul id="findings"></ul>
<div class="controls">
<label>planes <select id="plane">{planes}</select></label>
<fieldset class="{"" if compared else "hidden"}" aria-label="columns">{kinds}</fieldset>
<fieldset aria-label="window">
<select id="preset" aria-label="window preset"><option value="" disabled selected hidden>window</option></select>
<label>level <input type="range" id="level"> <output id="level-value"></output></label>
<label>width <input type="range" id="width"> <output id="width-value"></output> <span id="unit"></span></label>
</fieldset>
<label><input type="checkbox" id="show-labels" checked> labels</label>
<label>fill <input type="range" id="opacity" min="0" max="1" step="0.05" value="0.3"></label>
<label><input type="checkbox" id="show-cross" checked> cross</label>
</div>
<div id="planes"></div>
{key if compared else ""}
<p class="note hint">{keys}. Click: move the cross; wheel: slice; shift and drag: window; double click: one plane;
a structure's name: where it differs most. Images are reduced for this page; judge doubtful cases on the scan.</p>
</div>
</div>
<noscript><p class="alert">The images need JavaScript.</p></noscript>"""


def _button(number: int, case: CaseContent, has_dice: bool) -> str:
    value = case.mean("Dice") if has_dice else case.quality
    score = "failed" if case.failed else "-" if math.isnan(value) else f"{value:.2f}"
    flag = '<span class="flag" title="has warnings">\u26a0</span>' if case.warnings or case.failed else ""
    group = f" \u00b7 {text(case.group)}" if case.group else ""
    name = text(case.name)
    return (
        f'<button type="button" data-case="{number}" title="{name}"><span>{name}{group}</span>{flag}'
        f'<span class="bar"><i></i></span><span>{score}</span></button>'
    )


def _labels(report: Report) -> str:
    if not report.labels or not report.cases:
        return ""
    metrics = report.metrics
    columns = [*metrics, *(["missed", "extra"] if metrics else []), "quality"]
    columns += [f"{name} {amount(report.unit)[0]}" for name in ("predicted", "reference")]
    head = "".join(f"<th>{text(name)}</th>" for name in ("structure", *columns))
    rows = "".join(_label_row(report, label, metrics) for label in report.labels)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    drawn = [
        plots.label_plot(report.cases, report.labels, m, title=f"HD95, {report.unit}" if m == "HD95" else m,
                         highest=None if m == "HD95" else 1.0)
        for m in metrics
    ]  # fmt: skip
    if not metrics:
        drawn = [plots.label_plot(report.cases, report.labels, "quality", title="quality score (estimated)")]
    note = (
        "Means over scans. missed, extra: scans in which only the reference, or only the prediction has the structure."
    )
    note = note if metrics else "Means over scans. There is no reference: quality is an estimate."
    return (
        f'<p class="note">{note} A dot is a scan and leads to it; the line is the mean.</p>{table}'
        f'<div class="plots">{"".join(drawn)}</div>'
    )


def _label_row(report: Report, label: Label, metrics: Sequence[str]) -> str:
    cases, (_, factor) = report.cases, amount(report.unit)
    scores = [score for case in cases for score in case.labels if score.value == label.value]
    cells = [shown(label_mean(cases, label.value, metric), metric) for metric in metrics]
    if metrics:
        cells.append(str(sum(s.reference_ml > 0 and s.volume_ml == 0 for s in scores)))
        cells.append(str(sum(s.reference_ml == 0 and s.volume_ml > 0 for s in scores)))
    cells.append(shown(mean_of(s.quality for s in scores)))
    cells += [_volume(factor * mean_of(volumes)) for volumes in (
        (s.volume_ml for s in scores), (s.reference_ml for s in scores))]  # fmt: skip
    swatch = f'<svg class="swatch" aria-hidden="true"><rect width="11" height="11" fill="{text(label.colour)}"/></svg>'
    return f"<tr><td>{swatch}{text(label.name)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _volume(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _calibration(report: Report) -> str:
    scatter = plots.scatter_plot(report.cases)
    parts = []
    if scatter:
        parts.append(f"<div><h3>Quality score against Dice</h3>{scatter}</div>")
    if report.calibrations:
        plot = plots.calibration_plot(report.calibrations)
        note = "Of voxels around the structures. Above the line: more often right than the probability says."
        parts.append(f'<div><h3>Calibration of the probabilities</h3>{plot}<p class="note">{note}</p></div>')
    return f'<div class="plots">{"".join(parts)}</div>' if parts else ""


def _training(report: Report) -> str:
    if not report.trainings:
        return ""
    head = "<tr><th>fold</th><th>iterations</th><th>time</th><th>status</th><th class='text'>trained on</th></tr>"
    rows = "".join(
        f"<tr><td>{text(t.name)}</td><td>{t.iterations[-1]}</td><td>{_time(t.seconds)}</td>"
        f'<td>{text(t.status or "-")}</td><td class="text">{text(", ".join(t.cases))}</td></tr>'
        for t in report.trainings
    )
    return f"<table>{head}{rows}</table>{plots.training_plot(report.trainings)}"


def _plan(report: Report) -> str:
    parts = []
    for title, listed in report.decisions.items():
        rows = "".join(
            f'<tr><td>{text(d.name)}</td><td class="text">{text(d.value)}</td>'
            f'<td class="text">{text(d.reason)}</td></tr>'
            for d in listed
        )
        parts.append(f"<h3>{text(title)}</h3><table>{rows}</table>" if rows else "")
    if report.plan:
        parts.append(f"<details><summary>The whole plan</summary><pre>{text(report.plan)}</pre></details>")
    return "".join(parts)


def _timing(report: Report) -> str:
    steps = list(dict.fromkeys(step for case in report.cases for step in case.seconds))
    rows = []
    for step in steps:
        values = [case.seconds[step] for case in report.cases if step in case.seconds]
        cells = [float(np.median(values)), min(values), max(values), math.fsum(values)]
        rows.append(f"<tr><td>{text(step)}</td>{''.join(f'<td>{_time(v)}</td>' for v in cells)}</tr>")
    if not rows:
        return ""
    head = "<tr><th>step</th><th>median</th><th>least</th><th>most</th><th>all scans</th></tr>"
    return f'<p class="note">Of the prediction, for each scan.</p><table>{head}{"".join(rows)}</table>'


def _rows(report: Report) -> str:
    if not report.rows:
        return ""
    lines = []
    for row in report.rows:
        cells = [
            "-" if math.isnan(mean) else f"{mean:.{digits}f}" + ("" if math.isnan(sd) else f" ({sd:.{digits}f})")
            for (mean, sd), digits in ((spread(row.dice), 4), (spread(row.hd95), 2), (spread(row.nsd), 4))
        ]
        name = f"<b>{text(row.name)}</b>" if row.is_reference else text(row.name)
        lines.append(
            f'<tr><td>{name}</td><td class="text">{text(row.label)}</td><td>{len(row.dice)}</td><td>{cells[0]}</td>'
            f"<td>{cells[1]}</td><td>{cells[2]}</td><td>{text(row.difference)}</td></tr>"
        )
    head = "".join(
        f"<th{' class=text' if name == 'label' else ''}>{name}</th>"
        for name in (
            "row",
            "label",
            "runs",
            "Dice",
            f"HD95 {report.unit}",
            "NSD",
            "Dice difference [95 %], p corrected",
        )
    )
    drawn = plots.row_plot(report.rows, "Dice", title="Dice of each run")
    if any(not math.isnan(value) for row in report.rows for value in row.nsd):
        drawn += plots.row_plot(report.rows, "NSD", title="NSD of each run")
    drawn += plots.row_plot(report.rows, "HD95", title=f"HD95 of each run, {report.unit}", highest=None)
    return (
        f'<p class="note">{text(report.rows_title)}</p><table><tr>{head}</tr>{"".join(lines)}</table>'
        f'<div class="plots">{drawn}</div>'
    )


def _paper_table(report: Report) -> str:
    """An experiment's table in the paper's layout."""
    if (table := report.paper_table) is None:
        return ""
    width = len(table.head)
    groups = "".join(f'<th colspan="{count}">{text(title)}</th>' for title, count in table.groups)
    head = (f"<tr>{groups}</tr>" if groups else "") + f"<tr>{''.join(f'<th>{text(n)}</th>' for n in table.head)}</tr>"
    lines = []
    for line in table.lines:
        if len(line.cells) == 1:
            lines.append(f'<tr><th class="text" colspan="{width}">{text(line.cells[0])}</th></tr>')
            continue
        cells = [f"<b>{text(c)}</b>" if i in line.best else text(c) for i, c in enumerate(line.cells)]
        kind = ' class="printed"' if line.printed else ""
        lines.append(f"<tr{kind}><td>{'</td><td>'.join(cells)}</td></tr>")
    notes = "".join(f'<p class="note">{text(note)}</p>' for note in table.notes)
    return f'<p>{text(table.title)}</p><div class="wide"><table>{head}{"".join(lines)}</table></div>{notes}'


def _pictures(report: Report) -> str:
    """Pictures as they are in the folder."""
    return "".join(
        f'<figure><img alt="{text(picture.name)}" src="data:image/png;base64,{b64encode(picture.png).decode()}">'
        f"<figcaption>{text(picture.name)}</figcaption></figure>"
        for picture in report.pictures
    )


def _definitions(pairs: Iterable[tuple[str, str]]) -> str:
    rows = "".join(f'<tr><td>{text(name)}</td><td class="text">{text(value)}</td></tr>' for name, value in pairs)
    return f"<table>{rows}</table>" if rows else ""


def _list(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{text(line)}</li>' for line in lines)}</ul>"


def _time(seconds: float) -> str:
    if math.isnan(seconds):
        return "-"
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 120 else f"{seconds:.1f} s"
