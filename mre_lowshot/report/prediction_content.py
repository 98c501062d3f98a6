"""The content of a report on a folder of mre_predict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mre_lowshot.config import Plan
from mre_lowshot.config.plan_files import load_plan
from mre_lowshot.data.colours import palette_colour
from mre_lowshot.data.readers import READABLE_ENDINGS, file_ending, without_voxel_files
from mre_lowshot.errors import UserError
from mre_lowshot.evaluation.label_files import label_files
from mre_lowshot.evaluation.summary import SUMMARY
from mre_lowshot.inference.quality import OWN_COLUMNS
from mre_lowshot.inference.record import CORRECTED, read_records, was_changed
from mre_lowshot.report import facts, stored
from mre_lowshot.report.case_reading import CaseFiles, Reading, labels_of, with_metrics
from mre_lowshot.report.content import CaseContent, Label, LabelScore, Report, ordered
from mre_lowshot.report.findings import with_findings
from mre_lowshot.report.model_content import Sources, plan_labels, with_model


def prediction_report(folder: Path, sources: Sources) -> Report:
    """The report on the label maps of a folder.

    Raises:
        UserError: it holds no record of a prediction, or the folder of references holds none.
    """
    records = read_records(folder)
    qualities, problems = stored.quality_rows(folder)
    if not records and not qualities:
        raise UserError(f"{folder}: holds no run.json and no quality.csv of mre_predict; give a folder that it wrote")
    problems += stored.unreadable_records(folder)
    entries = {name: stored.table(entry) for record in records for name, entry in record["cases"].items()}
    runs = [stored.table(run) for record in records for run in record["runs"].values()]
    run = max(runs, key=lambda found: stored.text(found.get("started")), default={})
    described = stored.table(run.get("model"))
    model = Path(stored.text(described.get("folder")) or "?")
    summary = stored.json_of(folder / SUMMARY) if sources.reference is None else {}
    labels = _labels(folder, model, summary, qualities)
    references = label_files(sources.reference) if sources.reference is not None else {}
    if references and not set(references) & {*entries, *qualities}:
        names = f"(for example {next(iter(entries or qualities))})" if entries or qualities else "(it has none)"
        raise UserError(
            f"-ref {sources.reference}: none of its {len(references)} label maps has the name of a case of {folder} "
            f"{names}; give the matching folder"
        )
    files = []
    for name in dict.fromkeys([*entries, *qualities]):
        found = _case(folder, name, entries.get(name, {}), qualities.get(name, {}), labels)
        files.append(_with_reference(found, references, summary))
    plan = _plan(model)
    is_ct = plan.preprocessing.is_ct[0] if plan else None
    reading = Reading(labels, _ignored(plan, summary), sources.images, sources.max_size, is_ct)
    cases = ordered(with_findings([reading.read(one) for one in sources.progress(files)], labels))
    about = [("label maps", str(folder)), ("scans", stored.text(run.get("input"))), ("model", str(model))]
    made = Report(
        kind="prediction",
        title=f"Label maps in {folder.resolve().name}",
        about=tuple([(k, v) for k, v in about if v not in ("", "?")] + facts.run_facts(run)),
        labels=labels,
        cases=cases,
        facts=facts.headline(cases, labels),
        warnings=(*problems, *_warnings(runs)),
    )
    folds = [n for n in stored.items(described.get("folds")) if isinstance(n, int)]
    return with_model(made, model, folds)


def _case(
    folder: Path, name: str, entry: Mapping[str, Any], row: Mapping[str, str], labels: tuple[Label, ...]
) -> CaseFiles:
    quality = stored.number(stored.table(entry.get("quality")).get("score"))
    scores = []
    for label in labels:
        column = f"label_{label.name}" if label.name in OWN_COLUMNS else label.name
        scores.append(LabelScore(label.value, quality=stored.cell(row, column)))
    listed = [stored.text(w) for w in stored.items(entry.get("warnings"))]
    reason = stored.text(entry.get("reason"))
    prediction = _label_map(folder, name, entry)
    warnings = listed or [text for text in row.get("warnings", "").split("; ") if text]
    if prediction is not None and was_changed(entry, prediction):
        warnings.append(CORRECTED)
    content = CaseContent(
        name,
        failed=(reason or "unknown reason") if entry.get("status") == "failed" and prediction is None else "",
        quality=stored.cell(row, "score") if math.isnan(quality) else quality,
        labels=tuple(scores),
        warnings=(*warnings, *([reason] if reason else [])),
        seconds={
            step: seconds
            for step, value in stored.table(entry.get("seconds")).items()
            if not math.isnan(seconds := stored.number(value))
        },
    )
    named = [stored.text(stored.table(one).get("file")) for one in stored.items(entry.get("inputs"))]
    scan = without_voxel_files([Path(file) for file in named if file and "\0" not in file])
    return CaseFiles(content, scan=tuple(scan), prediction=prediction)


def _label_map(folder: Path, name: str, entry: Mapping[str, Any]) -> Path | None:
    """The label map of a case: the first that is listed, or the file of that name."""
    if "/" in name or "\\" in name:
        return None
    listed = [stored.text(stored.table(one).get("file")) for one in stored.items(entry.get("outputs"))]
    guessed = [f"{name}{ending}" for ending in READABLE_ENDINGS]
    for file in (*listed, *guessed):
        path = folder / file
        fits = "/" not in file and "\\" not in file
        if fits and (file_ending(path) or file.endswith(".dcm")) and path.is_file():
            return path
    return None


def _with_reference(found: CaseFiles, references: Mapping[str, list[Path]], summary: Mapping[str, Any]) -> CaseFiles:
    """With the reference of the given folder; without one, with what mre_evaluate has found."""
    name = found.content.name
    if name in references:
        return replace(found, reference=references[name][0])
    entries = map(stored.table, stored.items(summary.get("metric_per_case")))
    entry = next((one for one in entries if one.get("case") == name), None)
    if entry is None or found.prediction is None:
        return found
    path = Path(stored.text(entry.get("reference_file")) or "?")
    metrics = stored.table(entry.get("metrics"))
    scores = [with_metrics(s, stored.table(metrics.get(str(s.value)))) for s in found.content.labels]
    missing = [] if path.is_file() else [f"reference: {path} is not there any more; -ref FOLDER names the folder"]
    content = replace(found.content, labels=tuple(scores), missing=tuple(missing))
    return replace(found, content=content, reference=path if path.is_file() else None, scored=True)


def _labels(
    folder: Path, model: Path, summary: Mapping[str, Any], qualities: Mapping[str, Mapping[str, str]]
) -> tuple[Label, ...]:
    """Those of dseg.tsv, of the model's plan, of summary.json, or the columns of quality.csv: the first that are
    there."""
    if rows := stored.label_table(folder):
        return labels_of(rows)
    if plan := _plan(model):
        return plan_labels(plan, model)
    named = {name: value for name, value in stored.table(summary.get("labels")).items() if isinstance(value, int)}
    if not named:
        columns = next(iter(qualities.values()), {})
        names = [name for name in columns if name not in OWN_COLUMNS]
        named = {name: number for number, name in enumerate(names, 1)}
    return labels_of([(value, name, palette_colour(n)) for n, (name, value) in enumerate(named.items())])


def _plan(model: Path) -> Plan | None:
    try:
        return load_plan(model / "plans.json")
    except UserError:
        return None


def _ignored(plan: Plan | None, summary: Mapping[str, Any]) -> int | None:
    if plan is not None:
        return plan.ignore_label
    value = summary.get("ignore_label")
    return value if isinstance(value, int) else None


def _warnings(runs: list[Mapping[str, Any]]) -> list[str]:
    found = []
    for run in runs:
        if run.get("status") not in ("complete", "failed", None):
            found.append(f"the run of {stored.text(run.get('started'))} is {stored.text(run.get('status'))}")
        found += [stored.text(problem) for problem in stored.items(run.get("problems"))]
    return found
