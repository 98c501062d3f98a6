"""The inference-only network against the trained one: values at the kept voxels, for any kept part."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import TINY, TINY_2D, single_thread  # noqa: F401
from torch.nn import functional as F

from mre_lowshot.network.build import build
from mre_lowshot.network.optimized.inference import InferenceNetwork, compare_outputs, dilated_at


def trained(spec, seed: int = 0):
    """A network whose norms have statistics and factors as after training."""
    torch.manual_seed(seed)
    network = build(spec)
    for module in network.modules():
        if hasattr(module, "running_mean") and module.running_mean is not None:
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.3, 2)
        if hasattr(module, "running_mean"):
            module.weight.data.normal_(1, 0.4)
            module.bias.data.normal_(0, 0.4)
    return network.eval()


def batch(spec):
    size = (4, 8, 8) if spec.axes == 3 else (8, 12)
    return torch.randn(3, 1, *size), torch.rand(3, spec.axes, *size) * 2 - 1


KEEPS = {3: (None, ((1, 3), (2, 6), (1, 7)), ((0, 3), (2, 8), (0, 8))), 2: (None, ((1, 3), (2, 9)), ((0, 5), (7, 12)))}
CHANGES = [
    {},
    {"embedding_dim": 48},
    {"dilations": ((1, 2, 2), (2, 5, 6), (9, 9, 9))},
    {"image_level": False},
    {"image_level_norm": False, "embedding_dim": 48},
    {"norm": "instance", "image_level_norm": False},
    {"aspp": False},
    {"multiscale": False, "embedding_dim": 48},
    {"se": False},
    {"prototype_head": False},
    {"prototype_head": False, "multiscale": False, "coordinates": "none", "embedding_dim": 0},
    {"coordinates": "patch"},
]


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_kept_voxels_have_the_values_of_the_whole_network(changes, axes, which):
    spec = TINY if axes == 3 else TINY_2D
    if axes == 2 and "dilations" in changes:
        changes = {"dilations": tuple(d[1:] for d in changes["dilations"])}
    network = trained(replace(spec, **changes))
    state = {name: value.clone() for name, value in network.state_dict().items()}
    image, maps = batch(spec)
    keep = KEEPS[axes][which]
    with torch.inference_mode():
        whole = network(image, maps)
        found = InferenceNetwork(network)(image, maps, keep)
    if keep is not None:
        whole = whole[(slice(None), slice(None), *(slice(*k) for k in keep))]
    assert found.shape == whole.shape
    assert (found - whole).abs().max() <= 1e-5 * whole.abs().max()
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())  # a copy was fused


HEADS = [
    {"distance": "euclidean"},
    {"distance": "euclidean", "logit_scale": 60.0},
    {"logit_scale": 200.0},
    {"mixing": "average"},
    {"mixing": "one_hot"},
    {"mixing_sigmoid": False},
    {"prototypes_per_class": 1},
]


@pytest.mark.parametrize("embedding_dim", [8, 48])
@pytest.mark.parametrize("changes", HEADS, ids=str)
def test_every_head_gives_the_logits_of_the_trained_network(changes, embedding_dim):
    network = trained(replace(TINY, embedding_dim=embedding_dim, **changes))
    image, maps = batch(TINY)
    with torch.inference_mode():
        whole, found = network(image, maps), InferenceNetwork(network)(image, maps)
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-4)


@settings(max_examples=60, derandomize=True)
@given(st.data())
def test_a_dilated_convolution_at_some_voxels_only(data):
    axes = data.draw(st.sampled_from((2, 3)))
    size = data.draw(st.lists(st.integers(1, 9), min_size=axes, max_size=axes))
    dilation = data.draw(st.lists(st.integers(1, 10), min_size=axes, max_size=axes))
    keep = []
    for n in size:
        low = data.draw(st.integers(0, n - 1))
        keep.append((low, data.draw(st.integers(low + 1, n))))
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    weight, bias = torch.randn(4, 3, *[3] * axes, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    conv = F.conv3d if axes == 3 else F.conv2d
    whole = conv(x, weight, bias, padding=dilation, dilation=dilation)
    found = dilated_at(x, weight, bias, dilation, keep)
    torch.testing.assert_close(found, whole[(slice(None), slice(None), *(slice(*k) for k in keep))])


def test_low_precision_agrees_or_the_reason_is_given():
    network = trained(replace(TINY, embedding_dim=48))
    image, maps = batch(TINY)
    keep = KEEPS[3][1]
    exact, low = InferenceNetwork(network), InferenceNetwork(network, torch.bfloat16)
    assert compare_outputs(exact, exact, image, maps, keep) is None
    found = low(image, maps, keep)
    assert found.dtype == torch.float32
    assert (torch.softmax(found, 1) - torch.softmax(exact(image, maps, keep), 1)).abs().mean() < 0.02
    other = InferenceNetwork(trained(replace(TINY, embedding_dim=48), seed=1))
    assert "labels agree" in compare_outputs(other, exact, image, maps, keep)
    assert "non-finite" in compare_outputs(low, exact, image * float("nan"), maps, keep)
