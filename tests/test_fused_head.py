"""The fused head against linear fusion and prototype head written out: values, every gradient, small lengths, cost."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import TINY, TINY_2D, single_thread  # noqa: F401
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from mre_lowshot.config import NetworkConfig
from mre_lowshot.network.build import build
from mre_lowshot.network.embedding import joined
from mre_lowshot.network.head import PrototypeHead
from mre_lowshot.network.optimized.fused_head import fused_logits, is_cheaper


def parts(spec: NetworkConfig, varying: int, constant: int, seed: int, dtype=torch.float64) -> tuple:
    """v, p, fusion and head of random weights and input, on 2 patches."""
    torch.manual_seed(seed)
    fusion = nn.Conv3d(varying + constant, spec.embedding_dim, 1).to(dtype)
    head = PrototypeHead(spec, spec.embedding_dim).to(dtype)
    features = torch.randn(2, varying, 2, 3, 4, dtype=dtype)
    pooled = torch.randn(2, constant, dtype=dtype) if constant else None
    return features, pooled, fusion, head


def plain(features: Tensor, pooled: Tensor | None, fusion: nn.Module, head: PrototypeHead) -> Tensor:
    return head(fusion(joined(features, None if pooled is None else pooled[..., None, None, None])))


def results(way, case, upstream: Tensor) -> list[Tensor]:
    """Logits, then the gradients of features, pooled and all parameters."""
    features, pooled, fusion, head = case
    inputs = [t.detach().clone().requires_grad_() for t in (features, pooled) if t is not None]
    logits = way(inputs[0], inputs[1] if len(inputs) > 1 else None, fusion, head)
    wanted = [*inputs, *fusion.parameters(), *head.parameters()]
    return [logits.detach(), *torch.autograd.grad((logits * upstream).sum(), wanted, allow_unused=True)]


def compare(case, tolerance: float, live: float = 1.0) -> None:
    upstream = torch.randn_like(plain(*case))
    upstream *= torch.rand_like(upstream[:, :1]) < live  # what OHEM leaves out has no gradient
    ours, theirs = (results(way, case, upstream) for way in (fused_logits, plain))
    for a, b in zip(ours, theirs, strict=True):
        if b is None:
            assert a is None or not a.any()
            continue
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1e-3)


@st.composite
def cases(draw):
    spec = replace(
        TINY,
        classes=draw(st.integers(2, 4)),
        prototypes_per_class=draw(st.integers(1, 3)),
        mixing_dim=draw(st.integers(1, 5)),
        mixing=draw(st.sampled_from(("adaptive", "average", "one_hot"))),
        mixing_sigmoid=draw(st.booleans()),
        distance=draw(st.sampled_from(("cosine", "euclidean"))),
        embedding_dim=draw(st.integers(2, 20)),  # of width 1 every cosine is 1 or -1, without a gradient
    )
    return spec, draw(st.integers(1, 8)), draw(st.integers(0, 4)), draw(st.integers(0, 10**6))


@settings(max_examples=60, derandomize=True)
@given(cases(), st.sampled_from((1.0, 0.3, 0.0)))
def test_values_and_gradients_are_those_of_the_embedding_written_out(case, live):
    compare(parts(*case), 1e-10, live)


@pytest.mark.parametrize("live", [1.0, 0.2])
def test_float32_with_many_channels(live):
    spec = replace(TINY, classes=4, prototypes_per_class=3, embedding_dim=640, mixing_dim=64)
    compare(parts(spec, 300, 40, 1, torch.float32), 1e-4, live)


def test_lengths_that_nearly_vanish_keep_their_digits():
    """|e| a ten-thousandth of |W| |z|: a sum of products z^T (W^T W) z in float32 would lose it altogether."""
    features, pooled, fusion, head = parts(replace(TINY, embedding_dim=64), 12, 4, 3)
    with torch.no_grad():
        u, s, v = torch.linalg.svd(fusion.weight.flatten(1), full_matrices=False)
        s[-1] = 1e-4 * s[0]
        fusion.weight.copy_(((u * s) @ v).view_as(fusion.weight))
        fusion.bias.zero_()
    pooled = v[-1][12:].expand(2, -1)
    features = v[-1][:12].view(1, 12, 1, 1, 1) + 1e-6 * torch.randn_like(features)
    exact = plain(features, pooled, fusion, head)
    case = [features.float(), pooled.float(), fusion.float(), head.float()]
    with torch.no_grad():
        ours, theirs = fused_logits(*case), plain(*case)
    scale = exact.std()
    assert (theirs - exact).abs().max() < 0.05 * scale  # what float32 can do here
    assert (ours - exact).abs().max() < 0.05 * scale
    compare(case, 0.05)


def test_zero_embeddings_stay_finite():
    features, pooled, fusion, head = parts(replace(TINY, embedding_dim=20), 4, 2, 5)
    nn.init.zeros_(fusion.bias)
    zero = features * 0
    compare((zero, pooled * 0, fusion, head), 1e-10)


def test_the_shape_decides_whether_the_fused_head_is_cheaper():
    paper = NetworkConfig(in_channels=1, classes=4)
    assert is_cheaper(paper, 1024, 256)
    assert not is_cheaper(replace(paper, embedding_dim=512), 1024, 256)
    assert not is_cheaper(replace(paper, prototype_head=False), 1024, 256)
    assert not is_cheaper(replace(paper, embedding_dim=0, prototype_head=False), 1024, 256)


@pytest.mark.parametrize("spec", [TINY, TINY_2D], ids=["3d", "2d"])
@pytest.mark.parametrize("changes", [{}, {"image_level": False}, {"aspp": False}, {"multiscale": False}, {"se": False}])
def test_the_whole_network_equals_its_plain_form(spec, changes):
    """One state for both, in training and evaluation; the parameters' gradients too."""
    spec = replace(spec, embedding_dim=48, **changes)
    torch.manual_seed(0)
    ours = build(spec).double()
    torch.manual_seed(0)
    theirs = build(spec, plain=True).double()
    assert ours.fused
    assert not theirs.fused
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    size = (4, 8, 8) if spec.axes == 3 else (8, 12)
    image = torch.randn(3, 1, *size, dtype=torch.float64)
    maps = torch.rand(3, spec.axes, *size, dtype=torch.float64)
    upstream = torch.randn(3, spec.classes, *size, dtype=torch.float64)
    found = []
    for network in (ours, theirs):
        logits = network(image, maps)
        gradients = torch.autograd.grad((logits * upstream).sum(), list(network.parameters()))
        found.append([logits, *gradients, network.eval()(image, maps)])
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() <= 1e-9 * b.abs().max().clamp(min=1e-3)


def test_autocast_gives_float32_logits_near_the_exact_ones():
    spec = replace(TINY, embedding_dim=64, classes=4)
    case = parts(spec, 24, 8, 2, torch.float32)
    exact = plain(*case)
    features, pooled, fusion, head = case
    with torch.autocast("cpu", torch.bfloat16):
        ours = fused_logits(features.bfloat16(), pooled.bfloat16(), fusion, head)
    assert ours.dtype == torch.float32
    assert (ours - exact).abs().max() < 0.02 * exact.abs().max()
    ours.sum().backward()
    assert all(p.grad.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in fusion.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_the_plain_head():
    features, pooled, fusion, head = parts(replace(TINY, embedding_dim=64), 24, 8, 4)
    compare((features.cuda(), pooled.cuda(), fusion.cuda(), head.cuda()), 1e-10, 0.3)


def costs(embedding: int, depth: int) -> tuple[int, int]:
    """Multiplications of forward and backward pass, and bytes kept between them, for 16 * depth voxels."""
    features, pooled, fusion, head = parts(replace(TINY, embedding_dim=embedding), 12, 4, 0)
    features = torch.randn(1, 12, depth, 4, 4, dtype=torch.float64, requires_grad=True)
    kept: dict[int, int] = {}

    def note(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with FlopCounterMode(display=False) as counter:
        with saved_tensors_hooks(note, lambda t: t):
            logits = fused_logits(features, pooled[:1], fusion, head)
        logits.square().sum().backward()
    return counter.get_total_flops(), sum(kept.values())


def test_work_and_memory_per_voxel_do_not_grow_with_the_embedding():
    (few, little), (many, much) = ([b - a for a, b in zip(costs(n, 4), costs(n, 9), strict=True)] for n in (32, 320))
    assert few == many > 0
    assert little == much > 0
