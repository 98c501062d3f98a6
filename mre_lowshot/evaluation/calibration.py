"""Whether the probability that is given to a voxel's label is how often such labels are right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

BINS = 15
MARGIN = 3  # voxels around the structures: far from them every method is sure and right, and the mean says nothing


class Calibration:
    """Counts over scans: how sure, and how often right, in `BINS` equal steps of the winning class's probability.

    Looked at are the voxels of a known reference within the box, `MARGIN` voxels wider, of all that the reference or
    the prediction calls a structure.
    """

    def __init__(self) -> None:
        self.voxels = np.zeros(BINS)
        self.sure = np.zeros(BINS)
        self.right = np.zeros(BINS)

    def add(self, probabilities: np.ndarray, reference: np.ndarray) -> None:
        """One scan: class probabilities (K, *size) and its reference labels (*size), negative where unknown."""
        labels = probabilities.argmax(axis=0)
        found = np.argwhere((labels > 0) | (reference > 0))
        if not len(found):
            return
        low, high = np.maximum(found.min(axis=0) - MARGIN, 0), found.max(axis=0) + MARGIN + 1
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        known = reference[box] >= 0
        truth, labels = reference[box][known], labels[box][known]
        sure = probabilities[(slice(None), *box)].max(axis=0)[known]
        bins = np.minimum((sure * BINS).astype(int), BINS - 1)
        self.voxels += np.bincount(bins, minlength=BINS)
        self.sure += np.bincount(bins, weights=sure, minlength=BINS)
        self.right += np.bincount(bins, weights=labels == truth, minlength=BINS)

    def to_data(self) -> dict[str, Any]:
        """``voxels``; mean ``confidence`` and ``accuracy``; ``ece``, the expected calibration error (mean over voxels
        of a bin's |confidence - accuracy|); the ``bins``. None where no voxel was looked at."""
        total = self.voxels.sum()
        if not total:
            return {"voxels": 0, "confidence": None, "accuracy": None, "ece": None, "bins": []}
        return {
            "voxels": int(total),
            "confidence": float(self.sure.sum() / total),
            "accuracy": float(self.right.sum() / total),
            "ece": float(np.abs(self.sure - self.right).sum() / total),
            "bins": [
                {"voxels": int(n), "confidence": float(s / n), "accuracy": float(r / n)}
                for n, s, r in zip(self.voxels, self.sure, self.right, strict=True)
                if n
            ],
        }


def in_words(data: Mapping[str, Any]) -> str:
    """`Calibration.to_data` in a line."""
    if not data["voxels"]:
        return "probabilities: no structure to judge them on"
    return (
        f"probabilities around the structures: {data['confidence']:.3f} sure, {data['accuracy']:.3f} right, "
        f"expected calibration error {data['ece']:.3f}"
    )
