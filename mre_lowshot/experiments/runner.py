"""Execution of one row of a table: plan, preprocessed cases (shared by rows with equal preprocessing), and folds.

Rows use the functions and the folders of mre_plan_and_preprocess and mre_train, so that the other commands can inspect
a row, resume its training and predict with its models.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from mre_lowshot.config import Plan
from mre_lowshot.config.json import to_json
from mre_lowshot.config.plan_files import load_plan, results_folder, same_plan
from mre_lowshot.data.dataset import Case, Dataset
from mre_lowshot.data.splits import Split
from mre_lowshot.data.vocabulary import is_ct
from mre_lowshot.errors import UserError
from mre_lowshot.experiments.resources import Resources
from mre_lowshot.experiments.tables import Base, Row, plan_name
from mre_lowshot.files import copy, partial_name, read_json, write_json
from mre_lowshot.inference.ensemble import needs_tuning
from mre_lowshot.planners.facts import DatasetFacts
from mre_lowshot.planners.hardware import Device
from mre_lowshot.planners.planner import make_plan, with_changes
from mre_lowshot.preprocessing.prepare import check_prepared, prepare_dataset
from mre_lowshot.preprocessing.record import RECORD, read_record
from mre_lowshot.preprocessing.references import reading, shared_files
from mre_lowshot.trainers.fold import FoldJob, TrainMode, make_trainer
from mre_lowshot.trainers.trainer import MRETrainer

QUICK_VOXELS, QUICK_RANGE = 12_000_000, (20, 150)
QUICK_SCANS = 3  # test scans of a fold


@dataclass(frozen=True)
class Setting:
    """The settings shared by all rows of a table."""

    base: Base = "small"  # network size
    level: str = "1shot"  # number of training scans per fold
    iterations: int | None = None  # None: those of the row's recipe
    seed: int = 0
    quick: bool = False  # fewer iterations, folds and test scans
    changes: tuple[tuple[str, str], ...] = ()  # fields of every row's plan, and their values; a row's own come after

    @property
    def code(self) -> str:
        """Stands for ``changes`` in names: ``set`` and a hash, as they are too long; empty without changes."""
        text = "\n".join(f"{key}={value}" for key, value in sorted(self.changes))
        return f"set{hashlib.sha256(text.encode()).hexdigest()[:8]}" if self.changes else ""

    @property
    def name(self) -> str:
        """Part of the name of the results folder, for example ``1shot_small_300``."""
        iterations = "" if self.iterations is None else str(self.iterations)
        parts = [self.level, self.base, iterations, "quick" if self.quick else "", self.code]
        return "_".join(filter(None, parts))

    def plan_of(self, row: Row) -> str:
        """The name of a row's plan."""
        return plan_name(row, self.base, self.iterations, seed=self.seed, quick=self.quick, code=self.code)

    def level_of(self, row: Row) -> str:
        """The level of a row: its own where the table has several, restricted to the cohort of ``level``."""
        if not row.level:
            return self.level
        cohort = self.level.partition("_")[2]
        return f"{row.cohort_level or row.level}_{cohort}" if cohort else row.level


def plan_row(row: Row, setting: Setting, facts: DatasetFacts, fingerprint: dict[str, Any], device: Device) -> Plan:
    """Plan a row. With base ``small`` the plan has the small network on every device. The fields of the setting are
    changed first, then those of the row.

    Args:
        row: changed fields and recipe.
        setting: base and iterations.
        facts: properties of the dataset.
        fingerprint: content of dataset_fingerprint.json.
        device: the training device.

    Raises:
        UserError: a changed field breaks a rule of the plan.
    """
    if setting.base == "small":
        device = replace(device, kind="cpu")
    name = setting.plan_of(row)
    plan = make_plan(facts, fingerprint, device=device, recipe=row.recipe_at(setting.base), plans_name=name)
    if row.baseline and setting.base == "paper" and facts.has_crops and any(map(is_ct, facts.channel_names)):
        crop = replace(plan.preprocessing, crop="given")
        reason = "boxes of crops.json, as for the other rows of the table (mre_experiment)"
        plan = replace(plan, preprocessing=crop, reasons={**plan.reasons, "crop": reason})
    plan = with_changes(plan, dict(setting.changes))
    changes = dict(setting.changes) | dict(row.changes)
    iterations = quick_iterations(plan) if setting.quick and setting.iterations is None else setting.iterations
    if iterations is not None:
        changes["recipe.optimizer.iterations"] = str(iterations)
        plan = with_changes(plan, {"recipe.optimizer.iterations": str(iterations)}, "mre_experiment")
    for key, factor in row.scaled.items():
        changes[key] = str(round(attrgetter(key)(plan) * factor))
    return with_changes(plan, changes, "mre_experiment")


def quick_iterations(plan: Plan) -> int:
    """The iterations of a row under ``--quick``: about two minutes of the small network on two cores, which computes
    `QUICK_VOXELS` in that time (docs/PERFORMANCE.md), within `QUICK_RANGE` and the recipe's own."""
    voxels = plan.recipe.sampling.batch_size * math.prod(plan.patch.size)
    low, high = QUICK_RANGE
    return min(max(low, min(high, round(QUICK_VOXELS / voxels))), plan.recipe.optimizer.iterations)


def quick_split(split: Split) -> Split:
    """A fold with at most `QUICK_SCANS` test scans, spread over all of them."""
    names = split["val"]
    count = min(QUICK_SCANS, len(names))
    return {**split, "val": [names[n * len(names) // count] for n in range(count)]}


def write_plan(plan: Plan, folder: Path) -> None:
    """Write the plan of a row to ``folder`` (preprocessed/DatasetXXX_Name), or verify that the existing file is equal.

    Raises:
        UserError: a different plan with this name exists.
    """
    path = folder / f"{plan.plans_name}.json"
    if path.is_file() and not same_plan(load_plan(path), plan):
        raise UserError(
            f"{path}: already exists and differs from the plan of the table's row (edited, or written by another "
            "version or on another device); move it and its results away to run the row again"
        )
    if not path.is_file():
        write_json(path, to_json(plan))


def prepare_row(
    plan: Plan, dataset: Dataset, folder: Path, progress: Callable[[Sequence[Case]], Iterable[Case]] = iter
) -> None:
    """Preprocess the labelled cases for a row, unless they exist already.

    If another plan of the dataset has the same preprocessing, its cases are hard-linked, or copied if the file system
    does not support links.

    Args:
        plan: the plan of the row.
        dataset: the raw dataset.
        folder: preprocessed/DatasetXXX_Name.
        progress: wraps the sequence of cases, for a progress bar.
    """
    own = folder / plan.plans_name
    if is_prepared(plan, dataset, folder):
        return
    with shared_files(dataset, folder):
        for other in sorted(path.parent for path in folder.glob(f"*/{RECORD}")):
            twin = replace(plan, plans_name=other.name)
            if other == own or not is_prepared(twin, dataset, folder):
                continue
            own.mkdir(exist_ok=True)
            (own / RECORD).unlink(missing_ok=True)
            with reading(folder, other.name):
                for case in dataset.labelled:
                    _link(other / f"{case.name}.npz", own / f"{case.name}.npz")
                copy(other / RECORD, own / RECORD)
            return
    prepare_dataset(dataset, plan, folder, progress)


def is_prepared(plan: Plan, dataset: Dataset, folder: Path) -> bool:
    """Whether all labelled cases are preprocessed for ``plan``, from the present files."""
    try:
        return sorted(check_prepared(plan, folder)) == sorted(case.name for case in dataset.labelled)
    except UserError:
        return False


def _link(source: Path, target: Path) -> None:
    temporary = target.parent / partial_name(target)
    try:
        os.link(source, temporary)
        os.replace(temporary, target)
    except OSError:
        copy(source, target)
    finally:
        temporary.unlink(missing_ok=True)  # rename leaves it where both names were the same file


def summary_path(results: Path, dataset_name: str, name: str, level: str, fold: int) -> Path:
    """Path of the validation summary of a fold.

    Args:
        results: root folder of results.
        dataset_name: DatasetXXX_Name.
        name: name of the plan.
        level: for example ``1shot``.
        fold: number of the fold.
    """
    return results_folder(results, dataset_name, name, level) / f"fold_{fold}" / "validation" / "summary.json"


def summary_path_of(job: FoldJob) -> Path:
    """Path of the validation summary of a job."""
    return summary_path(job.results, job.plan.dataset_name, job.plan.plans_name, job.level, job.fold)


def is_done(job: FoldJob) -> bool:
    """Whether the fold has been trained and scored, on the preprocessed cases as they are now.

    Raises:
        UserError: it was trained with another plan, split or seed, or on other scans or label maps.
    """
    path = summary_path_of(job)
    if not path.is_file():
        return False
    trained = load_plan(job.folder / "plans.json")
    if not is_of(trained, job.plan, job.seed, job.split):
        seed = trained.fold.seed if trained.fold else 0
        raise UserError(
            f"{job.folder}: was trained with another plan, another split or another seed ({seed}) than the row; move "
            "it away"
        )
    scored = read_json(path, "summary of a fold").get("inputs")
    if changed := read_record(job.plan, job.prepared).changed(scored):
        raise UserError(f"{path}: {changed_note(changed)}; delete {job.folder} to run it again, or restore the files")
    return True


def changed_note(cases: Sequence[str]) -> str:
    """What the input of a fold that was scored on other input than the present is."""
    shown = ", ".join(cases[:5]) + (f" and {len(cases) - 5} more" if cases[5:] else "")
    return f"scan, label map or crop box of {shown} changed since the fold was trained and scored"


def is_of(trained: Plan, plan: Plan, seed: int, split: Split | None = None) -> bool:
    """Whether a fold was trained with ``plan``, ``seed`` and, if given, ``split``.

    Args:
        trained: the plan stored with the fold.
        plan: the expected plan.
        seed: the expected seed.
        split: the expected training and test cases; None accepts any.
    """
    fold = trained.fold
    if fold is None or fold.seed != seed or not same_plan(replace(trained, fold=None), plan):
        return False
    return split is None or (fold.train, fold.test) == (tuple(split["train"]), tuple(split["val"]))


def train_fold(
    job: FoldJob,
    *,
    workers: int = 0,
    progress: Callable[[MRETrainer], AbstractContextManager[Callable[[MRETrainer], None] | None]],
) -> MRETrainer:
    """Train a fold as mre_train does; an interrupted training is continued.

    Args:
        job: the fold.
        workers: loader processes.
        progress: gets the trainer; a context manager that yields a callback for each iteration, or None.
    """
    start = time.monotonic()
    trainer = make_trainer(job, TrainMode.CONTINUE if job.has_checkpoint else TrainMode.NEW)
    rest = trainer.iteration < job.plan.recipe.optimizer.iterations or needs_tuning(trainer.plan)
    measured = Resources.load(job.folder).training(job.folder, job.device) if rest else nullcontext()
    with measured, progress(trainer) as on_step:
        trainer.fit(workers, on_step)
    trainer.training_log.log(f"trained to iteration {trainer.iteration} in {time.monotonic() - start:.0f} s")
    return trainer
