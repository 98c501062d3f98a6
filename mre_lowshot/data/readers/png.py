"""Checks of PNG files: chunks, their checksums, and the number of pixels."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import BinaryIO

from mre_lowshot.data.readers.content import damaged, not_an_image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a pixel, by colour type
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}


def check_png(path: Path, file: BinaryIO, *, deep: bool) -> int:
    """The number of pixels; with ``deep`` all checksums and the size of the decompressed data are verified.

    Raises:
        UserError: the file is damaged, truncated, or not a PNG file.
    """
    start = file.read(33)
    if not start.startswith(_SIGNATURE) or len(start) < 33 or start[12:16] != b"IHDR":
        raise not_an_image(path, "a PNG file", start + file.read(512))
    width, height, depth, colour, method, filtering, interlace = struct.unpack(">IIBBBBB", start[16:29])
    if zlib.crc32(start[12:29]) != struct.unpack(">I", start[29:33])[0]:
        raise damaged(path, "the checksum of its header does not match")
    if not (0 < width < 2**31 and 0 < height < 2**31) or depth not in _DEPTHS.get(colour, ()):
        raise damaged(path, f"its header gives {width} x {height} pixels of type {colour}, {depth} bits")
    if (method, filtering) != (0, 0) or interlace > 1:
        raise damaged(path, "its header gives an unknown compression")
    needed = height * (1 + (width * depth * _SAMPLES[colour] + 7) // 8)
    compressed, whole = 0, False
    decoder, made = zlib.decompressobj(), 0
    while head := file.read(8):
        if len(head) < 8:
            raise damaged(path, "it is cut off")
        length, kind = struct.unpack(">I4s", head)
        is_data = kind == b"IDAT"
        if not deep and not is_data and kind != b"IEND":
            file.seek(length + 4, 1)
            continue
        checksum, left = zlib.crc32(kind), length
        while left:
            piece = file.read(min(left, 1 << 20))
            if not piece:
                raise damaged(path, "it is cut off")
            left -= len(piece)
            if deep:
                checksum = zlib.crc32(piece, checksum)
                made += _decompressed(path, decoder, piece, 2 * needed - made) if is_data else 0
        stored = file.read(4)
        if len(stored) < 4:
            raise damaged(path, "it is cut off")
        if deep and struct.unpack(">I", stored)[0] != checksum:
            raise damaged(path, "a checksum does not match")
        compressed += length if is_data else 0
        if kind == b"IEND":
            whole = True
            break
    if not whole:
        raise damaged(path, "it is cut off")
    if needed > 2 * 1032 * compressed or (deep and not interlace and (made < needed or not decoder.eof)):
        raise damaged(path, f"its header gives {width} x {height} pixels, it holds fewer")
    return int(width) * int(height)


def _decompressed(path: Path, decoder: zlib._Decompress, piece: bytes, limit: int) -> int:
    """The number of bytes that a piece decompresses to; at most about ``limit``."""
    count = 0
    try:
        while piece and not decoder.eof and count <= limit:
            count += len(decoder.decompress(piece, 1 << 20))
            piece = decoder.unconsumed_tail
    except zlib.error:
        raise damaged(path, "its compressed data are invalid") from None
    return count
