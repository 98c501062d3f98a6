"""One row of a table: its plan, its preprocessed cases (shared where rows preprocess alike), its folds.

Everything goes through what mre_plan_and_preprocess and mre_train use, and lies where they would put it, so that a row
can be looked at, gone on with and predicted with by the other commands.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mre_lowshot import checkpoint
from mre_lowshot.codec import to_json
from mre_lowshot.dataset import Case, RawDataset
from mre_lowshot.errors import UserError
from mre_lowshot.experiments.tables import Base, Row, plan_name
from mre_lowshot.files import read_json, write_json
from mre_lowshot.planners.planner import DatasetFacts, make_plan, with_changes
from mre_lowshot.planners.rules import Device
from mre_lowshot.plans import load_plan, results_folder, same_plan
from mre_lowshot.preprocessing.prepare import prepare_dataset
from mre_lowshot.specs import Plan
from mre_lowshot.splits import Split
from mre_lowshot.trainers.fold import FoldJob, make_trainer, validate
from mre_lowshot.trainers.trainer import MRETrainer

RECORD = "preprocessing.json"


@dataclass(frozen=True)
class Setting:
    """What all rows of a table have in common. ``iterations`` None: as many as the row's recipe says."""

    base: Base = "small"
    level: str = "1shot"
    iterations: int | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        """What tells results of one setting from those of another, as ``1shot_small_300``."""
        parts = [self.level, self.base, *([str(self.iterations)] if self.iterations is not None else [])]
        return "_".join(parts)


def plan_row(row: Row, setting: Setting, facts: DatasetFacts, fingerprint: dict[str, Any], device: Device) -> Plan:
    """The row's plan; with base ``small`` the small network is planned on any device."""
    if setting.base == "small":
        device = replace(device, kind="cpu")
    name = plan_name(row, setting.base, setting.iterations)
    plan = make_plan(facts, fingerprint, device, row.recipe_at(setting.base), name)
    changes = dict(row.changes)
    if setting.iterations is not None:
        plan = replace(plan, recipe=replace(plan.recipe, iterations=setting.iterations))
        changes["recipe.iterations"] = str(setting.iterations)
    for key, factor in row.scaled.items():
        section, _, field = key.partition(".")
        changes[key] = str(round(getattr(getattr(plan, section), field) * factor))
    return with_changes(plan, changes, "mre_experiment")


def write_plan(plan: Plan, folder: Path) -> None:
    """Write the row's plan to preprocessed/DatasetXXX_Name, or check that the one there is the same.

    Raises:
        UserError: another plan of that name is there.
    """
    path = folder / f"{plan.plans_name}.json"
    if path.is_file() and not same_plan(load_plan(path), plan):
        raise UserError(
            f"{path}: is there and differs from what the table's row means now (edited by hand, another version, or "
            "another device); move it and its results away to run the row again"
        )
    if not path.is_file():
        write_json(path, to_json(plan))


def prepare_row(
    plan: Plan, dataset: RawDataset, folder: Path, progress: Callable[[Sequence[Case]], Iterable[Case]] = iter
) -> None:
    """Preprocess the row's cases, unless they are there; where another plan of the dataset preprocessed alike, its
    cases are linked (copied, where links are not to be had)."""
    wanted = {"preprocessing": to_json(plan.preprocessing), "cases": [c.name for c in dataset.labelled]}
    own = folder / plan.plans_name
    if _record(own) == wanted:
        return
    for other in sorted(path.parent for path in folder.glob(f"*/{RECORD}")):
        if other != own and _record(other) == wanted:
            own.mkdir(exist_ok=True)
            for case in dataset.labelled:
                _link(other / f"{case.name}.npz", own / f"{case.name}.npz")
            write_json(own / RECORD, wanted)
            return
    prepare_dataset(dataset, plan, folder, progress)


def _record(folder: Path) -> Any:
    path = folder / RECORD
    return read_json(path, "record of preprocessing") if path.is_file() else None


def _link(there: Path, here: Path) -> None:
    here.unlink(missing_ok=True)
    try:
        os.link(there, here)
    except OSError:
        shutil.copyfile(there, here)


def summary_path(results: Path, dataset_name: str, name: str, level: str, fold: int) -> Path:
    return results_folder(results, dataset_name, name, level) / f"fold_{fold}" / "validation" / "summary.json"


def summary_path_of(job: FoldJob) -> Path:
    return summary_path(job.results, job.plan.dataset_name, job.plan.plans_name, job.level, job.fold)


def is_done(job: FoldJob) -> bool:
    """Whether the fold was trained and scored.

    Raises:
        UserError: it was, but by another plan or with another seed.
    """
    if not summary_path_of(job).is_file():
        return False
    there = load_plan(job.folder / "plans.json")
    if not is_of(there, job.plan, job.seed, job.split):
        seed = there.fold.seed if there.fold else 0
        raise UserError(
            f"{job.folder}: was trained by another plan, on another split or with another seed ({seed}) than the "
            "row's; move it away"
        )
    return True


def is_of(trained: Plan, plan: Plan, seed: int, split: Split | None = None) -> bool:
    """Whether a fold was trained by ``plan`` with ``seed``, on ``split`` where one is given."""
    fold = trained.fold
    if fold is None or fold.seed != seed or not same_plan(replace(trained, fold=None), plan):
        return False
    return split is None or (fold.train, fold.test) == (tuple(split["train"]), tuple(split["val"]))


def run_fold(
    job: FoldJob,
    workers: int = 0,
    on_step: Callable[[MRETrainer], None] | None = None,
    on_case: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Train the fold (going on where it was interrupted) and score its other cases, as mre_train does; the summary."""
    begun = time.monotonic()
    trainer = make_trainer(job, resume=(job.folder / checkpoint.LATEST).is_file())
    trainer.fit(workers, on_step)
    trainer.logbook.say(f"trained to iteration {trainer.iteration} in {time.monotonic() - begun:.0f} s")
    return validate(job, trainer, job.split["val"], job.folder / "validation", on_case)
