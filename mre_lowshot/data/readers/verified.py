"""Checks that hold for several formats: data files beside a header, and files read again after writing."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mre_lowshot.errors import UserError


def data_file(header: Path, name: str) -> Path:
    """The file of voxels that a header names: in the folder of the header only, so that a file from a stranger reads
    nothing else.

    Raises:
        UserError: the name is that of a list of files, or leads elsewhere, or the file is missing.
    """
    name = name.strip()
    if not name or name.upper().startswith("LIST") or "%" in name:
        raise UserError(f"{header}: its voxels lie in several files ({name[:80]}); save it as one file")
    if "/" in name or "\\" in name or name in (".", "..") or "\0" in name or Path(name).is_absolute():
        raise UserError(
            f"{header}: its voxels lie in another folder ({name[:80]}); only a file beside the header is read: put "
            "both into one folder and correct the name in the header"
        )
    path = header.parent / name
    if not path.is_file():
        raise UserError(
            f"{header}: its file of voxels, {name[:200]}, is missing or not a file; put it into the folder of the "
            "header"
        )
    return path


def compare(*parts: bytes) -> Callable[[Path], None]:
    """A check for `files.atomic_write`: the file holds ``parts``."""

    def check(path: Path) -> None:
        with path.open("rb") as file:
            for part in parts:
                view = memoryview(part)
                for start in range(0, len(view), 1 << 22):
                    piece = view[start : start + (1 << 22)]
                    if file.read(len(piece)) != piece:
                        raise OSError("the file on the disk differs from what was written")
            if file.read(1):
                raise OSError("the file on the disk differs from what was written")

    return check


def packer(data: np.ndarray, *, gzip: bool) -> zlib._Compress:
    """A compressor for voxels, gzip (without a name and a time: equal voxels make equal files) or zlib. Runs of one
    byte are all that is searched for in label maps of one byte: this takes half the time, and finds what there is."""
    level, strategy = (6, zlib.Z_RLE) if data.dtype.itemsize == 1 else (4, zlib.Z_DEFAULT_STRATEGY)
    return zlib.compressobj(level, zlib.DEFLATED, 31 if gzip else 15, 9, strategy)
