"""MetaImage files (.mha, and .mhd with a file of voxels beside it)."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mre_lowshot.data.axes import inverse, turn_array
from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.readers.content import damaged, not_an_image, open_file, read_voxels, text_values
from mre_lowshot.data.readers.header import Header
from mre_lowshot.data.readers.verified import compare, data_file, packer
from mre_lowshot.errors import UserError
from mre_lowshot.files import atomic_write

_LONGEST = 1 << 16  # bytes of a header
_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip
_WRITTEN = {"uint8": "MET_UCHAR", "uint16": "MET_USHORT", "float32": "MET_FLOAT"}
_FLAGS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
_FIELDS = (
    "ObjectType", "NDims", "DimSize", "BinaryData", "BinaryDataByteOrderMSB", "ElementByteOrderMSB", "CompressedData",
    "CompressedDataSize", "TransformMatrix", "Rotation", "Orientation", "Offset", "Position", "Origin", "HeaderSize",
    "ElementSpacing", "ElementSize", "ElementType", "ElementNumberOfChannels", "ElementDataFile", "DistanceUnits",
    "ElementToIntensityFunctionSlope", "ElementToIntensityFunctionOffset",
)  # fmt: skip
_MM = ("mm", "millimeter", "millimeters", "?", "")


@dataclass(frozen=True)
class _Fields:
    header: Header
    values: dict[str, str]
    start: int  # of the data, where they follow
    is_compressed: bool
    is_binary: bool


def read_header(path: Path) -> Header:
    """The header alone.

    Raises:
        UserError: it is damaged, or specifies something that is not read here.
    """
    with open_file(path) as file:
        return _parsed(path, file).header


def voxel_file(path: Path) -> Path | None:
    """The file that holds the voxels, where that is another than the header's.

    Raises:
        UserError: as `read_header`, or it is missing.
    """
    with open_file(path) as file:
        named = _parsed(path, file).values["ElementDataFile"]
    return None if named.upper() == "LOCAL" else data_file(path, named)


def read(path: Path) -> tuple[np.ndarray, Header]:
    """The voxels (k, j, i) or (k, j, i, components) in the order of the file.

    Raises:
        UserError: as `read_header`; damaged or truncated voxels.
    """
    with open_file(path) as file:
        found = _parsed(path, file)
        named = found.values["ElementDataFile"]
        if named.upper() == "LOCAL":
            file.seek(found.start)
            array = _voxels(path, file, found)
        else:
            with open_file(data_file(path, named)) as other:
                array = _voxels(path, other, found)
    header = found.header
    size = header.geometry.file_grid().shape
    return array.reshape(size if header.components == 1 else (*size, header.components)), header


def write(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write ``array`` (D, H, W), compressed, in the order of the file that its ``geometry`` was read from. Of .mhd and
    its file of voxels both are written completely, or neither.

    Raises:
        UserError: it cannot be written.
    """
    native = np.ascontiguousarray(turn_array(array, inverse(geometry.axes)))
    count = 2 if geometry.dimensions == 2 and native.shape[0] == 1 else 3
    data = native.astype(native.dtype.newbyteorder("<"), copy=False)
    compressor = packer(data, gzip=False)
    packed = compressor.compress(data.data.cast("B")) + compressor.flush()
    grid = geometry.file_grid()
    direction = np.reshape(grid.direction, (3, 3))[:count, :count]
    if count == 2 and abs(np.linalg.det(direction)) < 0.5:
        direction = np.eye(2)  # a slice that is not axial: two dimensions cannot give its place
    is_pair = path.name.lower().endswith(".mhd")
    voxels = path.with_name(f"{path.name[:-4]}.zraw")
    lines = {
        "ObjectType": "Image",
        "NDims": str(count),
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "True",
        "CompressedDataSize": str(len(packed)),
        "TransformMatrix": _numbers(direction.T.ravel()),
        "Offset": _numbers(grid.origin[:count]),
        "CenterOfRotation": _numbers([0.0] * count),
        "ElementSpacing": _numbers(grid.spacing[::-1][:count]),
        "DimSize": " ".join(map(str, native.shape[::-1][:count])),
        "ElementType": _WRITTEN[native.dtype.name],
        "ElementDataFile": voxels.name if is_pair else "LOCAL",
    }
    text = "".join(f"{name} = {value}\n" for name, value in lines.items())
    start = text.encode("utf-8", "surrogateescape")
    if not is_pair:
        with atomic_write(path, compare(start, packed)) as temporary, temporary.open("wb") as file:
            file.write(start)
            file.write(packed)
        return

    def complete(temporary: Path) -> None:
        compare(packed)(temporary)
        path.unlink(missing_ok=True)  # an old header never stands beside new voxels

    with atomic_write(path, compare(start)) as temporary:
        temporary.write_bytes(start)
        with atomic_write(voxels, complete) as second:
            second.write_bytes(packed)


def _parsed(path: Path, file: BinaryIO) -> _Fields:
    raw = file.read(_LONGEST)
    values: dict[str, str] = {}
    start = 0
    if not re.match(rb"\s*(ObjectType|NDims|Comment|ObjectSubType)\s*[=:]", raw):
        raise not_an_image(path, "a MetaImage file", raw[:540])
    while "ElementDataFile" not in values:
        end = raw.find(b"\n", start)
        line = raw[start : end if end >= 0 else len(raw)].decode("utf-8", "surrogateescape")
        name, separator, value = line.partition("=")
        if not separator:
            name, separator, value = line.partition(":")
        if line.strip() and (not separator or not _is_name(name.strip())):
            raise damaged(path, f"its header has the line {line[:60]!r}")
        if name.strip() in values:
            raise UserError(f"{path}: its header gives {name.strip()} twice; correct it")
        values[name.strip()] = value.strip()
        start = end + 1 if end >= 0 else len(raw)
        if end < 0 and "ElementDataFile" not in values:
            raise damaged(path, "its header has no ElementDataFile")
    try:
        return _understood(path, values, start)
    except (ValueError, KeyError, OverflowError, IndexError) as problem:
        reason = f"{problem} is missing" if isinstance(problem, KeyError) else str(problem)
        raise UserError(f"{path}: cannot be read as an image (MetaImage header: {reason}); export it again") from None


def _is_name(name: str) -> bool:
    """Whether this may be a field: one read here, or of any other program (``dim[0]`` of a converted NIfTI file,
    ``0008|0060`` of DICOM). One that differs from a field read here in a single letter is damage."""
    if not name or not name.isprintable() or not name.isascii():
        return False
    return not any(len(name) == len(f) and sum(a != b for a, b in zip(name, f, strict=True)) == 1 for f in _FIELDS)


def _understood(path: Path, values: dict[str, str], start: int) -> _Fields:
    count = int(values["NDims"])
    size = [int(n) for n in values["DimSize"].split()]
    if len(size) != count or not size or min(size) < 1:
        raise ValueError(f"DimSize {values['DimSize']} for NDims {count}; each axis needs 1 voxel or more")
    while len(size) > 3 and size[-1] == 1:
        size.pop()  # a series of one volume
    if not 2 <= len(size) <= 3:
        raise UserError(
            f"{path}: has {count} dimensions {tuple(size)}; give 2D or 3D, one file per channel (split a time series "
            "or a stack of channels into case_0000, case_0001, ...)"
        )
    components = int(values.get("ElementNumberOfChannels", "1"))
    if components < 1:
        raise ValueError(f"ElementNumberOfChannels {components}")
    element = values["ElementType"].upper()
    if element not in _TYPES:
        raise UserError(f"{path}: cannot be read as an image (ElementType {element[:40]}); save numbers")
    msb = _flag(values, "BinaryDataByteOrderMSB", "ElementByteOrderMSB")
    dtype = np.dtype(_TYPES[element]).newbyteorder(">" if msb else "<")
    slope, intercept = (
        float(values.get(f"ElementToIntensityFunction{name}", default))
        for name, default in (("Slope", 1), ("Offset", 0))
    )
    if (slope, intercept) != (1.0, 0.0):
        raise UserError(
            f"{path}: its header scales intensities (slope {slope:g}, offset {intercept:g}), which other programs "
            "ignore; save the scaled values"
        )
    unit = values.get("DistanceUnits", "").strip().lower()
    if unit not in _MM:
        raise UserError(
            f"{path}: its header gives positions in {unit}, which other programs read as mm; convert ElementSpacing "
            "and Offset to mm, and remove DistanceUnits"
        )
    geometry, notes = _geometry(path, values, count=count, size=size)
    is_compressed = _flag(values, "CompressedData")
    header = Header(geometry, components, dtype, tuple(notes))
    return _Fields(header, values, start, is_compressed, _flag(values, "BinaryData", default=True))


def _geometry(path: Path, values: dict[str, str], *, count: int, size: list[int]) -> tuple[Geometry, list[str]]:
    notes = []
    spacing = _vector(values, count, "ElementSpacing", "ElementSize")
    if spacing is None:
        spacing = np.ones(count)
        notes.append("the header gives no voxel size: 1 mm is used")
    origin = _same(values, count, "Offset", "Position", "Origin")
    matrix = _same(values, count * count, "TransformMatrix", "Rotation", "Orientation")
    direction = np.eye(count) if matrix is None else matrix.reshape(count, count).T
    n = len(size)
    if count > n and not np.allclose(direction[:n, n:], 0) & np.allclose(direction[n:, :n], 0):
        raise ValueError("its TransformMatrix turns space into time")
    if n == 3 and matrix is None and values.get("NDims") == "3":
        notes.append("the header gives no TransformMatrix: its axes are taken as left, posterior and superior")
    columns, place = np.eye(3), np.zeros(3)
    with np.errstate(invalid="ignore", over="ignore"):
        columns[:n, :n] = direction[:n, :n] * spacing[:n]
    place[:n] = 0 if origin is None else origin[:n]
    dimensions = 2 if count == 2 else 3
    if n == 2 and abs(np.linalg.det(direction[:2, :2])) < 1e-6:
        columns[:2, :2] = np.diag(spacing[:2])
    grid = (*size, 1)[:3]
    return Geometry.of_file(columns, place, grid, name=str(path), dimensions=dimensions), notes


def _voxels(path: Path, file: BinaryIO, found: _Fields) -> np.ndarray:
    header, place = found.header, file.tell()
    left = os.fstat(file.fileno()).st_size - place
    skip = int(found.values.get("HeaderSize", "0") or 0)
    if not found.is_binary:
        return text_values(path, file, dtype=header.dtype, count=header.voxels * header.components)
    if skip == -1 and not found.is_compressed:
        skip = max(left - header.stored_bytes, 0)
    if skip < 0:
        raise UserError(f"{path}: cannot be read as an image (HeaderSize {skip}); export it again")
    kind = "raw"
    if found.is_compressed:
        file.seek(place + skip)
        skip = 0
        kind = "gzip" if file.read(2) == b"\x1f\x8b" else "zlib"
        file.seek(-min(2, left), os.SEEK_CUR)
        stated = int(found.values.get("CompressedDataSize", "0") or 0)
        if stated and stated != left:
            raise damaged(path, f"CompressedDataSize is {stated}, {left} bytes are there")
    return read_voxels(path, file, kind=kind, count=header.stored_bytes, skip=skip).view(header.dtype)


def _flag(values: dict[str, str], *names: str, default: bool = False) -> bool:
    name = next((name for name in names if name in values), None)
    if name is None:
        return default
    if values[name].lower() not in _FLAGS:
        raise ValueError(f"{name} is {values[name][:20]!r}, neither True nor False")
    return _FLAGS[values[name].lower()]


def _vector(values: dict[str, str], count: int, *names: str) -> np.ndarray | None:
    """The first of these fields."""
    for name in names:
        if name in values:
            found = np.array([float(word) for word in values[name].split()])
            if len(found) != count:
                raise ValueError(f"{name} {values[name][:60]}: {count} numbers are needed")
            return found
    return None


def _same(values: dict[str, str], count: int, *names: str) -> np.ndarray | None:
    """The one of these fields that is given."""
    found = [vector for name in names if (vector := _vector(values, count, name)) is not None]
    if any(not np.allclose(found[0], other, equal_nan=True) for other in found[1:]):
        raise ValueError(f"{' and '.join(name for name in names if name in values)} disagree")
    return found[0] if found else None


def _numbers(values: object) -> str:
    return " ".join(repr(float(value) + 0.0) for value in np.asarray(values))
