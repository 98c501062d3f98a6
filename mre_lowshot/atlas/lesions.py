"""Lesions among organs (`Plan.lesions`): what the atlases contribute is anatomy without them.

The position of a lesion in a labelled scan does not predict its position in the next. So an atlas is used as if its
lesions were the tissue around them, and the predicted lesions do not guide registration.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt, find_objects

from mre_lowshot.transfers import Array, as_tensor

MIN_ORGANS = 1e-6  # probability of all other classes together, below which they count as equally likely


def without_lesions(label: np.ndarray, lesions: Sequence[int], spacing: Sequence[float]) -> np.ndarray:
    """A label map (*size) in which each voxel of the classes ``lesions`` has the label of the nearest voxel of another
    class; the map itself where it has none of them. A map of lesions alone becomes background.

    Args:
        label: label map.
        lesions: classes.
        spacing: mm, one value per axis.
    """
    mask = np.isin(label, lesions) if len(lesions) else np.zeros(0, dtype=bool)
    if not mask.any():
        return label
    if mask.all():
        return np.zeros_like(label)
    # the nearest voxel of another class touches the lesions' bounding box, if it does not lie inside
    (box,) = find_objects(mask.astype(np.uint8))
    around = tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in box)
    nearest = distance_transform_edt(mask[around], sampling=tuple(spacing), return_distances=False, return_indices=True)
    filled = label.copy()
    filled[around] = label[around][tuple(nearest)]
    return filled


def organ_shares(probabilities: Array, lesions: Sequence[int]) -> Array:
    """Class probabilities (K, *size) given that a voxel belongs to none of the classes ``lesions``: theirs are 0, the
    others sum to 1. Where the other classes have no probability, they have equal shares. The argument itself without
    lesions."""
    if not len(lesions):
        return probabilities
    given = as_tensor(probabilities)
    organs = [k for k in range(len(given)) if k not in lesions]
    shares = torch.zeros_like(given)
    total = torch.stack([given[k] for k in organs]).sum(dim=0)
    known = total > MIN_ORGANS
    for k in organs:
        shares[k] = torch.where(known, given[k] / total, 1 / len(organs))
    return shares
