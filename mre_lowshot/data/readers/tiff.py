"""Checks of TIFF files: directories, sizes of strips and tiles against the file, and checksums where it has any."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

from mre_lowshot.data.readers.content import damaged, not_an_image
from mre_lowshot.data.readers.tiff_tags import CHECKED, contradiction, is_known
from mre_lowshot.errors import UserError

_TYPES = {1: "B", 2: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 16: "Q", 17: "q", 18: "Q"}
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES, _OFFSETS, _COUNTS = 256, 257, 258, 259, 277, 273, 279
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS, _ROWS, _PLANAR, _FORMAT = 322, 323, 324, 325, 278, 284, 339
_MOST_PAGES, _MOST_VALUES = 100_000, 10_000_000
_DEFLATE = (8, 32946)
_LARGEST_RATIO = {1: 1, 5: 2000, 8: 1032, 32946: 1032, 32773: 64}
_NAMES = {6: "old JPEG", 7: "JPEG", 2: "CCITT", 3: "fax", 4: "fax", 34712: "JPEG 2000", 50000: "zstd"}


def check_tiff(path: Path, file: BinaryIO, *, deep: bool) -> int:
    """The number of pixels of all pages; with ``deep`` the strips and tiles are decompressed where they carry a
    checksum.

    Raises:
        UserError: the file is damaged, truncated, or not a TIFF file that is read here.
    """
    start = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(start[:2], "")
    if len(start) < 8 or not order or struct.unpack(f"{order}H", start[2:4])[0] not in (42, 43):
        raise not_an_image(path, "a TIFF file", start + file.read(512))
    is_big = struct.unpack(f"{order}H", start[2:4])[0] == 43
    end = os.fstat(file.fileno()).st_size
    place = struct.unpack(f"{order}Q", start[8:16])[0] if is_big else struct.unpack(f"{order}I", start[4:8])[0]
    pixels, first = 0, None
    seen: set[int] = set()
    try:
        while place:
            if place in seen or len(seen) >= _MOST_PAGES:
                raise damaged(path, "its directories form a loop")
            seen.add(place)
            page, place = _directory(file, order, is_big, place, end)
            found = _check_page(path, file, page, end, deep=deep)
            if first is not None and found != first:
                raise UserError(
                    f"{path}: cannot be read as an image (it holds pages of several sizes: {first[0]} x {first[1]} and "
                    f"{found[0]} x {found[1]}); save one image per file"
                )
            first = found
            pixels += found[0] * found[1]
    except (struct.error, KeyError, IndexError, OverflowError, MemoryError):
        raise damaged(path, "its directory is incomplete") from None
    if not seen:
        raise damaged(path, "it holds no image")
    return pixels


def _directory(file: BinaryIO, order: str, is_big: bool, place: int, end: int) -> tuple[dict[int, list[int]], int]:
    """The tags of a page with their values, and where the next page is."""
    if place >= end:
        raise struct.error
    file.seek(place)
    number = struct.unpack(f"{order}{'Q' if is_big else 'H'}", file.read(8 if is_big else 2))[0]
    width, inline = (20, 8) if is_big else (12, 4)
    if number > 4096:
        raise struct.error
    entries = file.read(number * width)
    following = struct.unpack(f"{order}{'Q' if is_big else 'I'}", file.read(inline))[0]
    tags: dict[int, list[int]] = {}
    last = -1
    for entry in range(number):
        raw = entries[entry * width : (entry + 1) * width]
        tag, kind = struct.unpack(f"{order}HH", raw[:4])
        if tag <= last or kind not in _SIZES or not is_known(tag):  # the format demands their order
            raise struct.error
        last = tag
        count = struct.unpack(f"{order}{'Q' if is_big else 'I'}", raw[4 : 4 + inline])[0]
        if _SIZES.get(kind, 0) * count > inline:
            place = struct.unpack(f"{order}{'Q' if is_big else 'I'}", raw[4 + inline :])[0]
            if place + _SIZES[kind] * count > end:
                raise struct.error
        if tag not in _USED:
            continue
        if kind not in _TYPES:
            raise struct.error
        letter = _TYPES[kind]
        length = struct.calcsize(f"={letter}") * count
        if count > _MOST_VALUES or length > end:
            raise struct.error
        data = raw[4 + inline :][:length]
        if length > inline:
            file.seek(struct.unpack(f"{order}{'Q' if is_big else 'I'}", raw[4 + inline :])[0])
            data = file.read(length)
        tags[tag] = list(struct.unpack(f"{order}{count}{letter}", data))
    return tags, following


_USED = {
    _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES, _OFFSETS, _COUNTS, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS,
    _TILE_COUNTS, _ROWS, _PLANAR, _FORMAT, *CHECKED,
}  # fmt: skip


def _check_page(path: Path, file: BinaryIO, page: dict[int, list[int]], end: int, *, deep: bool) -> tuple[int, ...]:
    """Width, height, samples and bits of a page."""
    width, height = page[_WIDTH][0], page[_HEIGHT][0]
    samples, bits = page.get(_SAMPLES, [1])[0], max(page.get(_BITS, [1]))
    if min(width, height, samples, bits) < 1 or samples > 64 or bits > 64:
        raise damaged(path, f"its header gives {width} x {height} pixels of {samples} samples, {bits} bits")
    if problem := contradiction(page):
        raise damaged(path, problem)
    if page.get(_FORMAT, [1])[0] in (5, 6):
        raise UserError(f"{path}: cannot be read as an image (complex pixels); save the magnitude")
    method = page.get(_COMPRESSION, [1])[0]
    if method not in _LARGEST_RATIO:
        raise UserError(
            f"{path}: cannot be read as an image (compression {_NAMES.get(method, method)}); save it uncompressed, or "
            "with deflate or LZW"
        )
    tiled = _TILE_OFFSETS in page
    offsets, counts = (page[tag] for tag in ((_TILE_OFFSETS, _TILE_COUNTS) if tiled else (_OFFSETS, _COUNTS)))
    if len(offsets) != len(counts):
        raise damaged(path, "its directory is incomplete")
    planes = samples if page.get(_PLANAR, [1])[0] == 2 else 1
    rows = page[_TILE_HEIGHT][0] if tiled else min(page.get(_ROWS, [height])[0], height)
    columns = page[_TILE_WIDTH][0] if tiled else width
    if min(rows, columns) < 1 or len(counts) != planes * -(-height // rows) * -(-width // columns):
        raise damaged(path, "it does not hold the strips that its header specifies")
    needed = height * ((width * bits * samples + 7) // 8)
    if any(offset + count > end for offset, count in zip(offsets, counts, strict=True)):
        raise damaged(path, "it is cut off")
    if needed > _LARGEST_RATIO[method] * sum(counts):
        raise damaged(path, f"its header gives {width} x {height} pixels, it holds fewer")
    if not tiled and method == 1 and sum(counts) != needed:
        raise damaged(path, f"its header gives {width} x {height} pixels, its strips hold more")
    if len(set(offsets)) < len(offsets):
        raise damaged(path, "two of its strips are one")
    if deep and method in _DEFLATE:
        line = (columns * bits * (samples // planes) + 7) // 8
        for number, (offset, count) in enumerate(zip(offsets, counts, strict=True)):
            strip = number % (-(-height // rows))
            lines = rows if tiled else min(rows, height - strip * rows)
            file.seek(offset)
            _check_strip(path, file.read(count), line * lines)
    return width, height, samples, bits


def _check_strip(path: Path, data: bytes, needed: int) -> None:
    decoder, made = zlib.decompressobj(), 0
    try:
        while data and not decoder.eof and made <= needed:
            made += len(decoder.decompress(data, 1 << 20))
            data = decoder.unconsumed_tail
        made += 0 if decoder.eof else len(decoder.decompress(b"", 1 << 20))
    except zlib.error:
        raise damaged(path, "the checksum of its compressed data does not match, or they are invalid") from None
    if made < needed or not decoder.eof:
        raise damaged(path, "it holds fewer pixels than its header specifies")
