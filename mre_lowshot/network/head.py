"""Classification by cosine similarity to learned prototypes, several per class (paper, III-D; equations 1 to 4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mre_lowshot import devices
from mre_lowshot.config import NetworkConfig


class PrototypeHead(nn.Module):
    """Embeddings (B, N_e, *size) -> class logits (B, K, *size) whose softmax over K is equation 3.

    ``prototypes`` (K*M, N_e) holds c_{k,j} in row k*M + j. With the cosine similarities s and the scale xi, the logit
    of class k is log sum_j alpha_{k,j} exp(xi s_{k,j}). The mixing coefficients alpha are those of equation 4
    (``adaptive``), 1/M (``average``), or 1 for the nearest prototype and 0 for the others (``one_hot``). With one
    prototype per class all three are the unimodal head of equation 2. The squared Euclidean distance between unit
    vectors is 2 - 2 s, so ``distance: euclidean`` uses the same product. The head computes in float32 (float64 for
    float64 input), also under autocast.
    """

    EPSILON = 1e-8

    def __init__(self, spec: NetworkConfig, channels: int) -> None:
        super().__init__()
        self.spec = spec
        self.prototypes = nn.Parameter(torch.empty(spec.classes * spec.prototypes_per_class, channels))
        if not self.prototypes.is_meta:  # there random values are none, and load torch._dynamo, which takes seconds
            with torch.no_grad():
                self.prototypes.normal_().div_(math.sqrt(channels))
        log_scale = torch.tensor(math.log(spec.logit_scale))  # log xi is the parameter, so that xi stays positive
        if spec.logit_scale_learned:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)
        self.mixer: nn.Sequential | None = None
        if spec.mixing == "adaptive" and spec.prototypes_per_class > 1:
            outputs = spec.classes * spec.prototypes_per_class
            self.mixer = nn.Sequential(
                nn.Linear(channels, spec.mixing_dim), nn.ReLU(), nn.Linear(spec.mixing_dim, outputs)
            )

    def similarities(self, embedding: Tensor) -> Tensor:
        """Cosine similarities s_{k,j} of embeddings (V, N_e) to every prototype: (V, K, M)."""
        lengths: Tensor = embedding.norm(dim=1, keepdim=True).clamp_min(self.EPSILON)
        cosine = (embedding @ F.normalize(self.prototypes, dim=1, eps=self.EPSILON).t()) / lengths
        return cosine.view(-1, self.spec.classes, self.spec.prototypes_per_class)

    def log_mixing(self, embedding: Tensor) -> Tensor:
        """log alpha_{k,j} (V, K, M) of embeddings (V, N_e), equation 4; alpha sums to 1 over M."""
        return self.log_mixing_of(None if self.mixer is None else self.mixer(embedding), embedding)

    def log_mixing_of(self, beta: Tensor | None, like: Tensor) -> Tensor:
        """log alpha_{k,j} (V, K, M) from the output ``beta`` (V, K*M) of the mixer.

        ``beta`` None means that the head has no mixer: all prototypes get the weight 1/M, with the length, dtype and
        device of ``like``.
        """
        if beta is None:
            equal = like.new_full((1, 1, 1), -math.log(self.spec.prototypes_per_class))
            return equal.expand(like.shape[0], self.spec.classes, self.spec.prototypes_per_class)
        if self.spec.mixing_sigmoid:
            beta = torch.sigmoid(beta)
        return F.log_softmax(beta.view(-1, self.spec.classes, self.spec.prototypes_per_class), dim=2)

    def forward(self, embedding: Tensor) -> Tensor:
        size = embedding.shape[2:]
        with devices.without_autocast(embedding.device):
            flat = embedding if embedding.dtype == torch.float64 else embedding.float()
            flat = flat.movedim(1, -1).reshape(-1, embedding.shape[1])
            logits = self.combine(self.similarities(flat), self.log_mixing(flat))
        return logits.view(embedding.shape[0], *size, self.spec.classes).movedim(-1, 1)

    def combine(self, closeness: Tensor, log_mixing: Tensor) -> Tensor:
        """Logits (V, K), equation 3 before the softmax, from cosines s_{k,j} and log alpha_{k,j}, both (V, K, M)."""
        if self.spec.distance == "euclidean":
            closeness = 2 * closeness - 2  # -|e/|e| - c/|c||^2
        scaled = self.log_scale.exp() * closeness
        if self.spec.mixing == "one_hot":
            return scaled.amax(dim=2)
        return torch.logsumexp(scaled + log_mixing, dim=2)
