"""One EM step on the intensities of the scan itself.

No intensity of a labelled scan is used, so contrast agent and scanner may differ.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mre_lowshot.devices import slabs
from mre_lowshot.filters import gaussian_matrix
from mre_lowshot.refinement.foreground import FOREGROUND_MIN
from mre_lowshot.transfers import Array, as_tensor, ranked, true_positions

BINS, BIN_SIGMA = 64, 2.0  # of a histogram between the RANGE percentiles; smoothing in bins
RANGE = (0.5, 99.5)  # percentiles
COMMON_SHARE = 0.02  # of the histogram over all classes, added to each class's, so that no intensity is impossible


def em_step(probabilities: Array, image: Array, weight: float) -> None:
    """Multiply class probabilities by class likelihoods of the intensities, and normalise; in place.

    One step of expectation maximisation as in atlas-based segmentation (Van Leemput et al. 1999), on voxels where a
    foreground class has a probability of `FOREGROUND_MIN`. The likelihood h_k of class k is the histogram of a channel
    over these voxels, each weighted by its probability of k. The new probability is proportional to p_k h_k(x)^weight;
    with several channels the mean of log h_k is taken.

    Args:
        probabilities: (K, *size).
        image: (C, *size), preprocessed, on the same device.
        weight: 1 is Bayes' rule for independent voxels; less accounts for their dependence; 0 changes nothing.
    """
    if not weight:
        return
    p, channels = as_tensor(probabilities), as_tensor(image)
    near = true_positions(1 - p[0] > FOREGROUND_MIN)
    if not len(near):
        return
    flat = p.reshape(len(p), -1)  # a copy where the classes do not lie one after the other
    inside = flat.index_select(1, near)
    bins, tables = [], []
    for channel in channels:
        of_channel, varies = _bins(channel.flatten().index_select(0, near))
        bins.append(of_channel)
        tables.append(torch.where(varies, _log_densities(inside, of_channel), 0))
    for part in slabs(len(near), len(p), p.device):
        log_likelihood = torch.zeros_like(inside[:, part])
        for table, of_channel in zip(tables, bins, strict=True):
            log_likelihood += table.index_select(1, of_channel[part])
        log_likelihood -= log_likelihood.amax(dim=0)
        values = inside[:, part]
        values *= log_likelihood.mul_(weight / len(channels)).exp_()
        values /= values.sum(dim=0)
    flat.index_copy_(1, near, inside)
    if flat.data_ptr() != p.data_ptr():
        p.copy_(flat.view(p.shape))


def _bins(values: Tensor) -> tuple[Tensor, Tensor]:
    """The bin of each of the intensities (N,) of a channel, and whether they are not all the same."""
    low, high = _percentiles(values)
    width = torch.where(high > low, high - low, torch.inf)
    return ((values.double() - low) / width * BINS).clamp_(0, BINS - 1).long(), high > low


def _percentiles(values: Tensor) -> tuple[Tensor, Tensor]:
    """The `RANGE` percentiles of values (N,), each interpolated linearly between two of them; float64, so that they are
    those of `numpy.percentile`."""
    places = [share / 100 * (len(values) - 1) for share in RANGE]
    ranks = [min(int(at) + more, len(values) - 1) for at in places for more in (0, 1)]
    found = ranked(values, ranks).double()
    low, high = (torch.lerp(found[2 * n], found[2 * n + 1], at - int(at)) for n, at in enumerate(places))
    return low, high


def _log_densities(inside: Tensor, bins: Tensor) -> Tensor:
    """Logarithms of the class likelihoods (K, `BINS`) in the bins of a channel; ``inside`` (K, N), ``bins`` (N,)."""
    counts = torch.zeros((BINS, len(inside)), dtype=torch.float64, device=inside.device)
    for part in slabs(len(bins), len(inside), bins.device):
        counts.index_add_(0, bins[part], inside[:, part].T.double())
    counts = counts.T
    smoothing = torch.from_numpy(gaussian_matrix(BINS, BIN_SIGMA)).to(counts.device)
    density = counts @ smoothing.T / counts.sum(dim=1, keepdim=True).clamp_min(1)
    common = counts.sum(dim=0) / counts.sum()
    return (density + COMMON_SHARE * common + torch.finfo(torch.float32).tiny).log().to(inside.dtype)
