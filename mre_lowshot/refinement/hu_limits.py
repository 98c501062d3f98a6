"""Lower HU limits: fat and air belong to no organ."""

from __future__ import annotations

from collections.abc import Sequence

from mre_lowshot.config import MinHu
from mre_lowshot.filters import gaussian_smoothed
from mre_lowshot.preprocessing.normalization import SMOOTHING
from mre_lowshot.transfers import Array, as_tensor


def apply_min_hu(probabilities: Array, image: Array, limits: Sequence[MinHu]) -> None:
    """Remove each class from the voxels below its limit, and normalise; in place.

    Args:
        probabilities: (K, *size). Where no class is left, background becomes certain.
        image: (C, *size), preprocessed, on the same device. It is smoothed as by `normalization.smoothed`.
        limits: in the units of ``image`` (`inference.ensemble.ensemble_hu_limits`).
    """
    if not limits:
        return
    p, channels = as_tensor(probabilities), as_tensor(image)
    used = {limit.channel for limit in limits}
    grey = {channel: gaussian_smoothed(channels[channel].float(), SMOOTHING, p.ndim - 1) for channel in used}
    for limit in limits:
        p[limit.label].masked_fill_(grey[limit.channel] < limit.value, 0)
    total = p.sum(dim=0)
    empty = total == 0
    p[0].masked_fill_(empty, 1)
    p /= total.masked_fill_(empty, 1)
