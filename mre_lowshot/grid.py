"""Resizing between the native and the planned grid, voxel centres aligned (half-pixel convention), edges repeated."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def resize_image(image: np.ndarray, size: tuple[int, ...], order: int = 3) -> np.ndarray:
    """Resize (C, D, H, W) to ``size`` with splines of ``order``; axes made smaller are smoothed first."""
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
    """Resize one (D, H, W) map trilinearly, without smoothing; float32."""
    import torch
    from torch.nn import functional as F

    if tuple(channel.shape) == tuple(size):
        return channel.astype(np.float32, copy=False)
    tensor = torch.from_numpy(np.ascontiguousarray(channel, dtype=np.float32))[None, None]
    return F.interpolate(tensor, size=size, mode="trilinear", align_corners=False)[0, 0].numpy()


def argmax_resized(maps: Iterable[np.ndarray], size: tuple[int, ...]) -> np.ndarray:
    """The label of the largest map at each voxel after resizing: one (D, H, W) map a class, consumed one by one.

    Only two maps of the output size exist at a time, however many classes there are. Ties go to the lower label.
    """
    best: np.ndarray | None = None
    labels = np.zeros(size, dtype=np.int16)
    for label, channel in enumerate(maps):
        resized = resize_linear(channel, size)
        if best is None:
            best = resized.copy() if np.shares_memory(resized, channel) else resized
            continue
        for plane, its, highest in zip(labels, resized, best, strict=True):  # by planes: no further map of that size
            plane[its > highest] = label
            np.maximum(highest, its, out=highest)
    return labels


def resize_labels(labels: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Resize a (D, H, W) label map by linear interpolation of each label's indicator (nnU-Net's order 1)."""
    if tuple(labels.shape) == tuple(size):
        return labels
    values = np.unique(labels)
    winners = argmax_resized(((labels == v).astype(np.float32) for v in values), size)
    return values[winners]


def spacing_with(voxels: int, spacing: np.ndarray, extent: np.ndarray) -> np.ndarray:
    """``spacing`` made coarser, the finest axes first, until ``extent`` (both in mm, an axis each) holds at most that
    many ``voxels``; itself where it does."""
    if np.prod(extent / spacing) <= voxels:
        return spacing
    low, high = float(spacing.min()), float(spacing.max()) * 16
    while np.prod(extent / np.maximum(spacing, high)) > voxels:
        high *= 16
    for _ in range(60):  # bisection on a floor under all spacings; a coarse axis is left alone while it can be
        middle = (low * high) ** 0.5
        if np.prod(extent / np.maximum(spacing, middle)) > voxels:
            low = middle
        else:
            high = middle
    return np.maximum(spacing, high)
