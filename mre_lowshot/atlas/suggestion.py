"""Beyond the paper: which unlabelled scans annotating would help most, from the similarity of the images.

Every scan is aligned to one labelled scan by an affine transform on a coarse grid. Two scans are as similar as their
locally normalised images there correlate. A labelled scan serves the scans that resemble it: the gain of annotating a
scan is how much closer all scans get to their most similar labelled one (facility location), and scans are ranked by
taking the one with the largest gain again and again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mre_lowshot.atlas.registration.affine import affine
from mre_lowshot.atlas.registration.images import to_image, voxels, warp
from mre_lowshot.atlas.similarity import normalize_locally
from mre_lowshot.errors import UserError
from mre_lowshot.grid import coarsen_spacing
from mre_lowshot.resampling import resize_image

MAX_VOXELS = 40_000  # of an image that is compared
MIN_VOXELS = 4  # along each axis


@dataclass(frozen=True)
class Ranked:
    """A scan in the order of suggestion.

    Attributes:
        number: of the scan, in the order given.
        gain: mean increase of the scans' similarity to their nearest labelled scan, weighted, after the scans ranked
            before were annotated.
        nearest: number of the labelled scan that is most similar.
        nearest_similarity: its similarity.
        served: numbers of the other scans that are more similar to this one than to any labelled scan.
    """

    number: int
    gain: float
    nearest: int
    nearest_similarity: float
    served: tuple[int, ...]


def coarse(image: np.ndarray, spacing: tuple[float, ...]) -> tuple[np.ndarray, tuple[float, ...]]:
    """The channels' mean of an image (C, *size), downsampled to `MAX_VOXELS`, as (1, *size); and its spacing."""
    size, own = image.shape[1:], np.asarray(spacing, dtype=float)
    target = coarsen_spacing(MAX_VOXELS, own, own * size)
    coarse_size = tuple(max(1, int(n * s / c + 1e-6)) for n, s, c in zip(size, own, target, strict=True))
    made = resize_image(image.mean(axis=0, keepdims=True), coarse_size, order=1)
    return made, tuple(s * n / m for s, n, m in zip(spacing, size, coarse_size, strict=True))


class Comparison:
    """Scans on the grid of a reference scan.

    Args:
        image: of the reference, (C, *size), preprocessed.
        spacing: mm, one value per axis.
    """

    def __init__(self, image: np.ndarray, spacing: tuple[float, ...]) -> None:
        small, own = coarse(image, spacing)
        self._size = small.shape[1:]
        self._flat = self._size[0] == 1 or len(self._size) == 2
        if not self._flat:
            self._fixed = to_image(small, own)

    def features(self, image: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
        """The locally normalised image on the reference's grid as a vector of length 1.

        Raises:
            UserError: it cannot be aligned.
        """
        small, own = coarse(image, spacing)
        if self._flat:
            array = resize_image(small, self._size, order=1)[0]
        else:
            if min(small.shape[1:]) < MIN_VOXELS:
                raise UserError(f"has {' x '.join(map(str, small.shape[1:]))} voxels; give the whole scan")
            moving = to_image(small, own)
            try:
                array = voxels(warp(self._fixed, moving, affine(self._fixed, moving)))
            except RuntimeError as problem:
                reason = str(problem).strip().splitlines()[-1]
                raise UserError(f"cannot be aligned to an annotated scan ({reason}); leave it out") from None
        vector = normalize_locally(array).ravel()
        vector -= vector.mean()
        length = float(np.linalg.norm(vector))
        return vector / length if length > 0 else vector


def similarities(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> np.ndarray:
    """Correlations, at least 0, of vectors of `Comparison.features`: (number of one, number of other)."""
    found: np.ndarray = np.clip(np.stack(one) @ np.stack(other).T, 0, 1)
    return found


def rank(labelled: np.ndarray, unlabelled: np.ndarray, weights: np.ndarray | None = None) -> list[Ranked]:
    """All unlabelled scans, the one to annotate first at the top.

    Args:
        labelled: similarity of each unlabelled scan to each labelled one, (U, L).
        unlabelled: of the unlabelled scans to each other, (U, U); 1 on its diagonal.
        weights: how much a better annotation of each scan matters, (U,); None: all alike.

    >>> import numpy as np
    >>> first = rank(np.array([[0.9], [0.1], [0.1]]), np.array([[1, 0, 0], [0, 1, 0.8], [0, 0.8, 1]]))[0]
    >>> first.number, first.served
    (1, (2,))
    """
    count = len(unlabelled)
    share = np.full(count, 1 / max(count, 1)) if weights is None else weights / max(float(weights.sum()), 1e-12)
    nearest = labelled.max(axis=1)
    cover, left, found = nearest.copy(), list(range(count)), []
    while left:
        gains = share @ np.maximum(unlabelled[:, left] - cover[:, None], 0)
        best = left[int(np.argmax(np.round(gains, 12)))]
        served = np.flatnonzero(unlabelled[:, best] > nearest)
        found.append(
            Ranked(
                best,
                float(gains.max()),
                int(labelled[best].argmax()),
                float(nearest[best]),
                tuple(int(u) for u in served if u != best),
            )
        )
        cover = np.maximum(cover, unlabelled[:, best])
        left.remove(best)
    return found
