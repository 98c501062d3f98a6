"""Voxel grids: positions, coordinate maps, interpolation and resizing, in one place.

Two conventions. Coordinate maps run from -1 at the centre of the first voxel to 1 at the centre of the last one.
Resizing aligns the grids' outer edges (half-pixel convention: voxel centres at (i + 0.5) * old / new - 0.5) and repeats
edge voxels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mre_lowshot.transfers import Array

Box = tuple[tuple[int, int], ...]
"""(low, high) voxel indices along each axis, high exclusive."""

IGNORE = -1  # label of voxels that are not annotated, or that lie outside a volume
WIDE_BOX = 0.3  # share of a plane from which the whole plane is resized at once
MIXED = -1  # of `LabelMap.cells`: the corners of a cell have different labels


def as_slices(box: Box | Sequence[tuple[int, int]]) -> tuple[slice, ...]:
    """A box as slices, one per axis."""
    return tuple(slice(low, high) for low, high in box)


def full_box(shape: Sequence[int]) -> Box:
    """The box of a whole grid of ``shape``."""
    return tuple((0, int(n)) for n in shape)


def union_box(boxes: Iterable[Box]) -> Box:
    """The smallest box that holds all ``boxes``."""
    return tuple((min(low for low, _ in axis), max(high for _, high in axis)) for axis in zip(*boxes, strict=True))


ORDINARY_MM = (0.1, 10.0)  # finest spacing of the scans that rules in mm are made for


def nominal_spacing(spacing: Sequence[float]) -> tuple[float, ...]:
    """The spacing that rules in mm use: the scan's own, or, where the finest spacing lies outside `ORDINARY_MM`
    (micro-CT, histology, a wrong unit), scaled so that the finest is 1 mm. The rules then depend on voxels alone."""
    finest = min(spacing)
    if ORDINARY_MM[0] <= finest <= ORDINARY_MM[1]:
        return tuple(float(s) for s in spacing)
    return tuple(float(f"{s / finest:.9g}") for s in spacing)  # rounded: the same for every scale


def voxel_positions(corner: Sequence[int], patch: Sequence[int]) -> np.ndarray:
    """Voxel indices (axes, *patch) of a patch whose first voxel is ``corner``; they may lie outside the volume."""
    lines = [np.arange(c, c + n, dtype=np.float64) for c, n in zip(corner, patch, strict=True)]
    positions: np.ndarray = np.stack(np.meshgrid(*lines, indexing="ij"))
    return positions


def coordinate_maps(positions: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Cartesian coordinates of voxel ``positions`` (axes, *patch): each axis runs from -1 to 1 (paper, III-C) over the
    whole volume of ``size`` voxels and continues linearly outside it (our reading); 0 along an axis of one voxel.
    Float32, same shape.
    """
    last = np.asarray(size).reshape(-1, *[1] * (positions.ndim - 1)) - 1
    maps: np.ndarray = ((2 * positions - last) / np.maximum(last, 1)).astype(np.float32)
    return maps


def sample_image(image: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """An image (C, *size) float32 at voxel ``positions`` (axes, *patch), interpolated linearly: (C, *patch).

    Outside the volume the edge voxels are repeated.
    """
    import torch
    from torch.nn import functional as F

    whole = np.rint(positions)
    if np.array_equal(whole, positions):
        return np.stack([channel[_clipped(whole, channel.shape)] for channel in image])
    size = np.asarray(image.shape[1:]).reshape(-1, *[1] * (positions.ndim - 1))
    grid = 2 * positions / np.maximum(size - 1, 1) - 1
    ordered = torch.from_numpy(np.moveaxis(grid[::-1], 0, -1).astype(np.float32))  # grid_sample wants (x, y, z)
    sampled = F.grid_sample(torch.from_numpy(image)[None], ordered[None], padding_mode="border", align_corners=True)
    result: np.ndarray = sampled[0].numpy()
    return result


def sample_label(label: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """A label map (*size) at the voxels nearest to ``positions`` (axes, *patch): (*patch) int64, `IGNORE` outside."""
    nearest = np.rint(positions)
    sampled: np.ndarray = label[_clipped(nearest, label.shape)].astype(np.int64)
    sampled[outside_volume(nearest, label.shape)] = IGNORE
    return sampled


@dataclass(frozen=True)
class LabelMap:
    """A label map (*size) for `shares`, on the device of its tensors.

    Attributes:
        label: (*size), values from 0 on.
        cells: the label of the 2 x ... x 2 voxels from each voxel on (fewer at the far edges), `MIXED` where they
            differ.
        values: number of label values.
    """

    label: Tensor
    cells: Tensor
    values: int

    @classmethod
    def of(cls, label: Array, values: int, device: torch.device | None = None) -> LabelMap:
        """On ``device``; None: where ``label`` is."""
        import torch

        from mre_lowshot.transfers import as_tensor

        label = as_tensor(label, device)
        low, high = label, label
        for axis, n in enumerate(label.shape):
            if n > 1:
                after = torch.arange(1, n + 1, device=label.device).clamp_(max=n - 1)
                low = torch.minimum(low, low.index_select(axis, after))
                high = torch.maximum(high, high.index_select(axis, after))
        return cls(label, torch.where(low == high, label, MIXED), values)

    def shares(self, positions: Tensor) -> Tensor:
        """Shares of the label values at voxel ``positions`` (axes, *patch): (values, *patch) float32.

        The same as `sample_image` of each value's indicator, to rounding. Only where the voxels around a position have
        different labels is anything interpolated, which is in a small part of a volume.
        """
        import torch

        from mre_lowshot.transfers import true_positions

        size, patch = self.label.shape, positions.shape[1:]
        at = [line.clamp(0, n - 1).flatten().float() for line, n in zip(positions, size, strict=True)]
        low = [line.long().clamp_(max=max(n - 2, 0)) for line, n in zip(at, size, strict=True)]
        corner = low[0]
        for line, n in zip(low[1:], size[1:], strict=True):
            corner = corner * n + line
        found = self.cells.flatten().index_select(0, corner)
        mixed = found == MIXED
        shares = torch.zeros((self.values, len(corner)), device=found.device)
        shares.scatter_(0, found.clamp(min=0).long()[None], (~mixed).float()[None])
        between = true_positions(mixed)
        corner, flat, numbers = corner.index_select(0, between), self.label.flatten(), shares.view(-1)
        pairs = [[line.index_select(0, between) for line in both] for both in zip(at, low, strict=True)]
        share = [line - first.float() for line, first in pairs]
        for offsets in product((0, 1), repeat=len(size)):
            if any(offset > n - 1 for offset, n in zip(offsets, size, strict=True)):  # an axis of one voxel
                continue
            weight, step = torch.ones_like(share[0]), 0
            for its, offset, n in zip(share, offsets, size, strict=True):
                weight = weight * (its if offset else 1 - its)
                step = step * n + offset
            place = flat.index_select(0, corner + step).long() * len(found) + between
            numbers.index_add_(0, place, weight)  # each voxel once: no index is repeated
        return shares.view(self.values, *patch)


def sample_shares(label: Array, positions: Array, values: int) -> Tensor:
    """`LabelMap.shares` of a label map (*size) at voxel ``positions`` (axes, *patch)."""
    from mre_lowshot.transfers import as_tensor

    return LabelMap.of(label, values).shares(as_tensor(positions))


def outside_volume(positions: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Which voxel ``positions`` (axes, *patch) lie outside a volume of ``size``: (*patch) bool."""
    last = np.asarray(size).reshape(-1, *[1] * (positions.ndim - 1)) - 1
    outside: np.ndarray = np.any((positions < 0) | (positions > last), axis=0)
    return outside


def _clipped(whole: np.ndarray, size: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    return tuple(np.clip(axis, 0, n - 1).astype(np.intp) for axis, n in zip(whole, size, strict=True))


def resize_linear(channel: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Resize one map (D, H, W) trilinearly, without smoothing. Float32."""
    import torch
    from torch.nn import functional as F

    if tuple(channel.shape) == tuple(size):
        return channel.astype(np.float32, copy=False)
    tensor = torch.from_numpy(np.ascontiguousarray(channel, dtype=np.float32))[None, None]
    return F.interpolate(tensor, size=size, mode="trilinear", align_corners=False)[0, 0].numpy()


def argmax_resized(maps: Iterable[Array], size: tuple[int, ...], floor: float | None = None) -> np.ndarray:
    """Argmax over maps that are resized one by one (trilinearly): one map (D, H, W) per class in, a label map of
    ``size`` out. Computed in torch on the device of the maps.

    At most two maps of the output size exist at a time, whatever the number of classes. Ties go to the lower label.

    Args:
        maps: of each class.
        size: of the label map.
        floor: a value that the highest map exceeds everywhere (for probabilities of K classes anything below 1/K).
            Each map but the first is then resized only in the box of its values above ``floor``; the labels are the
            same.
    """
    import torch

    from mre_lowshot.transfers import as_tensor, to_host

    best: Tensor | None = None
    labels: Tensor | None = None
    for label, array in enumerate(maps):
        channel = as_tensor(array).float()
        box = full_box(size) if floor is None or not label else _resized_box(channel, size, floor)
        if best is None or labels is None:
            best = torch.empty(size, device=channel.device)
            labels = torch.zeros(size, dtype=torch.int16, device=channel.device)
        if box is None:
            continue
        for part, resized in _resized_planes(channel, size, box):  # no third map of that size
            inside = (part, *as_slices(box[1:]))
            if label:
                labels[inside].masked_fill_(resized > best[inside], label)
                torch.maximum(best[inside], resized, out=best[inside])
            else:
                best[inside] = resized
    if labels is None:
        return np.zeros(size, dtype=np.int16)
    found: np.ndarray = to_host(labels)[0].numpy()
    return found


def box_above(values: Tensor, floor: float) -> Box | None:
    """The smallest box that holds the ``values`` (*size) above ``floor``; None without any. Waits for the device
    once."""
    from mre_lowshot.transfers import to_host

    flat = values.amax(dim=0)  # one pass over the whole map, the others over one plane
    lines = [values.flatten(1).amax(dim=1)]
    for axis in range(flat.ndim):
        others = [other for other in range(flat.ndim) if other != axis]
        lines.append(flat.amax(dim=others) if others else flat)
    box = []
    for line in to_host(*lines):
        used = (line > floor).nonzero()[:, 0]
        if not len(used):
            return None
        box.append((int(used[0]), int(used[-1]) + 1))
    return tuple(box)


def _resized_box(channel: Tensor, size: tuple[int, ...], floor: float) -> Box | None:
    """The box of the resized grid outside which no resized value exceeds ``floor``; None where none does at all."""
    above = box_above(channel, floor)
    if above is None:
        return None
    box = []
    for (start, stop), old, new in zip(above, channel.shape, size, strict=True):
        scale = new / old
        # voxel i contributes to the resized voxels between the centres of voxels i - 1 and i + 1
        low, high = (start - 0.5) * scale - 0.5, (stop + 0.5) * scale - 0.5
        box.append((max(0, int(np.floor(low))), min(new, int(np.ceil(high)) + 1)))
    return tuple(box)


def _resized_planes(channel: Tensor, size: tuple[int, ...], box: Box) -> Iterator[tuple[slice, Tensor]]:
    """A map (D, H, W) resized trilinearly to ``size``, in ``box`` of the resized grid: some planes after the other, and
    which they are."""
    import torch
    from torch.nn import functional as F

    from mre_lowshot.devices import slabs
    from mre_lowshot.filters import along_axes, linear_matrix

    (start, stop), inner = box[0], as_slices(box[1:])
    at = ((torch.arange(start, stop, dtype=torch.float64) + 0.5) * (channel.shape[0] / size[0]) - 0.5).clamp_(min=0)
    first = at.long().clamp_(max=channel.shape[0] - 1)
    low, high = int(first[0]), int(first[-1]) + 2
    planes = channel[low:high]
    share_of_plane = math.prod((high - low) / n for (low, high), n in zip(box[1:], size[1:], strict=True))
    if tuple(planes.shape[1:]) == size[1:]:
        planes = planes[(slice(None), *inner)]
    elif share_of_plane > WIDE_BOX:
        planes = F.interpolate(planes[None], size=size[1:], mode="bilinear", align_corners=False)[0]
        planes = planes[(slice(None), *inner)]
    else:
        pairs = zip(planes.shape[1:], size[1:], inner, strict=True)
        matrices = [linear_matrix(old, new, old / new)[rows] for old, new, rows in pairs]
        used = [slice(*np.flatnonzero(matrix.any(axis=0))[[0, -1]] + (0, 1)) for matrix in matrices]
        cut = [matrix[:, columns] for matrix, columns in zip(matrices, used, strict=True)]
        planes = along_axes(planes[(slice(None), *used)], [None, *cut])
    share = (at - first).clamp_(max=1).float().view(-1, 1, 1).to(channel.device)
    first = (first - low).to(channel.device)
    after = (first + 1).clamp_(max=len(planes) - 1)
    for part in slabs(stop - start, planes[0].numel(), channel.device):
        if channel.shape[0] == size[0]:
            resized = planes[part]
        else:
            low_planes, high_planes = (planes.index_select(0, index[part]) for index in (first, after))
            resized = torch.lerp(low_planes, high_planes, share[part])
        yield slice(start + part.start, start + part.stop), resized


def resize_labels(labels: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Resize a (D, H, W) label map by linear interpolation of each label's indicator (nnU-Net's order 1)."""
    if tuple(labels.shape) == tuple(size):
        return labels
    values = np.unique(labels)
    indicators = ((labels == v).astype(np.float32) for v in values)
    winners = argmax_resized(indicators, size, floor=0.5 / len(values))
    resized: np.ndarray = values[winners]
    return resized


def coarsen_spacing(voxels: int, spacing: np.ndarray, extent: np.ndarray) -> np.ndarray:
    """The spacing (mm, one value per axis) at which a volume of ``extent`` mm has at most ``voxels`` voxels.

    The finest axes are coarsened first. ``spacing`` itself is returned where it already fits.
    """
    if np.prod(extent / spacing) <= voxels:
        return spacing
    low, high = float(spacing.min()), float(spacing.max()) * 16
    while np.prod(extent / np.maximum(spacing, high)) > voxels:
        high *= 16
    for _ in range(60):  # bisection on a lower limit of all spacings: coarse axes keep theirs as long as possible
        middle = (low * high) ** 0.5
        if np.prod(extent / np.maximum(spacing, middle)) > voxels:
            low = middle
        else:
            high = middle
    coarsened: np.ndarray = np.maximum(spacing, high)
    return coarsened
