"""Images and label maps with their geometry: LPS arrays in memory, the file's own grid and orientation on disk.

SimpleITK's (x, y, z) order is confined to `data.readers`, `preprocessing.bias_field` and `atlas.registration`.
Elsewhere arrays are (C, D, H, W) or (D, H, W) and spacings are (z, y, x) in mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.readers import read_array, write_array
from mre_lowshot.errors import UserError

if TYPE_CHECKING:
    import SimpleITK as sitk


@dataclass(frozen=True)
class Volume:
    """An image (C, D, H, W) float32, or a label map (D, H, W) of integers, in LPS, with its geometry.

    >>> import numpy as np
    >>> volume = Volume.from_array(np.zeros((4, 5, 6), np.float32), spacing=(3.0, 1.0, 1.0))
    >>> volume.array.shape, volume.geometry.spacing
    ((1, 4, 5, 6), (3.0, 1.0, 1.0))
    """

    array: np.ndarray
    geometry: Geometry
    path: Path | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        shape, grid = self.array.shape, tuple(self.geometry.shape)
        if len(shape) not in (3, 4) or tuple(shape[-3:]) != grid:
            raise UserError(
                f"array of shape {shape} on a grid of {grid} voxels (z, y, x): an image is (C, D, H, W), a label map "
                "(D, H, W), on the grid of its geometry"
            )

    @classmethod
    def read(cls, *paths: str | Path) -> Volume:
        """Read a scan from its channel files in order, or from one colour image.

        Raises:
            UserError: a file is missing or unreadable, or two channels do not lie on one grid.
        """
        return read_channels([Path(path) for path in paths])

    @classmethod
    def from_array(cls, array: np.ndarray, spacing: Sequence[float]) -> Volume:
        """An image (C, D, H, W) or (D, H, W) whose axes are LPS ordered (z, y, x), with ``spacing`` (z, y, x) in mm.

        Raises:
            UserError: the array has not three or four axes, or the spacing not three positive numbers.
        """
        array = np.asarray(array)
        array = array[None] if array.ndim == 3 else array
        if array.ndim != 4:
            raise UserError(
                f"array of shape {array.shape}: an image is (D, H, W) or (C, D, H, W); for a 2D image give array[None]"
            )
        try:
            sides = tuple(float(s) for s in spacing)
        except (TypeError, ValueError):
            sides = ()
        if len(sides) != 3 or not all(0 < s < np.inf for s in sides):
            raise UserError(f"spacing {sides or spacing!r}: give three numbers above 0, (z, y, x) in mm")
        return cls(np.ascontiguousarray(array, dtype=np.float32), Geometry(tuple(array.shape[1:]), sides))

    @classmethod
    def from_sitk(cls, image: sitk.Image) -> Volume:
        """The image of a SimpleITK image, whatever its orientation; vector components become channels.

        Raises:
            UserError: the image is neither 2D nor 3D.
        """
        from mre_lowshot.data.readers.simpleitk import from_sitk

        return _image(*from_sitk(image), None)

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

    def save(self, path: str | Path) -> None:
        """Write a label map or single-channel image on its grid, in the orientation it was read in.

        Raises:
            UserError: the ending is not a format written here, or the image has several channels.
        """
        array = self.array
        if array.ndim == 4:
            if len(array) != 1:
                raise UserError(f"{path}: an image of {len(array)} channels; save each channel to its own file")
            array = array[0]
        write_volume(Path(path), array, self.geometry)


def read_image(path: Path) -> Volume:
    """Read one channel file (or a colour image: its components become channels) as float32 (C, D, H, W) in LPS.

    Raises:
        UserError: missing, unreadable, or neither 2D nor 3D.
    """
    return _image(*read_array(path), path)


def _image(array: np.ndarray, geometry: Geometry, path: Path | None) -> Volume:
    array = np.moveaxis(array, -1, 0) if array.ndim == 4 else array[None]
    return Volume(np.ascontiguousarray(array, dtype=np.float32), geometry, path)


def read_channels(paths: Sequence[Path]) -> Volume:
    """Read the channel files of a case and stack them to (C, D, H, W).

    Raises:
        UserError: a file cannot be read, or two channels do not lie on one grid.
    """
    volumes = [read_image(path) for path in paths]
    first = volumes[0]
    for path, volume in zip(paths[1:], volumes[1:], strict=True):
        different = first.geometry.differences(volume.geometry)
        if different:
            raise UserError(
                f"{path}: is not on the grid of {paths[0].name}: {'; '.join(different)}; resample one onto the other"
            )
    return Volume(np.concatenate([v.array for v in volumes]), first.geometry, paths[0])


def read_labels(path: Path) -> Volume:
    """Read a label map as integers (D, H, W) in LPS.

    Raises:
        UserError: missing, unreadable, several components, or values that are not whole numbers.
    """
    array, geometry = read_array(path)
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
    return Volume(array.astype(np.int32), geometry, path)


def geometry_of(path: Path) -> Geometry:
    """The geometry of an image or label file (of its LPS form)."""
    return read_array(path)[1]


def write_volume(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write (D, H, W) on the grid it was read from: in the file's own orientation, compressed.

    One slice goes to 2D formats (PNG, TIFF) as a 2D image, and to others where it was read from one. Label maps are
    stored as uint8 (uint16 above 255 labels), anything else as float32.

    Raises:
        UserError: the ending is not a format written here.
    """
    if tuple(array.shape) != tuple(geometry.shape):
        raise ValueError(f"array {array.shape} does not fit the grid {geometry.shape}")
    write_array(path, storable(array), geometry)


def storable(array: np.ndarray) -> np.ndarray:
    """The smallest of the types that are stored: uint8 or uint16 for labels, float32 for anything else."""
    if np.issubdtype(array.dtype, np.integer) or array.dtype == bool:
        return array.astype(np.uint8 if array.max(initial=0) < 256 else np.uint16)
    return array.astype(np.float32)
