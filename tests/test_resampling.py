"""Resizing of images with splines, against scikit-image and scipy in three dimensions at once."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.transform import resize

from mre_lowshot import resampling
from mre_lowshot.resampling import resize_image, spline_matrix

SIDE = st.integers(1, 14)


@settings(max_examples=40, deadline=None)
@given(old=st.tuples(SIDE, SIDE, SIDE), new=st.tuples(SIDE, SIDE, SIDE), order=st.sampled_from([0, 1, 3]),
       seed=st.integers(0, 99))  # fmt: skip
def test_equals_scikit_image(old, new, order, seed):
    image = (np.random.default_rng(seed).normal(size=old) * 300 - 100).astype(np.float32)
    shrinks = any(n < o for n, o in zip(new, old, strict=True))
    wanted = resize(image, new, order=order, mode="edge", anti_aliasing=shrinks, preserve_range=True)
    np.testing.assert_allclose(resize_image(image[None], new, order)[0], wanted, atol=2e-3)


def test_chunks_do_not_change_the_result(monkeypatch):
    image = np.random.default_rng(0).normal(size=(2, 13, 20, 17)).astype(np.float32)
    wanted = resize_image(image, (9, 31, 8))
    monkeypatch.setattr(resampling, "CHUNK", 60)
    np.testing.assert_allclose(resize_image(image, (9, 31, 8)), wanted, atol=1e-6)


@pytest.mark.parametrize("size", [(7, 40, 22), (30, 11, 50), (19, 30, 5)])
@pytest.mark.parametrize("value", [-1024.0, 0.1, 3.0e4])
def test_a_constant_image_stays_exactly_constant(size, value):
    found = resize_image(np.full((1, 19, 30, 25), value, np.float32), size)
    assert (found == np.float32(value)).all()


def test_each_channel_keeps_its_own_range():
    image = np.zeros((2, 20, 20, 20), np.float32)
    image[0, 5:15, 5:15, 5:15], image[1] = 1000, -7
    found = resize_image(image, (33, 33, 33))
    assert found[0].min() == 0
    assert found[0].max() == 1000
    assert (found[1] == -7).all()


def test_needs_no_more_memory_than_image_result_and_a_chunk():
    image = np.random.default_rng(0).normal(size=(1, 60, 300, 300)).astype(np.float32)
    spline_matrix(300, 110, 3), spline_matrix(60, 90, 3)
    tracemalloc.start()
    resize_image(image, (90, 110, 110))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    first_axis, chunk = 4 * 60 * 300 * 110, 16 * resampling.CHUNK
    assert peak < 2 * first_axis + chunk + 4 * 90 * 110 * 110


def test_rows_of_the_matrix_sum_to_one():
    for old, new in [(1, 5), (5, 1), (40, 13), (13, 40), (300, 299)]:
        np.testing.assert_allclose(spline_matrix(old, new, 3).sum(axis=1), 1, atol=1e-12)
