"""The forms in which a Python caller may give a scan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Union

import numpy as np

from mre_lowshot.data.readers import file_ending
from mre_lowshot.data.volume import Volume
from mre_lowshot.errors import UserError

if TYPE_CHECKING:
    import SimpleITK as sitk

ScanInput = Union[str, Path, Sequence[str | Path], Volume, "sitk.Image", tuple[np.ndarray, Sequence[float]]]
"""A file, a sequence of channel files, a `Volume`, a SimpleITK image, or ``(array, spacing)``."""


def read_scan(scan: ScanInput) -> tuple[str, Volume]:
    """The name and the volume of a scan in any of these forms; ``scan`` where it has no name.

    Raises:
        UserError: it cannot be read, or is none of these.
    """
    if isinstance(scan, Volume):
        return (_name(scan.path) if scan.path else "scan"), scan
    if isinstance(scan, (str, Path)):
        return _name(Path(scan)), Volume.read(scan)
    if isinstance(scan, (tuple, list)) and len(scan) == 2 and isinstance(scan[0], np.ndarray):
        return "scan", Volume.from_array(scan[0], scan[1])
    if isinstance(scan, (tuple, list)) and scan and all(isinstance(path, (str, Path)) for path in scan):
        return _name(Path(scan[0])), Volume.read(*scan)
    if hasattr(scan, "GetSpacing"):
        return "scan", Volume.from_sitk(scan)  # type: ignore[arg-type]
    raise UserError(
        f"scan of type {type(scan).__name__}: give a file, a list of channel files, a Volume, a SimpleITK image, or "
        "(array, spacing)"
    )


def _name(path: Path) -> str:
    """The case name of a file: without its ending and channel number."""
    return path.name[: -len(file_ending(path)) or None].removesuffix("_0000")
