"""Alignment: what is moved in a known way is found again; location maps; the way through training and prediction."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from references import TINY, numbered_case, sampler, tiny_case, tiny_plan
from scipy import ndimage
from scipy.ndimage import gaussian_filter

from mre_lowshot import checkpoint
from mre_lowshot.alignment import MOST_ATLASES, Atlas, align, in_atlases, make_atlases, make_prior
from mre_lowshot.errors import UserError
from mre_lowshot.inference.predictor import Predictor
from mre_lowshot.network.build import build
from mre_lowshot.sampling import Prior, TrainingCase, coordinate_maps, location_maps, voxel_positions
from mre_lowshot.specs import AugmentationSpec, PatchSpec
from mre_lowshot.trainers.trainer import MRETrainer

SPACING = (2.0, 1.0, 1.5)
CPU = torch.device("cpu")


def head(size=(30, 44, 36), seed=0) -> tuple[np.ndarray, np.ndarray]:
    """A smooth textured ball (1, *size), and its own label map: the ball, with a smaller one off its middle."""
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in size], indexing="ij")
    ball = np.sqrt(z**2 + y**2 + x**2) < 0.75
    inner = np.sqrt((z - 0.2) ** 2 + (y + 0.15) ** 2 + (x - 0.1) ** 2) < 0.35
    texture = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=size), 2) * 3
    image = ndimage.gaussian_filter(ball + 0.8 * inner + ball * texture, 0.7)
    return image[None].astype(np.float32), (ball.astype(np.int16) + inner)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def aligned(kind: str):
    return tiny_plan(alignment=kind)


@pytest.mark.parametrize("kind", ["affine", "deformable"])
def test_a_scan_moved_by_a_known_affine_is_found_again(kind):
    image, label = head()
    atlas = Atlas(image, label, SPACING)
    matrix, offset = np.array([[1.05, 0.03, 0], [0, 0.95, 0.05], [-0.04, 0, 1.0]]), np.array([1.5, -2.0, 1.0])
    moved = ndimage.affine_transform(image[0], matrix, offset, order=1, mode="nearest")[None]
    truth = ndimage.affine_transform(label, matrix, offset, order=0)
    found = align((atlas,), moved, SPACING, aligned(kind))
    assert found.shape == (3, *image.shape[1:])
    assert found.dtype == np.float32
    wanted = np.einsum("ij,j...->i...", matrix, np.indices(image.shape[1:])) + offset.reshape(3, 1, 1, 1)
    places = (found + 1) / 2 * (np.array(image.shape[1:]).reshape(3, 1, 1, 1) - 1)
    inside = truth > 0
    assert np.abs(places - wanted)[:, inside].mean() < 0.5  # voxels
    prior = Prior((label,), 3)(found)
    start = Prior((label,), 3)(coordinate_maps(voxel_positions((0, 0, 0), label.shape), label.shape))
    assert dice(prior[1] > 0, truth == 2) > max(0.9, dice(start[1] > 0, truth == 2))


def test_a_person_of_another_size_in_a_scan_of_another_length_is_found():
    """Twice as wide and deep, and the scan goes on below: no start of the same size leads there."""
    image, label = head()
    spacing = tuple(2.0 * s for s in SPACING)
    longer = np.concatenate([np.zeros_like(image), image], axis=1)
    found = align((Atlas(image, label, SPACING),), longer, spacing, aligned("affine"))
    carried = Prior((label,), 3)(found)
    assert dice(carried[1, 30:] > 0, label == 2) > 0.9
    assert not carried[:, :20].any()


def test_deformable_alignment_follows_what_no_affine_can():
    image, label = head()
    z, y, x = np.indices(image.shape[1:]).astype(float)
    bent = [z + 2 * np.sin(y / 7), y + 2 * np.sin(x / 6), x + 2 * np.cos(z / 6)]
    moved = ndimage.map_coordinates(image[0], bent, order=1, mode="nearest")[None]
    truth = ndimage.map_coordinates(label, bent, order=0)
    scores = []
    for kind in ("affine", "deformable"):
        prior = Prior((label,), 3)(align((Atlas(image, label, SPACING),), moved, SPACING, aligned(kind)))
        scores.append(dice(prior[1] > 0, truth == 2))
    assert scores[1] > scores[0] + 0.03
    assert scores[1] > 0.9


def test_a_scan_of_another_size_and_spacing_gets_coordinates_of_its_own_voxels():
    image, label = head()
    finer = ndimage.zoom(image[0], (1, 1, 1.5), order=1, grid_mode=True, mode="nearest")[None]
    found = align((Atlas(image, label, SPACING),), finer, (2.0, 1.0, 1.0), aligned("affine"))
    assert found.shape == (3, *finer.shape[1:])
    middle = tuple(n // 2 for n in finer.shape[1:])
    assert np.abs(found[(slice(None), *middle)]).max() < 0.1
    assert found[2, 15, 22, 45] - found[2, 15, 22, 8] == pytest.approx(2 * 37 / 53, rel=0.05)


def test_nothing_is_aligned_where_the_plan_says_none():
    image, label = head()
    atlas = Atlas(image, label, SPACING)
    assert align((atlas,), image, SPACING, aligned("none")) is None
    assert align((), image, SPACING, aligned("affine")) is None
    assert make_prior((atlas,), aligned("affine")) is None


def test_the_prior_is_the_atlas_label_at_the_coordinates_and_background_outside():
    label = np.random.default_rng(0).integers(-1, 4, size=(5, 6, 7)).astype(np.int16)
    at = coordinate_maps(voxel_positions((0, 0, 0), label.shape), label.shape)
    prior = Prior((label,), 4)(at)
    for k in (1, 2, 3):
        wanted = np.where(label == -1, 0.25, label == k)  # ignored in the atlas: any class as likely as another
        assert np.array_equal(prior[k - 1], wanted.astype(np.float32))
    assert not Prior((label,), 4)(at + 3).any()
    assert location_maps(at, None) is at
    assert np.array_equal(location_maps(at, Prior((label,), 4)), np.concatenate([at, prior]))


def test_patches_take_the_coordinates_a_case_was_given():
    case = numbered_case((10, 14, 12))
    given = np.random.default_rng(1).normal(size=(3, 10, 14, 12)).astype(np.float32)
    batches = sampler(replace(case, coordinates=given))
    plain = sampler(case)
    for n in range(3):
        images, coordinates, _ = (t.numpy() for t in batches[n])
        for found, own in zip(coordinates, plain[n][1].numpy(), strict=True):
            voxels = np.rint((own + 1) / 2 * (np.array(case.label.shape) - 1).reshape(3, 1, 1, 1)).astype(int)
            assert np.array_equal(found, given[(slice(None), *voxels)])
        assert np.array_equal(images, plain[n][0].numpy())


def test_location_jitter_bends_locations_only_and_never_beyond_reason():
    case = numbered_case((10, 14, 12))
    bent, plain = sampler(case, spec=AugmentationSpec(location_jitter=0.1)), sampler(case)
    for image, label in [(bent[0][0], bent[0][2])]:
        assert image.shape == plain[0][0].shape
        assert label.min() >= -1
    moved = np.concatenate([bent[n][1].numpy().ravel() for n in range(4)])
    assert np.abs(moved).max() < 1 + 2 * 0.1 * 5
    differences = bent[0][1].numpy()
    assert np.abs(np.diff(differences, axis=-1)).max() < 1  # smooth: no tears


def test_the_atlas_comes_back_from_a_checkpoint_and_predicts_alone(tmp_path):
    network = replace(TINY, atlas_prior=True)
    plan = tiny_plan(network, alignment="affine", iterations=2)
    case = tiny_case()
    atlas = Atlas(case.image, case.label, case.spacing)
    MRETrainer(plan, [case], tmp_path, CPU, (atlas,)).fit()
    _, content = checkpoint.load(tmp_path / checkpoint.FINAL, CPU)
    (again,) = (Atlas.from_tensors(data) for data in content["atlases"])
    assert np.array_equal(again.label, case.label)
    assert np.allclose(again.image, case.image, atol=2e-3)
    assert again.spacing == case.spacing
    net = build(network)
    net.load_state_dict(content["weights"])
    predictor = Predictor([net], network, plan.patch, plan.recipe.inference, CPU, priors=[make_prior((again,), plan)])
    own = coordinate_maps(voxel_positions((0, 0, 0), case.label.shape), case.label.shape)
    implied, given = predictor.predict(case.image), predictor.predict(case.image, coordinates=[own])
    np.testing.assert_allclose(implied, given, atol=1e-5)
    elsewhere = predictor.predict(case.image, coordinates=[own * 0.5])
    assert np.abs(elsewhere - given).max() > 1e-4


def test_the_posterior_is_pooled_with_the_atlas_as_the_formula_says():
    network = replace(TINY, atlas_prior=True)
    net = build(network).eval()
    case = tiny_case()
    prior = Prior((case.label,), network.classes)
    own = coordinate_maps(voxel_positions((0, 0, 0), case.label.shape), case.label.shape)
    rule = tiny_plan().recipe.inference

    def predicted(weight: float, coordinates) -> np.ndarray:
        made = Predictor([net], network, PatchSpec((4, 8, 8), (2, 4, 6)), replace(rule, prior_weight=weight), CPU,
                         priors=[prior])  # fmt: skip
        return made.predict(case.image, coordinates=coordinates)

    plain, pooled = predicted(0, [own]), predicted(0.4, [own])
    for place in np.ndindex(*case.label.shape):
        p = plain[(slice(None), *place)].astype(float)
        q = np.array([float(case.label[place] == k) for k in range(network.classes)])
        wanted = p**0.6 * (q + 0.01) ** 0.4
        np.testing.assert_allclose(pooled[(slice(None), *place)], wanted / wanted.sum(), atol=1e-4)
    assert np.array_equal(predicted(0.4, None), predicted(0, None))  # not aligned: nothing to pool with


def test_networks_with_atlases_of_their_own_are_averaged():
    network = replace(TINY, atlas_prior=True)
    torch.manual_seed(0)
    nets = [build(network).eval() for _ in range(2)]
    case, other = tiny_case(), tiny_case((7, 13, 12))
    priors = [Prior((case.label,), network.classes), Prior((other.label,), network.classes)]
    image = np.random.default_rng(0).normal(size=case.image.shape).astype(np.float32)
    patch = PatchSpec((4, 8, 8), (2, 4, 6))
    rule = tiny_plan().recipe.inference
    both = Predictor(nets, network, patch, rule, CPU, priors=priors).predict(image)
    each = [
        Predictor([n], network, patch, rule, CPU, priors=[p]).predict(image) for n, p in zip(nets, priors, strict=True)
    ]
    np.testing.assert_allclose(both, np.mean(each, axis=0), atol=1e-5)


def test_several_atlases_share_the_say_and_one_can_be_left_out():
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 3, size=size).astype(np.int16) for size in ((5, 6, 7), (4, 8, 6)))
    patch = (3, 4, 5)
    at = [coordinate_maps(voxel_positions((1, 1, 0), patch), label.shape) for label in (first, second)]
    joined, prior = np.concatenate(at), Prior((first, second), 3)
    alone = [Prior((label,), 3)(part) for label, part in zip((first, second), at, strict=True)]
    assert np.array_equal(prior(joined), (alone[0] + alone[1]) / 2)
    assert np.array_equal(prior(joined, without=0), alone[1])
    told = location_maps(joined, prior, without=1)
    assert np.array_equal(told, np.concatenate([at[0], alone[0]]))  # the frame stays the first atlas's
    posterior = prior.posterior(joined)
    np.testing.assert_allclose(posterior[1:], prior(joined), atol=1e-5)  # on whole voxels nothing is interpolated
    np.testing.assert_allclose(posterior.sum(axis=0), 1, atol=1e-6)


def test_how_a_structure_goes_on_that_its_edge_cuts_an_atlas_does_not_know_and_the_others_have_its_say():
    """A class on the atlas's last slices does not go on for ever in a scan that is twice as long; background does."""
    label = np.zeros((6, 4, 4), np.int16)
    label[4:, :2] = 1
    longer = voxel_positions((0, 0, 0), (12, 4, 4))
    alone = Prior((label,), 3).posterior(coordinate_maps(longer, label.shape))
    assert np.array_equal(alone[1, :6], (label == 1).astype(np.float32))
    np.testing.assert_allclose(alone[:, 6:, :2], 1 / 3)
    np.testing.assert_allclose(alone[0, 6:, 2:], 1)
    whole = np.full((12, 4, 4), 2, np.int16)
    at = np.concatenate([coordinate_maps(longer, size) for size in (label.shape, whole.shape)])
    both = Prior((label, whole), 3).posterior(at)
    np.testing.assert_allclose(both[2, 6:], 1, atol=1e-5)
    np.testing.assert_allclose(both[1:, 5, :2], 0.5, atol=1e-5)


def test_of_several_atlases_the_one_that_looks_like_the_scan_there_is_believed():
    """Against the weights written out; and two atlases of which each was registered well in one half only."""
    rng, size = np.random.default_rng(0), (12, 16, 20)
    truth = (gaussian_filter(rng.normal(size=size), 2) > 0).astype(np.int16)
    image = gaussian_filter(truth + 0.3 * rng.normal(size=size), 0.7).astype(np.float32)
    labels, scans = [], []
    for half in (slice(0, 10), slice(10, 20)):
        label, scan = truth.copy(), image.copy()
        label[..., half], scan[..., half] = np.roll(truth, 5, axis=1)[..., half], np.roll(image, 5, axis=1)[..., half]
        labels.append(label)
        scans.append(scan + 0.1 * rng.normal(size=size).astype(np.float32))
    at = np.concatenate([coordinate_maps(voxel_positions((0, 0, 0), size), size)] * 2)
    prior = Prior(tuple(labels), 2, scans=tuple(scans))
    told, plain = prior.posterior(at, image[None]), prior.posterior(at)
    np.testing.assert_allclose(plain[1], (labels[0] + labels[1]) / 2, atol=1e-5)  # nothing to compare with
    assert np.array_equal(Prior(tuple(labels), 2).posterior(at, image[None]), plain)
    inner = (slice(None), slice(None), [3, 4, 5, 14, 15, 16])  # away from the seam
    assert (told.argmax(axis=0) == truth)[inner].mean() > 0.98
    assert (plain.argmax(axis=0) == truth)[inner].mean() < 0.9
    weights = []
    for scan in scans:
        mean = [gaussian_filter(a.astype(float), 2) for a in (scan, image)]
        spread = [gaussian_filter(a.astype(float) ** 2, 2) - m**2 for a, m in zip((scan, image), mean, strict=True)]
        one, two = ((a - m) / (np.sqrt(s) + 0.1 * a.std()) for a, m, s in zip((scan, image), mean, spread, strict=True))
        weights.append(1 / (gaussian_filter((one - two) ** 2, 1) + 1e-3))
    wanted = (weights[0] * labels[0] + weights[1] * labels[1]) / (weights[0] + weights[1])
    np.testing.assert_allclose(told[1], wanted, atol=2e-3)


def test_training_scans_lie_in_each_other_and_in_themselves_where_they_are():
    cases = [TrainingCase(*head(seed=seed), SPACING) for seed in (0, 1)]
    plan = tiny_plan(replace(TINY, atlas_prior=True), alignment="affine")
    atlases = make_atlases(cases, plan)
    placed = in_atlases(cases, atlases, plan)
    assert [case.own for case in placed] == [0, 1]
    for number, case in enumerate(placed):
        own = coordinate_maps(voxel_positions((0, 0, 0), case.label.shape), case.label.shape)
        assert case.coordinates.shape == (6, *case.label.shape)
        assert np.array_equal(case.coordinates[3 * number : 3 * number + 3], own)
        other = case.coordinates[3 - 3 * number :][:3]
        assert 0 < np.abs(other - own).mean() < 0.1
    (alone,) = in_atlases(cases[:1], atlases[:1], plan)
    assert alone.coordinates is None
    without_prior = tiny_plan(alignment="affine")
    assert len(make_atlases(cases, without_prior)) == 1
    assert [c.coordinates is None for c in in_atlases(cases, atlases[:1], without_prior)] == [True, False]
    assert make_atlases(cases, tiny_plan()) == ()


def test_a_scan_among_several_is_not_always_told_its_own_labels():
    case = numbered_case((10, 14, 12), label=np.ones((10, 14, 12), np.int16))
    own = coordinate_maps(voxel_positions((0, 0, 0), case.label.shape), case.label.shape)
    placed = replace(case, coordinates=np.concatenate([own, own]), own=0)
    empty = np.zeros_like(case.label)
    batches = sampler(placed, prior=Prior((case.label, empty), 2))
    shares = {float(patch[3].max()) for n in range(10) for patch in batches[n][1].numpy()}
    assert shares == {0.0, 0.5}


def test_a_scan_is_registered_the_same_in_every_run():
    """To the bit: a training with several scans, or resumed, repeats; and so does a prediction."""
    image, label = head()
    moved = np.roll(image, 2, axis=2)
    once, again, thrice = (align((Atlas(image, label, SPACING),), moved, SPACING, aligned("affine")) for _ in range(3))
    assert np.array_equal(once, again)
    assert np.array_equal(once, thrice)


def test_many_training_scans_give_few_atlases_and_a_failing_one_is_named():
    case = TrainingCase(*head(size=(16, 16, 16)), SPACING)
    plan = tiny_plan(replace(TINY, atlas_prior=True), alignment="affine")
    assert len(make_atlases([case] * 30, plan)) == MOST_ATLASES
    thin = TrainingCase(np.zeros((1, 2, 4, 4), np.float32), np.zeros((2, 4, 4), np.int16), SPACING)
    with pytest.raises(UserError, match=r"training cases first and second: one cannot be registered"):
        in_atlases([case, thin], make_atlases([case, thin], plan), plan, ["first", "second"])
