"""The whole network from its spec: backbone -> embedding -> head. Rebuilt from a checkpoint by the same call."""

from __future__ import annotations

from torch import Tensor, nn

from mre_lowshot.network.backbone import CONV, Backbone
from mre_lowshot.network.embedding import Embedding
from mre_lowshot.network.head import PrototypeHead
from mre_lowshot.specs import NetworkSpec


class MRENet(nn.Module):
    """Image patch (B, C, *size) and its coordinate maps (B, axes, *size) -> class logits (B, K, *size).

    The softmax of the logits over K is the class posterior of equation 3 (or, with ``dml`` off, of a plain 1x1x1
    classifier on the embedding).
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = Backbone(spec)
        self.embedding = Embedding(spec)
        channels = self.embedding.out_channels
        self.head: nn.Module = PrototypeHead(spec, channels) if spec.dml else CONV[spec.axes](channels, spec.classes, 1)

    def forward(self, image: Tensor, coordinates: Tensor | None = None) -> Tensor:
        return self.head(self.embedding(self.backbone(image), coordinates))


def build(spec: NetworkSpec) -> MRENet:
    """A network with fresh weights (torch's own initialisation; seed torch before for a repeatable one)."""
    return MRENet(spec)


def parameter_count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
