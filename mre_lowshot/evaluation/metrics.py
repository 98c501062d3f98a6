"""Agreement of a label map with its reference: overlap, 95th-percentile Hausdorff distance, surface Dice, volume.

Pure functions on integer label maps (D, H, W) on one grid, with spacing (z, y, x) in mm. An undefined value (a
structure that is in neither map) is NaN; means exclude NaN and report how many values were excluded.

Definitions (profiles) of HD95:

- ``default``: the larger of the two directed 95th percentiles between 6-connected surfaces (4-connected for a volume of
  one slice, all of which would otherwise be surface). Voxels at the image border are surface voxels.
- ``medpy``: the 95th percentile of the distances of both directions together, as in MedPy's ``hd95``. It does not
  detect false positives that are small compared with the structure.
- ``mrbrains18``: the evaluation of the MRBrainS18 challenge: in-plane edges (3x3 neighbourhood in the slice; the image
  border is not an edge), the larger directed percentile, and voxels with reference label 9 or 10 excluded from both
  maps.

The normalised surface Dice (NSD) has one definition, see `surfaces`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from mre_lowshot.evaluation.surfaces import bounding_box, default_tolerance, surface_dice

Profile = Literal["default", "medpy", "mrbrains18"]
PROFILES: tuple[Profile, ...] = get_args(Profile)
MRBRAINS18_IGNORED = (9, 10)  # infarction, other
COUNTS = ("TP", "FP", "FN", "TN", "n_pred", "n_ref")


def counts(reference: np.ndarray, prediction: np.ndarray, valid: np.ndarray | None = None) -> dict[str, int]:
    """Voxel counts TP, FP, FN, TN, n_pred and n_ref of two boolean masks, within ``valid`` if given."""
    total = int(reference.size)
    if valid is not None:
        reference, prediction, total = reference & valid, prediction & valid, int(np.count_nonzero(valid))
    tp = int(np.count_nonzero(reference & prediction))
    n_ref, n_pred = int(np.count_nonzero(reference)), int(np.count_nonzero(prediction))
    return {
        "TP": tp,
        "FP": n_pred - tp,
        "FN": n_ref - tp,
        "TN": total - n_pred - n_ref + tp,
        "n_pred": n_pred,
        "n_ref": n_ref,
    }


def dice(reference: np.ndarray, prediction: np.ndarray) -> float:
    """Dice coefficient 2|A∩B|/(|A|+|B|) of two boolean masks: NaN if both are empty, 0 if one is."""
    n = counts(reference, prediction)
    return _ratio(2 * n["TP"], n["n_ref"] + n["n_pred"])


def image_diagonal(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """Length of the image diagonal in mm, without axes of one voxel (a slice has no depth)."""
    return math.hypot(*(n * s for n, s in zip(shape, spacing, strict=True) if n > 1))


def hd95(
    reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float], profile: Profile = "default"
) -> float:
    """95th-percentile Hausdorff distance (HD95) of two boolean masks.

    Args:
        reference: boolean mask (D, H, W).
        prediction: boolean mask (D, H, W).
        spacing: voxel size (z, y, x) in mm.
        profile: definition of HD95, see the module docstring.

    Returns:
        HD95 in mm; NaN if a mask is empty.

    Raises:
        ValueError: ``profile`` is not one of `PROFILES`.
    """
    if profile not in PROFILES:
        raise ValueError(f"HD95 profile {profile!r} is not one of {', '.join(PROFILES)}")
    directed = surface_distances(reference, prediction, spacing, profile)
    if directed is None:
        return math.nan
    if profile == "medpy":
        return float(np.percentile(np.concatenate(directed), 95))
    return float(max(np.percentile(d, 95) for d in directed))


def surface_distances(
    reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float], profile: Profile = "default"
) -> tuple[np.ndarray, np.ndarray] | None:
    """Distances between the surfaces of two boolean masks, in both directions.

    A k-d tree over the surface voxels gives the same distances as a distance transform, and its speed does not depend
    on the bounding box, which a single distant voxel can extend to the entire image.

    Args:
        reference: boolean mask (D, H, W).
        prediction: boolean mask (D, H, W).
        spacing: voxel size (z, y, x) in mm.
        profile: definition of the surface, see the module docstring.

    Returns:
        Distances in mm from each reference surface voxel to the predicted surface, and from each predicted surface
        voxel to the reference surface; None if a mask has no surface.
    """
    from scipy.spatial import cKDTree

    box = bounding_box(reference | prediction)
    if box is None:
        return None
    scale = np.asarray(spacing, dtype=float)
    points = [np.argwhere(_surface(mask[box], profile)) * scale for mask in (reference, prediction)]
    if not all(len(p) for p in points):
        return None
    of_reference, of_prediction = points
    return cKDTree(of_prediction).query(of_reference)[0], cKDTree(of_reference).query(of_prediction)[0]


def case_metrics(
    reference: np.ndarray,
    prediction: np.ndarray,
    labels: Mapping[str, int],
    spacing: Sequence[float],
    ignore_label: int | None = None,
    profile: Profile = "default",
    tolerances: Mapping[int, float] | None = None,
) -> dict[int, dict[str, float]]:
    """All metrics of one case.

    Args:
        reference: integer label map (D, H, W).
        prediction: integer label map (D, H, W).
        labels: label name to value, without background.
        spacing: voxel size (z, y, x) in mm.
        ignore_label: voxels with this reference label are excluded from both maps (with profile ``mrbrains18`` also
            those with labels 9 and 10).
        profile: definition of HD95, see the module docstring.
        tolerances: of NSD by label value, in mm; a label that is not listed has `default_tolerance`.

    Returns:
        Label value to metrics: Dice, IoU; TP, FP, FN, TN, n_pred, n_ref in voxels; HD95 and HD95_diagonal in mm (the
        second is the image diagonal if only one map has the structure); NSD and its tolerance in mm, NSD_tolerance;
        volume_ref_ml and volume_pred_ml in ml.

    Raises:
        ValueError: the two maps differ in shape.
    """
    if reference.shape != prediction.shape:
        raise ValueError(f"reference {reference.shape} and prediction {prediction.shape} differ in shape")
    valid = _valid(reference, ignore_label, profile)
    common = default_tolerance(reference.shape, spacing)
    tolerance = dict.fromkeys(labels.values(), common) | dict(tolerances or {})
    return {
        value: _mask_metrics(reference == value, prediction == value, valid, spacing, profile, tolerance[value])
        for value in labels.values()
    }


def _mask_metrics(
    reference: np.ndarray,
    prediction: np.ndarray,
    valid: np.ndarray | None,
    spacing: Sequence[float],
    profile: Profile,
    tolerance: float,
) -> dict[str, float]:
    if valid is not None:
        reference, prediction = reference & valid, prediction & valid
    shape, total = reference.shape, int(reference.size if valid is None else np.count_nonzero(valid))
    box = bounding_box(reference | prediction) or tuple(slice(0, 1) for _ in shape)
    reference, prediction = reference[box], prediction[box]  # outside of it both are background
    n = counts(reference, prediction)
    n["TN"] += total - reference.size
    distance = hd95(reference, prediction, spacing, profile)
    one_empty = (n["n_ref"] == 0) != (n["n_pred"] == 0)
    voxel_volume = math.prod(spacing)  # mm³
    return {
        "Dice": _ratio(2 * n["TP"], n["n_ref"] + n["n_pred"]),
        "IoU": _ratio(n["TP"], n["TP"] + n["FP"] + n["FN"]),
        **n,
        "HD95": distance,
        "HD95_diagonal": image_diagonal(shape, spacing) if one_empty else distance,
        "NSD": surface_dice(reference, prediction, spacing, tolerance),
        "NSD_tolerance": tolerance,
        "volume_ref_ml": n["n_ref"] * voxel_volume / 1000,
        "volume_pred_ml": n["n_pred"] * voxel_volume / 1000,
    }


def _ratio(numerator: int, denominator: int) -> float:
    return numerator / denominator if denominator else math.nan


def _valid(reference: np.ndarray, ignore_label: int | None, profile: Profile) -> np.ndarray | None:
    ignored = [] if ignore_label is None else [ignore_label]
    if profile == "mrbrains18":
        ignored += MRBRAINS18_IGNORED
    return ~np.isin(reference, ignored) if ignored else None


def _surface(mask: np.ndarray, profile: Profile) -> np.ndarray:
    from scipy.ndimage import binary_erosion, generate_binary_structure

    if profile == "mrbrains18":
        edges: np.ndarray = mask & ~binary_erosion(mask, np.ones((1, 3, 3), bool), border_value=1)
        return edges
    neighbours = generate_binary_structure(mask.ndim, 1)
    for axis, size in enumerate(mask.shape):
        if size == 1:  # a slice has no depth: in-plane neighbours only
            neighbours &= np.expand_dims(
                np.array([False, True, False]), tuple(a for a in range(mask.ndim) if a != axis)
            )
    surface: np.ndarray = mask & ~binary_erosion(mask, neighbours, border_value=0)
    return surface
