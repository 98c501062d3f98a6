"""The prototype head against equations 1 to 4 of the paper, written as loops: values and gradients."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import TINY, posterior_loop, single_thread  # noqa: F401
from torch import Tensor

from mre_lowshot.config import NetworkConfig
from mre_lowshot.network.head import PrototypeHead

MIXINGS, DISTANCES = ("adaptive", "average", "one_hot"), ("cosine", "euclidean")


def make(channels: int, seed: int = 0, **changes) -> PrototypeHead:
    torch.manual_seed(seed)
    return PrototypeHead(replace(TINY, **changes), channels).double()


def voxels_of(embedding: Tensor) -> Tensor:
    """(B, N, *size) -> (V, N)."""
    return embedding.movedim(1, -1).reshape(-1, embedding.shape[1])


def posterior(head: PrototypeHead, embedding: Tensor) -> Tensor:
    """The softmax of the head's logits, (V, K)."""
    return voxels_of(torch.softmax(head(embedding), dim=1))


@st.composite
def heads(draw):
    spec = replace(
        TINY,
        classes=draw(st.integers(2, 4)),
        prototypes_per_class=draw(st.integers(1, 3)),
        mixing_dim=draw(st.integers(1, 5)),
        mixing=draw(st.sampled_from(MIXINGS)),
        mixing_sigmoid=draw(st.booleans()),
        distance=draw(st.sampled_from(DISTANCES)),
        logit_scale=draw(st.floats(0.1, 30)),
    )
    channels, batch = draw(st.integers(1, 5)), draw(st.integers(1, 2))
    size = draw(st.lists(st.integers(1, 2), min_size=2, max_size=3))
    torch.manual_seed(draw(st.integers(0, 10**6)))
    embedding = torch.randn(batch, channels, *size, dtype=torch.float64) * draw(st.sampled_from([0.01, 1.0, 10.0]))
    return PrototypeHead(spec, channels).double(), embedding


@settings(max_examples=50, derandomize=True)
@given(heads())
def test_values_and_gradients_are_those_of_the_papers_equations(case):
    head, embedding = case
    embedding.requires_grad_()
    inputs = [embedding, *head.parameters()]
    results = []
    for p in (posterior(head, embedding), posterior_loop(head, voxels_of(embedding))):
        weight = torch.linspace(-1, 2, p.numel(), dtype=p.dtype).view_as(p)
        results.append((p, torch.autograd.grad((weight * p).sum(), inputs)))
    (ours, our_gradients), (theirs, their_gradients) = results
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8)
    for a, b in zip(our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(ours.sum(dim=1), torch.ones_like(ours[:, 0]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("distance", DISTANCES)
def test_one_prototype_per_class_is_the_unimodal_head_exactly(distance):
    embedding = torch.randn(2, 5, 2, 3, 3, dtype=torch.float64)
    heads = [make(5, prototypes_per_class=1, mixing=mixing, distance=distance) for mixing in MIXINGS]
    states = [head.state_dict() for head in heads]
    assert states[0].keys() == states[1].keys() == states[2].keys()  # no mixing weights: there is nothing to mix
    logits = [head(embedding) for head in heads]
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])
    e, c = voxels_of(embedding), heads[0].prototypes
    cosine = (e / e.norm(dim=1, keepdim=True)) @ (c / c.norm(dim=1, keepdim=True)).t()  # equation 2
    factor = 1 if distance == "cosine" else 2
    torch.testing.assert_close(posterior(heads[0], embedding), torch.softmax(10 * factor * cosine, dim=1))


@pytest.mark.parametrize("mixing", MIXINGS)
def test_euclidean_is_cosine_with_the_doubled_scale(mixing):
    embedding = torch.randn(2, 5, 2, 3, 3, dtype=torch.float64)
    euclidean, cosine = (make(5, mixing=mixing, distance=distance) for distance in ("euclidean", "cosine"))
    with torch.no_grad():
        cosine.log_scale += math.log(2)
    torch.testing.assert_close(posterior(euclidean, embedding), posterior(cosine, embedding), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_mixing_coefficients_sum_to_one_within_the_bounds_of_a_softmax_of_sigmoids(count):
    head = make(6, prototypes_per_class=count)
    for p in head.mixer.parameters():
        torch.nn.init.normal_(p, std=30.0)  # saturate the sigmoids
    alpha = head.log_mixing(torch.randn(200, 6, dtype=torch.float64)).exp()
    assert alpha.shape == (200, 3, count)
    torch.testing.assert_close(alpha.sum(dim=2), torch.ones(200, 3, dtype=torch.float64))
    low, high = 1 / (1 + (count - 1) * math.e), math.e / (math.e + count - 1)
    assert low - 1e-12 <= alpha.min() < low + 0.02
    assert high - 0.05 < alpha.max() <= high + 1e-12


@pytest.mark.parametrize("learned", [True, False])
def test_scale_starts_as_given_and_stays_positive(learned):
    head = make(4, prototypes_per_class=1, logit_scale=7.0, logit_scale_learned=learned)
    assert head.log_scale.exp().item() == pytest.approx(7.0)
    assert "log_scale" in head.state_dict()
    embedding = torch.randn(1, 4, 5, 5, dtype=torch.float64)
    best = head(embedding).argmax(dim=1)
    optimizer = torch.optim.SGD([p for n, p in head.named_parameters() if n == "log_scale"] or [torch.zeros(1)], 5.0)
    for _ in range(20):  # the loss is the logit of the present label: the scale is driven down
        optimizer.zero_grad()
        head(embedding).gather(1, best[:, None]).mean().backward()
        optimizer.step()
    scale = head.log_scale.exp().item()
    assert 0 < scale < 1 if learned else scale == pytest.approx(7.0)
    assert torch.equal(head(embedding).argmax(dim=1), best)  # a scale below 0 would reverse the order


@pytest.mark.parametrize("mixing", MIXINGS)
def test_zero_vectors_stay_finite(mixing):
    head = make(4, mixing=mixing)
    head.prototypes.data[0] = 0
    embedding = torch.zeros(1, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    p = posterior(head, embedding)
    (p * torch.arange(12, dtype=p.dtype).view_as(p)).sum().backward()
    for t in (p, embedding.grad, *(q.grad for q in head.parameters() if q.grad is not None)):
        assert torch.isfinite(t).all()


def test_only_directions_count():
    """Cosine: the lengths of embeddings and prototypes change nothing (average mixing depends on nothing else)."""
    head, embedding = make(5, mixing="average"), torch.randn(1, 5, 3, 3, dtype=torch.float64)
    before = posterior(head, embedding)
    head.prototypes.data *= torch.rand(6, 1, dtype=torch.float64) * 10 + 0.1
    torch.testing.assert_close(posterior(head, 0.01 * embedding), before)


def test_the_head_computes_in_float32_under_autocast():
    spec: NetworkConfig = replace(TINY, embedding_dim=64)
    head = PrototypeHead(spec, 64)
    embedding = torch.randn(1, 64, 4, 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        inside = head(embedding)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside.double(), head.double()(embedding.double()), rtol=1e-4, atol=1e-5)
