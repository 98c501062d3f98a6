"""A prediction mended by the scan's own intensities and edges."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d

from mre_lowshot.errors import UserError
from mre_lowshot.inference.appearance import (
    BIN_SMOOTHING,
    BINS,
    COMMON,
    DOUBT,
    EDGE,
    LEAST,
    RANGE,
    ROUNDS,
    adapt,
    agree_with_neighbours,
)
from mre_lowshot.inference.predictor import Predictor
from mre_lowshot.network.build import build
from mre_lowshot.planners.rules import mending_rule
from mre_lowshot.recipes import RECIPES
from mre_lowshot.specs import InferenceSpec, NetworkSpec, PatchSpec


def by_voxel(probabilities: np.ndarray, image: np.ndarray, weight: float) -> np.ndarray:
    """The same, a voxel and a class at a time."""
    result = probabilities.astype(np.float64)
    where = [at for at in np.ndindex(*image.shape[1:]) if 1 - probabilities[(0, *at)] > DOUBT]
    classes = len(probabilities)
    for channel in image:
        low, high = np.percentile([channel[at] for at in where], RANGE)

        def bin_of(at, channel=channel, low=low, high=high):
            return min(max(int((channel[at] - low) / (high - low) * BINS), 0), BINS - 1)

        seen = np.zeros((classes, BINS))
        for at in where:
            for k in range(classes):
                seen[k, bin_of(at)] += probabilities[(k, *at)]
        common = seen.sum(axis=0) / seen.sum()
        for at in where:
            for k in range(classes):
                own = gaussian_filter1d(seen[k], BIN_SMOOTHING)[bin_of(at)] / max(seen[k].sum(), 1)
                result[(k, *at)] *= (own + COMMON * common[bin_of(at)]) ** (weight / len(image))
    return result / result.sum(axis=0)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 1.0, 2.0]), st.integers(1, 2))
def test_it_is_what_it_says_voxel_by_voxel(seed, weight, channels):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet([3, 1, 0.5], (4, 5, 6)).transpose(3, 0, 1, 2).astype(np.float32)
    probabilities[:, 0] = np.reshape((1, 0, 0), (3, 1, 1))  # sure background stays
    image = rng.normal(0, 1, (channels, 4, 5, 6)).astype(np.float32)
    wanted = by_voxel(probabilities, image, weight)
    adapt(probabilities, image, weight)
    assert np.allclose(probabilities, wanted, atol=1e-5)
    assert np.allclose(probabilities.sum(axis=0), 1, atol=1e-5)


def test_a_border_moves_to_where_the_scan_has_it():
    """The organ is bright; the prediction is blurred and one voxel off; nothing was told about its brightness."""
    rng = np.random.default_rng(0)
    truth = np.zeros((16, 16, 16), bool)
    truth[4:12, 4:12, 4:12] = True
    image = (truth * 3 + rng.normal(0, 0.4, truth.shape)).astype(np.float32)[None]
    organ = np.roll(truth, 1, axis=2) * 0.7 + 0.15
    for scale in (1, -1):  # dark organs too
        probabilities = np.stack([1 - organ, organ]).astype(np.float32)
        before = ((probabilities[1] > 0.5) != truth).sum()
        adapt(probabilities, scale * image, 1.0)
        assert ((probabilities[1] > 0.5) != truth).sum() < 0.6 * before


def neighbours_by_voxel(probabilities: np.ndarray, image: np.ndarray, weight: float) -> np.ndarray:
    """Mean field of the whole (small) volume, a pair of voxels at a time."""
    size = image.shape[1:]
    sigma = [EDGE * np.median(np.abs(np.diff(channel, axis=2))) + LEAST for channel in image]
    now = probabilities.astype(np.float64)
    for _ in range(ROUNDS):
        after = np.log(probabilities.astype(np.float64) + LEAST)
        for at in np.ndindex(*size):
            for axis in range(3):
                for step in (-1, 1):
                    other = list(at)
                    other[axis] += step
                    if 0 <= other[axis] < size[axis]:
                        apart = [((c[at] - c[tuple(other)]) / s) ** 2 for c, s in zip(image, sigma, strict=True)]
                        bond = np.exp(-np.mean(apart) / 2)
                        after[(slice(None), *at)] += weight * bond * now[(slice(None), *other)]
        now = np.exp(after) / np.exp(after).sum(axis=0)
    return now


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 2))
def test_neighbours_agree_as_the_equation_says(seed, channels):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet([2, 2, 1], (4, 3, 5)).transpose(3, 0, 1, 2).astype(np.float32)
    probabilities = 0.9 * probabilities + np.float32(0.1 / 3)  # all of it takes part
    image = rng.normal(0, 1, (channels, 4, 3, 5)).astype(np.float32)
    wanted = neighbours_by_voxel(probabilities, image, 1.5)
    agree_with_neighbours(probabilities, image, 1.5)
    assert np.allclose(probabilities, wanted, atol=1e-5)


def test_a_ragged_border_comes_to_lie_on_the_edge():
    rng = np.random.default_rng(0)
    truth = np.zeros((16, 16, 16), bool)
    truth[4:12, 4:12, 4:12] = True
    image = (truth * 3 + rng.normal(0, 0.2, truth.shape)).astype(np.float32)[None]
    organ = np.clip(0.3 + 0.4 * truth + rng.normal(0, 0.15, truth.shape), 0.01, 0.99)
    probabilities = np.stack([1 - organ, organ]).astype(np.float32)
    before = ((probabilities[1] > 0.5) != truth).sum()
    agree_with_neighbours(probabilities, image, 2.0)
    assert before > 100
    assert ((probabilities[1] > 0.5) != truth).sum() < before / 10


def test_constant_surroundings_do_not_break_the_bonds_inside():
    """Most of a skull-stripped scan is one value, give or take what resampling leaves of it."""
    rng = np.random.default_rng(0)
    truth = np.zeros((16, 16, 16), bool)
    truth[6:10, 6:10, 6:10] = True
    image = np.zeros((1, 16, 16, 16), np.float32)
    inside = (slice(4, 12),) * 3
    image[0][inside] = 5 + 3 * truth[inside] + rng.normal(0, 0.2, (8, 8, 8))
    organ = np.clip(0.3 + 0.4 * truth + rng.normal(0, 0.15, truth.shape), 0.03, 0.99)
    probabilities = np.stack([1 - organ, organ]).astype(np.float32)
    alone = probabilities[(slice(None), *inside)].copy()
    agree_with_neighbours(probabilities, image, 2.0)
    agree_with_neighbours(alone, image[(slice(None), *inside)], 2.0)
    wrong, without = ((p[1] > 0.5) != truth[inside] for p in (probabilities[(slice(None), *inside)], alone))
    assert wrong.sum() <= without.sum() + 3 < ((organ[inside] > 0.5) != truth[inside]).sum() / 4


def test_where_there_is_nothing_to_learn_nothing_changes():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([1, 1], (3, 3, 3)).transpose(3, 0, 1, 2).astype(np.float32)
    image = rng.normal(0, 1, (1, 3, 3, 3)).astype(np.float32)
    for its_image, weight in ((image, 0.0), (np.ones_like(image), 1.0)):
        changed = probabilities.copy()
        adapt(changed, its_image, weight)
        assert np.allclose(changed, probabilities, atol=1e-6)
    same = probabilities.copy()
    agree_with_neighbours(same, image, 0.0)
    assert np.array_equal(same, probabilities)
    background = np.stack([np.ones((3, 3, 3)), np.zeros((3, 3, 3))]).astype(np.float32)
    adapt(background, image, 1.0)
    agree_with_neighbours(background, image, 1.0)
    assert (background[0] == 1).all()
    broken = np.full((2, 3, 3, 3), np.nan, np.float32)
    adapt(broken, image, 1.0)
    assert np.isnan(broken).all()  # for the predictor to refuse


def test_the_planner_trusts_intensities_most_in_a_ct_and_for_lesions_in_volumes():
    wanted = InferenceSpec(intensity_weight=0.5, neighbour_weight=2)
    organs, lesions = ["background", "liver"], ["background", "necrosis", "edema"]
    assert mending_rule(wanted, organs, False, False)[0] == wanted
    for labels, is_ct, why in ((organs, True, "weight 1, a CT"), (lesions, False, "weight 1, lesions")):
        mended, reason = mending_rule(wanted, labels, False, is_ct)
        assert (mended.intensity_weight, mended.neighbour_weight) == (1, 2)
        assert why in reason
    assert mending_rule(wanted, lesions, True, False)[0] == wanted
    unmended = InferenceSpec(), "the recipe leaves predictions as they are"
    assert mending_rule(InferenceSpec(), organs, False, True) == unmended


def test_the_u_net_to_compare_with_is_not_mended():
    unet = RECIPES["unet_default"].inference
    assert (unet.intensity_weight, unet.neighbour_weight, unet.prior_weight) == (0, 0, 0)


def test_weights_out_of_range_are_refused():
    for name in ("intensity_weight", "neighbour_weight"):
        with pytest.raises(UserError, match=f"{name} is 11; must lie in"):
            InferenceSpec(**{name: 11})


def test_the_predictor_mends_what_it_has_pooled():
    torch.manual_seed(0)
    spec = NetworkSpec(1, 3, widths=(4, 8, 8), convs=(1, 1, 1), aspp_channels=4, embedding=8, mixer_width=8)
    network, patch = build(spec), PatchSpec((8, 16, 16), (4, 8, 8))
    image = np.random.default_rng(1).normal(0, 1, (1, 12, 20, 20)).astype(np.float32)

    def predicted(*weights: float) -> np.ndarray:
        rule = InferenceSpec(intensity_weight=weights[0], neighbour_weight=weights[1])
        return Predictor([network], spec, patch, rule, torch.device("cpu")).predict(image)

    plain = predicted(0, 0)
    wanted = plain.copy()
    adapt(wanted, image, 0.7)
    assert not np.allclose(wanted, plain, atol=1e-4)
    assert np.allclose(predicted(0.7, 0), wanted, atol=1e-6)
    agree_with_neighbours(wanted, image, 1.5)
    assert np.allclose(predicted(0.7, 1.5), wanted, atol=1e-5)
    assert not np.allclose(predicted(0.7, 0), wanted, atol=1e-3)
