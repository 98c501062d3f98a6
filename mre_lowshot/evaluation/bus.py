"""Measures used for lesions in breast ultrasound: 2D label maps only (paper, Table XII and its reference 46).

Shares, not percent: ``TP_share`` |S∩R|/|R|, ``FP_share`` |S\\R|/|R| (it may exceed 1), ``F1`` (the Dice coefficient)
and ``ARE``, the averaged radial error. They are named so that they are not taken for nnU-Net's TP and FP, which count
pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from mre_lowshot.errors import UserError

BUS_METRICS = ("F1", "ARE", "TP_share", "FP_share")
RAYS = 360  # one a degree
STEPS_A_PIXEL = 4  # along a ray


def averaged_radial_error(
    reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float] = (1.0, 1.0), rays: int = RAYS
) -> float:
    """ARE of two boolean masks (H, W) with spacing (y, x): the mean over rays from the reference's centre of gravity
    of |r_S - r_R| / r_R.

    r is where a ray leaves a mask for the last time; r_S is 0 where the ray does not meet the prediction at all, so
    that an empty prediction scores 1. Rays that do not meet the reference (its centre may lie outside it) are left
    out. NaN where the reference is empty.
    """
    if not reference.any():
        return math.nan
    scale = np.asarray(spacing, dtype=float)
    centre = np.argwhere(reference).mean(axis=0) * scale
    step = scale.min() / STEPS_A_PIXEL
    reach = math.hypot(*(np.asarray(reference.shape) * scale))
    radii = np.arange(step, reach + step, step)
    angles = np.arange(rays) * 2 * np.pi / rays
    direction = np.stack([np.sin(angles), np.cos(angles)])
    points = centre[:, None, None] + direction[:, :, None] * radii  # (2, rays, radii), mm
    pixels = np.rint(points / scale[:, None, None]).astype(np.intp)
    inside = ((pixels >= 0) & (pixels < np.asarray(reference.shape)[:, None, None])).all(axis=0)
    row, column = (np.where(inside, axis, 0) for axis in pixels)
    last_r, last_s = (((mask[row, column] & inside) * radii).max(axis=1) for mask in (reference, prediction))
    met = last_r > 0
    if not met.any():
        return math.nan
    return float((np.abs(last_s - last_r)[met] / last_r[met]).mean())


def bus_metrics(
    reference: np.ndarray,
    prediction: np.ndarray,
    labels: Mapping[str, int],
    spacing: Sequence[float],
    ignore_label: int | None = None,
) -> dict[int, dict[str, float]]:
    """`BUS_METRICS` of one case for each value in ``labels``; label maps (1, H, W), spacing (z, y, x).

    All are NaN where the reference lacks the structure. Pixels whose reference is ``ignore_label`` are taken out of
    both maps.

    Raises:
        UserError: the label map has more than one slice.
    """
    if reference.shape[0] != 1:
        raise UserError(
            f"profile bus measures 2D images, this label map has {reference.shape[0]} slices; "
            "use another --profile, or give one image a slice"
        )
    valid = np.ones(reference.shape[1:], bool) if ignore_label is None else reference[0] != ignore_label
    rows = {}
    for value in labels.values():
        r, s = (reference[0] == value) & valid, (prediction[0] == value) & valid
        n_r, n_s, both = (int(np.count_nonzero(m)) for m in (r, s, r & s))
        if not n_r:
            rows[value] = dict.fromkeys(BUS_METRICS, math.nan)
            continue
        rows[value] = {
            "F1": 2 * both / (n_r + n_s),
            "ARE": averaged_radial_error(r, s, spacing[1:]),
            "TP_share": both / n_r,
            "FP_share": (n_s - both) / n_r,
        }
    return rows
