"""The atlas prior as a term of the logits: Bayes' rule, and what the network then takes as input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from references import TINY, single_thread  # noqa: F401

from mre_lowshot.config import NetworkConfig
from mre_lowshot.config.json import from_json, to_json
from mre_lowshot.errors import UserError
from mre_lowshot.network.build import build
from mre_lowshot.network.optimized.inference import InferenceNetwork
from mre_lowshot.network.prior_term import prior_term

PRIOR = replace(TINY, atlas_prior=True, atlas_prior_at="logits")
SIZE, KEEP = (4, 8, 8), ((1, 3), (2, 6), (0, 7))


def inputs(seed: int = 0):
    """Images, and location maps: coordinates, then the shares of two foreground classes."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    shares = random.dirichlet((0.3, 0.3, 0.3), (2, *SIZE)).astype(np.float32)
    maps = np.concatenate([random.uniform(-1, 1, (2, 3, *SIZE)), np.moveaxis(shares, -1, 1)[:, 1:]], axis=1)
    return torch.randn(2, 1, *SIZE), torch.from_numpy(maps.astype(np.float32)), shares


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_the_posterior_is_the_networks_own_times_the_prior(weight):
    network = build(replace(PRIOR, atlas_prior_weight=weight)).eval()
    image, maps, shares = inputs()
    without = maps.clone()
    without[:, 3:] = 1 / 3  # every class has the same share
    with torch.inference_mode():
        found, own = (torch.softmax(network(image, m), dim=1).double().numpy() for m in (maps, without))
    # voxel by voxel: own posterior x prior ** weight, normalised
    expected = np.empty_like(found)
    for index in np.ndindex(2, *SIZE):
        voxel = (index[0], slice(None), *index[1:])
        product = own[voxel] * (shares[index].astype(float) + 0.01) ** weight
        expected[voxel] = product / product.sum()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_the_shares_are_no_input_of_the_embedding():
    as_input, as_term = build(replace(PRIOR, atlas_prior_at="input")), build(PRIOR)
    channels = [n.embedding.aspp.branches[0][0].weight.shape[1] for n in (as_input, as_term)]
    assert channels[0] - channels[1] == TINY.classes - 1
    assert as_term.embedding.aspp.branches[0][0].weight.shape == build(TINY).embedding.aspp.branches[0][0].weight.shape
    with pytest.raises(ValueError, match="coordinate maps"):
        as_term(torch.zeros(1, 1, *SIZE))


@pytest.mark.parametrize(
    "changes",
    [{}, {"embedding_dim": 48}, {"multiscale": False}, {"prototype_head": False}, {"aspp": False},
     {"norm": "instance", "image_level_norm": False}],
    ids=str,
)  # fmt: skip
def test_prediction_computes_it_at_the_kept_voxels(changes):
    torch.manual_seed(0)
    network = build(replace(PRIOR, **changes)).eval()
    image, maps, _ = inputs()
    with torch.inference_mode():
        whole, kept = network(image, maps), InferenceNetwork(network)(image, maps, KEEP)
    assert (kept - whole[:, :, 1:3, 2:6, 0:7]).abs().max() <= 1e-5 * whole.abs().max()


def test_no_share_gives_a_finite_term():
    maps = torch.zeros(1, 5, 1, 1, 2)
    maps[:, 3:, ..., 1] = 0.6  # rounding of several atlases: the foreground has more than 1 together
    term = prior_term(maps, PRIOR)
    assert torch.isfinite(term).all()
    assert term[0, 0, 0, 0, 0] > term[0, 1, 0, 0, 0]
    assert term[0, 0, 0, 0, 1] < term[0, 1, 0, 0, 1]


def test_weights_out_of_range_are_refused_and_older_plans_keep_the_input():
    for weight in (0.0, 11.0, float("nan")):
        with pytest.raises(UserError, match="atlas_prior_weight"):
            replace(PRIOR, atlas_prior_weight=weight)
    older = to_json(replace(TINY, atlas_prior=True))
    del older["atlas_prior_at"], older["atlas_prior_weight"]
    read = from_json(NetworkConfig, older, "plan")
    assert read.prior_channels == 0
    assert read.location_channels == 5
