"""Temperature scaling per scan: probabilities no more confident than the scan's quality estimate.

Fusion, EM step and CRF improve labels and make every voxel more confident. How confident the voxels may be differs
between scans and cannot be learned from one labelled scan, which the network fits perfectly.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mre_lowshot.devices import slabs
from mre_lowshot.evaluation.agreement import expected_dice, most_probable
from mre_lowshot.refinement.foreground import FOREGROUND_MIN
from mre_lowshot.transfers import Array, as_tensor, counts_of, to_host, true_positions

MAX_TEMPERATURE = 5.0
BISECTIONS = 8  # between the logarithms of 1 and MAX_TEMPERATURE: to 1 %


def find_temperature(probabilities: Array, dice: float) -> float:
    """The least temperature, from 1 to `MAX_TEMPERATURE`, at which the expected Dice of class probabilities
    (K, *size) is at most ``dice``, the scan's quality estimate (NaN: there is none, and the temperature is 1).

    The expected Dice is that of `expected_dice` over the voxels in which a foreground class has a probability of
    `FOREGROUND_MIN`, its mean over the predicted classes. `MAX_TEMPERATURE` may leave more than ``dice``.
    """
    if math.isnan(dice):
        return 1.0
    p = as_tensor(probabilities)
    near = p.reshape(len(p), -1).index_select(1, true_positions(p[0] < 1 - FOREGROUND_MIN))
    labels = most_probable(near)
    counts = to_host(counts_of(labels, len(near)))[0].tolist()
    predicted = [k for k, count in enumerate(counts) if k and count]
    if not predicted:
        return 1.0
    logarithms, scaled = near.log(), torch.empty_like(near)

    def expected(logarithm: float) -> float:
        torch.mul(logarithms, exponent(near[0], math.exp(logarithm)), out=scaled)
        values = expected_dice(_normalised(scaled.exp_()), labels)
        return sum(values[k] for k in predicted) / len(predicted)

    low, high = 0.0, math.log(MAX_TEMPERATURE)
    if expected(low) <= dice:
        return 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if expected(middle) > dice else (low, middle)
    return math.exp(high)


def scale_temperature(probabilities: Array, temperature: float) -> None:
    """p^(1/T), normalised (Guo et al. 2017), of class probabilities (K, *size); in place. The most probable class stays
    the most probable. T falls to 1, without a step, where background is nearly certain."""
    if temperature == 1:
        return
    p = as_tensor(probabilities)
    for part in slabs(p.shape[1], p[:, 0].numel(), p.device):
        values = p[:, part]
        _normalised(values.pow_(exponent(values[0], temperature)))


def _normalised(shares: Tensor) -> Tensor:
    """Divided by their sum over the first axis; in place, and returned."""
    return shares.div_(shares.sum(dim=0))


def exponent(background: Tensor, temperature: float) -> Tensor:
    """The exponent 1/T of each voxel, from its probability of ``background``."""
    return 1 / (1 + (temperature - 1) * ((1 - background) / FOREGROUND_MIN).clamp(0, 1))
