"""Stored pixel values of the frames of a DICOM file, one frame at a time."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mre_lowshot.data.dicom.files import quiet, read_header
from mre_lowshot.errors import UserError
from mre_lowshot.limits import require_memory

if TYPE_CHECKING:
    from pydicom import Dataset

_RLE = "1.2.840.10008.1.2.5"
_SIZED = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}  # JPEG markers that state the size: SOF, JPEG-LS


def stored_frames(path: Path, indices: Sequence[int], shape: tuple[int, int]) -> Iterator[np.ndarray]:
    """The stored values (rows, columns) of the frames ``indices``, which ascend; the bits that hold no values cleared.

    Raises:
        UserError: the pixels are missing, truncated, or not what the header describes, or cannot be decoded.
    """
    from pydicom.pixels.utils import iter_pixels

    try:
        header = read_header(path, everything=True)
        with quiet():
            syntax = header.file_meta.get("TransferSyntaxUID")
            compressed = syntax is not None and syntax.is_encapsulated
            if compressed:
                _check_frames(path, header, indices, shape)
            frames = iter_pixels(_source(path, header), indices=list(indices), raw=True)
        count = 0
        while True:
            with quiet():
                frame = next(frames, None)
            if frame is None:
                break
            if frame.shape != shape:
                raise UserError(f"{path}: holds a frame of {frame.shape}, its header states {shape} (rows, columns)")
            yield frame
            count += 1
        if count != len(indices):
            raise UserError(f"{path}: holds {count} of {len(indices)} frames; export it again")
    except (UserError, GeneratorExit):
        raise
    except Exception as problem:  # pydicom and its decoders raise many kinds
        text = " ".join(str(problem).split())[:300]
        raise UserError(f"{path}: its pixels cannot be read ({text}); export it again, uncompressed") from None


def _source(path: Path, header: Dataset) -> Any:
    """What pydicom decodes from: the file, frame by frame; all of it where the file cannot be read so."""
    import pydicom
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    syntax = header.file_meta.get("TransferSyntaxUID")
    if syntax is not None and not syntax.is_deflated:
        return path
    require_memory(2 * path.stat().st_size, f"{path}", "export it with a transfer syntax, uncompressed")
    whole = pydicom.dcmread(path, force=True)
    if syntax is None:  # old files without one: what pydicom found them to be
        implicit, little = whole.original_encoding
        whole.file_meta.TransferSyntaxUID = (
            ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        )
    return whole


def _check_frames(path: Path, header: Dataset, indices: Sequence[int], shape: tuple[int, int]) -> None:
    """Refuse compressed frames whose own size is not the header's: decoders allocate what a frame states."""
    import pydicom
    from pydicom.encaps import generate_frames

    rle = header.file_meta.TransferSyntaxUID == _RLE
    limit = 1024 + 1.1 * shape[0] * shape[1] * int(header.get("BitsAllocated") or 16) / 8
    with path.open("rb") as file:
        pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=[])
        start = file.read(12)  # tag, VR, reserved, length
        if start[:4] != b"\xe0\x7f\x10\x00":
            raise UserError(f"{path}: has no pixels; export it again")
        wanted = set(indices)
        count = int(header.get("NumberOfFrames") or 1)
        for index, data in enumerate(generate_frames(file, number_of_frames=count)):
            if index not in wanted:
                continue
            size = None if rle else stream_size(data)
            if (size is not None and size != shape) or (rle and len(data) > limit):
                found = f"{size[0]} x {size[1]} pixels" if size else f"{len(data)} bytes"
                raise UserError(
                    f"{path}: frame {index + 1} holds {found}, its header states {shape[0]} x {shape[1]} pixels; "
                    "export it again"
                )


def stream_size(data: bytes) -> tuple[int, int] | None:
    """Rows and columns that a JPEG, JPEG-LS or JPEG 2000 stream states; None where they are not found."""
    if data[:2] != b"\xff\xd8":
        start = data.find(b"\xff\x4f\xff\x51")
        if start < 0 or len(data) < start + 24:
            return None
        x, y, left, top = (int.from_bytes(data[start + 8 + 4 * i : start + 12 + 4 * i], "big") for i in range(4))
        return y - top, x - left
    stream = io.BytesIO(data)
    stream.seek(2)
    while True:
        head = stream.read(4)
        if len(head) < 4 or head[0] != 0xFF:
            return None
        if head[1] == 0xFF:  # padding before a marker
            stream.seek(-3, io.SEEK_CUR)
            continue
        if head[1] in _SIZED:
            body = stream.read(5)
            return int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
        if head[1] == 0xDA:
            return None
        stream.seek(int.from_bytes(head[2:4], "big") - 2, io.SEEK_CUR)
