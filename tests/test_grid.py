"""Resizing of images and label maps: positions, constants, label values and memory."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_preprocessing import ball

from mre_lowshot.grid import argmax_resized, resize_labels, resize_linear, sample_image, sample_shares
from mre_lowshot.resampling import resize_image


def centroid(array):
    """Centre of mass as shares of the sides: independent of the grid where the grids' outer edges are aligned."""
    weights = array / array.sum()
    profiles = [weights.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    return [float((p * (np.arange(len(p)) + 0.5)).sum() / len(p)) for p in profiles]


@pytest.mark.parametrize("size", [(16, 25, 24), (37, 60, 61), (16, 60, 32), (24, 40, 32)])
@pytest.mark.parametrize("resize", ["image", "linear"])
def test_resizing_keeps_every_position(size, resize):
    for centre in ((11.5, 19.5, 15.5), (6.0, 32.0, 7.0)):
        z, y, x = np.ogrid[:24, :40, :32]
        blob = np.exp(-sum(((a - c) / 2.5) ** 2 for a, c in zip((z, y, x), centre, strict=True))).astype(np.float32)
        resized = resize_image(blob[None], size)[0] if resize == "image" else resize_linear(blob, size)
        assert resized.shape == size
        off = np.subtract(centroid(resized), centroid(blob)) * np.minimum(size, blob.shape)
        assert np.abs(off).max() < 0.1


def test_downsampling_smooths_and_a_constant_image_stays_constant():
    noise = np.random.default_rng(0).normal(size=(1, 16, 40, 40)).astype(np.float32)
    assert resize_image(noise, (16, 10, 10)).std() < 0.45
    assert np.allclose(resize_image(np.full((1, 5, 9, 9), 7.5, np.float32), (8, 4, 13)), 7.5, atol=1e-4)


def test_labels_are_resized_with_no_new_values_and_argmax_needs_no_stack():
    rng = np.random.default_rng(0)
    maps = rng.random((5, 6, 8, 7)).astype(np.float32)
    for size in ((9, 6, 15), (6, 8, 7), (3, 4, 4)):
        whole = np.stack([resize_linear(m, size) for m in maps]).argmax(axis=0)
        assert np.array_equal(argmax_resized(iter(maps), size), whole)
    assert not argmax_resized([maps[0], maps[0]], (9, 9, 9)).any()  # ties go to the lower label
    labels = rng.choice([-1, 0, 2, 7], (6, 8, 7))
    assert set(np.unique(resize_labels(labels, (9, 11, 5)))) <= {-1, 0, 2, 7}
    assert np.array_equal(resize_labels(np.repeat(labels, 3, axis=1)[:, 1::3], (6, 8, 7)), labels)
    block = np.where(ball((12, 12, 12), (5, 5, 5), (3, 3, 3)), 7, -1)
    assert set(np.unique(resize_labels(block, (8, 17, 12)))) == {-1, 7}


def test_labels_of_many_classes_need_hardly_more_memory_than_one_map():
    """Beside the label map itself and the maps that torch makes, next to nothing, however many classes."""
    import tracemalloc

    rng = np.random.default_rng(0)
    maps = rng.random((14, 4, 16, 16)).astype(np.float32)
    size = (16, 128, 128)
    argmax_resized(iter(maps), size)
    tracemalloc.start()
    labels = argmax_resized(iter(maps), size)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    whole = np.stack([resize_linear(m, size) for m in maps])
    np.testing.assert_array_equal(labels, whole.argmax(axis=0))
    assert peak < 1.5 * labels.nbytes


@settings(max_examples=25)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(*[st.integers(1, 6)] * 3),
    st.tuples(*[st.integers(1, 13)] * 3),
    st.integers(2, 5),
)
def test_maps_resized_in_the_box_of_their_values_give_the_same_labels(seed, old, new, classes):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 6, (classes, *old))  # most classes are nearly 0 in most voxels
    maps = (np.exp(logits) / np.exp(logits).sum(axis=0)).astype(np.float32)
    resized = np.stack([resize_linear(m, new) for m in maps])
    labels = argmax_resized(iter(maps), new, floor=0.5 / classes)
    best = np.sort(resized, axis=0)
    clear = best[-1] - best[-2] > 1e-5
    assert np.array_equal(labels[clear], resized.argmax(axis=0)[clear])


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 6), min_size=2, max_size=3), st.integers(1, 4))
def test_shares_of_labels_are_their_interpolated_indicators(seed, size, values):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, values, size).astype(np.int16)
    label[:2, :2] = 0  # cells of one label too
    patch = (4, 3, 5)[: len(size)]
    positions = rng.uniform(-2, 8, (len(size), *patch))
    wanted = [sample_image((label == k).astype(np.float32)[None], positions)[0] for k in range(values)]
    np.testing.assert_allclose(sample_shares(label, positions, values), np.stack(wanted), atol=1e-5)
    on_voxels = np.rint(positions)
    at = sample_shares(label, on_voxels, values)
    assert set(np.unique(at)) <= {0, 1}
    assert np.array_equal(at.sum(axis=0), np.ones(patch))
