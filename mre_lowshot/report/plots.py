"""Plots of a report as SVG in the page, in which a point leads to its case: a picture of matplotlib could not.

All texts are escaped. Nothing is styled here: shapes have classes, whose look page.css gives.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from mre_lowshot.report.content import Calibration, CaseContent, Label, Row, Training

# Of lines that are compared: Okabe and Ito's, distinct for colour-blind readers; each has a dash pattern too.
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
DASHES = ("", "7 3", "2 2", "9 3 2 3", "12 4", "4 4")
_ROW = 22  # pixels of a row of dots
_NAME = 190  # pixels for the names of rows
_LONGEST = 28  # letters of a name


@dataclass(frozen=True)
class Axis:
    """A linear scale from values to pixels."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + min(max(share, 0.0), 1.0) * (self.stop - self.start), 1)

    def ticks(self, count: int = 5) -> list[float]:
        """At most about ``count`` round values."""
        raw = (self.high - self.low) / count
        power = 10 ** math.floor(math.log10(raw))
        step = next(s * power for s in (1, 2, 5, 10) if s * power >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def svg(width: float, height: float, parts: Iterable[str], title: str) -> str:
    """A picture with a title for screen readers."""
    body = "".join(parts)
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img" '
        f'aria-label="{escape(title)}">{body}</svg>'
    )


def label_plot(
    cases: Sequence[CaseContent], labels: Sequence[Label], metric: str, *, title: str, highest: float | None = 1.0
) -> str:
    """A row of dots for each label: one dot a case, and their mean. ``metric`` ``quality`` takes the estimates.

    Args:
        cases: in the order of the page; a dot leads to its case.
        labels: rows.
        metric: of `LabelScore.metrics`, or ``quality``.
        title: of the horizontal axis.
        highest: end of the axis; None: the largest value.
    """
    points: dict[int, list[tuple[float, int, str]]] = {label.value: [] for label in labels}
    for number, case in enumerate(cases):
        for score in case.labels:
            value = score.quality if metric == "quality" else score.metrics.get(metric, math.nan)
            if score.value in points and not math.isnan(value):
                points[score.value].append((value, number, f"{case.name} {case.group}".strip()))
    rows = [(label.name, label.colour, points[label.value]) for label in labels]
    return _dots(rows, title=title, highest=highest)


def row_plot(rows: Sequence[Row], metric: str, *, title: str, highest: float | None = 1.0) -> str:
    """The runs of each row of an experiment as dots."""
    listed = []
    for number, row in enumerate(rows):
        values = {"Dice": row.dice, "HD95": row.hd95, "NSD": row.nsd}[metric]
        points = [(v, -1, f"run {n}") for n, v in enumerate(values) if not math.isnan(v)]
        mark = " (reference)" if row.is_reference else ""
        listed.append((f"{row.name}{mark}", LINES[number % len(LINES)], points))
    return _dots(listed, title=title, highest=highest)


def _dots(rows: Sequence[tuple[str, str, list[tuple[float, int, str]]]], *, title: str, highest: float | None) -> str:
    width, bottom = 620, 10 + _ROW * len(rows)
    values = [value for _, _, points in rows for value, _, _ in points]
    axis = Axis(0, highest or max([*values, 1e-3]) * 1.05, _NAME, width - 16)
    parts = [_grid_x(axis, 8, bottom, title)]
    for number, (name, colour, points) in enumerate(rows):
        y = 8 + _ROW * (number + 0.5)
        parts.append(f'<text class="name" x="{_NAME - 8}" y="{y + 4}">{_short(name)}</text>')
        for value, case, text in points:
            jitter = ((hash_of(text) % 9) - 4) * 1.4
            dot = f'<circle cx="{axis(value)}" cy="{y + jitter:.1f}" r="3.6" fill="{escape(colour)}">'
            dot += f"<title>{escape(f'{text}: {value:.3g}')}</title></circle>"
            parts.append(f'<a href="#case-{case}" tabindex="-1">{dot}</a>' if case >= 0 else dot)
        if points:
            mean = axis(math.fsum(v for v, _, _ in points) / len(points))
            parts.append(f'<path class="mean" d="M{mean} {y - 9}V{y + 9}"/>')
    return svg(width, bottom + 40, parts, f"{title} of each row")


def scatter_plot(cases: Sequence[CaseContent]) -> str:
    """Quality score against Dice, a dot a case; empty where no case has both."""
    points = [(c.quality, c.mean("Dice"), n, c.name) for n, c in enumerate(cases)]
    points = [p for p in points if not (math.isnan(p[0]) or math.isnan(p[1]))]
    if not points:
        return ""
    across, up = Axis(0, 1, 52, 330), Axis(0, 1, 280, 12)
    parts = [_grid_x(across, 12, 280, "quality score (estimated)"), _grid_y(up, 52, 330, "mean Dice (measured)")]
    for quality, dice, number, name in points:
        parts.append(
            f'<a href="#case-{number}" tabindex="-1"><circle class="case" cx="{across(quality)}" cy="{up(dice)}" r="4">'
            f"<title>{escape(f'{name}: quality {quality:.2f}, Dice {dice:.3f}')}</title></circle></a>"
        )
    return svg(345, 322, parts, "Quality score against Dice")


def training_plot(trainings: Sequence[Training]) -> str:
    """Loss, Dice of the patches and learning rate of all folds over the iterations."""
    last = max(t.iterations[-1] for t in trainings)
    across = Axis(0, max(last, 1), 60, 604)
    parts, top = [], 10.0
    series = (("loss", "loss", 150), ("dice", "Dice of patches", 150), ("learning_rate", "learning rate", 70))
    for number, (field, title, height) in enumerate(series):
        values = [v for t in trainings for v in getattr(t, field) if not math.isnan(v)]
        high = 1.0 if field == "dice" else max([*values, 1e-9]) * 1.05
        up = Axis(min(0.0, *values) if values else 0.0, high, top + height, top)
        parts.append(_grid_y(up, 60, 604, title, count=3 if height < 100 else 5))
        is_last = number == len(series) - 1
        parts.append(_grid_x(across, top, top + height, "iteration" if is_last else "", numbers=is_last))
        for index, one in enumerate(trainings):
            pairs = zip(one.iterations, getattr(one, field), strict=True)
            parts.append(_line([(across(i), up(v)) for i, v in pairs if not math.isnan(v)], index))
        top += height + 18
    parts += _legend([t.name for t in trainings], 604, 24)
    return svg(620, top + 30, parts, "Training curves")


def calibration_plot(calibrations: Sequence[Calibration]) -> str:
    """Accuracy against confidence, with the diagonal of perfect calibration."""
    across, up = Axis(0, 1, 52, 330), Axis(0, 1, 280, 12)
    parts = [_grid_x(across, 12, 280, "confidence"), _grid_y(up, 52, 330, "accuracy")]
    parts.append(f'<path class="diagonal" d="M{across(0)} {up(0)}L{across(1)} {up(1)}"/>')
    for index, one in enumerate(calibrations):
        parts.append(_line([(across(c), up(a)) for c, a, _ in one.bins], index))
        total = sum(n for _, _, n in one.bins)
        for confidence, accuracy, count in one.bins:
            text = f"{one.name}: confidence {confidence:.2f}, accuracy {accuracy:.2f}, {count} voxels"
            parts.append(
                f'<circle cx="{across(confidence)}" cy="{up(accuracy)}" r="{2.5 + 6 * math.sqrt(count / total):.1f}" '
                f'fill="{LINES[index % len(LINES)]}" class="bin"><title>{escape(text)}</title></circle>'
            )
    parts += _legend([f"{c.name}, ECE {c.ece:.3f}" for c in calibrations], 326, 262, up=True)
    return svg(345, 322, parts, "Calibration")


def hash_of(text: str) -> int:
    """A number that depends on the text only, to spread dots."""
    found = 7
    for letter in text:
        found = (found * 31 + ord(letter)) % 1_000_003
    return found


def _line(points: Sequence[tuple[float, float]], index: int) -> str:
    if not points:
        return ""
    path = "M" + "L".join(f"{x} {y}" for x, y in points)
    dash = DASHES[index % len(DASHES)]
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<path class="line" d="{path}" stroke="{LINES[index % len(LINES)]}"{dashed}/>'


def _legend(names: Sequence[str], right: float, y: float, *, up: bool = False) -> list[str]:
    """Names of lines, below each other from ``y``, or upwards."""
    parts = []
    for index, name in enumerate(names[:8]):
        at = y - 16 * (len(names[:8]) - 1 - index) if up else y + 16 * index
        parts.append(f'<text class="legend" x="{right - 36}" y="{at + 4}">{_short(name)}</text>')
        parts.append(_line([(right - 30, at), (right - 4, at)], index))
    return parts


def _grid_x(axis: Axis, top: float, bottom: float, title: str, *, numbers: bool = True) -> str:
    parts = []
    for tick in axis.ticks():
        parts.append(f'<path class="grid" d="M{axis(tick)} {top:g}V{bottom:g}"/>')
        if numbers:
            parts.append(f'<text class="tick" x="{axis(tick)}" y="{bottom + 15:g}">{tick:g}</text>')
    middle = (axis.start + axis.stop) / 2
    return "".join(parts) + f'<text class="tick title" x="{middle:g}" y="{bottom + 32:g}">{escape(title)}</text>'


def _grid_y(axis: Axis, left: float, right: float, title: str, *, count: int = 5) -> str:
    parts = []
    for tick in axis.ticks(count):
        parts.append(f'<path class="grid" d="M{left:g} {axis(tick)}H{right:g}"/>')
        parts.append(f'<text class="name" x="{left - 5:g}" y="{axis(tick) + 4}">{tick:.6g}</text>')
    middle = (axis.start + axis.stop) / 2
    return "".join(parts) + (
        f'<text class="tick title" transform="translate(12 {middle:g}) rotate(-90)">{escape(title)}</text>'
    )


def _short(name: str) -> str:
    return escape(name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}\u2026")
