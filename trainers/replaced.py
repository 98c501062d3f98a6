"""The results that ``--overwrite`` replaces: kept in the model's folder until the new training has a checkpoint.

They lie in ``.mre-replaced/fold_N`` with the model's plans.json and dataset.json beside, so that a training that is
killed before its first checkpoint costs nothing: prediction uses them meanwhile, and the next training run gives them
their names back.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mre_lowshot.config import Plan
from mre_lowshot.config.plan_files import load_plan, same_plan
from mre_lowshot.errors import UserError
from mre_lowshot.files import copy, remove_folder, remove_leftovers
from mre_lowshot.inference import checkpoint
from mre_lowshot.inference.model_folders import REPLACED
from mre_lowshot.locks import holders, locked
from mre_lowshot.trainers.own_files import clear_fold, divide_files

WAIT = 30.0  # seconds for another fold to take its folder
_FOLD = re.compile(r"fold_\d{1,9}")
_MOVING = ".moving"  # at the end of a folder's name, while its files are moved one by one
_OF_MODEL = ("plans.json", "dataset.json")


def has_checkpoint(fold: Path) -> bool:
    """Whether the folder of a fold holds a checkpoint."""
    return any((fold / name).is_file() for name in (checkpoint.LATEST, checkpoint.FINAL))


def set_fold_aside(fold: Path) -> None:
    """Move a fold's results to ``.mre-replaced``; files that a person added stay. Results without a checkpoint are
    deleted. The model's lock is held.

    Raises:
        UserError: they cannot be moved.
    """
    if not has_checkpoint(fold):
        clear_fold(fold)
        return
    aside = fold.parent / REPLACED
    kept, own, others = aside / fold.name, *divide_files(fold)
    try:
        aside.mkdir(exist_ok=True)
        if not _folds(aside):
            for name in _OF_MODEL:
                if (fold.parent / name).is_file():
                    copy(fold.parent / name, aside / name)
        remove_folder(kept)
        if not others:
            os.rename(fold, kept)
            return
        moving = kept.with_name(kept.name + _MOVING)
        _move(own, fold, moving)
        os.rename(moving, kept)
    except OSError as problem:
        raise UserError(f"{fold}: cannot be moved ({problem.strerror}); correct its permissions") from None


def discard(fold: Path, plan: Plan) -> None:
    """Delete what ``fold`` held before, now that it has a checkpoint, and the results of other folds that were set
    aside with another plan than ``plan``, the model's: they can no longer be used together. What cannot be deleted now
    is deleted after a later checkpoint, or by a later run."""
    aside = fold.parent / REPLACED
    if not aside.is_dir():
        return
    with suppress(UserError), locked(fold.parent, "model", f"takes {fold.name}"):  # no reason to end a training
        same = _same_plans(aside, plan)
        _delete([path for path in _folds(aside) if not same or _name(path) == fold.name], aside)


def restore(model: Path) -> None:
    """Give results that were set aside by a run that is gone their names back, where it has left no checkpoint in their
    place; delete them where it has.

    Raises:
        UserError: another run holds the model's lock, or they cannot be moved.
    """
    aside = model / REPLACED
    if not aside.is_dir():
        return
    with locked(model, "model", "restores results", wait=WAIT):
        remove_leftovers(aside)
        running = set(holders(model, "fold_"))
        of_model = _plan_of(model)
        same = of_model is not None and _same_plans(aside, of_model)
        if not same and running:
            return  # it trains with the new plan; a later run decides
        trained = not same and any(has_checkpoint(path) for path in model.glob("fold_*"))
        obsolete = []
        for path in _folds(aside):
            fold = model / _name(path)
            if fold.name in running:
                continue
            try:
                if path.name.endswith(_MOVING):
                    _move(_files(path), path, fold)
                elif trained or has_checkpoint(fold):
                    obsolete.append(path)
                    continue
                else:
                    clear_fold(fold)
                    moving = path.with_name(path.name + _MOVING)
                    os.rename(path, moving)
                    _move(_files(moving), moving, fold)
                    path = moving
                obsolete.append(path)
                for name in _OF_MODEL if not same else ():
                    if (aside / name).is_file():
                        copy(aside / name, model / name)
            except OSError as problem:
                raise UserError(f"{path}: cannot be moved ({problem.strerror}); correct its permissions") from None
        _delete(obsolete, aside)


def _folds(aside: Path) -> list[Path]:
    return sorted(path for path in aside.iterdir() if _FOLD.fullmatch(_name(path)) and path.is_dir())


def _name(path: Path) -> str:
    return path.name.removesuffix(_MOVING)


def _files(folder: Path) -> list[Path]:
    """All files below ``folder``; checkpoints last, so that a fold that has one is whole."""
    found = (path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    return sorted(found, key=lambda path: (path.suffix == ".pth", path))


def _move(paths: Sequence[Path], source: Path, target: Path) -> None:
    """Move files of ``source`` to the same places in ``target``, where there is none of the name."""
    for path in paths:
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(place):
            os.rename(path, place)


def _delete(folds: Sequence[Path], aside: Path) -> None:
    """Delete ``folds``, and the whole of ``aside`` where no other is in it."""
    if set(_folds(aside)) <= set(folds):
        remove_folder(aside)
        return
    for path in folds:
        remove_folder(path)


def _plan_of(folder: Path) -> Plan | None:
    try:
        return load_plan(folder / "plans.json")
    except UserError:  # missing or damaged
        return None


def _same_plans(aside: Path, plan: Plan) -> bool:
    before = _plan_of(aside)
    return before is not None and same_plan(before, plan)
