"""A picture of a scan with its label map, for checking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mre_lowshot.data.volume import Volume, read_channels, read_labels
from mre_lowshot.evaluation.metrics import case_metrics
from mre_lowshot.report.figures import overlay


def draw_case(
    path: Path,
    scan: Sequence[Path] | Volume,
    prediction: Path | Volume,
    *,
    labels: Mapping[str, int],
    title: str,
    reference: Path | None = None,
    colours: Mapping[int, str] | None = None,
) -> None:
    """Draw the first channel of a scan with its label map to ``path`` (PNG); where there is a ``reference``, it is
    drawn beside it, with each label's Dice.

    Args:
        path: PNG file to write.
        scan: its channel files, or the image (C, D, H, W) in memory.
        prediction: label map, in memory or as a file.
        labels: name to value.
        title: heading.
        reference: label map to compare with.
        colours: value to colour (`data.colours`); None: those of a dataset.json that gives none.

    Raises:
        UserError: a file cannot be read.
    """
    image = scan if isinstance(scan, Volume) else read_channels(list(scan))
    volume = prediction if isinstance(prediction, Volume) else read_labels(prediction, like=image.geometry)
    predicted = volume.array
    spacing = image.geometry.spacing
    truth = scores = None
    if reference is not None:
        truth = read_labels(reference, like=image.geometry).array
        foreground = {name: value for name, value in labels.items() if value}
        metrics = case_metrics(truth, predicted, foreground, spacing)
        scores = {name: metrics[value]["Dice"] for name, value in foreground.items()}
    overlay(path, image.array[0], truth, predicted, labels, spacing, title, scores, colours=colours)
