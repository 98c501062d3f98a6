"""Folds small enough for a baseline to learn from in a moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from brains import LIKE, brain
from prepared_scans import prepared_scan
from references import TINY_2D, tiny_plan
from scipy import ndimage

from mre_lowshot.config import Plan
from mre_lowshot.evaluation.metrics import dice
from mre_lowshot.experiments.baselines.base import BaselineFold
from mre_lowshot.preprocessing.store import PreparedCase


def head_case(seed: int) -> PreparedCase:
    """A textured head (1) with two balls (2), `brains.brain`."""
    case = brain(seed)
    return replace(prepared_scan(case.image, case.spacing), name=f"head_{seed}", label=case.label)


def lesion_case(seed: int, size: tuple[int, int] = (48, 56)) -> PreparedCase:
    """A speckled image of one slice with a dark lesion (1) anywhere."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    row, column = rng.uniform(0.35, 0.65, 2) * size
    radii = 0.24 * np.asarray(size)
    label = (((rows - row) / radii[0]) ** 2 + ((columns - column) / radii[1]) ** 2 < 1).astype(np.int16)
    image = 2.0 - 1.5 * ndimage.gaussian_filter(label.astype(float), 1)
    image = (image * (1 + 0.3 * rng.normal(size=size))).astype(np.float32)
    return replace(prepared_scan(image[None, None]), name=f"lesion_{seed}", label=label[None])


def image_plan(classes: int = 2) -> Plan:
    """A plan for 2D images, at the size for a CPU."""
    return tiny_plan(replace(TINY_2D, classes=classes), size="small")


def toy_fold(
    folder: Path, cases: Sequence[PreparedCase], plan: Plan = LIKE, iterations: int | None = None
) -> BaselineFold:
    """A fold that trains on ``cases``; what it logs is in the list ``fold.log.__self__``."""
    lines: list[str] = []
    return BaselineFold(
        plan=plan,
        train=tuple(cases),
        unlabelled=(),
        classes=plan.network.classes,
        device=torch.device("cpu"),
        seed=0,
        iterations=iterations,
        folder=folder,
        log=lines.append,
    )


def mean_dice(probabilities: np.ndarray, case: PreparedCase) -> float:
    """Mean Dice over the foreground classes of the most likely labels."""
    labels = probabilities.argmax(axis=0)
    return float(np.mean([dice(case.needed_label() == k, labels == k) for k in range(1, len(probabilities))]))
