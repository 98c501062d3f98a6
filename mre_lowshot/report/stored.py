"""Values of files that a report reads (run.json, summary.json, tables), whatever they hold: a page is made of what has
the expected form, and the rest is left out."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mre_lowshot.data.colours import palette_colour
from mre_lowshot.data.label_table import DSEG
from mre_lowshot.errors import UserError
from mre_lowshot.files import read_json
from mre_lowshot.inference.quality import read_rows
from mre_lowshot.inference.record import read_record

MOST_TEXT = 2000  # letters of a sentence
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}\Z")


def number(value: object) -> float:
    """A number; NaN for anything else."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def text(value: object) -> str:
    """A text of at most `MOST_TEXT` letters; empty for anything that is neither text nor number."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:g}" if isinstance(value, float) else str(value)
    return value[:MOST_TEXT] if isinstance(value, str) else ""


def table(value: object) -> Mapping[str, Any]:
    """A JSON object; an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def items(value: object) -> list[Any]:
    """A JSON list; an empty one for anything else."""
    return value if isinstance(value, list) else []


def json_of(path: Path) -> Mapping[str, Any]:
    """The object of a JSON file; an empty one where the file is missing or another."""
    try:
        return table(read_json(path, "file"))
    except UserError:
        return {}


def lines_of(path: Path) -> Iterator[Mapping[str, Any]]:
    """The objects of a file of JSON lines."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                yield table(json.loads(line))
            except (ValueError, RecursionError):
                continue


def quality_rows(folder: Path) -> tuple[dict[str, dict[str, str]], list[str]]:
    """The rows of all quality tables of a folder, by case, and what cannot be read."""
    rows: dict[str, dict[str, str]] = {}
    problems = []
    for path in sorted(folder.glob("quality*.csv")):
        try:
            rows |= read_rows(path)
        except UserError as problem:
            problems.append(str(problem))
    return rows, problems


def unreadable_records(folder: Path) -> list[str]:
    """What cannot be read of the records of predictions in a folder."""
    paths = [folder / "run.json", *sorted(folder.glob("run_part*.json"))]
    return [
        f"{path}: is damaged, or not a record of mre_predict; scans, times and warnings of its cases are not known"
        for path in paths
        if path.is_file() and read_record(path) is None
    ]


def cell(row: Mapping[str, str], column: str) -> float:
    """A number of a table's row; NaN where there is none."""
    try:
        return float(row.get(column) or "nan")
    except ValueError:
        return math.nan


def label_table(folder: Path) -> list[tuple[int, str, str]]:
    """Value, name and colour of the labels in the dseg.tsv of a folder; none where there is no such table."""
    path = folder / DSEG
    found: list[tuple[int, str, str]] = []
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (UnicodeDecodeError, csv.Error):
        return []
    for row in rows:
        index, colour = str(row.get("index")), str(row.get("color"))
        if index.isdecimal() and len(index) < 10:
            fitting = colour if _COLOUR.match(colour) else palette_colour(len(found))
            found.append((int(index), str(row.get("name") or index), fitting))
    return found
