"""Boxes to cut an image to, found from the image alone: never from labels, which a test scan does not have.

A box is a tuple of (low, high) a spatial axis, (z, y, x), high exclusive. All functions take (C, D, H, W) arrays.
"""

from __future__ import annotations

import numpy as np

Box = tuple[tuple[int, int], ...]
AIR_HU = -1024.0  # nothing is less dense
RING = 0.6  # of what it encloses: lungs and bowel leave more
RINGING = 1e-4  # of the range: what resampling by splines, or storing with a slope, makes of a constant


def full_box(shape: tuple[int, ...]) -> Box:
    """The box that cuts nothing off a (D, H, W) grid."""
    return tuple((0, int(n)) for n in shape)


def as_slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(low, high) for low, high in box)


def foreground_mask(image: np.ndarray) -> np.ndarray:
    """Where any channel differs from its background value (the median of its eight corners): (D, H, W) bool.

    A skull-stripped scan has a constant background; on any other scan the mask is nearly the whole grid. Up to
    `RINGING` of the channel's range is no difference.
    """
    mask = np.zeros(image.shape[1:], dtype=bool)
    for channel in image:
        background = np.median(channel[np.ix_(*[[0, -1]] * channel.ndim)])
        ringing = RINGING * float(np.ptp(channel))
        mask |= (channel > background + ringing) | (channel < background - ringing)
    return mask


def mask_box(mask: np.ndarray, margin: tuple[int, ...] = (0, 0, 0)) -> Box:
    """The smallest box around a mask, widened by ``margin`` voxels an axis; the full box where the mask is empty."""
    if not mask.any():
        return full_box(mask.shape)
    box = []
    for axis, (size, extra) in enumerate(zip(mask.shape, margin, strict=True)):
        others = tuple(a for a in range(mask.ndim) if a != axis)
        where = np.flatnonzero(mask.any(axis=others))
        box.append((max(0, int(where[0]) - extra), min(size, int(where[-1]) + 1 + extra)))
    return tuple(box)


def nonzero_box(image: np.ndarray, spacing: tuple[float, ...], margin_mm: float = 0.0) -> Box:
    """The box of everything that is not the constant background."""
    return mask_box(foreground_mask(image), _voxels(margin_mm, spacing))


def _voxels(margin_mm: float, spacing: tuple[float, ...]) -> tuple[int, ...]:
    return tuple(int(np.ceil(margin_mm / s - 1e-6)) for s in spacing)


def _thin_object(image: np.ndarray, spacing: tuple[float, ...]) -> tuple[np.ndarray, tuple[int, ...]] | None:
    """The largest connected object brighter than air on a thinned grid, and every how many voxels that grid has one.

    Of several channels all that is such an object in one: PET beside CT shows hot spots alone. None where no channel
    shows one.
    """
    step = tuple(max(1, min(int(4.0 // s), n // 48)) for s, n in zip(spacing, image.shape[1:], strict=True))
    thin = image[(slice(None), *(slice(None, None, s) for s in step))]
    found = [mask for channel in thin if (mask := _object(channel)) is not None]
    return (np.logical_or.reduce(found), step) if found else None


def _object(channel: np.ndarray) -> np.ndarray | None:
    """The largest connected object of a (D, H, W) channel of some 4 mm that is brighter than air.

    The air level is not assumed (exported scans are often clipped: air may read -1024, -125 or 0): the channel,
    smoothed, is split by Otsu's method into three classes (air, fat, soft tissue), and the darkest is air; what a CT
    scanner pads its circle with (-2048, -3024) is no class of its own. An opening cuts thin bridges to the table. None
    for an image that Otsu cannot split.
    """
    from scipy import ndimage
    from skimage.filters import threshold_multiotsu

    smooth = ndimage.gaussian_filter(np.maximum(channel, AIR_HU), 0.5)
    try:
        air = threshold_multiotsu(smooth, classes=3, nbins=128)[0]
    except ValueError:  # fewer than three grey levels: nothing to tell apart
        return None
    opened = ndimage.binary_opening(smooth > air, structure=np.ones((1, 3, 3)), iterations=1)
    parts, count = ndimage.label(opened)
    if count == 0:
        return None
    return parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))


def body_box(image: np.ndarray, spacing: tuple[float, ...], margin_mm: float = 0.0) -> Box:
    """The box of the patient: the largest connected object brighter than air; the full box where none is found."""
    found = _thin_object(image, spacing)
    if found is None:
        return full_box(image.shape[1:])
    margin = _voxels(margin_mm, spacing)
    box = []
    for (low, high), s, n, extra in zip(mask_box(found[0]), found[1], image.shape[1:], margin, strict=True):
        box.append((max(0, (low - 1) * s + 1 - extra), min(n, high * s + extra)))
    return tuple(box)


def body_mask(image: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """The patient, (D, H, W) bool, as `body_box` finds it, as fine as the grid it is found on; everything where none
    is found. Air in the body is no part of it; but where the object is hardly more than a `RING`, which is fat so
    bright, or coils so near, that the rest reads like air, the slices' holes belong to it."""
    from scipy import ndimage

    found = _thin_object(image, spacing)
    if found is None:
        return np.ones(image.shape[1:], dtype=bool)
    mask, step = found
    filled = np.stack([ndimage.binary_fill_holes(plane) for plane in mask])
    if np.count_nonzero(mask) < RING * np.count_nonzero(filled):
        mask = filled
    return mask[np.ix_(*(np.arange(n) // s for n, s in zip(image.shape[1:], step, strict=True)))]


def centre_box(shape: tuple[int, ...], fraction: tuple[float, ...]) -> Box:
    """The middle ``fraction`` of each axis (the paper's MRI crop: 216 of 240 in plane, all slices)."""
    box = []
    for size, share in zip(shape, fraction, strict=True):
        kept = max(1, round(size * share))
        low = (size - kept) // 2
        box.append((low, low + kept))
    return tuple(box)
