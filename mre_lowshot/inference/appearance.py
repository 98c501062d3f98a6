"""What a class looks like in the scan at hand: intensities learnt from the prediction, and the prediction mended by
them.

Expectation maximisation as in atlas-based segmentation (Van Leemput et al. 1999), one step: no intensity of the
labelled scan is asked, so other contrast agent or another scanner does no harm.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter1d

DOUBT = 0.02  # probability of any structure from which a voxel takes part
BINS, BIN_SMOOTHING = 64, 2.0  # of a histogram between the RANGE percentiles, and the sigma in bins it is smoothed by
RANGE = (0.5, 99.5)
COMMON = 0.02  # of the distribution over all classes, mixed into each class's: no intensity is impossible


def adapt(probabilities: np.ndarray, image: np.ndarray, weight: float) -> None:
    """Multiply class probabilities (K, *size), in place, by what the image (C, *size) says of each class.

    Among the voxels where some structure is at all likely, the intensities of class k are distributed as h_k: the
    histogram of a channel, each voxel counted by its probability of k. The new probability is in proportion to
    p_k h_k(x)^weight, the mean of log h_k over the channels taken where there are several. ``weight`` 1 is Bayes' rule
    for a voxel on its own, less allows for neighbours being alike, 0 changes nothing.
    """
    near = 1 - probabilities[0] > DOUBT
    if not weight or not near.any():
        return
    mended = probabilities[:, near]
    said = np.zeros_like(mended)
    for channel in image:
        values = channel[near]
        low, high = np.percentile(values, RANGE)
        if not high > low:
            continue
        bins = np.clip((values - low) / (high - low) * BINS, 0, BINS - 1).astype(np.intp)
        counts = np.stack([np.bincount(bins, weights=p, minlength=BINS) for p in mended])
        density = gaussian_filter1d(counts, BIN_SMOOTHING, axis=1) / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        common = counts.sum(axis=0) / counts.sum()
        said += np.log(density + COMMON * common + np.finfo(np.float32).tiny)[:, bins]
    said -= said.max(axis=0)
    mended *= np.exp(weight / len(image) * said)
    mended /= mended.sum(axis=0)
    probabilities[:, near] = mended
