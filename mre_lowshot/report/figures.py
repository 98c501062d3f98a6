"""Pictures for reports: a segmentation beside its reference, and the course of a training.

Drawn on matplotlib's own ``Figure`` (no pyplot, no global state, no display needed). Arrays are LPS (D, H, W): x grows
to the patient's left, y to the back, z to the head. Radiological view: the patient's right is on the image's left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mre_lowshot.files import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# One colour a label value, the same in every picture: distinct on grey and, the first eight, to the colour-blind.
COLOURS = (
    "#e69f00", "#56b4e9", "#f0e442", "#00c389", "#e8412c", "#d67ab8", "#2f7bff", "#b5e61d",
    "#a05a2c", "#9b5de5", "#00e5d4", "#ff9aa2", "#7a9e00", "#ff5fd2", "#b0c4de", "#ffd59e",
)  # fmt: skip
CT_WINDOW = (-160.0, 240.0)  # HU, soft tissue
AXIAL_SLICES = 3


@dataclass(frozen=True)
class View:
    """One plane of a volume: ``axis`` 0 axial, 1 coronal, 2 sagittal.

    ``aspect`` is a pixel's height over its width; ``edges`` are the patient's sides: left, right, top, bottom.
    """

    name: str
    axis: int
    index: int
    aspect: float
    edges: str

    def take(self, array: np.ndarray) -> np.ndarray:
        """The plane of ``array`` (D, H, W) as shown: row 0 on top, column 0 on the left."""
        plane = np.take(array, self.index, axis=self.axis)
        return plane if self.axis == 0 else plane[::-1]


def colour(label: int) -> str:
    """The colour of a label value (1 and above), constant over all pictures."""
    return COLOURS[(label - 1) % len(COLOURS)]


def make_view(axis: int, index: int, spacing: Sequence[float]) -> View:
    """The plane ``index`` along ``axis``, with the aspect of its pixels (height over width) from ``spacing`` mm."""
    z, y, x = spacing
    name, aspect, edges = (("axial", y / x, "RLAP"), ("coronal", z / x, "RLSI"), ("sagittal", z / y, "APSI"))[axis]
    return View(name, axis, int(index), aspect, edges)


def best_slices(labels: np.ndarray, axis: int, count: int) -> list[int]:
    """The ``count`` planes along ``axis`` that show most of the labelled classes, in ascending order.

    Each class counts by its share of its own largest section, and only what an earlier choice did not show yet, so
    that small organs get their slice too. No labels: the middle plane.
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
    """Three axial planes from the head down and one coronal, where the labels are; a 2D image's only plane."""
    axial = [make_view(0, index, spacing) for index in best_slices(labels, 0, AXIAL_SLICES)[::-1]]
    return axial if labels.shape[0] == 1 else [*axial, make_view(1, best_slices(labels, 1, 1)[0], spacing)]


def window(image: np.ndarray) -> tuple[float, float]:
    """Grey levels of black and white: the soft-tissue window if values look like HU, else percentiles 0.5 and 99.5."""
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
) -> None:
    """Draw image, reference and prediction side by side to ``path`` (PNG).

    Arrays are LPS (D, H, W) on one grid, ``spacing`` is (z, y, x) mm, ``labels`` is name to value (0 is not drawn),
    ``scores`` is name to Dice. ``letters``: mark the patient's sides; by default for volumes only, since a photograph
    or an ultrasound frame has no such sides.

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
            raise ValueError(f"{name} {array.shape} does not lie on the image's grid {image.shape}")
    everything = prediction if reference is None else np.where(reference > 0, reference, prediction)
    views = choose_views(everything, spacing)
    present = {int(v) for _, array in columns if array is not None for v in np.unique(array)}
    names = {int(v): k for k, v in labels.items() if int(v) > 0 and int(v) in present}
    sizes = [(v.take(image).shape[0] * v.aspect, v.take(image).shape[1]) for v in views]  # in widths of a pixel
    heights = [min(3.2 * tall / wide, 7.0) for tall, wide in sizes]
    legend = 0.28 * -(-max(len(names), 1) // 4) + 0.15
    figure, height = _figure(3.2 * len(columns), sum(heights) + 0.55 + legend)
    grid = figure.add_gridspec(
        len(views), len(columns), height_ratios=heights, left=0, right=1, wspace=0.015, hspace=0.015,
        bottom=legend / height, top=1 - 0.55 / height,
    )  # fmt: skip
    black, white = window(image)
    marked = image.shape[0] > 1 if letters is None else letters
    for row, view in enumerate(views):
        for column, (name, array) in enumerate(columns):
            axes = figure.add_subplot(grid[row, column])
            shown = view.take(image)
            axes.imshow(shown, "gray", aspect=view.aspect, interpolation="bilinear", vmin=black, vmax=white)
            if array is not None:
                _draw_labels(axes, view.take(array), list(names))
            _annotate(axes, view, marked, caption=column == 0 and image.shape[0] > 1)
            if row == 0:
                axes.set_title(name, fontsize=10, pad=3)
    figure.suptitle(title, fontsize=11, y=1 - 0.08 / height, va="top")
    _legend(figure, names, scores)
    _save(figure, path)


def _draw_labels(axes: Any, plane: np.ndarray, values: list[int]) -> None:
    from matplotlib.colors import to_rgba

    tint = np.zeros((*plane.shape, 4))
    for value in values:
        tint[plane == value] = (*to_rgba(colour(value))[:3], 0.22)
    axes.imshow(tint, aspect=axes.get_aspect(), interpolation="nearest")
    for value in values:
        mask = np.pad(plane == value, 1).astype(float)
        if mask.any():
            rows, columns = (np.arange(n) - 1.0 for n in mask.shape)
            axes.contour(columns, rows, mask, [0.5], colors=[colour(value)], linewidths=1.1)


def _annotate(axes: Any, view: View, letters: bool, caption: bool) -> None:
    from matplotlib.patheffects import Normal, Stroke

    height, width = axes.images[0].get_array().shape
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    halo = [Stroke(linewidth=1.6, foreground="black"), Normal()]
    style = {"xycoords": "axes fraction", "textcoords": "offset points", "color": "#ffe9a8", "path_effects": halo}
    if letters:
        places = (((0, 0.5), (7, 0)), ((1, 0.5), (-7, 0)), ((0.5, 1), (0, -8)), ((0.5, 0), (0, 7)))
        for letter, (edge, inwards) in zip(view.edges, places, strict=True):
            axes.annotate(letter, edge, inwards, fontsize=8, ha="center", va="center", **style)
    if caption:
        axes.annotate(f"{view.name} {view.index}", (0, 1), (4, -3), fontsize=7, ha="left", va="top", **style)


def _legend(figure: Figure, names: Mapping[int, str], scores: Mapping[str, float] | None) -> None:
    from matplotlib.patches import Patch

    def text(name: str) -> str:
        score = (scores or {}).get(name)
        if score is None:
            return name
        return f"{name}  {score:.3f}" if np.isfinite(score) else f"{name}  n/a"

    if names:
        patches = [Patch(facecolor=colour(value), label=text(name)) for value, name in sorted(names.items())]
        heading = "Dice of the prediction against the reference" if scores else None
        figure.legend(
            handles=patches, loc="lower center", ncols=4, fontsize=8, frameon=False, title=heading,
            title_fontsize=8, borderpad=0.1, columnspacing=1.5,
        )  # fmt: skip


def _figure(width: float, height: float) -> tuple[Figure, float]:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), facecolor="white"), height


def _save(figure: Figure, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with whole_file(path) as temporary:
        FigureCanvasAgg(figure).print_figure(str(temporary), dpi=110, format="png")


def smoothed(values: np.ndarray, weight: float = 0.97) -> np.ndarray:
    """A running mean that forgets exponentially and starts unbiased; gaps (NaN) carry the mean on."""
    mean, total, result = 0.0, 0.0, np.full(len(values), np.nan)
    for index, value in enumerate(values):
        if np.isfinite(value):
            mean, total = weight * mean + (1 - weight) * value, weight * total + (1 - weight)
        if total:
            result[index] = mean / total
    return result


def progress(path: Path, history: Mapping[str, Sequence[float]]) -> None:
    """Draw a training's course to ``path`` (PNG): loss and the patches' Dice above, learning rate below.

    ``history`` holds lists of one length under ``iteration``, ``loss``, ``dice`` and ``learning_rate``; NaN is a gap,
    and a missing key but ``iteration`` is left out.
    """
    steps = np.asarray(history["iteration"], dtype=float)
    figure, _ = _figure(9, 6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    right = upper.twinx()
    for axes, key, text, ink in ((upper, "loss", "loss", "#1f5fa8"), (right, "dice", "Dice of patches", "#c0560f")):
        values = np.asarray(history.get(key, []), dtype=float)
        axes.set_ylabel(text, color=ink)
        axes.tick_params(axis="y", colors=ink)
        if np.isfinite(values).any():
            axes.plot(steps, values, color=ink, alpha=0.22, linewidth=0.7)
            axes.plot(steps, smoothed(values), color=ink, linewidth=1.8, marker="o" if len(values) == 1 else "")
    right.set_ylim(0, 1)
    if np.nanmin(np.asarray(history.get("loss", []), dtype=float), initial=0) >= 0:
        upper.set_ylim(bottom=0)
    rate = np.asarray(history.get("learning_rate", []), dtype=float)
    if np.isfinite(rate).any():
        lower.plot(steps, rate, color="#444444", linewidth=1.4, marker="o" if len(rate) == 1 else "")
    lower.set(xlabel="iteration", ylabel="learning rate")
    for axes in (upper, lower):
        axes.grid(alpha=0.25)
    figure.tight_layout()
    _save(figure, path)
