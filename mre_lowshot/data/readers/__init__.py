"""Image formats: one module for each reader, chosen by file ending through `READERS`.

A reader module has ``read(path) -> (array, Geometry)``, the array (D, H, W) or (D, H, W, components) in LPS, and
``write(path, array, geometry)``. It is imported when a file of its format is read or written.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from mre_lowshot.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from mre_lowshot.data.geometry import Geometry

_SITK = "mre_lowshot.data.readers.simpleitk"
READERS = {
    ".nii.gz": "mre_lowshot.data.readers.nifti",
    ".nii": "mre_lowshot.data.readers.nifti",
    ".nrrd": _SITK,
    ".mha": _SITK,
    ".mhd": _SITK,
    ".png": _SITK,
    ".tif": _SITK,
    ".tiff": _SITK,
}
READABLE_ENDINGS = tuple(READERS)
COLOUR_ENDINGS = (".png", ".tif", ".tiff")  # 2D formats; one file may hold all channels (RGB)


def file_ending(path: Path) -> str:
    """The ending that names the format, ``.nii.gz`` counted as one; empty for a format that is not read."""
    name = path.name.lower()
    return next((ending for ending in READABLE_ENDINGS if name.endswith(ending)), "")


def read_array(path: Path) -> tuple[np.ndarray, Geometry]:
    """Read an image file in LPS: array (D, H, W) or (D, H, W, components), and its geometry.

    Raises:
        UserError: missing, not a format read here, unreadable, or neither 2D nor 3D.
    """
    if not path.is_file():
        raise UserError(f"{path}: the file is missing")
    read: tuple[np.ndarray, Geometry] = import_module(READERS.get(file_ending(path), _SITK)).read(path)
    return read


def write_array(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write (D, H, W) on the grid it was read from, in the file's own orientation.

    Raises:
        UserError: the ending is not a format written here.
    """
    if not file_ending(path):
        raise UserError(f"{path}: unknown image ending; use one of {', '.join(READABLE_ENDINGS)}")
    import_module(READERS[file_ending(path)]).write(path, array, geometry)
