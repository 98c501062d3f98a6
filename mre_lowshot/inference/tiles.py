"""Covering a volume with patches: which input each tile reads and which voxels of its output are kept.

Tiles never hang over the edge: the last one of an axis is moved inside and keeps its border voxels, because padding
would shift what SE and the image-level branch pool. Only a volume smaller than the patch is padded (by the caller).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np


@dataclass(frozen=True)
class Tile:
    """``start`` of the input patch in the volume; ``keep`` (low, high) an axis, in voxels of the patch."""

    start: tuple[int, ...]
    keep: tuple[tuple[int, int], ...]

    def input_slices(self, patch: tuple[int, ...]) -> tuple[slice, ...]:
        return tuple(slice(s, s + p) for s, p in zip(self.start, patch, strict=True))

    def kept_slices(self) -> tuple[slice, ...]:
        return tuple(slice(low, high) for low, high in self.keep)

    def output_slices(self) -> tuple[slice, ...]:
        return tuple(slice(s + low, s + high) for s, (low, high) in zip(self.start, self.keep, strict=True))


def centre_tiles(size: tuple[int, ...], patch: tuple[int, ...], centre: tuple[int, ...]) -> Iterator[Tile]:
    """Consecutive tiles whose kept parts cover the volume exactly once (paper, IV-C): the centre of each, and at the
    volume's border the patch's border too. ``size`` must be at least ``patch``."""
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


def gaussian_weight(patch: tuple[int, ...]) -> np.ndarray:
    """Importance of a patch's voxels, highest in the centre: sigma an eighth of the side (nnU-Net's), never below
    1e-3 of the highest, so that every voxel has a vote. Float32."""
    weight = np.ones((), dtype=np.float64)
    for n in patch:
        line = np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (n / 8)) ** 2)
        weight = weight[..., None] * line
    return np.maximum(weight / weight.max(), 1e-3).astype(np.float32)
