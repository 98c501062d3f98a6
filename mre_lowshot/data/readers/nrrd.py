"""NRRD files: headers through pynrrd, voxels with sizes and checksums verified."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import nrrd
import numpy as np

from mre_lowshot.data.axes import inverse, turn_array
from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.readers.content import (
    check_text,
    counted,
    damaged,
    not_an_image,
    open_file,
    read_voxels,
    text_values,
)
from mre_lowshot.data.readers.header import Header
from mre_lowshot.data.readers.nrrd_grid import spatial_grid
from mre_lowshot.data.readers.nrrd_kinds import component_axis_of
from mre_lowshot.data.readers.verified import compare, data_file, packer
from mre_lowshot.errors import UserError
from mre_lowshot.files import atomic_write
from mre_lowshot.quiet import without_warnings

_LONGEST = 1 << 20  # bytes of a header
_TYPES = {"uint8": "uint8", "uint16": "uint16", "float32": "float"}
_ENCODINGS = {
    "raw": "raw", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2", "ascii": "text", "text": "text",
    "txt": "text", "hex": "hex",
}  # fmt: skip
# Fields of the scan that are written again with a label map on its grid, as they were.
_KEPT = (
    "space",
    "space dimension",
    "space directions",
    "space origin",
    "space units",
    "spacings",
    "axis mins",
    "axismins",
)


def read_header(path: Path) -> Header:
    """The header alone.

    Raises:
        UserError: it is damaged, or specifies something that is not read here.
    """
    with open_file(path) as file:
        return _parsed(path, file)[0]


def read_fields(path: Path) -> tuple[Header, dict[str, Any]]:
    """The header and all its fields, as pynrrd reads them; also of a segmentation of several layers (3D Slicer), each
    of which is a component.

    Raises:
        UserError: as `read_header`.
    """
    with open_file(path) as file:
        return _parsed(path, file, layers=True)[:2]


def voxel_file(path: Path) -> Path | None:
    """The file that holds the voxels, where that is another than the header's.

    Raises:
        UserError: as `read_header`, or it is missing.
    """
    with open_file(path) as file:
        detached = _field(_parsed(path, file, layers=True)[1], "data file", "datafile")
    return None if detached is None else data_file(path, detached)


def read(path: Path, layers: bool = False) -> tuple[np.ndarray, Header]:
    """The voxels (k, j, i) or (k, j, i, components) in the order of the file.

    Args:
        path: of the file.
        layers: read a segmentation of several layers too, each of which is a component.

    Raises:
        UserError: as `read_header`; damaged or truncated voxels.
    """
    with open_file(path) as file:
        header, fields, start = _parsed(path, file, layers=layers)
        file.seek(start)
        detached = _field(fields, "data file", "datafile")
        if detached is None:
            array = _voxels(path, file, header, fields)
        else:
            with open_file(data_file(path, detached)) as other:
                array = _voxels(path, other, header, fields)
    sizes = [int(n) for n in fields["sizes"]]
    array = array.reshape(sizes[::-1])
    if (axis := component_axis_of(fields)) is not None:
        array = np.moveaxis(array, array.ndim - 1 - axis, -1)
    size = header.geometry.file_grid().shape
    return array.reshape(*size, header.components) if axis is not None else array.reshape(size), header


def write(path: Path, array: np.ndarray, geometry: Geometry, *, pairs: Mapping[str, str] | None = None) -> None:
    """Write ``array`` (D, H, W) in the order of the file that its ``geometry`` was read from, compressed, with the
    fields for the space of that file where it was an NRRD file.

    Args:
        path: of the file.
        array: to write.
        geometry: its grid.
        pairs: keys and values, one line each, added to the header; then a single slice is written as a volume too.

    Raises:
        UserError: it cannot be written.
    """
    native = np.ascontiguousarray(turn_array(array, inverse(geometry.axes)))
    if geometry.dimensions == 2 and native.shape[0] == 1:
        if pairs is None:
            native = native[0]
        else:
            geometry = replace(geometry, dimensions=3, header="")
    lines = [
        "NRRD0004",
        f"type: {_TYPES[native.dtype.name]}",
        f"dimension: {native.ndim}",
        f"sizes: {' '.join(map(str, native.shape[::-1]))}",
        *_space(geometry, native.ndim),
        f"kinds: {' '.join(['domain'] * native.ndim)}",
        *(["endian: little"] if native.dtype.itemsize > 1 else []),
        "encoding: gzip",
        *(f"{key}:={value}" for key, value in (pairs or {}).items()),
    ]
    start = ("\n".join(lines) + "\n\n").encode()
    data = native.astype(native.dtype.newbyteorder("<"), copy=False)
    compressor = packer(data, gzip=True)
    packed = compressor.compress(data.data.cast("B")) + compressor.flush()
    with atomic_write(path, compare(start, packed)) as temporary, temporary.open("wb") as file:
        file.write(start)
        file.write(packed)


def _parsed(path: Path, file: BinaryIO, layers: bool = False) -> tuple[Header, dict[str, Any], int]:
    """The header, its fields, and where the data start."""
    raw = file.read(_LONGEST)
    if not raw.startswith(b"NRRD0"):
        raise not_an_image(path, "an NRRD file", raw[:540])
    end = re.search(rb"\r?\n\r?\n", raw)
    text, start = (raw[: end.start()], end.end()) if end else (raw, len(raw))
    if not end and len(raw) == _LONGEST:
        raise damaged(path, "its header does not end")
    try:
        with without_warnings():
            fields = dict(nrrd.read_header(BytesIO(text + b"\n")))
        dtype = nrrd.reader._determine_datatype(fields) if _encoding(fields) != "text" else _plain_type(fields)
        sizes = [int(n) for n in fields["sizes"]]
        if int(fields["dimension"]) != len(sizes):
            raise ValueError(f"dimension {fields['dimension']}, but {len(sizes)} sizes")
        strings = _strings(text.decode("ascii", "ignore"))
        component_axis = component_axis_of(fields)
    except UserError:
        raise
    except Exception as problem:  # pynrrd raises errors of many classes
        reason = f"field {problem} is missing" if isinstance(problem, KeyError) else str(problem)
        raise UserError(f"{path}: cannot be read as an image (NRRD header: {reason}); export it again") from None
    if dtype.kind not in "iuf":
        raise UserError(f"{path}: cannot be read as an image (NRRD type {fields['type']}); save numbers")
    if not sizes or min(sizes) < 1:
        raise UserError(f"{path}: cannot be read as an image (sizes {sizes} must be 1 or more); export it again")
    _encoding(fields, path)
    spatial = [axis for axis in range(len(sizes)) if axis != component_axis]
    while len(spatial) > 3 and sizes[spatial[-1]] == 1:
        spatial.pop()  # a series of one volume
    if not 2 <= len(spatial) <= 3:
        overlapping = any("Segment" in name for name in fields)
        fix = (
            "its segments overlap, and a label map has one value a voxel: in 3D Slicer export the segments as a binary "
            "label map"
            if overlapping
            else "give 2D or 3D, one file per channel (split a time series or a stack of channels into case_0000, "
            "case_0001, ...)"
        )
        raise UserError(f"{path}: has {len(sizes)} dimensions {tuple(sizes)}; {fix}")
    components = sizes[component_axis] if component_axis is not None else 1
    if component_axis is not None and not layers and any("Segment" in name for name in fields):
        raise UserError(
            f"{path}: has {len(sizes)} dimensions {tuple(sizes)}: its segments overlap, and a label map has one value "
            "a voxel; in 3D Slicer export the segments as a binary label map"
        )
    geometry, notes = spatial_grid(path, fields, spatial, [sizes[axis] for axis in spatial])
    held = {name: strings[name] for name in _KEPT if name in strings}
    if "space directions" in held:
        held["space directions"] = " ".join(
            vector for vector in re.findall(r"\([^()]*\)|none", held["space directions"]) if vector != "none"
        )
    held = {name: " ".join(held[name].split()) for name in held}
    geometry = replace(geometry, header=f"nrrd:{json.dumps(held)}") if component_axis is None else geometry
    return Header(geometry, components, np.dtype(dtype), tuple(notes)), fields, start


def _strings(text: str) -> dict[str, str]:
    """The fields as they are written. A line ``key:=value`` is no field."""
    lines = (line.partition(":") for line in text.split("\n") if not line.startswith("#"))
    return {name: value.strip() for name, colon, value in lines if colon and not value.startswith("=")}


def _voxels(path: Path, file: BinaryIO, header: Header, fields: dict[str, Any]) -> np.ndarray:
    line_skip, byte_skip = (int(_field(fields, f"{name} skip", f"{name}skip") or 0) for name in ("line", "byte"))
    if line_skip < 0 or byte_skip < -1 or line_skip > 10_000:
        raise UserError(
            f"{path}: cannot be read as an image (line skip {line_skip}, byte skip {byte_skip}); export it again"
        )
    for _ in range(line_skip):
        file.readline(_LONGEST)
    kind, count = _encoding(fields), header.stored_bytes
    if kind in ("text", "hex"):
        return _written_out(path, file, header, kind)
    if byte_skip == -1 and kind == "raw":
        left = os.fstat(file.fileno()).st_size - file.tell()
        byte_skip = max(left - count, 0)
    if byte_skip == -1:
        raise UserError(f"{path}: cannot be read as an image (byte skip -1 with compressed data); export it again")
    return read_voxels(path, file, kind=kind, count=count, skip=byte_skip).view(header.dtype)


def _written_out(path: Path, file: BinaryIO, header: Header, kind: str) -> np.ndarray:
    """Voxels written as text."""
    count = header.voxels * header.components
    if kind != "hex":
        return text_values(path, file, dtype=header.dtype, count=count)
    check_text(path, file, header.stored_bytes)
    try:
        values = np.frombuffer(bytes.fromhex(file.read().decode("ascii")), header.dtype)
    except ValueError:
        values = np.empty(0)
    return counted(path, values, count)


def _field(fields: dict[str, Any], *names: str) -> Any:
    return next((fields[name] for name in names if name in fields), None)


def _encoding(fields: dict[str, Any], path: Path | None = None) -> str:
    given = str(fields["encoding"]).lower()
    if given not in _ENCODINGS and path is not None:
        raise UserError(f"{path}: cannot be read as an image (NRRD encoding {given}); save it with gzip")
    return _ENCODINGS.get(given, "raw")


def _plain_type(fields: dict[str, Any]) -> np.dtype:
    dtype: np.dtype = np.dtype(nrrd.reader._TYPEMAP_NRRD2NUMPY[fields["type"]])
    return dtype


def _space(geometry: Geometry, dimensions: int) -> list[str]:
    """The lines that give the grid."""
    if geometry.header.startswith("nrrd:"):
        held = json.loads(geometry.header.removeprefix("nrrd:"))
        if _is_grid(held, geometry):
            return [f"{name}: {value}" for name, value in held.items()]
    columns, origin = geometry.file_grid().affine()[:3, :3], geometry.file_grid().origin
    vectors = " ".join(_vector(column) for column in columns.T[:dimensions])
    return ["space: left-posterior-superior", f"space directions: {vectors}", f"space origin: {_vector(origin)}"]


def _is_grid(held: dict[str, str], geometry: Geometry) -> bool:
    """Whether the scan's own fields are those of this grid."""
    text = "\n".join(f"{name}: {value}" for name, value in held.items())
    sizes = geometry.file_grid().shape[::-1][: geometry.dimensions]
    try:
        fields = dict(nrrd.read_header(BytesIO(f"NRRD0004\nsizes: {' '.join(map(str, sizes))}\n{text}\n".encode())))
        own, _ = spatial_grid(Path("scan"), fields, list(range(len(sizes))), list(sizes))
    except Exception:  # pynrrd raises errors of many classes
        return False
    return not own.differences(geometry)


def _vector(values: Any) -> str:
    return f"({','.join(repr(float(value)) for value in values)})"
