"""The forms in which a Python caller may give a scan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Union

import numpy as np

from mre_lowshot.data.dataset import Case
from mre_lowshot.data.dicom.series import Series
from mre_lowshot.data.dicom.volume import read_series
from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.readers import file_ending
from mre_lowshot.data.volume import Volume, geometry_of, stacked
from mre_lowshot.errors import UserError

if TYPE_CHECKING:
    import SimpleITK as sitk

ScanInput = Union[str, Path, Sequence[str | Path], Series, Volume, "sitk.Image", tuple[np.ndarray, Sequence[float]]]
"""A file, a folder of DICOM, a sequence of either (channels) or of DICOM files, a DICOM `Series`, a `Volume`, a
SimpleITK image, or ``(array, spacing)``."""


def read_scan(scan: ScanInput) -> tuple[str, Volume]:
    """The name and the volume of a scan in any of these forms; ``scan`` where it has no name.

    Raises:
        UserError: it cannot be read, or is none of these.
    """
    if isinstance(scan, Volume):
        return (_name(scan.path) if scan.path else "scan"), scan
    if isinstance(scan, Series):
        return scan.name, read_series(scan)
    if isinstance(scan, (str, Path)):
        return _named(Volume.read(scan), Path(scan))
    if isinstance(scan, (tuple, list)) and len(scan) == 2 and isinstance(scan[0], np.ndarray):
        return "scan", Volume.from_array(scan[0], scan[1])
    if isinstance(scan, (tuple, list)) and scan and all(isinstance(path, (str, Path)) for path in scan):
        return _named(Volume.read(*scan), Path(scan[0]))
    if hasattr(scan, "GetSpacing"):
        return "scan", Volume.from_sitk(scan)  # type: ignore[arg-type]
    raise UserError(
        f"scan of type {type(scan).__name__}: give a file, a folder of DICOM, a list of channel files, a Series, a "
        "Volume, a SimpleITK image, or (array, spacing)"
    )


def read_case(case: Case) -> Volume:
    """The image (C, D, H, W) of a case.

    Raises:
        UserError: it cannot be read.
    """
    if not case.series:
        return Volume.read(*case.images)
    return stacked([read_series(series) for series in case.series])


def geometry_of_case(case: Case) -> Geometry:
    """The grid of a case, from the header of its first file.

    Raises:
        UserError: it cannot be read.
    """
    if not case.series:
        return geometry_of(case.images[0])
    first = case.series[0]
    if first.geometry is None:
        raise UserError(f"series {first.name}: {first.problem}")
    return first.geometry


def _named(volume: Volume, given: Path) -> tuple[str, Volume]:
    """With the case name: that of the series where the volume was read from DICOM, otherwise that of its file."""
    return (_name(given if file_ending(given) else volume.path or given)), volume


def _name(path: Path) -> str:
    """The case name of a file: without its ending and channel number."""
    return path.name[: -len(file_ending(path)) or None].removesuffix("_0000")
