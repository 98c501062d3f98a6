"""Intensities to network input: z-score (MRI, ultrasound, unknown) or HU clipping and scaling (CT)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import gaussian_filter

from mre_lowshot.config import ChannelNormalization
from mre_lowshot.errors import UserError
from mre_lowshot.grid import Box, as_slices
from mre_lowshot.preprocessing.cropping import foreground_mask

SMOOTHING = 0.7  # sigma in voxels, so that no single noisy voxel decides


def normalize(
    image: np.ndarray,
    schemes: tuple[ChannelNormalization, ...],
    inside: np.ndarray | None = None,
    *,
    contents: Sequence[Box] = (),
) -> np.ndarray:
    """Normalise a cropped (C, D, H, W) image channel by channel: a new float32 array (paper, IV-A).

    Args:
        image: the cropped image.
        schemes: of each channel.
        inside: (D, H, W) bool, the foreground for ``foreground_only``; None: the non-zero voxels.
        contents: of each channel, the box without constant padding of its own (`padding.own_contents`). Mean and
            deviation for z-scores are taken in it, and what lies outside becomes the mean.

    Raises:
        UserError: the channel count differs from the plan's, or a channel is constant and cannot be z-scored.
    """
    if len(image) != len(schemes):
        raise UserError(f"the image has {len(image)} channels, the plan {len(schemes)}; give the channels trained on")
    result = np.empty(image.shape, dtype=np.float32)
    if inside is None and any(s.foreground_only for s in schemes):
        inside = foreground_mask(image)
    for index, (channel, scheme) in enumerate(zip(image, schemes, strict=True)):
        if scheme.scheme == "clip":
            np.clip(channel, scheme.lower, scheme.upper, out=result[index], casting="unsafe")
            result[index] -= scheme.lower  # in place: copies of a large CT would not fit into a small memory
            result[index] /= scheme.width
            continue
        used = inside if scheme.foreground_only else None
        if contents:
            result[index] = _scored(channel, as_slices(contents[index]), index, used)
            continue
        values = channel[used] if used is not None and used.any() else channel
        # float64 sums: with values near a million, float32 sums lose the spread
        mean, deviation = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
        if not deviation > 0:
            raise UserError(f"channel {index} is constant ({mean:g}); it holds no image; export it again")
        np.subtract(channel, mean, out=result[index], casting="unsafe")
        result[index] /= deviation
    return result


def _scored(
    channel: np.ndarray, content: tuple[slice, ...], index: int, inside: np.ndarray | None = None
) -> np.ndarray:
    """The z-scores (D, H, W) of a channel, 0 outside ``content``; statistics in ``inside`` (D, H, W), where given."""
    own = channel[content].astype(np.float64)
    values = own if inside is None or not inside[content].any() else own[inside[content]]
    mean, deviation = float(values.mean()), float(values.std())
    if not deviation > 0:
        raise UserError(f"channel {index} is constant ({mean:g}); it holds no image; export it again")
    scored = np.zeros(channel.shape, dtype=np.float32)
    scored[content] = (own - mean) / deviation
    return scored


def smoothed(channel: np.ndarray) -> np.ndarray:
    """A channel (*size), slightly smoothed, for comparing class intensities; float32."""
    result: np.ndarray = gaussian_filter(np.asarray(channel, dtype=np.float32), SMOOTHING)
    return result
