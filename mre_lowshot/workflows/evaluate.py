"""Score predicted label maps against their references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mre_lowshot.config.check import require_number, require_path, require_whole
from mre_lowshot.config.json import suggest
from mre_lowshot.data.dataset import validate_labels
from mre_lowshot.data.volume import read_labels
from mre_lowshot.errors import UserError
from mre_lowshot.evaluation.label_files import label_files
from mre_lowshot.evaluation.metrics import MRBRAINS18_IGNORED, PROFILES
from mre_lowshot.evaluation.summary import (
    changed_summaries,
    evaluate_folder,
    format_table,
    rank_correlation,
    write_summary,
)
from mre_lowshot.files import read_json, remove_leftovers
from mre_lowshot.inference.quality import read_rows
from mre_lowshot.locks import locked, remove_stale
from mre_lowshot.plain import shown
from mre_lowshot.workflows.reporting import Reporter

EVALUATION_PROFILES = (*PROFILES, "bus")
MAX_TOLERANCE = 1e6  # mm


@dataclass(frozen=True)
class EvaluationResult:
    """Result of `evaluate`.

    Attributes:
        summary: content of summary.json.
        files: written.
    """

    summary: dict[str, Any]
    files: tuple[Path, ...]

    @property
    def complete(self) -> bool:
        """Whether every reference was compared with a prediction, and no file was left unread."""
        return not any(self.summary[key] for key in ("missing_predictions", "failed_cases", "unread_files"))

    @property
    def dice(self) -> float:
        """Mean Dice over labels."""
        dice: float = self.summary["foreground_mean"]["Dice"]
        return dice

    @property
    def nsd(self) -> float:
        """Mean normalised surface Dice (NSD) over labels."""
        nsd: float = self.summary["foreground_mean"]["NSD"]
        return nsd


def evaluate(
    reference: str | Path,
    prediction: str | Path,
    *,
    dataset_json: str | Path | None = None,
    output: str | Path | None = None,
    profile: str = "default",
    ignore: int | None = None,
    nsd_tolerance: float | Mapping[str, float] | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> EvaluationResult:
    """Compare predicted label maps with their references, case by case, and write summary.json and summary.csv.

    Args:
        reference, prediction: folders with label maps; files are paired by case name.
        dataset_json: lists the labels; None: one found in or above the two folders, else every value found.
        output: folder for the summary; None: ``prediction``.
        profile: ``default``, ``medpy``, ``mrbrains18`` or ``bus`` (`evaluation.metrics`).
        ignore: voxels with this reference label are excluded; None: the ``ignore`` label of dataset.json.
        nsd_tolerance: of the normalised surface Dice (NSD), in mm: one for all labels, or by label name; None, and
            labels that are not named: the longest side of the reference's voxels.
        overwrite: replace a summary.json and summary.csv that another program has written, or that were changed;
            without it they are refused before the work starts.
        reporter: receives progress and messages.

    Raises:
        UserError: a folder or label list is wrong, another evaluation writes into the folder, or a file of the user
            would be replaced. A case that cannot be compared is named in the summary instead.
    """
    reporter = reporter or Reporter()
    for name, folder in (("GT", reference), ("PRED", prediction), ("-djfile", dataset_json), ("-o", output)):
        if folder is not None or name in ("GT", "PRED"):
            require_path(name, folder)
    if ignore is not None:
        require_whole("--ignore", ignore, 0, 2**31 - 1)
    reference, prediction = Path(reference), Path(prediction)
    if profile not in EVALUATION_PROFILES:
        raise UserError(f"--profile {profile!r}: {suggest(profile, EVALUATION_PROFILES)}")
    out = Path(output) if output is not None else prediction
    if out.suffix == ".json":
        raise UserError(f"-o {out}: give a folder, not a file; summary.json and summary.csv are written into it")
    for folder in (reference, prediction):
        label_files(folder)  # a wrong folder is refused first
    labels, ignored = _labels(reference, prediction, dataset_json, profile, ignore, reporter)
    tolerances = _tolerances(nsd_tolerance, labels)
    with locked(out, "evaluate", "evaluates into it"):
        remove_stale(out)
        remove_leftovers(out)
        if not overwrite and (changed := changed_summaries(out)):
            names = ", ".join(path.name for path in changed)
            raise UserError(
                f"{out}: {names}: mre_evaluate has not written this, or it has changed since, so it is not replaced; "
                "give another folder with -o, or replace it with --overwrite"
            )
        summary = evaluate_folder(
            reference,
            prediction,
            labels,
            ignore_label=ignored,
            profile=profile,
            tolerances=tolerances,
            progress=partial(reporter.iterate, description="evaluate", unit="case"),
        )
        written = write_summary(summary, out)
    reporter.info(format_table(summary))
    if scores := _quality_scores(prediction, reporter):
        reporter.info(rank_correlation(summary, scores))
    reporter.info(f"written: {', '.join(map(str, written))}")
    return EvaluationResult(summary, written)


def labels_from_dataset_json(path: Path) -> tuple[dict[str, int], int | None]:
    """The foreground labels (name to value) and the ignore label of an nnU-Net dataset.json.

    Raises:
        UserError: missing, no JSON, no labels, region-based labels, or values that are not distinct whole numbers.
    """
    data = read_json(path, "labels")
    listed = validate_labels(data.get("labels") if isinstance(data, dict) else None, str(path))
    if len(set(listed.values())) < len(listed):
        raise UserError(f"{path}: two labels share a value: {listed}; give each its own")
    ignore = listed.get("ignore")
    return {name: value for name, value in listed.items() if value != 0 and name != "ignore"}, ignore


def _labels_found(folders: Sequence[Path]) -> dict[str, int]:
    """A label for every value but 0 in the readable label maps of ``folders``."""
    values: set[int] = set()
    for path in (path for folder in folders for files in label_files(folder).values() for path in files):
        try:
            values |= set(np.unique(read_labels(path).array).tolist())
        except Exception:
            continue  # the evaluation names the file and the reason
    return {f"label_{value}": value for value in sorted(values - {0})}


def _labels(
    reference: Path,
    prediction: Path,
    dataset_json: str | Path | None,
    profile: str,
    ignore: int | None,
    reporter: Reporter,
) -> tuple[dict[str, int], int | None]:
    """The labels to evaluate and the one to ignore; reports where they come from."""
    folders = [prediction, prediction / "..", reference, reference / ".."]
    candidates = (folder / "dataset.json" for folder in folders)
    found = Path(dataset_json) if dataset_json is not None else next((p for p in candidates if p.is_file()), None)
    own_ignore: int | None = None
    if found:
        labels, own_ignore = labels_from_dataset_json(found)
        reporter.info(f"labels from {found.resolve()}: {_listed(labels)}")
    else:
        labels = _labels_found([reference, prediction])
        reporter.info(f"no dataset.json found or given (-djfile): labels are the values found: {_listed(labels)}")
    ignore = ignore if ignore is not None else own_ignore
    ignored = {ignore} if ignore is not None else set()
    if profile == "mrbrains18":
        ignored |= set(MRBRAINS18_IGNORED)
    if ignored:
        reporter.info(f"voxels with these reference labels are excluded: {', '.join(map(str, sorted(ignored)))}")
    labels = {name: value for name, value in labels.items() if value not in ignored}
    if not labels:
        raise UserError(f"no label to evaluate in {reference} and {prediction}; give -djfile")
    return labels, ignore


def _tolerances(given: float | Mapping[str, float] | None, labels: Mapping[str, int]) -> dict[int, float]:
    """The tolerances of NSD by label value.

    Raises:
        UserError: a name is no label, or a tolerance is not from 0 to `MAX_TOLERANCE`.
    """
    option = "--nsd_tolerance"
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        return dict.fromkeys(labels.values(), require_number(option, given, 0, MAX_TOLERANCE))
    for name in given:
        if name not in labels:
            raise UserError(f"{option} {shown(name)}: is no evaluated label; {suggest(name, labels)}")
    return {labels[name]: require_number(f"{option} {name}=", mm, 0, MAX_TOLERANCE) for name, mm in given.items()}


def _listed(labels: dict[str, int]) -> str:
    return ", ".join(f"{value} {name}" for name, value in labels.items()) or "none"


def _quality_scores(folder: Path, reporter: Reporter) -> dict[str, float]:
    scores: dict[str, float] = {}
    for path in sorted(folder.glob("quality*.csv")):
        try:
            scores |= {name: float(row["score"]) for name, row in read_rows(path).items()}
        except UserError as problem:
            reporter.info(f"note: {problem}")
    return scores
