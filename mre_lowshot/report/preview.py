"""A quick look at a label map: three planes through the structures, and projections of the whole volume.

The projections show the mean intensity along the ray and on it each structure's surface as seen from the front, from
the patient's left and from the feet, shaded by its inclination; outlines show structures that lie behind others.
Orientation is that of `report.figures`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mre_lowshot.data.colours import rgb
from mre_lowshot.data.volume import Volume
from mre_lowshot.evaluation.label_statistics import label_boxes
from mre_lowshot.files import printable
from mre_lowshot.plotting import new_figure, save_figure
from mre_lowshot.report.figures import View, annotate, draw_labels, make_view, window

_WIDTH, _HEIGHT = 12.0, 7.0  # inches: of all panels of a row together, and of one panel, at most
_NARROWEST = 6.0  # inches, for the names
_TITLE = 0.35
_BARS = (1, 2, 5, 10, 20, 50, 100, 200)  # mm
_MOST_NAMES, _LONGEST = 120, 40  # names in the legend, and letters of one
_FEW = 15  # structures, whose outlines are drawn in full width
Boxes = Mapping[int, tuple[slice, ...]]


def draw_preview(
    path: Path,
    scan: Volume,
    labels: Volume,
    *,
    label_names: Mapping[str, int],
    colours: Mapping[int, str],
    title: str = "",
) -> None:
    """Draw planes and projections of a scan's first channel with its label map to ``path`` (PNG).

    Args:
        path: PNG file to write.
        scan: (C, D, H, W).
        labels: (D, H, W) on its grid.
        label_names: name to value.
        colours: of the label values (`data.colours`).
        title: heading.

    Raises:
        ValueError: the two differ in shape.
    """
    image, array, spacing = scan.array[0], labels.array, labels.geometry.spacing
    if image.shape != array.shape:
        raise ValueError(f"label map {array.shape} is not on the grid of the scan {image.shape}")
    names = {value: name for name, value in sorted(label_names.items(), key=lambda item: item[1]) if value > 0}
    boxes = label_boxes(array, names)
    present = {value: name for value, name in names.items() if value in boxes}
    flat = image.shape[0] == 1
    axes = (0,) if flat else (0, 1, 2)
    views = [make_view(axis, index, spacing) for axis, index in zip(axes, _centre(array, boxes), strict=False)]
    sides = [_size(view, image.shape, spacing) for view in views]  # one scale for all panels
    scale = min(_WIDTH / sum(wide for _, wide in sides), _HEIGHT / max(tall for tall, _ in sides))
    widths, height = [wide * scale for _, wide in sides], max(tall for tall, _ in sides) * scale
    width, rows = max(sum(widths), _NARROWEST), 1 if flat else 2
    texts = {value: _text(name, array, boxes[value], value, spacing) for value, name in present.items()}
    columns = max(int(width / (0.5 + 0.072 * max(map(len, texts.values()), default=1))), 1)
    legend = 0.22 * -(-min(max(len(present), 1), _MOST_NAMES) // columns) + 0.2
    total = rows * height + legend + _TITLE
    figure = new_figure(width, total)
    margin = (1 - sum(widths) / width) / 2
    grid = figure.add_gridspec(
        rows, len(views), width_ratios=widths, left=margin, right=1 - margin, wspace=0.01, hspace=0.01,
        bottom=legend / total, top=1 - _TITLE / total,
    )  # fmt: skip
    black, white = window(image)
    for column, view in enumerate(views):
        axis = _panel(figure, grid[0, column])
        axis.imshow(view.take(image), "gray", aspect=view.aspect, interpolation="bilinear", vmin=black, vmax=white)
        draw_labels(axis, view.take(array), {value: colours[value] for value in present})
        _finish(axis, view, spacing, marked=not flat, caption=f"{view.name} {view.index}")
    for column, view in enumerate(views if not flat else ()):
        axis = _panel(figure, grid[1, column])
        _draw_projection(axis, view, image, array, spacing, boxes, colours=colours)
        _finish(axis, view, spacing, marked=True, caption=_SEEN[view.axis])
    heading = printable(title) + ("" if present else "   (no structure was found)")
    figure.suptitle(heading, parse_math=False, fontsize=11, y=1 - 0.08 / total, va="top")
    _add_legend(figure, texts, colours, columns=columns)
    save_figure(figure, path)


_SEEN = {0: "projection from the feet", 1: "projection from the front", 2: "projection from the left"}


def _text(name: str, array: np.ndarray, box: tuple[slice, ...], value: int, spacing: Sequence[float]) -> str:
    """A label's name with its volume; without it in a 2D image."""
    name = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..."
    if array.shape[0] == 1:
        return name
    volume = int(np.count_nonzero(array[box] == value)) * float(np.prod(spacing))
    number, unit = (volume / 1000, "ml") if volume >= 100 else (volume, "mm\u00b3")
    return f"{name}  {f'{number:.0f}' if number >= 10 else f'{number:.2g}'} {unit}"


def _centre(array: np.ndarray, boxes: Boxes) -> tuple[int, int, int]:
    """The plane along each axis that cuts most structures, each weighted by its area there as a share of its largest
    one (half of that counts as all); the middle planes where there is none."""
    shares = [np.zeros(n) for n in array.shape]
    for value, box in boxes.items():
        mask = array[box] == value
        for share, side, others in zip(shares, box, ((1, 2), (0, 2), (0, 1)), strict=True):
            area = mask.sum(axis=others)
            area = area / area.max()
            share[side] += np.minimum(area, 0.5) + 0.1 * area
    z, y, x = (int(share.argmax()) if boxes else len(share) // 2 for share in shares)
    return z, y, x


def _size(view: View, shape: Sequence[int], spacing: Sequence[float]) -> tuple[float, float]:
    """Height and width of a view in mm."""
    tall, wide = [(shape[a] * spacing[a]) for a in range(3) if a != view.axis]
    return tall, wide


def _panel(figure: Any, place: Any) -> Any:
    axis = figure.add_subplot(place)
    axis.set_facecolor("black")
    return axis


def _draw_projection(
    axis: Any,
    view: View,
    image: np.ndarray,
    array: np.ndarray,
    spacing: Sequence[float],
    boxes: Boxes,
    *,
    colours: Mapping[int, str],
) -> None:
    mean = image.mean(axis=view.axis, dtype=np.float64)
    mean = mean if view.axis == 0 else mean[::-1]
    low, high = np.percentile(mean, (1, 99.5))
    axis.imshow(mean, "gray", aspect=view.aspect, interpolation="bilinear", vmin=low, vmax=max(high, low + 1e-6))
    first, depth = _surface(array, view.axis)
    pixel = [spacing[a] for a in range(3) if a != view.axis]
    shade = _shading(depth * spacing[view.axis], first > 0, pixel)
    picture = np.zeros((*first.shape, 4))
    for value in boxes:
        mask = first == value
        picture[mask, :3] = np.array(rgb(colours[value])) / 255 * shade[mask, None]
        picture[mask, 3] = 0.82
    axis.imshow(picture, aspect=view.aspect, interpolation="nearest")
    for value, box in boxes.items():
        sides = [side for number, side in enumerate(box) if number != view.axis]
        seen: np.ndarray = np.zeros(first.shape)
        seen[tuple(sides)] = (array[box] == value).any(axis=view.axis)
        framed: np.ndarray = np.pad(seen if view.axis == 0 else seen[::-1], 1)
        rows, columns = (np.arange(count) - 1.0 for count in framed.shape)
        axis.contour(columns, rows, framed, [0.5], colors=[colours[value]],
                     linewidths=0.9 if len(boxes) <= _FEW else 0.5)  # fmt: skip


def _surface(array: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """The label that is met first, and the depth in voxels where it is met, as displayed: from the feet (z = 0), the
    front (y = 0) or the patient's left (the last x)."""
    turned = np.moveaxis(array, axis, 0)
    turned = turned[::-1] if axis == 2 else turned
    first = np.zeros(turned.shape[1:], array.dtype)
    depth = np.zeros(turned.shape[1:], np.float32)
    for number, plane in enumerate(turned):  # plane by plane: no mask of the whole volume
        new = (first == 0) & (plane > 0)
        first[new], depth[new] = plane[new], number
    return (first, depth) if axis == 0 else (first[::-1], depth[::-1])


def _shading(depth: np.ndarray, mask: np.ndarray, pixel: Sequence[float]) -> np.ndarray:
    """Brightness 0.45 to 1 of a surface at ``depth``: what faces the viewer is bright. All lengths in mm."""
    rows, columns = np.gradient(_smoothed(depth, mask))
    slope = np.hypot(rows / pixel[0], columns / pixel[1])
    found: np.ndarray = 0.45 + 0.55 / np.sqrt(1 + (slope / 1.5) ** 2)
    return found


def _smoothed(depth: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The mean depth of labelled neighbours, twice, since the stairs of voxels would look like edges. It continues
    beyond the mask, whose border is not an edge of the surface."""
    for _ in range(2):
        total, weight = np.zeros(depth.shape), np.zeros(depth.shape)
        padded, inside = np.pad(depth * mask, 1), np.pad(mask, 1).astype(np.float64)
        for row in range(3):
            for column in range(3):
                part = (slice(row, row + depth.shape[0]), slice(column, column + depth.shape[1]))
                total += padded[part]
                weight += inside[part]
        depth, mask = total / np.maximum(weight, 1), weight > 0
    return depth


def _finish(axis: Any, view: View, spacing: Sequence[float], *, marked: bool, caption: str) -> None:
    from matplotlib.patheffects import Normal, Stroke

    annotate(axis, view, marked, caption=caption if marked else "")
    if not marked:
        return
    wide = axis.images[0].get_array().shape[1]
    step = spacing[1] if view.axis == 2 else spacing[2]
    length = max((bar for bar in _BARS if bar <= wide * step / 3), default=_BARS[0])
    share = length / (wide * step)
    halo = [Stroke(linewidth=3.5, foreground="black"), Normal()]
    axis.plot([0.03, 0.03 + share], [0.035, 0.035], transform=axis.transAxes, color="white", linewidth=2,
              solid_capstyle="butt", path_effects=halo)  # fmt: skip
    halo = [Stroke(linewidth=1.6, foreground="black"), Normal()]
    axis.annotate(f"{length} mm", (0.03, 0.035), (0, 3), xycoords="axes fraction", textcoords="offset points",
                  color="white", fontsize=8, va="bottom", path_effects=halo)  # fmt: skip


def _add_legend(figure: Any, present: Mapping[int, str], colours: Mapping[int, str], *, columns: int) -> None:
    from matplotlib.patches import Patch

    if not present:
        return
    shown = list(present.items())[:_MOST_NAMES]
    patches = [Patch(facecolor=colours[value], label=printable(name)) for value, name in shown]
    if len(present) > len(shown):
        patches[-1] = Patch(facecolor="white", label=f"and {len(present) - len(shown) + 1} more")
    legend = figure.legend(
        handles=patches, loc="lower center", ncols=columns, fontsize=8, frameon=False, borderpad=0.3, columnspacing=1.5
    )
    for entry in legend.get_texts():
        entry.set_parse_math(False)  # a name may hold dollar signs
