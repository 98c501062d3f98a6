"""Segment every scan of a folder with a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mre_lowshot.config.check import require_path, require_plans_name, require_whole
from mre_lowshot.data.dataset import Case, find_cases
from mre_lowshot.data.listing import CONVERT, name_problem, shown
from mre_lowshot.data.readers import COLOUR_ENDINGS, READABLE_ENDINGS, file_ending
from mre_lowshot.data.splits import parse_fold, parse_level
from mre_lowshot.data.workspace import Workspace
from mre_lowshot.errors import UserError
from mre_lowshot.inference.models import find_folder
from mre_lowshot.inference.predictor import Predictor
from mre_lowshot.inference.record import RunRecord, describe_run
from mre_lowshot.inference.sliding_window import Precision
from mre_lowshot.preprocessing.prepare import read_crops
from mre_lowshot.workflows.outputs import OutputFolder, Request, only_run
from mre_lowshot.workflows.prediction_run import PredictionRun, PredictResult
from mre_lowshot.workflows.reporting import Reporter


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
    statistics: bool = False,
    preview: bool = False,
    continue_prediction: bool = False,
    overwrite: bool = False,
    num_parts: int = 1,
    part_id: int = 0,
    device: str = "auto",
    workspace: str | Path | None = None,
    reporter: Reporter | None = None,
) -> PredictResult:
    """Segment every scan in a folder, or one scan file. For scans in memory use `Predictor`.

    Args:
        inputs: folder with the scans, or one scan file.
        output: folder for the label maps, run.json, quality.csv, and the labels' names and colours
            (label_descriptions.txt, dseg.tsv).
        model: a model's folder or a checkpoint file; None: the trained model that fits the next three, the newest
            where several do.
        dataset, level, plans_name: of the model.
        folds: to average; None: all that are trained.
        step_size, centre_tiles, mirroring, precision, compile, device: as in `Predictor.load`.
        overlays: also draw overlays/CASE.png.
        save_probabilities: also write CASE.npz.
        statistics: also write statistics.json and statistics.csv: volume, intensities and position of each structure.
            With ``continue_prediction`` the label maps that are there, corrected ones too, are measured as they are.
        preview: also draw previews/CASE.png: three planes and three projections with the labels.
        continue_prediction: skip cases for which all that is asked for exists, whole and from the same scan, model and
            options; label maps that a person has corrected are kept.
        overwrite: replace files that no run has written, or that have changed since; without it they are refused before
            the work starts. Unchanged files of earlier runs are always replaced.
        num_parts, part_id: split the cases among several runs, and number of the part that this run predicts, from 0.
        workspace: folder with raw/, preprocessed/ and results/; None: see `data.workspace.Workspace`.
        reporter: receives progress and messages.

    Raises:
        UserError: an option is wrong, no model fits, another run predicts into the folder, or a file of the user would
            be replaced. A scan that fails is reported in the result instead.
    """
    reporter = reporter or Reporter()
    for name, path in (("-i", inputs), ("-o", output)):
        require_path(name, path)
    inputs, output = Path(inputs), Path(output)
    if plans_name is not None:
        require_plans_name("-p", plans_name)
    if model is not None and any(option is not None for option in (dataset, level, plans_name)):
        raise UserError("-m names the model folder itself; leave out -d, -c and -p")
    _check_folders(inputs, output, num_parts=num_parts, part_id=part_id, overwrite=overwrite)
    folder, how = _find_model(model, dataset, level, plans_name, workspace)
    options: dict[str, Any] = {
        "step_size": step_size,
        "centre_tiles": centre_tiles,
        "mirroring": mirroring,
        "precision": precision,
        "compile": compile,
    }
    predictor = Predictor.load(
        folder,
        folds=_fold_numbers(folds),
        device=device,
        log=lambda line: reporter.warning(f"note: {line}"),
        **options,
    )
    _report_model(predictor, how, reporter)
    cases, problems = find_input_cases(inputs, output, len(predictor.plan.channel_names))
    options |= {"overlays": overlays, "save_probabilities": save_probabilities, "overwrite": overwrite}
    options |= {"statistics": statistics, "preview": preview}
    options |= {"continue_prediction": continue_prediction, "num_parts": num_parts, "part_id": part_id}
    with only_run(output, num_parts=num_parts, part_id=part_id):
        run = {
            **describe_run(predictor.model, predictor.device, options),
            "input": str(inputs.resolve()),
            "problems": list(problems),
        }
        part = f"_part{part_id}" if num_parts > 1 else ""
        record = RunRecord(output, f"run{part}.json", run, replace=overwrite)
        labels = frozenset(predictor.plan.labels.values())
        request = Request(overlays, save_probabilities, labels, previews=preview, statistics=statistics)
        target = OutputFolder(output, record, request, overwrite=overwrite)
        crops = read_crops(inputs) if inputs.is_dir() else {}
        work = PredictionRun(predictor, target, crops=crops, part=part, reporter=reporter)
        return work.run(cases[part_id::num_parts], problems, continued=continue_prediction)


def _check_folders(inputs: Path, output: Path, *, num_parts: int, part_id: int, overwrite: bool) -> None:
    require_whole("-num_parts", num_parts, 1, 1_000_000)
    require_whole("-part_id", part_id, 0, 999_999)
    if not 0 <= part_id < num_parts:
        raise UserError(f"-part_id {part_id}: must lie in 0 to {num_parts - 1} (-num_parts)")
    if not inputs.exists():
        raise UserError(f"-i {inputs}: does not exist; give a folder with scans")
    if output.exists() and not output.is_dir():
        raise UserError(f"-o {output}: is a file; give a folder")
    if output.exists() and output.samefile(inputs if inputs.is_dir() else inputs.parent):
        raise UserError(
            f"-o {output}: is the folder of the scans too; give another, so that no scan is overwritten, and no label "
            "map taken for a scan"
        )
    place = output.resolve()
    if (place.parent / "dataset.json").is_file() and place.name in ("imagesTr", "imagesTs"):
        raise UserError(
            f"-o {output}: holds the scans of a dataset, and label maps would be taken for scans; give another"
        )
    if (place.parent / "dataset.json").is_file() and place.name in ("labelsTr", "labelsTs") and not overwrite:
        raise UserError(
            f"-o {output}: holds the reference labels of a dataset, and predictions would be taken for references; "
            "give another folder, or --overwrite if that is what you want"
        )


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
            results,
            str(dataset) if dataset is not None else None,
            parse_level(level) if level is not None else None,
            plans_name,
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
    return [Case(name, (inputs,))], []
