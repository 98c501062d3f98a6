"""Folds of tiny volumes for the tests of baselines: two ellipsoids, shifted and scaled from scan to scan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from prepared_scans import prepared_scan
from references import TINY, tiny_plan

from mre_lowshot.experiments.baselines.base import BaselineFold
from mre_lowshot.preprocessing.store import PreparedCase

SIZE = (8, 16, 16)


def ellipsoids(seed: int, size: tuple[int, ...] = SIZE) -> PreparedCase:
    """A scan with a bright (1) and a dark (2) ellipsoid."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in size], indexing="ij"))
    label = np.zeros(size, np.int16)
    for k, centre in ((1, (0.0, -0.35, -0.1)), (2, (0.1, 0.4, 0.1))):
        middle = np.add(centre, rng.uniform(-0.08, 0.08, 3)).reshape(3, 1, 1, 1)
        radii = (np.array((0.75, 0.4, 0.55)) * rng.uniform(0.9, 1.1)).reshape(3, 1, 1, 1)
        label[(((grid - middle) / radii) ** 2).sum(axis=0) < 1] = k
    image = np.array([0.0, 1.5, -1.5])[label] + rng.normal(0, 0.15, size)
    return replace(prepared_scan(image.astype(np.float32)[None]), name=f"scan{seed}", label=label)


def toy_fold(
    folder: Path,
    *,
    train: Sequence[PreparedCase] | None = None,
    unlabelled: Sequence[PreparedCase] = (),
    iterations: int | None = None,
    seed: int = 0,
    log: Callable[[str], None] = lambda line: None,
    **settings: object,
) -> BaselineFold:
    """A fold of `ellipsoids`, scan 0 labelled; ``settings`` as of `references.tiny_plan`."""
    return BaselineFold(
        plan=tiny_plan(replace(TINY, coordinates="none"), seed, size="small", **settings),
        train=tuple(train or [ellipsoids(0)]),
        unlabelled=tuple(unlabelled),
        classes=3,
        device=torch.device("cpu"),
        seed=seed,
        iterations=iterations,
        folder=folder,
        log=log,
    )


def mean_dice(probabilities: np.ndarray, label: np.ndarray) -> float:
    """The mean Dice of the two ellipsoids."""
    found = probabilities.argmax(axis=0)
    pairs = [(found == k, label == k) for k in (1, 2)]
    return float(np.mean([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in pairs]))
