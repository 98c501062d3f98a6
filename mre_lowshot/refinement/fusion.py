"""The network's posterior fused with the labels warped from the atlases: a linear, then a logarithmic opinion pool."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mre_lowshot.atlas.label_fusion import AtlasPrior
from mre_lowshot.devices import slabs
from mre_lowshot.transfers import Array, as_tensor

EQUAL_SHARES = 1e-4  # classes whose shares differ by no more are equally likely
ATLAS_FLOOR = 0.01  # added to every class of the warped labels, as registration may be wrong


def fuse_posteriors(
    posterior: Array,
    warped: Array | None,
    weight: float,
    registrations: float = 1,
    *,
    share: float = 0.0,
    lesions: Sequence[int] = (),
) -> Tensor:
    """m^(1-w) q^(w r), normalised, of m = (1-e) p + e q, the network's posterior p and the warped labels q.

    A product alone cannot give a class that one of the two excludes. The warped labels have a floor (`ATLAS_FLOOR`),
    as registration may be wrong; the share e of the warped labels does the same for the network.

    Args:
        posterior: (K, *size), of the network.
        warped: class probabilities (K, *size) warped from the atlases, on the same device; None where there are none.
        weight: w of one registration against the network.
        registrations: r, how often each labelled scan is registered (`registrations_per_scan`).
        share: e, of the warped labels in the sum.
        lesions: classes about which the atlases have no information. They keep the network's probability, and the rest
            is divided among the other classes.

    Returns:
        (K, *size): a new tensor, or ``posterior`` itself where there is nothing to fuse. Where the warped labels carry
        no information, the posterior stays.
    """
    p = as_tensor(posterior)
    if warped is None or not (weight or share):
        return p
    q, fused, kept = as_tensor(warped), torch.empty_like(p), list(lesions)
    for slab in slabs(p.shape[1], p[:, 0].numel(), p.device):
        mine, its = p[:, slab], q[:, slab]
        scores = (its + ATLAS_FLOOR).log_().mul_(weight * registrations)
        mixed = torch.lerp(mine, _without(its, mine, kept) if kept else its, share) if share else mine
        scores.add_(mixed.log(), alpha=1 - weight)  # log 0 is -inf: the class stays impossible
        scores.exp_()
        shares = _with_kept(scores, mine, kept) if kept else scores.div_(scores.sum(dim=0))
        torch.where(is_informative(its), shares, mine, out=fused[:, slab])
    return fused


def _without(warped: Tensor, posterior: Tensor, kept: list[int]) -> Tensor:
    """``warped`` (K, *slab) without the classes ``kept``, scaled to what the ``posterior`` leaves to the others."""
    others = warped.clone()
    others[kept] = 0
    total, rest = others.sum(dim=0), _rest(posterior, kept)
    return others.mul_(torch.where(total > 0, rest / total, 0))


def _rest(posterior: Tensor, kept: list[int]) -> Tensor:
    """What the classes ``kept`` leave of 1; rounding may make their sum larger."""
    return (1 - posterior[kept].sum(dim=0)).clamp_(min=0)


def _with_kept(scores: Tensor, posterior: Tensor, kept: list[int]) -> Tensor:
    """Shares (K, *slab) from ``scores``, where the classes that are not ``kept`` share what the kept ones leave of
    1."""
    scores[kept] = 0
    total, rest = scores.sum(dim=0), _rest(posterior, kept)
    scores *= torch.where(total > 0, rest / total, 0)  # the kept classes alone are possible where the total is 0
    scores[kept] = posterior[kept]
    return scores


def is_informative(warped: Array) -> Tensor:
    """Where the warped labels (K, *size) carry information: (*size) bool. Not where every class has the same share: the
    atlases are not annotated there, or their edge cuts a structure."""
    shares = as_tensor(warped)
    return shares.amax(dim=0) - shares.amin(dim=0) > EQUAL_SHARES


def registrations_per_scan(priors: Sequence[AtlasPrior | None]) -> float:
    """How often each labelled scan is registered: 1 without mirrored atlases, 2 where every scan has one."""
    present = [prior for prior in priors if prior is not None]
    registrations = sum(prior.count for prior in present)
    return registrations / (registrations - sum(prior.mirrored_count for prior in present)) if present else 1.0
