"""Comparison of methods: paired tests over runs, correction for multiple testing, and bootstrap intervals.

A run is one training (a fold); its value is the mean over its test scans. Runs are the independent samples, so tests
compare runs. With few runs no test can give a small p; `smallest_p` is the lower bound. The interval resamples
training scans and test scans of all (training scan, test scan) pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

Method = Literal["default", "paper"]
EXACT_UP_TO: Final = 16  # runs: up to here all 2^runs sign patterns are enumerated; beyond, 2^16 random ones
RESAMPLES = 10_000  # of the bootstrap


@dataclass(frozen=True)
class Comparison:
    """A row compared with the reference row. NaN: not defined."""

    difference: float  # mean over the common runs
    runs: int  # number of common runs
    p: float  # of the difference
    p_corrected: float  # for all comparisons of the family
    low: float  # lower bound of the interval over pairs of scans
    high: float  # upper bound
    pairs: int  # number of (training scan, test scan) pairs


def paired_t(differences: Sequence[float]) -> float:
    """Two-sided p of the paired t test; NaN for fewer than two runs or equal differences. The paper names no test
    (IV-B): this is our reading."""
    from scipy.stats import ttest_1samp

    values = np.asarray(differences, dtype=float)
    if len(values) < 2 or np.ptp(values) == 0:
        return math.nan
    return float(ttest_1samp(values, 0.0).pvalue)


def sign_flip(differences: Sequence[float], seed: int = 0) -> float:
    """Two-sided p of the sign-flip permutation test of the mean difference; exact up to 16 runs, NaN without runs.

    Under the null hypothesis that neither method is better, both signs of each run's difference are equally likely.
    """
    from scipy.stats import permutation_test

    values = np.asarray(differences, dtype=float)
    if not len(values):
        return math.nan
    if len(values) == 1:  # scipy requires two runs; with one, both sign patterns are equally extreme
        return 1.0
    result = permutation_test(
        (values, np.zeros_like(values)),
        lambda a, b, axis=-1: np.mean(a - b, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=2**EXACT_UP_TO,
        batch=2048,  # patterns in memory at once; the p is the same
        random_state=np.random.default_rng(seed),  # called rng since scipy 1.15, which still accepts this name
    )
    return float(result.pvalue)


def smallest_p(runs: int) -> float:
    """The smallest p that `sign_flip` can give: 2 of the 2^runs sign patterns (0.25 for 3 runs, 0.016 for 7)."""
    if runs > EXACT_UP_TO:
        return 2 / (2**EXACT_UP_TO + 1)
    return min(1.0, 2.0 ** (1 - runs)) if runs else math.nan


def bonferroni(p: Sequence[float]) -> list[float]:
    """Bonferroni correction: each p times the number of tests, at most 1. NaN values do not count as tests."""
    tests = sum(not math.isnan(v) for v in p)
    return [v if math.isnan(v) else min(1.0, v * tests) for v in p]


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the smallest p times n, the next times n - 1, ...; monotonic, at most 1."""
    order = sorted((i for i, v in enumerate(p) if not math.isnan(v)), key=lambda i: p[i])
    corrected, highest = list(p), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, p[i] * (len(order) - rank)))
        corrected[i] = highest
    return corrected


def bootstrap_interval(
    differences: np.ndarray, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap percentile interval of the mean difference over pairs of scans.

    Rows and columns are resampled with replacement, independently, because pairs that share a scan are not independent.
    With one training scan only test scans are resampled, and the interval does not cover other training scans.

    Args:
        differences: (training scans, test scans); NaN for pairs without a value.
        confidence: coverage of the interval.
        resamples: number of bootstrap samples.
        seed: of the random generator.

    Returns:
        Lower and upper bound; NaN if no pair has a value.
    """
    defined = ~np.isnan(differences)
    if not defined.any():
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    rows, columns = differences.shape
    row_times = rng.multinomial(rows, np.full(rows, 1 / rows), size=resamples).astype(float)
    column_times = rng.multinomial(columns, np.full(columns, 1 / columns), size=resamples).astype(float)
    total = np.einsum("br,rc,bc->b", row_times, np.where(defined, differences, 0.0), column_times, optimize=True)
    count = np.einsum("br,rc,bc->b", row_times, defined.astype(float), column_times, optimize=True)
    means = total[count > 0] / count[count > 0]  # a sample may contain no pair
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def compare(
    runs: Sequence[Sequence[float]], pairs: Sequence[np.ndarray], method: Method = "default", seed: int = 0
) -> list[Comparison]:
    """Compare each row of a family with the reference row.

    Args:
        runs: per row, the differences to the reference, one per common run; NaN values are left out.
        pairs: per row, the differences (training scans, test scans), NaN for pairs without a value.
        method: ``default`` (sign-flip permutation test, Holm) or ``paper`` (Bonferroni as in the paper, IV-B, with the
            paired t test).
        seed: of the random generators.

    Returns:
        One `Comparison` per row.
    """
    kept = [[d for d in row if not math.isnan(d)] for row in runs]
    p = [paired_t(row) if method == "paper" else sign_flip(row, seed) for row in kept]
    corrected = bonferroni(p) if method == "paper" else holm(p)
    made = []
    for row, table, one, many in zip(kept, pairs, p, corrected, strict=True):
        low, high = bootstrap_interval(table, seed=seed)
        mean = math.fsum(row) / len(row) if row else math.nan
        made.append(Comparison(mean, len(row), one, many, low, high, int((~np.isnan(table)).sum())))
    return made


def explain(method: Method, family: int, runs: int) -> str:
    """A legend for a table: the test, the correction, the size of the family and the smallest possible p."""
    if method == "paper":
        return f"p: paired t test over {runs} runs, Bonferroni over {family} comparisons"
    least = "-" if not runs else f"{smallest_p(runs):.3g}"
    test = "exact sign-flip permutation test" if runs <= EXACT_UP_TO else "sign-flip permutation test, random signs"
    counted = f"{runs} run{'s' * (runs != 1)}"
    return (
        f"p: {test} over {counted}, Holm over {family} comparison{'s' * (family != 1)}; "
        f"the smallest p that {counted} can give is {least}, before Holm"
    )
