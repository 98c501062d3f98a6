"""Local similarity of two images of the same anatomy, independent of contrast and shading."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter
from torch import Tensor

from mre_lowshot.filters import gaussian_smoothed

LOCAL_SIGMA = 2.0  # voxels; neighbourhood whose mean and standard deviation are removed
COMPARED_SIGMA = 1.0  # voxels; neighbourhood over which squared differences are averaged
NOISE_FLOOR = 1e-3  # squared difference that noise alone makes
GLOBAL_SHARE = 0.1  # of the whole image's standard deviation, so that noise in even regions stays small


def normalize_locally(image: np.ndarray) -> np.ndarray:
    """An image (*size) minus its local mean, divided by its local standard deviation; float32. In torch it is
    `registration.volumes.locally_normalised`."""
    image = image.astype(np.float64)
    mean = gaussian_filter(image, LOCAL_SIGMA)
    spread = np.sqrt(np.maximum(gaussian_filter(image**2, LOCAL_SIGMA) - mean**2, 0))
    normalized: np.ndarray = ((image - mean) / (spread + GLOBAL_SHARE * image.std() + 1e-12)).astype(np.float32)
    return normalized


def local_similarity(one: Tensor, other: Tensor) -> Tensor:
    """1 over the mean squared difference of two locally normalised images (D, H, W) around each voxel: (D, H, W)
    float32."""
    return 1 / (gaussian_smoothed((one - other).square(), COMPARED_SIGMA) + NOISE_FLOOR)
