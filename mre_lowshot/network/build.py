"""The whole network from its spec: backbone -> embedding -> head. Rebuilt from a checkpoint by the same call."""

from __future__ import annotations

from torch import Tensor, nn

from mre_lowshot.network.backbone import CONV, Backbone
from mre_lowshot.network.embedding import ASPP, Embedding
from mre_lowshot.network.folded import folded_logits, pays
from mre_lowshot.network.head import PrototypeHead
from mre_lowshot.specs import NetworkSpec


class MRENet(nn.Module):
    """Image patch (B, C, *size) and its coordinate maps (B, axes, *size) -> class logits (B, K, *size).

    The softmax of the logits over K is the class posterior of equation 3 (or, with ``dml`` off, of a plain 1x1x1
    classifier on the embedding).

    The N_e-wide embedding is built only where the folded head (`network.folded`) would cost more: decided by shape,
    ``folded`` tells. ``plain`` is the same network, parameters and all, in torch's own operations throughout: the
    reference that the fast ways are tested and timed against.
    """

    def __init__(self, spec: NetworkSpec, plain: bool = False) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = Backbone(spec)
        self.embedding = Embedding(spec, plain)
        self.folded = not plain and pays(spec, self.embedding.varying_features, self.embedding.constant_features)
        channels = self.embedding.out_channels
        self.head: nn.Module = PrototypeHead(spec, channels) if spec.dml else CONV[spec.axes](channels, spec.classes, 1)

    def forward(self, image: Tensor, coordinates: Tensor | None = None) -> Tensor:
        levels = self.backbone(image)
        if not self.folded or not isinstance(self.head, PrototypeHead):
            return self.head(self.embedding(levels, coordinates))
        features, pooled = self.embedding.features(levels, coordinates)
        pooled = None if pooled is None else pooled.flatten(1)
        return folded_logits(features, pooled, self.embedding.fusion, self.head)

    def recompute(self, on: bool = True) -> None:
        """From now on keep only the inputs of the backbone's blocks and of the ASPP for the gradients, and compute
        the rest again in the backward pass: the same numbers with about a third of the memory, a third more time."""
        for module in self.modules():
            if isinstance(module, (Backbone, ASPP)):
                module.recompute = on

    @property
    def recomputes(self) -> bool:
        """Whether ``recompute`` is on."""
        return self.backbone.recompute


def build(spec: NetworkSpec, plain: bool = False) -> MRENet:
    """A network with fresh weights (torch's own initialisation; seed torch before for a repeatable one).

    ``plain`` keeps to torch's own dilated convolutions and the embedding written out, for comparison: state dicts and
    seeds give the same numbers as without, to rounding.
    """
    return MRENet(spec, plain)


def parameter_count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
