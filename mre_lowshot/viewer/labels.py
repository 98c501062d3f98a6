"""Names and colours of the labels of a folder of predictions."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection
from pathlib import Path

from mre_lowshot.data.colours import colours_of, label_colours, palette_colour
from mre_lowshot.data.dataset import validate_labels
from mre_lowshot.data.importing.label_names import names_inside, read_names
from mre_lowshot.data.label_table import DSEG, LabelTable
from mre_lowshot.errors import UserError
from mre_lowshot.files import read_json

_LARGEST = 1 << 20  # bytes of a table


def find_labels(folder: Path, maps: Collection[Path]) -> LabelTable:
    """The labels of the label maps in ``folder``: from dseg.tsv; from dataset.json in the folder or up to two folders
    above it (a fold's validation); from the label table inside a label map. Empty where there is none of these.

    Raises:
        UserError: dataset.json has labels or colours that are none.
    """
    if names := _names(folder / DSEG):
        return _with_colours(names, _colours(folder / DSEG))
    for place in (folder, folder.parent, folder.parent.parent):
        path = place / "dataset.json"
        if path.is_file():
            dataset = read_json(path, "labels")
            labels = validate_labels(dataset.get("labels") if isinstance(dataset, dict) else None, str(path))
            labels = {name: value for name, value in labels.items() if name != "ignore"}
            return LabelTable.of(labels, colours_of({**dataset, "labels": labels}, str(path)))
    for path in maps:
        try:
            if names := names_inside(path):
                return _with_colours(names, {})
        except UserError:  # named when the map is read
            continue
    return LabelTable({}, {})


def with_values(table: LabelTable, values: Collection[int]) -> LabelTable:
    """The table with further label values, which have no name in it: ``label 7``."""
    missing = sorted(set(values) - set(table.names) - {0})
    used = set(table.colours.values())
    free = (colour for number in range(1 << 20) if (colour := palette_colour(number)) not in used)
    names = {**table.names, **{value: f"label {value}" for value in missing}}
    return LabelTable(names, {**table.colours, **{value: next(free) for value in missing}})


def _names(path: Path) -> dict[int, str]:
    try:
        return read_names(path) if path.is_file() else {}
    except UserError:  # the user's own file; the other sources follow
        return {}


def _colours(path: Path) -> dict[int, str]:
    """The column ``color`` of a table, where it holds colours."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = csv.DictReader(file.read(_LARGEST).splitlines(), delimiter="\t")
        found = [(row.get("index") or "", row.get("color") or "") for row in rows]
    return {int(index): colour.lower() for index, colour in found if _is_entry(index, colour)}


def _is_entry(index: str, colour: str) -> bool:
    return re.fullmatch(r"\d{1,5}", index) is not None and re.fullmatch(r"#[0-9a-fA-F]{6}", colour) is not None


def _with_colours(names: dict[int, str], colours: dict[int, str]) -> LabelTable:
    others = label_colours({str(value): value for value in names})
    return LabelTable(dict(sorted(names.items())), {value: colours.get(value, others[value]) for value in names})
