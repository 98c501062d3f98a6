"""Whether a file states the size of its pixels: distances are in mm where it does, and in pixels where it does not."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.readers import COLOUR_ENDINGS, file_ending

Unit = Literal["mm", "px"]
UNIT_KEY = "distance_unit"  # of summary.json
_TOLERANCE = 1e-6  # TIFF stores resolutions as fractions


def states_pixel_size(path: Path | None, geometry: Geometry) -> bool:
    """Whether a file gives a pixel size. PNG and TIFF may leave it out; they are then read with sides of exactly 1,
    which no camera or scanner has in mm."""
    if path is None or file_ending(path) not in COLOUR_ENDINGS:
        return True
    return any(abs(side - 1.0) > _TOLERANCE for side in geometry.spacing)


def common_unit(units: Iterable[Unit]) -> Unit:
    """The unit of figures over several images: pixels where it is that of all of them."""
    return "px" if set(units) == {"px"} else "mm"


def unit_of(stored: object) -> Unit:
    """A unit as read from a file; mm where it is none (files of earlier versions have no unit)."""
    return "px" if stored == "px" else "mm"
