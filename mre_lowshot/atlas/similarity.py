"""How alike two images of the same anatomy are, place by place, whatever their contrast and shading."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

LOCAL_SIGMA = 2.0  # voxels; the surroundings whose mean and spread are taken out
PLACE_SIGMA = 1.0  # voxels; what counts as one place
LEAST = 1e-3  # a difference that noise makes anyway


def normalised(image: np.ndarray) -> np.ndarray:
    """An image (*size) less the mean of its surroundings, over their standard deviation (a tenth of the whole image's
    is added, so that noise in even areas stays small); float32."""
    image = image.astype(np.float64)
    mean = gaussian_filter(image, LOCAL_SIGMA)
    spread = np.sqrt(np.maximum(gaussian_filter(image**2, LOCAL_SIGMA) - mean**2, 0))
    return ((image - mean) / (spread + 0.1 * image.std() + 1e-12)).astype(np.float32)


def likeness(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """1 over the mean squared difference of two `normalised` images around each voxel, (*size) float32."""
    return 1 / (gaussian_filter((one - other) ** 2, PLACE_SIGMA) + np.float32(LEAST))
