"""The baseline SCS: each step against a plain reference, and toy images."""

from dataclasses import replace

import numpy as np
import pytest
from references import tiny_plan
from toy_folds import image_plan, lesion_case, mean_dice, toy_fold

from mre_lowshot.errors import UserError
from mre_lowshot.experiments.baselines import superpixels
from mre_lowshot.experiments.baselines.registry import baseline
from mre_lowshot.experiments.baselines.requirements import require_data
from mre_lowshot.experiments.baselines.scs import NEIGHBOURS, SCS, drawn_equally, reclassified

pytest.importorskip("sklearn")
RNG = np.random.default_rng(0)


def shifted_mean(image, row, column, value):
    """The mean shift of one pixel, as a loop."""
    for _ in range(superpixels.STEPS):
        found = []
        for r in range(round(row) - superpixels.RADIUS, round(row) + superpixels.RADIUS + 1):
            for c in range(round(column) - superpixels.RADIUS, round(column) + superpixels.RADIUS + 1):
                inside = 0 <= r < image.shape[0] and 0 <= c < image.shape[1]
                if inside and abs(image[r, c] - value) <= superpixels.RANGE:
                    found.append((r, c, image[r, c]))
        if found:
            row, column, value = np.mean(found, axis=0)
    return value


def test_mean_shift_moves_each_pixel_to_the_mean_of_its_like():
    image = RNG.random((7, 8))
    plain = [[shifted_mean(image, r, c, image[r, c]) for c in range(8)] for r in range(7)]
    np.testing.assert_allclose(superpixels.mean_shift(image, image), plain)


def test_the_pyramid_smooths_inside_a_region_and_keeps_its_edge():
    image = np.full((24, 24), 0.2)
    image[:, 12:] = 0.8
    noisy = image + 0.03 * RNG.normal(size=image.shape)
    found = superpixels.pyramid_mean_shift(noisy)
    assert np.abs(found - image).mean() < 0.5 * np.abs(noisy - image).mean()
    assert np.abs(found - image).max() < 0.1


def test_superpixels_are_numbered_without_a_gap_and_follow_edges():
    image = np.full((36, 42), 0.2)
    image[10:26, 12:30] = 0.9
    labels = superpixels.segments(image)
    count = labels.max() + 1
    assert sorted(np.unique(labels)) == list(range(count))
    assert count == pytest.approx(image.size / superpixels.AREA, rel=0.3)
    assert all(np.ptp(image[labels == n]) == 0 for n in range(count))


def test_shares_are_histograms_of_each_superpixel():
    labels, values = RNG.integers(0, 5, (9, 11)), RNG.integers(-1, 4, (9, 11))
    found = superpixels.shares(labels, values, 3)  # -1 and 3 are left out
    for n in range(5):
        inside = values[(labels == n) & (values >= 0) & (values < 3)]
        np.testing.assert_allclose(found[n], [np.mean(inside == v) for v in range(3)])


def test_texture_is_that_of_the_co_occurrence_matrix():
    """scikit-image computes the same of a whole image, averaged over the four directions' pairs."""
    from skimage.feature import graycomatrix, graycoprops

    levels = RNG.integers(0, superpixels.BINS, (10, 13))
    found = superpixels.texture(np.zeros_like(levels), levels)
    counts = graycomatrix(
        levels.astype(np.uint8), [1], [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4], superpixels.BINS, symmetric=True
    ).sum(axis=3, keepdims=True)
    names = ("contrast", "homogeneity", "energy", "correlation")
    np.testing.assert_allclose(found[0], [graycoprops(counts / counts.sum(), name)[0, 0] for name in names])


def test_texture_counts_pairs_inside_a_superpixel_only():
    labels = np.repeat([[0, 1]], 6, axis=0).repeat(4, axis=1)
    levels = np.where(labels == 0, 1, 6)
    assert superpixels.texture(labels, levels).tolist() == [[0, 1, 1, 1]] * 2


def test_neighbourhoods_and_centres():
    image = RNG.random((6, 7))
    found = superpixels.descriptors(image)
    assert (found.reshape(6, 7, 5, 5)[2, 3] == image[:5, 1:6]).all()
    labels = np.array([[0, 0, 1], [0, 0, 1]])
    assert superpixels.centres(labels).tolist() == [[0.5, 0.5], [0.5, 2.0]]


def test_the_nearest_superpixels_decide():
    centres, initial = RNG.random((30, 2)) * 50, RNG.integers(0, 3, 30)
    found = reclassified(centres, initial, 3)
    for n in range(30):
        nearest = np.argsort(((centres - centres[n]) ** 2).sum(axis=1))[:NEIGHBOURS]
        np.testing.assert_allclose(found[n], [np.mean(initial[nearest] == k) for k in range(3)], rtol=1e-6)
    assert reclassified(centres[:2], initial[:2], 3).shape == (2, 3)


def test_each_class_is_drawn_equally_often():
    classes = np.repeat([0, 2, 3], [80, 7, 3])
    drawn = drawn_equally(classes, np.random.default_rng(0))
    assert np.bincount(classes[drawn]).tolist() == [30, 0, 30, 30]
    assert set(drawn) <= set(range(90))


def test_toy_images_are_learned(tmp_path):
    fold = toy_fold(tmp_path, [lesion_case(seed) for seed in range(2)], image_plan())
    test = lesion_case(9)
    found = SCS.fit(fold)(replace(test, label=None))
    assert found.shape == (2, 1, 48, 56)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-6)
    assert mean_dice(found, test) > 0.5  # 0.3 by chance
    assert "superpixels of 2 images, 50 words" in fold.log.__self__[-1]


def test_two_runs_are_alike(tmp_path):
    case = lesion_case(0, (36, 42))
    fold = toy_fold(tmp_path, [case], image_plan(), iterations=5)
    one, other = (SCS.fit(fold)(replace(case, label=None)) for _ in range(2))
    assert (one == other).all()


def test_images_of_one_class_are_refused(tmp_path):
    case = lesion_case(0, (24, 26))
    with pytest.raises(UserError, match="baseline scs: all superpixels of the training images have the same class"):
        SCS.fit(toy_fold(tmp_path, [replace(case, label=np.zeros_like(case.label))], image_plan()))


def test_volumes_and_a_missing_package_are_refused(monkeypatch):
    with pytest.raises(UserError, match="baseline scs: works on 2D images only, Dataset001_Tiny holds volumes"):
        require_data(SCS, tiny_plan())
    monkeypatch.setattr("mre_lowshot.experiments.baselines.requirements.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'the package sklearn is not installed; pip install .*-e "\.\[baselines\]"'):
        baseline("scs")
