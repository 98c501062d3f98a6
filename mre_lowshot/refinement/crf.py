"""A conditional random field: neighbouring voxels of similar intensity get the same class."""

from __future__ import annotations

import numpy as np
import torch
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
    pairwise = [torch.from_numpy(similarity) for similarity in neighbour_similarity(image[(slice(None), *box)])]
    marginals = torch.from_numpy(np.ascontiguousarray(probabilities[(slice(None), *box)]))
    unary = torch.log(marginals + EPSILON)
    for _ in range(ITERATIONS):
        scores = unary.clone()
        for axis, similarity in enumerate(pairwise, start=1):
            pairs = scores.shape[axis] - 1
            between = weight * similarity
            for into, neighbour in ((0, 1), (1, 0)):
                scores.narrow(axis, into, pairs).addcmul_(between, marginals.narrow(axis, neighbour, pairs))
        marginals = scores.softmax(dim=0)
    probabilities[(slice(None), *box)] = marginals.numpy()


def neighbour_similarity(image: np.ndarray) -> list[np.ndarray]:
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
