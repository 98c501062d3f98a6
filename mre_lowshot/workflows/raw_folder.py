"""The raw dataset of a name: in the root folder of raw datasets, or where a planned dataset was planned from."""

from __future__ import annotations

import os
from pathlib import Path

from mre_lowshot.data.workspace import Workspace, names_dataset
from mre_lowshot.errors import UserError
from mre_lowshot.preprocessing.record import RECORD, load_record


def find_raw(space: Workspace, dataset: str) -> Path:
    """The folder of a raw dataset.

    Args:
        space: the workspace.
        dataset: id (17), name (BTCV), full name or path. A dataset that was planned from a path lies outside the root
            folder of raw datasets; then the records of its preprocessed cases name it.

    Raises:
        UserError: no folder or several folders match.
    """
    try:
        return space.find(dataset, "raw")
    except UserError:
        found = _recorded(space, dataset)
        if found is None:
            raise
        return found


def _recorded(space: Workspace, dataset: str) -> Path | None:
    """The raw dataset that all plans of a name were preprocessed from; None where that is not one folder."""
    is_path = any(separator in dataset for separator in (os.sep, os.altsep) if separator)
    raw = [path.name for path in space.raw.iterdir()] if space.raw.is_dir() else []
    if is_path or any(names_dataset(name, dataset) for name in raw):  # refused for another reason
        return None
    try:
        folder = space.find(dataset, "preprocessed")
    except UserError:
        return None
    found = set()
    for path in folder.glob(f"*/{RECORD}"):
        try:
            place = load_record(path).raw_folder(folder)
        except UserError:  # named where the plan's cases are read
            continue
        if place is not None and place.resolve().name == folder.name:
            found.add(place.resolve())
    return found.pop() if len(found) == 1 else None
