"""What a baseline is: a function that learns from the scans of a fold and returns a function that segments a scan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mre_lowshot.config import Plan
from mre_lowshot.preprocessing.store import PreparedCase

Segmenter = Callable[[PreparedCase], np.ndarray]
"""Class probabilities (K, D, H, W), float32, on the grid of a prepared case, which has no label."""


def go_on() -> None:
    """Nothing ends the run."""


@dataclass(frozen=True)
class BaselineFold:
    """What a baseline may learn from.

    Attributes:
        plan: of the row; its grid and normalisation are those of the cases.
        train: labelled cases.
        unlabelled: other cases, without labels, each read when it is asked for: those outside the fold first, then its
            test cases (their images only).
        classes: K, with background.
        device: to compute on.
        seed: of everything random.
        iterations: of training, if the user gave a number; None: the baseline's own.
        folder: for checkpoints and other files of the baseline alone; an interrupted fit is called again with it.
        log: receives a line of progress.
        ask: to be called every few seconds; raises where the run that the fold belongs to has ended.
    """

    plan: Plan
    train: tuple[PreparedCase, ...]
    unlabelled: Sequence[PreparedCase]
    classes: int
    device: torch.device
    seed: int
    iterations: int | None
    folder: Path
    log: Callable[[str], None]
    ask: Callable[[], None] = go_on


@dataclass(frozen=True)
class Baseline:
    """A method of the literature, as a row of a table runs it. What it needs (package, check, axes, extended) is
    stated here alone; `requirements` checks it before ``fit``.

    Attributes:
        name: of the row.
        title: one line for tables and for --list.
        source: the publication, and the section of the paper that compares with it.
        fit: learns from a fold.
        recipe: whose preprocessing it uses.
        paper_recipe: the recipe at the paper's size; empty: the full-size counterpart of ``recipe``.
        package: that it needs beyond the core, as it is imported (``sklearn``); empty for none.
        check: raises a UserError where something else that it needs is missing, as a program.
        axes: numbers of spatial axes that it works on.
        extended: axes of a labelled scan along which it needs two voxels or more.
        components: whether the small components of a fold's single-component classes are removed from its label maps,
            where the recipe removes them.
        random: whether its result depends on the seed. Otherwise it is run with the first of several seeds only.
    """

    name: str
    title: str
    source: str
    fit: Callable[[BaselineFold], Segmenter]
    recipe: str = "paper_small"
    paper_recipe: str = ""
    package: str = ""
    check: Callable[[], object] | None = None
    axes: tuple[int, ...] = (2, 3)
    extended: tuple[int, ...] = ()
    components: bool = False
    random: bool = True
