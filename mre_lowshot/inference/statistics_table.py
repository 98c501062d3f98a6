"""statistics.json and statistics.csv: the structures of all cases of an output folder.

Later runs add to both; columns and rows that a person has added to the table stay. The JSON file holds the SHA-256 of
each case's label map, by which statistics of a label map that has changed since are recognised.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from mre_lowshot.errors import UserError
from mre_lowshot.evaluation.label_statistics import LabelStatistics
from mre_lowshot.files import json_line, printable, read_cases, write_text
from mre_lowshot.inference.tables import Row, read_table, write_table

FORMAT, VERSION = "mre_lowshot statistics", 1
_NEEDED = ("case", "label", "voxels")
_PLACES = (
    *(f"centroid_{axis}_mm" for axis in ("l", "p", "s")),
    *(f"extent_{axis}_mm" for axis in ("rl", "ap", "is")),
)
_OWN = ("case", "label", "value", "voxels", "volume_mm3", "volume_ml", "touches_border", *_PLACES)
_PAUSE = 20  # writing takes at most one in so many seconds


class StatisticsTable:
    """The statistics of a folder, or of one of several parts of a run.

    Args:
        folder: of the label maps.
        part: is added to the names of the files, for example ``_part0``.

    Raises:
        UserError: a file of that name is another kind of table, or is not a statistics.json.
    """

    def __init__(self, folder: Path, part: str = "") -> None:
        self.json, self.csv = folder / f"statistics{part}.json", folder / f"statistics{part}.csv"
        content = read_cases(self.json, FORMAT, VERSION)
        if content is None and self.json.exists():
            raise UserError(f"{self.json}: was not written by mre_predict --statistics, or is damaged; move it away")
        read_table(self.csv, _NEEDED, "statistics")
        self._content = content or {"cases": {}}
        others = (path for path in sorted(folder.glob("statistics*.json")) if path != self.json)
        self._others = [found for path in others if (found := read_cases(path, FORMAT, VERSION)) is not None]
        self._new: dict[str, tuple[LabelStatistics, ...]] = {}
        self._gone: dict[str, set[str]] = {}  # labels that a case had before
        self._next = 0.0

    def has(self, name: str, sha256: str) -> bool:
        """Whether the statistics of a case are there and belong to the label map with this SHA-256."""
        found = (content["cases"].get(printable(name)) for content in (self._content, *self._others))
        listed = any(isinstance(entry, dict) and entry.get("label_map_sha256") == sha256 for entry in found)
        return listed and any(path.is_file() for path in self.csv.parent.glob("statistics*.csv"))

    def add(self, name: str, sha256: str, statistics: Sequence[LabelStatistics]) -> None:
        """Add those of a case, whose label map has this SHA-256, or replace them."""
        name = printable(name)
        before = self._content["cases"].get(name, {})
        labels = {printable(found.name): found.to_json() for found in statistics}
        old = before.get("labels")
        self._gone[name] = set(old if isinstance(old, dict) else ()) - set(labels)
        self._content["cases"][name] = {**before, "label_map_sha256": sha256, "labels": labels}
        self._new[name] = tuple(statistics)

    def write(self, *, finished: bool = False) -> None:
        """Write both files if anything was added: not after each of many cases, but always where ``finished``.

        Raises:
            UserError: they cannot be written; what was added is kept for the next time.
        """
        if not self._new or (time.monotonic() < self._next and not finished):
            return
        begun = time.monotonic()
        self._write_csv()
        cases = self._content["cases"]
        head = {k: v for k, v in self._content.items() if k not in ("format", "format_version", "cases")}
        first = json_line({"format": FORMAT, "format_version": VERSION, **head})[:-1]
        lines = ",\n".join(f"  {json.dumps(name)}: {json_line(cases[name])}" for name in sorted(cases))
        write_text(self.json, f'{first}, "cases": {{\n{lines}\n}}}}\n')
        self._new.clear()
        self._gone.clear()
        self._next = time.monotonic() + _PAUSE * (time.monotonic() - begun)

    def _write_csv(self) -> None:
        columns, rows = read_table(self.csv, _NEEDED, "statistics")
        places: dict[tuple[str, str], list[Row]] = {}
        kept = []
        for row in rows:
            if row.get("label") in self._gone.get(row.get("case", ""), ()):
                continue  # of an earlier model
            kept.append(row)
            places.setdefault((row.get("case", ""), row.get("label", "")), []).append(row)
        measured: dict[str, None] = {}
        for name, statistics in self._new.items():
            for found in statistics:
                cells = _cells(name, found)
                measured |= dict.fromkeys(key for key in cells if key not in _OWN)
                present = places.get((name, cells["label"]))
                for row in present or ():
                    row |= cells
                if not present:
                    kept.append(cells)
        own = [*_OWN, *measured]
        write_table(self.csv, [*own, *(name for name in columns if name not in own)], sorted(kept, key=_order))


def _order(row: Mapping[str, str]) -> tuple[str, float]:
    value = row.get("value", "")
    return row.get("case", ""), float(value) if value.isdigit() else float("inf")


def _cells(name: str, found: LabelStatistics) -> Row:
    places = (*(found.centroid or ()), *(found.extent or ()))
    cells = {
        "case": name,
        "label": printable(found.name),
        "value": str(found.value),
        "voxels": str(found.voxels),
        "volume_mm3": _number(found.volume_mm3),
        "volume_ml": _number(found.volume_ml),
        "touches_border": "yes" if found.touches_border else "no",
        **(dict(zip(_PLACES, map(_number, places), strict=True)) if places else dict.fromkeys(_PLACES, "")),
    }
    for channel, intensity in found.intensity.items():
        values = {"mean": intensity.mean, "std": intensity.std, "median": intensity.median}
        cells |= {f"{printable(channel)}_{key}": _number(value) for key, value in values.items()}
    return cells


def _number(value: float) -> str:
    return f"{value:.8g}"
