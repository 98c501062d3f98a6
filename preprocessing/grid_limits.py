"""Memory that cropping, normalising and resampling a scan needs, required before it is allocated."""

from __future__ import annotations

import math

from mre_lowshot.config import PreprocessingConfig
from mre_lowshot.grid import Box
from mre_lowshot.limits import require_memory

# Bytes for each voxel of one cropped channel while it is resampled (smoothed float32, spline coefficients float64) or
# its statistics are computed (float64), and while a bias field is evaluated (three float64 coordinates, two fields).
RESAMPLING, BIAS_FIELD = 16, 56


def forward_bytes(box: Box, size: tuple[int, ...], config: PreprocessingConfig) -> float:
    """Bytes that `pipeline.forward` allocates beside the image: all channels cropped (float32), one of them being
    processed, and the result (float32, and the channel that is added to it).

    Args:
        box: that the image is cropped to, voxels.
        size: of the network's grid, voxels.
        config: of the plan.
    """
    cropped = math.prod(float(high - low) for low, high in box)
    grid = math.prod(map(float, size))
    channels = len(config.normalization)
    working = BIAS_FIELD + 4 * channels if config.bias_field else RESAMPLING
    return cropped * (4 * channels + working) + 4 * grid * (2 * channels + 1)


def check_grid(box: Box, size: tuple[int, ...], config: PreprocessingConfig) -> None:
    """Refuse a scan whose planned grid does not fit into memory; for the arguments see `forward_bytes`.

    Raises:
        UserError: states the grid and the memory.
    """
    shape = tuple(high - low for low, high in box)
    require_memory(
        forward_bytes(box, size, config),
        f"resampling {shape} voxels to the plan's grid of {size} voxels (z, y, x)",
        "crop the scan, or plan a coarser grid with -p NAME --set preprocessing.spacing=[z,y,x]",
    )
