"""Splits of the labelled cases into training and test cases: 1shot, 2shot, 3shot, 5pct, loo (leave-one-out), all, rest
(train outside a cohort), split (folds that the user names: `data.named_splits`).

Protocol of the paper (IV-B): one-shot trains on each case in turn, more shots on seven random draws; all other labelled
cases are test cases. Splits are seeded and saved to files that users may edit.
"""

from __future__ import annotations

import difflib
import logging
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from mre_lowshot.errors import UserError
from mre_lowshot.files import read_json, write_json
from mre_lowshot.plain import shown

LOGGER = logging.getLogger("mre_lowshot")
Split = dict[str, list[str]]  # {"train": [...], "val": [...]} as in nnU-Net
DRAWS = 7  # repetitions of two- and three-shot in the paper
_COHORT = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,99}\Z")
_COUNTED = re.compile(r"0{0,8}([1-9][0-9]{0,8})[-_]?(shot|pct)s?\Z")
_FOLD = re.compile(r"(?:fold_?)?([0-9]{1,9})\Z")


def parse_level(text: str) -> str:
    """Normalise a level to its form in file names: ``1shot``, ``2shot``, ..., ``5pct``, ``loo``, ``all``.

    The level of a cohort is ``1shot_NAME``.

    Raises:
        UserError: not a level.
    """
    if not isinstance(text, str):
        raise UserError(f"level {shown(text)}: must be a text, as 1shot")
    plain = text.strip().lower()
    base, _, cohort = text.strip().rpartition("_")
    if base and _COHORT.match(cohort) and cohort.lower() not in ("shot", "shots", "pct", "pcts", "out"):
        return f"{parse_level(base)}_{cohort}"
    match = _COUNTED.match(plain)
    if match and (match[2] == "shot" or int(match[1]) <= 100):
        return match[1] + match[2]
    if plain in ("loo", "all", "rest", "split"):
        return plain
    raise UserError(
        f"level {shown(text)}: must be 1shot, 2shot, 3shot (any number from 1), 5pct (percent of the cases, 1 to 100), "
        "loo (leave one out), all, rest (train outside the cohort) or split (folds of the cohorts file)"
    )


def parse_fold(text: str) -> int | Literal["all"]:
    """Parse a fold: ``fold0``, ``fold_0`` and ``0`` return 0, ``all`` returns ``"all"``.

    Raises:
        UserError: not a fold.
    """
    plain = text.strip().lower()
    if plain == "all":
        return "all"
    match = _FOLD.match(plain)
    if not match:
        raise UserError(f"fold {shown(text)}: must be fold0 (or 0), fold1, ... or all")
    return int(match[1])


def make_splits(level: str, names: Sequence[str], seed: int = 0, cohort: Sequence[str] | None = None) -> list[Split]:
    """Make the folds of a level.

    ``<n>shot`` and ``<p>pct`` (p percent of the cases, rounded, at least one) train on n cases and test on the others:
    with ``1shot`` each case in turn, otherwise seven distinct random draws, or all subsets if there are at most seven.
    If n is the number of cases, one fold trains on all. ``loo`` tests on each case in turn; ``all`` has no test case.
    ``rest`` has one fold that trains on the cases outside the cohort and tests on the cohort, as the paper's U-Net-20.

    Args:
        level: see `parse_level`.
        names: the labelled cases; their order does not matter.
        seed: of the random draws.
        cohort: use only these cases, e.g. seven, as the paper does.

    Returns:
        The folds, each with sorted training ("train") and test ("val") cases.

    Raises:
        UserError: unknown level, too few cases, duplicate names, or a cohort case that is not a labelled case.
    """
    level = parse_level(level)
    _check_names(names, names, "the dataset")
    if cohort is not None:
        _check_names(cohort, names, "cohort")
    cases = sorted(names if cohort is None else cohort)
    if not cases:
        raise UserError(f"level {level}: no labelled case; annotate at least one")
    if level == "all":
        return [_split(cases, cases)]
    if level == "rest":
        return [_outside(cases, names, cohort)]
    if level == "split":
        raise UserError("level split: has no folds of its own; name those of a cohorts file (--cohort, --cohorts)")
    if level == "loo":
        if len(cases) == 1:
            raise UserError(
                f"level loo: {cases[0]} is the only labelled case, no case is left to train on; use 1shot or all"
            )
        return [_split([c for c in cases if c != out], cases) for out in cases]
    count = _train_count(level, len(cases))
    if count > len(cases):
        raise UserError(f"level {level}: needs {count} labelled cases, found {len(cases)}; use {len(cases)}shot or all")
    if level == "1shot":
        return [_split([case], cases) for case in cases]
    return [_split(train, cases) for train in _draws(cases, count, seed)]


def read_cohort(path: Path, dataset: str, name: str) -> list[str]:
    """Read the cases of cohort ``name`` from a JSON file.

    The file is {"NAME": [cases]} or, for several datasets, {"DatasetXXX_Name": {"NAME": [cases]}}.

    Raises:
        UserError: the file is missing or has another structure, the cohort is missing, or its name is not valid in
            folder names.
    """
    cases = cohort_entry(path, dataset, name)
    if not isinstance(cases, list) or not all(isinstance(case, str) for case in cases):
        more = "; folds are used with level split" if "train" in str(cases) else ""
        raise UserError(f"{path}: cohort {name!r} is {cases!r:.100}; must be a list of case names{more}")
    return cases


def cohort_entry(path: Path, dataset: str, name: str) -> Any:
    """What a cohorts file has under ``name``, not checked.

    Raises:
        UserError: as `read_cohort`.
    """
    if not isinstance(name, str) or not _COHORT.match(name):
        raise UserError(f"--cohort {shown(name)}: use letters, digits and -, a letter first (it names folders)")
    if not path.is_file():
        raise UserError(f'{path}: is missing; create it with {{"{name}": [case names]}}, or give another (--cohorts)')
    data = read_json(path, "cohorts")
    cohorts = data.get(dataset, data) if isinstance(data, dict) else {}
    if not isinstance(cohorts, dict) or name not in cohorts:
        found = ", ".join(cohorts) if isinstance(cohorts, dict) and cohorts else "none"
        raise UserError(f"{path}: has no cohort {name!r} for {dataset} (found: {found})")
    return cohorts[name]


def with_cohort(level: str, name: str) -> str:
    """The level of cohort ``name``, for example ``1shot_NAME``.

    Raises:
        UserError: the level already contains a cohort.
    """
    level = parse_level(level)
    if not isinstance(name, str) or not _COHORT.match(name):
        raise UserError(f"--cohort {shown(name)}: use letters, digits and -, a letter first (it names folders)")
    if "_" in level:
        raise UserError(f"level {level} names a cohort already; omit --cohort, or give {level.partition('_')[0]}")
    return f"{level}_{name}"


def load_or_make(
    folder: Path,
    level: str,
    names: Sequence[str],
    *,
    seed: int = 0,
    cohort: Sequence[str] | None = None,
    log: Callable[[str], None] = LOGGER.warning,
    save: bool = True,
) -> list[Split]:
    """Load and check the folds in ``splits_<level>.json``; make and save them if the file does not exist.

    An existing file takes precedence over ``seed``, because users may edit it.

    Args:
        folder: folder of the file.
        level: see `parse_level`.
        names: the labelled cases.
        seed: of the random draws.
        cohort: use only these cases; an existing file must contain exactly these.
        log: receives a note where the file leaves labelled cases out.
        save: write the file; without, `save_splits` does it once everything else is checked.

    Raises:
        UserError: as `make_splits`; or the file does not have nnU-Net's structure, contains unknown cases, has a case
            in both train and val, an empty train, or a number of training cases that does not match the level.
    """
    level = parse_level(level)
    path = Path(folder) / f"splits_{level}.json"
    if path.is_file():
        data, remake = read_json(path, f"splits of level {level}"), f"correct it, or delete {path} to generate it again"
        splits = check_folds(data, path.name, level, names, fix=remake)
        kept = {name for fold in splits for part in fold.values() for name in part}
        own = {name for fold in splits for name in fold["val"]} if level.startswith("rest_") else kept
        if cohort is not None and own != set(cohort):
            raise UserError(
                f"{path}: contains other cases than the given cohort ({_some(own ^ set(cohort))} in only one of "
                "them); delete it and the results of that level, or give the cohort another name"
            )
        left = set(names) - kept
        if left and "_" not in level:
            log(f"note: {path.name} leaves out {_some(left)}; delete {path} to generate it again")
        return splits
    base, _, name = level.partition("_")
    if name and cohort is None:
        raise UserError(f"level {level}: {path} is missing; name the cohort once (--cohort {name})")
    splits = make_splits(base, names, seed, cohort)
    if save:
        save_splits(folder, level, splits)
    return splits


def save_splits(folder: Path, level: str, splits: Sequence[Split]) -> None:
    """Write the folds to ``splits_<level>.json`` in ``folder``, unless the file exists. Two runs write the same."""
    path = folder / f"splits_{level}.json"
    if not path.is_file():
        write_json(path, list(splits))


def _train_count(level: str, cases: int) -> int:
    base = level.partition("_")[0]
    number = int(re.sub(r"\D", "", base))
    # rounded half up: of 220 cases the paper trains on 2 (1 %), 11 (5 %) and 22 (10 %)
    return number if base.endswith("shot") else max(1, (2 * number * cases + 100) // 200)


def _split(train: Collection[str], cases: Sequence[str]) -> Split:
    return {"train": sorted(train), "val": [case for case in cases if case not in train]}


def _draws(cases: Sequence[str], count: int, seed: int) -> list[tuple[str, ...]]:
    """``DRAWS`` distinct random subsets of ``count`` cases in the order drawn, or all subsets if not more exist."""
    if math.comb(len(cases), count) <= DRAWS:
        return list(combinations(cases, count))
    generator, drawn = random.Random(seed), dict[tuple[str, ...], None]()
    while len(drawn) < DRAWS:
        drawn[tuple(sorted(generator.sample(cases, count)))] = None
    return list(drawn)


def _check_names(given: Sequence[str], known: Collection[str], where: str) -> None:
    known_names = set(known)
    for name in given:
        if name not in known_names:
            close = difflib.get_close_matches(name, known, n=1)
            fix = f"did you mean {close[0]!r}?" if close else f"the {len(known)} labelled cases are {_some(known)}"
            raise UserError(f"{where}: {name!r} is not a labelled case of the dataset; {fix}")
    twice = sorted(name for name, times in Counter(given).items() if times > 1)
    if twice:
        raise UserError(f"{where}: {_some(twice)} named more than once; name each case once")


def _some(names: Collection[str]) -> str:
    shown = sorted(names)[:10]
    return ", ".join(shown) + (", ..." if len(names) > len(shown) else "")


def _outside(cases: Sequence[str], names: Sequence[str], cohort: Sequence[str] | None) -> Split:
    """The fold that trains on the cases outside a cohort, which are tested."""
    if cohort is None:
        raise UserError("level rest: trains on the cases outside a cohort and tests on the cohort; name one (--cohort)")
    if not (train := sorted(set(names) - set(cases))):
        raise UserError("level rest: the cohort holds all labelled cases, and none is left to train on; name fewer")
    return {"train": train, "val": list(cases)}


def check_folds(data: Any, where: str, level: str, names: Sequence[str], *, fix: str) -> list[Split]:
    """Check folds read from a file.

    Args:
        data: content of the file.
        where: begins messages, as ``splits_1shot.json``.
        level: of the folds.
        names: the labelled cases.
        fix: ends messages.

    Raises:
        UserError: they do not have nnU-Net's structure, name unknown cases or one in both parts, have no training case,
            or a number of them that does not match the level.
    """
    if not isinstance(data, list) or not data:
        raise UserError(f'{where}: must be a list of folds {{"train": [...], "val": [...]}}; {fix}')
    for number, fold in enumerate(data):
        place = f"{where}: fold {number}"
        lists = fold.values() if isinstance(fold, dict) and set(fold) == {"train", "val"} else [None]
        if not all(isinstance(part, list) and all(isinstance(n, str) for n in part) for part in lists):
            raise UserError(f'{place}: must be {{"train": [case names], "val": [case names]}}, is {fold!r:.200}; {fix}')
        for part in ("train", "val"):
            try:
                _check_names(fold[part], names, f"{place}: {part}")
            except UserError as problem:
                raise UserError(f"{problem}; {fix}") from None
        if both := set(fold["train"]) & set(fold["val"]):
            raise UserError(f"{place}: {_some(both)} in train and in val; remove each case from one of them")
        if not fold["train"]:
            raise UserError(f"{place}: train is empty; name at least one case")
        if level.partition("_")[0].endswith("shot") and len(fold["train"]) != _train_count(level, len(names)):
            raise UserError(
                f"{place}: train contains {len(fold['train'])} cases ({_some(fold['train'])}), level {level} requires "
                f"{_train_count(level, len(names))}; {fix}"
            )
    return data
