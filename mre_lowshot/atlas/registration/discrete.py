"""Discrete registration with coupled convex optimisation, for large displacements.

Demons follow image gradients to the nearest optimum; an organ that lies 3 cm elsewhere is out of their reach. Here
every block of the scan is compared with the other scan at a dense set of displacements, and the choices of neighbouring
blocks are regularised step by step (Heinrich, Papiez, Schnabel, Handels 2014, "Non-parametric discrete registration
with convex optimisation"; as in Siebert, Hansen, Heinrich 2021, ConvexAdam, without Adam). Compared are
self-similarities of each scan (MIND-SSC; Heinrich et al. 2013) instead of intensities, and class probabilities where
both are available.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mre_lowshot.grid import sample_image, voxel_positions

COUPLING = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # weight of the neighbours' choice, round by round
CONSISTENCY_ROUNDS = 15
CLASS_WEIGHT = 10.0  # of a squared difference of class probabilities; a feature's is 1


def self_similarity(image: Tensor, radius: int, distance: int) -> Tensor:
    """MIND-SSC features (12, *size), 0 to 1, of an image (*size), three axes.

    The six patches (of ``radius``) at ``distance`` from a voxel, both in voxels, are compared in the twelve pairs that
    are not opposite; feature = exp(-(D - min D) / mean D), D the pair's mean squared difference, over the twelve.
    """
    padded = F.pad(image[None, None], [distance] * 6, mode="replicate")[0, 0]
    shifted = []
    for axis, side in product(range(3), (0, 2 * distance)):
        corner = [distance] * 3
        corner[axis] = side
        shifted.append(padded[tuple(slice(c, c + n) for c, n in zip(corner, image.shape, strict=True))])
    pairs = [(a, b) for a, b in combinations(range(6), 2) if a // 2 != b // 2]
    squared = torch.stack([(shifted[a] - shifted[b]) ** 2 for a, b in pairs])
    differences = F.avg_pool3d(F.pad(squared, [radius] * 6, mode="replicate"), 2 * radius + 1, stride=1)
    differences = differences - differences.amin(dim=0)
    spread = differences.mean(dim=0)
    typical = spread.mean()
    return torch.exp(-differences / spread.clamp(1e-3 * typical + 1e-12, 1e3 * typical + 1e-12))


def displacement(
    fixed: np.ndarray,
    moving: np.ndarray,
    step: Sequence[int],
    reach: int,
    radius: int = 1,
    distance: int = 2,
    classes: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """Displacement (3, *size) in voxels from ``fixed`` to ``moving``, both (*size): ``fixed`` at x matches ``moving``
    at x + displacement(x).

    The result is made consistent with the displacement found from ``moving`` to ``fixed``, and interpolated between
    blocks.

    Args:
        fixed, moving: images.
        step: side of a block in voxels, per axis.
        reach: search radius along each axis, in blocks.
        radius, distance: of the features, in voxels.
        classes: class probabilities (K, *size) of ``fixed`` and ``moving``, compared too.
    """
    size = fixed.shape
    rest = [(0, -n % s) for n, s in zip(size, step, strict=True)]
    blocks = []
    for image, shares in zip((fixed, moving), classes or (None, None), strict=True):
        features = self_similarity(torch.from_numpy(_padded(image, rest)), radius, distance)
        if shares is not None:
            weighted = torch.from_numpy(_padded(shares, [(0, 0), *rest])).mul_(CLASS_WEIGHT**0.5)
            features = torch.cat([features, weighted])
        blocks.append(F.avg_pool3d(features, tuple(step), stride=tuple(step)))
    forward = _best(blocks[0], blocks[1], reach).numpy()
    back = _best(blocks[1], blocks[0], reach).numpy()
    home = voxel_positions([0] * 3, forward.shape[1:])
    for _ in range(CONSISTENCY_ROUNDS):
        forward, back = (
            (forward - sample_image(back, home + forward)) / 2,
            (back - sample_image(forward, home + back)) / 2,
        )
    scaled = torch.from_numpy(forward * np.reshape(step, (3, 1, 1, 1)).astype(np.float32))
    padded = [n + more for n, (_, more) in zip(size, rest, strict=True)]
    full = F.interpolate(scaled[None], size=padded, mode="trilinear", align_corners=False)[0]
    return full[(slice(None), *(slice(n) for n in size))].numpy()


def _padded(array: np.ndarray, widths: Sequence[tuple[int, int]]) -> np.ndarray:
    return np.pad(array, widths, mode="edge").astype(np.float32)


def _best(fixed: Tensor, moving: Tensor, reach: int) -> Tensor:
    """Displacement (3, *blocks), in blocks, of features (F, *blocks) by coupled convex optimisation."""
    choices = torch.tensor(list(product(range(-reach, reach + 1), repeat=3)), dtype=torch.float32)
    cost = _costs(fixed, moving, reach)
    shape = fixed.shape[1:]
    length = (choices**2).sum(dim=1, keepdim=True)
    chosen = cost.argmin(dim=0)
    for weight in COUPLING:
        around = _smooth(choices[chosen].T.reshape(3, *shape)).reshape(3, -1)
        # |d - u|^2 without |u|^2, which is the same for all displacements d
        chosen = (cost + weight * (length - 2 * choices @ around)).argmin(dim=0)
    return _smooth(choices[chosen].T.reshape(3, *shape))


def _costs(fixed: Tensor, moving: Tensor, reach: int) -> Tensor:
    """Sum of squared differences (displacements, blocks), smoothed twice over 3 x 3 x 3 blocks; outside
    ``moving`` its features are 0, which match none."""
    shape, width = fixed.shape[1:], 2 * reach + 1
    padded = F.pad(moving, [reach] * 6)
    cost = torch.empty(width**3, *shape)
    for number, corner in enumerate(product(range(width), repeat=3)):
        there = padded[(slice(None), *(slice(c, c + n) for c, n in zip(corner, shape, strict=True)))]
        cost[number] = (fixed - there).square_().sum(dim=0)
    return _smooth(_smooth(cost)).reshape(width**3, -1)


def _smooth(field: Tensor) -> Tensor:
    """Mean over 3 x 3 x 3, of what lies inside."""
    return F.avg_pool3d(field, 3, stride=1, padding=1, count_include_pad=False)
