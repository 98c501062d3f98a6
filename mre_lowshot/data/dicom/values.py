"""The values of a series, slice by slice, each rescaled by its own slope and intercept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mre_lowshot.data.axes import inverse, turn_array
from mre_lowshot.data.dicom.files import read_header, require_packages
from mre_lowshot.data.dicom.frames import Frame
from mre_lowshot.data.dicom.pixels import stored_frames
from mre_lowshot.data.dicom.series import Series
from mre_lowshot.data.geometry import Geometry
from mre_lowshot.errors import UserError
from mre_lowshot.limits import require_memory


def read_values(series: Series) -> tuple[np.ndarray, Geometry, tuple[str, ...]]:
    """The array (D, H, W) float32 of a series in LPS, its grid and notes, as `data.dicom.volume.read_series`.

    Raises:
        UserError: the series has a problem, is too large for the memory, or a file cannot be decoded.
    """
    require_packages()
    if series.problem or series.geometry is None:
        raise UserError(f"series {series.name}: {series.problem or 'has no regular grid'}")
    grid = series.geometry
    z, y, x = grid.shape
    what = f"series {series.name} ({z} x {y} x {x} voxels)"
    require_memory(4.0 * z * y * x, what, "crop it, or give a machine with more memory")
    array = np.empty(grid.shape, np.float32)
    stored = turn_array(array, inverse(grid.axes))  # a view in the order of the files: slice, row, column
    for index, frame, values in _slices(series):
        slope, intercept = frame.rescale
        with np.errstate(over="ignore"):
            stored[index] = values if (slope, intercept) == (1.0, 0.0) else values * slope + intercept
        if not np.isfinite(stored[index]).all():
            raise UserError(
                f"{frame.path}: has values that are not finite numbers of 32 bits (Rescale Slope {slope:g}, Intercept "
                f"{intercept:g}); export it again"
            )
    return array, grid, _notes(series)


def _slices(series: Series) -> Iterator[tuple[int, Frame, np.ndarray]]:
    """Number in the stack, frame and stored values (rows, columns; float64 where they are rescaled) of each slice."""
    files: dict[Path, list[tuple[int, Frame]]] = {}
    for index, frame in enumerate(series.frames):
        files.setdefault(frame.path, []).append((index, frame))
    for path, slices in files.items():
        slices.sort(key=lambda item: item[1].index)
        numbers = [frame.index for _, frame in slices]
        for (index, frame), values in zip(slices, stored_frames(path, numbers, slices[0][1].shape), strict=True):
            yield index, frame, values


def _notes(series: Series) -> tuple[str, ...]:
    header = read_header(series.files[0])
    notes = series.notes
    if header.get("PhotometricInterpretation") == "MONOCHROME1":
        notes += ("its images are MONOCHROME1 (low values are displayed bright); the values are taken as stored",)
    if (
        series.modality == "CT"
        and "RescaleIntercept" not in header
        and "PerFrameFunctionalGroupsSequence" not in header
    ):
        notes += ("it is a CT without Rescale Slope and Intercept; its stored values are taken as HU",)
    kind = str(header.get("RescaleType") or "HU")
    if series.modality == "CT" and kind not in ("HU", "US"):  # US: unspecified
        notes += (f"it is a CT whose values are {kind}, not HU",)
    return notes
