"""Tables as text: means over runs, the figures of the paper, and differences to the reference row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mre_lowshot.evaluation import statistics
from mre_lowshot.experiments.figures import figure_listing
from mre_lowshot.experiments.report import comparisons, differences
from mre_lowshot.experiments.results import RowResult, unit_of_rows
from mre_lowshot.experiments.runner import Setting
from mre_lowshot.experiments.tables import TABLES, Figure, Row, Table

METHODS: tuple[statistics.Method, ...] = ("default", "paper")


def listing() -> str:
    """A list of all tables and their rows, and of the figures."""
    lines = []
    for table in TABLES.values():
        lines.append(f"{table.name}: {table.title}" + (f" (paper: {table.source})" if table.source else ""))
        for row in table.rows:
            mark = " *" if row.name == table.reference else ""
            changes = [f"{k}={v}" for k, v in row.changes.items()] + [f"{k} x {v:g}" for k, v in row.scaled.items()]
            changes += [f"recipe {row.recipe}"] * (row.recipe != "paper")
            changes += [f"baseline {row.baseline}"] * bool(row.baseline)
            changes += [f"level {row.level}"] * bool(row.level)
            only = f" (--base {row.base} only)" if row.base else ""
            lines.append(f"  {row.name + mark:18} {row.label}{only}: {', '.join(changes) or 'no change'}")
    return "\n".join([*lines, "* reference row", *figure_listing()])


def format_rows(
    table: Table,
    rows: Sequence[RowResult],
    setting: Setting,
    dataset: str,
    reference: str,
    method: statistics.Method,
    *,
    quick: str = "",
) -> str:
    """The table as text: results of the rows, comparison with the reference row, and a legend.

    Args:
        table: the table.
        rows: results of its rows.
        setting: base and level.
        dataset: dataset name.
        reference: name of the reference row.
        method: tests and correction, see `statistics.compare`.
        quick: how a quick run differs; empty for another.
    """
    iterations = sorted({run.iterations for r in rows for run in r.runs.values() if run.iterations})
    size = "small (CPU size)" if setting.base == "small" else "paper (the paper's size)"
    head = f"{table.name}: {table.title}. {dataset}, {setting.level}, base {size}"
    if iterations:
        head += f", {' / '.join(map(str, iterations))} iterations"
    seeds = sorted({run.seed for r in rows for run in r.runs.values()})
    if len(seeds) > 1:
        head += f", seeds {', '.join(map(str, seeds))} (averaged in each fold's difference)"
    parts = [head, quick, _results(rows, setting.level)]
    parts.append(_compared(rows, reference, method))
    not_run = [r.row.name for r in rows if not r.runs]
    if not_run:
        parts.append(f"no run yet: {', '.join(not_run)}")
    for r in rows:
        parts += [f"row {r.row.name}, not scored: {reason}" for run in r.runs.values() for reason in run.failed]
    note = (
        "mean (SD over runs). Dice and NSD are means over labels (0 to 1), HD95 in "
        f"{'pixels' if unit_of_rows(rows) == 'px' else 'mm'}; NSD: at a tolerance of the "
        "longest voxel side; n: runs; missed: structures without any predicted voxel (no HD95)."
    )
    if any(row.paper for row in table.rows):
        note += f" Paper: {table.source}, Dice in %; its data and network size differ: compare levels, not digits."
    parts.append(note)
    return "\n".join(part for part in parts if part)


def format_overview(found: Mapping[str, Sequence[RowResult]], reference: str, *, quick: str = "") -> str:
    """One line per row and one column per dataset: Dice, and in brackets the mean difference to the reference row.

    The difference is over the runs that both rows have. ``found`` maps dataset names to results of the rows.
    """
    names = list(dict.fromkeys(r.row.name for rows in found.values() for r in rows if r.runs))
    lines = [["row", *found]]
    for name in names:
        cells = []
        for rows in found.values():
            row = next((r for r in rows if r.row.name == name and r.runs), None)
            base = next((r for r in rows if r.row.name == reference), None)
            cell = "-"
            if row is not None:
                cell = f"{row.mean_sd('Dice')[0]:.4f}"
                differ = differences(row, base, "Dice")[0] if base is not None and name != reference else []
                cell += f" ({sum(differ) / len(differ):+.4f}, n {len(differ)})" if differ else f" (n {len(row.runs)})"
            cells.append(cell)
        lines.append([name, *cells])
    title = f"all datasets: Dice (difference to row {reference} over n common runs)"
    return "\n".join([title, *([quick] if quick else []), _aligned(lines, left=1)])


def _results(rows: Sequence[RowResult], level: str) -> str:
    papers = sorted({f.dataset for r in rows for f in r.row.paper if _shown(f, r.row, level)}, reverse=True)
    head = ["row", "label", "n", "Dice", f"HD95 {unit_of_rows(rows)}", "NSD", "missed"]
    head += [f"{d}: {m}" for d in papers for m in ("Dice", "HD95")]
    lines = [head]
    for r in rows:
        printed = {f.dataset: f for f in r.row.paper if _shown(f, r.row, level)}
        if not r.runs and not printed:
            continue  # the line "no run yet" names it
        figures = []
        for name in papers:
            figure = printed.get(name)
            figures += ["-", "-"] if figure is None else [
                f"{figure.dice:.2f} ({figure.dice_sd:.2f})", f"{figure.hd95:.2f} ({figure.hd95_sd:.2f})",
            ]  # fmt: skip
        missed = str(sum(run.missed for run in r.runs.values())) if r.runs else "-"
        cells = [_mean_sd(r.mean_sd("Dice"), 4), _mean_sd(r.mean_sd("HD95"), 2), _mean_sd(r.mean_sd("NSD"), 4)]
        lines.append([r.row.name, r.row.label, str(len(r.runs)), *cells, missed, *figures])
    return _aligned(lines)


def _shown(figure: Figure, row: Row, level: str) -> bool:
    return figure.level == (row.level or level.partition("_")[0]) and not math.isnan(figure.hd95)


def _compared(rows: Sequence[RowResult], reference: str, method: statistics.Method) -> str:
    dice, hd95, nsd = (comparisons(rows, reference, metric, method) for metric in ("Dice", "HD95", "NSD"))
    if not dice:
        return ""
    lines = [["row", f"Dice - {reference}", "95 % interval", "pairs", "p", "p corrected",
              f"HD95 {unit_of_rows(rows)}", "95 % interval", "p corrected",
              "NSD", "95 % interval", "p corrected"]]  # fmt: skip
    for r in rows:
        name = r.row.name
        if name in dice:
            d, h, n = dice[name], hd95[name], nsd[name]
            lines.append(
                [name, _signed(d.difference, 4), _interval(d, 4), str(d.pairs), _p(d.p), _p(d.p_corrected),
                 _signed(h.difference, 2), _interval(h, 2), _p(h.p_corrected),
                 _signed(n.difference, 4), _interval(n, 4), _p(n.p_corrected)]
            )  # fmt: skip
    runs = max(c.runs for c in dice.values())
    note = statistics.explain(method, len(dice), runs)
    return "\n".join(
        [
            f"against row {reference}, over common runs:",
            _aligned(lines, left=1),
            note + " (Dice, HD95 and NSD are separate families).",
            "intervals: bootstrap over (training scan x test scan) pairs"
            + ("; only one training scan, so they do not cover other training scans" if runs == 1 else ""),
        ]
    )


def _mean_sd(pair: tuple[float, float], digits: int) -> str:
    mean, sd = pair
    if math.isnan(mean):
        return "-"
    return f"{mean:.{digits}f}" + ("" if math.isnan(sd) else f" ({sd:.{digits}f})")


def _signed(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:+.{digits}f}"


def _interval(c: statistics.Comparison, digits: int) -> str:
    return "-" if math.isnan(c.low) else f"[{c.low:+.{digits}f}, {c.high:+.{digits}f}]"


def _p(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"


def _aligned(lines: Sequence[Sequence[str]], left: int = 2) -> str:
    """``lines`` in aligned columns, the first ``left`` of them left-aligned, the others right-aligned."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    )
