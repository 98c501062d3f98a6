"""A prediction mended by the scan itself: what each class looks like in it, and where its edges are.

No intensity of the labelled scan is asked, so contrast agent and scanner need not be the same.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import find_objects, gaussian_filter1d

DOUBT = 0.02  # probability of any structure from which a voxel takes part
BINS, BIN_SMOOTHING = 64, 2.0  # of a histogram between the RANGE percentiles, and the sigma in bins it is smoothed by
RANGE = (0.5, 99.5)
COMMON = 0.02  # of the distribution over all classes, mixed into each class's: no intensity is impossible
ROUNDS = 3  # of mean field
EDGE = 1.5  # median steps between neighbours that are one sigma of the bond between them
CONSTANT = 1e-4  # of normalised intensities: a step no larger is resampling's ringing in what is one value
LEAST = 1e-6  # probability


def adapt(probabilities: np.ndarray, image: np.ndarray, weight: float) -> None:
    """Multiply class probabilities (K, *size), in place, by what the image (C, *size) says of each class.

    Expectation maximisation as in atlas-based segmentation (Van Leemput et al. 1999), one step. Among the voxels where
    some structure is at all likely, the intensities of class k are distributed as h_k: the histogram of a channel, each
    voxel counted by its probability of k. The new probability is in proportion to p_k h_k(x)^weight, the mean of
    log h_k over the channels taken where there are several. ``weight`` 1 is Bayes' rule for a voxel on its own, less
    allows for neighbours being alike, 0 changes nothing.
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


def agree_with_neighbours(probabilities: np.ndarray, image: np.ndarray, weight: float) -> None:
    """Let neighbouring voxels of like intensity agree on their class: class probabilities (K, *size), in place, by the
    image (C, *size), within the box where some structure is at all likely.

    Mean field of a conditional random field with Potts bonds (Boykov and Jolly 2001) between neighbours along each
    axis: log q_k = log p_k + weight * sum over neighbours n of b_n q_k(n), with b = exp(-(x - x_n)^2 / (2 sigma^2)) and
    sigma `EDGE` times the median step between neighbours (constant surroundings do not count), so that borders come to
    lie on the scan's edges. The mean of the squares over the channels is taken where there are several.
    """
    near = 1 - probabilities[0] > DOUBT
    if not weight or not near.any():
        return
    box = find_objects(near.astype(np.uint8))[0]
    own = np.log(probabilities[(slice(None), *box)] + np.float32(LEAST))
    bonds = _bonds(image[(slice(None), *box)])
    agreed = probabilities[(slice(None), *box)]
    for _ in range(ROUNDS):
        felt = np.zeros_like(own)
        for axis, bond in enumerate(bonds, start=1):
            first, second = np.moveaxis(agreed, axis, 0)[:-1], np.moveaxis(agreed, axis, 0)[1:]
            between, into = np.moveaxis(bond, axis - 1, 0)[:, None], np.moveaxis(felt, axis, 0)
            into[:-1] += between * second
            into[1:] += between * first
        agreed = own + np.float32(weight) * felt
        agreed -= agreed.max(axis=0)
        np.exp(agreed, out=agreed)
        agreed /= agreed.sum(axis=0)
    probabilities[(slice(None), *box)] = agreed


def _bonds(image: np.ndarray) -> list[np.ndarray]:
    """For each axis of an image (C, *size) (*size less one along it) float32: 1 between voxels of one intensity,
    towards 0 across an edge."""
    usual = [np.abs(np.diff(channel, axis=-1)) for channel in image]  # within slices, which may lie far apart
    usual = [steps[steps > CONSTANT] for steps in usual]
    sigma = np.array([EDGE * float(np.median(steps)) + LEAST if steps.size else LEAST for steps in usual], image.dtype)
    scaled = image / sigma.reshape(-1, *[1] * (image.ndim - 1))
    steps_along = (np.diff(scaled, axis=axis) for axis in range(1, image.ndim))
    return [np.exp(-np.mean(steps**2, axis=0) / 2).astype(np.float32) for steps in steps_along]
