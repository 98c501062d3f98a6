"""Covering a volume with tiles: the input of each tile, and the voxels of its output that are kept.

Tiles never extend beyond the volume: the last one along an axis is moved inside and keeps its border voxels, because
padding would shift the averages of SE and the image-level branch. Only a volume smaller than the patch is padded (by
the caller).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from mre_lowshot.grid import Box, as_slices


@dataclass(frozen=True)
class Tile:
    """``start`` of the input patch in the volume; ``keep``: kept part, in voxels of the patch."""

    start: tuple[int, ...]
    keep: Box

    def input_slices(self, patch: tuple[int, ...]) -> tuple[slice, ...]:
        """The tile's input in the volume."""
        return tuple(slice(s, s + p) for s, p in zip(self.start, patch, strict=True))

    def kept_slices(self) -> tuple[slice, ...]:
        """The kept part in the patch."""
        return as_slices(self.keep)

    def output_slices(self) -> tuple[slice, ...]:
        """The kept part in the volume."""
        return tuple(slice(s + low, s + high) for s, (low, high) in zip(self.start, self.keep, strict=True))


def centre_tiles(size: tuple[int, ...], patch: tuple[int, ...], centre: tuple[int, ...]) -> Iterator[Tile]:
    """Consecutive tiles whose kept parts cover the volume exactly once: the centre of each patch (paper, IV-C), and at
    the volume's border the patch's border too (our reading). ``size`` must be at least ``patch``."""
    axes = [_centre_axis(n, p, c) for n, p, c in zip(size, patch, centre, strict=True)]
    for parts in product(*axes):
        yield Tile(tuple(part[0] for part in parts), tuple(part[1] for part in parts))


def _centre_axis(size: int, patch: int, centre: int) -> list[tuple[int, tuple[int, int]]]:
    margin = (patch - centre) // 2
    tiles, done, start = [], 0, 0
    while done < size:
        start = min(start, size - patch)
        last = start == size - patch
        end = size if last else start + margin + centre
        tiles.append((start, (done - start, end - start)))
        done, start = end, start + centre
    return tiles


def overlap_tiles(size: tuple[int, ...], patch: tuple[int, ...], step: float) -> Iterator[Tile]:
    """Tiles at most ``step`` of a side apart, evenly spread from edge to edge, all of each kept (to be averaged)."""
    starts = []
    for n, p in zip(size, patch, strict=True):
        count = 1 + int(np.ceil((n - p) / max(1, int(p * step)))) if n > p else 1
        starts.append(np.linspace(0, n - p, count).round().astype(int).tolist())
    keep = tuple((0, p) for p in patch)
    for start in product(*starts):
        yield Tile(tuple(start), keep)


def count_tiles(
    size: tuple[int, ...], patch: tuple[int, ...], *, centre: tuple[int, ...] | None = None, step: float = 1.0
) -> int:
    """How many tiles `centre_tiles` (with ``centre``) or `overlap_tiles` make at most, without making them."""
    sides = centre or tuple(max(1, int(p * step)) for p in patch)
    return math.prod(1 + math.ceil(max(0, n - p) / s) for n, p, s in zip(size, patch, sides, strict=True))


def gaussian_weight(patch: tuple[int, ...]) -> np.ndarray:
    """Weight of a patch's voxels when tiles overlap: Gaussian, sigma an eighth of the side (nnU-Net's), at least 1e-3
    of the maximum, so that every voxel counts. Float32."""
    weight = np.ones((), dtype=np.float64)
    for n in patch:
        line = np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (n / 8)) ** 2)
        weight = weight[..., None] * line
    normalized: np.ndarray = np.maximum(weight / weight.max(), 1e-3).astype(np.float32)
    return normalized
