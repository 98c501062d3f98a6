"""Local similarity of two images against a slow reference; independence of contrast and shading."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from mre_lowshot.atlas.similarity import local_similarity, normalize_locally


def texture(seed: int, size: tuple[int, ...] = (18, 20, 19)) -> np.ndarray:
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=size), 1)


def gaussian_mean(image: np.ndarray, sigma: float, at: tuple[int, int, int]) -> float:
    """The mean around a voxel with Gaussian weights; the neighbourhood lies inside the image."""
    offsets = np.indices(image.shape) - np.reshape(at, (3, 1, 1, 1))
    radius = int(4 * sigma + 0.5)
    weights = np.exp(-(offsets**2).sum(axis=0) / (2 * sigma**2)) * (np.abs(offsets).max(axis=0) <= radius)
    return float((weights * image).sum() / weights.sum())


@pytest.mark.parametrize("at", [(8, 9, 9), (9, 10, 8)])
def test_an_image_loses_its_local_mean_and_spread_over_two_voxels(at):
    image = texture(0)
    mean, square = (gaussian_mean(values, 2.0, at) for values in (image, image**2))
    wanted = (image[at] - mean) / (np.sqrt(square - mean**2) + 0.1 * image.std())
    assert normalize_locally(image)[at] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("at", [(8, 9, 9), (4, 15, 8)])
def test_similarity_is_one_over_the_mean_squared_difference_over_one_voxel(at):
    one, other = texture(1), texture(2)
    wanted = 1 / (gaussian_mean((one - other) ** 2, 1.0, at) + 0.001)
    assert local_similarity(torch.from_numpy(one), torch.from_numpy(other))[at] == pytest.approx(wanted, rel=1e-5)


def test_equal_images_have_the_greatest_similarity_that_noise_allows():
    image = torch.from_numpy(texture(3))
    np.testing.assert_allclose(local_similarity(image, image), 1000, rtol=1e-6)


def test_contrast_and_brightness_do_not_matter():
    image = texture(4)
    np.testing.assert_allclose(normalize_locally(7 * image + 300), normalize_locally(image), atol=1e-3)


def test_noise_in_a_uniform_region_stays_small():
    image = 1e-3 * texture(5, (24, 20, 19))
    image[:9] += 10
    assert np.abs(normalize_locally(image)[18:]).max() < 0.01
