"""Rank unlabelled scans by what annotating them would bring."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from mre_lowshot.atlas.suggestion import Comparison, rank, similarities
from mre_lowshot.config import Plan
from mre_lowshot.config.check import require_path, require_plans_name
from mre_lowshot.config.plan_files import load_plan
from mre_lowshot.data.scan_input import read_case
from mre_lowshot.data.workspace import Workspace
from mre_lowshot.errors import UserError, describe_failure, log_unexpected
from mre_lowshot.inference.models import load_model
from mre_lowshot.inference.quality import read_rows
from mre_lowshot.preprocessing.prepare import check_prepared, prepare_case, read_crops
from mre_lowshot.preprocessing.record import read_record
from mre_lowshot.preprocessing.references import reading
from mre_lowshot.preprocessing.store import PreparedCase, load_case
from mre_lowshot.signed import changed_files, write_signed
from mre_lowshot.workflows.inputs import find_inputs
from mre_lowshot.workflows.plan import DEFAULT_NAME
from mre_lowshot.workflows.reporting import Reporter

if TYPE_CHECKING:
    from mre_lowshot.data.dataset import Case

JSON, TABLE = "suggest.json", "suggest.csv"
COLUMNS = ("rank", "case", "gain", "quality", "nearest_annotated", "similarity", "represents", "reasons")


@dataclass(frozen=True)
class Suggestion:
    """A scan, and why to annotate it.

    Attributes:
        case: its name.
        gain: mean increase of all scans' similarity to their nearest annotated scan, after the scans ranked before were
            annotated; with predictions, scans of low quality count more.
        quality: quality score of its prediction, if there is one.
        nearest_annotated: the annotated scan that is most similar.
        similarity: of the two, 0 to 1.
        represents: scans that resemble this one more than any annotated scan.
        reasons: one sentence each.
    """

    case: str
    gain: float
    quality: float | None
    nearest_annotated: str
    similarity: float
    represents: tuple[str, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class SuggestResult:
    """Result of `suggest`: the scans, the one to annotate first at the top; the files; and a line for each scan that
    could not be read."""

    suggestions: tuple[Suggestion, ...]
    files: tuple[Path, ...] = ()
    failed: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Annotated:
    """The annotated scans, preprocessed: name to image (C, *size) and spacing, and their plan."""

    plan: Plan
    scans: Mapping[str, tuple[np.ndarray, tuple[float, ...]]]
    crops: Mapping[str, object]


def suggest(
    model: str | Path,
    inputs: str | Path,
    *,
    predictions: str | Path | None = None,
    output: str | Path | None = None,
    plans_name: str = DEFAULT_NAME,
    overwrite: bool = False,
    workspace: str | Path | None = None,
    reporter: Reporter | None = None,
) -> SuggestResult:
    """Rank unlabelled scans by what annotating them would bring: unlike the annotated scans, like many others, and
    badly predicted.

    Args:
        model: a trained model (folder, checkpoint or zip file), or a planned dataset (id, name or full name).
        inputs: folder with the unlabelled scans; those of annotated cases of the dataset are left out.
        predictions: output folder of `predict` for these scans: scans of low quality score count more.
        output: folder for suggest.json and suggest.csv; None: nothing is written.
        plans_name: plan of the dataset.
        overwrite: replace these files if they were changed.
        workspace: folder with raw/, preprocessed/ and results/; None: see `data.workspace.Workspace`.
        reporter: receives progress and messages.

    Raises:
        UserError: an option is wrong, or no scan is left to rank. A scan that cannot be read is named in the result.
    """
    reporter = reporter or Reporter()
    for option, path in (("the model or dataset", str(model)), ("the folder of scans", inputs)):
        require_path(option, path)
    require_plans_name("-p", plans_name)
    if output is not None:
        require_path("-o", output)
        _check_output(Path(output), overwrite=overwrite)
    qualities = _qualities(predictions)
    annotated = _annotated(str(model), plans_name, workspace)
    ignore = Path(predictions) if predictions is not None else None
    found = find_inputs(Path(inputs), channels=annotated.plan.channel_names, output=ignore)
    cases = [case for case in found.cases if case.name not in annotated.scans]
    if len(cases) < len(found.cases):
        reporter.info(f"{len(found.cases) - len(cases)} scans of {inputs} are annotated and left out")
    failed = list(found.problems)
    known, vectors = _features(cases, annotated, failed, reporter) if cases else ([], {})
    for line in failed:
        reporter.warning(f"failed: {line}")
    if not vectors:
        raise UserError(f"{inputs}: holds no scan that can be ranked; give the folder of the unlabelled scans")
    made = _suggestions(list(annotated.scans), known, vectors, qualities)
    files = _write(Path(output), made, failed) if output is not None else ()
    return SuggestResult(tuple(made), files, tuple(failed))


def _features(
    cases: Sequence[Case], annotated: _Annotated, failed: list[str], reporter: Reporter
) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """The vectors that are compared, of the annotated scans and of ``cases`` by name; ``failed`` gets a line for each
    scan without one."""
    comparison = Comparison(*next(iter(annotated.scans.values())))
    known = [comparison.features(image, spacing) for image, spacing in annotated.scans.values()]
    vectors: dict[str, np.ndarray] = {}
    for case in reporter.iterate(cases, description="compare", unit="scan"):
        try:
            vectors[case.name] = comparison.features(*_prepared(case, annotated))
        except Exception as problem:  # whatever one scan fails with, the others are ranked
            log_unexpected(problem, reporter.warning)
            failed.append(describe_failure(problem, case.name))
    return known, vectors


def _annotated(model: str, plans_name: str, workspace: str | Path | None) -> _Annotated:
    path = Path(model)
    if path.is_file() or any(path.glob("fold_*")) or (path / "plans.json").is_file():
        loaded = load_model(path, None, torch.device("cpu"))
        scans: dict[str, tuple[np.ndarray, tuple[float, ...]]] = {}
        for plan, atlases in zip(loaded.plans, loaded.atlases, strict=True):
            names = plan.fold.train if plan.fold else ()
            own = [atlas for atlas in atlases if not atlas.mirrored]
            scans |= {name: (atlas.image, atlas.spacing) for name, atlas in zip(names, own, strict=False)}
        if not scans:
            raise UserError(
                f"{model}: its plan registers no scans, so it does not hold its training scans; name the dataset"
            )
        return _Annotated(loaded.plan, scans, {})
    space = Workspace.resolve(workspace)
    folder = space.find(model, "preprocessed")
    plan = load_plan(folder / f"{plans_name}.json")
    with reading(folder, plans_name):
        prepared = [load_case(folder / plans_name, name, plan) for name in check_prepared(plan, folder)]
    images = {case.name: _image_of(case, plan) for case in prepared}
    raw = read_record(plan, folder).raw_folder(folder)
    return _Annotated(plan, images, read_crops(raw) if raw is not None else {})


def _prepared(case: Case, annotated: _Annotated) -> tuple[np.ndarray, tuple[float, ...]]:
    made = prepare_case(
        case.name, read_case(case), None, plan=annotated.plan, crop=annotated.crops.get(case.name)  # type: ignore[arg-type]
    )  # fmt: skip
    return _image_of(made, annotated.plan)


def _image_of(case: PreparedCase, plan: Plan) -> tuple[np.ndarray, tuple[float, ...]]:
    """The image (C, *size) and its spacing; a 2D image loses its slice axis."""
    if plan.network.axes == 2:
        return case.image[:, 0], case.transform.spacing[1:]
    return case.image, case.transform.spacing


def _qualities(predictions: str | Path | None) -> dict[str, float]:
    """The quality scores of a folder of predictions, by case."""
    if predictions is None:
        return {}
    require_path("--predictions", predictions)
    files = sorted(Path(predictions).glob("quality*.csv"))
    found = {name: float(row["score"]) for file in files for name, row in read_rows(file).items()}
    if not found:
        raise UserError(f"--predictions {predictions}: has no quality.csv with scores; give the -o of mre_predict")
    return found


def _suggestions(
    labelled: list[str], known: list[np.ndarray], vectors: Mapping[str, np.ndarray], qualities: Mapping[str, float]
) -> list[Suggestion]:
    names, features = list(vectors), list(vectors.values())
    weights = None
    if rated := [qualities[name] for name in names if name in qualities]:
        usual = float(np.mean(rated))  # of scans without a score
        weights = np.array([max(1 - qualities.get(name, usual), 1e-3) for name in names])
    similar = similarities(features, known)
    order = sorted(qualities[name] for name in names if name in qualities)
    made = []
    for one in rank(similar, similarities(features, features), weights):
        name = names[one.number]
        quality = qualities.get(name)
        served = tuple(names[other] for other in one.served)
        reasons = []
        if quality is not None:
            place = order.index(quality) + 1
            reasons.append(f"quality score {quality:.2f} (place {place} of {len(order)} from the lowest)")
        nearest = labelled[one.nearest]
        reasons.append(f"similarity {one.nearest_similarity:.2f} to the nearest annotated scan {nearest}")
        few = ", ".join(served[:3]) + (", ..." if served[3:] else "")
        several = "scans resemble" if len(served) > 1 else "scan resembles"
        reasons.append(
            f"{len(served)} other {several} it more than any annotated scan ({few})"
            if served
            else "no other scan resembles it more than an annotated scan"
        )
        made.append(Suggestion(name, one.gain, quality, nearest, one.nearest_similarity, served, tuple(reasons)))
    return made


def _check_output(folder: Path, *, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"-o {folder}: is a file; give a folder")
    if not overwrite and (changed := changed_files(folder / JSON, [TABLE])):
        raise UserError(
            f"-o {folder}: {', '.join(path.name for path in changed)}: mre_suggest has not written this, or it has "
            "changed since, so it is not replaced; give another -o, or replace it with --overwrite"
        )


def _write(folder: Path, made: list[Suggestion], failed: list[str]) -> tuple[Path, ...]:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for number, one in enumerate(made, start=1):
        quality = "" if one.quality is None else f"{one.quality:.4f}"
        cells = (f"{one.gain:.5f}", quality, one.nearest_annotated, f"{one.similarity:.4f}", " ".join(one.represents))
        table.writerow([number, one.case, *cells, "; ".join(one.reasons)])
    content = {"suggestions": [asdict(one) for one in made], "failed": failed}
    return write_signed(folder / JSON, content, {TABLE: text.getvalue()})
