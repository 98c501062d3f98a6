"""Whether two methods differ: paired tests over runs, correction for many, and an interval over pairs of scans.

A run is one training (a fold): its value is the mean over its test scans. Runs are what is drawn at random here, so
tests compare runs; with few of them no test can give a small p, and `smallest_p` says how small at best. The interval
looks at every (training scan, test scan) pair, drawing training scans and test scans anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Method = Literal["default", "paper"]
EXACT_UP_TO = 16  # runs: 2^16 sign patterns are all looked at; beyond, as many are drawn
RESAMPLES = 10_000


@dataclass(frozen=True)
class Comparison:
    """A row against the reference: ``difference`` is the mean over ``runs`` common runs, ``p`` of that difference,
    ``p_corrected`` for the family; the interval is over ``pairs`` pairs of scans. NaN: not to be had."""

    difference: float
    runs: int
    p: float
    p_corrected: float
    low: float
    high: float
    pairs: int


def paired_t(differences: Sequence[float]) -> float:
    """Two-sided p of the paired t test (the paper's): NaN with fewer than two runs or no variation at all."""
    from scipy.stats import ttest_1samp

    values = np.asarray(differences, dtype=float)
    if len(values) < 2 or np.ptp(values) == 0:
        return math.nan
    return float(ttest_1samp(values, 0.0).pvalue)


def sign_flip(differences: Sequence[float], seed: int = 0) -> float:
    """Two-sided p of the sign-flip permutation test of the mean difference: exact up to 16 runs, NaN without any.

    If neither method is better, each run's difference might as well have had the other sign.
    """
    from scipy.stats import permutation_test

    values = np.asarray(differences, dtype=float)
    if not len(values):
        return math.nan
    if len(values) == 1:  # scipy wants two; both signs are as far from 0
        return 1.0
    found = permutation_test(
        (values, np.zeros_like(values)),
        lambda a, b, axis=-1: np.mean(a - b, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=2**EXACT_UP_TO,
        random_state=np.random.default_rng(seed),  # its name before scipy 1.15, and still taken
    )
    return float(found.pvalue)


def smallest_p(runs: int) -> float:
    """The smallest p that `sign_flip` can give: 2 of the 2^runs sign patterns (three runs .25, seven .016)."""
    if runs > EXACT_UP_TO:
        return 2 / (2**EXACT_UP_TO + 1)
    return min(1.0, 2.0 ** (1 - runs)) if runs else math.nan


def bonferroni(p: Sequence[float]) -> list[float]:
    """Each p times the number of tests (those that are NaN are none), at most 1."""
    tests = sum(not math.isnan(v) for v in p)
    return [v if math.isnan(v) else min(1.0, v * tests) for v in p]


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the smallest p times n, the next times n - 1 ..., never falling; at most 1."""
    order = sorted((i for i, v in enumerate(p) if not math.isnan(v)), key=lambda i: p[i])
    corrected, highest = list(p), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, p[i] * (len(order) - rank)))
        corrected[i] = highest
    return corrected


def bootstrap_interval(
    differences: np.ndarray, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean of ``differences`` (training scans x test scans; NaN where there is no pair).

    Rows and columns are drawn with replacement, each on its own, for the pairs that share a scan are not independent.
    With a single training scan only test scans vary: the interval then says nothing about other training scans.
    """
    there = ~np.isnan(differences)
    if not there.any():
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    rows, columns = differences.shape
    row_times = rng.multinomial(rows, np.full(rows, 1 / rows), size=resamples).astype(float)
    column_times = rng.multinomial(columns, np.full(columns, 1 / columns), size=resamples).astype(float)
    total = np.einsum("br,rc,bc->b", row_times, np.where(there, differences, 0.0), column_times, optimize=True)
    count = np.einsum("br,rc,bc->b", row_times, there.astype(float), column_times, optimize=True)
    means = total[count > 0] / count[count > 0]  # a draw may hit no pair at all
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def compare(
    runs: Sequence[Sequence[float]], pairs: Sequence[np.ndarray], method: Method = "default", seed: int = 0
) -> list[Comparison]:
    """One `Comparison` a row of the family. ``runs[i]`` are row i's differences to the reference, one a common run;
    ``pairs[i]`` the same for each (training scan, test scan) pair, NaN where there is none.

    ``paper``: paired t, Bonferroni; ``default``: sign-flip permutation, Holm. NaN differences are left out.
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
    """One line for under a table: the tests, the family's size, and the smallest p that so many runs can give."""
    if method == "paper":
        return f"p: paired t over {runs} runs, Bonferroni over {family} comparisons"
    least = "-" if not runs else f"{smallest_p(runs):.3g}"
    exact = "exact sign-flip permutation" if runs <= EXACT_UP_TO else "sign-flip permutation, drawn"
    return (
        f"p: {exact} over {runs} run{'s' * (runs != 1)}, Holm over {family} "
        f"comparison{'s' * (family != 1)}; the smallest p that {runs} can give is {least}, before Holm"
    )
