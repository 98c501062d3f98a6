"""Voxel grids: positions, coordinate maps, interpolation and resizing, in one place.

Two conventions. Coordinate maps run from -1 at the centre of the first voxel to 1 at the centre of the last one.
Resizing aligns the grids' outer edges (half-pixel convention: voxel centres at (i + 0.5) * old / new - 0.5) and repeats
edge voxels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product

import numpy as np

Box = tuple[tuple[int, int], ...]
"""(low, high) voxel indices along each axis, high exclusive."""

IGNORE = -1  # label of voxels that are not annotated, or that lie outside a volume
MIXED = -1  # of `_cell_labels`: the corners of a cell have different labels


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


def sample_shares(label: np.ndarray, positions: np.ndarray, values: int) -> np.ndarray:
    """Shares of the label values 0 to ``values`` - 1 at voxel ``positions`` (axes, *patch): (values, *patch) float32.

    The same as `sample_image` of each value's indicator, to rounding. Only where the voxels around a position have
    different labels is anything interpolated, which is in a small part of a volume.
    """
    patch, axes = positions.shape[1:], label.ndim
    last = np.asarray(label.shape) - 1
    strides = np.asarray([int(np.prod(label.shape[axis + 1 :])) for axis in range(axes)])
    corners = np.array(list(product((0, 1), repeat=axes)))
    cells = _cell_labels(label).ravel()
    flat, shares = label.ravel(), np.zeros((values, positions[0].size), dtype=np.float32)
    at = [np.clip(line, 0, n).ravel().astype(np.float32) for line, n in zip(positions, last, strict=True)]
    low = [np.minimum(line.astype(np.intp), max(n - 1, 0)) for line, n in zip(at, last, strict=True)]
    corner = sum(line * stride for line, stride in zip(low, strides, strict=True))
    found = cells[corner]
    whole = np.flatnonzero(found != MIXED)
    shares[found[whole], whole] = 1
    mixed = np.flatnonzero(found == MIXED)
    share = [line[mixed] - first[mixed].astype(np.float32) for line, first in zip(at, low, strict=True)]
    for offset in corners:
        if np.any(offset > last):  # an axis of one voxel
            continue
        weight = np.ones(len(mixed), dtype=np.float32)
        for its, side in zip(share, offset, strict=True):
            weight *= its if side else 1 - its
        shares[flat[corner[mixed] + int(offset @ strides)], mixed] += weight  # each voxel once: no index is repeated
    return shares.reshape(values, *patch)


def _cell_labels(label: np.ndarray) -> np.ndarray:
    """The label of the 2 x ... x 2 voxels from each voxel on (fewer at the far edges), `MIXED` where they differ."""
    low, high = label, label
    for axis in range(label.ndim):
        after = np.minimum(np.arange(label.shape[axis]) + 1, label.shape[axis] - 1)
        low = np.minimum(low, low.take(after, axis=axis))
        high = np.maximum(high, high.take(after, axis=axis))
    return np.where(low == high, label, MIXED)


def outside_volume(positions: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Which voxel ``positions`` (axes, *patch) lie outside a volume of ``size``: (*patch) bool."""
    last = np.asarray(size).reshape(-1, *[1] * (positions.ndim - 1)) - 1
    outside: np.ndarray = np.any((positions < 0) | (positions > last), axis=0)
    return outside


def _clipped(whole: np.ndarray, size: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    return tuple(np.clip(axis, 0, n - 1).astype(np.intp) for axis, n in zip(whole, size, strict=True))


def resize_image(image: np.ndarray, size: tuple[int, ...], order: int = 3) -> np.ndarray:
    """Resize an image (C, *size) with splines of ``order``; smoothed first along axes that shrink. Float32."""
    from skimage.transform import resize

    if tuple(image.shape[1:]) == tuple(size):
        return image.astype(np.float32, copy=False)
    shrinks = any(new < old for new, old in zip(size, image.shape[1:], strict=True))
    channels = [
        resize(c, size, order=order, mode="edge", anti_aliasing=shrinks, preserve_range=True).astype(np.float32)
        for c in image
    ]
    return np.stack(channels)


def resize_linear(channel: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Resize one map (D, H, W) trilinearly, without smoothing. Float32."""
    import torch
    from torch.nn import functional as F

    if tuple(channel.shape) == tuple(size):
        return channel.astype(np.float32, copy=False)
    tensor = torch.from_numpy(np.ascontiguousarray(channel, dtype=np.float32))[None, None]
    return F.interpolate(tensor, size=size, mode="trilinear", align_corners=False)[0, 0].numpy()


def argmax_resized(maps: Iterable[np.ndarray], size: tuple[int, ...], floor: float | None = None) -> np.ndarray:
    """Argmax over maps that are resized one by one: one map (D, H, W) per class in, a label map of ``size`` out.

    At most two maps of the output size exist at a time, whatever the number of classes. Ties go to the lower label.

    Args:
        maps: of each class.
        size: of the label map.
        floor: a value that the highest map exceeds everywhere (for probabilities of K classes anything below 1/K).
            Each map but the first is then resized only in the box of its values above ``floor``; the labels are the
            same.
    """
    best: np.ndarray | None = None
    labels = np.zeros(size, dtype=np.int16)
    for label, channel in enumerate(maps):
        if best is None:
            resized = resize_linear(channel, size)
            best = resized.copy() if np.shares_memory(resized, channel) else resized
            continue
        box = full_box(size) if floor is None else _box_above(channel, size, floor)
        if box is None:
            continue
        resized, inside = _resize_box(channel, size, box), as_slices(box)
        for plane, its, highest in zip(labels[inside], resized, best[inside], strict=True):  # no third map of that size
            plane[its > highest] = label
            np.maximum(highest, its, out=highest)
    return labels


def _box_above(channel: np.ndarray, size: tuple[int, ...], floor: float) -> Box | None:
    """The box of the resized grid outside which no resized value exceeds ``floor``; None where none does at all."""
    above: np.ndarray = channel > floor
    if not above.any():
        return None
    flat: np.ndarray = np.any(above, axis=0)  # one pass over the whole map, the others over one plane
    lines = (above.any(axis=(1, 2)), flat.any(axis=1), flat.any(axis=0))
    box = []
    for line, old, new in zip(lines, channel.shape, size, strict=True):
        used, scale = np.flatnonzero(line), new / old
        # voxel i contributes to the resized voxels between the centres of voxels i - 1 and i + 1
        low, high = (used[0] - 0.5) * scale - 0.5, (used[-1] + 1.5) * scale - 0.5
        box.append((max(0, int(np.floor(low))), min(new, int(np.ceil(high)) + 1)))
    return tuple(box)


def _resize_box(channel: np.ndarray, size: tuple[int, ...], box: Box) -> np.ndarray:
    """`resize_linear`, computed in ``box`` of the resized grid only."""
    import torch

    if box == full_box(size):
        return resize_linear(channel, size)
    sources = []
    for (low, high), old, new in zip(box, channel.shape, size, strict=True):
        sources.append(((torch.arange(low, high, dtype=torch.float64) + 0.5) * (old / new) - 0.5).clamp_(0, old - 1))
    corner = [int(at[0]) for at in sources]
    used = tuple(slice(low, int(at[-1]) + 2) for low, at in zip(corner, sources, strict=True))
    out = torch.from_numpy(np.ascontiguousarray(channel[used], dtype=np.float32))
    for axis in reversed(range(out.ndim)):  # the slowest axis last: whole planes are mixed there
        first = sources[axis].floor()
        share = (sources[axis] - first).to(torch.float32).reshape(-1, *[1] * (out.ndim - 1 - axis))
        index = first.to(torch.int64) - corner[axis]
        second = (index + 1).clamp_(max=out.shape[axis] - 1)
        out = torch.lerp(out.index_select(axis, index), out.index_select(axis, second), share)
    return out.numpy()


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
