"""Metrics for lesions in breast ultrasound, for 2D label maps only (paper, Table XII and its reference 46).

For a prediction S and a reference R: ``TP_share`` |S∩R|/|R|, ``FP_share`` |S\\R|/|R| (it may exceed 1), ``F1`` (the
Dice coefficient) and ``ARE``, the averaged radial error. All are fractions, not percent. The suffix distinguishes the
first two from TP and FP, which count pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from mre_lowshot.errors import UserError

BUS_METRICS = ("F1", "ARE", "TP_share", "FP_share")
RAYS = 360  # one per degree
STEPS_PER_PIXEL = 4  # along a ray


def averaged_radial_error(
    reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float] = (1.0, 1.0), rays: int = RAYS
) -> float:
    """Averaged radial error (ARE): the mean over rays of |r_S - r_R| / r_R.

    Rays start at the centre of gravity of the reference. r_R and r_S are the distances at which a ray leaves the
    reference and the prediction for the last time; r_S is 0 where the ray does not intersect the prediction, so that an
    empty prediction scores 1. Rays that do not intersect the reference are excluded (its centre of gravity may lie
    outside of it).

    Args:
        reference: boolean mask (H, W).
        prediction: boolean mask (H, W).
        spacing: pixel size (y, x); the result does not depend on its unit.
        rays: number of rays, at equal angles.

    Returns:
        ARE as a fraction; NaN for an empty reference.
    """
    if not reference.any():
        return math.nan
    scale = np.asarray(spacing, dtype=float)
    centre = np.argwhere(reference).mean(axis=0) * scale
    step = scale.min() / STEPS_PER_PIXEL
    reach = math.hypot(*(np.asarray(reference.shape) * scale))
    radii = np.arange(step, reach + step, step)
    angles = np.arange(rays) * 2 * np.pi / rays
    direction = np.stack([np.sin(angles), np.cos(angles)])
    points = centre[:, None, None] + direction[:, :, None] * radii  # (2, rays, radii), mm
    pixels = np.rint(points / scale[:, None, None]).astype(np.intp)
    inside = ((pixels >= 0) & (pixels < np.asarray(reference.shape)[:, None, None])).all(axis=0)
    row, column = (np.where(inside, axis, 0) for axis in pixels)
    last_r, last_s = (((mask[row, column] & inside) * radii).max(axis=1) for mask in (reference, prediction))
    intersected = last_r > 0
    if not intersected.any():
        return math.nan
    return float((np.abs(last_s - last_r)[intersected] / last_r[intersected]).mean())


def bus_metrics(
    reference: np.ndarray,
    prediction: np.ndarray,
    labels: Mapping[str, int],
    spacing: Sequence[float],
    ignore_label: int | None = None,
) -> dict[int, dict[str, float]]:
    """`BUS_METRICS` of one case.

    Args:
        reference: integer label map (1, H, W).
        prediction: integer label map (1, H, W).
        labels: label name to value, without background.
        spacing: voxel size (z, y, x).
        ignore_label: pixels with this reference label are excluded from both maps.

    Returns:
        Label value to metrics, all NaN where the reference does not contain the structure.

    Raises:
        UserError: the label map has more than one slice.
    """
    if reference.shape[0] != 1:
        raise UserError(
            f"profile bus measures 2D images, this label map has {reference.shape[0]} slices; "
            "use another --profile, or save each slice as an image"
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
