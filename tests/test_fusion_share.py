"""The share of the warped labels in the posterior before both are multiplied (`refinement.atlas_share`)."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mre_lowshot.config.presets import DEFAULT
from mre_lowshot.config.recipe import RefinementConfig
from mre_lowshot.errors import UserError
from mre_lowshot.refinement.fusion import ATLAS_FLOOR, fuse_posteriors
from mre_lowshot.refinement.pipeline import RefinementSettings, refine

SHARES = st.floats(0.0, 0.9)


def drawn(rng, classes, size=(2, 3, 4)):
    values = rng.random((classes, *size)) ** 4 + 1e-6
    return (values / values.sum(axis=0)).astype(np.float32)


def plain(p, q, weight, share):
    """docs/METHOD.md, "Fusion with warped atlas labels", voxel by voxel."""
    fused = np.empty_like(p, dtype=np.float64)
    for voxel in np.ndindex(p.shape[1:]):
        at = (slice(None), *voxel)
        mine, its = p[at].astype(np.float64), q[at].astype(np.float64)
        scores = ((1 - share) * mine + share * its) ** (1 - weight) * (its + ATLAS_FLOOR) ** weight
        fused[at] = scores / scores.sum()
    return fused


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.floats(0.0, 0.9), SHARES)
def test_both_pools_equal_the_formula(seed, classes, weight, share):
    rng = np.random.default_rng(seed)
    p, q = drawn(rng, classes), drawn(rng, classes)
    before = p.copy(), q.copy()
    np.testing.assert_allclose(fuse_posteriors(p, q, weight, share=share), plain(p, q, weight, share), atol=1e-5)
    assert np.array_equal(p, before[0])
    assert np.array_equal(q, before[1])


def test_a_class_that_the_network_excludes_remains_possible():
    p = np.array([1, 0], np.float32).reshape(2, 1, 1, 1)
    q = np.array([0, 1], np.float32).reshape(2, 1, 1, 1)
    assert fuse_posteriors(p, q, 0.4)[1] == 0
    assert fuse_posteriors(p, q, 0.4, share=0.2)[1] > 0.5
    half = fuse_posteriors(p, q, 0.0, share=0.3)  # without the product: the linear pool
    np.testing.assert_allclose(half.flatten(), [0.7, 0.3], atol=1e-6)


def test_without_information_the_posterior_stays():
    p = drawn(np.random.default_rng(1), 3)
    q = np.full_like(p, 1 / 3)
    assert np.array_equal(fuse_posteriors(p, q, 0.4, share=0.5), p)
    assert np.array_equal(fuse_posteriors(p, None, 0.4, share=0.5), p)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), SHARES)
def test_lesions_keep_their_probability_and_the_organs_are_fused_among_themselves(seed, share):
    rng = np.random.default_rng(seed)
    p, q = drawn(rng, 4), drawn(rng, 4)
    p[:, 0, 0, 0] = (0, 0, 0, 1)
    q[:, 0, 0, 1] = (0, 0, 0, 1)  # a lesion in the atlas: nothing is known about the organs there
    fused = fuse_posteriors(p, q, 0.4, share=share, lesions=(3,)).numpy()
    np.testing.assert_array_equal(fused[3], p[3])
    np.testing.assert_allclose(fused.sum(axis=0), 1, atol=1e-5)
    known = np.ones(p.shape[1:], bool)
    known[0, 0, :2] = False
    organs, its = (a[:3][:, known] / a[:3][:, known].sum(axis=0) for a in (p, q))
    scores = ((1 - share) * organs + share * its) ** 0.6 * (q[:3][:, known] + ATLAS_FLOOR) ** 0.4
    np.testing.assert_allclose(
        fused[:3][:, known] / fused[:3][:, known].sum(axis=0), scores / scores.sum(axis=0), atol=1e-4
    )


def test_lesions_whose_probabilities_add_up_to_more_than_one_leave_finite_shares():
    """Two probabilities of float32 do, by rounding."""
    p = np.zeros((4, 1, 1, 2), np.float32)
    p[:, 0, 0, 0] = (0, 0, 0.7, np.nextafter(np.float32(0.3), np.float32(1)))
    p[:, 0, 0, 1] = (1e-9, 0, 0.6, 0.4 + 1e-6)
    q = np.zeros_like(p)
    q[0, ..., 0], q[1, ..., 1] = 1, 1
    assert (p[2:].sum(axis=0) > 1).any()
    for weight, share in ((0.0, 0.5), (0.4, 0.0), (0.4, 0.3)):
        fused = fuse_posteriors(p, q, weight, share=share, lesions=(2, 3)).numpy()
        assert np.isfinite(fused).all()
        assert (fused >= 0).all()
        np.testing.assert_array_equal(fused[2:], p[2:])


def test_the_refinement_uses_the_share_of_the_recipe():
    p, q = drawn(np.random.default_rng(2), 3), drawn(np.random.default_rng(3), 3)
    image = np.zeros((1, *p.shape[1:]), np.float32)
    config = replace(RefinementConfig(), atlas_weight=0.4, atlas_share=0.5)
    np.testing.assert_allclose(refine(p, q, image, RefinementSettings(config)), plain(p, q, 0.4, 0.5), atol=1e-5)


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_a_share_outside_its_range_is_refused(value):
    with pytest.raises(UserError, match=r"atlas_share is .*; must lie in \[0, 1\)"):
        replace(DEFAULT.refinement, atlas_share=value)
