"""Runs of a table that were scored on other scans or label maps than the present ones: they are left out of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from mre_lowshot.errors import UserError
from mre_lowshot.experiments.results import RowResult
from mre_lowshot.experiments.runner import changed_note
from mre_lowshot.preprocessing.record import RECORD, Record, load_record


def present_runs(rows: Sequence[RowResult], prepared: Path, warn: Callable[[str], None]) -> list[RowResult]:
    """The rows with the runs whose inputs are those of the newest preprocessed cases of the dataset.

    A row that is not run now keeps its older preprocessed cases, so that its own record does not show a change.

    Args:
        rows: results.
        prepared: preprocessed/DatasetXXX_Name; runs are compared with nothing where it is empty.
        warn: receives a line for each run that is left out.
    """
    records = _newest(prepared, {run.crop_given for row in rows for run in row.runs.values() if run.inputs})
    kept = []
    for row in rows:
        runs = {}
        for key, run in row.runs.items():
            record = records.get(run.crop_given)
            if record and (changed := record.changed(run.inputs)):
                warn(f"row {row.row.name}, fold {run.fold} is left out of the table: {changed_note(changed)}; delete "
                     f"{run.folder} and run the row again")  # fmt: skip
            else:
                runs[key] = run
        kept.append(replace(row, runs=runs))
    return kept


def _newest(prepared: Path, wanted: set[bool]) -> dict[bool, Record]:
    """The newest record of plans with given crop boxes (True) and of others (False), as far as ``wanted``."""
    found: dict[bool, Record] = {}
    try:
        paths = sorted(prepared.glob(f"*/{RECORD}"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    except OSError:  # another run preprocesses at this moment
        return {}
    for path in paths:
        if wanted <= found.keys():
            break
        try:
            record = load_record(path)
        except UserError:
            continue
        found.setdefault(record.crops is not None, record)
    return found
