"""The folds of a level for a cohort, or folds that the user names in the cohorts file.

A cohorts file is {"NAME": [cases]}, or {"NAME": [{"train": [cases], "val": [cases]}, ...]} for level ``split``; for
several datasets {"DatasetXXX_Name": {...}}. With the level 20shot, say, the program draws the training cases; with
``split`` they are those of the file, as the paper's 20 scans of BTCV.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from mre_lowshot.data.splits import (
    LOGGER,
    Split,
    check_folds,
    cohort_entry,
    load_or_make,
    parse_level,
    read_cohort,
    save_splits,
    with_cohort,
)
from mre_lowshot.errors import UserError


def level_splits(
    folder: Path,
    level: str,
    names: Sequence[str],
    *,
    dataset: str,
    cohort: str | None = None,
    cohorts_file: Path | None = None,
    log: Callable[[str], None] = LOGGER.warning,
    save: bool = True,
) -> tuple[str, list[Split]]:
    """The name and the folds of a level.

    Args:
        folder: preprocessed/DatasetXXX_Name, with the files of splits.
        level: as in ``1shot``.
        names: the labelled cases.
        dataset: DatasetXXX_Name.
        cohort: name of a cohort, or of folds for level ``split``.
        cohorts_file: the file that defines it; None: ``cohorts.json`` in ``folder``.
        log: receives notes.
        save: write a new file of splits.

    Returns:
        The level with its cohort, as in ``1shot_develop``, and its folds.

    Raises:
        UserError: as `splits.with_cohort`, `splits.load_or_make` and `splits.read_cohort`; or the folds of the file
            differ from those used before under that name.
    """
    if cohort is None:
        level = parse_level(level)
        return level, load_or_make(folder, level, names, log=log, save=save)
    level = with_cohort(level, cohort)
    path = cohorts_file or folder / "cohorts.json"
    if not level.startswith("split_"):
        cases = read_cohort(path, dataset, cohort)
        return level, load_or_make(folder, level, names, cohort=cases, log=log, save=save)
    folds = read_folds(path, dataset, cohort, names)
    saved = folder / f"splits_{level}.json"
    if saved.is_file() and load_or_make(folder, level, names, log=log, save=False) != folds:
        raise UserError(
            f"{saved}: contains other folds than {cohort!r} in {path}; delete it and the results of that level, or "
            "give the folds another name"
        )
    if save:
        save_splits(folder, level, folds)
    return level, folds


def read_folds(path: Path, dataset: str, name: str, names: Sequence[str]) -> list[Split]:
    """The folds ``name`` of a cohorts file; a single one may stand without a list.

    Raises:
        UserError: the file or the name is missing, or the folds are not valid (`splits.check_folds`).
    """
    entry = cohort_entry(path, dataset, name)
    folds = [entry] if isinstance(entry, dict) else entry
    return check_folds(folds, f"{path}: {name}", "split", names, fix="correct it, or use another level")
