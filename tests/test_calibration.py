"""Whether probabilities mean what they say: the counts against a plain loop, and what is told of them."""

from __future__ import annotations

import numpy as np
import pytest

from mre_lowshot.evaluation.calibration import BINS, MARGIN, Calibration, in_words


def scan(seed: int, size=(9, 10, 11), classes=3):
    rng = np.random.default_rng(seed)
    p = rng.random((classes, *size)) ** 2
    p[0] += 2
    p[1, 4:6, 4:6, 4:7] += 9
    reference = np.zeros(size, np.int16)
    reference[4:6, 4:6, 5:8] = 1
    reference[4, 4, 5] = -1
    return (p / p.sum(axis=0)).astype(np.float32), reference


def test_counts_are_those_of_a_plain_loop():
    made = Calibration()
    seen = []
    for seed in (0, 1):
        p, reference = scan(seed)
        made.add(p, reference)
        labels = p.argmax(axis=0)
        inside = [i for i in np.ndindex(*reference.shape) if labels[i] > 0 or reference[i] > 0]
        low, high = np.min(inside, axis=0) - MARGIN, np.max(inside, axis=0) + MARGIN
        for i in np.ndindex(*reference.shape):
            if (np.array(i) >= low).all() and (np.array(i) <= high).all() and reference[i] >= 0:
                seen.append((float(p[(labels[i], *i)]), labels[i] == reference[i]))
    data = made.to_data()
    sure, right = map(np.array, zip(*seen, strict=True))
    assert data["voxels"] == len(seen)
    assert data["confidence"] == pytest.approx(sure.mean(), rel=1e-5)
    assert data["accuracy"] == pytest.approx(right.mean())
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    gaps = [abs(sure[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in set(bins.tolist())]
    assert data["ece"] == pytest.approx(sum(gaps), abs=1e-6)
    assert f"{data['ece']:.3f}" in in_words(data)


def test_nothing_to_judge_is_said():
    made = Calibration()
    p = np.zeros((2, 3, 3, 3), np.float32)
    p[0] = 1
    made.add(p, np.zeros((3, 3, 3), np.int16))
    assert made.to_data()["ece"] is None
    assert "no structure" in in_words(made.to_data())
