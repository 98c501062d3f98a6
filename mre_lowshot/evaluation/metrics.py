"""How well a label map agrees with its reference: overlap, 95th-percentile surface distance, volume.

Pure functions on integer label maps (D, H, W) with spacing (z, y, x) in mm, on the grid they are given in. What is
undefined (a structure that neither map holds) is NaN, never a number; whoever takes means leaves it out and says so.

Profiles of HD95:

- ``default``: the larger of the two directed 95th percentiles between 6-connected surfaces (4-connected where the
  volume is one slice, which would otherwise be all surface). A voxel at the image's edge is surface.
- ``medpy``: the 95th percentile of both directions' distances pooled, as MedPy's ``hd95``. It hides false positives
  that are small beside the structure.
- ``mrbrains18``: the MRBrainS18 challenge's way: in-plane edges (3x3 neighbourhood in the slice, the image's edge is
  no edge), the larger directed percentile, and voxels whose reference is 9 or 10 taken out of both maps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np

Profile = Literal["default", "medpy", "mrbrains18"]
PROFILES: tuple[Profile, ...] = get_args(Profile)
MRBRAINS18_IGNORED = (9, 10)  # infarction, other
COUNTS = ("TP", "FP", "FN", "TN", "n_pred", "n_ref")


def counts(reference: np.ndarray, prediction: np.ndarray, valid: np.ndarray | None = None) -> dict[str, int]:
    """Voxels TP, FP, FN, TN, n_pred and n_ref of two boolean masks, inside ``valid`` where one is given."""
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
    """Dice 2|A∩B|/(|A|+|B|) of two boolean masks: NaN when both are empty, 0 when one is."""
    n = counts(reference, prediction)
    return _ratio(2 * n["TP"], n["n_ref"] + n["n_pred"])


def image_diagonal(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """The length in mm of the image's diagonal, its one-voxel axes left out (a slice has no depth)."""
    return math.hypot(*(n * s for n, s in zip(shape, spacing, strict=True) if n > 1))


def hd95(
    reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float], profile: Profile = "default"
) -> float:
    """The 95th-percentile Hausdorff distance in mm of two boolean masks (D, H, W); NaN when one of them is empty.

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
    """Distances in mm from each reference surface voxel to the prediction's surface, and the other way round.

    None when a mask has no surface. A k-d tree over surface voxels gives the same distances as a distance transform
    and, unlike it, does not slow down when one stray voxel stretches the joint bounding box over the whole image.
    """
    from scipy.spatial import cKDTree

    box = _bounding_box(reference | prediction)
    if box is None:
        return None
    scale = np.asarray(spacing, dtype=float)
    points = [np.argwhere(_surface(mask[box], profile)) * scale for mask in (reference, prediction)]
    if not all(len(p) for p in points):
        return None
    here, there = points
    return cKDTree(there).query(here)[0], cKDTree(here).query(there)[0]


def case_metrics(
    reference: np.ndarray,
    prediction: np.ndarray,
    labels: Mapping[str, int],
    spacing: Sequence[float],
    ignore_label: int | None = None,
    profile: Profile = "default",
) -> dict[int, dict[str, float]]:
    """All metrics of one case, for each value in ``labels`` (name to value, without background).

    Voxels whose reference is ``ignore_label`` are taken out of both maps (with profile ``mrbrains18`` those labelled
    9 or 10 too). Each label gets Dice, IoU, TP, FP, FN, TN, n_pred, n_ref (voxels), HD95 and HD95_diagonal (mm; the
    second takes the image's diagonal where one map lacks the structure), volume_ref_ml and volume_pred_ml.

    Raises:
        ValueError: the two maps differ in shape.
    """
    if reference.shape != prediction.shape:
        raise ValueError(f"reference {reference.shape} and prediction {prediction.shape} differ in shape")
    valid = _valid(reference, ignore_label, profile)
    return {
        value: _mask_metrics(reference == value, prediction == value, valid, spacing, profile)
        for value in labels.values()
    }


def _mask_metrics(
    reference: np.ndarray,
    prediction: np.ndarray,
    valid: np.ndarray | None,
    spacing: Sequence[float],
    profile: Profile,
) -> dict[str, float]:
    if valid is not None:
        reference, prediction = reference & valid, prediction & valid
    n = counts(reference, prediction, valid)
    distance = hd95(reference, prediction, spacing, profile)
    one_empty = (n["n_ref"] == 0) != (n["n_pred"] == 0)
    voxel = math.prod(spacing)  # mm³
    return {
        "Dice": _ratio(2 * n["TP"], n["n_ref"] + n["n_pred"]),
        "IoU": _ratio(n["TP"], n["TP"] + n["FP"] + n["FN"]),
        **n,
        "HD95": distance,
        "HD95_diagonal": image_diagonal(reference.shape, spacing) if one_empty else distance,
        "volume_ref_ml": n["n_ref"] * voxel / 1000,
        "volume_pred_ml": n["n_pred"] * voxel / 1000,
    }


def _ratio(above: int, below: int) -> float:
    return above / below if below else math.nan


def _valid(reference: np.ndarray, ignore_label: int | None, profile: Profile) -> np.ndarray | None:
    ignored = [] if ignore_label is None else [ignore_label]
    if profile == "mrbrains18":
        ignored += MRBRAINS18_IGNORED
    return ~np.isin(reference, ignored) if ignored else None


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...] | None:
    """The box around the mask's voxels and one voxel of margin, where the image has one."""
    box = []
    for axis in range(mask.ndim):
        found = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        if not len(found):
            return None
        box.append(slice(max(int(found[0]) - 1, 0), int(found[-1]) + 2))
    return tuple(box)


def _surface(mask: np.ndarray, profile: Profile) -> np.ndarray:
    from scipy.ndimage import binary_erosion, generate_binary_structure

    if profile == "mrbrains18":
        return mask & ~binary_erosion(mask, np.ones((1, 3, 3), bool), border_value=1)
    neighbours = generate_binary_structure(mask.ndim, 1)
    for axis, size in enumerate(mask.shape):
        if size == 1:  # no depth: neighbours within the slice only
            neighbours &= np.expand_dims(
                np.array([False, True, False]), tuple(a for a in range(mask.ndim) if a != axis)
            )
    return mask & ~binary_erosion(mask, neighbours, border_value=0)
