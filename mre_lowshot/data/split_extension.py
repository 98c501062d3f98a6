"""Splits of the labelled cases, extended by a case that was added."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import combinations
from pathlib import Path

from mre_lowshot.data.splits import DRAWS, Split, load_or_make, make_splits, parse_level
from mre_lowshot.errors import UserError


def split_files(folder: Path) -> dict[str, Path]:
    """The files with splits in preprocessed/DatasetXXX_Name, by level; nnU-Net's splits_final.json is none of them."""
    found = {}
    for path in sorted(folder.glob("splits_*.json")):
        level = path.stem.removeprefix("splits_")
        with suppress(UserError):
            if parse_level(level) == level:
                found[level] = path
    return found


def extended(level: str, splits: Sequence[Split], names: Sequence[str], new: str) -> list[Split]:
    """The folds of a level after ``new`` was added to the labelled cases ``names``.

    Existing folds keep their number and their training cases, and test on the new case too. `1shot` gets a fold that
    trains on it. Two shots and more get folds with it while there are fewer than seven, unless the file was edited.
    By their definition, `all` trains on it, and `loo` trains on it in all folds but a new one. A cohort names its
    cases, so it stays as it is.

    >>> extended("1shot", [{"train": ["a"], "val": ["b"]}, {"train": ["b"], "val": ["a"]}], ["a", "b"], "c")[-1]
    {'train': ['c'], 'val': ['a', 'b']}
    """
    if "_" in level:
        return [dict(fold) for fold in splits]
    if level == "all":
        return [{"train": sorted([*fold["train"], new]), "val": fold["val"]} for fold in splits]
    if level == "loo":
        kept = [{"train": sorted([*fold["train"], new]), "val": fold["val"]} for fold in splits]
        return [*kept, {"train": sorted(names), "val": [new]}]
    kept = [{"train": fold["train"], "val": sorted([*fold["val"], new])} for fold in splits]
    if level == "1shot":
        return [*kept, {"train": [new], "val": sorted(names)}]
    if level.endswith("shot") and not _is_edited(level, splits, names):
        count = len(splits[0]["train"])
        for others in combinations(sorted(names), count - 1):
            if len(kept) >= DRAWS:
                break
            train = sorted([*others, new])
            kept.append({"train": train, "val": sorted({*names, new} - set(train))})
    return kept


def _is_edited(level: str, splits: Sequence[Split], names: Sequence[str]) -> bool:
    """Whether folds differ from those that would be made; their order does not matter, as they may have been extended
    before."""
    try:
        made = make_splits(level, names)
    except UserError:
        return True
    found = {tuple(fold["train"]) for fold in splits}
    return found != {tuple(fold["train"]) for fold in made} if len(made) < DRAWS else len(splits) < DRAWS


def load_splits(path: Path, level: str, names: Sequence[str]) -> list[Split]:
    """The folds in a file, checked.

    Raises:
        UserError: as `data.splits.load_or_make`.
    """
    return load_or_make(path.parent, level, names, log=lambda _: None, save=False)
