"""Summary of the metrics of many cases: nnU-Net's summary.json with additional keys, a CSV file and a text table.

A summary is a dict with the keys of summary.json. ``foreground_mean``, ``mean`` (per label value) and
``metric_per_case`` are those of nnU-Net; additional keys count the values left out of the means, missed and spurious
structures, and cases that could not be evaluated. Means exclude NaN (undefined); the file stores it as ``null``.
"""

from __future__ import annotations

import csv
import io
import logging
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from mre_lowshot.data.lost_headers import grid_fix
from mre_lowshot.data.pixel_size import UNIT_KEY, Unit, common_unit, states_pixel_size, unit_of
from mre_lowshot.data.volume import Volume, read_labels
from mre_lowshot.errors import UserError, describe_failure, log_unexpected
from mre_lowshot.evaluation.bus import BUS_METRICS, bus_metrics
from mre_lowshot.evaluation.label_files import label_files, unread_files
from mre_lowshot.evaluation.metrics import COUNTS, MRBRAINS18_IGNORED, Profile, case_metrics
from mre_lowshot.files import printable
from mre_lowshot.signed import changed_files, write_signed

SUMMARY, TABLE = "summary.json", "summary.csv"
LOGGER = logging.getLogger("mre_lowshot")
MAY_BE_UNDEFINED = ("Dice", "IoU", "HD95", "HD95_diagonal", "NSD")
METRICS = (*MAY_BE_UNDEFINED, *COUNTS, "volume_ref_ml", "volume_pred_ml")
VOLUMES = ("volume_ref_ml", "volume_pred_ml", "n_ref", "n_pred")
CSV_COLUMNS = ("Dice", "HD95", "HD95_diagonal", "NSD", "NSD_tolerance", *VOLUMES)


@dataclass(frozen=True)
class CaseResult:
    """The metrics of one case, and the paths of its files if it has any."""

    name: str
    metrics: Mapping[int, Mapping[str, float]]  # label value -> metric -> value, as `case_metrics` returns
    prediction_file: str = ""
    reference_file: str = ""
    unit: Unit = "mm"  # of distances


def summarise(
    cases: Sequence[CaseResult],
    labels: Mapping[str, int],
    *,
    ignore_label: int | None = None,
    profile: str = "default",
    tolerances: Mapping[int, float] | None = None,
) -> dict[str, Any]:
    """Means per label and over labels, with the numbers of values left out and of missed and spurious structures.

    ``missed_structures`` counts cases in which only the reference contains the structure, ``spurious_structures`` cases
    in which only the prediction does. The foreground mean averages the labels with a defined mean (nnU-Net's is NaN if
    one is undefined).

    Args:
        cases: metrics per case.
        labels: label name to value, without background.
        ignore_label: the value used in `case_metrics`; recorded only.
        profile: the profile used in `case_metrics`; recorded, and ``bus`` adds the means of `BUS_METRICS`.
        tolerances: those used in `case_metrics`; recorded as ``nsd_tolerance``, None where the spacing determined them.

    Returns:
        The summary, with the keys of summary.json.
    """
    rows = {value: [case.metrics[value] for case in cases] for value in labels.values()}
    names = (*METRICS, *_more(profile))
    means = {v: {m: mean_of_defined([row[m] for row in rows[v]]) for m in names} for v in rows}
    return {
        "foreground_mean": {m: mean_of_defined([means[v][m] for v in rows]) for m in names},
        "mean": {str(v): means[v] for v in rows},
        "number_of_cases": len(cases),
        "missed_structures": {str(v): sum(r["n_ref"] > 0 and r["n_pred"] == 0 for r in rows[v]) for v in rows},
        "spurious_structures": {str(v): sum(r["n_ref"] == 0 and r["n_pred"] > 0 for r in rows[v]) for v in rows},
        "nan_left_out": {str(v): _undefined(rows[v], profile) for v in rows},
        "nan_left_out_of_foreground_mean": _undefined(list(means.values()), profile),
        "labels": dict(labels),
        "ignore_label": ignore_label,
        "profile": profile,
        UNIT_KEY: common_unit(case.unit for case in cases),
        "nsd_tolerance": {str(v): (tolerances or {}).get(v) for v in rows},
        "missing_predictions": [],
        "extra_predictions": [],
        "failed_cases": {},
        "unlisted_labels": {},
        "unread_files": [],
        "metric_per_case": [
            {
                "case": case.name,
                "metrics": {str(v): dict(case.metrics[v]) for v in rows},
                "prediction_file": case.prediction_file,
                "reference_file": case.reference_file,
            }
            for case in cases
        ],
    }


def evaluate_folder(
    reference_dir: Path,
    prediction_dir: Path,
    labels: Mapping[str, int],
    *,
    ignore_label: int | None = None,
    profile: str = "default",
    tolerances: Mapping[int, float] | None = None,
    progress: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> dict[str, Any]:
    """Evaluate every label map in ``prediction_dir`` against the reference with the same case name.

    A case that cannot be evaluated (unreadable file, different grid, two files of one name, ...) is listed in
    ``failed_cases`` with the reason, and the others are evaluated. ``missing_predictions`` and ``extra_predictions``
    list files without counterpart, ``unlisted_labels`` the label values of a case that are not in ``labels``; these
    are not evaluated. ``unread_files`` has a line for each entry of either folder that looks like an image and is not
    read.

    Args:
        reference_dir: folder with the reference label maps.
        prediction_dir: folder with the predicted label maps.
        labels: label name to value, without background.
        ignore_label: voxels with this reference label are excluded.
        profile: definition of HD95 (`evaluation.metrics`), or ``bus`` for breast ultrasound.
        tolerances: of NSD by label value, in mm; None or not listed: derived from the reference's spacing.
        progress: wraps the sequence of case names.

    Returns:
        The summary, see `summarise`.

    Raises:
        UserError: a folder is missing or contains no label maps, or no case occurs in both.
    """
    references, predictions = label_files(reference_dir), label_files(prediction_dir)
    common = [name for name in references if name in predictions]
    if not common:
        raise UserError(
            f"{prediction_dir}: none of its {len(predictions)} label maps has the name of a reference in "
            f"{reference_dir} (for example {next(iter(references))}); give the matching folders"
        )
    known = {0, *labels.values()} | ({ignore_label} if ignore_label is not None else set())
    known |= set(MRBRAINS18_IGNORED) if profile == "mrbrains18" else set()
    results: list[CaseResult] = []
    failed: dict[str, str] = {}
    unlisted: dict[str, list[int]] = {}
    for name in progress(common):
        try:
            reference, prediction = _read_pair(name, references[name], predictions[name])
            metrics = _metrics(name, reference, prediction, labels, ignore_label, profile, tolerances)
        except Exception as problem:  # the others are evaluated all the same
            log_unexpected(problem, LOGGER.warning)
            failed[name] = describe_failure(problem, name)
            continue
        results.append(CaseResult(name, metrics, str(prediction.path), str(reference.path), unit_of_volume(reference)))
        unknown = (set(np.unique(reference.array).tolist()) | set(np.unique(prediction.array).tolist())) - known
        if unknown:
            unlisted[name] = sorted(unknown)
    return summarise(results, labels, ignore_label=ignore_label, profile=profile, tolerances=tolerances) | {
        "missing_predictions": [name for name in references if name not in predictions],
        "extra_predictions": [name for name in predictions if name not in references],
        "failed_cases": failed,
        "unlisted_labels": unlisted,
        "unread_files": [line for folder in (reference_dir, prediction_dir) for line in unread_files(folder)],
    }


def unit_of_volume(volume: Volume) -> Unit:
    """The unit of distances on the grid of a label map: pixels where its file states no pixel size."""
    return "mm" if states_pixel_size(volume.path, volume.geometry) else "px"


def write_summary(summary: Mapping[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write summary.json and summary.csv (one row per case and label, an empty cell for NaN); return both paths.

    They replace what is there; `changed_summaries` finds files that are not this product's.
    """
    names = {str(value): name for name, value in summary["labels"].items()}
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    columns = (*CSV_COLUMNS, *_more(summary["profile"]))
    table.writerow(["case", "label", "name", *columns])
    for case in summary["metric_per_case"]:
        for label, row in case["metrics"].items():
            values = ["" if _is_nan(row[m]) else row[m] for m in columns]
            table.writerow([case["case"], label, names[label], *values])
    written = write_signed(folder / SUMMARY, dict(summary), {TABLE: text.getvalue()})
    return written[0], written[1]


def changed_summaries(folder: Path) -> list[Path]:
    """summary.json and summary.csv where another program has written or someone has changed them."""
    return changed_files(folder / SUMMARY, [TABLE])


def format_table(summary: Mapping[str, Any]) -> str:
    """The summary as a text table: one line per label, their mean, and notes on missing and failed cases.

    Accepts a summary from `summarise` or one read from summary.json.
    """
    unit = unit_of(summary.get(UNIT_KEY))
    head = ("label", "name", "Dice", "n", f"HD95 {unit}", "n", f"HD95* {unit}", "NSD", "missed", "spurious")
    lines: list[tuple[str, ...]] = [head]
    for name, value in summary["labels"].items():
        key = str(value)
        cells = _cells(summary["mean"][key], summary["number_of_cases"], summary["nan_left_out"][key])
        lines.append(
            (key, name, *cells, str(summary["missed_structures"][key]), str(summary["spurious_structures"][key]))
        )
    cells = _cells(summary["foreground_mean"], len(summary["labels"]), summary["nan_left_out_of_foreground_mean"])
    missed, spurious = (sum(summary[f"{kind}_structures"].values()) for kind in ("missed", "spurious"))
    lines.append(("mean", "", *cells, str(missed), str(spurious)))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = [
        "  ".join(
            cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    text += [
        f"{summary['number_of_cases']} cases. n: values in the mean (cases per label; labels in the last line); "
        "a structure absent from both label maps is left out.",
        "missed, spurious: structures in the reference only, in the prediction only (Dice and NSD 0, no HD95; HD95* "
        "uses the image diagonal).",
        _nsd_line(summary),
    ]
    return "\n".join([*text, *_bus_lines(summary), *_notes(summary)])


def _nsd_line(summary: Mapping[str, Any]) -> str:
    """The tolerances of NSD as one line of text."""
    if "nsd_tolerance" not in summary:
        return "NSD: not in this summary, which an older version has written."
    unit = unit_of(summary.get(UNIT_KEY))
    given = {name: summary["nsd_tolerance"][str(value)] for name, value in summary["labels"].items()}
    common = set(given.values())
    if common == {None}:
        used = {row["NSD_tolerance"] for case in summary["metric_per_case"] for row in case["metrics"].values()}
        low, high = min(used, default=math.nan), max(used, default=math.nan)
        sizes = "" if not used else f", {low:.4g} {unit}" if low == high else f", {low:.4g} to {high:.4g} {unit}"
        text = f"the longest voxel side of each reference{sizes} (--nsd_tolerance sets it)"
    elif len(common) == 1:
        text = f"{common.pop():g} {unit}"
    else:
        text = ", ".join(f"{name} {'voxel side' if t is None else f'{t:g} {unit}'}" for name, t in given.items())
    return f"NSD: fraction of both surfaces within a tolerance of the other one; tolerance: {text}." + (
        " The images state no pixel size: distances are in pixels (px)." if unit == "px" else ""
    )


def _bus_lines(summary: Mapping[str, Any]) -> list[str]:
    """With profile bus: mean and standard deviation over images (ddof 1) in percent, one line per label."""
    if summary["profile"] != "bus":
        return []
    lines = ["breast ultrasound, mean (SD) over images, %: ARE averaged radial error, TP |S and R|/|R|, FP |S - R|/|R|"]
    for name, value in summary["labels"].items():
        cells = []
        for title, metric in zip(("F1", "ARE", "TP", "FP"), BUS_METRICS, strict=True):
            values = [case["metrics"][str(value)][metric] for case in summary["metric_per_case"]]
            defined = [100 * v for v in values if not _is_nan(v)]
            spread = f" ({statistics.stdev(defined):.2f})" if len(defined) > 1 else ""
            cells.append(f"{title} {statistics.fmean(defined):.2f}{spread}" if defined else f"{title} -")
        lines.append(f"{value}  {name}  " + "  ".join(cells))
    return lines


def rank_correlation(summary: Mapping[str, Any], scores: Mapping[str, float] | None = None) -> str:
    """Correlation of quality estimates with the mean Dice of the cases, as a sentence.

    ``scores`` maps case names to quality estimates; None takes those in the summary (`trainers.fold.validate`).
    """
    from scipy.stats import pearsonr, spearmanr

    pairs = []
    for case in summary["metric_per_case"]:
        score = scores.get(printable(case["case"])) if scores is not None else case.get("quality")
        dices = [row["Dice"] for row in case["metrics"].values() if not _is_nan(row["Dice"])]
        if score is not None and dices:
            pairs.append((score, mean_of_defined(dices)))
    if len(pairs) < 3 or any(len(set(values)) < 2 for values in zip(*pairs, strict=True)):
        return f"quality estimate: {len(pairs)} scans are too few, or too alike, for a correlation with Dice"
    one, other = zip(*pairs, strict=True)
    rank, linear = spearmanr(one, other).statistic, pearsonr(one, other).statistic
    return f"quality estimate against Dice: rank correlation {rank:.2f}, linear {linear:.2f} over {len(pairs)} scans"


def _cells(means: Mapping[str, float], n: int, left_out: Mapping[str, int]) -> tuple[str, ...]:
    def number(metric: str, digits: int) -> str:
        value = means.get(metric)
        return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"

    n_dice, n_hd95 = str(n - left_out["Dice"]), str(n - left_out["HD95"])
    return number("Dice", 4), n_dice, number("HD95", 2), n_hd95, number("HD95_diagonal", 2), number("NSD", 4)


def _notes(summary: Mapping[str, Any]) -> list[str]:
    notes = []
    for key, what in (
        ("missing_predictions", "without a prediction (not in the means)"),
        ("extra_predictions", "predicted without a reference (not evaluated)"),
    ):
        if summary[key]:
            notes.append(f"{len(summary[key])} {what}: {', '.join(summary[key])}")
    for case, values in summary["unlisted_labels"].items():
        notes.append(
            f"case {case}: contains label values {', '.join(map(str, values))}, which are not listed: not evaluated"
        )
    notes += [f"not evaluated: {reason}" for reason in summary["failed_cases"].values()]
    return notes + [f"not evaluated: {line}" for line in summary.get("unread_files", ())]


def _read_pair(name: str, references: list[Path], predictions: list[Path]) -> tuple[Volume, Volume]:
    for files in (references, predictions):
        if len(files) > 1:
            raise UserError(f"case {name}: {len(files)} files in {files[0].parent}: {_names(files)}; keep one of them")
    reference, prediction = read_labels(references[0]), read_labels(predictions[0])
    different = reference.geometry.differences(prediction.geometry)
    if different:
        fix = grid_fix(
            [reference.geometry, prediction.geometry],
            [reference.notes, prediction.notes],
            [references[0], predictions[0]],
            names=("reference", "prediction"),
            resample="resample it onto the reference with nearest-neighbour interpolation",
        )
        doubts = [f"{v.path}: {n}" for v in (reference, prediction) for n in v.notes]
        why = f" ({'; '.join(doubts)})" if doubts else ""
        raise UserError(
            f"case {name}: {predictions[0]} is not on the grid of the reference ({'; '.join(different)}; reference "
            f"first){why}; {fix}"
        )
    return reference, prediction.on_axes_of(reference.geometry)


def _metrics(
    name: str,
    reference: Volume,
    prediction: Volume,
    labels: Mapping[str, int],
    ignore: int | None,
    profile: str,
    tolerances: Mapping[int, float] | None,
) -> dict[int, dict[str, float]]:
    """`case_metrics`, with profile bus also `bus_metrics`."""
    spacing, bus = reference.geometry.spacing, profile == "bus"
    measured: Profile = "default" if bus else cast(Profile, profile)
    rows = case_metrics(reference.array, prediction.array, labels, spacing, ignore, measured, tolerances)
    if not bus:
        return rows
    try:
        more = bus_metrics(reference.array, prediction.array, labels, spacing, ignore)
    except UserError as problem:
        raise UserError(f"case {name}: {problem}") from None
    return {value: {**rows[value], **more[value]} for value in rows}


def _more(profile: str) -> tuple[str, ...]:
    return BUS_METRICS if profile == "bus" else ()


def _names(files: Sequence[Path]) -> str:
    return ", ".join(path.name for path in files)


def _is_nan(value: float | None) -> bool:
    return value is None or math.isnan(value)


def mean_of_defined(values: Sequence[float]) -> float:
    """The mean of the values that are not NaN; NaN where there is none."""
    defined = [v for v in values if not math.isnan(v)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def _undefined(rows: Sequence[Mapping[str, float]], profile: str) -> dict[str, int]:
    return {m: sum(math.isnan(row[m]) for row in rows) for m in (*MAY_BE_UNDEFINED, *_more(profile))}
