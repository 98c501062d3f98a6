"""A conditional random field: neighbouring voxels of similar intensity get the same class."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import find_objects

from mre_lowshot.refinement.foreground import FOREGROUND_MIN

ITERATIONS = 3  # of mean field
EDGE = 1.5  # sigma of the pairwise term, in median absolute differences of neighbours
MIN_DIFFERENCE = 1e-4  # of normalised intensities: smaller ones are interpolation ringing in a constant region
EPSILON = 1e-6  # added to probabilities and sigma


def crf_mean_field(probabilities: np.ndarray, image: np.ndarray, weight: float) -> None:
    """Mean-field inference of a Potts model on the 6-neighbourhood (Boykov and Jolly 2001); in place.

    log q_k = log p_k + weight * sum over neighbours n of b_n q_k(n), with b = exp(-(x - x_n)^2 / (2 sigma^2)) and sigma
    `EDGE` times the median absolute difference of neighbours, so that borders move to the edges of the image. With
    several channels the mean of the squares is taken. Computed inside the bounding box of the voxels whose foreground
    probability exceeds `FOREGROUND_MIN`.

    Args:
        probabilities: (K, *size).
        image: (C, *size), preprocessed.
        weight: of the pairwise term; 0 changes nothing.
    """
    near = 1 - probabilities[0] > FOREGROUND_MIN
    if not weight or not near.any():
        return
    box = find_objects(near.astype(np.uint8))[0]
    unary = np.log(probabilities[(slice(None), *box)] + np.float32(EPSILON))
    pairwise = _pairwise(image[(slice(None), *box)])
    marginals = probabilities[(slice(None), *box)]
    for _ in range(ITERATIONS):
        messages = np.zeros_like(unary)
        for axis, similarity in enumerate(pairwise, start=1):
            first, second = np.moveaxis(marginals, axis, 0)[:-1], np.moveaxis(marginals, axis, 0)[1:]
            between, into = np.moveaxis(similarity, axis - 1, 0)[:, None], np.moveaxis(messages, axis, 0)
            into[:-1] += between * second
            into[1:] += between * first
        marginals = unary + np.float32(weight) * messages
        marginals -= marginals.max(axis=0)
        np.exp(marginals, out=marginals)
        marginals /= marginals.sum(axis=0)
    probabilities[(slice(None), *box)] = marginals


def _pairwise(image: np.ndarray) -> list[np.ndarray]:
    """For each axis of an image (C, *size), the similarity of neighbours along it: float32, (*size with one voxel less
    on that axis), 1 for equal intensities, towards 0 across an edge."""
    usual = [np.abs(np.diff(channel, axis=-1)) for channel in image]  # within slices, which may lie far apart
    usual = [steps[steps > MIN_DIFFERENCE] for steps in usual]
    sigma = np.array(
        [EDGE * float(np.median(steps)) + EPSILON if steps.size else EPSILON for steps in usual], image.dtype
    )
    scaled = image / sigma.reshape(-1, *[1] * (image.ndim - 1))
    differences = (np.diff(scaled, axis=axis) for axis in range(1, image.ndim))
    return [np.exp(-np.mean(d**2, axis=0) / 2).astype(np.float32) for d in differences]
