"""NIfTI files through SimpleITK, with additional checks.

ITK reads NaN and infinities as 0 and pads a truncated file with zeros; `check_nifti` reports both as errors.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from mre_lowshot.data.geometry import Geometry
from mre_lowshot.errors import UserError

_FLOATS = {16: "f4", 64: "f8"}


def read(path: Path) -> tuple[np.ndarray, Geometry]:
    """Read a NIfTI file in LPS: array (D, H, W) or (D, H, W, components), and its geometry.

    Raises:
        UserError: the file is truncated, damaged or unreadable, contains NaN or infinities, or is neither 2D nor 3D.
    """
    from mre_lowshot.data.readers import simpleitk

    check_nifti(path)
    return simpleitk.read(path)


def write(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write ``array`` (D, H, W) in the original orientation of its ``geometry``; the ending ``.gz`` compresses."""
    from mre_lowshot.data.readers import simpleitk

    simpleitk.write(path, array, geometry)


def check_nifti(path: Path) -> None:
    """Check the voxel data of a NIfTI-1 file; NIfTI-2 and Analyze files are not checked.

    Raises:
        UserError: the file is shorter than its header specifies, or contains voxels that are NaN or infinite.
    """
    kind: str | None = None
    order: str | None = None
    wanted, data = 0, b""
    try:
        with (gzip.open if path.name.lower().endswith(".gz") else open)(path, "rb") as file:
            header = file.read(348)
            order = next((o for o in "<>" if header[:4] == np.array(348, f"{o}i4").tobytes()), None)
            if order is None:
                return
            dim = np.frombuffer(header, f"{order}i2", 8, 40).astype(np.int64)
            code, bits = (int(v) for v in np.frombuffer(header, f"{order}i2", 2, 70))
            start = int(np.frombuffer(header, f"{order}f4", 1, 108)[0])
            wanted = (int(dim[1 : dim[0] + 1].prod()) * bits + 7) // 8
            kind = _FLOATS.get(code)
            file.seek(start)
            data = file.read(wanted)  # trailing bytes are allowed
            damaged = len(data) < wanted
    except (EOFError, OSError, zlib.error, ValueError):
        damaged = True
    if damaged:
        raise UserError(f"{path}: cannot be read as an image (it is truncated or damaged); copy or download it again")
    if kind is None or order is None:
        return
    values = np.frombuffer(data, order + kind, len(data) // int(kind[1]))
    bad = int(np.count_nonzero(~np.isfinite(values)))
    if bad:
        raise UserError(
            f"{path} has {bad} voxel(s) that are NaN or infinite and would be read as 0; "
            "replace them, for example with the value of the background"
        )
