"""The plain reference for the steps after the network: whole arrays in numpy, class by class, nothing left out."""

from __future__ import annotations

import numpy as np

from mre_lowshot.grid import resize_linear, sample_image
from mre_lowshot.refinement.components import LARGE_COMPONENT
from mre_lowshot.refinement.crf import EPSILON, ITERATIONS
from mre_lowshot.refinement.fusion import ATLAS_FLOOR, is_informative


def warped_shares(label: np.ndarray, positions: np.ndarray, classes: int) -> np.ndarray:
    """Each class's indicator, sampled at ``positions``: (K, *patch)."""
    return np.stack([sample_image((label == k).astype(np.float32)[None], positions)[0] for k in range(classes)])


def fuse(posterior: np.ndarray, warped: np.ndarray, weight: float) -> np.ndarray:
    """p^(1-w) q^w, normalised."""
    fused: np.ndarray = posterior ** (1 - weight) * (warped + ATLAS_FLOOR) ** weight
    fused /= fused.sum(axis=0)
    unknown = ~is_informative(warped)
    fused[:, unknown] = posterior[:, unknown]
    return fused


def mean_field(probabilities: np.ndarray, pairwise: list[np.ndarray], weight: float) -> np.ndarray:
    """The CRF's mean field over the whole array."""
    unary = np.log(probabilities + np.float32(EPSILON))
    marginals = probabilities
    for _ in range(ITERATIONS):
        messages = np.zeros_like(unary)
        for axis, similarity in enumerate(pairwise, start=1):
            first, second = np.moveaxis(marginals, axis, 0)[:-1], np.moveaxis(marginals, axis, 0)[1:]
            between, into = np.moveaxis(similarity, axis - 1, 0)[:, None], np.moveaxis(messages, axis, 0)
            into[:-1] += between * second
            into[1:] += between * first
        marginals = np.exp(unary + np.float32(weight) * messages)
        marginals /= marginals.sum(axis=0)
    return marginals


def native_labels(probabilities: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Argmax of every class resized to the whole native grid."""
    best, labels = resize_linear(probabilities[0], size), np.zeros(size, np.int16)
    for k in range(1, len(probabilities)):
        resized = resize_linear(probabilities[k], size)
        labels[resized > best] = k
        best = np.maximum(best, resized)
    return labels


def largest_components(labels: np.ndarray, classes: int) -> np.ndarray:
    """Small components of every class set to background, each class labelled in the whole array."""
    from skimage.measure import label

    for k in range(1, classes):
        components = label(labels == k)
        sizes = np.bincount(components.ravel())[1:]
        small = np.flatnonzero(sizes < LARGE_COMPONENT * sizes.max(initial=0)) + 1
        labels[np.isin(components, small)] = 0
    return labels
