"""Images and label maps with their geometry: LPS arrays in memory, the file's own grid and orientation on disk.

SimpleITK's (x, y, z) order is confined to `data.readers`, `preprocessing.bias_field` and `atlas.registration`.
Elsewhere arrays are (C, D, H, W) or (D, H, W) and spacings are (z, y, x) in mm.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mre_lowshot.data.axes import IDENTITY, turn_array
from mre_lowshot.data.dicom.files import is_dicom
from mre_lowshot.data.geometry import MAX_SPACING, MIN_SPACING, Geometry
from mre_lowshot.data.lost_headers import channel_fix
from mre_lowshot.data.readers import file_ending, read_array, read_header, write_array
from mre_lowshot.errors import UserError

if TYPE_CHECKING:
    import SimpleITK as sitk

    from mre_lowshot.data.label_table import LabelTable


@dataclass(frozen=True)
class Volume:
    """An image (C, D, H, W) float32, or a label map (D, H, W) of integers, in LPS, with its geometry.

    ``notes`` lists what is contradictory or missing in the header of its file, and what was taken: one sentence each.

    >>> import numpy as np
    >>> volume = Volume.from_array(np.zeros((4, 5, 6), np.float32), spacing=(3.0, 1.0, 1.0))
    >>> volume.array.shape, volume.geometry.spacing
    ((1, 4, 5, 6), (3.0, 1.0, 1.0))
    """

    array: np.ndarray
    geometry: Geometry
    path: Path | None = field(default=None, compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        shape, grid = self.array.shape, tuple(self.geometry.shape)
        if len(shape) not in (3, 4) or tuple(shape[-3:]) != grid:
            raise UserError(
                f"array of shape {shape} on a grid of {grid} voxels (z, y, x): an image is (C, D, H, W), a label map "
                "(D, H, W), on the grid of its geometry"
            )

    @classmethod
    def read(cls, *paths: str | Path) -> Volume:
        """Read a scan from its channel files in order, or from one colour image; or from DICOM: a folder with one
        series (several folders: one for each channel), or the files of one series.

        Raises:
            UserError: a file is missing or unreadable, a folder holds no or several series, or two channels do not lie
                on one grid.
        """
        if not paths:
            raise UserError("Volume.read: give the path of each channel's file")
        for path in paths:
            _require_path(path)
        return read_channels([Path(path) for path in paths])

    @classmethod
    def from_array(cls, array: np.ndarray, spacing: Sequence[float]) -> Volume:
        """An image (C, D, H, W) or (D, H, W) whose axes are LPS ordered (z, y, x), with ``spacing`` (z, y, x) in mm.

        Raises:
            UserError: the array has not three or four axes, or the spacing not three positive numbers.
        """
        array = _numbers(array)
        array = array[None] if array.ndim == 3 else array
        if array.ndim != 4:
            raise UserError(
                f"array of shape {array.shape}: an image is (D, H, W) or (C, D, H, W); for a 2D image give array[None]"
            )
        try:
            sides = tuple(float(s) for s in spacing)
        except (TypeError, ValueError):
            sides = ()
        if len(sides) != 3 or not all(MIN_SPACING <= s <= MAX_SPACING for s in sides):
            raise UserError(
                f"spacing {sides or spacing!r}: give three numbers from {MIN_SPACING:g} to {MAX_SPACING:g}, (z, y, x) "
                "in mm"
            )
        made = _image(np.moveaxis(array, 0, -1), Geometry(tuple(array.shape[1:]), sides))
        if array.dtype.kind == "f" and np.isfinite(array).all() and not np.isfinite(made.array).all():
            raise UserError(f"array has values beyond {np.finfo(np.float32).max:.3g}; divide them, or clip them")
        return made

    @classmethod
    def from_sitk(cls, image: sitk.Image) -> Volume:
        """The image of a SimpleITK image, whatever its orientation; vector components become channels.

        Raises:
            UserError: the image is neither 2D nor 3D.
        """
        from mre_lowshot.data.readers.simpleitk import from_sitk

        return _image(*from_sitk(image))

    def to_sitk(self) -> sitk.Image:
        """A label map or single-channel image as a SimpleITK image in the orientation that it was read in.

        Raises:
            UserError: the image has several channels.
        """
        from mre_lowshot.data.readers.simpleitk import to_sitk

        array = self.array
        if array.ndim == 4:
            if len(array) != 1:
                raise UserError(
                    f"an image of {len(array)} channels has no single SimpleITK image; convert each channel"
                )
            array = array[0]
        return to_sitk(storable(array), self.geometry)

    def on_axes_of(self, geometry: Geometry) -> Volume:
        """This volume with the axes of its array in the order of ``geometry``. Needed wherever the arrays of two files
        are combined: of a grid turned by 45 degrees, two files may be read with different orders of LPS axes."""
        turn = geometry.turn_from(self.geometry)
        if turn == IDENTITY:
            return self
        array = np.ascontiguousarray(turn_array(self.array, turn, first=self.array.ndim - 3))
        return Volume(array, self.geometry.turned(turn), self.path, self.notes)

    def save(self, path: str | Path, table: LabelTable | None = None) -> None:
        """Write a label map or single-channel image on its grid, in the orientation it was read in; of a label map
        with the names and colours of ``table``, if the format can hold them (NIfTI).

        Raises:
            UserError: the ending is not a format written here, or the image has several channels.
        """
        _require_path(path)
        array = self.array
        if array.ndim == 4:
            if len(array) != 1:
                raise UserError(f"{path}: an image of {len(array)} channels; save each channel to its own file")
            array = array[0]
        write_volume(Path(path), array, self.geometry, table)


def _numbers(array: object) -> np.ndarray:
    """An array of real numbers that is not empty.

    Raises:
        UserError: it is something else.
    """
    if isinstance(array, np.ma.MaskedArray):
        raise UserError(
            "array is masked, and masks are not used; give array.filled(VALUE), with that of the background"
        )
    try:
        found = np.asarray(array)
        if found.dtype.kind == "O":
            found = found.astype(np.float64)
    except (ValueError, TypeError) as problem:
        raise UserError(f"array does not hold numbers only ({problem}); give integers or real numbers") from None
    if found.dtype.kind not in "buif":
        fix = "give the magnitude, for example" if found.dtype.kind == "c" else "give integers or real numbers"
        raise UserError(f"array has values of type {found.dtype}; {fix}")
    if not found.size:
        raise UserError(f"array of shape {found.shape} holds no voxel; give an image")
    return found


def _require_path(path: object) -> None:
    if not isinstance(path, (str, os.PathLike)) or not str(path):
        raise UserError(f"path {path!r}: must be the path of an image file")


def read_image(path: str | Path) -> Volume:
    """Read one channel file (or a colour image: its components become channels) as float32 (C, D, H, W) in LPS.

    Raises:
        UserError: missing, unreadable, neither 2D nor 3D, or values that float32 cannot hold.
    """
    path = Path(path)
    array, header = read_array(path)
    volume = _image(array, header.geometry, path, header.notes)
    if array.dtype.kind == "f" and array.dtype.itemsize > 4 and not np.isfinite(volume.array).all():
        raise UserError(f"{path}: has values beyond {np.finfo(np.float32).max:.3g}; divide them, or clip them")
    return volume


def _image(array: np.ndarray, geometry: Geometry, path: Path | None = None, notes: tuple[str, ...] = ()) -> Volume:
    array = np.moveaxis(array, -1, 0) if array.ndim == 4 else array[None]
    with np.errstate(over="ignore"):
        return Volume(np.ascontiguousarray(array, dtype=np.float32), geometry, path, notes)


def read_channels(paths: Sequence[Path]) -> Volume:
    """Read the channels of a case, each a file or a folder of DICOM, and stack them to (C, D, H, W).

    Raises:
        UserError: a channel cannot be read, or two channels do not lie on one grid.
    """
    if paths and _is_dicom_file(paths[0]):
        return _read_dicom(paths)
    return stacked(_read_dicom([path]) if path.is_dir() and not file_ending(path) else read_image(path)
                   for path in paths)  # fmt: skip


def stacked(channels: Iterable[Volume]) -> Volume:
    """The channels of a case, each (1, D, H, W), as one volume on the axes of the first.

    Raises:
        UserError: two channels do not lie on one grid.
    """
    volumes: list[Volume] = []
    for volume in channels:
        first = volumes[0] if volumes else volume
        different = first.geometry.differences(volume.geometry)
        if different:
            fix = "resample one onto the other"
            if first.path and volume.path:
                paths = first.path, volume.path
                fix = channel_fix(first.geometry, volume.geometry, (first.notes, volume.notes), paths)
            name = first.path.name if first.path else "the first channel"
            raise UserError(
                f"{volume.path or 'a channel'}: is not on the grid of {name}: {'; '.join(different)}; {fix}"
            )
        volumes.append(volume.on_axes_of(first.geometry))
    first = volumes[0]
    array = np.concatenate([v.array for v in volumes]) if len(volumes) > 1 else first.array
    return Volume(array, first.geometry, first.path, merged_notes(volumes))


def _is_dicom_file(path: Path) -> bool:
    return path.is_file() and not file_ending(path) and is_dicom(path)


def _read_dicom(paths: Sequence[Path]) -> Volume:
    """The only series of a folder, or of files."""
    from mre_lowshot.data.dicom.choice import only_series
    from mre_lowshot.data.dicom.values import read_values

    series = only_series(paths)
    array, grid, notes = read_values(series)
    return Volume(array[None], grid, series.place, notes)


def merged_notes(volumes: Sequence[Volume]) -> tuple[str, ...]:
    """The notes of several files, each once; with the file's name where there are several files."""
    notes = (f"{v.path.name}: {note}" if v.path and len(volumes) > 1 else note for v in volumes for note in v.notes)
    return tuple(dict.fromkeys(notes))


def read_labels(path: str | Path, like: Geometry | None = None) -> Volume:
    """Read a label map as integers (D, H, W) in LPS; with the axes of ``like`` where it is given, whose array it is
    combined with (`Volume.on_axes_of`).

    Raises:
        UserError: missing, unreadable, several components, values that are not whole numbers or exceed 32 bits.
    """
    path = Path(path)
    array, header = read_array(path)
    if array.ndim != 3:
        raise UserError(
            f"{path}: a label map must be scalar, not a colour image with {array.shape[-1]} components; save it in "
            "grey values, one number per class"
        )
    if not np.issubdtype(array.dtype, np.integer):
        whole = np.rint(array)
        bad = ~np.isfinite(array) | (np.abs(array - whole) > 1e-3)
        if bad.any():
            raise UserError(
                f"{path}: {int(bad.sum())} label voxels are not whole numbers (for example {array[bad][0]}); "
                "was the label map resampled with interpolation? Resample with nearest neighbour"
            )
        array = whole
    limits = np.iinfo(np.int32)
    if array.dtype.itemsize >= 4 and array.dtype != np.int32:
        low, high = array.min(), array.max()
        if low < limits.min or high > limits.max:
            raise UserError(
                f"{path}: label value {int(low if low < limits.min else high)} is beyond 32 bits; relabel with small "
                "numbers, 0 for background"
            )
    volume = Volume(np.ascontiguousarray(array, dtype=np.int32), header.geometry, path, header.notes)
    return volume if like is None else volume.on_axes_of(like)


def geometry_of(path: Path) -> Geometry:
    """The geometry of an image or label file (of its LPS form), from its header.

    Raises:
        UserError: missing or unreadable.
    """
    return read_header(path).geometry


def write_volume(path: str | Path, array: np.ndarray, geometry: Geometry, table: LabelTable | None = None) -> None:
    """Write (D, H, W) on the grid it was read from: in the file's own orientation, compressed.

    Args:
        path: of the file.
        array: to write.
        geometry: its grid.
        table: names and colours of the labels, for the formats that hold them (NIfTI).

    One slice goes to 2D formats (PNG, TIFF) as a 2D image, and to others where it was read from one. Label maps are
    stored as uint8 (uint16 above 255 labels), anything else as float32.

    Raises:
        UserError: the ending is not a format written here, or labels that it cannot hold.
    """
    if tuple(array.shape) != tuple(geometry.shape):
        raise ValueError(f"array {array.shape} does not fit the grid {geometry.shape}")
    write_array(Path(path), storable(array), geometry, table)


def storable(array: np.ndarray) -> np.ndarray:
    """The smallest of the types that are stored: uint8 or uint16 for labels, float32 for anything else.

    Raises:
        UserError: labels below 0 or above 65535.
    """
    if np.issubdtype(array.dtype, np.integer) or array.dtype == bool:
        low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
        if low < 0 or high > 65535:
            raise UserError(f"label value {low if low < 0 else high}: a label map holds 0 to 65535; relabel")
        return array.astype(np.uint8 if high < 256 else np.uint16)
    return array.astype(np.float32)
