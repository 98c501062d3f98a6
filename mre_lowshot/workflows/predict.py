"""Segment every scan of a folder with a trained model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mre_lowshot.data.dataset import Case, find_cases
from mre_lowshot.data.listing import CONVERT, name_problem, shown
from mre_lowshot.data.readers import COLOUR_ENDINGS, READABLE_ENDINGS, file_ending
from mre_lowshot.data.splits import parse_fold, parse_level
from mre_lowshot.data.workspace import Workspace
from mre_lowshot.errors import UserError
from mre_lowshot.inference.models import find_folder
from mre_lowshot.inference.predictor import Outcome, Predictor
from mre_lowshot.inference.quality import Quality, first_to_check, read_rows, write_qualities
from mre_lowshot.inference.sliding_window import Precision
from mre_lowshot.preprocessing.prepare import read_crops
from mre_lowshot.report.overlays import draw_case
from mre_lowshot.workflows.reporting import Reporter


@dataclass(frozen=True)
class PredictResult:
    """Result of `predict`.

    Attributes:
        folder: with the label maps and quality.csv.
        files: label map of each case that is segmented, those of earlier runs included.
        qualities: of the cases segmented now.
        failed: one line for each scan that could not be segmented.
    """

    folder: Path
    files: Mapping[str, Path]
    qualities: Mapping[str, Quality] = field(default_factory=dict)
    failed: tuple[str, ...] = ()


def predict(
    inputs: str | Path,
    output: str | Path,
    *,
    model: str | Path | None = None,
    dataset: str | int | None = None,
    level: str | None = None,
    plans_name: str | None = None,
    folds: Sequence[int | str] | None = None,
    step_size: float | None = None,
    centre_tiles: bool = False,
    mirroring: bool = True,
    precision: Precision = "float32",
    compile: bool = False,
    overlays: bool = False,
    save_probabilities: bool = False,
    continue_prediction: bool = False,
    num_parts: int = 1,
    part_id: int = 0,
    device: str = "auto",
    workspace: str | Path | None = None,
    reporter: Reporter | None = None,
) -> PredictResult:
    """Segment every scan in a folder, or one scan file. For scans in memory use `Predictor`.

    Args:
        inputs: folder with the scans, or one scan file.
        output: folder for the label maps.
        model: a model's folder or a checkpoint file; None: the trained model that fits the next three, the newest
            where several do.
        dataset, level, plans_name: of the model.
        folds: to average; None: all that are trained.
        step_size, centre_tiles, mirroring, precision, compile, device: as in `Predictor.load`.
        overlays: also draw overlays/CASE.png.
        save_probabilities: also write CASE.npz.
        continue_prediction: skip cases whose label map exists.
        num_parts, part_id: split the cases among several runs, and number of the part that this run predicts, from 0.
        workspace: folder with raw/, preprocessed/ and results/; None: see `data.workspace.Workspace`.
        reporter: receives progress and messages.

    Raises:
        UserError: an option is wrong, or no model fits. A scan that fails is reported in the result instead.
    """
    reporter = reporter or Reporter()
    inputs, output = Path(inputs), Path(output)
    if model is not None and (dataset or level or plans_name):
        raise UserError("-m names the model folder itself; leave out -d, -c and -p")
    _check_folders(inputs, output, num_parts=num_parts, part_id=part_id)
    folder, how = _find_model(model, dataset, level, plans_name, workspace)
    predictor = Predictor.load(
        folder,
        folds=_fold_numbers(folds),
        device=device,
        step_size=step_size,
        centre_tiles=centre_tiles,
        mirroring=mirroring,
        precision=precision,
        compile=compile,
        log=lambda line: reporter.warning(f"note: {line}"),
    )
    _report_model(predictor, how, reporter)
    cases, problems = find_input_cases(inputs, output, len(predictor.plan.channel_names))
    cases = cases[part_id::num_parts]
    files = {case.name: output / f"{case.name}{file_ending(case.images[0])}" for case in cases}
    quality_file = f"quality_part{part_id}.csv" if num_parts > 1 else "quality.csv"
    rated = read_rows(output / quality_file)  # another file of that name is refused before hours of work
    done = {name: path for name, path in files.items() if continue_prediction and path.is_file()}
    if unrated := sorted(set(done) - set(rated)):
        reporter.info(
            f"note: {quality_file} has no quality score for {', '.join(unrated)}; to get one, delete their label maps "
            "and predict them again"
        )
    todo = [case for case in cases if case.name not in done]
    crops = read_crops(inputs) if inputs.is_dir() else {}
    qualities = {}
    with reporter.bar(len(todo), description="predict", unit="scan") as bar:
        for outcome in predictor.predict_cases(todo, crops=crops):
            name = outcome.case.name
            if problem := outcome.problem or _save(outcome, files[name], save_probabilities=save_probabilities):
                problems.append(problem)
            elif outcome.prediction is not None:
                done[name], qualities[name] = files[name], outcome.prediction.quality
                # written after each scan, so that an interrupted run has a row for each label map
                write_qualities(output, {name: qualities[name]}, predictor.plan.labels, quality_file)
                if overlays:
                    _draw(outcome, files[name])
                for warning in outcome.prediction.warnings:
                    reporter.warning(f"warning: case {name}: {warning}")
            del outcome  # its probabilities are large; free them before the next scan is segmented
            bar.update()
    if qualities:
        first = first_to_check(qualities)
        reporter.info(f"lowest quality scores, check these first: {first}; all scores in {output / quality_file}")
    for text in problems:
        reporter.warning(f"failed: {text}")
    reporter.info(f"{len(done)} of {len(done) + len(problems)} scans segmented, label maps in {output}")
    return PredictResult(output, done, qualities, tuple(problems))


def _save(outcome: Outcome, path: Path, *, save_probabilities: bool) -> str:
    """Write the label map of a predicted case; the problem, if its format cannot hold it."""
    if outcome.prediction is not None:
        try:
            outcome.prediction.save(path, probabilities=save_probabilities)
        except UserError as problem:
            return f"case {outcome.case.name}: {problem}"
    return ""


def _draw(outcome: Outcome, path: Path) -> None:
    """Draw overlays/CASE.png beside the label map."""
    if outcome.prediction is None:
        return
    name, labels = outcome.case.name, outcome.prediction.label_names
    title = f"{name}: quality score {outcome.prediction.quality.score:.2f}"
    draw_case(path.parent / "overlays" / f"{name}.png", outcome.case.images, path, labels=labels, title=title)


def _check_folders(inputs: Path, output: Path, *, num_parts: int, part_id: int) -> None:
    if not 0 <= part_id < num_parts:
        raise UserError(f"-part_id {part_id}: must lie in 0 to {num_parts - 1} (-num_parts)")
    if not inputs.exists():
        raise UserError(f"-i {inputs}: does not exist; give a folder with scans")
    if output.exists() and not output.is_dir():
        raise UserError(f"-o {output}: is a file; give a folder")
    if inputs.is_dir() and inputs.resolve() == output.resolve():
        raise UserError(f"-o {output}: is the input folder too; give another, so that no scan is overwritten")


def _find_model(
    model: str | Path | None,
    dataset: str | int | None,
    level: str | None,
    plans_name: str | None,
    workspace: str | Path | None,
) -> tuple[Path, str]:
    """The model's folder or file, and how it was chosen."""
    if model is None:
        results = Workspace.resolve(workspace).results
        return find_folder(
            results, str(dataset) if dataset is not None else None, parse_level(level) if level else None, plans_name
        )
    return Path(model), "-m"


def _fold_numbers(folds: Sequence[int | str] | None) -> list[int] | None:
    parsed = [parse_fold(str(fold)) for fold in folds] if folds is not None else ["all"]
    return None if "all" in parsed else [fold for fold in parsed if isinstance(fold, int)]


def _report_model(predictor: Predictor, how: str, reporter: Reporter) -> None:
    model = predictor.model
    plural = "s" if len(model.folds) > 1 else ""
    reporter.info(f"model: {model.folder} ({how}), fold{plural} {', '.join(map(str, model.folds))}")
    if model.unfinished:
        those = ", ".join(map(str, model.unfinished))
        plural = "s" if len(model.unfinished) > 1 else ""
        reporter.info(
            f"note: training of fold{plural} {those} is not complete (mre_train --c continues); the newest checkpoint "
            "is used"
        )


def find_input_cases(inputs: Path, output: Path, channels: int) -> tuple[list[Case], list[str]]:
    """The cases of a folder, or of one scan file, and what does not fit.

    Raises:
        UserError: a file of another format, or one that its label map would overwrite.
    """
    if inputs.is_dir():
        return find_cases(inputs, channels, None, ignore=(output,))
    if not inputs.is_file():
        raise UserError(f"-i {inputs}: is no regular file (a pipe, socket or device); give a folder or an image file")
    ending = file_ending(inputs)
    if not ending:
        raise UserError(f"-i {inputs}: is none of {', '.join(READABLE_ENDINGS)}; {CONVERT}")
    if channels != 1 and ending not in COLOUR_ENDINGS:  # one colour image holds all channels
        raise UserError(f"-i {inputs}: the model takes {channels} channels; give a folder with case_0000, ...")
    name = inputs.name[: -len(ending) or None].removesuffix("_0000")
    if problem := name_problem(name):
        raise UserError(f"-i {shown(inputs.name)}: the name {problem}; rename the file")
    if (output / f"{name}{ending}").resolve() == inputs.resolve():
        raise UserError(f"-o {output}: the label map would overwrite {inputs}; give another folder")
    return [Case(name, (inputs,))], []
