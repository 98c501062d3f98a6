"""Notes below a table on how its rows differ from what the paper's lines beside them are."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mre_lowshot.data.paper_datasets import groups_of
from mre_lowshot.experiments.records import Table
from mre_lowshot.experiments.results import RowResult

_COUNT = re.compile(r"-(\d+)(?: \(|$)")  # at the end of a label: the number of scans


def notes_of(table: Table, rows: Sequence[RowResult], labels: Sequence[str]) -> list[str]:
    """All notes on a table of which ``labels`` are scored."""
    return [*crop_notes(table, rows, labels), *count_notes(rows)]


def crop_notes(table: Table, rows: Sequence[RowResult], labels: Sequence[str]) -> list[str]:
    """Which rows were cropped to given boxes, as the paper's CTs were, in a table of abdominal CT."""
    groups = groups_of(labels)
    ran = [r for r in rows if r.runs]
    given = [r for r in ran if any(run.crop_given for run in r.runs.values())]
    shows_paper = any(f.dataset == "BTCV" for row in table.rows for f in row.paper)
    if not ran or not shows_paper or (not given and (groups is None or groups.dataset != "BTCV")):
        return []
    text = "The paper's CTs were cropped to given boxes (docs/EXPERIMENTS.md). Here "
    if not given:
        return [
            f"{text}no row was (no crops.json, or a recipe without it), unless the scans were cropped before import."
        ]
    if len(given) == len(ran):
        return [f"{text}all rows were (crops.json)."]
    names = ", ".join(r.row.label for r in given)
    return [f"{text}only these rows were (crops.json): {names}. The others have another task: do not compare the two."]


def count_notes(rows: Sequence[RowResult]) -> list[str]:
    """Rows that used another number of scans than the -n of their name: of DataAug the unlabelled, of others the
    training scans."""
    found = []
    for r in rows:
        stated = _COUNT.search(r.row.label)
        if not stated or not r.runs:
            continue
        unlabelled = r.row.baseline.startswith("dataaug")
        counts = {run.unlabelled if unlabelled else len(run.train) for run in r.runs.values()}
        used = sorted(count for count in counts if count is not None)
        if used and used != [int(stated[1])]:
            amount = f"{' or '.join(map(str, used))} {'unlabelled ' if unlabelled else ''}scan{'s' * (used != [1])}"
            found.append(f"{r.row.label} {'used' if unlabelled else 'was trained on'} {amount} here, not {stated[1]}.")
    return found
