"""Matplotlib figures without pyplot: no global state, no display."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mre_lowshot.errors import UserError
from mre_lowshot.files import atomic_write
from mre_lowshot.quiet import without_warnings

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure; width and height in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), facecolor="white")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with (
        atomic_write(path, check=check_png) as temporary,
        without_warnings(),
    ):  # of a name's letters that the font lacks
        FigureCanvasAgg(figure).print_figure(str(temporary), dpi=110, format="png")


def check_png(path: Path) -> None:
    """Refuse a PNG file that does not end as one does.

    Raises:
        UserError: it was cut off, or is another file.
    """
    content = path.read_bytes()
    if not content.startswith(b"\x89PNG") or content[-8:-4] != b"IEND":
        raise UserError(f"{path}: is no PNG file, or was cut off")
