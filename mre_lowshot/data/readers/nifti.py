"""What ITK's NIfTI reader hides: NaN and infinities read as 0, and files cut off read as if zeros followed."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from mre_lowshot.errors import UserError

_FLOATS = {16: "f4", 64: "f8"}


def check_nifti(path: Path) -> None:
    """Read a NIfTI-1 file's bytes once (NIfTI-2 and Analyze are left to ITK).

    Raises:
        UserError: the file is shorter than its header says, or holds voxels that are NaN or infinite.
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
            data = file.read(wanted)  # what follows the voxels is nobody's
            damaged = len(data) < wanted
    except (EOFError, OSError, zlib.error, ValueError):
        damaged = True
    if damaged:
        raise UserError(f"{path}: cannot be read as an image (it is cut off or damaged); copy or download it again")
    if kind is None or order is None:
        return
    values = np.frombuffer(data, order + kind, len(data) // int(kind[1]))
    bad = int(np.count_nonzero(~np.isfinite(values)))
    if bad:
        raise UserError(
            f"{path} has {bad} voxel(s) that are NaN or infinite and would be read as 0; "
            "replace them, for example with the background's value"
        )
