"""Dice without a reference: expected from probabilities, or between two label maps."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from mre_lowshot.grid import IGNORE
from mre_lowshot.transfers import Array, as_tensor, counts_of, to_host


def most_probable(shares: Array) -> Tensor:
    """The labels (*size) int64 of the highest of class probabilities (K, *size); of equals, the lower one."""
    return as_tensor(shares).max(dim=0).indices  # on the CPU torch's argmax takes five times longer


def expected_dice(probabilities: Array, labels: Tensor | None = None) -> dict[int, float]:
    """Of each foreground class of (K, *size): 2 sum_{i labelled k} p_k / (sum_i p_k + number labelled k); NaN where
    both sums are below one voxel. ``labels`` are those of `most_probable`, where they are known."""
    shares = as_tensor(probabilities)
    classes = len(shares)
    labels = most_probable(shares) if labels is None else labels
    highest = shares.gather(0, labels[None]).flatten().double()
    inside = highest.new_zeros(classes).scatter_add_(0, labels.flatten(), highest)
    total = torch.stack([of_class.flatten().sum(dtype=torch.float64) for of_class in shares])
    found = torch.stack([inside, total, counts_of(labels, classes).double()])
    rows = zip(*to_host(found)[0].tolist(), strict=True)
    both = {k: (of_label, of_class + number) for k, (of_label, of_class, number) in enumerate(rows) if k}
    return {k: 2 * of_label / all_of_it if all_of_it >= 1 else math.nan for k, (of_label, all_of_it) in both.items()}


def agreement_of(one: Tensor, other: Tensor, known: Tensor, classes: int) -> dict[int, float]:
    """`label_agreement` of two label maps on a device, where ``known`` is true."""
    both = torch.where(one == other, one, IGNORE)
    counted = [counts_of(torch.where(known, labels, IGNORE).long(), classes) for labels in (both, one, other)]
    same, first, second = to_host(torch.stack(counted))[0].tolist()
    total = [a + b for a, b in zip(first, second, strict=True)]
    return {k: 2 * same[k] / total[k] if total[k] else math.nan for k in range(1, classes)}


def label_agreement(one: np.ndarray, other: np.ndarray, classes: int) -> dict[int, float]:
    """Dice of each foreground class between two label maps of one shape; NaN where neither has the class."""
    both = np.bincount(one[one == other].ravel(), minlength=classes)
    total = np.bincount(one.ravel(), minlength=classes) + np.bincount(other.ravel(), minlength=classes)
    return {k: float(2 * both[k] / total[k]) if total[k] else math.nan for k in range(1, classes)}
