"""Pairs that the user states in a file."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mre_lowshot.data.importing.channels import Unit
from mre_lowshot.data.importing.sources import LabelMap, Scan, Source
from mre_lowshot.errors import UserError
from mre_lowshot.files import read_json

_COLUMNS = ("scan", "label", "case")
_LARGEST = 8 << 20
_EXAMPLE = "write the columns scan,label (and case, for a case name), one pair a line"
AnySource = TypeVar("AnySource", bound=Source)


@dataclass(frozen=True)
class Stated:
    """A line of the file: a scan (name, path, or UID of its series), a label map, and perhaps a case name."""

    scan: str
    label: str
    case: str = ""


def read_pairs(path: Path) -> list[Stated]:
    """The pairs of a CSV file, or of a JSON file with a list of objects.

    Raises:
        UserError: it cannot be read, or a line is no pair.
    """
    rows: list[Any]
    if path.suffix.lower() == ".json":
        rows = read_json(path, "--pairs")
        if not isinstance(rows, list):
            raise UserError(f'--pairs {path}: must be a list, as in [{{"scan": "a.nii.gz", "label": "b.nii.gz"}}]')
    else:
        try:
            with path.open("rb") as file:
                text = file.read(_LARGEST).decode("utf-8-sig")
            reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
            rows = list(reader)
        except OSError as problem:
            raise UserError(f"--pairs {path}: cannot be read ({problem.strerror}); check the path") from None
        except (UnicodeDecodeError, csv.Error) as problem:
            raise UserError(f"--pairs {path}: is not a CSV file in UTF-8 ({problem}); {_EXAMPLE}") from None
    found = []
    for number, row in enumerate(rows, start=1):
        unknown = [str(key) for key in row if key not in _COLUMNS] if isinstance(row, dict) else ["?"]
        texts = {} if unknown else {key: row.get(key) or "" for key in _COLUMNS}
        if unknown or not all(isinstance(text, str) for text in texts.values()):
            raise UserError(f"--pairs {path}: pair {number} has {', '.join(unknown) or 'values that are no texts'}; "
                            f"{_EXAMPLE}")  # fmt: skip
        stated = Stated(**{key: text.strip() for key, text in texts.items()})
        if not stated.scan or not stated.label:
            raise UserError(f"--pairs {path}: pair {number} lacks the scan or the label map; {_EXAMPLE}")
        found.append(stated)
    return found


def matched(
    stated: Sequence[Stated], units: Sequence[Unit], labels: Sequence[LabelMap], path: Path
) -> tuple[list[tuple[Unit, LabelMap]], dict[int, str]]:
    """The stated pairs as scans and label maps, and the case names by identity of the scan.

    Raises:
        UserError: a text names none or several of them, or one of them occurs twice.
    """
    pairs: list[tuple[Unit, LabelMap]] = []
    cases: dict[int, str] = {}
    for line in stated:
        scans = {id(scan): unit for unit in units for scan in unit.scans}
        scan = _named(line.scan, [scan for unit in units for scan in unit.scans], path, "scan")
        label = _named(line.label, list(labels), path, "label map")
        unit = scans[id(scan)]
        if any(unit is one or label is other for one, other in pairs):
            raise UserError(f"--pairs {path}: {line.scan} or {line.label} occurs twice; state each once")
        pairs.append((unit, label))
        if line.case:
            cases[id(unit)] = line.case
    return pairs, cases


def _named(text: str, sources: Sequence[AnySource], path: Path, what: str) -> AnySource:
    wanted = Path(text)
    given = {wanted.resolve(), (path.parent / wanted).resolve()}
    fitting = [s for s in sources if text.removeprefix("./").rstrip("/") == s.name or _uid(s) == text]
    fitting = fitting or [s for s in sources if s.path.resolve() in given]
    fitting = fitting or [s for s in sources if text in (s.path.name, _series_name(s))]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = ", ".join(s.name for s in fitting[:4])
        raise UserError(f"--pairs {path}: {text} names {len(fitting)} {what}s ({names}); give the whole name")
    names = ", ".join(s.name for s in sources[:4]) + (", ..." if sources[4:] else "")
    raise UserError(f"--pairs {path}: there is no {what} {text} (found: {names or 'none'}); correct the name")


def _uid(source: Source) -> str:
    return source.series.key if isinstance(source, Scan) and source.series else ""


def _series_name(source: Source) -> str:
    return source.series.name if isinstance(source, Scan) and source.series else ""
