"""Enhancement of an ultrasound image, its superpixels, and features of them, for the baseline `scs`."""

from __future__ import annotations

import numpy as np

RADIUS, RANGE, STEPS = 3, 0.1, 5  # of the mean shift filter: pixels, grey values (0 to 1), iterations at most
AREA = 36  # pixels of a superpixel, on average
COMPACTNESS = 0.1  # of SLIC, for grey values from 0 to 1: weight of position against intensity
PATCH = 5  # side of the neighbourhood that is a pixel's descriptor
BINS = 8  # grey levels of histogram and co-occurrence
_OFFSETS = ((0, 1), (1, 1), (1, 0), (1, -1))  # of co-occurring pixels: 0, 45, 90 and 135 degrees


def enhance(image: np.ndarray) -> np.ndarray:
    """Histogram equalisation, bilateral filter and pyramid mean shift filter: (H, W) float, 0 to 1."""
    from skimage.exposure import equalize_hist
    from skimage.restoration import denoise_bilateral

    equal = equalize_hist(np.asarray(image, dtype=np.float64))
    return pyramid_mean_shift(denoise_bilateral(equal, win_size=5, sigma_color=RANGE, sigma_spatial=2))


def pyramid_mean_shift(image: np.ndarray) -> np.ndarray:
    """Mean shift filter (Comaniciu and Meer 2002) on an image of half the size, then on the image (H, W) itself, which
    begins with the values of the first where these are within `RANGE` of its own."""
    from skimage.transform import resize

    if min(image.shape) < 2 * PATCH:
        return mean_shift(image, image)
    half = tuple(-(-n // 2) for n in image.shape)
    coarse = resize(image, half, order=1, anti_aliasing=True)
    coarse = resize(mean_shift(coarse, coarse), image.shape, order=1)
    return mean_shift(image, np.where(np.abs(coarse - image) <= RANGE, coarse, image))


def mean_shift(image: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Move each pixel's (row, column, value) to the mean of the pixels of ``image`` (H, W) at most `RADIUS` away along
    each axis and at most `RANGE` in value, up to `STEPS` times; the values (H, W). They begin with those of ``start``.
    """
    height, width = image.shape
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    values = np.array(start, dtype=np.float64)
    for _ in range(STEPS):
        total, sums = np.zeros(image.shape), np.zeros((3, *image.shape))
        centre_r, centre_c = np.rint(rows).astype(np.intp), np.rint(columns).astype(np.intp)
        for dr in range(-RADIUS, RADIUS + 1):
            for dc in range(-RADIUS, RADIUS + 1):
                r, c = centre_r + dr, centre_c + dc
                inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
                found = image[r.clip(0, height - 1), c.clip(0, width - 1)]
                near = inside & (np.abs(found - values) <= RANGE)
                total += near
                for axis, part in enumerate((r, c, found)):
                    sums[axis] += np.where(near, part, 0)
        some = total > 0
        for array, part in zip((rows, columns, values), sums, strict=True):
            array[some] = part[some] / total[some]
    return values


def segments(enhanced: np.ndarray) -> np.ndarray:
    """SLIC superpixels (Achanta et al. 2012) of an enhanced image: (H, W) int, numbered from 0 without a gap."""
    from skimage.segmentation import slic

    count = max(1, round(enhanced.size / AREA))
    found = slic(enhanced, n_segments=count, compactness=COMPACTNESS, channel_axis=None, start_label=0)
    return np.unique(found, return_inverse=True)[1].reshape(found.shape)


def descriptors(enhanced: np.ndarray) -> np.ndarray:
    """Each pixel's neighbourhood of `PATCH` x `PATCH` values: (H * W, PATCH ** 2)."""
    wide = np.pad(enhanced, PATCH // 2, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(wide, (PATCH, PATCH))
    return windows.reshape(enhanced.size, PATCH**2)


def shares(labels: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """For each superpixel the share of its pixels with each of ``count`` values: (superpixels, count).

    Args:
        labels: superpixels (H, W).
        values: (H, W) integers from 0; those outside 0 to ``count`` - 1 are left out.
        count: number of values.
    """
    known = (values >= 0) & (values < count)
    pairs = labels[known].astype(np.intp) * count + values[known]
    found = np.bincount(pairs, minlength=(int(labels.max()) + 1) * count).reshape(-1, count)
    normalized: np.ndarray = found / np.maximum(found.sum(axis=1, keepdims=True), 1)
    return normalized


def texture(labels: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Contrast, homogeneity, energy and correlation (Haralick et al. 1973) of each superpixel's co-occurrence matrix
    of neighbouring pixels, both in the superpixel, in four directions: (superpixels, 4).

    Args:
        labels: superpixels (H, W).
        levels: grey levels (H, W), integers below `BINS`.
    """
    height, width = labels.shape
    matrices = np.zeros((int(labels.max()) + 1, BINS, BINS))
    for dr, dc in _OFFSETS:
        one = np.s_[: height - dr, max(0, -dc) : width - max(0, dc)]
        other = np.s_[dr:, max(0, dc) : width + min(0, dc)]
        same = labels[one] == labels[other]
        where = labels[one][same], levels[one][same], levels[other][same]
        np.add.at(matrices, where, 1)
    matrices += matrices.transpose(0, 2, 1)
    matrices /= np.maximum(matrices.sum(axis=(1, 2), keepdims=True), 1)
    i, j = np.mgrid[:BINS, :BINS]
    gap = (i - j) ** 2
    marginal = matrices.sum(axis=2)
    mean = (marginal * np.arange(BINS)).sum(axis=1)
    variance = (marginal * np.arange(BINS) ** 2).sum(axis=1) - mean**2
    product = (matrices * (i * j)).sum(axis=(1, 2)) - mean**2
    flat = variance < 1e-12  # a constant superpixel correlates perfectly
    correlation = np.where(flat, 1.0, product / np.where(flat, 1.0, variance))
    energy = np.sqrt((matrices**2).sum(axis=(1, 2)))
    return np.stack(
        [(matrices * gap).sum(axis=(1, 2)), (matrices / (1 + gap)).sum(axis=(1, 2)), energy, correlation], axis=1
    )


def centres(labels: np.ndarray) -> np.ndarray:
    """Centre of gravity (row, column) of each superpixel: (superpixels, 2)."""
    count = np.bincount(labels.ravel())
    rows, columns = np.mgrid[: labels.shape[0], : labels.shape[1]]
    sums = [np.bincount(labels.ravel(), weights=axis.ravel()) for axis in (rows, columns)]
    found: np.ndarray = np.stack(sums, axis=1) / count[:, None]
    return found
