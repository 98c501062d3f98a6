"""The smooth shading of an MRI (its bias field), found from the image alone and divided out."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import map_coordinates

SIDE = 32  # voxels towards which the image is thinned: the field is smooth, and N4's time grows with the voxels
STEPS = (50, 50, 50)  # at most, with a mesh of 1, 2 and 4 spans an axis


def without_shading(channel: np.ndarray, inside: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """One MRI channel (D, H, W) of ``spacing`` (z, y, x) mm divided by its bias field, float32; the field is N4's
    (Tustison et al., IEEE TMI 2010; SimpleITK), from the voxels ``inside`` (D, H, W) bool, and outside it stays within
    what it is there.

    What is not above 0 has no part in it; a channel with nothing else, of one slice or of one intensity comes back as
    it is (the last is refused when it is normalised).
    """
    import SimpleITK as sitk

    step = tuple(max(1, n // SIDE) for n in channel.shape)
    thin = tuple(slice(None, None, s) for s in step)
    known = inside[thin] & (channel[thin] > 0)
    if not known.any() or min(known.shape) < 2 or np.ptp(channel[thin][known]) == 0:
        return np.asarray(channel, dtype=np.float32)
    image = sitk.GetImageFromArray(np.ascontiguousarray(channel[thin], dtype=np.float32))
    image.SetSpacing([float(a * b) for a, b in zip(spacing, step, strict=True)][::-1])
    mask = sitk.GetImageFromArray(known.astype(np.uint8))
    mask.CopyInformation(image)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(STEPS)
    n4.Execute(image, mask)
    field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image))
    field = np.clip(field, field[known].min(), field[known].max())  # where nothing is known it may be anything
    field -= field[known].mean()  # its scale is nobody's
    places = np.meshgrid(
        *(np.arange(n, dtype=np.float32) / s for n, s in zip(channel.shape, step, strict=True)), indexing="ij"
    )
    return np.asarray(channel / np.exp(map_coordinates(field, places, order=1, mode="nearest")), dtype=np.float32)
