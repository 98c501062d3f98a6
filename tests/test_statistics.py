"""Paired tests, corrections and intervals against enumeration, scipy and hand computation."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mre_lowshot.evaluation import statistics as ours

NAN = float("nan")
VALUES = st.lists(st.integers(-20, 20).map(lambda n: n / 8), min_size=1, max_size=7)


def enumerated(differences):
    """The sign-flip test, by enumeration of all patterns of signs."""
    observed = abs(sum(differences))
    patterns = list(itertools.product((1, -1), repeat=len(differences)))
    extreme = [s for s in patterns if abs(sum(a * d for a, d in zip(s, differences, strict=True))) >= observed - 1e-12]
    return len(extreme) / len(patterns)


@settings(max_examples=40, derandomize=True)
@given(VALUES)
def test_sign_flip_is_the_enumeration(differences):
    assert ours.sign_flip(differences) == pytest.approx(enumerated(differences))


@pytest.mark.parametrize(("runs", "least"), [(1, 1), (2, 0.5), (3, 0.25), (7, 0.015625)])
def test_the_smallest_p_is_reached_when_all_runs_agree(runs, least):
    assert ours.smallest_p(runs) == least
    assert ours.sign_flip([0.1 + 0.01 * n for n in range(runs)]) == pytest.approx(least)


def test_many_runs_are_drawn_and_no_p_is_below_the_smallest():
    agreed = np.linspace(1, 2, 20)
    assert ours.sign_flip(agreed) == pytest.approx(ours.smallest_p(20), rel=2)
    assert ours.sign_flip(agreed) >= ours.smallest_p(20)
    mixed = agreed * np.tile([1, -1], 10)
    assert ours.sign_flip(mixed) > 0.5


def test_paired_t_is_scipys():
    a, b = np.array([0.71, 0.74, 0.69, 0.8]), np.array([0.7, 0.71, 0.7, 0.75])
    assert ours.paired_t(a - b) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert math.isnan(ours.paired_t([0.3]))
    assert math.isnan(ours.paired_t([0.5, 0.5]))
    assert math.isnan(ours.sign_flip([]))


def test_corrections_by_hand():
    p = [0.01, 0.04, NAN, 0.03, 0.005]  # four tests: .005 x 4, .01 x 3, .03 x 2, .04 x 1 (not below the .06 before it)
    assert ours.holm(p) == pytest.approx([0.03, 0.06, NAN, 0.06, 0.02], nan_ok=True)
    assert ours.bonferroni(p) == pytest.approx([0.04, 0.16, NAN, 0.12, 0.02], nan_ok=True)
    assert ours.holm([0.9, 0.8]) == [1.0, 1.0]
    assert ours.holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=6))
def test_holm_lies_between_the_plain_p_and_bonferronis(p):
    for plain, step, most in zip(p, ours.holm(p), ours.bonferroni(p), strict=True):
        assert plain <= step <= most


def bootstrap_loop(table, resamples, seed):
    """Rows and columns drawn one by one."""
    rng, means = np.random.default_rng(seed), []
    for _ in range(resamples):
        rows, columns = (rng.integers(0, n, n) for n in table.shape)
        drawn = table[np.ix_(rows, columns)]
        if not np.isnan(drawn).all():
            means.append(np.nanmean(drawn))
    return np.quantile(means, [0.025, 0.975])


def test_the_interval_is_that_of_a_plain_bootstrap_of_scans():
    rng = np.random.default_rng(0)
    table = 0.05 + rng.normal(0, 0.05, (5, 1)) + rng.normal(0, 0.02, (1, 5)) + rng.normal(0, 0.01, (5, 5))
    table[np.arange(5), np.arange(5)] = np.nan  # a training scan is not tested on
    low, high = ours.bootstrap_interval(table)
    plain = bootstrap_loop(table, 4000, 1)
    assert (low, high) == pytest.approx(tuple(plain), abs=0.006)
    assert low < np.nanmean(table) < high
    assert (low, high) == ours.bootstrap_interval(table)  # seeded
    naive = stats.bootstrap(
        (table[~np.isnan(table)],), np.mean, random_state=np.random.default_rng(2)
    ).confidence_interval
    assert high - low > 1.5 * (naive.high - naive.low)  # pairs of one training scan are no independent pairs


def test_the_interval_of_a_constant_and_of_nothing():
    assert ours.bootstrap_interval(np.full((3, 4), 0.25)) == pytest.approx((0.25, 0.25))
    assert all(math.isnan(v) for v in ours.bootstrap_interval(np.full((2, 2), NAN)))
    assert all(math.isnan(v) for v in ours.bootstrap_interval(np.empty((0, 0))))


def test_a_family_of_comparisons():
    runs = [[0.1, 0.2, 0.3], [0.1, -0.1, NAN]]
    pairs = [np.full((3, 2), 0.2), np.array([[NAN, 0.1], [-0.1, NAN]])]
    first, second = ours.compare(runs, pairs)
    assert (first.difference, first.runs, first.p, first.p_corrected) == pytest.approx((0.2, 3, 0.25, 0.5))
    assert (first.low, first.high, first.pairs) == pytest.approx((0.2, 0.2, 6))
    assert (second.difference, second.runs, second.p, second.pairs) == pytest.approx((0, 2, 1, 2))
    papers = ours.compare(runs, pairs, "paper")
    p = stats.ttest_1samp(runs[0], 0).pvalue
    assert (papers[0].p, papers[0].p_corrected) == pytest.approx((p, 2 * p))
    assert "Holm over 2 comparisons; the smallest p that 3 runs can give is 0.25" in ours.explain("default", 2, 3)
    assert "Bonferroni over 2" in ours.explain("paper", 2, 3)
