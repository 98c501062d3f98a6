"""PNG and TIFF files: headers and checksums are checked here, pixels are decoded by SimpleITK in another process."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np

from mre_lowshot.data.axes import inverse, turn_array
from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.readers import itk_process
from mre_lowshot.data.readers.content import check_file, open_file
from mre_lowshot.data.readers.header import Header
from mre_lowshot.data.readers.png import check_png
from mre_lowshot.data.readers.tiff import check_tiff
from mre_lowshot.data.readers.verified import compare
from mre_lowshot.errors import UserError
from mre_lowshot.files import atomic_write
from mre_lowshot.limits import OVERRIDE

MAX_PIXELS = 2**28  # of a 2D image: 16384 x 16384


def read_header(path: Path) -> Header:
    """The header alone.

    Raises:
        UserError: it is damaged, or specifies something that is not read here.
    """
    _check(path, deep=False)
    header, _ = _header(path, itk_process.request(path, "header"))
    return header


def read(path: Path) -> tuple[np.ndarray, Header]:
    """The pixels (k, j, i) or (k, j, i, components) in the order of the file.

    Raises:
        UserError: as `read_header`; damaged or truncated pixels.
    """
    _check(path, deep=True)
    answer = itk_process.request(path, "read")
    header, dtype = _header(path, answer)
    size = header.geometry.file_grid().shape
    array = np.frombuffer(answer.data, dtype)
    return array.reshape(size if header.components == 1 else (*size, header.components)), header


def write(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write ``array`` (1, H, W), compressed.

    Raises:
        UserError: several slices, or it cannot be written.
    """
    from mre_lowshot.data.readers import simpleitk

    native = np.ascontiguousarray(turn_array(array, inverse(geometry.axes)))
    ending = path.suffix.lower()
    if native.shape[0] > 1:
        raise UserError(f"{path}: {ending} holds one slice, not {native.shape[0]}; use .nii.gz")
    spacing = geometry.file_grid().spacing
    with tempfile.TemporaryDirectory(prefix="mre-") as folder:
        made = Path(folder, f"image{ending}")
        try:
            simpleitk.write_slice(made, native[0], (spacing[2], spacing[1]))
            content = made.read_bytes()
        except (RuntimeError, OSError) as problem:
            raise UserError(
                f"{path}: cannot be written ({str(problem).strip().splitlines()[-1]}); make space in "
                f"{tempfile.gettempdir()}"
            ) from None
        _check(made, deep=True)
    with atomic_write(path, compare(content)) as temporary:
        temporary.write_bytes(content)


def _check(path: Path, deep: bool) -> None:
    """Check what the decoder does not: sizes against the file, checksums, an absurd number of pixels."""
    check_file(path)
    with open_file(path) as file:
        if path.suffix.lower() == ".png":
            pixels = check_png(path, file, deep=deep)
        else:
            pixels = check_tiff(path, file, deep=deep)
    if pixels > MAX_PIXELS and not os.environ.get(OVERRIDE):
        raise UserError(
            f"{path}: has {pixels} pixels, more than {MAX_PIXELS}; downsample or crop the image (or set {OVERRIDE})"
        )


def _header(path: Path, answer: itk_process.Answer) -> tuple[Header, np.dtype]:
    size = tuple(answer.size)
    if len(size) == 3 and path.suffix.lower() == ".png":
        size = size[:2]
    dimensions = 2 if len(size) == 2 or (len(size) == 3 and size[2] == 1) else 3
    if len(size) not in (2, 3):
        raise UserError(f"{path}: has {len(size)} dimensions {size}; give one image per file")
    steps = [*answer.spacing[:2], answer.spacing[2] if dimensions == 3 else 1.0]
    name, dtype = str(path), np.dtype(answer.dtype)
    if dtype.kind not in "iuf":
        raise UserError(f"{path}: cannot be read as an image (pixels of type {answer.dtype}); save grey values or RGB")
    geometry = Geometry.of_file(np.diag(steps), np.zeros(3), (*size, 1)[:3], name=name, dimensions=dimensions)
    return Header(geometry, answer.components, dtype), dtype
