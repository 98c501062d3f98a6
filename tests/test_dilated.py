"""The fast dilated convolution against torch's own: values, every gradient, dtypes, parameters."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from mre_lowshot.network.optimized.dilated import DilatedConv, dilated_conv


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Many tiny convolutions: on a busy machine, several threads made these tests ten times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: tuple[int, ...]) -> Tensor:
    conv = F.conv2d if x.dim() == 4 else F.conv3d
    return conv(x, weight, bias, padding=dilation, dilation=dilation)


def draw(batch, channels, out, size, dtype=torch.float64, seed=0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, channels, *size), (out, channels, *[3] * len(size)), (out,)
    x, weight, bias = (torch.randn(shape, dtype=dtype, generator=generator) for shape in shapes)
    return x, weight, bias


def results(conv, inputs, dilation, upstream: Tensor) -> list[Tensor]:
    """The value, then the gradients of x, weight and bias."""
    inputs = [t.detach().clone().requires_grad_() for t in inputs]
    y = conv(*inputs, dilation)
    y.backward(upstream.to(y.dtype))
    return [y.detach(), *(t.grad for t in inputs)]


def compare(inputs, dilation, tolerance: float) -> None:
    upstream = torch.randn_like(plain(*inputs, dilation))
    ours, theirs = (results(conv, inputs, dilation, upstream) for conv in (dilated_conv, plain))
    for name, a, b in zip(("value", "x", "weight", "bias"), ours, theirs, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1), (name, inputs[0].shape, dilation)


@st.composite
def cases(draw_):
    axes = draw_(st.sampled_from((2, 3)))
    size = draw_(st.lists(st.integers(1, 9), min_size=axes, max_size=axes))
    dilation = draw_(st.lists(st.integers(1, 10), min_size=axes, max_size=axes))
    return draw_(st.integers(1, 3)), draw_(st.integers(1, 4)), draw_(st.integers(1, 4)), size, tuple(dilation)


@settings(max_examples=150, derandomize=True)
@given(cases(), st.booleans())
def test_values_and_gradients_are_those_of_the_plain_convolution(case, channels_last):
    batch, channels, out, size, dilation = case
    x, weight, bias = draw(batch, channels, out, size)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
    compare((x, weight, bias), dilation, 1e-10)


@pytest.mark.parametrize(
    ("size", "dilation"),
    [
        ((12, 36, 36), (6, 6, 6)),  # z folded, 6x6 phases
        ((12, 36, 36), (12, 12, 12)),  # z dead, 3x3 phases
        ((12, 36, 36), (18, 18, 18)),  # z dead, the rest folded: one matrix product
        ((12, 36, 36), (2, 6, 6)),
        ((12, 24, 24), (4, 4, 4)),
        ((10, 24, 24), (18, 18, 18)),  # phases of two lengths
        ((13, 23, 25), (5, 6, 7)),
        ((40, 36), (12, 18)),
        ((30, 36), (18, 18)),
    ],
)
def test_float32_at_the_sizes_in_use(size, dilation):
    compare(draw(2, 19, 16, size, torch.float32), dilation, 1e-4)


def test_gradcheck():
    inputs = [t.requires_grad_() for t in draw(2, 2, 2, (3, 4, 5))]
    assert torch.autograd.gradcheck(lambda *t: dilated_conv(*t, (3, 2, 3)), inputs)


def test_without_bias_and_with_frozen_inputs():
    x, weight, _ = draw(2, 3, 4, (4, 6, 6))
    weight.requires_grad_()
    y = dilated_conv(x, weight, None, (2, 3, 3))
    torch.testing.assert_close(y, plain(x, weight, None, (2, 3, 3)))
    y.sum().backward()
    assert x.grad is None
    assert weight.grad is not None


@pytest.mark.parametrize("dilation", [(6, 6, 6), (12, 12, 12), (1, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_inputs_are_computed_in_float32(dilation, dtype):
    """Phases of 2x6x6, where torch's own bfloat16 weight gradient on the CPU can be off by many powers of ten."""
    inputs = [t.to(dtype) for t in draw(2, 16, 16, (12, 36, 36), torch.float32)]
    upstream = torch.randn(2, 16, 12, 36, 36).to(dtype)
    ours = results(dilated_conv, inputs, dilation, upstream)
    exact = results(plain, [t.float() for t in inputs], dilation, upstream.float())
    for a, b in zip(ours, exact, strict=True):
        assert a.dtype == dtype
        assert (a.float() - b).abs().max() <= 0.01 * b.abs().max()


@pytest.mark.parametrize("backward_inside", [False, True])
def test_autocast_gives_the_plain_dtype_and_float32_gradients(backward_inside):
    x, weight, bias = (t.requires_grad_() for t in draw(2, 16, 16, (12, 36, 36), torch.float32))
    upstream = torch.randn(2, 16, 12, 36, 36).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = dilated_conv(x, weight, bias, (6, 6, 6))
        assert y.dtype == plain(x, weight, bias, (6, 6, 6)).dtype == torch.bfloat16
        if backward_inside:
            y.backward(upstream)
    if not backward_inside:
        y.backward(upstream)
    exact = results(plain, (x, weight, bias), (6, 6, 6), upstream.float())
    assert (y.float() - exact[0]).abs().max() <= 0.01 * exact[0].abs().max()
    for a, b in zip((x.grad, weight.grad, bias.grad), exact[1:], strict=True):
        assert a.dtype == torch.float32
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()


def test_repeats_bit_for_bit():
    inputs = draw(2, 19, 16, (12, 24, 24), torch.float32)
    upstream = torch.randn(2, 16, 12, 24, 24)
    torch.set_num_threads(2)
    for dilation in ((6, 6, 6), (12, 12, 12), (18, 18, 18)):
        first, second = (results(dilated_conv, inputs, dilation, upstream) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    torch.set_num_threads(1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("axes", "torch_class"), [(2, nn.Conv2d), (3, nn.Conv3d)])
def test_module_has_the_parameters_of_torchs_convolution(axes, torch_class, bias):
    dilation = (6, 4, 5)[:axes]
    torch.manual_seed(3)
    ours = DilatedConv(axes, 5, 7, dilation, bias=bias)
    torch.manual_seed(3)
    theirs = torch_class(5, 7, 3, padding=dilation, dilation=dilation, bias=bias)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 9, 8, 7)[(slice(None),) * (axes + 2) + (0,) * (3 - axes)]
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_wrong_shapes_are_refused():
    x, weight, bias = draw(1, 2, 3, (4, 4, 4))
    with pytest.raises(ValueError, match="dilation"):
        dilated_conv(x, weight, bias, (2, 2))
    with pytest.raises(ValueError, match="weight"):
        dilated_conv(x, weight[:, :1], bias, (2, 2, 2))
    with pytest.raises(ValueError, match="dilation"):
        DilatedConv(3, 2, 3, (0, 1, 1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_matches_the_plain_convolution():
    for dilation in ((6, 6, 6), (12, 12, 12)):
        inputs = [t.cuda() for t in draw(2, 8, 8, (12, 24, 24))]
        compare(inputs, dilation, 1e-10)
