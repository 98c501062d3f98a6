"""The header of a NIfTI file: checks, position in the patient as nibabel takes it, and what is contradictory in it."""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.readers.content import not_an_image
from mre_lowshot.data.readers.header import Header
from mre_lowshot.errors import UserError
from mre_lowshot.quiet import without_warnings

_NAMES = {1: "1 bit", 32: "complex", 1792: "complex", 2048: "complex", 1536: "128-bit float"}
_COLOURS = {128: 3, 2304: 4}
_LARGEST_CODE = 5  # of qform and sform
_UNITS = {1: "metres", 3: "micrometres"}
_TO_LPS = np.diag([-1.0, -1.0, 1.0])
_FORMATS: dict[str, Any] = {"nifti1": nib.Nifti1Header, "nifti2": nib.Nifti2Header}
SIZES = {"nifti1": 348, "nifti2": 540}


@dataclass(frozen=True)
class NiftiHeader:
    """The checked header of a NIfTI file, and where its voxels are."""

    header: Header
    size: tuple[int, ...]  # (i, j, k) voxels
    offset: int
    slope: float | None
    intercept: float | None
    is_colour: bool  # RGB or RGBA, the components of a voxel beside each other


def parse(path: Path, start: bytes) -> NiftiHeader:
    """The header of a file that begins with ``start`` (at least 540 bytes, or the whole file).

    Raises:
        UserError: it is not a NIfTI header, or specifies something that is not read here.
    """
    format_name, raw = _raw(path, start)
    try:
        with without_warnings():
            found = _FORMATS[format_name](raw, check=False)
            size, components, dimensions = _size(path, found)
            dtype = _dtype(path, found)
            slope, intercept = _scaling(path, found)
            geometry, notes = _geometry(path, found, size, dimensions)
            offset = float(found["vox_offset"])
    except UserError:
        raise
    except Exception as problem:  # nibabel raises errors of many classes
        raise UserError(
            f"{path}: cannot be read as an image (NIfTI header: {problem}); export it again, for example with dcm2niix"
        ) from None
    if not (SIZES[format_name] + 4 <= offset < 1e9 and offset == int(offset)):
        raise UserError(
            f"{path}: cannot be read as an image (vox_offset is {offset:g}, it must be a whole number from "
            f"{SIZES[format_name] + 4}); export it again"
        )
    code = int(found["datatype"])
    held = f"{format_name}:{base64.b64encode(raw).decode('ascii')}"
    header = Header(
        geometry=replace(geometry, header=held),
        components=components * _COLOURS.get(code, 1),
        dtype=np.dtype(np.uint8) if code in _COLOURS else dtype,
        notes=tuple(notes),
        is_scaled=slope is not None,
    )
    return NiftiHeader(header, size, int(offset), slope, intercept, code in _COLOURS)


def restored(held: str) -> Any:
    """The nibabel header of `Geometry.header`; None where there is none of this format."""
    format_name, _, content = held.partition(":")
    if format_name not in _FORMATS:
        return None
    return _FORMATS[format_name](base64.b64decode(content), check=False)


def _raw(path: Path, start: bytes) -> tuple[str, bytes]:
    for name, length in SIZES.items():
        sizes = (length.to_bytes(4, "little"), length.to_bytes(4, "big"))
        if len(start) >= length and start[:4] in sizes:
            raw = start[:length]
            magic = raw[344:348] if name == "nifti1" else raw[4:8]
            if magic in (b"n+1\0", b"n+2\0"):
                return name, raw
            if magic in (b"ni1\0", b"ni2\0"):
                raise UserError(
                    f"{path}: cannot be read as an image (its header is that of a .hdr/.img pair); convert the pair "
                    "to one .nii.gz file"
                )
            if name == "nifti1" and magic == b"\0\0\0\0":
                raise UserError(
                    f"{path}: cannot be read as an image (it is an Analyze 7.5 file, which has no orientation); "
                    "convert it to NIfTI"
                )
    raise not_an_image(path, "a NIfTI file", start)


def _size(path: Path, found: Any) -> tuple[tuple[int, ...], int, int]:
    """Voxels (i, j, k), components, and 2 or 3 dimensions."""
    count = int(found["dim"][0])
    dim = tuple(int(n) for n in found["dim"][1 : count + 1]) if 1 <= count <= 7 else ()
    if not dim or min(dim) < 1:
        raise UserError(
            f"{path}: cannot be read as an image (its header gives dim {found['dim'].tolist()}: 1 to 7 dimensions of "
            "1 voxel or more are needed); export it again"
        )
    spatial, rest = (*dim, 1, 1, 1)[:3], dim[3:]
    is_vector = len(rest) >= 2 and rest[0] == 1 and all(n == 1 for n in rest[2:])
    if any(n > 1 for n in rest) and not is_vector:
        raise UserError(
            f"{path}: has {len(dim)} dimensions {dim}; give 2D or 3D, one file per channel (split a time series or a "
            "stack of channels into case_0000, case_0001, ...)"
        )
    return spatial, rest[1] if is_vector else 1, 2 if count <= 2 else 3


def _dtype(path: Path, found: Any) -> np.dtype:
    from nibabel.spatialimages import HeaderDataError

    code = int(found["datatype"])
    if code in _NAMES:
        fix = "save the magnitude as float32" if _NAMES[code] == "complex" else "save it as float32 or integers"
        raise UserError(f"{path}: cannot be read as an image (voxels of type {_NAMES[code]}); {fix}")
    try:
        dtype: np.dtype = found.get_data_dtype()
    except (HeaderDataError, KeyError):
        raise UserError(
            f"{path}: cannot be read as an image (unknown datatype {code} in its header); export it again"
        ) from None
    bits = int(found["bitpix"])
    if bits != 8 * dtype.itemsize:
        raise UserError(
            f"{path}: cannot be read as an image (its header gives datatype {code} of {8 * dtype.itemsize} bits, and "
            f"bitpix {bits}); export it again"
        )
    return dtype


def _scaling(path: Path, found: Any) -> tuple[float | None, float | None]:
    from nibabel.spatialimages import HeaderDataError

    try:
        slope, intercept = found.get_slope_inter()
    except HeaderDataError:
        raise UserError(
            f"{path}: cannot be read as an image (scl_slope {float(found['scl_slope']):g}, scl_inter "
            f"{float(found['scl_inter']):g}: both must be finite); correct the header, or export it again"
        ) from None
    return (None, None) if slope is None or (slope == 1 and intercept == 0) else (float(slope), float(intercept))


def _geometry(path: Path, found: Any, size: tuple[int, ...], dimensions: int) -> tuple[Geometry, list[str]]:
    unit = int(found["xyzt_units"]) & 7
    if unit in _UNITS:
        raise UserError(
            f"{path}: its header gives positions in {_UNITS[unit]} (xyzt_units {unit}), which other programs read as "
            "mm; convert pixdim, qform and sform to mm and set xyzt_units to 2"
        )
    name = str(path)
    found, notes = _corrected(found)
    q_code, s_code = int(found["qform_code"]), int(found["sform_code"])
    sform = found.get_sform() if s_code > 0 else None
    qform = None
    if q_code > 0:
        try:
            qform = found.get_qform()
        except Exception as problem:
            if sform is None:
                raise UserError(
                    f"{path}: its header has a qform that is invalid ({problem}) and no sform; set the quaternion, or "
                    "export the file again"
                ) from None
            notes.append(f"the qform is invalid ({problem}); the sform is used")
    if sform is None and qform is None:
        notes.append(
            "orientation unknown: qform_code and sform_code are 0, so the axes are taken as left, anterior and "
            "superior, with the centre of the image as origin (as nibabel does); copy the header of the original scan"
        )
    affine = sform if sform is not None else qform if qform is not None else found.get_base_affine()
    try:
        geometry = _of_affine(affine, size, dimensions, name)
    except UserError as problem:
        if sform is None or qform is None:
            raise
        raise UserError(f"{problem} (this is its sform; to use the qform, set sform_code to 0)") from None
    if sform is not None and qform is not None:
        notes += _disagreement(geometry, qform, size, dimensions)
    return geometry, notes + _spacing_note(found, affine, sform is not None, size)


def _corrected(found: Any) -> tuple[Any, list[str]]:
    """A header with the corrections that nibabel makes when it loads a file, and notes of them."""
    made, notes = found.copy(), []
    for form in ("qform_code", "sform_code"):
        if not 0 <= int(made[form]) <= _LARGEST_CODE:
            notes.append(f"{form} {int(made[form])} is unknown; it is taken as 0 (not given)")
            made[form] = 0
    steps = np.asarray(made["pixdim"], dtype=np.float64)
    if (steps[1:4] < 0).any():
        notes.append(f"pixdim {_three(steps[1:4])} has negative values; their amounts are used")
        made["pixdim"][1:4] = np.abs(steps[1:4])
    if int(made["qform_code"]) > 0 and steps[0] not in (1, -1):
        notes.append(f"qfac (pixdim[0]) is {steps[0]:g}, not 1 or -1; 1 is used")
        made["pixdim"][0] = 1
    return made, notes


def _of_affine(affine: np.ndarray, size: tuple[int, ...], dimensions: int, name: str) -> Geometry:
    columns = _TO_LPS @ np.asarray(affine, dtype=np.float64)[:3, :3]
    if dimensions == 2:
        columns = plane(columns)
    return Geometry.of_file(columns, _TO_LPS @ affine[:3, 3], size, name=name, dimensions=dimensions)


def plane(columns: np.ndarray) -> np.ndarray:
    """The columns of a 2D image with a third of 1 mm, perpendicular to the others, on the side of the one given."""
    normal = np.cross(columns[:, 0], columns[:, 1])
    length = np.linalg.norm(normal)
    with np.errstate(invalid="ignore", over="ignore"):
        side = -1.0 if float(normal @ columns[:, 2]) < 0 else 1.0
    return np.column_stack([columns[:, :2], side * normal / length if length > 0 else [0.0, 0.0, 1.0]])


def _disagreement(taken: Geometry, qform: np.ndarray, size: tuple[int, ...], dimensions: int) -> list[str]:
    try:
        different = taken.differences(_of_affine(qform, size, dimensions, "qform"))
    except UserError as problem:
        different = [str(problem).removeprefix("qform: ")]
    if not different:
        return []
    return [f"sform and qform disagree ({'; '.join(different)}; sform first); the sform is used, as nibabel does"]


def _spacing_note(found: Any, affine: np.ndarray, has_sform: bool, size: tuple[int, ...]) -> list[str]:
    used = np.linalg.norm(affine[:3, :3], axis=0)
    given = np.asarray(found["pixdim"][1:4], dtype=np.float64)
    notes = []
    axes = [axis for axis in range(3) if size[axis] > 1]
    if any(not given[axis] > 0 for axis in axes):
        notes.append(f"pixdim {_three(given)} holds zeros or no numbers; a voxel size of {_three(used)} mm is used")
    elif has_sform and not np.allclose(used[axes], given[axes], rtol=1e-3, atol=0):
        notes.append(
            f"the voxel size of the sform {_three(used)} mm differs from pixdim {_three(given)}; that of the sform is "
            "used"
        )
    return notes


def _three(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values)
