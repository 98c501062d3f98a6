"""Beyond the paper: the atlas prior as a term of the logits, so that the network learns what the image adds to it."""

from __future__ import annotations

import torch
from torch import Tensor

from mre_lowshot.config import NetworkConfig

FLOOR = 0.01  # added to the share of every class, as registration may be wrong


def prior_term(locations: Tensor, spec: NetworkConfig) -> Tensor:
    """``atlas_prior_weight`` x log(q + floor): (B, K, *size) float32, of the shares q of the classes at each voxel.

    The softmax of logits + w log q is the product of the network's own posterior and q^w, normalised: the prior of
    Bayes' rule, tempered by w. Where all classes have the same share, the term changes nothing.

    Args:
        locations: location maps (B, location_channels, *size); the last K - 1 are the shares of the foreground classes.
        spec: of the network; the background has the rest of 1.
    """
    foreground = locations[:, -spec.prior_channels :].float()
    background = 1 - foreground.sum(dim=1, keepdim=True)
    shares = torch.cat([background, foreground], dim=1).clamp_min(0)
    return spec.atlas_prior_weight * torch.log(shares + FLOOR)
