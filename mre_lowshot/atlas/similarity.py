"""Local similarity of two images of the same anatomy, independent of contrast and shading."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

LOCAL_SIGMA = 2.0  # voxels; neighbourhood whose mean and standard deviation are removed
COMPARED_SIGMA = 1.0  # voxels; neighbourhood over which squared differences are averaged
NOISE_FLOOR = 1e-3  # squared difference that noise alone makes
GLOBAL_SHARE = 0.1  # of the whole image's standard deviation, so that noise in even regions stays small


def normalize_locally(image: np.ndarray) -> np.ndarray:
    """An image (*size) minus its local mean, divided by its local standard deviation; float32."""
    image = image.astype(np.float64)
    mean = gaussian_filter(image, LOCAL_SIGMA)
    spread = np.sqrt(np.maximum(gaussian_filter(image**2, LOCAL_SIGMA) - mean**2, 0))
    normalized: np.ndarray = ((image - mean) / (spread + GLOBAL_SHARE * image.std() + 1e-12)).astype(np.float32)
    return normalized


def local_similarity(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """1 over the mean squared difference of two locally normalised images around each voxel: (*size) float32."""
    similarity: np.ndarray = 1 / (gaussian_filter((one - other) ** 2, COMPARED_SIGMA) + np.float32(NOISE_FLOOR))
    return similarity
