"""Calibration of probabilities: the counts against a plain loop, their description, and temperature scaling of
overconfident ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared_scans import prepared_scan

from mre_lowshot.data.geometry import Geometry
from mre_lowshot.evaluation.agreement import expected_dice
from mre_lowshot.evaluation.calibration import Calibration, describe
from mre_lowshot.inference.export import RefinedScan
from mre_lowshot.inference.quality import Quality
from mre_lowshot.refinement.calibration import find_temperature, scale_temperature


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
        low, high = np.min(inside, axis=0) - 3, np.max(inside, axis=0) + 3
        for i in np.ndindex(*reference.shape):
            if (np.array(i) >= low).all() and (np.array(i) <= high).all() and reference[i] >= 0:
                seen.append((float(p[(labels[i], *i)]), labels[i] == reference[i]))
    data = made.to_data()
    confidence, right = map(np.array, zip(*seen, strict=True))
    assert data["voxels"] == len(seen)
    assert data["confidence"] == pytest.approx(confidence.mean(), rel=1e-5)
    assert data["accuracy"] == pytest.approx(right.mean())
    bins = np.minimum((confidence * 15).astype(int), 14)
    gaps = [
        abs(confidence[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in set(bins.tolist())
    ]
    assert data["ece"] == pytest.approx(sum(gaps), abs=1e-6)
    assert f"{data['ece']:.3f}" in describe(data)


def test_a_scan_without_structures_is_reported():
    made = Calibration()
    p = np.zeros((2, 3, 3, 3), np.float32)
    p[0] = 1
    made.add(p, np.zeros((3, 3, 3), np.int16))
    assert made.to_data()["ece"] is None
    assert "no structure" in describe(made.to_data())


def organs(seed: int, absent: int = 0, size=(12, 40, 40)) -> np.ndarray:
    """Probabilities (K, *size) of two organs, uncertain at their borders, and of absent classes."""
    positions = np.indices(size).astype(float)
    shift = np.random.default_rng(seed).uniform(-1, 1, 3).reshape(3, 1, 1, 1)
    far = [
        np.linalg.norm(
            (positions - np.reshape(at, (3, 1, 1, 1)) - shift) * np.reshape((1.5, 1, 1), (3, 1, 1, 1)), axis=0
        )
        for at in ((6, 12, 12), (6, 14, 26))
    ]
    logits = np.stack([np.zeros(size), *[7 - 1.2 * d for d in far], *[np.full(size, -25.0)] * absent])
    powers = np.exp(logits)
    return (powers / powers.sum(axis=0)).astype(np.float32)


def expects(p: np.ndarray, near: np.ndarray) -> float:
    return float(np.mean([expected_dice(p[:, near])[k] for k in (1, 2)]))


@settings(max_examples=25)
@given(seed=st.integers(0, 50), score=st.floats(0.55, 0.99), absent=st.integers(0, 8))
def test_scaled_probabilities_expect_the_score_and_keep_their_labels(seed, score, absent):
    before = organs(seed, absent)
    after = before.copy()
    found, near = find_temperature(before, score), before[0] < 1 - 0.02
    scale_temperature(after, found)
    assert np.array_equal(after.argmax(axis=0), before.argmax(axis=0))
    np.testing.assert_allclose(after.sum(axis=0), 1, atol=1e-5)
    if expects(before, near) <= score:
        assert found == 1
    elif found < 4.95:
        assert score - 0.03 < expects(after, near) <= score + 1e-6
    else:
        assert expects(after, near) > score - 0.03
    corner = after[:, 0, -1, 0]  # far from any structure nothing changes, however many classes there are
    np.testing.assert_allclose(corner, before[:, 0, -1, 0], atol=1e-3)


def test_the_temperature_does_not_depend_on_absent_classes():
    assert find_temperature(organs(0, 10), 0.7) == pytest.approx(find_temperature(organs(0), 0.7), rel=0.02)


@settings(max_examples=25)
@given(seed=st.integers(0, 50), hot=st.floats(1.01, 5))
def test_temperature_scaling_equals_the_formula_without_a_step(seed, hot):
    p, _ = scan(seed)
    p[:, :4] = organs(seed)[:, 4:8, 8:18, 8:19]
    after = p.copy()
    scale_temperature(after, hot)
    power = 1 / (1 + (hot - 1) * np.clip((1 - p[0].astype(float)) / 0.02, 0, 1))
    wanted = p.astype(float) ** power
    np.testing.assert_allclose(after, wanted / wanted.sum(axis=0), atol=1e-4)
    line = np.stack([1 - np.geomspace(1e-7, 0.5, 400), np.geomspace(1e-7, 0.5, 400)]).astype(np.float32)
    scale_temperature(line, hot)
    assert (np.diff(line[1]) > -1e-6).all()  # more uncertain before, more uncertain after
    assert np.abs(np.diff(line[1])).max() < 0.05


def test_no_temperature_is_above_five():
    """The least estimate cannot be reached: the expected Dice stays above it."""
    assert find_temperature(organs(0), 0.0) == pytest.approx(5.0)


def test_a_scan_without_a_structure_or_without_an_estimate_is_not_scaled():
    empty = np.zeros((3, 4, 5, 6), np.float32)
    empty[0] = 1
    assert find_temperature(empty, 0.1) == 1
    assert find_temperature(organs(0), math.nan) == 1


def test_a_scans_temperature_follows_its_quality_estimate_where_the_recipe_scales():
    p = organs(0)
    prepared = prepared_scan(np.zeros((1, *p.shape[1:]), np.float32))
    geometry = Geometry.from_json(prepared.geometry)

    def temperature(quality: Quality, scales_temperature: bool = True) -> float:
        return RefinedScan("scan", p, quality, prepared.transform, geometry, scales_temperature).temperature

    partly, none = Quality("agreement", 0.7, {1: 0.7, 2: math.nan}), Quality("expected_dice", 0.0, {1: math.nan})
    assert temperature(partly) == find_temperature(p, 0.7) > 1
    assert temperature(partly, scales_temperature=False) == temperature(none) == 1


def test_scaling_overconfident_probabilities_reduces_the_calibration_error():
    """Labels right in 7 of 10 voxels of the organ, at 95 % confidence: scaled to the true Dice."""
    rng = np.random.default_rng(0)
    truth = np.zeros((20, 20, 20), np.int16)
    truth[5:15, 5:15, 5:15] = 1
    answer = np.where((truth == 1) & (rng.random(truth.shape) < 0.3), 0, truth)
    confidence = np.where(truth == 1, 0.95, 1 - 1e-6)
    p = np.stack([np.where(answer == k, confidence, 1 - confidence) for k in range(2)]).astype(np.float32)
    before, after = Calibration(), Calibration()
    before.add(p, truth)
    found = 2 * np.count_nonzero((answer == 1) & (truth == 1)) / (np.count_nonzero(answer) + np.count_nonzero(truth))
    scale_temperature(p, find_temperature(p, found))
    after.add(p, truth)
    assert after.to_data()["ece"] < before.to_data()["ece"]
