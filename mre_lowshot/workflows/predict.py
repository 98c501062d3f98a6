"""Segment every scan of a folder with a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mre_lowshot.config.check import require_path, require_plans_name, require_whole
from mre_lowshot.data.splits import parse_fold, parse_level
from mre_lowshot.data.workspace import Workspace
from mre_lowshot.errors import UserError
from mre_lowshot.inference.model_folders import find_folder
from mre_lowshot.workflows.first_scan import FirstScan
from mre_lowshot.workflows.inputs import Inputs, find_inputs, first_lines
from mre_lowshot.workflows.reporting import Reporter

if TYPE_CHECKING:
    from mre_lowshot.inference.predictor import Predictor
    from mre_lowshot.inference.sliding_window import Precision
    from mre_lowshot.workflows.cluster import ClusterPredictor
    from mre_lowshot.workflows.prediction_run import PredictResult

# torch, scipy and what uses them are imported in functions, while the first scan is read (`first_scan`).
MOST_AHEAD = 999


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
    report: bool = False,
    output_formats: Sequence[str] = (),
    series: Sequence[str] = (),
    checkpoint_name: str | None = None,
    continue_prediction: bool = False,
    overwrite: bool = False,
    num_parts: int = 1,
    part_id: int = 0,
    device: str = "auto",
    workspace: str | Path | None = None,
    verbose: bool = False,
    prefetch: int = 1,
    scheduler: str | Path | None = None,
    reporter: Reporter | None = None,
) -> PredictResult:
    """Segment every scan in a folder, or one scan file. For scans in memory use `Predictor`.

    Args:
        inputs: folder with image files, or with DICOM in it or its subfolders; or one file.
        output: folder for the label maps, run.json, quality.csv, and the labels' names and colours
            (label_descriptions.txt, dseg.tsv).
        model: a model's folder, a zip file of mre_export_model, or a checkpoint file; None: the trained model that fits
            the next three, the newest where several do.
        dataset, level, plans_name: of the model.
        folds: to average; None: all that are trained.
        step_size, centre_tiles, mirroring, precision, compile, device: as in `Predictor.load`.
        overlays: also draw overlays/CASE.png.
        save_probabilities: also write CASE.npz.
        statistics: also write statistics.json and statistics.csv: volume, intensities and position of each structure.
            With ``continue_prediction`` the label maps that are there, corrected ones too, are measured as they are.
        preview: also draw previews/CASE.png: three planes and three projections with the labels.
        report: also write report.html, a page to look at (`workflows.report`), once all cases are predicted.
        output_formats: names of `inference.formats.FORMATS` to write label maps in; empty: the format of the scan
            (DICOM: ``dicom-seg``).
        series: DICOM series to take, each by UID, name, number or a part of its description; empty: all of the model's
            modality. For a model of several channels one for each channel, in order; empty: by the channels' names.
        checkpoint_name: as in `inference.models.load_model`.
        continue_prediction: skip cases for which all that is asked for exists, whole and from the same scan, model and
            options; label maps that a person has corrected are kept.
        overwrite: replace files that no run has written, or that have changed since; without it they are refused before
            the work starts. Unchanged files of earlier runs are always replaced.
        num_parts, part_id: split the cases among several runs, and number of the part that this run predicts, from 0.
        workspace: folder with raw/, preprocessed/ and results/; None: see `data.workspace.Workspace`.
        verbose: report the seconds of each case.
        prefetch: how many further scans are worked on while one is predicted, as far as the memory allows; 0: one scan
            after the other. Label maps are the same.
        scheduler: address of a dask scheduler, or its scheduler file, on whose workers the scans are predicted; None:
            in this process. Extra: ``cluster``; see docs/CLUSTER.md.
        reporter: receives progress and messages.

    Raises:
        UserError: an option is wrong, no model fits, another run predicts into the folder, or a file of the user would
            be replaced. A scan that fails is reported in the result instead.
    """
    reporter = reporter or Reporter()
    for name, path in (("-i", inputs), ("-o", output)):
        require_path(name, path)
    inputs, output = Path(inputs), Path(output)
    if scheduler is not None:
        from mre_lowshot.workflows.cluster_client import require_cluster

        scheduler, inputs, output = require_cluster(scheduler), inputs.absolute(), output.absolute()
    check_model_options(model, dataset, level, plans_name)
    output_formats = _texts("--output_format", output_formats)
    series = _texts("--series", series)
    _check_folders(inputs, output, num_parts=num_parts, part_id=part_id, overwrite=overwrite)
    ahead = require_whole("-npp", int(prefetch) if isinstance(prefetch, bool) else prefetch, 0, MOST_AHEAD)
    if report:
        _check_page(output, num_parts=num_parts, overwrite=overwrite)
    folder, how = find_model(model, dataset, level, plans_name, workspace)
    first = FirstScan()
    if scheduler is None and not continue_prediction:  # which case is not done is found out later
        first.begin(inputs, folder, output=output, part_id=part_id)

    from mre_lowshot.inference.formats import ModelLabels, check_names, refuse_formats
    from mre_lowshot.inference.models import require_checkpoint_name
    from mre_lowshot.inference.predictor import Predictor
    from mre_lowshot.inference.record import RunRecord, describe_run
    from mre_lowshot.preprocessing.prepare import read_crops
    from mre_lowshot.workflows.cluster import ClusterPredictor
    from mre_lowshot.workflows.only_run import only_run
    from mre_lowshot.workflows.outputs import OutputFolder, Request
    from mre_lowshot.workflows.prediction_run import PredictionRun

    check_names(output_formats)
    require_checkpoint_name(checkpoint_name)
    options: dict[str, Any] = {
        "step_size": step_size,
        "centre_tiles": centre_tiles,
        "mirroring": mirroring,
        "precision": precision,
        "compile": compile,
    }
    loading: dict[str, Any] = {"folds": fold_numbers(folds), "checkpoint_name": checkpoint_name, **options}
    predictor: Predictor | ClusterPredictor
    if scheduler is None:
        predictor = Predictor.load(folder, device=device, log=lambda line: reporter.warning(f"note: {line}"), **loading)
    else:
        predictor = ClusterPredictor(scheduler, folder, device=device, options=loading, reporter=reporter)
    _report_model(predictor, how, reporter)
    labels = ModelLabels.of(predictor.model)
    found = find_inputs(inputs, channels=predictor.plan.channel_names, output=output, series=series)
    chosen = found.cases[part_id::num_parts]
    first.expect(chosen)
    refuse_formats(found.cases, output_formats)
    for line in first_lines(found.left_out):
        reporter.info(f"left out: {line}")
    options |= {"overlays": overlays, "save_probabilities": save_probabilities, "overwrite": overwrite}
    options |= {"statistics": statistics, "preview": preview, "report": report}
    options |= {"output_formats": list(output_formats), "series": list(series), "checkpoint_name": checkpoint_name}
    options |= {"continue_prediction": continue_prediction, "num_parts": num_parts, "part_id": part_id}
    options |= {"scheduler": scheduler}
    with ExitStack() as held:
        held.enter_context(only_run(output, num_parts=num_parts, part_id=part_id))
        if isinstance(predictor, ClusterPredictor):
            held.enter_context(predictor.connected(found.cases, output))
        run = {
            **describe_run(predictor.model, predictor.device, options),
            "input": str(inputs.resolve()),
            "problems": list(found.problems),
            "left_out": list(found.left_out),
        }
        part = f"_part{part_id}" if num_parts > 1 else ""
        record = RunRecord(output, f"run{part}.json", run, replace=overwrite)
        request = Request(
            overlays,
            save_probabilities,
            predictor.plan.labels,
            output_formats,
            previews=preview,
            statistics=statistics,
        )
        target = OutputFolder(output, record, request, overwrite=overwrite)
        crops = read_crops(inputs) if inputs.is_dir() else {}
        work = PredictionRun(
            predictor,
            target,
            crops=crops,
            part=part,
            labels=labels,
            reporter=reporter,
            verbose=verbose,
            prefetch=ahead,
            read=first.read,
        )
        result = work.run(chosen, found.problems, continued=continue_prediction)
    if not report:
        return result
    from mre_lowshot.workflows.report import write_report

    return replace(result, report=write_report(output, overwrite=overwrite, reporter=reporter).path)


def list_scans(
    inputs: str | Path,
    *,
    model: str | Path | None = None,
    dataset: str | int | None = None,
    level: str | None = None,
    plans_name: str | None = None,
    series: Sequence[str] = (),
    output: str | Path | None = None,
    workspace: str | Path | None = None,
    reporter: Reporter | None = None,
) -> Inputs:
    """The scans that `predict` would find, which of them it would take, and why not the others. Nothing is written.

    Args:
        inputs, series: as in `predict`.
        model, dataset, level, plans_name, workspace: of the model. If none is named and none is trained, scans of any
            modality are taken.
        output: folder whose files are no input.
        reporter: receives messages.

    Raises:
        UserError: as `predict`.
    """
    require_path("-i", inputs)
    reporter = reporter or Reporter()
    inputs, series = Path(inputs), _texts("--series", series)
    if not inputs.exists():
        raise UserError(f"-i {inputs}: does not exist; give a folder with scans")
    channels = None
    try:
        folder, how = find_model(model, dataset, level, plans_name, workspace)
    except UserError:
        if any(option is not None for option in (model, dataset, level, plans_name)):
            raise
        reporter.info("no trained model: scans of any modality are taken")
    else:
        import torch

        from mre_lowshot.inference.models import load_model

        channels = load_model(folder, None, torch.device("cpu")).plan.channel_names
        reporter.info(f"model: {folder} ({how}), channels {', '.join(channels)}")
    return find_inputs(
        inputs,
        channels=channels,
        output=Path(output) if output is not None else None,
        series=series,
    )


def _texts(option: str, values: Sequence[str]) -> tuple[str, ...]:
    if (
        isinstance(values, str)
        or not isinstance(values, Sequence)
        or not all(isinstance(value, str) for value in values)
    ):
        raise UserError(f"{option} {values!r}: must be a list of texts")
    return tuple(values)


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


def check_model_options(
    model: str | Path | None, dataset: str | int | None, level: str | None, plans_name: str | None
) -> None:
    """Refuse names of a model that exclude each other.

    Raises:
        UserError: says so.
    """
    if plans_name is not None:
        require_plans_name("-p", plans_name)
    if model is not None:
        require_path("-m", model)
        if any(option is not None for option in (dataset, level, plans_name)):
            raise UserError("-m names the model folder itself; leave out -d, -c and -p")


def _check_page(output: Path, *, num_parts: int, overwrite: bool) -> None:
    """Refuse a page that could not be written at the end of the work."""
    from mre_lowshot.workflows.report import NAME, require_replaceable

    if num_parts > 1:
        raise UserError("--report with -num_parts: run mre_report once all parts are predicted")
    require_replaceable(output / NAME, overwrite=overwrite)


def find_model(
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


def fold_numbers(folds: Sequence[int | str] | None) -> list[int] | None:
    """The numbers of the folds that ``-f`` names; None: all.

    Raises:
        UserError: one is no fold.
    """
    if folds is None:
        return None
    if isinstance(folds, (str, int)):
        folds = [folds]
    if not folds:
        raise UserError("folds []: give at least one, or None for all")
    parsed = [parse_fold(str(fold)) for fold in folds]
    return None if "all" in parsed else [fold for fold in parsed if isinstance(fold, int)]


def _report_model(predictor: Predictor | ClusterPredictor, how: str, reporter: Reporter) -> None:
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
