"""Alignment: known transforms are recovered; location maps; alignment in training and prediction."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from prepared_scans import registered_scan
from references import TINY, numbered_case, sampler, tiny_case, tiny_plan
from scipy import ndimage
from scipy.ndimage import gaussian_filter

from mre_lowshot.atlas import alignment
from mre_lowshot.atlas.alignment import align, align_training_cases
from mre_lowshot.atlas.atlas import Atlas, make_atlases
from mre_lowshot.atlas.label_fusion import AtlasPrior, atlas_prior_of
from mre_lowshot.config import AugmentationConfig, InferenceConfig, PatchConfig
from mre_lowshot.errors import UserError
from mre_lowshot.grid import coordinate_maps, voxel_positions
from mre_lowshot.inference import checkpoint
from mre_lowshot.inference.models import Model
from mre_lowshot.inference.predictor import Predictor
from mre_lowshot.inference.sliding_window import SlidingWindow
from mre_lowshot.network.build import build
from mre_lowshot.sampling import TrainingCase, location_maps
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


def registering(kind: str):
    return tiny_plan(registration=kind)


def foreground_shares(label: np.ndarray, coordinates: np.ndarray, classes: int = 3) -> np.ndarray:
    """Of an atlas with these labels."""
    return AtlasPrior((label,), classes).foreground_shares(coordinates)


@pytest.mark.parametrize("kind", ["affine", "deformable"])
def test_a_known_affine_transform_is_recovered(kind):
    image, label = head()
    atlas = Atlas(image, label, SPACING)
    matrix, offset = np.array([[1.05, 0.03, 0], [0, 0.95, 0.05], [-0.04, 0, 1.0]]), np.array([1.5, -2.0, 1.0])
    moved = ndimage.affine_transform(image[0], matrix, offset, order=1, mode="nearest")[None]
    truth = ndimage.affine_transform(label, matrix, offset, order=0)
    found = align((atlas,), moved, SPACING, plan=registering(kind))
    assert found.shape == (3, *image.shape[1:])
    assert found.dtype == np.float32
    wanted = np.einsum("ij,j...->i...", matrix, np.indices(image.shape[1:])) + offset.reshape(3, 1, 1, 1)
    positions = (found + 1) / 2 * (np.array(image.shape[1:]).reshape(3, 1, 1, 1) - 1)
    inside = truth > 0
    assert np.abs(positions - wanted)[:, inside].mean() < 0.5  # voxels
    prior = foreground_shares(label, found)
    start = foreground_shares(label, coordinate_maps(voxel_positions((0, 0, 0), label.shape), label.shape))
    assert dice(prior[1] > 0, truth == 2) > max(0.9, dice(start[1] > 0, truth == 2))


@pytest.mark.usefixtures("all_starts")
def test_a_body_of_another_size_in_a_scan_of_another_length_is_registered():
    """Twice as wide and deep, and the scan extends further below: no start of equal size converges there."""
    image, label = head()
    spacing = tuple(2.0 * s for s in SPACING)
    longer = np.concatenate([np.zeros_like(image), image], axis=1)
    found = align((Atlas(image, label, SPACING),), longer, spacing, plan=registering("affine"))
    propagated = foreground_shares(label, found)
    assert dice(propagated[1, 30:] > 0, label == 2) > 0.9
    assert not propagated[:, :20].any()


def test_deformable_registration_follows_a_deformation_that_no_affine_can():
    image, label = head()
    z, y, x = np.indices(image.shape[1:]).astype(float)
    bent = [z + 2 * np.sin(y / 7), y + 2 * np.sin(x / 6), x + 2 * np.cos(z / 6)]
    moved = ndimage.map_coordinates(image[0], bent, order=1, mode="nearest")[None]
    truth = ndimage.map_coordinates(label, bent, order=0)
    scores = []
    for kind in ("affine", "deformable"):
        found = align((Atlas(image, label, SPACING),), moved, SPACING, plan=registering(kind))
        prior = foreground_shares(label, found)
        scores.append(dice(prior[1] > 0, truth == 2))
    assert scores[1] > scores[0] + 0.03
    assert scores[1] > 0.9


def test_a_scan_of_another_size_and_spacing_gets_coordinates_of_its_own_voxels():
    image, label = head()
    finer = ndimage.zoom(image[0], (1, 1, 1.5), order=1, grid_mode=True, mode="nearest")[None]
    found = align((Atlas(image, label, SPACING),), finer, (2.0, 1.0, 1.0), plan=registering("affine"))
    assert found.shape == (3, *finer.shape[1:])
    middle = tuple(n // 2 for n in finer.shape[1:])
    assert np.abs(found[(slice(None), *middle)]).max() < 0.1
    assert found[2, 15, 22, 45] - found[2, 15, 22, 8] == pytest.approx(2 * 37 / 53, rel=0.05)


def test_nothing_is_registered_where_the_plan_has_none():
    image, label = head()
    atlas = Atlas(image, label, SPACING)
    assert align((atlas,), image, SPACING, plan=registering("none")) is None
    assert align((), image, SPACING, plan=registering("affine")) is None
    assert atlas_prior_of((atlas,), registering("affine")) is None


def test_the_prior_is_the_atlas_label_at_the_coordinates_and_background_outside():
    label = np.random.default_rng(0).integers(-1, 4, size=(5, 6, 7)).astype(np.int16)
    at = coordinate_maps(voxel_positions((0, 0, 0), label.shape), label.shape)
    prior = foreground_shares(label, at, 4)
    for k in (1, 2, 3):
        wanted = np.where(label == -1, 0.25, label == k)  # ignored in the atlas: any class as likely as another
        assert np.array_equal(prior[k - 1], wanted.astype(np.float32))
    assert not foreground_shares(label, at + 3, 4).any()
    assert location_maps(at, None) is at
    assert np.array_equal(location_maps(at, AtlasPrior((label,), 4)), np.concatenate([at, prior]))


def test_patches_have_the_coordinates_of_their_case():
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


def test_location_jitter_bends_location_maps_only_and_within_limits():
    case = numbered_case((10, 14, 12))
    bent, plain = sampler(case, spec=AugmentationConfig(location_jitter=0.1)), sampler(case)
    for image, label in [(bent[0][0], bent[0][2])]:
        assert image.shape == plain[0][0].shape
        assert label.min() >= -1
    moved = np.concatenate([bent[n][1].numpy().ravel() for n in range(4)])
    assert np.abs(moved).max() < 1 + 2 * 0.1 * 5
    differences = bent[0][1].numpy()
    assert np.abs(np.diff(differences, axis=-1)).max() < 1  # smooth: no tears


def test_an_atlas_loaded_from_a_checkpoint_suffices_for_prediction(tmp_path):
    network = replace(TINY, atlas_prior=True)
    plan = tiny_plan(network, registration="affine", iterations=2)
    case = tiny_case()
    atlas = Atlas(case.image, case.label, case.spacing)
    MRETrainer(plan, [case], folder=tmp_path, device=CPU, atlases=(atlas,)).fit()
    _, content = checkpoint.load(tmp_path / checkpoint.FINAL, CPU)
    (again,) = (Atlas.from_tensors(data) for data in content["atlases"])
    assert np.array_equal(again.label, case.label)
    assert np.allclose(again.image, case.image, atol=2e-3)
    assert again.spacing == case.spacing
    net = build(network)
    net.load_state_dict(content["weights"])
    predictor = Predictor(Model.of_fold(plan, net, (again,)), device=CPU)
    own = coordinate_maps(voxel_positions((0, 0, 0), case.label.shape), case.label.shape)
    implied, given, elsewhere = (predictor.window.posterior(case.image, [maps]) for maps in (None, own, own * 0.5))
    np.testing.assert_allclose(implied, given, atol=1e-5)
    assert np.abs(elsewhere - given).max() > 1e-4


def test_fusion_of_posterior_and_warped_labels_equals_the_formula():
    network = replace(TINY, atlas_prior=True)
    net = build(network).eval()
    case = tiny_case()
    atlas = Atlas(case.image, case.label, case.spacing)
    own = coordinate_maps(voxel_positions((0, 0, 0), case.label.shape), case.label.shape)

    def predicted(weight: float, coordinates: np.ndarray | None) -> np.ndarray:
        plan = replace(tiny_plan(network, atlas_weight=weight), patch=PatchConfig((4, 8, 8), (2, 4, 6)))
        predictor = Predictor(Model.of_fold(plan, net, (atlas,)), device=CPU)
        return predictor.refine(predictor.run_network(registered_scan(case.image, [coordinates]))).array

    plain, fused = predicted(0, own), predicted(0.4, own)
    for voxel in np.ndindex(*case.label.shape):
        p = plain[(slice(None), *voxel)].astype(float)
        q = np.array([float(case.label[voxel] == k) for k in range(network.classes)])
        wanted = p**0.6 * (q + 0.01) ** 0.4
        np.testing.assert_allclose(fused[(slice(None), *voxel)], wanted / wanted.sum(), atol=1e-4)
    assert np.array_equal(predicted(0.4, None), predicted(0, None))  # not registered: nothing to fuse


def test_networks_with_their_own_atlases_are_averaged():
    network = replace(TINY, atlas_prior=True)
    torch.manual_seed(0)
    nets = [build(network).eval() for _ in range(2)]
    case, other = tiny_case(), tiny_case((7, 13, 12))
    priors = [AtlasPrior((case.label,), network.classes), AtlasPrior((other.label,), network.classes)]
    image = np.random.default_rng(0).normal(size=case.image.shape).astype(np.float32)
    settings = {"patch": PatchConfig((4, 8, 8), (2, 4, 6)), "inference": InferenceConfig(), "device": CPU}
    both = SlidingWindow(nets, network, priors=priors, **settings).posterior(image)
    pairs = zip(nets, priors, strict=True)
    each = [SlidingWindow([n], network, priors=[p], **settings).posterior(image) for n, p in pairs]
    assert np.abs(each[0] - each[1]).max() > 1e-3
    np.testing.assert_allclose(both, np.mean(each, axis=0), atol=1e-5)


def test_several_atlases_are_averaged_and_one_can_be_left_out():
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 3, size=size).astype(np.int16) for size in ((5, 6, 7), (4, 8, 6)))
    patch = (3, 4, 5)
    at = [coordinate_maps(voxel_positions((1, 1, 0), patch), label.shape) for label in (first, second)]
    joined, prior = np.concatenate(at), AtlasPrior((first, second), 3)
    alone = [foreground_shares(label, part) for label, part in zip((first, second), at, strict=True)]
    assert np.array_equal(prior.foreground_shares(joined), (alone[0] + alone[1]) / 2)
    assert np.array_equal(prior.foreground_shares(joined, without=0), alone[1])
    maps = location_maps(joined, prior, without=1)
    assert np.array_equal(maps, np.concatenate([at[0], alone[0]]))  # the frame stays the first atlas's
    warped = prior.fuse_labels(joined)  # on whole voxels nothing is interpolated
    np.testing.assert_allclose(warped[1:], prior.foreground_shares(joined), atol=1e-5)
    np.testing.assert_allclose(warped.sum(axis=0), 1, atol=1e-6)


def test_beyond_an_edge_that_cuts_a_structure_an_atlas_is_uninformative_and_the_others_decide():
    """A class on the atlas's last slices does not extend through a scan twice as long; background does."""
    label = np.zeros((6, 4, 4), np.int16)
    label[4:, :2] = 1
    longer = voxel_positions((0, 0, 0), (12, 4, 4))
    alone = AtlasPrior((label,), 3).fuse_labels(coordinate_maps(longer, label.shape))
    assert np.array_equal(alone[1, :6], (label == 1).astype(np.float32))
    np.testing.assert_allclose(alone[:, 6:, :2], 1 / 3)
    np.testing.assert_allclose(alone[0, 6:, 2:], 1)
    whole = np.full((12, 4, 4), 2, np.int16)
    at = np.concatenate([coordinate_maps(longer, size) for size in (label.shape, whole.shape)])
    both = AtlasPrior((label, whole), 3).fuse_labels(at)
    np.testing.assert_allclose(both[2, 6:], 1, atol=1e-5)
    np.testing.assert_allclose(both[1:, 5, :2], 0.5, atol=1e-5)


def test_of_several_atlases_the_locally_most_similar_one_decides():
    """Against the weights written out; of two atlases each was registered well in one half only."""
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
    prior = AtlasPrior(tuple(labels), 2, scans=tuple(scans))
    weighted, plain = (prior.fuse_labels(at, given).numpy() for given in (image[None], None))
    np.testing.assert_allclose(plain[1], (labels[0] + labels[1]) / 2, atol=1e-5)  # no image: equal weights
    assert np.array_equal(AtlasPrior(tuple(labels), 2).fuse_labels(at, image[None]), plain)
    inner = (slice(None), slice(None), [3, 4, 5, 14, 15, 16])  # away from the seam
    assert (weighted.argmax(axis=0) == truth)[inner].mean() > 0.98
    assert (plain.argmax(axis=0) == truth)[inner].mean() < 0.9
    weights = []
    for scan in scans:
        mean = [gaussian_filter(a.astype(float), 2) for a in (scan, image)]
        spread = [gaussian_filter(a.astype(float) ** 2, 2) - m**2 for a, m in zip((scan, image), mean, strict=True)]
        one, two = ((a - m) / (np.sqrt(s) + 0.1 * a.std()) for a, m, s in zip((scan, image), mean, spread, strict=True))
        weights.append(1 / (gaussian_filter((one - two) ** 2, 1) + 1e-3))
    wanted = (weights[0] * labels[0] + weights[1] * labels[1]) / (weights[0] + weights[1])
    np.testing.assert_allclose(weighted[1], wanted, atol=2e-3)


def test_training_scans_have_coordinates_in_each_other_and_their_own_in_themselves():
    cases = [TrainingCase(*head(seed=seed), SPACING) for seed in (0, 1)]
    plan = tiny_plan(replace(TINY, atlas_prior=True), registration="affine")
    atlases = make_atlases(cases, plan)
    aligned = align_training_cases(cases, atlases, plan=plan)
    assert [case.own for case in aligned] == [0, 1]
    for number, case in enumerate(aligned):
        own = coordinate_maps(voxel_positions((0, 0, 0), case.label.shape), case.label.shape)
        assert case.coordinates.shape == (6, *case.label.shape)
        assert np.array_equal(case.coordinates[3 * number : 3 * number + 3], own)
        other = case.coordinates[3 - 3 * number :][:3]
        assert 0 < np.abs(other - own).mean() < 0.1
    (alone,) = align_training_cases(cases[:1], atlases[:1], plan=plan)
    assert alone.coordinates is None
    without_prior = tiny_plan(registration="affine")
    assert len(make_atlases(cases, without_prior)) == 1
    first, second = align_training_cases(cases, atlases[:1], plan=without_prior)
    assert (first.coordinates is None, second.coordinates is None) == (True, False)
    assert make_atlases(cases, tiny_plan()) == ()


def test_a_training_scans_own_labels_are_left_out_of_some_of_its_patches():
    case = numbered_case((10, 14, 12), label=np.ones((10, 14, 12), np.int16))
    own = coordinate_maps(voxel_positions((0, 0, 0), case.label.shape), case.label.shape)
    aligned = replace(case, coordinates=np.concatenate([own, own]), own=0)
    empty = np.zeros_like(case.label)
    batches = sampler(aligned, prior=AtlasPrior((case.label, empty), 2))
    shares = {float(patch[3].max()) for n in range(10) for patch in batches[n][1].numpy()}
    assert shares == {0.0, 0.5}


def test_a_scan_is_registered_the_same_in_every_run():
    """To the bit, so that a resumed training with several scans, and a prediction, repeat."""
    image, label = head()
    moved = np.roll(image, 2, axis=2)
    atlases, plan = (Atlas(image, label, SPACING),), registering("affine")
    once, again, thrice = (align(atlases, moved, SPACING, plan=plan) for _ in range(3))
    assert np.array_equal(once, again)
    assert np.array_equal(once, thrice)


def test_many_training_scans_give_few_atlases_and_a_failing_one_is_named():
    case = TrainingCase(*head(size=(16, 16, 16)), SPACING)
    plan = tiny_plan(replace(TINY, atlas_prior=True), registration="affine")
    assert len(make_atlases([case] * 30, plan)) == 5
    thin = TrainingCase(np.zeros((1, 2, 4, 4), np.float32), np.zeros((2, 4, 4), np.int16), SPACING)
    with pytest.raises(UserError, match=r"training cases first and second: one cannot be registered"):
        align_training_cases([case, thin], make_atlases([case, thin], plan), plan=plan, names=["first", "second"])


def test_where_a_device_has_too_little_memory_the_cpu_registers(monkeypatch):
    devices = []

    def register(atlas, image, spacing, *, plan, previous, device):
        devices.append(device)
        if device is not None:
            raise torch.OutOfMemoryError("out of memory")
        return np.zeros((3, *image.shape[1:]), np.float32)

    monkeypatch.setattr(alignment, "_register", register)
    image, label = head((8, 9, 10))
    cuda = torch.device("cuda", 0)
    found = align((Atlas(image, label, SPACING),), image, SPACING, plan=registering("affine"), device=cuda)
    assert found.shape == (3, *image.shape[1:])
    assert devices == [cuda, None]
