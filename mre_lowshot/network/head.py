"""Cosine distances to several learned prototypes per class, mixed adaptively (paper, III-D; equations 1 to 4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mre_lowshot.specs import NetworkSpec


class PrototypeHead(nn.Module):
    """Embeddings (B, N_e, *size) -> class logits (B, K, *size) whose softmax over K is equation 3.

    ``prototypes`` (K*M, N_e) are the c_{k,j}, row k*M + j. With s the cosine similarities and xi the learned scale,
    the logit of class k is log sum_j alpha_{k,j} exp(xi s_{k,j}). The mixing coefficients alpha are equation 4
    (``adaptive``), 1/M (``average``), or 1 for the nearest mode (``one_hot``, without normaliser). One mode makes all
    three the unimodal head of equation 2. Squared Euclidean distance between unit vectors is 2 - 2 s, so it uses the
    same product. Computed in float32 whatever the precision around it.
    """

    EPSILON = 1e-8

    def __init__(self, spec: NetworkSpec, channels: int) -> None:
        super().__init__()
        self.spec = spec
        self.prototypes = nn.Parameter(torch.randn(spec.classes * spec.modes, channels) / math.sqrt(channels))
        log_scale = torch.tensor(math.log(spec.scale))  # kept as its logarithm, so that xi stays positive
        if spec.scale_learned:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)
        self.mixer: nn.Sequential | None = None
        if spec.mixing == "adaptive" and spec.modes > 1:
            outputs = spec.classes * spec.modes
            self.mixer = nn.Sequential(
                nn.Linear(channels, spec.mixer_width), nn.ReLU(), nn.Linear(spec.mixer_width, outputs)
            )

    def similarities(self, embedding: Tensor) -> Tensor:
        """Cosine s_{k,j} of embeddings (V, N_e) with every prototype: (V, K, M)."""
        lengths = embedding.norm(dim=1, keepdim=True).clamp_min(self.EPSILON)
        cosine = (embedding @ F.normalize(self.prototypes, dim=1, eps=self.EPSILON).t()) / lengths
        return cosine.view(-1, self.spec.classes, self.spec.modes)

    def log_mixing(self, embedding: Tensor) -> Tensor:
        """log alpha_{k,j} of embeddings (V, N_e), equation 4: (V, K, M), summing to one over M after exp."""
        return self.log_mixing_of(None if self.mixer is None else self.mixer(embedding), embedding)

    def log_mixing_of(self, beta: Tensor | None, like: Tensor) -> Tensor:
        """log alpha_{k,j} from the mixer's output (V, K*M); None: there is none, all modes weigh the same."""
        if beta is None:
            equal = like.new_full((1, 1, 1), -math.log(self.spec.modes))
            return equal.expand(like.shape[0], self.spec.classes, self.spec.modes)
        if self.spec.mixing_sigmoid:
            beta = torch.sigmoid(beta)
        return F.log_softmax(beta.view(-1, self.spec.classes, self.spec.modes), dim=2)

    def forward(self, embedding: Tensor) -> Tensor:
        size = embedding.shape[2:]
        with torch.autocast(embedding.device.type, enabled=False):
            flat = embedding if embedding.dtype == torch.float64 else embedding.float()
            flat = flat.movedim(1, -1).reshape(-1, embedding.shape[1])
            logits = self.combine(self.similarities(flat), self.log_mixing(flat))
        return logits.view(embedding.shape[0], *size, self.spec.classes).movedim(-1, 1)

    def combine(self, closeness: Tensor, log_mixing: Tensor) -> Tensor:
        """Logits (V, K) from the cosines s_{k,j} and log alpha_{k,j}, both (V, K, M): equation 3 before its softmax."""
        if self.spec.distance == "euclidean":
            closeness = 2 * closeness - 2  # -|e/|e| - c/|c||^2
        scaled = self.log_scale.exp() * closeness
        if self.spec.mixing == "one_hot":
            return scaled.amax(dim=2)
        return torch.logsumexp(scaled + log_mixing, dim=2)
