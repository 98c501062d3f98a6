"""SCS, semantic classification of superpixels (Huang et al. 2020), for 2D ultrasound (paper, Table XII).

An image is enhanced and divided into superpixels (`superpixels`). A superpixel is described by a bag of words (the
histogram of its pixels' neighbourhoods over a codebook), its grey-level histogram, its texture and its position. A
neural network with one hidden layer classifies it, and the majority of the nearest superpixels in the image decides
its final class. docs/BASELINES.md lists what differs from the publication.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mre_lowshot.errors import UserError
from mre_lowshot.experiments.baselines import superpixels
from mre_lowshot.experiments.baselines.base import Baseline, BaselineFold, Segmenter
from mre_lowshot.preprocessing.store import PreparedCase
from mre_lowshot.quiet import without_warnings

WORDS = 50  # of the codebook
WORDS_FROM = 20_000  # pixels at most that the codebook is made from
HIDDEN, STEPS = 20, 100  # neurons of the hidden layer; iterations of the training at most
PENALTY = 10.0  # of the squared weights, against over-fitting to few images
NEIGHBOURS = 5  # superpixels that decide a class, itself included


@dataclass(frozen=True)
class _Divided:
    """An enhanced image (H, W) and its superpixels (H, W)."""

    enhanced: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, case: PreparedCase) -> _Divided:
        """From a case with one slice; channels are averaged."""
        enhanced = superpixels.enhance(case.image[:, 0].mean(axis=0))
        return cls(enhanced, superpixels.segments(enhanced))

    def features(self, codebook: Any) -> np.ndarray:
        """(superpixels, WORDS + BINS + 4 + 2): bag of words, grey-level histogram, texture, and position (0 to 1)."""
        words = codebook.predict(superpixels.descriptors(self.enhanced)).reshape(self.labels.shape)
        levels = np.minimum((self.enhanced * superpixels.BINS).astype(np.intp), superpixels.BINS - 1)
        parts = (
            superpixels.shares(self.labels, words, codebook.n_clusters),
            superpixels.shares(self.labels, levels, superpixels.BINS),
            superpixels.texture(self.labels, levels),
            superpixels.centres(self.labels) / self.labels.shape,
        )
        return np.concatenate(parts, axis=1)


def fit(fold: BaselineFold) -> Segmenter:
    """Learn codebook and classifier from the superpixels of the training images.

    Raises:
        UserError: all superpixels have the same class.
    """
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    divided = []
    for case in fold.train:
        divided.append(_Divided.of(case))
        fold.ask()
    rng, each = np.random.default_rng(fold.seed), -(-WORDS_FROM // len(divided))
    pixels = np.concatenate([rng.permutation(superpixels.descriptors(one.enhanced))[:each] for one in divided])
    codebook = MiniBatchKMeans(min(WORDS, len(pixels)), random_state=fold.seed, n_init=3).fit(pixels)
    rows, targets = [], []
    for one, case in zip(divided, fold.train, strict=True):
        found = superpixels.shares(one.labels, case.needed_label()[0].astype(np.intp), fold.classes)
        annotated = found.any(axis=1)
        rows.append(one.features(codebook)[annotated])
        targets.append(found[annotated].argmax(axis=1))
    features, classes = np.concatenate(rows), np.concatenate(targets)
    if len(np.unique(classes)) < 2:
        raise UserError("baseline scs: all superpixels of the training images have the same class; use other images")
    network = MLPClassifier(
        (HIDDEN,), activation="logistic", solver="lbfgs", alpha=PENALTY, max_iter=fold.iterations or STEPS,
        random_state=fold.seed,
    )  # fmt: skip
    balanced = drawn_equally(classes, rng)
    with without_warnings():
        classifier = make_pipeline(StandardScaler(), network).fit(features[balanced], classes[balanced])
    fold.log(f"{len(features)} superpixels of {len(divided)} images, {codebook.n_clusters} words")

    def segment(case: PreparedCase) -> np.ndarray:
        one = _Divided.of(case)
        initial = classifier.predict(one.features(codebook))
        votes = reclassified(superpixels.centres(one.labels), initial, fold.classes)
        return votes.T[:, one.labels][:, None]

    return segment


def drawn_equally(classes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Indices of as many samples as there are, drawn so that each class that occurs has the same number of them."""
    found = np.unique(classes)
    count = -(-len(classes) // len(found))
    return np.concatenate([rng.choice(np.flatnonzero(classes == k), count) for k in found])


def reclassified(centres: np.ndarray, initial: np.ndarray, classes: int) -> np.ndarray:
    """For each superpixel the share of each class among the `NEIGHBOURS` superpixels whose centres are nearest, itself
    included: (superpixels, K) float32.

    Args:
        centres: (superpixels, 2).
        initial: their first classes.
        classes: K.
    """
    from sklearn.neighbors import NearestNeighbors

    count = min(NEIGHBOURS, len(centres))
    nearest = NearestNeighbors(n_neighbors=count).fit(centres).kneighbors(centres, return_distance=False)
    return np.stack([(initial[nearest] == k).mean(axis=1) for k in range(classes)], axis=1, dtype=np.float32)


SCS = Baseline(
    name="scs",
    title="SCS: superpixels, bag of words, neural network, nearest neighbours",
    source="Huang et al. 2020 (paper, reference 46, Table XII)",
    fit=fit,
    recipe="paper_small",
    package="sklearn",
    axes=(2,),
)
