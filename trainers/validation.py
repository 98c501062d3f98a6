"""Scoring of a fold's test scans: each is segmented, written on its own grid and compared with its label map there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mre_lowshot.config import Plan
from mre_lowshot.data.volume import read_labels
from mre_lowshot.errors import describe_failure, log_unexpected
from mre_lowshot.evaluation import registration_alone
from mre_lowshot.evaluation.bus import bus_metrics
from mre_lowshot.evaluation.calibration import Calibration
from mre_lowshot.evaluation.metrics import case_metrics
from mre_lowshot.evaluation.summary import CaseResult, changed_summaries, summarise, unit_of_volume, write_summary
from mre_lowshot.inference.export import Prediction
from mre_lowshot.inference.quality import write_qualities
from mre_lowshot.inference.sliding_window import log_to_stderr
from mre_lowshot.inference.written import WrittenMaps
from mre_lowshot.preprocessing.record import read_record, reference_of
from mre_lowshot.preprocessing.store import PreparedCase, load_case
from mre_lowshot.signed import set_aside


@dataclass(frozen=True)
class ScoredFold:
    """Where the scans of a fold come from, and where its label maps and scores go.

    Attributes:
        prepared: preprocessed/DatasetXXX_Name.
        plan: of the fold.
        folder: validation/ of the fold.
    """

    prepared: Path
    plan: Plan
    folder: Path

    def path_of(self, name: str) -> Path:
        """The label map of a scan."""
        return self.folder / f"{name}{self.plan.file_ending}"


def score_scans(
    fold: ScoredFold,
    names: Sequence[str],
    segment: Callable[[PreparedCase], Prediction],
    *,
    warped: MutableMapping[str, np.ndarray] | None = None,
    more: Mapping[str, Any] | None = None,
    learned_from: Collection[str] = (),
    on_case: Callable[[str], None] | None = None,
    log: Callable[[str], None] = log_to_stderr,
) -> dict[str, Any]:
    """Segment preprocessed cases, write the label maps on the scans' own grids and score them there.

    Writes ``<case><ending>``, ``summary.json``, ``summary.csv`` and ``quality.csv``. A summary or label map that
    someone has changed is kept as ``summary.json.old``. A scan that fails is listed in ``failed_cases``.

    Args:
        fold: the fold.
        names: of its test cases.
        segment: a preprocessed case to its prediction. Where all predictions have probabilities, the summary has their
            ``calibration`` on the plan's grid.
        warped: receives from ``segment`` the label maps (D, H, W) that registration alone gives, by case; they are
            scored and removed.
        more: further entries of the summary.
        learned_from: cases that a baseline learned from, training scans included.
        on_case: called with the name of each case that was scored.
        log: receives messages.

    Returns:
        The summary, with each case's quality score (``quality``) beside its metrics, and of images those of breast
        ultrasound (``bus``, `evaluation.bus`); ``inputs`` has a hash of the scan and the label map of each case that
        was trained on or scored, and ``learned_from`` names those cases where there are any.
    """
    plan, folder = fold.plan, fold.folder
    labels = {name: value for name, value in plan.labels.items() if value}
    results, failed, qualities, warnings, calibration = [], {}, {}, {}, Calibration()
    images: dict[str, dict[int, dict[str, float]]] = {}
    alone: dict[str, dict[str, float]] = {}
    record, maps, calibrated = read_record(plan, fold.prepared), WrittenMaps(folder), True
    for name in names:
        out = fold.path_of(name)
        try:
            case = load_case(fold.prepared / plan.plans_name, name, plan)
            reference = reference_of(plan, fold.prepared, name, record)
            prediction = segment(case)
            for aside in maps.save(out, prediction.save):
                log(f"note: {out} was changed since it was written; the changed one is kept as {aside.name}")
            truth = read_labels(reference, like=prediction.labels.geometry)
            predicted, spacing = prediction.labels.array, truth.geometry.spacing
            metrics = case_metrics(truth.array, predicted, labels, spacing, ignore_label=plan.ignore_label)
            moved = warped.pop(name, None) if warped is not None else None
            before = moved is not None and registration_alone.label_dice(truth.array, moved, labels, plan.ignore_label)
            if predicted.shape[0] == 1:
                images[name] = bus_metrics(truth.array, predicted, labels, spacing, ignore_label=plan.ignore_label)
            if (refined := prediction.refined) is None:
                calibrated = False
            else:
                calibration.add(refined.calibrate(refined.array), case.needed_label())
        except Exception as problem:  # whatever one scan fails with, the others are scored
            failed[name] = describe_failure(problem, name)
            log_unexpected(problem, log)
            continue
        qualities[name], warnings[name] = prediction.quality, prediction.warnings
        if before:
            alone[name] = before
        results.append(CaseResult(name, metrics, str(out), str(reference), unit_of_volume(truth)))
        if on_case:
            on_case(name)
    summary = {**summarise(results, labels, ignore_label=plan.ignore_label), "failed_cases": failed}
    for row in summary["metric_per_case"]:
        row["quality"] = qualities[row["case"]].score
        if row["case"] in images:
            row["bus"] = {str(value): metrics for value, metrics in images[row["case"]].items()}
        if row["case"] in alone:
            row[registration_alone.KEY] = alone[row["case"]]
    summary |= {"calibration": calibration.to_data()} if calibrated else {}
    if alone and len(alone) == len(results):
        summary[registration_alone.KEY] = registration_alone.summarise(list(alone.values()))
    summary |= more or {}
    if learned_from:
        summary["learned_from"] = sorted(learned_from)
    used = dict.fromkeys((*(plan.fold.train if plan.fold else ()), *learned_from, *names))
    summary["inputs"] = record.contents(used)
    set_aside(changed_summaries(folder))
    write_summary(summary, folder)
    write_qualities(folder, qualities, plan.labels, warnings=warnings)
    return summary
