"""Tiles cover the volume, and the sliding window equals a slow loop: coordinates, padding, mirrored views."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import TINY, TINY_2D, single_thread, whole_map  # noqa: F401
from torch import Tensor, nn

from mre_lowshot.config import InferenceConfig, NetworkConfig, PatchConfig
from mre_lowshot.errors import NumericalError, UserError
from mre_lowshot.inference.export import native_labels
from mre_lowshot.inference.sliding_window import SlidingWindow
from mre_lowshot.inference.tiles import centre_tiles, gaussian_weight, overlap_tiles
from mre_lowshot.network.build import build
from mre_lowshot.preprocessing.pipeline import GridTransform

PATCH = PatchConfig((4, 8, 8), (2, 4, 6))
CENTRE, OVERLAP = InferenceConfig(), InferenceConfig(tiling="overlap")
LINEAR = replace(TINY, prototype_head=False)
UNIFORM = replace(OVERLAP, weighting="uniform", step=0.7)
CPU = torch.device("cpu")


class Coordinates(nn.Module):
    """Logits are the coordinates themselves."""

    def forward(self, image: Tensor, coordinates: Tensor) -> Tensor:
        return 3 * coordinates


class Pointwise(nn.Module):
    """Logits depend on the voxel's own intensity alone."""

    def forward(self, image: Tensor, coordinates: Tensor) -> Tensor:
        return torch.cat([image, image**2, torch.sin(3 * image)], dim=1)


def network(seed: int = 0, spec=TINY) -> nn.Module:
    """A random network with weights large enough that its outputs differ from voxel to voxel."""
    torch.manual_seed(seed)
    net = build(spec)
    for p in net.parameters():
        p.data *= 1.5
    return net.eval()


def window(*networks: nn.Module, rule: InferenceConfig = CENTRE, spec=TINY, patch=PATCH, **kwargs) -> SlidingWindow:
    return SlidingWindow(networks, spec, patch=patch, inference=rule, device=CPU, **kwargs)


def picture(*size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1, *size)).astype(np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(axis=0))
    return e / e.sum(axis=0)


@st.composite
def coverings(draw):
    axes = draw(st.integers(1, 3))
    patch = [draw(st.integers(1, 12)) for _ in range(axes)]
    centre = [draw(st.integers(1, p)) for p in patch]
    size = [p + draw(st.integers(0, 25)) for p in patch]
    return tuple(size), tuple(patch), tuple(centre)


@settings(max_examples=150, derandomize=True)
@given(coverings())
def test_centre_tiles_keep_every_voxel_once_and_its_surroundings(case):
    size, patch, centre = case
    count = np.zeros(size, int)
    for tile in centre_tiles(size, patch, centre):
        assert count[tile.input_slices(patch)].shape == patch  # the input lies inside the volume
        assert count[tile.output_slices()].shape == np.empty(patch)[tile.kept_slices()].shape
        count[tile.output_slices()] += 1
        for n, p, c, start, (low, high) in zip(size, patch, centre, tile.start, tile.keep, strict=True):
            margin = (p - c) // 2
            assert 0 <= low < high <= p
            assert low >= margin or start == 0
            assert p - high >= margin or start + p == n
    assert (count == 1).all()


def test_centre_tiles_are_consecutive_in_the_papers_setting():
    starts = sorted({t.start for t in centre_tiles((48, 216, 216), (12, 36, 36), (8, 28, 28))})
    assert [sorted({s[axis] for s in starts}) for axis in (0, 1)] == [
        [0, 8, 16, 24, 32, 36],
        [0, 28, 56, 84, 112, 140, 168, 180],
    ]
    assert len(starts) == 6 * 8 * 8


@settings(max_examples=150, derandomize=True)
@given(coverings(), st.floats(0.05, 1))
def test_overlap_tiles_reach_every_voxel_in_steps_no_longer_than_given(case, step):
    size, patch, _ = case
    count = np.zeros(size, int)
    tiles = list(overlap_tiles(size, patch, step))
    for tile in tiles:
        assert count[tile.input_slices(patch)].shape == patch == count[tile.output_slices()].shape
        count[tile.output_slices()] += 1
    assert (count >= 1).all()
    for axis, (n, p) in enumerate(zip(size, patch, strict=True)):
        starts = sorted({t.start[axis] for t in tiles})
        assert starts[0] == 0
        assert starts[-1] == n - p
        assert all(b - a <= max(1, p * step) for a, b in itertools.pairwise(starts))


def test_gaussian_weight():
    weight = gaussian_weight((9, 17))
    assert weight.shape == (9, 17)
    assert weight[4, 8] == weight.max() == 1
    assert weight.min() == pytest.approx(1e-3)
    np.testing.assert_array_equal(weight, weight[::-1, ::-1])
    assert weight[4, 8 + 2] == pytest.approx(np.exp(-0.5 * (2 / (17 / 8)) ** 2))


def run(net: nn.Module, image: np.ndarray, start, size) -> np.ndarray:
    """Probabilities of one tile, the plain way."""
    box = (slice(None), *(slice(s, s + p) for s, p in zip(start, PATCH.size, strict=True)))
    maps = whole_map(size)[box]
    with torch.no_grad():
        return softmax(net(torch.tensor(image[box])[None], torch.tensor(maps)[None])[0].numpy())


def slow_centre(net: nn.Module, image: np.ndarray) -> np.ndarray:
    """Voxel by voxel: the first tile that has the voxel before its far margin, or the last tile."""
    size = image.shape[1:]
    result = np.zeros((3, *size), np.float32)
    cache: dict[tuple[int, ...], np.ndarray] = {}
    for voxel in np.ndindex(*size):
        start = []
        for v, n, p, c in zip(voxel, size, PATCH.size, PATCH.centre, strict=True):
            s = 0
            while s < n - p and v >= s + (p - c) // 2 + c:
                s = min(s + c, n - p)
            start.append(s)
        if tuple(start) not in cache:
            cache[tuple(start)] = run(net, image, start, size)
        result[(slice(None), *voxel)] = cache[tuple(start)][(slice(None), *np.subtract(voxel, start))]
    return result


def slow_overlap(net: nn.Module, image: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Half-overlapping tiles of a volume that they fit, weighted and divided by the weights' sum."""
    size = image.shape[1:]
    total, votes = np.zeros((3, *size)), np.zeros(size)
    for start in itertools.product(*(range(0, n - p + 1, p // 2) for n, p in zip(size, PATCH.size, strict=True))):
        box = tuple(slice(s, s + p) for s, p in zip(start, PATCH.size, strict=True))
        total[(slice(None), *box)] += run(net, image, start, size) * weight
        votes[box] += weight
    return total / votes


@pytest.mark.parametrize("tile_batch", [1, 5, 100])
def test_the_sliding_window_equals_a_slow_loop(tile_batch):
    net = network()
    image = picture(7, 13, 19)
    found = window(net, tile_batch=tile_batch).posterior(image)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, slow_centre(net, image), atol=2e-5)
    assert found.std(axis=(1, 2, 3)).min() > 1e-3  # not a constant, which any loop would give
    image = picture(6, 16, 12)
    for rule, weight in ((OVERLAP, gaussian_weight(PATCH.size)), (replace(UNIFORM, step=0.5), np.ones(PATCH.size))):
        found = window(net, rule=rule, tile_batch=tile_batch).posterior(image)
        np.testing.assert_allclose(found, slow_overlap(net, image, weight), atol=2e-5)


@settings(max_examples=40, derandomize=True)
@given(
    st.tuples(st.integers(2, 12), st.integers(2, 20), st.integers(2, 20)),
    st.sampled_from([CENTRE, OVERLAP, UNIFORM]),
    st.lists(st.integers(0, 2), max_size=3, unique=True),
)
def test_coordinates_are_those_of_the_whole_volume(size, rule, mirrored):
    """In every tile, in volumes smaller than the patch, and in mirrored views (mirrored with the content)."""
    found = window(Coordinates(), rule=replace(rule, mirror_axes=tuple(mirrored))).posterior(picture(*size))
    views = []
    for turned in itertools.product(*[(1, -1) if axis in mirrored else (1,) for axis in range(3)]):
        views.append(softmax(3 * whole_map(size) * np.array(turned, np.float32).reshape(3, 1, 1, 1)))
    np.testing.assert_allclose(found, np.mean(views, axis=0), atol=1e-5)


@pytest.mark.parametrize("rule", [CENTRE, OVERLAP, UNIFORM], ids=["centre", "gaussian", "uniform"])
@pytest.mark.parametrize("size", [(4, 8, 8), (9, 11, 21), (2, 20, 5), (1, 1, 1)])
@pytest.mark.parametrize("mirrored", [(), (0, 2)])
def test_a_pointwise_network_gives_the_same_with_any_tiling(rule, size, mirrored):
    image = picture(*size)
    found = window(Pointwise(), rule=replace(rule, mirror_axes=mirrored)).posterior(image)
    with torch.no_grad():
        wanted = softmax(Pointwise()(torch.tensor(image)[None], torch.zeros(1))[0].numpy())
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-5)


@pytest.mark.parametrize("source", ["volume", "patch", "none"])
def test_with_mirrored_views_the_prediction_mirrors_with_the_image(source):
    spec = replace(TINY, coordinates=source)
    net = network(spec=spec)
    rule = replace(OVERLAP, mirror_axes=(1, 2))
    image = picture(6, 12, 16)
    plain = window(net, rule=rule, spec=spec).posterior(image)
    for axes in ((3,), (2, 3)):
        turned = window(net, rule=rule, spec=spec).posterior(np.flip(image, axes).copy())
        np.testing.assert_allclose(np.flip(turned, axes), plain, atol=1e-5)
    without = window(net, rule=OVERLAP, spec=spec).posterior(image)
    assert np.abs(without - plain).max() > 1e-3


def test_probabilities_of_several_networks_are_averaged():
    nets, image = [network(seed) for seed in range(3)], picture(5, 9, 9)
    alone = [window(net).posterior(image) for net in nets]
    assert np.abs(alone[0] - alone[1]).max() > 1e-3
    np.testing.assert_allclose(window(*nets).posterior(image), np.mean(alone, axis=0), atol=1e-6)


@pytest.mark.parametrize("size", [(20, 33), (5, 30), (3, 4)])
def test_two_dimensions_with_and_without_the_slice_axis(size):
    patch, rule = PatchConfig((8, 12), (4, 8)), replace(OVERLAP, mirror_axes=(1,))
    net = window(network(spec=TINY_2D), rule=rule, spec=TINY_2D, patch=patch)
    image = picture(*size)
    flat, slice_ = net.posterior(image), net.posterior(image[:, None])
    assert flat.shape == (3, *size)
    assert slice_.shape == (3, 1, *size)
    np.testing.assert_array_equal(slice_[:, 0], flat)
    np.testing.assert_allclose(flat.sum(axis=0), 1, atol=1e-5)


def test_a_stack_of_slices_is_not_cut_down_to_its_first():
    net = window(network(spec=TINY_2D), spec=TINY_2D, patch=PatchConfig((8, 12), (4, 8)))
    with pytest.raises(UserError, match="slice"):
        net.posterior(picture(5, 20, 20))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_prediction_that_is_not_finite_is_an_error(bad):
    image = picture(6, 12, 12)
    image[0, 5, 11, 11] = bad  # one voxel, in the last tile
    with pytest.raises(NumericalError, match="non-finite"):
        window(Pointwise()).posterior(image)


def test_networks_predict_in_evaluation_mode_and_progress_is_reported():
    net, reported = network().train(), []
    before = {name: value.clone() for name, value in net.state_dict().items()}
    image = picture(7, 13, 13)
    found = window(net, tile_batch=4).posterior(image, progress=lambda done, of: reported.append((done, of)))
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    np.testing.assert_allclose(found, slow_centre(net.eval(), image), atol=2e-5)
    count = len(list(centre_tiles((7, 13, 13), PATCH.size, PATCH.centre)))
    assert reported == [(min(n + 4, count), count) for n in range(0, count, 4)]


class Crowded(Pointwise):
    """Runs out of memory with more than ``room`` tiles, as CUDA or cuDNN does."""

    def __init__(self, room: int, error: type[RuntimeError] = torch.OutOfMemoryError, text: str = "no room") -> None:
        super().__init__()
        self.room, self.error, self.seen = room, error(text), []

    def forward(self, image: Tensor, coordinates: Tensor) -> Tensor:
        if len(image) > self.room:
            raise self.error
        self.seen.append(len(image))
        return super().forward(image, coordinates)


@pytest.mark.parametrize(
    "error", [(torch.OutOfMemoryError, "no room"), (RuntimeError, "cuDNN error: CUDNN_STATUS_ALLOC_FAILED")]
)
def test_out_of_memory_halves_the_tiles_at_a_time_with_a_message(error):
    image, messages = picture(7, 13, 13), []
    wanted = window(Pointwise()).posterior(image)
    crowded = Crowded(3, *error)
    found = window(crowded, tile_batch=8, log=messages.append).posterior(image)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert max(crowded.seen) == 2
    assert len(messages) == 2
    assert "out of memory, continuing with 2 tiles at a time" in messages[-1]
    with pytest.raises(UserError, match="not hold a single tile"):
        window(Crowded(0, *error), log=messages.append).posterior(image)


def decided(margin: float) -> nn.Module:
    """A network with a linear classifier that prefers class 1 by about ``margin``."""
    net = network(spec=LINEAR)
    net.head.bias.data += torch.tensor([0.0, margin, 0.0])
    return net


def test_bfloat16_is_used_where_it_agrees():
    net, image, messages = decided(2.0), picture(7, 13, 13), []
    exact = window(net, spec=LINEAR).posterior(image)
    low = window(net, spec=LINEAR, precision="bf16", log=messages.append)
    assert [n.dtype for n in low.networks] == [torch.float32]  # before the comparison
    found = low.posterior(image)
    assert messages == []
    assert [n.dtype for n in low.networks] == [torch.bfloat16]
    np.testing.assert_allclose(found, exact, atol=0.02)
    assert not np.array_equal(found, exact)  # rounded: float32 would give the same bits
    assert (found.argmax(axis=0) == exact.argmax(axis=0)).all()


def test_bfloat16_is_not_used_where_it_disagrees():
    net, image, messages = network(), picture(7, 13, 13), []
    low = window(net, precision="bf16", log=messages.append)
    low.low_precision[0].head.prototypes.data.mul_(-1)
    low.low_precision[0].embedding.aspp.branches[0][0].weight.data.mul_(-3)
    exact = window(net).posterior(image)
    for _ in range(2):
        np.testing.assert_array_equal(low.posterior(image), exact)
    assert [n.dtype for n in low.networks] == [torch.float32]
    (line,) = messages  # compared and reported once
    assert line.startswith("bfloat16 is not used: on one tile ")
    assert "of the labels agree with float32, probabilities differ by" in line


def test_empty_tiles_are_background_and_never_seen_by_the_network():
    seen = []

    class Watcher(nn.Module):
        def forward(self, image, coordinates):
            seen.append(image)
            return torch.stack([torch.zeros_like(image[:, 0]), torch.ones_like(image[:, 0])], dim=1)

    spec = NetworkConfig(in_channels=2, classes=2)
    image = np.zeros((2, 8, 40, 24), np.float32)
    image[1, :, :12] = np.random.default_rng(0).normal(size=(8, 12, 24))
    image[0] += 1e-5 * np.random.default_rng(1).random(image.shape[1:])  # ringing is no content
    patch = PatchConfig((8, 8, 8), (4, 4, 4))
    for rule in (CENTRE, OVERLAP):
        seen.clear()
        all_of_it = window(Watcher(), rule=rule, spec=spec, patch=patch).posterior(image)
        whole = sum(len(batch) for batch in seen)
        seen.clear()
        found = window(Watcher(), rule=replace(rule, skip_empty=True), spec=spec, patch=patch).posterior(image)
        assert 0 < sum(len(batch) for batch in seen) < whole
        assert all(float(tile[1].std()) > 0 for batch in seen for tile in batch)
        assert np.array_equal(found[0, :, 20:], np.ones((8, 20, 24), np.float32))
        assert np.array_equal(found[:, :, :8], all_of_it[:, :, :8])


@pytest.mark.parametrize(("second", "stays"), [(4, False), (8, True)])
def test_small_components_are_removed_and_halves_stay(second, stays):
    """In a class of one component, a component less than half as large as the largest is removed."""
    shape = (1, 12, 30)
    drawn = np.zeros(shape, int)
    drawn[0, 2:4, 2:12], drawn[0, 8:10, 20 : 20 + second], drawn[0, 6, 0] = 1, 1, 2
    probabilities = np.stack([drawn == k for k in range(3)]).astype(np.float32)
    transform = GridTransform(shape, (1.0, 1.0, 1.0), tuple((0, n) for n in shape), shape)
    wanted = drawn.copy()
    if not stays:
        wanted[0, 8:10] = 0
    assert np.array_equal(native_labels(probabilities, transform, (1, 2)), wanted)
    assert np.array_equal(native_labels(probabilities, transform), drawn)
