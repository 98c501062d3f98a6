"""Constant padding around an image: border planes that hold one value per channel and no measurement."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mre_lowshot.config.plan import CropRule
from mre_lowshot.grid import Box, as_slices, full_box
from mre_lowshot.preprocessing.cropping import foreground_mask

MISSING = 0.02  # share of the foreground


def unpadded_box(image: np.ndarray) -> Box:
    """The box of a (C, D, H, W) image without constant padding.

    Padding: planes at the border of the volume in which each channel holds one and the same value on every side. A 2D
    image and a constant image keep their full box: the border of a 2D image is part of its layout.
    """
    shape, full = image.shape[1:], full_box(image.shape[1:])
    if 1 in shape:
        return full
    value = _padding_value(image)
    if value is None:
        return full
    box = [list(side) for side in full]
    for axis in range(3):
        while box[axis][0] < shape[axis] and _is_plane_of(image, box, axis, box[axis][0], value):
            box[axis][0] += 1
        if box[axis][0] == shape[axis]:  # a constant image
            return full
        while _is_plane_of(image, box, axis, box[axis][1] - 1, value):
            box[axis][1] -= 1
    return tuple((low, high) for low, high in box)


def own_contents(image: np.ndarray, *, stripped: bool = False) -> list[Box]:
    """For each channel of a cropped (C, D, H, W) image the box without the padding that only this channel has, as where
    it was acquired with fewer slices; empty where no channel has any.

    ``stripped``: the crop is that of a skull-stripped scan, whose background is constant in every channel. Planes are
    padding then only where more than `MISSING` of the foreground lies in them: channels differ by a few voxels at the
    edge of the brain.
    """
    if len(image) == 1:  # padding of the whole image is not in the crop
        return []
    full = full_box(image.shape[1:])
    found = [unpadded_box(channel[None]) for channel in image]
    if stripped:
        mask = foreground_mask(image)
        found = [full if _holds_all(mask, box) else box for box in found]
    return found if any(box != full for box in found) else []


def _holds_all(mask: np.ndarray, box: Box) -> bool:
    """Whether all but `MISSING` of the foreground (D, H, W) lies in the box."""
    return bool(np.count_nonzero(mask[as_slices(box)]) >= (1 - MISSING) * np.count_nonzero(mask))


def without_padding(image: np.ndarray, contents: Sequence[Box]) -> np.ndarray:
    """A (C, D, H, W) image with each channel's lowest value outside its box; the image itself without ``contents``."""
    if not contents:
        return image
    lowest = [channel[as_slices(box)].min() for channel, box in zip(image, contents, strict=True)]
    kept = [box_mask(box, image.shape[1:]) for box in contents]
    return np.stack([np.where(k, c, low) for k, c, low in zip(kept, image, lowest, strict=True)])


def box_mask(box: Box, shape: tuple[int, ...]) -> np.ndarray:
    """Which voxels of a grid lie in the box: bool of ``shape``."""
    mask = np.zeros(shape, dtype=bool)
    mask[as_slices(box)] = True
    return mask


def _padding_value(image: np.ndarray) -> np.ndarray | None:
    """The value (C) of the first border plane that is constant in every channel; None where there is none."""
    for axis in range(1, 4):
        for index in (0, -1):
            plane = np.take(image, index, axis=axis)
            value: np.ndarray = plane.reshape(len(image), -1)[:, 0]
            if (plane == value[:, None, None]).all():
                return value
    return None


def _is_plane_of(image: np.ndarray, box: list[list[int]], axis: int, index: int, value: np.ndarray) -> bool:
    """Whether the plane ``index`` along ``axis`` of the box holds ``value`` (C) everywhere."""
    where: list[slice | int] = [slice(low, high) for low, high in box]
    where[axis] = index
    plane = image[(slice(None), *where)]
    return bool((plane == value[:, None, None]).all())


def content_box(image: np.ndarray, *, crop: CropRule, ct: Sequence[bool] = ()) -> Box:
    """The box of a (C, D, H, W) image that a crop rule is applied to: without constant padding, except where the rule
    itself depends on the constant background.

    Kept: everything for ``given``, whose boxes count from the image's corner; the border of a CT (``ct``: which
    channels are) in its lowest value, which is clipped air and excluded by `cropping.body_box`; for ``nonzero`` the
    constant background of a skull-stripped scan, unless another constant value was padded around it.
    """
    full = full_box(image.shape[1:])
    box = full if crop == "given" else unpadded_box(image)
    if box == full:
        return full
    if any(ct):
        return full if _is_air(image, box, ct) else box
    if crop == "nonzero":
        return box if _has_other_background(image, box) else full
    return box


def _is_air(image: np.ndarray, box: Box, ct: Sequence[bool]) -> bool:
    """Whether the padding around ``box`` is the lowest value of every CT channel."""
    sides = zip(box, image.shape[1:], strict=True)
    axis, index = next((axis, 0 if low else -1) for axis, ((low, high), n) in enumerate(sides) if low or high < n)
    values = np.take(image, index, axis=axis + 1)[:, 0, 0]
    return all(float(v) <= float(c.min()) for v, c, is_ct in zip(values, image, ct, strict=False) if is_ct)


def _has_other_background(image: np.ndarray, box: Box) -> bool:
    """Whether the content of ``box`` has a constant background of its own: its eight corners hold one value, another
    than the padding's."""
    inner = image[(slice(None), *as_slices(box))]
    last = [max(1, n - 1) for n in inner.shape[1:]]
    corners = inner[:, :: last[0], :: last[1], :: last[2]].reshape(len(image), -1)
    constant = bool((corners == corners[:, :1]).all())
    return constant and bool((corners[:, 0] != _padding_value(image)).any())
