"""A conditional random field: neighbouring voxels of similar intensity get the same class."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mre_lowshot.devices import slabs
from mre_lowshot.grid import as_slices, box_above
from mre_lowshot.refinement.foreground import FOREGROUND_MIN
from mre_lowshot.transfers import Array, as_tensor, ranked, to_host

ITERATIONS = 3  # of mean field
EDGE = 1.5  # sigma of the pairwise term, in median absolute differences of neighbours
MIN_DIFFERENCE = 1e-4  # of normalised intensities: smaller ones are interpolation ringing in a constant region
EPSILON = 1e-6  # added to probabilities and sigma


def crf_mean_field(probabilities: Array, image: Array, weight: float) -> None:
    """Mean-field inference of a Potts model on the 6-neighbourhood (Boykov and Jolly 2001); in place.

    log q_k = log p_k + weight * sum over neighbours n of b_n q_k(n), with b = exp(-(x - x_n)^2 / (2 sigma^2)) and sigma
    `EDGE` times the median absolute difference of neighbours, so that borders move to the edges of the image. With
    several channels the mean of the squares is taken. Computed inside the bounding box of the voxels whose foreground
    probability exceeds `FOREGROUND_MIN`.

    Args:
        probabilities: (K, *size).
        image: (C, *size), preprocessed, on the same device.
        weight: of the pairwise term; 0 changes nothing.
    """
    if not weight:
        return
    p = as_tensor(probabilities)
    box = box_above(1 - p[0], FOREGROUND_MIN)
    if box is None:
        return
    inside = (slice(None), *as_slices(box))
    size = p[inside].shape
    similar = [weight * similarity.flatten() for similarity in neighbour_similarity(as_tensor(image)[inside])]
    steps = [math.prod(size[axis:]) for axis in range(2, p.ndim + 1)]
    now = p[inside].reshape(len(p), -1)
    unary, after = (now + EPSILON).log_(), torch.empty_like(now)
    for _ in range(ITERATIONS):
        _iterate(unary, now, similar, steps=steps, out=after)
        now, after = after, now
    p[inside] = now.view(size)


def _iterate(unary: Tensor, now: Tensor, similar: Sequence[Tensor], *, steps: Sequence[int], out: Tensor) -> None:
    """One iteration, a part of the voxels at a time.

    Args:
        unary: logarithms of the probabilities (K, N) of the flattened voxels.
        now: marginals (K, N) before it.
        similar: for each axis the weight (N,) of a voxel and the next one along the axis; 0 where there is none.
        steps: the distance of the two in N.
        out: marginals (K, N) after it.
    """
    count = unary.shape[1]
    for part in slabs(count, len(unary), unary.device):
        first, last = part.start, part.stop
        scores = unary[:, part].clone()
        for between, step in zip(similar, steps, strict=True):
            low, high = max(first, step), min(last, count - step)
            if low < last:
                scores[:, low - first :].addcmul_(between[low - step : last - step], now[:, low - step : last - step])
            if first < high:
                scores[:, : high - first].addcmul_(between[first:high], now[:, first + step : high + step])
        scores.exp_()  # from the logarithm of EPSILON to six times the weight: no overflow
        torch.div(scores, scores.sum(dim=0), out=out[:, part])


def neighbour_similarity(image: Array) -> list[Tensor]:
    """For each axis of an image (C, *size), the similarity of each voxel and the next one along it: (*size) float32, 1
    for equal intensities, towards 0 across an edge; 0 for the last voxels, which have no next one."""
    channels = as_tensor(image)
    sigma = _typical_differences(channels).mul_(EDGE).add_(EPSILON)
    scaled = channels / sigma.view(-1, *[1] * (channels.ndim - 1))
    found = []
    for axis in range(1, scaled.ndim):
        similarity = scaled.diff(dim=axis).square_().mean(dim=0).div_(-2).exp_().float()
        found.append(F.pad(similarity, [0, 0] * (scaled.ndim - 1 - axis) + [0, 1]))
    return found


def _typical_differences(channels: Tensor) -> Tensor:
    """For each channel (C, *size) the median absolute difference of neighbours within slices, which may lie far apart;
    of those above `MIN_DIFFERENCE`, 0 where there are none."""
    steps = channels.diff(dim=-1).abs_().flatten(1)
    typical = []
    for differences, count in zip(steps, to_host((steps > MIN_DIFFERENCE).sum(dim=1))[0].tolist(), strict=True):
        if not count:
            typical.append(differences.new_zeros(()))
            continue
        below = len(differences) - count  # these are the lowest
        typical.append(ranked(differences, sorted({below + (count - 1) // 2, below + count // 2})).mean())
    return torch.stack(typical)
