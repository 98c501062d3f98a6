"""A table as lines of cells, and its forms: text, Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

FORMATS = ("text", "markdown", "latex", "csv", "json")


@dataclass(frozen=True)
class Line:
    """One line of a table.

    Attributes:
        cells: the first one is the title of the line. A heading has no other one.
        printed: figures that the paper prints, not ours.
        best: numbers of the cells to be set in bold.
    """

    cells: tuple[str, ...]
    printed: bool = False
    best: tuple[int, ...] = ()

    @property
    def is_heading(self) -> bool:
        """Whether the line is a heading of those below."""
        return len(self.cells) == 1


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        title: caption.
        groups: of columns, from the left: title and number of columns; empty for one head line only.
        head: titles of the columns.
        lines: of the table.
        notes: below it.
    """

    title: str
    groups: tuple[tuple[str, int], ...]
    head: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()


def text(grid: Grid) -> str:
    """The table in aligned columns."""
    full = [line.cells for line in grid.lines if not line.is_heading]
    widths = [max(len(line[i]) for line in [grid.head, *full]) for i in range(len(grid.head))]
    spans, at = [], 0
    for title, count in grid.groups:
        missing = len(title) - (sum(widths[at : at + count]) + 2 * (count - 1))
        widths[at + count - 1] += max(0, missing)
        spans.append(sum(widths[at : at + count]) + 2 * (count - 1))
        at += count

    def aligned(cells: Sequence[str]) -> str:
        return "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()

    lines = [grid.title]
    if grid.groups:
        titles = zip(grid.groups, spans, strict=True)
        lines.append("  ".join(title.center(span) for (title, _), span in titles).rstrip())
    lines.append(aligned(grid.head))
    lines += [line.cells[0] if line.is_heading else aligned(line.cells) for line in grid.lines]
    return "\n".join([*lines, *grid.notes]) + "\n"


def markdown(grid: Grid) -> str:
    """The table for Markdown. The group of a column is part of its title."""
    groups = [title for title, count in grid.groups for _ in range(count)] or [""] * len(grid.head)
    head = [f"{group}: {name}" if group else name for group, name in zip(groups, grid.head, strict=True)]
    lines = [f"**{_escaped(grid.title)}**", "", _bar(map(_escaped, head)), _bar(["---", *["---:"] * (len(head) - 1)])]
    for line in grid.lines:
        cells = [f"**{_escaped(line.cells[0])}**", *[""] * (len(head) - 1)] if line.is_heading else [
            f"**{_escaped(c)}**" if i in line.best else _escaped(c) for i, c in enumerate(line.cells)
        ]  # fmt: skip
        lines.append(_bar(cells))
    return "\n".join([*lines, *(f"\n{_escaped(note)}" for note in grid.notes)]) + "\n"


def _bar(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


def _escaped(value: str) -> str:
    return re.sub(r"([|*_<>])", r"\\\1", value)


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"$\sim$", "^": r"\^{}", "<": r"$<$", ">": r"$>$",
}  # fmt: skip


def _tex(value: str) -> str:
    return "".join(_LATEX.get(c, c) for c in value)


def _tex_line(cells: Sequence[str]) -> str:
    made = " & ".join(cells) + r" \\"
    return f"{{}}{made}" if made.startswith(("[", "*")) else made  # else an argument of the end of the line before


def latex(grid: Grid) -> str:
    """The table as a LaTeX ``table`` (package booktabs)."""
    columns = len(grid.head)
    lines = [
        r"\begin{table}", r"\centering", rf"\caption{{{_tex(grid.title)}}}",
        rf"\begin{{tabular}}{{l{'r' * (columns - 1)}}}", r"\toprule",
    ]  # fmt: skip
    if grid.groups:
        cells = [rf"\multicolumn{{{count}}}{{c}}{{{_tex(title)}}}" for title, count in grid.groups]
        lines.append(_tex_line(cells))
    lines += [_tex_line([*map(_tex, grid.head)]), r"\midrule"]
    for line in grid.lines:
        if line.is_heading:
            lines.append(rf"\multicolumn{{{columns}}}{{l}}{{\textit{{{_tex(line.cells[0])}}}}} \\")
            continue
        cells = [rf"\textbf{{{_tex(c)}}}" if i in line.best else _tex(c) for i, c in enumerate(line.cells)]
        lines.append(_tex_line(cells))
    lines += [r"\bottomrule", r"\end{tabular}", *(rf"\par\footnotesize {_tex(note)}" for note in grid.notes)]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def to_csv(grid: Grid) -> str:
    """The table as CSV: the title, the groups of the columns where there are any, the head, and the lines. Title and
    headings are lines with one cell."""
    made = io.StringIO()
    writer = csv.writer(made, lineterminator="\n")
    writer.writerow([grid.title])
    if grid.groups:
        writer.writerow([title for title, count in grid.groups for _ in range(count)])
    writer.writerow(grid.head)
    writer.writerows(line.cells for line in grid.lines)
    return made.getvalue()


def to_json(grid: Grid) -> dict[str, Any]:
    """The table as a JSON value."""
    return {
        "title": grid.title,
        "groups": [{"title": title, "columns": count} for title, count in grid.groups],
        "head": list(grid.head),
        "lines": [{"cells": list(n.cells), "printed": n.printed, "best": list(n.best)} for n in grid.lines],
        "notes": list(grid.notes),
    }


def in_format(grid: Grid, name: str) -> str:
    """The table in one of `FORMATS`."""
    if name == "json":
        return json.dumps(to_json(grid), indent=2) + "\n"
    return {"text": text, "markdown": markdown, "latex": latex, "csv": to_csv}[name](grid)
