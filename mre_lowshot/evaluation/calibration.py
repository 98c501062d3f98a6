"""Calibration: whether a voxel's probability is the frequency with which such labels are right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

BINS = 15
MARGIN = 3  # voxels around the structures; farther away every method is confident and right


class Calibration:
    """Counts over scans, in `BINS` equal bins of the winning class's probability.

    Counted are the annotated voxels in the bounding box of all foreground of reference and prediction, `MARGIN` voxels
    wider.
    """

    def __init__(self) -> None:
        self.voxels = np.zeros(BINS)
        self.confidence = np.zeros(BINS)
        self.correct = np.zeros(BINS)

    def add(self, probabilities: np.ndarray, reference: np.ndarray) -> None:
        """One scan: class probabilities (K, *size) and its reference labels (*size), negative where unannotated."""
        labels = probabilities.argmax(axis=0)
        found = np.argwhere((labels > 0) | (reference > 0))
        if not len(found):
            return
        low, high = np.maximum(found.min(axis=0) - MARGIN, 0), found.max(axis=0) + MARGIN + 1
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        annotated = reference[box] >= 0
        truth, labels = reference[box][annotated], labels[box][annotated]
        confidence = probabilities[(slice(None), *box)].max(axis=0)[annotated]
        bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
        self.voxels += np.bincount(bins, minlength=BINS)
        self.confidence += np.bincount(bins, weights=confidence, minlength=BINS)
        self.correct += np.bincount(bins, weights=labels == truth, minlength=BINS)

    def to_data(self) -> dict[str, Any]:
        """``voxels``; mean ``confidence`` and ``accuracy``; ``ece``, the expected calibration error (mean over voxels
        of a bin's |confidence - accuracy|); the ``bins``. None where no voxel was counted."""
        total = self.voxels.sum()
        if not total:
            return {"voxels": 0, "confidence": None, "accuracy": None, "ece": None, "bins": []}
        return {
            "voxels": int(total),
            "confidence": float(self.confidence.sum() / total),
            "accuracy": float(self.correct.sum() / total),
            "ece": float(np.abs(self.confidence - self.correct).sum() / total),
            "bins": [
                {"voxels": int(n), "confidence": float(s / n), "accuracy": float(r / n)}
                for n, s, r in zip(self.voxels, self.confidence, self.correct, strict=True)
                if n
            ],
        }


def describe(data: Mapping[str, Any]) -> str:
    """`Calibration.to_data` as one line of text."""
    if not data["voxels"]:
        return "probabilities: no structure to evaluate them on"
    return (
        f"probabilities around the structures: mean confidence {data['confidence']:.3f}, "
        f"accuracy {data['accuracy']:.3f}, "
        f"expected calibration error {data['ece']:.3f}"
    )
