"""The plain reference for the steps after the network: whole arrays in numpy, class by class, nothing left out."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter1d

from mre_lowshot.grid import resize_linear, sample_image
from mre_lowshot.refinement.components import LARGE_COMPONENT
from mre_lowshot.refinement.crf import EDGE, EPSILON, ITERATIONS, MIN_DIFFERENCE
from mre_lowshot.refinement.em import BIN_SIGMA, BINS, COMMON_SHARE, RANGE
from mre_lowshot.refinement.foreground import FOREGROUND_MIN
from mre_lowshot.refinement.fusion import ATLAS_FLOOR, EQUAL_SHARES


def warped_shares(label: np.ndarray, positions: np.ndarray, classes: int) -> np.ndarray:
    """Each class's indicator, sampled at ``positions``: (K, *patch)."""
    return np.stack([sample_image((label == k).astype(np.float32)[None], positions)[0] for k in range(classes)])


def fuse(posterior: np.ndarray, warped: np.ndarray, weight: float) -> np.ndarray:
    """p^(1-w) q^w, normalised."""
    fused: np.ndarray = posterior ** (1 - weight) * (warped + ATLAS_FLOOR) ** weight
    fused /= fused.sum(axis=0)
    unknown = warped.max(axis=0) - warped.min(axis=0) <= EQUAL_SHARES
    fused[:, unknown] = posterior[:, unknown]
    return fused


def em_step(probabilities: np.ndarray, image: np.ndarray, weight: float) -> np.ndarray:
    """The EM step on the intensities, of an image (C, *size)."""
    near = 1 - probabilities[0] > FOREGROUND_MIN
    inside, result = probabilities[:, near], probabilities.copy()
    logs = np.zeros_like(inside)
    for channel in image:
        values = channel[near]
        low, high = np.percentile(values, RANGE)
        if high > low:
            bins = np.clip((values - low) / (high - low) * BINS, 0, BINS - 1).astype(np.intp)
            counts = np.stack([np.bincount(bins, weights=p, minlength=BINS) for p in inside])
            density = gaussian_filter1d(counts, BIN_SIGMA, axis=1) / np.maximum(counts.sum(axis=1, keepdims=True), 1)
            common = counts.sum(axis=0) / counts.sum()
            logs += np.log(density + COMMON_SHARE * common + np.finfo(np.float32).tiny)[:, bins]
    inside = inside * np.exp(weight / len(image) * (logs - logs.max(axis=0)))
    result[:, near] = inside / inside.sum(axis=0)
    return result


def neighbour_similarity(image: np.ndarray) -> list[np.ndarray]:
    """For each axis of an image (C, *size), the similarity of neighbours along it: (*size with one voxel less)."""
    usual = [np.abs(np.diff(channel, axis=-1)) for channel in image]
    usual = [steps[steps > MIN_DIFFERENCE] for steps in usual]
    sigma = [EDGE * float(np.median(steps)) + EPSILON if steps.size else EPSILON for steps in usual]
    scaled = image / np.array(sigma, image.dtype).reshape(-1, *[1] * (image.ndim - 1))
    differences = (np.diff(scaled, axis=axis) for axis in range(1, image.ndim))
    return [np.exp(-np.mean(d**2, axis=0) / 2).astype(np.float32) for d in differences]


def shrunk(probabilities: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Class probabilities (K, *old) on a coarser grid of ``size``, smoothed first."""
    from skimage.transform import resize

    options = {"order": 1, "mode": "edge", "anti_aliasing": True, "preserve_range": True}
    return np.stack([resize(channel, size, **options) for channel in probabilities])


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
