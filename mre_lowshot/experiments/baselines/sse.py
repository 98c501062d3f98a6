"""sSE-guided few-shot segmentation (Roy et al., 2020) as a baseline for one labelled volume (paper, IV-K; Table X).

Support and query slices are both drawn from the labelled volume in training. At prediction the labelled volume is the
support, and a scan is segmented slice by slice and class by class. docs/BASELINES.md compares this with its source.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from mre_lowshot.errors import NumericalError, UserError
from mre_lowshot.experiments.baselines.base import Baseline, BaselineFold
from mre_lowshot.experiments.baselines.common import nearest_to_average
from mre_lowshot.experiments.baselines.sse_network import TwoArms, dice_loss
from mre_lowshot.experiments.baselines.sse_pairs import PairSampler
from mre_lowshot.experiments.baselines.sse_segmenter import FewShotSegmenter
from mre_lowshot.experiments.baselines.sse_slices import network_size
from mre_lowshot.sampling import TrainingCase

METHOD = "sSE-guided few-shot segmentation"
ITERATIONS = 2000  # at most; the source's program takes 20 epochs of 100
EPOCH = 100  # iterations whose mean loss decides whether training has converged
PATIENCE, LEAST = 3, 1e-3  # epochs without an improvement of the loss by this much, before a drop of the learning rate
DROPS = 1  # of the learning rate to a tenth; at the next one training ends
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 1e-3, 0.99, 1e-4  # of the source
BATCH = 2  # pairs, as the source


@dataclass(frozen=True)
class Size:
    """Feature channels of the two arms, and the longer side of a slice in the network, at most."""

    conditioner: int
    segmenter: int
    side: int


FULL, SMALL = Size(16, 64, 256), Size(8, 32, 128)  # the source's (512 there), and a quarter of its time


def fit(fold: BaselineFold, *, k: int | None) -> FewShotSegmenter:
    """Train the two arms on the fold's labelled volumes; ``k`` support slices of each class at prediction (None: all).

    Raises:
        UserError: no class in the labels.
        NumericalError: the loss is not finite.
    """
    plan = fold.plan
    size = FULL if plan.recipe.size == "paper" else SMALL
    number = nearest_to_average(fold.train)
    support = fold.train[number]
    shape = network_size(support.image.shape[2:], size.side)
    cases = [TrainingCase(c.image, c.needed_label(), c.transform.spacing) for c in fold.train]
    pairs = PairSampler(
        cases, fold.classes, size=shape, batch=BATCH, augmentation=plan.recipe.augmentation, seed=fold.seed
    )
    if not pairs.classes:
        raise UserError(f"{METHOD}: the labels of {', '.join(c.name for c in fold.train)} hold background only")
    torch.manual_seed(fold.seed)
    network = TwoArms(plan.network.in_channels, conditioner=size.conditioner, segmenter=size.segmenter)
    fold.log(
        f"{METHOD}: support volume {support.name}, {'all' if k is None else k} support slices of each class, slices "
        f"{shape[0]} x {shape[1]}; of the scans to segment nothing is known, slices are paired by their position"
    )
    train(network.to(fold.device), pairs, fold)
    return FewShotSegmenter(network.eval(), support, fold.classes, k, shape, fold.device)


def train(network: TwoArms, pairs: PairSampler, fold: BaselineFold) -> None:
    """SGD on the Dice loss until it no longer falls, or for the fold's number of iterations.

    Raises:
        NumericalError: the loss is not finite.
    """
    total = fold.iterations or ITERATIONS
    optimizer = torch.optim.SGD(network.parameters(), LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    best, waited, drops, losses = float("inf"), 0, 0, []
    network.train()
    for iteration in range(total):
        batch = [part.to(fold.device) for part in pairs[iteration]]
        loss = dice_loss(network(*batch[:3]), *batch[3:])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        fold.ask()
        losses.append(loss.item())
        if not np.isfinite(losses[-1]):
            raise NumericalError(f"{METHOD}: the loss is {losses[-1]} in iteration {iteration + 1}")
        if len(losses) < EPOCH:
            continue
        mean, losses = float(np.mean(losses)), []
        fold.log(f"iteration {iteration + 1}: Dice loss {mean:.4f}")
        waited = 0 if mean < best - LEAST else waited + 1
        best = min(best, mean)
        if waited == PATIENCE:
            waited, drops = 0, drops + 1
            if drops > DROPS:
                fold.log(f"converged after {iteration + 1} iterations")
                return
            for group in optimizer.param_groups:
                group["lr"] *= 0.1
    fold.log(f"ended after {total} iterations")


SOURCE = "Roy et al., Med Image Anal 59 (2020) 101587; paper, IV-K.1 and Table X"
_PLAIN = {
    f"sse_{name}": Baseline(
        f"sse_{name}", f"sSE-guided few-shot, k = {shown}", SOURCE, partial(fit, k=k), axes=(3,), extended=(0,)
    )
    for name, shown, k in (("10", "10", 10), ("all", "max.", None))
}
BASELINES: dict[str, Baseline] = {
    **_PLAIN,
    **{
        f"{name}_aug": replace(row, name=f"{name}_aug", title=f"Aug. + {row.title}", recipe="paper_aug_small")
        for name, row in _PLAIN.items()
    },
}
