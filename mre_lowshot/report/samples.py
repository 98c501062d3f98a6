"""A scan and its label maps, reduced to what a page can hold: see `report.content.Images`."""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Sequence

import numpy as np

from mre_lowshot.data.volume import Volume
from mre_lowshot.report.content import Images
from mre_lowshot.report.figures import CT_WINDOW, window

OTHER = 255  # a value that is not in the list of labels
MAX_LABELS = 254
_QUALITY = 82  # of the JPEG
_BLOCK = 8  # pixels of a JPEG's blocks: tiles begin at blocks, so that slices do not mix
_MOST_WIDE = 8192  # pixels of the JPEG
_CT_CODES = ((-1024.0, 0), (-250.0, 40), (350.0, 215), (2000.0, 255))  # 3.4 HU a grey value in soft tissue


def make_images(
    scan: Volume | None,
    prediction: Volume | None,
    reference: Volume | None,
    *,
    values: Sequence[int],
    max_size: int,
    is_ct: bool | None = None,
) -> Images:
    """Reduce a case. All volumes lie on one grid; at least one is given.

    Args:
        scan: (C, D, H, W); the first channel is shown.
        prediction, reference: label maps (D, H, W).
        values: of the labels in the report's list.
        max_size: voxels along each axis, at most.
        is_ct: whether intensities are HU; None: if their range is that of a CT.

    Raises:
        ValueError: two volumes differ in shape.
    """
    volumes = [volume for volume in (scan, prediction, reference) if volume is not None]
    full = tuple(int(n) for n in volumes[0].array.shape[-3:])
    for volume in volumes:
        if tuple(volume.array.shape[-3:]) != full:
            raise ValueError(f"volumes of one case differ in shape: {full} and {volume.array.shape[-3:]}")
    edges = [_edges(n, max_size) for n in full]
    shape = (len(edges[0]) - 1, len(edges[1]) - 1, len(edges[2]) - 1)
    z, y, x = (
        step * n / m for step, n, m in zip(volumes[0].geometry.spacing, full, shape, strict=True)
    )  # the extent stays
    maps = [None if v is None else _numbers(_nearest(v.array, edges), values) for v in (prediction, reference)]
    grey, unit, tile, columns, shown = b"", "", (0, 0), 1, (0.0, 1.0)
    codes: tuple[int, ...] = (0, 255)
    intensities: tuple[float, ...] = (0.0, 1.0)
    if scan is not None:
        channel = scan.array[0]
        shown = CT_WINDOW if is_ct else window(channel)
        unit = "HU" if is_ct or (is_ct is None and shown == CT_WINDOW) else ""
        codes, intensities = _knots(channel, shown, is_ct=bool(unit))
        reduced = np.interp(_averaged(channel, edges), intensities, codes)
        grey, tile, columns = _jpeg(np.rint(reduced).astype(np.uint8))
    return Images(
        shape=shape,
        spacing=(float(z), float(y), float(x)),
        full_shape=(full[0], full[1], full[2]),
        scan=grey,
        tile=tile,
        columns=columns,
        codes=codes,
        values=intensities,
        window=shown,
        unit=unit,
        prediction=b"" if maps[0] is None else zlib.compress(maps[0].tobytes(), 9),
        reference=b"" if maps[1] is None else zlib.compress(maps[1].tobytes(), 9),
        start=_start(maps[0], maps[1], shape),
        directions=full[0] > 1,
    )


def _edges(size: int, most: int) -> np.ndarray:
    """The borders of at most ``most`` bins of nearly equal width that cover ``size`` voxels."""
    count = min(size, most)
    return np.arange(count + 1) * size // count


def _averaged(array: np.ndarray, edges: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of each box of voxels; what is not finite counts as 0."""
    found = array
    for axis, borders in enumerate(edges):
        if len(borders) - 1 < found.shape[axis]:
            widths = np.diff(borders).astype(np.float32)
            shape = [-1 if a == axis else 1 for a in range(3)]
            found = np.add.reduceat(_finite(found), borders[:-1], axis=axis, dtype=np.float32) / widths.reshape(shape)
    return _finite(found)


def _finite(array: np.ndarray) -> np.ndarray:
    return array if np.isfinite(array).all() else np.nan_to_num(array, nan=0.0, posinf=0.0, neginf=0.0)


def _nearest(labels: np.ndarray, edges: Sequence[np.ndarray]) -> np.ndarray:
    """The label in the middle of each box."""
    middle = [(borders[:-1] + borders[1:] - 1) // 2 for borders in edges]
    return labels[np.ix_(*middle)]


def _numbers(labels: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Label values as numbers in the list, from 1; 0 stays, what is not listed becomes `OTHER`."""
    found = np.full(labels.shape, OTHER, np.uint8)
    found[labels == 0] = 0
    for number, value in enumerate(values[:MAX_LABELS], 1):
        found[labels == value] = number
    return found


def _knots(
    channel: np.ndarray, shown: tuple[float, float], *, is_ct: bool
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Grey values and intensities between which the scale is linear: fine where structures lie, coarse outside."""
    if is_ct:
        return tuple(code for _, code in _CT_CODES), tuple(value for value, _ in _CT_CODES)
    low, high = shown
    finite = channel[np.isfinite(channel)]
    least, most = (float(finite.min()), float(finite.max())) if finite.size else (low, high)
    knots = [(low, 0 if least >= low else 10), (high, 255 if most <= high else 235)]
    knots = ([(least, 0)] if least < low else []) + knots + ([(most, 255)] if most > high else [])
    return tuple(code for _, code in knots), tuple(value for value, _ in knots)


def _jpeg(volume: np.ndarray) -> tuple[bytes, tuple[int, int], int]:
    """All axial slices in one JPEG, the size of a tile (height, width), and the tiles of a row."""
    from PIL import Image

    depth, height, width = volume.shape
    tile = (-(-height // _BLOCK) * _BLOCK, -(-width // _BLOCK) * _BLOCK)
    columns = max(min(round(math.sqrt(depth * tile[0] / tile[1])), _MOST_WIDE // tile[1], depth), 1)
    rows = -(-depth // columns)
    padded = np.pad(volume, ((0, 0), (0, tile[0] - height), (0, tile[1] - width)), mode="edge")
    sheet = np.zeros((rows * columns, *tile), np.uint8)
    sheet[:depth] = padded
    picture = sheet.reshape(rows, columns, *tile).swapaxes(1, 2).reshape(rows * tile[0], columns * tile[1])
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "JPEG", quality=_QUALITY, optimize=True)
    return content.getvalue(), tile, columns


def _start(prediction: np.ndarray | None, reference: np.ndarray | None, shape: Sequence[int]) -> tuple[int, int, int]:
    """Where the labels differ most from the reference; without one, where most of them are cut."""
    from scipy.ndimage import uniform_filter

    if prediction is not None and reference is not None:
        wrong = (prediction != reference) & (reference != OTHER)
        if wrong.any():
            sides = [min(max(n // 8, 1), n) for n in shape]
            place = np.unravel_index(int(uniform_filter(wrong.astype(np.float32), sides).argmax()), wrong.shape)
            return int(place[0]), int(place[1]), int(place[2])
    labels = prediction if prediction is not None and prediction.any() else reference
    if labels is None or not labels.any():
        return int(shape[0] // 2), int(shape[1] // 2), int(shape[2] // 2)
    shares = [np.zeros(n) for n in shape]
    for value in np.unique(labels[labels > 0]):
        mask = labels == value
        for share, others in zip(shares, ((1, 2), (0, 2), (0, 1)), strict=True):
            area = mask.sum(axis=others)
            share += np.minimum(area / area.max(), 0.5)
    z, y, x = (int(share.argmax()) for share in shares)
    return z, y, x
