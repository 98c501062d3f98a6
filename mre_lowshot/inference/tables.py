"""Tables (.csv) that runs add to: the columns and rows that a person has added stay."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mre_lowshot.errors import UserError
from mre_lowshot.files import write_text

Row = dict[str, str]


def read_table(path: Path, needed: Iterable[str], what: str) -> tuple[list[str], list[Row]]:
    """The names of the columns, and the rows; none where there is no file. Columns without a name of their own get
    one.

    Raises:
        UserError: a column of ``needed`` is missing: it is no table of ``what``.
    """
    if not path.is_file():
        return [], []
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            head, *rows = [cells for cells in csv.reader(lines) if cells] or [[]]
    except (UnicodeDecodeError, csv.Error):
        head, rows = [], []
    if not set(needed) <= set(head):
        raise UserError(f"{path}: is not a table of {what} (columns {', '.join(needed)} ...); move it away")
    head += [""] * (max(map(len, rows), default=0) - len(head))
    columns = [name if name and name not in head[:n] else f"{name or 'column'}_{n + 1}" for n, name in enumerate(head)]
    return columns, [dict(zip(columns, cells, strict=False)) for cells in rows]


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> None:
    """Write the ``columns`` of ``rows``; what a row lacks is empty.

    Raises:
        UserError: it cannot be written.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    for row in rows:
        table.writerow([row.get(name, "") for name in columns])
    write_text(path, text.getvalue())
