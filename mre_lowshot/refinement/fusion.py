"""The network's posterior fused with the labels warped from the atlases (a logarithmic opinion pool)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mre_lowshot.atlas.label_fusion import AtlasPrior

EQUAL_SHARES = 1e-4  # classes whose shares differ by no more are equally likely
ATLAS_FLOOR = 0.01  # added to every class of the warped labels, as registration may be wrong


def fuse_posteriors(
    posterior: np.ndarray,
    warped: np.ndarray | None,
    weight: float,
    registrations: float = 1,
    *,
    lesions: Sequence[int] = (),
) -> np.ndarray:
    """p^(1-w) q^(w r), normalised, of the network's posterior p and the warped labels q.

    Args:
        posterior: (K, *size), of the network.
        warped: class probabilities (K, *size) warped from the atlases; None where there are none.
        weight: w of one registration against the network.
        registrations: r, how often each labelled scan is registered (`registrations_per_scan`).
        lesions: classes about which the atlases have no information. They keep the network's probability, and the rest
            is divided among the other classes.

    Returns:
        (K, *size): a new array, or ``posterior`` itself where there is nothing to fuse. Where the warped labels carry
        no information, the posterior stays.
    """
    if warped is None or not weight:
        return posterior
    fused, kept = np.empty_like(posterior), list(lesions)
    for plane in range(posterior.shape[1]):  # a plane at a time, in the processor's cache
        scores = np.log(warped[:, plane] + ATLAS_FLOOR)
        scores *= weight * registrations
        with np.errstate(divide="ignore"):  # log 0 is -inf: the class stays impossible
            scores += (1 - weight) * np.log(posterior[:, plane])
        np.exp(scores, out=scores)
        if kept:
            _keep(scores, posterior[:, plane], kept, out=fused[:, plane])
        else:
            np.divide(scores, scores.sum(axis=0), out=fused[:, plane])
    unknown = ~is_informative(warped)
    fused[:, unknown] = posterior[:, unknown]
    return fused


def _keep(scores: np.ndarray, posterior: np.ndarray, kept: list[int], *, out: np.ndarray) -> None:
    """Normalise ``scores`` (K, *plane) of the classes that are not ``kept`` to what the kept ones leave of 1."""
    scores[kept] = 0
    total, rest = scores.sum(axis=0), 1 - posterior[kept].sum(axis=0)
    # the kept classes alone are possible where the total is 0
    np.multiply(scores, np.divide(rest, total, out=np.zeros_like(total), where=total > 0), out=out)
    out[kept] = posterior[kept]


def is_informative(warped: np.ndarray) -> np.ndarray:
    """Where the warped labels (K, *size) carry information: (*size) bool. Not where every class has the same share: the
    atlases are not annotated there, or their edge cuts a structure."""
    informative: np.ndarray = warped.max(axis=0) - warped.min(axis=0) > EQUAL_SHARES
    return informative


def registrations_per_scan(priors: Sequence[AtlasPrior | None]) -> float:
    """How often each labelled scan is registered: 1 without mirrored atlases, 2 where every scan has one."""
    present = [prior for prior in priors if prior is not None]
    registrations = sum(prior.count for prior in present)
    return registrations / (registrations - sum(prior.mirrored_count for prior in present)) if present else 1.0
