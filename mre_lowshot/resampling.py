"""Resizing of images with splines.

Smoothing and spline interpolation along an axis are one product with a matrix, which scipy computes once from the unit
vectors. Three products take about a fifth of the time of scipy's interpolation in three dimensions at once (64
coefficients for each voxel), and need no float64 copy of the image.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

CHUNK = 1 << 21  # values of the image that are float64 at the same time


def resize_image(image: np.ndarray, size: tuple[int, ...], order: int = 3) -> np.ndarray:
    """Resize an image (C, *size) with splines of ``order``; smoothed first along axes that shrink (sigma:
    (old / new - 1) / 2 voxels), edge voxels repeated, limited to the range of each channel. As
    `skimage.transform.resize`, up to rounding. Float32."""
    image = image.astype(np.float32, copy=False)
    if tuple(image.shape[1:]) == tuple(size):
        return image
    made = np.empty((len(image), *size), dtype=np.float32)
    for channel, result in zip(image, made, strict=True):
        np.clip(_resized(channel, size, order), channel.min(), channel.max(), out=result)
    return made


def _resized(channel: np.ndarray, size: tuple[int, ...], order: int) -> np.ndarray:
    # axes that shrink first: no array is larger than the image or the result
    for axis in sorted(range(channel.ndim), key=lambda axis: size[axis] / channel.shape[axis]):
        if channel.shape[axis] != size[axis]:
            channel = _along(channel, axis, spline_matrix(channel.shape[axis], size[axis], order))
    return channel


@lru_cache(maxsize=32)
def spline_matrix(old: int, new: int, order: int) -> np.ndarray:
    """(new, old), float64: smoothing, where the axis shrinks, and spline interpolation along an axis."""
    from scipy import ndimage

    lines = np.eye(old)
    if new < old:
        lines = ndimage.gaussian_filter1d(lines, (old / new - 1) / 2, axis=0, mode="nearest")
    matrix: np.ndarray = ndimage.zoom(lines, (new / old, 1), order=order, mode="nearest", grid_mode=True)
    return matrix


def _along(array: np.ndarray, axis: int, matrix: np.ndarray) -> np.ndarray:
    """An axis of a float32 array multiplied by ``matrix``; each value is summed in float64, so that a constant image
    stays constant."""
    shape = (*array.shape[:axis], len(matrix), *array.shape[axis + 1 :])
    before, old = int(np.prod(array.shape[:axis])), array.shape[axis]
    if axis == array.ndim - 1:
        lines, product = array.reshape(before, old), np.empty((before, len(matrix)), dtype=np.float32)
        for part in _parts(before, old):
            product[part] = lines[part].astype(np.float64) @ matrix.T
        return product.reshape(shape)
    planes = array.reshape(before, old, -1)
    result = np.empty((before, len(matrix), planes.shape[2]), dtype=np.float32)
    for plane, into in zip(planes, result, strict=True):
        for part in _parts(plane.shape[1], old):
            into[:, part] = matrix @ plane[:, part].astype(np.float64)
    return result.reshape(shape)


def _parts(count: int, size: int) -> list[slice]:
    step = max(1, CHUNK // size)
    return [slice(start, start + step) for start in range(0, count, step)]
