"""Image formats: one module for each reader, chosen by file ending through `READERS`.

A reader module has ``read_header(path) -> Header``, ``read(path) -> (array, Header)``, the array (k, j, i) or (k, j, i,
components) in the order of the file, and ``write(path, array, geometry)``. It is imported when a file of its format is
read or written. Only the file named is read (and the file of voxels that a header names beside itself).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mre_lowshot.errors import MemoryLimitError, UserError

if TYPE_CHECKING:
    import numpy as np

    from mre_lowshot.data.geometry import Geometry
    from mre_lowshot.data.label_table import LabelTable
    from mre_lowshot.data.readers.header import Header

_RASTER = "mre_lowshot.data.readers.raster"
_METAIMAGE = "mre_lowshot.data.readers.metaimage"
READERS = {
    ".nii.gz": "mre_lowshot.data.readers.nifti",
    ".nii": "mre_lowshot.data.readers.nifti",
    ".nrrd": "mre_lowshot.data.readers.nrrd",
    ".mha": _METAIMAGE,
    ".mhd": _METAIMAGE,
    ".png": _RASTER,
    ".tif": _RASTER,
    ".tiff": _RASTER,
}
READABLE_ENDINGS = tuple(READERS)
VOXEL_ENDINGS = (".zraw", ".raw")  # of the files of voxels beside a .mhd file
NAMING_ENDINGS = (".nii.gz", ".nii")  # label maps hold the labels' names and colours
COLOUR_ENDINGS = (".png", ".tif", ".tiff")  # 2D formats; one file may hold all channels (RGB)


def file_ending(path: Path) -> str:
    """The ending that names the format, ``.nii.gz`` counted as one; empty for a format that is not read."""
    name = path.name.lower()
    return next((ending for ending in READABLE_ENDINGS if name.endswith(ending)), "")


def read_header(path: Path) -> Header:
    """The header of an image file, without its voxels: grid, components, type, and what is contradictory in it.

    Raises:
        UserError: missing, not a format read here, not readable, or a header that cannot be right.
    """
    header: Header = _call(path, "read_header")
    return header


def voxel_files(path: Path) -> list[Path]:
    """The files of voxels beside a header (.mhd, .mha, .nrrd): none where the header's own file holds them, or where it
    cannot be read."""
    module = import_module(READERS[ending]) if (ending := file_ending(path)) else None
    find: Callable[[Path], Path | None] | None = getattr(module, "voxel_file", None)
    if find is None or not path.is_file():
        return []
    try:
        found = find(path)
    except (UserError, OSError):  # named where the image is read
        return []
    return [] if found is None else [found]


def without_voxel_files(paths: Sequence[Path]) -> list[Path]:
    """``paths`` without the files of voxels beside the headers among them, those that no header names included."""
    beside = {found for path in paths for found in voxel_files(path)}
    headers = [path for path in paths if path not in beside]
    return [path for path in headers if path.suffix.lower() not in VOXEL_ENDINGS] or headers


def read_array(path: Path) -> tuple[np.ndarray, Header]:
    """Read an image file in LPS: array (D, H, W) or (D, H, W, components), and its header.

    Raises:
        UserError: as `read_header`; truncated or damaged, more voxels than the memory holds, or voxels that are NaN or
            infinite.
    """
    from mre_lowshot.data.axes import turn_array
    from mre_lowshot.limits import require_memory

    header = read_header(path)
    size = " x ".join(map(str, header.geometry.file_grid().shape[::-1]))
    require_memory(header.memory, f"{path}: {size} voxels", "crop or downsample the image")
    array, header = _call(path, "read")
    _check_finite(path, array)
    return turn_array(array, header.geometry.axes), header


def write_array(path: Path, array: np.ndarray, geometry: Geometry, table: LabelTable | None = None) -> None:
    """Write (D, H, W) on the grid it was read from, in the file's own orientation.

    Args:
        path: of the file.
        array: to write.
        geometry: its grid.
        table: names and colours of the labels, for the formats that hold them (`NAMING_ENDINGS`).

    Raises:
        UserError: the ending is not a format written here, or the file cannot be written.
    """
    name = path.name.casefold()
    if name.endswith(".seg.nrrd"):
        raise UserError(
            f"{path}: .seg.nrrd is the ending of a segmentation of 3D Slicer, whose labels have names; save a "
            "Prediction, use mre_lowshot.data.seg_nrrd.write_seg_nrrd, or end the name with .nrrd"
        )
    ending = file_ending(path)
    if not ending:
        dicom = "DICOM SEG is written by mre_lowshot.inference.formats.FORMATS (docs/PYTHON.md)"
        fix = f"{dicom}; otherwise use" if name.endswith(".dcm") else "use"
        raise UserError(f"{path}: unknown image ending; {fix} one of {', '.join(READABLE_ENDINGS)}")
    more = {"table": table} if ending in NAMING_ENDINGS else {}
    import_module(READERS[ending]).write(path, array, geometry, **more)


def _call(path: Path, function: str) -> Any:
    from mre_lowshot.data.readers.content import check_file, look

    check_file(path)
    ending = file_ending(path)
    if not ending:
        with path.open("rb") as file:
            seen = look(file.read(540))
        raise UserError(
            f"{path}: cannot be read as an image (unknown image ending{f'; it looks like {seen}' if seen else ''}); "
            f"use one of {', '.join(READABLE_ENDINGS)}"
        )
    try:
        return getattr(import_module(READERS[ending]), function)(path)
    except UserError as problem:
        raise type(problem)(_printable(path, str(problem))) from None
    except MemoryError:
        raise MemoryLimitError(f"{path}: does not fit into memory; crop or downsample the image") from None
    except Exception as problem:  # of any class: the libraries' errors must not end the run of the other files
        reason = str(problem).strip().splitlines() or [type(problem).__name__]
        fix = f"export it again as one of {', '.join(READABLE_ENDINGS)}"
        raise UserError(_printable(path, f"{path}: cannot be read as an image ({reason[-1]}); {fix}")) from None


def _printable(path: Path, message: str) -> str:
    """A message on one line, without what a damaged header may hold: control characters, and pages of text."""
    start = str(path) if message.startswith(str(path)) else ""
    rest = message[len(start) :].replace("\n", " ")
    shown = "".join(letter if letter.isprintable() else "?" for letter in rest)
    return start + (shown if len(shown) < 1000 else f"{shown[:600]} ... {shown[-200:]}")


def _check_finite(path: Path, array: np.ndarray) -> None:
    import numpy as np

    if array.dtype.kind != "f" or (np.isfinite(array.min()) and np.isfinite(array.max())):
        return
    bad = int(np.count_nonzero(~np.isfinite(array)))
    raise UserError(
        f"{path} has {bad} voxel(s) that are NaN or infinite; "
        "replace them, for example with the value of the background"
    )
