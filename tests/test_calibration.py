"""Whether probabilities mean what they say: the counts against a plain loop, what is told of them, and how those that
are too sure are softened."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import TINY, tiny_plan

from mre_lowshot.evaluation.calibration import BINS, MARGIN, Calibration, in_words
from mre_lowshot.inference.confidence import HOTTEST, LEAST, calibrate
from mre_lowshot.inference.predictor import Predictor
from mre_lowshot.inference.quality import expected_dice, mean_over_classes
from mre_lowshot.network.build import build
from mre_lowshot.specs import InferenceSpec


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


def expects(p: np.ndarray) -> float:
    return mean_over_classes(expected_dice(p))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 50), score=st.floats(0.05, 0.99))
def test_softened_probabilities_expect_the_score_and_keep_their_labels(seed, score):
    before, _ = scan(seed)
    after = before.copy()
    temperature = calibrate(after, score)
    assert np.array_equal(after.argmax(axis=0), before.argmax(axis=0))
    np.testing.assert_allclose(after.sum(axis=0), 1, atol=1e-5)
    if expects(before) <= score:
        assert temperature == 1
        assert np.array_equal(after, before)  # never surer
    else:
        assert 1 < temperature <= HOTTEST + 1e-6
        wanted = np.maximum(before.astype(float), LEAST) ** (1 / temperature)
        np.testing.assert_allclose(after, wanted / wanted.sum(axis=0), atol=1e-5)
        hottest = before ** (1 / HOTTEST)
        if expects(hottest / hottest.sum(axis=0)) <= score:
            assert score - 0.02 < expects(after) <= score + 1e-6


def test_a_scan_without_a_structure_is_left_alone():
    p = np.zeros((3, 4, 5, 6), np.float32)
    p[0] = 1
    before = p.copy()
    assert calibrate(p, 0.0) == 1
    assert np.array_equal(p, before)


def test_probabilities_surer_than_their_labels_are_right_come_nearer():
    """Labels right in 7 of 10 voxels of the organ, given with 95 %: the true Dice is asked for."""
    rng = np.random.default_rng(0)
    truth = np.zeros((20, 20, 20), np.int16)
    truth[5:15, 5:15, 5:15] = 1
    answer = np.where((truth == 1) & (rng.random(truth.shape) < 0.3), 0, truth)
    sure = np.where(truth == 1, 0.95, 1 - 1e-6)
    p = np.stack([np.where(answer == k, sure, 1 - sure) for k in range(2)]).astype(np.float32)
    made = Calibration()
    made.add(p, truth)
    found = 2 * np.count_nonzero((answer == 1) & (truth == 1)) / (np.count_nonzero(answer) + np.count_nonzero(truth))
    calibrate(p, found)
    softer = Calibration()
    softer.add(p, truth)
    assert softer.to_data()["ece"] < made.to_data()["ece"]


def test_the_predictor_calibrates_to_its_own_quality_score_where_the_plan_says_so():
    torch.manual_seed(0)
    net = build(replace(TINY, coordinates="none")).eval()
    image = np.random.default_rng(0).normal(size=(1, 8, 12, 10)).astype(np.float32)
    plan = tiny_plan()
    answers = []
    for rule in (InferenceSpec(neighbour_weight=4.0), InferenceSpec(neighbour_weight=4.0, calibrate=True)):
        predictor = Predictor([net], replace(TINY, coordinates="none"), plan.patch, rule, torch.device("cpu"))
        answers.append(predictor.predict_and_rate(image))
    (surer, rating), (calibrated, same) = answers
    assert rating == same
    assert expects(surer) > rating.score + 0.02
    assert expects(calibrated) <= rating.score + 1e-6
    assert np.array_equal(surer.argmax(axis=0), calibrated.argmax(axis=0))
