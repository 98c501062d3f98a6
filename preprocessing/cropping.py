"""Crop boxes, found from the image alone and never from labels, which a test scan does not have.

All functions take (C, D, H, W) arrays; boxes are (z, y, x) voxels.
"""

from __future__ import annotations

import numpy as np

from mre_lowshot.grid import Box, full_box, nominal_spacing
from mre_lowshot.preprocessing.outliers import limit_outliers

AIR_HU = -1024.0  # lowest value of air; scanners pad with less
# An object that is less than this share of what it encloses is a ring: lungs and bowel leave more.
RING = 0.6
COARSE_MM = 4.0  # of the grid that the body is found on
RINGING = 1e-4  # share of the range by which spline resampling, or storing with a slope, changes a constant


def foreground_mask(image: np.ndarray) -> np.ndarray:
    """Where any channel differs from its background value (the median of its eight corners): (D, H, W) bool.

    A skull-stripped scan has a constant background; on any other scan the mask is nearly the whole grid. Differences up
    to `RINGING` of the channel's range are ignored.
    """
    mask = np.zeros(image.shape[1:], dtype=bool)
    for channel in image:
        background = np.median(channel[np.ix_(*[[0, -1]] * channel.ndim)])
        ringing = RINGING * float(np.ptp(channel))
        mask |= (channel > background + ringing) | (channel < background - ringing)
    return mask


def mask_box(mask: np.ndarray, margin: tuple[int, ...] = (0, 0, 0)) -> Box:
    """The smallest box around a mask, widened by ``margin`` voxels per axis; the full box where the mask is empty."""
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


def _coarse_object(image: np.ndarray, spacing: tuple[float, ...]) -> tuple[np.ndarray, tuple[int, ...]] | None:
    """The largest connected object brighter than air on a coarse grid, and the grid's step in voxels.

    With several channels the union of their objects: PET beside CT shows hot spots only. None where no channel has one.
    """
    step = tuple(
        max(1, min(int(COARSE_MM // s), n // 48))
        for s, n in zip(nominal_spacing(spacing), image.shape[1:], strict=True)
    )
    coarse = limit_outliers(image[(slice(None), *(slice(None, None, s) for s in step))])
    found = [mask for channel in coarse if (mask := _object(channel)) is not None]
    return (np.logical_or.reduce(found), step) if found else None


def _object(channel: np.ndarray) -> np.ndarray | None:
    """The largest connected object brighter than air in a (D, H, W) channel of about 4 mm; None where Otsu's method
    cannot split the channel.

    No air level is assumed (exported scans are often clipped: air may read -1024, -125 or 0). The smoothed channel is
    split into three classes (air, fat, soft tissue), and the darkest is air; the padding around a CT's field of view
    (-2048, -3024) is not a separate class. An opening cuts thin bridges to the table.
    """
    from scipy import ndimage
    from skimage.filters import threshold_multiotsu

    smooth = ndimage.gaussian_filter(np.maximum(channel, AIR_HU), 0.5)
    try:
        air = threshold_multiotsu(smooth, classes=3, nbins=128)[0]
    except ValueError:  # fewer than three grey levels
        return None
    opened = ndimage.binary_opening(smooth > air, structure=np.ones((1, 3, 3)), iterations=1)
    parts, count = ndimage.label(opened)
    if count == 0:
        return None
    largest: np.ndarray = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    return largest


def body_box(image: np.ndarray, spacing: tuple[float, ...], margin_mm: float = 0.0) -> Box:
    """The box of the patient: the largest connected object brighter than air; the full box where none is found."""
    found = _coarse_object(image, spacing)
    if found is None:
        return full_box(image.shape[1:])
    margin = _voxels(margin_mm, spacing)
    box = []
    for (low, high), s, n, extra in zip(mask_box(found[0]), found[1], image.shape[1:], margin, strict=True):
        box.append((max(0, (low - 1) * s + 1 - extra), min(n, high * s + extra)))
    return tuple(box)


def body_mask(image: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """The patient, (D, H, W) bool, on the coarse grid of `body_box`; everything where none is found.

    Air inside the body is excluded. But where the object is hardly more than a `RING` (fat so bright, or coils so near,
    that the rest reads like air), the slices' holes are filled.
    """
    from scipy import ndimage

    found = _coarse_object(image, spacing)
    if found is None:
        return np.ones(image.shape[1:], dtype=bool)
    mask, step = found
    filled = np.stack([ndimage.binary_fill_holes(plane) for plane in mask])
    if np.count_nonzero(mask) < RING * np.count_nonzero(filled):
        mask = filled
    resized: np.ndarray = mask[np.ix_(*(np.arange(n) // s for n, s in zip(image.shape[1:], step, strict=True)))]
    return resized


def centre_box(shape: tuple[int, ...], fraction: tuple[float, ...]) -> Box:
    """The middle ``fraction`` of each axis (the paper's MRI crop: 216 of 240 in plane, all slices)."""
    box = []
    for size, share in zip(shape, fraction, strict=True):
        kept = max(1, round(size * share))
        low = (size - kept) // 2
        box.append((low, low + kept))
    return tuple(box)
