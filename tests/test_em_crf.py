"""A prediction refined by the scan's own intensities (EM) and edges (CRF)."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared_scans import registered_scan
from references import tiny_plan
from scipy.ndimage import gaussian_filter1d

from mre_lowshot.config import NetworkConfig, PatchConfig, RefinementConfig
from mre_lowshot.config.presets import PRESETS
from mre_lowshot.errors import UserError
from mre_lowshot.inference.models import Model
from mre_lowshot.inference.predictor import Predictor
from mre_lowshot.network.build import build
from mre_lowshot.planners.rules import refinement_rule
from mre_lowshot.refinement.crf import crf_mean_field
from mre_lowshot.refinement.em import em_step


def em_by_voxel(probabilities: np.ndarray, image: np.ndarray, weight: float) -> np.ndarray:
    """`em_step`, a voxel and a class at a time."""
    result = probabilities.astype(np.float64)
    where = [at for at in np.ndindex(*image.shape[1:]) if 1 - probabilities[(0, *at)] > 0.02]
    classes = len(probabilities)
    for channel in image:
        low, high = np.percentile([channel[at] for at in where], (0.5, 99.5))

        def bin_of(at, channel=channel, low=low, high=high):
            return min(max(int((channel[at] - low) / (high - low) * 64), 0), 63)

        seen = np.zeros((classes, 64))
        for at in where:
            for k in range(classes):
                seen[k, bin_of(at)] += probabilities[(k, *at)]
        common = seen.sum(axis=0) / seen.sum()
        for at in where:
            for k in range(classes):
                own = gaussian_filter1d(seen[k], 2.0)[bin_of(at)] / max(seen[k].sum(), 1)
                result[(k, *at)] *= (own + 0.02 * common[bin_of(at)]) ** (weight / len(image))
    return result / result.sum(axis=0)


@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 1.0, 2.0]), st.integers(1, 2))
def test_the_em_step_equals_a_slow_loop(seed, weight, channels):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet([3, 1, 0.5], (4, 5, 6)).transpose(3, 0, 1, 2).astype(np.float32)
    probabilities[:, 0] = np.reshape((1, 0, 0), (3, 1, 1))  # certain background stays
    image = rng.normal(0, 1, (channels, 4, 5, 6)).astype(np.float32)
    wanted = em_by_voxel(probabilities, image, weight)
    em_step(probabilities, image, weight)
    assert np.allclose(probabilities, wanted, atol=1e-5)
    assert np.allclose(probabilities.sum(axis=0), 1, atol=1e-5)


def test_the_em_step_moves_a_border_to_that_of_the_intensities():
    """The organ is bright; the prediction is blurred and one voxel off; its brightness is estimated from the scan."""
    rng = np.random.default_rng(0)
    truth = np.zeros((16, 16, 16), bool)
    truth[4:12, 4:12, 4:12] = True
    image = (truth * 3 + rng.normal(0, 0.4, truth.shape)).astype(np.float32)[None]
    organ = np.roll(truth, 1, axis=2) * 0.7 + 0.15
    for scale in (1, -1):  # dark organs too
        probabilities = np.stack([1 - organ, organ]).astype(np.float32)
        before = ((probabilities[1] > 0.5) != truth).sum()
        em_step(probabilities, scale * image, 1.0)
        assert ((probabilities[1] > 0.5) != truth).sum() < 0.6 * before


def crf_by_voxel(probabilities: np.ndarray, image: np.ndarray, weight: float) -> np.ndarray:
    """Mean field over the whole (small) volume, a pair of voxels at a time."""
    size = image.shape[1:]
    sigma = [1.5 * np.median(np.abs(np.diff(channel, axis=2))) + 1e-6 for channel in image]
    now = probabilities.astype(np.float64)
    for _ in range(3):
        after = np.log(probabilities.astype(np.float64) + 1e-6)
        for at in np.ndindex(*size):
            for axis in range(3):
                for step in (-1, 1):
                    other = list(at)
                    other[axis] += step
                    if 0 <= other[axis] < size[axis]:
                        apart = [((c[at] - c[tuple(other)]) / s) ** 2 for c, s in zip(image, sigma, strict=True)]
                        similarity = np.exp(-np.mean(apart) / 2)
                        after[(slice(None), *at)] += weight * similarity * now[(slice(None), *other)]
        now = np.exp(after) / np.exp(after).sum(axis=0)
    return now


@settings(max_examples=5)
@given(st.integers(0, 2**32 - 1), st.integers(1, 2))
def test_the_crf_equals_a_slow_loop(seed, channels):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet([2, 2, 1], (4, 3, 5)).transpose(3, 0, 1, 2).astype(np.float32)
    probabilities = 0.9 * probabilities + np.float32(0.1 / 3)  # all of it takes part
    image = rng.normal(0, 1, (channels, 4, 3, 5)).astype(np.float32)
    wanted = crf_by_voxel(probabilities, image, 1.5)
    crf_mean_field(probabilities, image, 1.5)
    assert np.allclose(probabilities, wanted, atol=1e-5)


def test_the_crf_moves_a_ragged_border_to_the_edge():
    rng = np.random.default_rng(0)
    truth = np.zeros((16, 16, 16), bool)
    truth[4:12, 4:12, 4:12] = True
    image = (truth * 3 + rng.normal(0, 0.2, truth.shape)).astype(np.float32)[None]
    organ = np.clip(0.3 + 0.4 * truth + rng.normal(0, 0.15, truth.shape), 0.01, 0.99)
    probabilities = np.stack([1 - organ, organ]).astype(np.float32)
    before = ((probabilities[1] > 0.5) != truth).sum()
    crf_mean_field(probabilities, image, 2.0)
    assert before > 100
    assert ((probabilities[1] > 0.5) != truth).sum() < before / 10


def test_constant_surroundings_do_not_weaken_the_pairwise_term_inside():
    """Most of a skull-stripped scan is one value, up to interpolation ringing."""
    rng = np.random.default_rng(0)
    truth = np.zeros((16, 16, 16), bool)
    truth[6:10, 6:10, 6:10] = True
    image = np.zeros((1, 16, 16, 16), np.float32)
    inside = (slice(4, 12),) * 3
    image[0][inside] = 5 + 3 * truth[inside] + rng.normal(0, 0.2, (8, 8, 8))
    organ = np.clip(0.3 + 0.4 * truth + rng.normal(0, 0.15, truth.shape), 0.03, 0.99)
    probabilities = np.stack([1 - organ, organ]).astype(np.float32)
    alone = probabilities[(slice(None), *inside)].copy()
    crf_mean_field(probabilities, image, 2.0)
    crf_mean_field(alone, image[(slice(None), *inside)], 2.0)
    wrong, without = ((p[1] > 0.5) != truth[inside] for p in (probabilities[(slice(None), *inside)], alone))
    assert wrong.sum() <= without.sum() + 3 < ((organ[inside] > 0.5) != truth[inside]).sum() / 4


def test_without_weight_contrast_or_foreground_nothing_changes():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([1, 1], (3, 3, 3)).transpose(3, 0, 1, 2).astype(np.float32)
    image = rng.normal(0, 1, (1, 3, 3, 3)).astype(np.float32)
    for its_image, weight in ((image, 0.0), (np.ones_like(image), 1.0)):
        changed = probabilities.copy()
        em_step(changed, its_image, weight)
        assert np.allclose(changed, probabilities, atol=1e-6)
    same = probabilities.copy()
    crf_mean_field(same, image, 0.0)
    assert np.array_equal(same, probabilities)
    background = np.stack([np.ones((3, 3, 3)), np.zeros((3, 3, 3))]).astype(np.float32)
    em_step(background, image, 1.0)
    crf_mean_field(background, image, 1.0)
    assert (background[0] == 1).all()
    broken = np.full((2, 3, 3, 3), np.nan, np.float32)
    em_step(broken, image, 1.0)
    assert np.isnan(broken).all()  # the sliding window raises NumericalError for it


def test_the_planner_doubles_the_em_weight_in_ct_and_for_lesions_in_volumes():
    wanted = RefinementConfig(em_weight=0.5, crf_weight=2)
    organs, lesions = ["background", "liver"], ["background", "necrosis", "edema"]
    assert refinement_rule(wanted, organs, is_2d=False, is_ct=False)[0] == wanted
    for labels, is_ct, why in (
        (organs, True, "weight 1 (doubled for CT)"),
        (lesions, False, "weight 1 (doubled for lesions)"),
    ):
        chosen, reason = refinement_rule(wanted, labels, is_2d=False, is_ct=is_ct)
        assert (chosen.em_weight, chosen.crf_weight) == (1, 2)
        assert why in reason
    assert refinement_rule(wanted, lesions, is_2d=True, is_ct=False)[0] == wanted
    neither = RefinementConfig(), "no EM step and no CRF in this recipe"
    assert refinement_rule(RefinementConfig(), organs, is_2d=False, is_ct=True) == neither


def test_the_u_net_baseline_has_no_em_step_crf_or_fusion():
    unet = PRESETS["unet_default"].refinement
    assert (unet.em_weight, unet.crf_weight, unet.atlas_weight) == (0, 0, 0)


def test_weights_out_of_range_are_refused():
    for name in ("em_weight", "crf_weight"):
        with pytest.raises(UserError, match=f"{name} is 11; must lie in"):
            RefinementConfig(**{name: 11})


def test_the_predictor_applies_the_em_step_and_then_the_crf():
    torch.manual_seed(0)
    spec = NetworkConfig(1, 3, widths=(4, 8, 8), convs=(1, 1, 1), aspp_channels=4, embedding_dim=8, mixing_dim=8)
    network, patch = build(spec), PatchConfig((8, 16, 16), (4, 8, 8))
    image = np.random.default_rng(1).normal(0, 1, (1, 12, 20, 20)).astype(np.float32)

    def predicted(*weights: float) -> np.ndarray:
        plan = replace(tiny_plan(spec, em_weight=weights[0], crf_weight=weights[1]), patch=patch)
        predictor = Predictor(Model.of_fold(plan, network, ()), device=torch.device("cpu"))
        return predictor.refine(predictor.run_network(registered_scan(image))).array

    plain = predicted(0, 0)
    wanted = plain.copy()
    em_step(wanted, image, 0.7)
    assert not np.allclose(wanted, plain, atol=1e-4)
    assert np.allclose(predicted(0.7, 0), wanted, atol=1e-6)
    crf_mean_field(wanted, image, 1.5)
    assert np.allclose(predicted(0.7, 1.5), wanted, atol=1e-5)
    assert not np.allclose(predicted(0.7, 0), wanted, atol=1e-3)
