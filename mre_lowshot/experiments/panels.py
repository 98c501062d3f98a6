"""Segmentations of several rows of a table on the same slices of the same scans, beside the reference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np

from mre_lowshot.data.colours import label_colours
from mre_lowshot.data.dataset import Dataset
from mre_lowshot.data.volume import read_channels, read_labels
from mre_lowshot.errors import UserError
from mre_lowshot.experiments.results import RowResult
from mre_lowshot.files import printable, read_json
from mre_lowshot.plotting import new_figure, save_figure
from mre_lowshot.report.figures import annotate, best_slices, draw_labels, make_view, window

SCANS = 3  # shown at most: the worst, the middle and the best of the reference row
WIDTH = 2.3  # inches a panel


@dataclass(frozen=True)
class Panel:
    """The label map of a scan by one row."""

    row: str  # its name
    title: str
    file: Path
    dice: float


def panels_of(rows: Sequence[RowResult]) -> dict[str, list[Panel]]:
    """The label maps that there are of each scan, by scan: one of each row, of its first run that tests the scan. Only
    scans that all rows with runs have tested; where there is none, those that the same rows, as many as possible, have
    tested (of seven scans, fold 0 of one-, three- and six-shot has no test scan in common)."""
    found: dict[str, list[Panel]] = {}
    shown = [r for r in rows if r.runs]
    labels = [r.row.label for r in shown]
    for r in shown:
        title = r.row.label if labels.count(r.row.label) < 2 else f"{r.row.label}, {r.row.group or r.row.name}"
        files: dict[str, Panel] = {}
        for run in r.runs.values():
            summary = read_json(run.folder / "validation" / "summary.json", "summary of a fold")
            for case in summary["metric_per_case"]:
                file, name = Path(case["prediction_file"]), case["case"]
                local = run.folder / "validation" / file.name  # the results folder may have been moved
                files.setdefault(name, Panel(r.row.name, title, local, run.cases[name]["Dice"]))
        for name, panel in files.items():
            found.setdefault(name, []).append(panel)
    most = _most(found)
    return {name: panels for name, panels in found.items() if [p.row for p in panels] == most}


def _most(found: Mapping[str, Sequence[Panel]]) -> list[str]:
    """The names of the rows of the scan that the most rows have tested."""
    return max(([p.row for p in panels] for panels in found.values()), key=len, default=[])


def left_out(rows: Sequence[RowResult], found: Mapping[str, Sequence[Panel]]) -> list[str]:
    """The labels of the rows with runs that have tested none of the scans to draw (``found`` by `panels_of`)."""
    drawn = set(_most(found))
    return [r.row.label for r in rows if r.runs and r.row.name not in drawn]


def chosen_scans(found: Mapping[str, Sequence[Panel]], reference: str) -> list[str]:
    """The scans to show: the worst, the middle and the best by the Dice of the row named ``reference`` (of the first
    row where it has none)."""

    def dice(name: str) -> float:
        panels = found[name]
        value = next((p.dice for p in panels if p.row == reference), panels[0].dice)
        return -1.0 if math.isnan(value) else value

    ranked = sorted(found, key=lambda name: (dice(name), name))
    if len(ranked) <= SCANS:
        return ranked
    return [ranked[0], ranked[len(ranked) // 2], ranked[-1]]


def draw_panels(
    path: Path,
    found: Mapping[str, Sequence[Panel]],
    dataset: Dataset,
    *,
    reference: str,
    title: str,
    labels: Sequence[str],
) -> list[str]:
    """Draw the rows' segmentations to ``path`` (PNG): a line for each scan, the reference first, then each row with its
    Dice. Nothing is chosen by how a row does in comparison with another one.

    Args:
        path: the file.
        found: what there is to draw, by `panels_of`.
        dataset: the raw dataset, for images and label maps.
        reference: name of the row whose Dice chooses the scans.
        title: heading.
        labels: names of the labels to draw.

    Returns:
        The names of the scans.

    Raises:
        UserError: no scan was tested by all rows, or a file cannot be read.
    """
    if not found:
        raise UserError(f"{title}: no scan has been tested by all rows that have runs; run them on the same folds")
    scans = chosen_scans(found, reference)
    cases = {case.name: case for case in dataset.labelled}
    numbers = {name: value for name, value in dataset.labels.items() if name in labels and value}
    colours = {value: colour for value, colour in label_colours(numbers).items() if value in numbers.values()}
    columns = ["Ground truth", *(panel.title for panel in found[scans[0]])]
    lines = []
    for name in scans:
        case = cases[name]
        image = read_channels(list(case.images))
        if case.label is None:
            raise UserError(f"case {name}: has no label map any more")
        truth = read_labels(case.label, like=image.geometry).array
        maps = [truth, *(read_labels(p.file, like=image.geometry).array for p in found[name])]
        kept = np.isin(truth, list(numbers.values()))
        view = make_view(0, best_slices(np.where(kept, truth, 0), 0, 1)[0], image.geometry.spacing)
        lines.append((name, view, image.array[0], maps, [math.nan, *(p.dice for p in found[name])]))
    sizes = [(view.take(image).shape[0] * view.aspect, view.take(image).shape[1]) for _, view, image, _, _ in lines]
    heights = [min(WIDTH * tall / wide, 4.0) for tall, wide in sizes]
    across = max(1, int(WIDTH * len(columns) / 1.5))  # entries of a line of the legend
    heading = wrap(printable(title), int(12 * WIDTH * len(columns)))
    top, legend = 0.18 * len(heading) + 0.35, 0.25 * -(-len(numbers) // across) + 0.15
    height = sum(heights) + top + legend
    figure = new_figure(WIDTH * len(columns), height)
    grid = figure.add_gridspec(
        len(lines), len(columns), height_ratios=heights, left=0, right=1, wspace=0.015, hspace=0.015,
        bottom=legend / height, top=1 - top / height,
    )  # fmt: skip
    for i, (name, view, image, maps, scores) in enumerate(lines):
        black, white = window(image)
        for j, (array, score) in enumerate(zip(maps, scores, strict=True)):
            axes = figure.add_subplot(grid[i, j])
            axes.imshow(view.take(image), "gray", aspect=view.aspect, interpolation="bilinear", vmin=black, vmax=white)
            draw_labels(axes, view.take(array), colours)
            caption = f"{printable(name)}, slice {view.index}" if j == 0 else f"Dice {score:.3f}"
            annotate(axes, view, letters=False, caption=caption)
            if i == 0:
                axes.set_title(columns[j], fontsize=8, pad=3)
    figure.suptitle("\n".join(heading), parse_math=False, fontsize=10, y=1 - 0.06 / height, va="top")
    _legend(figure, numbers, colours, across)
    save_figure(figure, path)
    return scans


def _legend(figure: Any, numbers: Mapping[str, int], colours: Mapping[int, str], across: int) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(facecolor=colours[value], label=printable(name)) for name, value in numbers.items()]
    made = figure.legend(handles=patches, loc="lower center", ncols=across, fontsize=8, frameon=False, borderpad=0.1)
    for entry in made.get_texts():
        entry.set_parse_math(False)
