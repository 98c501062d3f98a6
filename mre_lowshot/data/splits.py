"""Which scans a fold trains on: 1shot, 2shot, 3shot, 5pct, leave-one-out, all. Seeded, saved, editable by hand.

The protocol (paper, IV-B): one-shot trains on each scan in turn, more shots on seven random draws; every other
labelled scan is tested on.
"""

from __future__ import annotations

import difflib
import math
import random
import re
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from mre_lowshot.errors import UserError
from mre_lowshot.files import read_json, write_json

Split = dict[str, list[str]]  # {"train": [...], "val": [...]}, nnU-Net's form
DRAWS = 7  # repetitions of two- and three-shot in the paper
_COHORT = re.compile(r"[A-Za-z][A-Za-z0-9-]*$")
_COUNTED = re.compile(r"0*([1-9]\d*)[-_]?(shot|pct)s?$")


def parse_level(text: str) -> str:
    """The level as it is written in file and folder names: ``1shot``, ``2shot``, ..., ``5pct``, ``loo`` or ``all``;
    of a cohort ``1shot_NAME``.

    Raises:
        UserError: it is none of these.
    """
    plain = text.strip().lower()
    base, _, cohort = text.strip().rpartition("_")
    if base and _COHORT.match(cohort) and cohort.lower() not in ("shot", "shots", "pct", "pcts", "out"):
        return f"{parse_level(base)}_{cohort}"
    match = _COUNTED.match(plain)
    if match and (match[2] == "shot" or int(match[1]) <= 100):
        return match[1] + match[2]
    if plain in ("loo", "all"):
        return plain
    raise UserError(
        f"level {text!r}: must be 1shot, 2shot, 3shot (any number from 1), 5pct (percent of the cases, 1 to 100), "
        "loo (leave one out) or all"
    )


def parse_fold(text: str) -> int | Literal["all"]:
    """``fold0``, ``fold_0`` and ``0`` give 0; ``all`` gives ``"all"``.

    Raises:
        UserError: it is none of these.
    """
    plain = text.strip().lower()
    if plain == "all":
        return "all"
    match = re.match(r"(?:fold_?)?(\d+)$", plain)
    if not match:
        raise UserError(f"fold {text!r}: must be fold0 (or 0), fold1, ... or all")
    return int(match[1])


def make_splits(level: str, names: Sequence[str], seed: int = 0, cohort: Sequence[str] | None = None) -> list[Split]:
    """Make the folds of ``level`` from the labelled cases ``names``; their order does not matter.

    ``<n>shot`` and ``<p>pct`` (p percent of the cases, rounded, at least one) train on n cases and hold the others
    out: with ``1shot`` each case in turn, otherwise seven distinct seeded draws, or all subsets where there are no
    more. If n takes all cases there is one fold with nothing held out. ``loo`` holds out each case in turn, ``all``
    none.

    Args:
        cohort: take only these cases, e.g. seven, as the paper does.

    Raises:
        UserError: unknown level, too few cases, cases named twice, or cohort names that are no labelled case.
    """
    level = parse_level(level)
    _check_names(names, names, "the dataset")
    if cohort is not None:
        _check_names(cohort, names, "cohort")
    cases = sorted(names if cohort is None else cohort)
    if not cases:
        raise UserError(f"level {level}: there is no labelled case; annotate at least one")
    if level == "all":
        return [_split(cases, cases)]
    if level == "loo":
        if len(cases) == 1:
            raise UserError(
                f"level loo: {cases[0]} is the only labelled case, nothing is left to train on; use 1shot or all"
            )
        return [_split([c for c in cases if c != out], cases) for out in cases]
    count = _train_count(level, len(cases))
    if count > len(cases):
        raise UserError(
            f"level {level}: needs {count} labelled cases, there are {len(cases)}; use {len(cases)}shot or all"
        )
    if level == "1shot":
        return [_split([case], cases) for case in cases]
    return [_split(train, cases) for train in _draws(cases, count, seed)]


def read_cohort(path: Path, dataset: str, name: str) -> list[str]:
    """The cases of cohort ``name``: {"NAME": [cases]} or, for several datasets, {"DatasetXXX_Name": {"NAME": [cases]}}.

    Raises:
        UserError: the file is missing or of another form, there is no such cohort, or its name cannot name folders.
    """
    if not _COHORT.match(name):
        raise UserError(f"--cohort {name!r}: use letters, digits and -, a letter first (it names folders)")
    if not path.is_file():
        raise UserError(f'{path}: is not there; write {{"{name}": [case names]}} into it, or name another (--cohorts)')
    data = read_json(path, "cohorts")
    cohorts = data.get(dataset, data) if isinstance(data, dict) else {}
    if not isinstance(cohorts, dict) or name not in cohorts:
        there = ", ".join(cohorts) if isinstance(cohorts, dict) and cohorts else "none"
        raise UserError(f"{path}: has no cohort {name!r} for {dataset} (there: {there})")
    cases = cohorts[name]
    if not isinstance(cases, list) or not all(isinstance(case, str) for case in cases):
        raise UserError(f"{path}: cohort {name!r} is {cases!r:.100}; must be a list of case names")
    return cases


def with_cohort(level: str, name: str) -> str:
    """The level of cohort ``name``, as ``1shot_NAME``.

    Raises:
        UserError: the level names a cohort already.
    """
    level = parse_level(level)
    if "_" in level:
        raise UserError(f"level {level} names a cohort already; leave out --cohort, or say {level.partition('_')[0]}")
    return f"{level}_{name}"


def load_or_make(
    folder: Path, level: str, names: Sequence[str], seed: int = 0, cohort: Sequence[str] | None = None
) -> list[Split]:
    """The folds saved as ``splits_<level>.json`` in ``folder``, checked; made and saved where the file is not there.

    A file that is there wins over ``seed``: it may have been edited by hand. With a ``cohort`` it must hold its cases.

    Raises:
        UserError: as ``make_splits``; or the file is not in nnU-Net's form, names unknown cases, lets a case be in
            train and val, has an empty train or not the level's number of training cases.
    """
    level = parse_level(level)
    path = Path(folder) / f"splits_{level}.json"
    if path.is_file():
        splits = _checked(read_json(path, f"splits of level {level}"), path, level, names)
        kept = {name for fold in splits for part in fold.values() for name in part}
        if cohort is not None and kept != set(cohort):
            raise UserError(
                f"{path}: holds another cohort than is named now ({_some(kept ^ set(cohort))} in one of them only); "
                "delete it and the results of that level, or give the cohort another name"
            )
        left = set(names) - kept
        if left and "_" not in level:
            print(f"note: {path.name} leaves out {_some(left)}; delete {path} to have it made again")
        return splits
    base, _, name = level.partition("_")
    if name and cohort is None:
        raise UserError(f"level {level}: {path} is not there; name the cohort once (--cohort {name})")
    splits = make_splits(base, names, seed, cohort)
    write_json(path, splits)
    return splits


def _train_count(level: str, cases: int) -> int:
    base = level.partition("_")[0]
    number = int(re.sub(r"\D", "", base))
    # to the nearest, a half upward: of 220 cases the paper trains on 2 (1 %), 11 (5 %) and 22 (10 %)
    return number if base.endswith("shot") else max(1, (2 * number * cases + 100) // 200)


def _split(train: Collection[str], cases: Sequence[str]) -> Split:
    return {"train": sorted(train), "val": [case for case in cases if case not in train]}


def _draws(cases: Sequence[str], count: int, seed: int) -> list[tuple[str, ...]]:
    """At most ``DRAWS`` distinct subsets of ``count`` cases, in the order drawn; all where there are no more."""
    if math.comb(len(cases), count) <= DRAWS:
        return list(combinations(cases, count))
    generator, drawn = random.Random(seed), dict[tuple[str, ...], None]()
    while len(drawn) < DRAWS:
        drawn[tuple(sorted(generator.sample(cases, count)))] = None
    return list(drawn)


def _check_names(given: Sequence[str], known: Collection[str], where: str) -> None:
    every = set(known)
    for name in given:
        if name not in every:
            close = difflib.get_close_matches(name, known, n=1)
            mend = f"did you mean {close[0]!r}?" if close else f"there are {len(known)}: {_some(known)}"
            raise UserError(f"{where}: {name!r} is no labelled case of the dataset; {mend}")
    twice = sorted(name for name, times in Counter(given).items() if times > 1)
    if twice:
        raise UserError(f"{where}: {_some(twice)} named more than once; name each case once")


def _some(names: Collection[str]) -> str:
    shown = sorted(names)[:10]
    return ", ".join(shown) + (", ..." if len(names) > len(shown) else "")


def _checked(data: Any, path: Path, level: str, names: Sequence[str]) -> list[Split]:
    remake = f"mend it, or delete {path} to have it made again"
    if not isinstance(data, list) or not data:
        raise UserError(f'{path.name}: must be a list of folds {{"train": [...], "val": [...]}}; {remake}')
    for number, fold in enumerate(data):
        where = f"{path.name}: fold {number}"
        lists = fold.values() if isinstance(fold, dict) and set(fold) == {"train", "val"} else [None]
        if not all(isinstance(part, list) and all(isinstance(n, str) for n in part) for part in lists):
            raise UserError(
                f'{where}: must be {{"train": [case names], "val": [case names]}}, is {fold!r:.200}; {remake}'
            )
        for part in ("train", "val"):
            _check_names(fold[part], names, f"{where}: {part}")
        if both := set(fold["train"]) & set(fold["val"]):
            raise UserError(f"{where}: {_some(both)} in train and in val; a case tested on must not be trained on")
        if not fold["train"]:
            raise UserError(f"{where}: train is empty; name at least one case")
        if level.partition("_")[0].endswith("shot") and len(fold["train"]) != _train_count(level, len(names)):
            raise UserError(
                f"{where}: train names {len(fold['train'])} cases ({_some(fold['train'])}), level {level} means "
                f"{_train_count(level, len(names))}; {remake}"
            )
    return data
