"""Taking a fold's results folder: the plan is written there, or compared; results of two plans are never mixed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from mre_lowshot.config import Plan
from mre_lowshot.config.json import to_json
from mre_lowshot.config.plan_files import load_plan, require_same, same_plan, write_or_verify
from mre_lowshot.errors import UserError
from mre_lowshot.files import copy, remove_leftovers, sha256, write_json
from mre_lowshot.locks import holders, locked
from mre_lowshot.trainers.replaced import WAIT, set_fold_aside


def take_folder(
    folder: Path, plan: Plan, fold_plan: Plan, *, dataset_json: Path, begins: bool, overwritten: Collection[Path] = ()
) -> None:
    """Write the plans into the model's and the fold's folder, or refuse where they hold another plan's results.

    Args:
        folder: of the fold, in that of the model.
        plan: of the model.
        fold_plan: the same with the fold's decisions.
        dataset_json: description of the dataset, copied beside the model's plan.
        begins: the fold is trained from the beginning; a plan of an earlier attempt without a checkpoint is replaced.
        overwritten: folds of the model that the same run trains again; the results of ``folder``, if it is one, are
            set aside (`replaced`).

    Raises:
        UserError: the folder holds results of another plan, or cannot be written.
    """
    model = folder.parent
    # the fold's own lock is held already; this one is held for a moment, against a fold that begins at the same time
    with locked(model, "model", f"takes {folder.name}", wait=WAIT):
        for place in (model, *model.glob("fold_*"), *model.glob("fold_*/validation")):
            remove_leftovers(place)
        if not begins:
            write_or_verify(model / "plans.json", plan)
        elif not _holds_others(model, plan, {folder, *overwritten}):
            _replace(model, plan, overwritten)
        if folder in overwritten:
            set_fold_aside(folder)
        elif begins:
            (folder / "plans.json").unlink(missing_ok=True)
        if not _same_file(dataset_json, model / "dataset.json"):
            copy(dataset_json, model / "dataset.json")
        write_or_verify(folder / "plans.json", fold_plan)


def _holds_others(model: Path, plan: Plan, replaced: set[Path]) -> bool:
    """Whether the model has other folds than those ``replaced`` that are trained or being trained; if so, refuse any
    plan but theirs."""
    kept = {path.parent for path in model.glob("fold_*/checkpoint_*.pth")} - replaced
    running = {model / key for key in holders(model, "fold_")} - replaced
    if not kept and not running:
        return False
    for other in sorted(kept):  # the model's own plan may have been deleted
        if not (model / "plans.json").is_file() and (other / "plans.json").is_file():
            require_same(other / "plans.json", replace(load_plan(other / "plans.json"), fold=None), plan)
    write_or_verify(model / "plans.json", plan)
    return True


def _replace(model: Path, plan: Plan, overwritten: Collection[Path]) -> None:
    """Make ``plan`` the model's. The folds that the same run trains again are set aside where they are of another
    one."""
    path = model / "plans.json"
    try:
        same = path.is_file() and same_plan(load_plan(path), plan)
    except UserError:  # damaged, or of another version; no result depends on it
        same = False
    if not same:
        for fold in overwritten:
            set_fold_aside(fold)
        write_json(path, to_json(plan))


def _same_file(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and sha256(one) == sha256(other)
