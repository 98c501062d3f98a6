"""Training of DataAug's spatial and appearance transform models (Zhao et al., 2019)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from mre_lowshot.errors import NumericalError
from mre_lowshot.experiments.baselines.base import go_on
from mre_lowshot.experiments.baselines.transform_models import (
    TransformNetwork,
    local_cross_correlation,
    smoothness,
    smoothness_within_structures,
    warp,
)

SMOOTHNESS, APPEARANCE_SMOOTHNESS = 1.0, 0.02  # weights of the source, for intensities from 0 to 1
LEARNING_RATE = 1e-3  # of Adam; ten times the source's, because training is shorter
PAIRS = 2  # of images in a mini-batch; a single one is slower on a CPU
EPOCH = 100  # iterations between two lines of the log


def train_spatial(
    network: TransformNetwork,
    source: Tensor,
    targets: Sequence[Tensor],
    *,
    iterations: int,
    seed: int,
    log: Callable[[str], None],
    ask: Callable[[], None] = go_on,
) -> None:
    """Unsupervised registration: local cross-correlation of warped and target image, and smoothness. Each iteration
    takes one scan and registers the atlas to it and it to the atlas, as the inverse transform comes from the same
    network with its inputs exchanged."""

    def loss(numbers: Sequence[int]) -> Tensor:
        both = torch.cat([source, targets[numbers[0]]])
        displacement = network(both, both.flip(0))
        correlation = local_cross_correlation(warp(both, displacement), both.flip(0))
        return 1 - correlation + SMOOTHNESS * smoothness(displacement)

    name, rng = "spatial transform model", np.random.default_rng([seed, 1])
    _train(network, loss, len(targets), iterations, rng, name, log, ask)


def train_appearance(
    network: TransformNetwork,
    source: Tensor,
    targets: Sequence[Tensor],
    *,
    forward: Sequence[Tensor],
    returned: Sequence[Tensor],
    contours: Tensor,
    iterations: int,
    seed: int,
    log: Callable[[str], None],
    ask: Callable[[], None] = go_on,
) -> None:
    """The intensity change psi, added to the atlas in its own frame: squared difference of the warped sum and the
    target, and smoothness of psi within structures.

    Args:
        network: takes the atlas and a scan in the atlas's frame.
        source: the atlas.
        targets: the scans.
        forward: displacements from the atlas to each scan.
        returned: each scan in the atlas's frame.
        contours: of the atlas's labels.
        iterations, seed, log, ask: as in `learn_transforms`.
    """

    atlas = source.expand(PAIRS, *source.shape[1:])

    def loss(numbers: Sequence[int]) -> Tensor:
        fields, fixed, back = (torch.cat([of[n] for n in numbers]) for of in (forward, targets, returned))
        change = network(atlas, back)
        difference = (warp(atlas + change, fields) - fixed).square().mean()
        return difference + APPEARANCE_SMOOTHNESS * smoothness_within_structures(change, contours)

    name, rng = "appearance transform model", np.random.default_rng([seed, 2])
    _train(network, loss, len(targets), iterations, rng, name, log, ask)


def _train(
    network: TransformNetwork,
    loss_of: Callable[[Sequence[int]], Tensor],
    scans: int,
    iterations: int,
    rng: np.random.Generator,
    name: str,
    log: Callable[[str], None],
    ask: Callable[[], None],
) -> None:
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    losses = []
    for iteration in range(iterations):
        loss = loss_of(rng.integers(scans, size=PAIRS).tolist())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        ask()
        losses.append(loss.item())
        if not np.isfinite(losses[-1]):
            raise NumericalError(f"{name}: the loss is {losses[-1]} in iteration {iteration + 1}")
        if (iteration + 1) % EPOCH == 0 or iteration + 1 == iterations:
            log(f"{name}, iteration {iteration + 1}: loss {np.mean(losses[-EPOCH:]):.4f}")
    network.eval()
