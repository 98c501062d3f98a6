"""NIfTI-1 and NIfTI-2 files: headers through nibabel, voxels with sizes and checksums verified."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from mre_lowshot.data.axes import inverse, turn_array
from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.label_table import LabelTable
from mre_lowshot.data.readers.content import damaged, inflate, not_an_image, open_file, read_voxels
from mre_lowshot.data.readers.header import Header
from mre_lowshot.data.readers.nifti_header import NiftiHeader, parse, restored
from mre_lowshot.data.readers.verified import packer
from mre_lowshot.errors import UserError
from mre_lowshot.files import atomic_write

_START = 4096  # bytes read for the header
_CODES = {"uint8": 2, "int16": 4, "int32": 8, "float32": 16, "uint16": 512}
_LABEL_INTENT = 1002  # NIFTI_INTENT_LABEL: each value is an index into a table of labels
_DEFAULT_SIZE = 32767  # voxels along an axis that NIfTI-1 can hold


def read_header(path: Path) -> Header:
    """The header alone.

    Raises:
        UserError: as `nifti_header.parse`; the file is damaged.
    """
    return _parsed(path).header


def read(path: Path) -> tuple[np.ndarray, Header]:
    """The voxels (k, j, i) or (k, j, i, components) in the order of the file, scaled as the header specifies.

    Raises:
        UserError: as `read_header`; damaged or truncated voxels.
    """
    found = _parsed(path)
    header = found.header
    with open_file(path) as file:
        last = max(found.size[2], found.size[1] if found.size[2] == 1 else 1)
        compressed = _is_compressed(path)
        if not compressed:
            file.seek(found.offset)
        data = read_voxels(
            path,
            file,
            kind="gzip" if compressed else "raw",
            count=header.stored_bytes,
            skip=found.offset if compressed else 0,
            spare=header.stored_bytes // last - 1,  # bytes after the voxels are ignored, but not a whole slice
        )
    array = data.view(header.dtype)
    i, j, k = found.size
    if found.is_colour:
        array = array.reshape(k, j, i, header.components)
    elif header.components > 1:
        array = np.moveaxis(array.reshape(header.components, k, j, i), 0, -1)
    else:
        array = array.reshape(k, j, i)
    if found.slope is not None:
        with np.errstate(all="ignore"):
            array = nib.volumeutils.apply_read_scaling(array, found.slope, found.intercept)
    return array, header


def read_extensions(path: Path, limit: int) -> bytes:
    """The bytes between the header and the voxels, which hold the extensions; empty where there are more than
    ``limit``.

    Raises:
        UserError: as `read_header`.
    """
    offset = _parsed(path).offset
    if not 352 < offset <= limit:
        return b""
    content = b""
    with open_file(path) as file:
        for piece in inflate(file, "gzip") if _is_compressed(path) else iter(lambda: file.read(_START), b""):
            content += piece
            if len(content) >= offset:
                break
    return content[352:offset]


def write(path: Path, array: np.ndarray, geometry: Geometry, *, table: LabelTable | None = None) -> None:
    """Write ``array`` (D, H, W) in the order of the file that its ``geometry`` was read from, with that file's header
    where it was a NIfTI file; the ending ``.gz`` compresses. Equal arrays make equal files.

    Args:
        path: of the file.
        array: to write.
        geometry: its grid.
        table: names and colours of the labels, which the header then holds.

    Raises:
        UserError: it cannot be written.
    """
    native = np.ascontiguousarray(turn_array(array, inverse(geometry.axes)))
    header = _header(native, geometry)
    extension = table.nifti_extensions() if table is not None else b"\0\0\0\0"
    if table is not None:
        header["intent_code"] = _LABEL_INTENT
        header["vox_offset"] += len(extension) - 4
    content = header.binaryblock + extension
    data = native.astype(native.dtype.newbyteorder("<"), copy=False)
    compressed = _is_compressed(path)
    view = data.data.cast("B")
    sums = [zlib.crc32(view, zlib.crc32(content)), (len(content) + data.nbytes) & 0xFFFFFFFF]

    def check(temporary: Path) -> None:
        _check_written(temporary, sums, compressed)

    with atomic_write(path, check) as temporary, temporary.open("wb") as file:
        if not compressed:
            file.write(content)
            file.write(view)
            return
        compressor = packer(data, gzip=True)
        file.write(compressor.compress(content))
        for start in range(0, len(view), 1 << 22):
            file.write(compressor.compress(view[start : start + (1 << 22)]))
        file.write(compressor.flush())


def _check_written(path: Path, sums: list[int], compressed: bool) -> None:
    """Raises OSError where the file is not what was written."""
    crc, size = 0, 0
    with path.open("rb") as file:
        if compressed:
            file.seek(-8, 2)
            crc, size = struct.unpack("<II", file.read())
        else:
            while piece := file.read(1 << 22):
                crc, size = zlib.crc32(piece, crc), size + len(piece)
    if [crc, size & 0xFFFFFFFF] != sums:
        raise OSError("the file on the disk differs from what was written")


def _is_compressed(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _parsed(path: Path) -> NiftiHeader:
    with open_file(path) as file:
        start = file.read(_START)
        if start[:2] == b"\x1f\x8b" and not _is_compressed(path):
            raise UserError(
                f"{path}: cannot be read as an image (it is compressed with gzip, but its name lacks .gz); rename it "
                f"to {path.name}.gz"
            )
        if _is_compressed(path):
            if start[:2] != b"\x1f\x8b":
                if start[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c", b"\x1c\x02\0\0", b"\0\0\x02\x1c"):
                    raise UserError(
                        f"{path}: cannot be read as an image (it is a NIfTI file that is not compressed); rename it "
                        f"to {path.name[:-3]}, or compress it with gzip"
                    )
                raise not_an_image(path, "a gzip file", start)
            file.seek(0)
            start = b""
            try:
                for piece in inflate(file, "gzip"):
                    start += piece[:_START]
                    if len(start) >= _START:
                        break
            except (ValueError, OSError, EOFError, zlib.error) as problem:
                if len(start) < 540:
                    raise damaged(path, f"its compressed data cannot be decompressed: {problem}") from None
    return parse(path, start)


def _header(native: np.ndarray, geometry: Geometry) -> Any:
    """The header of a file with this array (k, j, i)."""
    size = native.shape[::-1]
    header = restored(geometry.header)
    if header is not None and not _fits(header, geometry, size):
        header = None  # the grid was changed after reading
    if header is None:
        header = nib.Nifti1Header() if max(size) <= _DEFAULT_SIZE else nib.Nifti2Header()
        grid = geometry.file_grid()
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid.affine()
        header.set_data_shape(size)
        header.set_qform(affine, code=1)
        header.set_sform(affine, code=1)
        header["xyzt_units"] = 2
    header = header.as_byteswapped("<")
    dimensions = 2 if geometry.dimensions == 2 and size[2] == 1 else 3
    header["dim"] = [dimensions, *size, 1, 1, 1, 1]
    header["datatype"], header["bitpix"] = _CODES[native.dtype.name], 8 * native.dtype.itemsize
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["cal_max"] = header["cal_min"] = 0
    header["intent_code"] = 0
    for number in (1, 2, 3):
        header[f"intent_p{number}"] = 0
    header["intent_name"] = header["descrip"] = header["aux_file"] = b""
    is_second = isinstance(header, nib.Nifti2Header)
    header["magic"] = b"n+2\0\r\n\x1a\n" if is_second else b"n+1"
    header["vox_offset"] = 544 if is_second else 352
    return header


def _fits(header: Any, geometry: Geometry, size: tuple[int, ...]) -> bool:
    """Whether the header of the scan is that of a grid of this size and position."""
    try:
        own = parse(Path("scan"), bytes(header.binaryblock)).header.geometry
    except UserError:
        return False
    return own.file_grid().shape == size[::-1] and not own.differences(geometry)
