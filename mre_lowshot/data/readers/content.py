"""The bytes of an image file: what kind of file it is, and its voxels, with sizes and checksums verified."""

from __future__ import annotations

import bz2
import os
import re
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mre_lowshot.errors import UserError
from mre_lowshot.limits import require_memory

CHUNK = 1 << 20
_LARGEST_RATIO = {"gzip": 1032, "zlib": 1032, "bzip2": 50_000_000}  # of what a compressed stream may hold
AGAIN = "copy or download it again"
_INTEGER = re.compile(rb"[+-]?[0-9]+")
_DECIMAL = re.compile(rb"[+-]?(([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?|inf|infinity|nan)", re.IGNORECASE)

_STARTS = (
    (b"\x1f\x8b", "a gzip file"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x89PNG", "a PNG image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"NRRD0", "an NRRD file"),
    (b"ObjectType", "a MetaImage file"),
    (b"NDims", "a MetaImage file"),
    (b"\x93NUMPY", "a NumPy file"),
    (b"\x89HDF", "an HDF5 (or MINC) file"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ", "an xz file"),
    (b"\x28\xb5\x2f\xfd", "a zstandard file"),
    (b"%PDF", "a PDF document"),
    (b"version https://git-lfs", "a Git LFS pointer, not the data; run git lfs pull"),
    (b"/annex/", "a git-annex pointer, not the data; run git annex get"),
)


def look(start: bytes) -> str:
    """What a file with these first bytes looks like, for messages; empty where unknown."""
    if not start:
        return "an empty file"
    for magic, kind in _STARTS:
        if start.startswith(magic):
            return kind
    if start[128:132] == b"DICM":
        return "a DICOM file; convert the series, for example with dcm2niix"
    if len(start) >= 348 and start[344:348] in (b"n+1\0", b"ni1\0"):
        return "a NIfTI-1 file"
    if start[4:8] in (b"n+2\0", b"ni2\0"):
        return "a NIfTI-2 file"
    if len(start) >= 348 and start[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c"):
        return "an Analyze 7.5 header"
    text = start[:256].lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<svg")):
        return "a web page or XML text; the download failed or needs a login"
    if not start[:256].strip(b"\0"):
        return "a file of zeros"
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in start[:256]):
        return "a text file"
    return ""


def check_file(path: Path) -> int:
    """The size in bytes of a regular file that can be read.

    Raises:
        UserError: it is missing, a broken link, a folder, a device or a pipe, empty, or may not be read.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise UserError(
                f"{path}: is a symbolic link to {os.readlink(path)}, which does not exist; restore the file or "
                "remove the link"
            ) from None
        raise UserError(f"{path}: the file is missing") from None
    except OSError as problem:
        raise UserError(_unreadable(path, problem)) from None
    except ValueError:
        raise UserError(f"{path!r}: is no file name; rename the file") from None
    if stat.S_ISDIR(found.st_mode):
        raise UserError(f"{path}: is a folder, not an image file; give the file")
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path}: is a device or a pipe, not a file; copy the data to a file")
    if not found.st_size:
        raise UserError(f"{path}: cannot be read as an image (the file is empty); {AGAIN}")
    return found.st_size


def _unreadable(path: Path, problem: OSError) -> str:
    if isinstance(problem, PermissionError):
        return f"{path}: permission denied; make it readable (chmod u+r, and u+x for its folders)"
    return f"{path}: cannot be opened ({problem.strerror or problem}); check the path and the disk"


def open_file(path: Path) -> BinaryIO:
    """Open a regular file for reading bytes.

    Raises:
        UserError: as `check_file`.
    """
    check_file(path)
    try:
        return path.open("rb")
    except OSError as problem:
        raise UserError(_unreadable(path, problem)) from None


def damaged(path: Path, reason: str) -> UserError:
    """The error for a file that is cut off or damaged."""
    return UserError(f"{path}: cannot be read as an image ({reason}; it is truncated or damaged); {AGAIN}")


def not_an_image(path: Path, kind: str, start: bytes) -> UserError:
    """The error for a file that is not of the ``kind`` its ending names."""
    seen = look(start)
    if seen:
        return UserError(f"{path}: cannot be read as an image (it is not {kind} but looks like {seen}); check its name")
    return UserError(f"{path}: cannot be read as an image (it is not {kind}, or its header is damaged); {AGAIN}")


def inflate(file: BinaryIO, kind: str) -> Iterator[bytes]:
    """The content of a gzip, zlib or bzip2 stream in pieces of bounded size, with the checksum of each member verified.

    Raises:
        ValueError, zlib.error, OSError, EOFError: the stream is damaged, cut off, or followed by other bytes.
    """
    piece = file.read(CHUNK)
    members = 0
    while piece:
        if members and not piece.strip(b"\0"):  # padding after the last member
            piece = file.read(CHUNK)
            continue
        decoder = bz2.BZ2Decompressor() if kind == "bzip2" else zlib.decompressobj(31 if kind == "gzip" else 15)
        while not decoder.eof:
            if kind == "bzip2":
                made = decoder.decompress(piece, CHUNK)
                piece = file.read(CHUNK) if decoder.needs_input and not decoder.eof else b""  # type: ignore[union-attr]
                stuck = not piece and decoder.needs_input and not made  # type: ignore[union-attr]
            else:
                made = decoder.decompress(piece, 4 * CHUNK)
                piece = decoder.unconsumed_tail or (b"" if decoder.eof else file.read(CHUNK))  # type: ignore[union-attr]
                stuck = not piece and not made
            if made:
                yield made
            if stuck and not decoder.eof:
                raise EOFError("the compressed data end too early")
        members += 1
        piece = decoder.unused_data or file.read(CHUNK)
        if kind == "zlib" and piece:
            raise ValueError("bytes after the compressed data")


def read_voxels(
    path: Path, file: BinaryIO, *, kind: str, count: int, skip: int = 0, spare: int = 0, stored: int | None = None
) -> np.ndarray:
    """``count`` bytes of voxels as uint8.

    Args:
        path: for messages.
        file: at the first byte of the data.
        kind: raw, gzip, zlib or bzip2.
        count: bytes that the header specifies.
        skip: bytes before them, after decompression.
        spare: bytes that may follow them.
        stored: bytes of the file that belong to the data; to its end where it is None.

    Raises:
        UserError: fewer or more bytes, a checksum that differs, or no stream of this kind.
    """
    check_claim(path, file, kind=kind, count=count + skip, stored=stored)
    if kind == "raw":
        file.seek(skip, os.SEEK_CUR)
        left = os.fstat(file.fileno()).st_size - file.tell()
        if left < count:
            raise damaged(path, f"its header specifies {count} bytes of voxels, {max(left, 0)} are there")
        if left > count + spare:
            raise _longer(path, count, left - count)
        data = np.empty(count, np.uint8)
        if file.readinto(data.data) != count:  # type: ignore[attr-defined]
            raise damaged(path, f"its header specifies {count} bytes of voxels, fewer are there")
        return data
    data, place, passed = np.empty(count, np.uint8), 0, 0
    view = data.data
    try:
        for piece in inflate(file, kind):
            if passed < skip:
                passed += (dropped := min(len(piece), skip - passed))
                piece = piece[dropped:]
            taken = min(len(piece), count - place)
            view[place : place + taken] = piece[:taken]
            place += taken
            spare -= len(piece) - taken
            if spare < 0:
                raise _longer(path, count, -spare, at_least=True)
    except (ValueError, OSError, EOFError, zlib.error) as problem:
        raise damaged(path, _reason(problem)) from None
    if place < count:
        raise damaged(path, f"its header specifies {count} bytes of voxels, {place} are there")
    return data


def check_text(path: Path, file: BinaryIO, count: int) -> None:
    """Refuse voxels written as text that are not ``count`` numbers, as far as the number of bytes shows it.

    Raises:
        UserError: see above; or more memory is needed than there is.
    """
    left = os.fstat(file.fileno()).st_size - file.tell()
    if not 2 * count - 1 <= left <= 64 * count + CHUNK:
        raise damaged(path, f"its header specifies {count} numbers, the file holds {left} bytes of text")
    require_memory(left + 80 * count, f"{path}: {count} numbers written as text", "save it with compression")


def text_values(path: Path, file: BinaryIO, *, dtype: np.dtype, count: int) -> np.ndarray:
    """``count`` voxels written as numbers in text.

    Raises:
        UserError: another number of them, or no numbers; or more memory is needed than there is.
    """
    check_text(path, file, count)
    try:
        values = _numbers(file.read().split(), dtype)
    except (ValueError, OverflowError):
        values = np.empty(0)
    return counted(path, values, count)


def _numbers(words: list[bytes], dtype: np.dtype) -> np.ndarray:
    """Numbers written as text. What Python reads as one, but no writer of image files writes (``1_0``), is refused.

    Raises:
        ValueError: a word is no number of the type.
    """
    pattern = _INTEGER if dtype.kind in "iu" else _DECIMAL
    if not all(map(pattern.fullmatch, words)):
        raise ValueError
    if dtype.kind == "f":
        return np.array(words, dtype=dtype)
    limits, whole = np.iinfo(dtype), list(map(int, words))
    if whole and not limits.min <= min(whole) <= max(whole) <= limits.max:
        raise ValueError
    return np.array(whole, dtype=dtype)


def counted(path: Path, values: np.ndarray, count: int) -> np.ndarray:
    """``values``, if there are ``count``.

    Raises:
        UserError: there are not.
    """
    if values.size != count:
        raise damaged(path, "the number of its voxels is not that of its header")
    return values


def check_claim(path: Path, file: BinaryIO, *, kind: str, count: int, stored: int | None = None) -> None:
    """Refuse a header that specifies more bytes than the rest of the file can hold.

    Raises:
        UserError: see above.
    """
    left = os.fstat(file.fileno()).st_size - file.tell() if stored is None else stored
    if count > left * _LARGEST_RATIO.get(kind, 1):
        raise damaged(path, f"its header specifies {count} bytes of voxels, the file holds {left}")


def _longer(path: Path, count: int, more: int, at_least: bool = False) -> UserError:
    return UserError(
        f"{path}: cannot be read as an image (its header specifies {count} bytes of voxels, the file holds "
        f"{'at least ' if at_least else ''}{more} more; the header is damaged or was edited); export it again"
    )


def _reason(problem: Exception) -> str:
    text = str(problem)
    if "incorrect" in text or "CRC" in text:
        return "the checksum of its compressed data does not match"
    return text.rstrip(".") or type(problem).__name__
