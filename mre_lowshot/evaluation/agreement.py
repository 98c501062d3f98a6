"""Dice without a reference: expected from probabilities, or between two label maps."""

from __future__ import annotations

import math

import numpy as np


def expected_dice(probabilities: np.ndarray) -> dict[int, float]:
    """Of each foreground class of (K, *size): 2 sum_{i labelled k} p_k / (sum_i p_k + number labelled k); NaN where
    both sums are below one voxel."""
    labels = probabilities.argmax(axis=0)
    found = {}
    for k in range(1, len(probabilities)):
        mask = labels == k
        total = float(probabilities[k].sum(dtype=np.float64)) + np.count_nonzero(mask)
        inside = float(probabilities[k][mask].sum(dtype=np.float64))
        found[k] = 2 * inside / total if total >= 1 else math.nan
    return found


def label_agreement(one: np.ndarray, other: np.ndarray, classes: int) -> dict[int, float]:
    """Dice of each foreground class between two label maps of one shape; NaN where neither has the class."""
    both = np.bincount(one[one == other].ravel(), minlength=classes)
    total = np.bincount(one.ravel(), minlength=classes) + np.bincount(other.ravel(), minlength=classes)
    return {k: float(2 * both[k] / total[k]) if total[k] else math.nan for k in range(1, classes)}
