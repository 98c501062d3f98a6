"""What is written for a case besides its label map: probabilities, pictures, and the statistics of its structures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mre_lowshot.data.dataset import Case
from mre_lowshot.data.scan_input import read_case
from mre_lowshot.evaluation.label_statistics import LabelStatistics, label_statistics
from mre_lowshot.files import sha256
from mre_lowshot.inference.export import Prediction
from mre_lowshot.inference.statistics_table import StatisticsTable
from mre_lowshot.report.overlays import draw_case
from mre_lowshot.report.preview import draw_preview
from mre_lowshot.workflows.input_files import data_files
from mre_lowshot.workflows.outputs import OVERLAYS, PREVIEWS, OutputFolder, Request

Statistics = tuple[LabelStatistics, ...]


def write_extras(
    prediction: Prediction, case: Case, staging: Path, *, request: Request, channels: Sequence[str]
) -> Statistics | None:
    """Write the probabilities and pictures that are asked for into ``staging``, and return the statistics if they are
    asked for. The scan is read once more for them, as its intensities are in the file.

    Args:
        prediction: of the case.
        case: with the scan's files.
        staging: folder to write into.
        request: what is asked for.
        channels: names of the scan's channels.

    Raises:
        UserError: the scan cannot be read again, or a file cannot be written.
    """
    if request.probabilities:
        prediction.save_probabilities(staging / f"{case.name}.npz")
    if not (request.overlays or request.previews or request.statistics):
        return None
    scan, title = read_case(case), f"{case.name}: quality score {prediction.quality.score:.2f}"
    names, colours = prediction.label_names, prediction.colours
    labels = prediction.labels.on_axes_of(scan.geometry)
    if request.overlays:
        picture = staging / OVERLAYS / f"{case.name}.png"
        draw_case(picture, scan, labels, labels=names, title=title, colours=colours)
    if request.previews:
        draw_preview(
            staging / PREVIEWS / f"{case.name}.png", scan, labels, label_names=names, colours=colours, title=title
        )
    return label_statistics(scan, labels, names, channels) if request.statistics else None


def add_missing_statistics(
    table: StatisticsTable,
    target: OutputFolder,
    cases: Sequence[Case],
    *,
    labels: Mapping[str, int],
    channels: Sequence[str],
    failed: Callable[[Exception, Case], None],
) -> dict[str, Statistics]:
    """Measure the label maps of cases that are not predicted again, for example because a person has corrected them,
    where the table has no statistics of them as they are now.

    Args:
        table: to add to.
        target: the folder of the label maps.
        cases: that are done.
        labels: name to value.
        channels: names of the scans' channels.
        failed: called with what went wrong with a case.
    """
    found: dict[str, Statistics] = {}
    for case in cases:
        path, made = next(iter(target.label_maps(case).items()))
        try:
            digest = label_digest(path)
            if table.has(case.name, digest):
                continue
            scan = read_case(case)
            found[case.name] = label_statistics(scan, made.read(path, case, labels), labels, channels)
            table.add(case.name, digest, found[case.name])
            table.write()
        except Exception as problem:  # whatever one scan fails with, the others are measured
            failed(problem, case)
    return found


def label_digest(path: Path) -> str:
    """The SHA-256 of a label map, and of the file of its voxels if that is another."""
    return "+".join(sha256(file) for file in (path, *data_files(path)))
