"""One EM step on the intensities of the scan itself.

No intensity of a labelled scan is used, so contrast agent and scanner may differ.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter1d

from mre_lowshot.refinement.foreground import FOREGROUND_MIN

BINS, BIN_SIGMA = 64, 2.0  # of a histogram between the RANGE percentiles; smoothing in bins
RANGE = (0.5, 99.5)  # percentiles
COMMON_SHARE = 0.02  # of the histogram over all classes, added to each class's, so that no intensity is impossible


def em_step(probabilities: np.ndarray, image: np.ndarray, weight: float) -> None:
    """Multiply class probabilities by class likelihoods of the intensities, and normalise; in place.

    One step of expectation maximisation as in atlas-based segmentation (Van Leemput et al. 1999), on voxels where a
    foreground class has a probability of `FOREGROUND_MIN`. The likelihood h_k of class k is the histogram of a channel
    over these voxels, each weighted by its probability of k. The new probability is proportional to p_k h_k(x)^weight;
    with several channels the mean of log h_k is taken.

    Args:
        probabilities: (K, *size).
        image: (C, *size), preprocessed.
        weight: 1 is Bayes' rule for independent voxels; less accounts for their dependence; 0 changes nothing.
    """
    near = 1 - probabilities[0] > FOREGROUND_MIN
    if not weight or not near.any():
        return
    inside = probabilities[:, near]
    log_likelihood = np.zeros_like(inside)
    for channel in image:
        values = channel[near]
        low, high = np.percentile(values, RANGE)
        if not high > low:
            continue
        bins = np.clip((values - low) / (high - low) * BINS, 0, BINS - 1).astype(np.intp)
        counts = np.stack([np.bincount(bins, weights=p, minlength=BINS) for p in inside])
        density = gaussian_filter1d(counts, BIN_SIGMA, axis=1) / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        common = counts.sum(axis=0) / counts.sum()
        log_likelihood += np.log(density + COMMON_SHARE * common + np.finfo(np.float32).tiny)[:, bins]
    log_likelihood -= log_likelihood.max(axis=0)
    inside *= np.exp(weight / len(image) * log_likelihood)
    inside /= inside.sum(axis=0)
    probabilities[:, near] = inside
