"""The content of a report on a trained model: its folds' test scans, curves, decisions and calibration."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from mre_lowshot.config import Plan
from mre_lowshot.config.json import to_json
from mre_lowshot.config.plan_files import load_plan
from mre_lowshot.data.colours import label_colours
from mre_lowshot.errors import UserError
from mre_lowshot.evaluation import registration_alone
from mre_lowshot.evaluation.label_files import label_files
from mre_lowshot.inference.quality import OWN_COLUMNS
from mre_lowshot.preprocessing.record import REFERENCES, Record, read_record
from mre_lowshot.report import facts, stored
from mre_lowshot.report.case_reading import CaseFiles, Reading, find_image, labels_of, with_metrics
from mre_lowshot.report.content import (
    Calibration,
    CaseContent,
    Decision,
    Fact,
    Label,
    LabelScore,
    Report,
    Training,
    mean_of,
    ordered,
)
from mre_lowshot.report.findings import with_findings
from mre_lowshot.trainers.step_log import NAME as STEPS

CASES = "metric_per_case"  # of summary.json
MOST_POINTS = 300  # of a curve
# Where the value of a decision is in the plan, for those whose reason does not state it.
_VALUES = {
    "crop": "preprocessing.crop",
    "grid": "preprocessing.grid",
    "patch": "patch.size",
    "dilations": "network.dilations",
    "registration": "recipe.atlas.registration",
    "iterations": "recipe.optimizer.iterations",
    "recipe": "recipe.name",
    "reregistration": "recipe.refinement.reregister_below",
    "majority": "fold.majority",
    "mirrored_atlases": "fold.mirrored_atlases",
    "atlas_weight": "fold.atlas_weight",
    "crf_weight": "fold.crf_weight",
}
Progress = Callable[[Sequence[CaseFiles]], Iterable[CaseFiles]]


@dataclass(frozen=True)
class Sources:
    """What a report is made of, besides its folder.

    Attributes:
        reference: folder with reference label maps, None: those that the folder names.
        images: folder with the scans, None: where they were.
        max_size: voxels along each axis of the images; 0: no images.
        progress: wraps the cases.
    """

    reference: Path | None = None
    images: Path | None = None
    max_size: int = 160
    progress: Progress = iter


def folds_of(folder: Path) -> list[Path]:
    """The folders of a model's folds, by number."""
    found = [path for path in folder.glob("fold_*") if path.name[5:].isdecimal() and (path / "plans.json").is_file()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def model_report(folder: Path, sources: Sources) -> Report:
    """The report on a model's folder, or on the folder of one fold.

    Raises:
        UserError: it holds no fold, or a plan that cannot be read.
    """
    single = folder.name.startswith("fold_") and not folds_of(folder)
    folds = [folder] if single else folds_of(folder)
    plans = {fold: load_plan(fold / "plans.json") for fold in folds}
    if not plans:
        raise UserError(f"{folder}: holds no fold (fold_N/plans.json); train one with mre_train")
    plan = next(iter(plans.values()))
    labels = plan_labels(plan, folder.parent if single else folder)
    cases = fold_cases(plans, labels, sources, named=len(folds) > 1)
    headline = facts.headline(cases, labels)
    trainings = tuple(training(fold, plans[fold], fold.name.replace("_", " ")) for fold in folds)
    model = folder.parent if single else folder
    about = [
        ("model", str(model)),
        ("dataset", plan.dataset_name),
        ("channels", ", ".join(plan.channel_names)),
        ("folds", ", ".join(fold.name[5:] for fold in folds)),
    ]
    return Report(
        kind="model",
        title=f"{plan.dataset_name}: {plan.plans_name}, {plan.fold.level if plan.fold else 'model'}",
        about=(*about, *_last_run(folds[-1])),
        labels=labels,
        cases=cases,
        facts=(*headline[:1], *_registration_alone(folds), *headline[1:]),
        warnings=_warnings(folds, cases),
        trainings=tuple(t for t in trainings if t.iterations),
        calibrations=tuple(c for fold in folds if (c := _calibration(fold))),
        decisions=decisions(plans),
        plan=json.dumps(to_json(plan), indent=1),
    )


def plan_labels(plan: Plan, model: Path) -> tuple[Label, ...]:
    """The plan's labels, with the colours of the model's dataset.json."""
    given = stored.table(stored.json_of(model / "dataset.json").get("label_colours"))
    try:
        colours = label_colours(plan.labels, {k: v for k, v in given.items() if k in plan.labels})
    except UserError:
        colours = label_colours(plan.labels)
    return labels_of([(value, name, colours.get(value, "")) for name, value in plan.labels.items()])


def fold_cases(
    plans: Mapping[Path, Plan], labels: tuple[Label, ...], sources: Sources, *, named: bool, prefix: str = ""
) -> tuple[CaseContent, ...]:
    """The test scans of folds, the worst first.

    Args:
        plans: of the folds' folders.
        labels: of the report.
        sources: references, images and size.
        named: whether each case states its fold.
        prefix: begins that text.
    """
    files = []
    for fold, plan in plans.items():
        group = f"{prefix}fold {fold.name[5:]}" if named else prefix.rstrip(", ")
        files += _case_files(fold, plan, group, labels, sources)
    ignore = next(iter(plans.values())).ignore_label
    reading = Reading(
        labels, ignore, sources.images, sources.max_size, next(iter(plans.values())).preprocessing.is_ct[0]
    )
    return ordered(with_findings([reading.read(one) for one in sources.progress(files)], labels))


def _case_files(fold: Path, plan: Plan, group: str, labels: Sequence[Label], sources: Sources) -> list[CaseFiles]:
    summary = stored.json_of(fold / "validation" / "summary.json")
    rows, _ = stored.quality_rows(fold / "validation")
    given = label_files(sources.reference) if sources.reference is not None else {}
    found, record = [], None
    for entry in map(stored.table, stored.items(summary.get("metric_per_case"))):
        name, metrics = stored.text(entry.get("case")), stored.table(entry.get("metrics"))
        if not name or "/" in name or "\\" in name:
            continue
        row = rows.get(name, {})
        scores = []
        for label in labels:
            column = f"label_{label.name}" if label.name in OWN_COLUMNS else label.name
            score = LabelScore(label.value, quality=stored.cell(row, column))
            scores.append(with_metrics(score, stored.table(metrics.get(str(label.value)))))
        reference = Path(stored.text(entry.get("reference_file")) or "?")
        if record is None:
            record = record_beside(reference, plan)
        shown = given[name][0] if name in given else reference
        missing = (
            () if shown.is_file() else (f"reference: {shown} is not there any more; -ref FOLDER names the folder",)
        )
        content = CaseContent(
            name,
            group,
            missing=missing,
            quality=stored.number(entry.get("quality")),
            labels=tuple(scores),
            warnings=tuple(filter(None, row.get("warnings", "").split("; "))),
        )
        found.append(
            CaseFiles(
                content,
                scan=raw_scan(record, reference.parent.parent, name),
                prediction=find_image(fold / "validation", name),
                reference=shown if shown.is_file() else None,
                scored=True,
            )
        )
    failed = stored.table(summary.get("failed_cases"))
    return found + [CaseFiles(CaseContent(name, group, failed=stored.text(why))) for name, why in failed.items()]


def record_beside(reference: Path, plan: Plan) -> Record | None:
    """The record of the preprocessed cases beside a reference that was scored against; None where there is none."""
    if reference.parent.name != REFERENCES:
        return None
    try:
        return read_record(plan, reference.parent.parent)
    except (UserError, OSError):
        return None


def raw_scan(record: Record | None, prepared: Path, name: str) -> tuple[Path, ...]:
    """The files of a preprocessed case's scan."""
    raw = record.raw_folder(prepared) if record else None
    if record is None or raw is None or name not in record.cases:
        return ()
    return tuple(raw / file.file for file in record.cases[name].images)


def validation_scans(folder: Path) -> dict[str, tuple[Path, ...]]:
    """The scans of the label maps in a fold's ``validation``, by case, where its dataset is still there."""
    summary = stored.json_of(folder / "summary.json")
    found: dict[str, tuple[Path, ...]] = {}
    try:
        plan = load_plan(folder.parent / "plans.json")
    except UserError:
        return found
    record = None
    for entry in map(stored.table, stored.items(summary.get("metric_per_case"))):
        name, reference = stored.text(entry.get("case")), Path(stored.text(entry.get("reference_file")) or "?")
        record = record or record_beside(reference, plan)
        files = raw_scan(record, reference.parent.parent, name)
        if files and all(path.is_file() for path in files):
            found[name] = files
    return found


def training(fold: Path, plan: Plan, name: str) -> Training:
    """The curves of a fold, of at most `MOST_POINTS` points: means over iterations."""
    rows = [row for row in stored.lines_of(fold / STEPS) if isinstance(row.get("iteration"), int)]
    keys = ("loss", "patch_dice", "learning_rate")
    bins = np.array_split(np.arange(len(rows)), min(len(rows), MOST_POINTS)) if rows else []
    curves = {key: tuple(mean_of([stored.number(rows[i].get(key)) for i in one]) for one in bins) for key in keys}
    runs = stored.items(stored.json_of(fold / "run.json").get("runs"))
    return Training(
        name,
        plan.fold.train if plan.fold else (),
        tuple(int(rows[one[-1]]["iteration"]) for one in bins),
        curves["loss"],
        curves["patch_dice"],
        curves["learning_rate"],
        math.fsum(s for row in rows if not math.isnan(s := stored.number(row.get("seconds")))),
        stored.text(stored.table(runs[-1]).get("status")) if runs else "",
    )


def decisions(plans: Mapping[Path, Plan]) -> dict[str, tuple[Decision, ...]]:
    """The decisions of the plan, and those of each fold, with their reasons."""
    found = {}
    for fold, plan in plans.items():
        if "plan" not in found:
            shared = replace(plan, fold=None)
            found["plan"] = tuple(_decision(shared, name, reason) for name, reason in plan.reasons.items())
        if plan.fold:
            found[fold.name.replace("_", " ")] = tuple(
                _decision(plan, name, reason) for name, reason in plan.fold.reasons.items()
            )
    return found


def _decision(plan: Plan, name: str, reason: str) -> Decision:
    field = _VALUES.get(name, "")
    value: Any = attrgetter(field)(plan) if field and (plan.fold or not field.startswith("fold.")) else ""
    if name == "grid" and value in ("spacing", "size"):
        value = getattr(plan.preprocessing, value)
    if name == "majority":
        value = [label for label, number in plan.labels.items() if number in value]
    if isinstance(value, (list, tuple)):
        numbers = all(isinstance(one, (int, float)) for one in value)
        value = (" \u00d7 " if numbers else ", ").join(map(str, value))
    return Decision(name, {True: "yes", False: "no"}.get(value, str(value)), reason)


def _calibration(fold: Path) -> Calibration | None:
    data = stored.table(stored.json_of(fold / "validation" / "summary.json").get("calibration"))
    bins = tuple(
        (stored.number(one.get("confidence")), stored.number(one.get("accuracy")), int(stored.number(one["voxels"])))
        for one in map(stored.table, stored.items(data.get("bins")))
        if stored.number(one.get("voxels")) > 0
    )
    return Calibration(fold.name.replace("_", " "), stored.number(data.get("ece")), bins) if bins else None


def _registration_alone(folds: Sequence[Path]) -> list[Fact]:
    """The Dice of the warped labels, where they were scored for all test scans; averaged as in `facts.headline`."""
    by_label: dict[str, list[float]] = {}
    for fold in folds:
        for row in map(stored.table, stored.items(stored.json_of(fold / "validation" / "summary.json").get(CASES))):
            alone = stored.table(row.get(registration_alone.KEY))
            if not alone:
                return []
            for value, dice in alone.items():
                by_label.setdefault(value, []).append(stored.number(dice))
    mean = mean_of(mean_of(values) for values in by_label.values())
    if math.isnan(mean):
        return []
    note = "mean Dice of the warped labels, before network and refinement"
    return [Fact("Dice, registration alone", facts.shown(mean), note)]


def _warnings(folds: Sequence[Path], cases: Sequence[CaseContent]) -> tuple[str, ...]:
    found = []
    for fold in folds:
        runs = stored.items(stored.json_of(fold / "run.json").get("runs"))
        last = stored.table(runs[-1]) if runs else {}
        if last.get("status") not in (None, "complete", "running"):
            reason = f": {stored.text(last.get('reason'))}" if last.get("reason") else ""
            found.append(f"{fold.name}: the last run of mre_train was {stored.text(last.get('status'))}{reason}")
        if not (fold / "validation" / "summary.json").is_file():
            found.append(f"{fold.name}: no test scan was scored (mre_train --val scores them)")
    return tuple(found)


def _last_run(fold: Path) -> list[tuple[str, str]]:
    runs = stored.items(stored.json_of(fold / "run.json").get("runs"))
    return facts.run_facts(stored.table(runs[-1])) if runs else []


def with_model(report: Report, model: Path, folds: Sequence[int]) -> Report:
    """A report with the curves and decisions of the model that made its label maps, where the model is still there."""
    try:
        plans = {fold: load_plan(fold / "plans.json") for fold in folds_of(model) if int(fold.name[5:]) in folds}
    except UserError:
        return report
    if not plans:
        return report
    trainings = (training(fold, plan, fold.name.replace("_", " ")) for fold, plan in plans.items())
    return replace(
        report,
        trainings=tuple(t for t in trainings if t.iterations),
        calibrations=tuple(c for fold in plans if (c := _calibration(fold))),
        decisions=decisions(plans),
        plan=json.dumps(to_json(next(iter(plans.values()))), indent=1),
    )
