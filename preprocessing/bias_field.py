"""The bias field of an MRI, estimated from the image alone and divided out."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import map_coordinates

from mre_lowshot.grid import nominal_spacing

SIDE = 32  # voxels per axis that the image is downsampled towards: the field is smooth, and N4's time grows with them
ITERATIONS = (50, 50, 50)  # at most, with meshes of 1, 2 and 4 spans per axis


def correct_bias_field(channel: np.ndarray, inside: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """One MRI channel divided by its bias field, estimated with N4 (Tustison et al., IEEE TMI 2010; SimpleITK).

    Args:
        channel: (D, H, W).
        inside: (D, H, W) bool, voxels to estimate from, where they are above 0. Outside them the field stays within its
            range inside.
        spacing: (z, y, x) mm.

    Returns:
        (D, H, W) float32. A channel without a positive voxel inside, of one slice or of one intensity is returned
        unchanged (the last is refused when it is normalised).
    """
    import SimpleITK as sitk

    step = tuple(max(1, n // SIDE) for n in channel.shape)
    every = tuple(slice(None, None, s) for s in step)
    known = inside[every] & (channel[every] > 0)
    if not known.any() or min(known.shape) < 2 or np.ptp(channel[every][known]) == 0:
        return np.asarray(channel, dtype=np.float32)
    image = sitk.GetImageFromArray(np.ascontiguousarray(channel[every], dtype=np.float32))
    image.SetSpacing([float(a * b) for a, b in zip(nominal_spacing(spacing), step, strict=True)][::-1])
    mask = sitk.GetImageFromArray(known.astype(np.uint8))
    mask.CopyInformation(image)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(ITERATIONS)
    n4.Execute(image, mask)
    field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image))
    field = np.clip(field, field[known].min(), field[known].max())  # outside the mask it may take any value
    field -= field[known].mean()  # its scale is arbitrary
    positions = np.meshgrid(
        *(np.arange(n, dtype=np.float32) / s for n, s in zip(channel.shape, step, strict=True)), indexing="ij"
    )
    return np.asarray(channel / np.exp(map_coordinates(field, positions, order=1, mode="nearest")), dtype=np.float32)
