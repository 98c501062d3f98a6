"""The complete network: backbone -> embedding -> head. Training and checkpoint loading both call `build`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mre_lowshot.config import NetworkConfig
from mre_lowshot.limits import require_memory
from mre_lowshot.network.backbone import CONV, Backbone
from mre_lowshot.network.embedding import ASPP, Embedding
from mre_lowshot.network.head import PrototypeHead
from mre_lowshot.network.optimized.fused_head import fused_logits, is_cheaper
from mre_lowshot.network.prior_term import prior_term


class MRENet(nn.Module):
    """Image patch (B, C, *size) and its location maps (B, location_channels, *size) -> class logits (B, K, *size).

    The softmax of the logits over K is the class posterior of equation 3; with ``prototype_head`` off, that of a
    1x1x1 convolutional classifier on the embedding. With an atlas prior in the logits, a term is added to both
    (`network.prior_term`).

    ``fused`` selects the fused head (`network.optimized.fused_head`), which does not compute the N_e-wide embedding.
    It is chosen from the layer widths alone, where it takes fewer multiplications. With ``plain`` the network has the
    same parameters and uses only torch's standard operations: the reference for tests and timings of the optimized
    ones.
    """

    def __init__(self, spec: NetworkConfig, plain: bool = False) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = Backbone(spec)
        self.embedding = Embedding(spec, plain)
        self.fused = not plain and is_cheaper(spec, self.embedding.varying_features, self.embedding.constant_features)
        channels = self.embedding.out_channels
        self.head: nn.Module = (
            PrototypeHead(spec, channels) if spec.prototype_head else CONV[spec.axes](channels, spec.classes, 1)
        )

    def forward(self, image: Tensor, coordinates: Tensor | None = None) -> Tensor:
        logits = self._evidence(image, coordinates)
        if self.spec.prior_channels and coordinates is not None:
            logits = logits + prior_term(coordinates, self.spec)
        return logits

    def _evidence(self, image: Tensor, coordinates: Tensor | None) -> Tensor:
        levels = self.backbone(image)
        if not self.fused or not isinstance(self.head, PrototypeHead):
            logits: Tensor = self.head(self.embedding(levels, coordinates))
            return logits
        features, pooled = self.embedding.features(levels, coordinates)
        pooled = None if pooled is None else pooled.flatten(1)
        return fused_logits(features, pooled, self.embedding.fusion, self.head)

    def recompute(self, on: bool = True) -> None:
        """Switch recomputation of activations on or off, for the backbone blocks and the ASPP branches.

        When on, only their inputs are stored in the forward pass and the backward pass computes the rest again: the
        same values and gradients with about a third of the memory and a third more time.
        """
        for module in self.modules():
            if isinstance(module, (Backbone, ASPP)):
                module.recompute = on

    @property
    def recomputes(self) -> bool:
        """Whether ``recompute`` is on."""
        return self.backbone.recompute


def build(spec: NetworkConfig, plain: bool = False) -> MRENet:
    """Build a network with torch's default initialisation; seed torch first for reproducible weights.

    ``plain`` uses torch's dilated convolutions and computes the embedding explicitly, as a reference: state-dict keys
    and initial values are those of the optimized network, outputs are equal up to rounding.

    Raises:
        UserError: its parameters need more memory than there is.
    """
    count = parameter_count(outline(spec))
    require_memory(4 * count, f"a network of {count:.3g} parameters (plan: network)", "plan a smaller one")
    return MRENet(spec, plain)


def outline(spec: NetworkConfig) -> MRENet:
    """The network with names, shapes and types of its weights, on torch's ``meta`` device: nothing is allocated."""
    with torch.device("meta"):
        return MRENet(spec)


def require_patch_memory(spec: NetworkConfig, patch: tuple[int, ...], *, batch: int, what: str) -> None:
    """Refuse a patch whose first encoder block alone does not fit into memory: the input, and input and output of one
    of its convolutions (float32). What is accepted may still be too much.

    Args:
        spec: the network.
        patch: its sides, voxels.
        batch: patches computed at once.
        what: begins the message.

    Raises:
        UserError: it needs more memory than there is.
    """
    voxels = math.prod(patch)
    needed = 4 * batch * voxels * (spec.in_channels + spec.location_channels + 2 * spec.widths[0])
    require_memory(needed, f"{what}: a batch of {batch} patches {patch}", "plan a smaller patch or batch")


def parameter_count(network: nn.Module) -> int:
    """The number of parameters."""
    return sum(p.numel() for p in network.parameters())
