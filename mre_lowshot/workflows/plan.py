"""Verify a dataset, plan how to segment it, and preprocess it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from mre_lowshot import devices
from mre_lowshot.config import Plan
from mre_lowshot.config.check import require_number, require_path, require_plans_name, require_whole
from mre_lowshot.config.json import suggest, to_json
from mre_lowshot.config.plan_files import first_difference, load_plan
from mre_lowshot.data.dataset import Case, Dataset
from mre_lowshot.data.verification import copied_channels, raise_problems, verify
from mre_lowshot.data.vocabulary import is_ct
from mre_lowshot.data.volume import Volume
from mre_lowshot.data.workspace import Workspace
from mre_lowshot.errors import UserError
from mre_lowshot.files import write_json
from mre_lowshot.plain import shown
from mre_lowshot.planners.facts import N4
from mre_lowshot.planners.fingerprint import case_fingerprint, dataset_fingerprint, write_fingerprint
from mre_lowshot.planners.hardware import Device
from mre_lowshot.planners.hounsfield import hu_histogram, hu_rule
from mre_lowshot.planners.planner import facts_of, make_plan, preset_with, split_changes, with_changes
from mre_lowshot.preprocessing.faults import NOTED
from mre_lowshot.preprocessing.prepare import prepare_dataset, read_crops
from mre_lowshot.preprocessing.references import planning
from mre_lowshot.trainers.distributed import Processes
from mre_lowshot.workflows.raw_folder import find_raw
from mre_lowshot.workflows.reporting import Reporter

DEFAULT_NAME = "MREPlans"
MAX_GPUS = 1024  # that train a fold together


@dataclass(frozen=True)
class PlanResult:
    """Result of `plan`.

    Attributes:
        plan: the plan.
        path: its file.
        dataset: the raw dataset.
        folder: preprocessed/DatasetXXX_Name.
        notes: structures that are lost on the plan's grid.
    """

    plan: Plan
    path: Path
    dataset: Dataset
    folder: Path
    notes: tuple[str, ...] = ()


def plan(
    dataset: str | Path,
    *,
    plans_name: str = DEFAULT_NAME,
    recipe: str = "default",
    n4: str = "auto",
    changes: Mapping[str, Any] | None = None,
    keep_plan: bool = False,
    overwrite: bool = False,
    preprocess: bool = True,
    device: str = "auto",
    memory_gb: float | None = None,
    gpus: int = 1,
    workspace: str | Path | None = None,
    reporter: Reporter | None = None,
) -> PlanResult:
    """Verify a dataset, plan how to segment it, and preprocess it.

    Args:
        dataset: id (17), name (BTCV), full name or path.
        plans_name: name of the plan.
        recipe: name of a preset (`config.presets`).
        n4: whether the bias field of MRI is corrected: ``auto`` (decided from the scans), ``on`` or ``off``.
        changes: fields of the plan to change, as ``{"recipe.optimizer.iterations": 1000}``; needs a ``plans_name``.
        keep_plan: use the existing plan, perhaps edited by hand.
        overwrite: replace an existing plan that differs.
        preprocess: write the preprocessed cases too.
        device: to plan for.
        memory_gb: of the GPU, instead of what it has.
        gpus: that will train a fold together (``torchrun``); each needs memory for its share of a mini-batch only.
        workspace: folder with raw/, preprocessed/ and results/; None: see `data.workspace.Workspace`.
        reporter: receives progress and messages.

    Raises:
        UserError: an option, the dataset or a file of it is wrong; all problems of a dataset are listed at once.
    """
    reporter = reporter or Reporter()
    changes = _texts(changes or {})
    if n4 not in get_args(N4):
        raise UserError(f"--n4 {shown(n4)}: {suggest(n4, get_args(N4))}")
    if keep_plan and n4 != "auto":
        raise UserError("--keep_plan uses the existing plan; leave out --n4")
    _check_options(plans_name, changes, keep_plan=keep_plan, overwrite=overwrite, memory_gb=memory_gb, gpus=gpus)
    require_path("-d", str(dataset))
    space = Workspace.resolve(workspace)
    raw = find_raw(space, str(dataset))
    folder = space.preprocessed / raw.name
    reporter.info(f"{raw.name}: raw data in {raw}, output in {folder}")
    if keep_plan and not (folder / f"{plans_name}.json").is_file():
        load_plan(folder / f"{plans_name}.json")  # refuses before every scan was read
    target = devices.resolve(device)
    planned_for = Device(target.type, memory_gb or devices.memory_gb(target), gpus)
    first, rest = split_changes(changes)
    chosen = preset_with(recipe, first)
    with planning(folder, plans_name):
        read_crops(raw)  # refused before every scan is read
        found, fingerprint = verified_dataset(raw, reporter)
        path = folder / f"{plans_name}.json"
        if keep_plan:
            made = load_plan(path)
            _check_kept_plan(made, path, found)
            _check_shares(made, gpus)
        else:
            made = make_plan(
                facts_of(found),
                fingerprint,
                device=planned_for,
                recipe=chosen,
                n4=cast(N4, n4),
                plans_name=plans_name,
            )
            made = with_changes(made, rest)
            _check_shares(made, gpus)  # --set may have changed the batch that suited them
            _check_plan(made, path, overwrite=overwrite)
            write_json(path, to_json(made))
        write_fingerprint(folder, fingerprint)
        _report_plan(made, path, found, reporter)
        notes: tuple[str, ...] = ()
        if preprocess:
            notes = _preprocess(found, made, folder, reporter)
    return PlanResult(made, path, found, folder, notes)


def _preprocess(dataset: Dataset, plan: Plan, folder: Path, reporter: Reporter) -> tuple[str, ...]:
    """Preprocess all labelled cases, and report; returns the notes."""
    bar = partial(reporter.iterate, description="preprocess", unit="scan")
    notes = tuple(prepare_dataset(dataset, plan, folder, bar))
    for note in notes:
        reporter.info(f"  NOTE {note}")
    labelled = len(dataset.labelled)
    more = f"; or on all of them: mre_train {dataset.name} all fold0" if labelled in (2, 3) else ""
    reporter.info(f"  {labelled} cases preprocessed; next: mre_train {dataset.name} 1shot fold0{more}")
    return notes


def verified_dataset(raw: Path, reporter: Reporter) -> tuple[Dataset, dict[str, Any]]:
    """The dataset in folder ``raw`` and its fingerprint, after reading every file.

    Raises:
        UserError: lists every problem found.
    """
    dataset = Dataset.load(raw)
    return dataset, dataset_fingerprint(dataset.name, verified_cases(dataset, reporter))


def verified_cases(dataset: Dataset, reporter: Reporter) -> dict[str, dict[str, Any]]:
    """The fingerprint of each training case, after reading every file.

    Raises:
        UserError: lists every problem found.
    """
    measured: dict[str, dict[str, Any]] = {}
    ct = [is_ct(name) for name in dataset.channel_names]
    not_hu: list[str] = []
    notes: list[str] = []
    used: set[int] = set()

    def measure(case: Case, image: Volume, label: Volume | None) -> None:
        geometry = image.geometry
        if label is not None:
            used.update(map(int, np.unique(label.array)))
        measured[case.name] = case_fingerprint(image.array, geometry.spacing, geometry.orientation, ct=ct)
        if (faulty := measured[case.name]["outliers"]) >= NOTED:
            notes.append(
                f"case {case.name}: {faulty} voxels have extreme intensities or lie in faulty slices and are replaced; "
                "is the file damaged?"
            )
        for name, channel in zip(dataset.channel_names, image.array, strict=True):
            if problem := hu_rule(name, hu_histogram(channel) if is_ct(name) else None):
                (not_hu if problem.certain else notes).append(f"case {case.name}: {problem.sentence}")
        notes.extend(f"case {case.name}: {line}" for line in copied_channels(dataset.channel_names, image.array))
        for what, volume in (("", image), ("label map: ", label)):
            notes.extend(f"case {case.name}: {what}{note}" for note in getattr(volume, "notes", ()))

    problems = verify(dataset, measure, partial(reporter.iterate, description="verify", unit="scan"))
    raise_problems(dataset, [*problems, *not_hu])
    if absent := [f"{name} ({value})" for name, value in dataset.labels.items() if value and value not in used]:
        notes.append(
            f"no label map contains {', '.join(absent)}, named in dataset.json, so a model cannot learn it; annotate "
            "it in a case, or remove it from labels"
        )
    for note in notes:
        reporter.warning(f"  NOTE {note}")
    return measured


def _texts(changes: Mapping[str, Any]) -> dict[str, str]:
    """Changes as the command line gives them."""
    if not isinstance(changes, Mapping):
        raise UserError(f"changes {shown(changes)}: give a dict, as {{'recipe.optimizer.iterations': 1000}}")
    texts = {}
    for key, value in changes.items():
        if not isinstance(key, str):
            raise UserError(f"changes: {shown(key)} is no field; write recipe.optimizer.iterations, for example")
        try:
            texts[key] = value if isinstance(value, str) else json.dumps(value)
        except (TypeError, ValueError, RecursionError) as problem:
            raise UserError(f"changes: {key} is {shown(value)}, which is no JSON value ({problem})") from None
    return texts


def _check_options(
    plans_name: str,
    changes: Mapping[str, str],
    *,
    keep_plan: bool,
    overwrite: bool,
    memory_gb: float | None,
    gpus: int,
) -> None:
    if changes and plans_name == DEFAULT_NAME:
        raise UserError("--set makes another plan; give it its own name with -p NAME (not MREPlans)")
    if keep_plan and (changes or overwrite):
        raise UserError("--keep_plan uses the existing plan; leave out --set and --overwrite")
    if memory_gb is not None:
        require_number("--memory", memory_gb, 0.1, 1e5)
    require_whole("--gpus", gpus, 1, MAX_GPUS)
    require_plans_name("-p", plans_name)


def _check_kept_plan(plan: Plan, path: Path, dataset: Dataset) -> None:
    """Refuse a kept plan that was made for another dataset.json."""
    current = {
        "dataset_name": dataset.name,
        "channel_names": dataset.channel_names,
        "labels": dataset.labels,
        "ignore_label": dataset.ignore_label,
        "file_ending": dataset.file_ending,
    }
    for key, value in current.items():
        if getattr(plan, key) != value:
            raise UserError(
                f"{path}: {key} is {getattr(plan, key)!r}, the dataset's {value!r}; edit it, or plan again with "
                "--overwrite instead of --keep_plan"
            )


def _check_plan(plan: Plan, path: Path, *, overwrite: bool) -> None:
    """Refuse an existing plan that differs, unless ``overwrite``."""
    existing = load_plan(path) if path.is_file() and not overwrite else plan
    if existing != plan:
        why = first_difference(existing, plan)
        raise UserError(
            f"{path}: already exists and differs from the new plan ({why}; possible causes: edited by hand, "
            "other options, other scans); --keep_plan uses it, --overwrite replaces it, -p NAME makes another"
        )


def _check_shares(plan: Plan, gpus: int) -> None:
    try:
        Processes(0, gpus).require_shares(plan)
    except UserError as problem:
        raise UserError(f"--gpus {gpus}: {problem}") from None


def _report_plan(plan: Plan, path: Path, dataset: Dataset, reporter: Reporter) -> None:
    unlabelled = len(dataset.cases) - len(dataset.labelled)
    more = f", {unlabelled} without labels" if unlabelled else ""
    reporter.info(f"  {len(dataset.labelled)} labelled scans{more}")
    for decision, reason in plan.reasons.items():
        say = reporter.warning if reason.startswith("NOTE ") else reporter.info
        say(f"  {decision}: {reason}")
    axes = "(y, x)" if plan.network.axes == 2 else "(z, y, x)"
    reporter.info(f"  patch {plan.patch.size}, centre {plan.patch.centre} {axes}; plan written to {path}")
