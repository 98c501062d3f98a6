"""Overlays of a predicted and a reference segmentation.

Arrays are LPS (D, H, W): x increases to the patient's left, y to posterior, z to superior. Views follow the
radiological convention: the patient's right is on the left of the image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mre_lowshot.data.colours import label_colours
from mre_lowshot.files import printable
from mre_lowshot.plotting import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CT_WINDOW = (-160.0, 240.0)  # HU, soft tissue
AXIAL_SLICES = 3
_MOST_VALUES = 1 << 24  # for percentiles, which copy them twice


@dataclass(frozen=True)
class View:
    """One plane of a volume."""

    name: str
    axis: int  # 0 axial, 1 coronal, 2 sagittal
    index: int  # of the plane along the axis
    aspect: float  # height of a pixel divided by its width
    edges: str  # anatomical directions at the left, right, upper and lower edge

    def take(self, array: np.ndarray) -> np.ndarray:
        """The plane of ``array`` (D, H, W) as displayed: row 0 at the top, column 0 at the left."""
        plane: np.ndarray = np.take(array, self.index, axis=self.axis)
        return plane if self.axis == 0 else plane[::-1]


def make_view(axis: int, index: int, spacing: Sequence[float]) -> View:
    """The plane ``index`` along ``axis`` of a volume with ``spacing`` (z, y, x) in mm."""
    z, y, x = spacing
    name, aspect, edges = (("axial", y / x, "RLAP"), ("coronal", z / x, "RLSI"), ("sagittal", z / y, "APSI"))[axis]
    return View(name, axis, int(index), aspect, edges)


def best_slices(labels: np.ndarray, axis: int, count: int) -> list[int]:
    """The ``count`` planes along ``axis`` that show most of the labelled classes, in ascending order.

    Planes are selected greedily. A class contributes its area relative to its largest cross-section, as far as it
    exceeds that in the planes selected before, so that small organs are shown too. Without labels: the middle plane.
    """
    planes = np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)
    classes = [c for c in np.unique(labels) if c > 0]
    if not classes:
        return [labels.shape[axis] // 2]
    areas = np.array([(planes == c).sum(axis=1) for c in classes], dtype=float)
    shares = areas / areas.max(axis=1, keepdims=True)
    shown, chosen = np.zeros(len(classes)), list[int]()
    for _ in range(min(count, len(planes))):
        gain = np.maximum(shares - shown[:, None], 0).sum(axis=0) + 1e-3 * areas.sum(axis=0) / areas.sum()
        gain[chosen] = -1
        chosen.append(int(gain.argmax()))
        shown = np.maximum(shown, shares[:, chosen[-1]])
    return sorted(chosen)


def choose_views(labels: np.ndarray, spacing: Sequence[float]) -> list[View]:
    """Three axial planes, superior first, and one coronal plane that show the labels; the single plane of a 2D image.

    ``labels`` is (D, H, W), ``spacing`` (z, y, x) in mm.
    """
    axial = [make_view(0, index, spacing) for index in best_slices(labels, 0, AXIAL_SLICES)[::-1]]
    return axial if labels.shape[0] == 1 else [*axial, make_view(1, best_slices(labels, 1, 1)[0], spacing)]


def window(image: np.ndarray) -> tuple[float, float]:
    """Intensities displayed as black and white.

    The soft-tissue window `CT_WINDOW` if the range of values is that of a CT in HU, else percentiles 0.5 and 99.5; of a
    large volume those of every second (third ...) voxel along each axis.
    """
    every = math.ceil((image.size / _MOST_VALUES) ** (1 / 3))
    image = image[(slice(None, None, max(every, 1)),) * image.ndim]
    finite = image[np.isfinite(image)]
    if finite.size == 0:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(finite, (0.5, 99.5)))
    if -4000 < low < -500 and high > CT_WINDOW[0]:
        return CT_WINDOW
    return (low, high) if high > low else (low, low + 1.0)


def overlay(
    path: Path,
    image: np.ndarray,
    reference: np.ndarray | None,
    prediction: np.ndarray,
    labels: Mapping[str, int],
    spacing: Sequence[float],
    title: str = "",
    scores: Mapping[str, float] | None = None,
    letters: bool | None = None,
    colours: Mapping[int, str] | None = None,
) -> None:
    """Draw image, reference and prediction side by side.

    Args:
        path: PNG file to write.
        image: (D, H, W) in LPS.
        reference: label map (D, H, W) on the same grid; None: not drawn.
        prediction: label map (D, H, W) on the same grid.
        labels: label name to value; 0 is not drawn.
        spacing: voxel size (z, y, x) in mm.
        title: heading of the figure.
        scores: label name to Dice, for the legend.
        letters: mark anatomical directions; None: for volumes only, because these are undefined in a photograph or an
            ultrasound frame.
        colours: of the label values (`data.colours`); None: those of a dataset.json that gives none.

    Raises:
        ValueError: the arrays differ in shape.
    """
    columns = [
        ("image", None),
        *([("reference", reference)] if reference is not None else []),
        ("prediction", prediction),
    ]
    for name, array in columns:
        if array is not None and array.shape != image.shape:
            raise ValueError(f"{name} {array.shape} is not on the grid of the image {image.shape}")
    combined = prediction if reference is None else np.where(reference > 0, reference, prediction)
    views = choose_views(combined, spacing)
    present = {int(v) for _, array in columns if array is not None for v in np.unique(array)}
    names = {int(v): k for k, v in labels.items() if int(v) > 0 and int(v) in present}
    sizes = [(v.take(image).shape[0] * v.aspect, v.take(image).shape[1]) for v in views]  # in pixel widths
    heights = [min(3.2 * tall / wide, 7.0) for tall, wide in sizes]
    legend = 0.28 * -(-max(len(names), 1) // 4) + 0.15
    height = sum(heights) + 0.55 + legend
    figure = new_figure(3.2 * len(columns), height)
    grid = figure.add_gridspec(
        len(views), len(columns), height_ratios=heights, left=0, right=1, wspace=0.015, hspace=0.015,
        bottom=legend / height, top=1 - 0.55 / height,
    )  # fmt: skip
    colours = label_colours(labels) if colours is None else colours
    black, white = window(image)
    marked = image.shape[0] > 1 if letters is None else letters
    for row, view in enumerate(views):
        for column, (name, array) in enumerate(columns):
            axes = figure.add_subplot(grid[row, column])
            shown = view.take(image)
            axes.imshow(shown, "gray", aspect=view.aspect, interpolation="bilinear", vmin=black, vmax=white)
            if array is not None:
                draw_labels(axes, view.take(array), {value: colours[value] for value in names})
            first = column == 0 and image.shape[0] > 1
            annotate(axes, view, marked, caption=f"{view.name} {view.index}" if first else "")
            if row == 0:
                axes.set_title(name, fontsize=10, pad=3)
    figure.suptitle(printable(title), parse_math=False, fontsize=11, y=1 - 0.08 / height, va="top")
    _legend(figure, names, scores, colours)
    save_figure(figure, path)


def draw_labels(axes: Any, plane: np.ndarray, colours: Mapping[int, str]) -> None:
    """Tint and outline the labels of ``plane`` (rows, columns) in ``colours`` on the image that ``axes`` shows."""
    from matplotlib.colors import to_rgba

    tint = np.zeros((*plane.shape, 4))
    for value, colour in colours.items():
        tint[plane == value] = (*to_rgba(colour)[:3], 0.22)
    axes.imshow(tint, aspect=axes.get_aspect(), interpolation="nearest")
    for value, colour in colours.items():
        mask = np.pad(plane == value, 1).astype(float)
        if mask.any():
            rows, columns = (np.arange(n) - 1.0 for n in mask.shape)
            axes.contour(columns, rows, mask, [0.5], colors=[colour], linewidths=1.1)


def annotate(axes: Any, view: View, letters: bool, *, caption: str = "") -> None:
    """Mark the anatomical directions at the edges of the image that ``axes`` shows, if ``letters``, and write
    ``caption`` into its corner."""
    from matplotlib.patheffects import Normal, Stroke

    height, width = axes.images[0].get_array().shape
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    halo = [Stroke(linewidth=1.6, foreground="black"), Normal()]
    style = {"xycoords": "axes fraction", "textcoords": "offset points", "color": "#ffe9a8", "path_effects": halo}
    if letters:
        offsets = (((0, 0.5), (7, 0)), ((1, 0.5), (-7, 0)), ((0.5, 1), (0, -8)), ((0.5, 0), (0, 7)))
        for letter, (edge, inwards) in zip(view.edges, offsets, strict=True):
            axes.annotate(letter, edge, inwards, fontsize=8, ha="center", va="center", **style)
    if caption:
        axes.annotate(caption, (0, 1), (4, -3), fontsize=7, ha="left", va="top", **style)


def _legend(
    figure: Figure, names: Mapping[int, str], scores: Mapping[str, float] | None, colours: Mapping[int, str]
) -> None:
    from matplotlib.patches import Patch

    def text(name: str) -> str:
        score = (scores or {}).get(name)
        if score is None:
            return name
        return f"{name}  {score:.3f}" if np.isfinite(score) else f"{name}  n/a"

    if names:
        patches = [
            Patch(facecolor=colours[value], label=printable(text(name))) for value, name in sorted(names.items())
        ]
        heading = "Dice of the prediction against the reference" if scores else None
        legend = figure.legend(
            handles=patches, loc="lower center", ncols=4, fontsize=8, frameon=False, title=heading,
            title_fontsize=8, borderpad=0.1, columnspacing=1.5,
        )  # fmt: skip
        for entry in legend.get_texts():
            entry.set_parse_math(False)  # a name may hold dollar signs
