"""Ignored voxels have no effect: on the loss, the fold's decisions, patches, atlas prior and scores."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import SETTINGS, command, edit
from hypothesis import given, settings
from hypothesis import strategies as st
from references import NONE, TINY, box, corner_of, numbered_case, sampler, tiny_plan

from mre_lowshot.atlas.atlas import Atlas
from mre_lowshot.atlas.label_fusion import AtlasPrior
from mre_lowshot.config import AugmentationConfig, LossConfig
from mre_lowshot.data.volume import read_labels, write_volume
from mre_lowshot.grid import IGNORE, coordinate_maps, voxel_positions
from mre_lowshot.inference.models import Model
from mre_lowshot.inference.predictor import Predictor
from mre_lowshot.losses import MRELoss
from mre_lowshot.network.build import build
from mre_lowshot.planners.fold import decide_fold, single_component_rule
from mre_lowshot.refinement.pipeline import refine
from mre_lowshot.sampling import TrainingCase
from mre_lowshot.trainers.trainer import batch_dice


def test_atlases_that_are_annotated_decide_where_others_are_not():
    size, classes = (5, 6, 4), 3
    rng = np.random.default_rng(0)
    whole = rng.integers(0, classes, size).astype(np.int16)
    some = np.where(rng.random(size) < 0.5, IGNORE, rng.integers(0, classes, size)).astype(np.int16)
    maps = coordinate_maps(voxel_positions([0] * 3, size), size)
    prior = AtlasPrior((whole, some), classes)
    fused, shares = prior.fuse_labels(np.concatenate([maps] * 2)), prior.foreground_shares(np.concatenate([maps] * 2))
    for voxel in np.ndindex(size):
        votes = [int(label[voxel]) for label in (whole, some) if label[voxel] != IGNORE]
        wanted = np.bincount(votes, minlength=classes) / len(votes)
        np.testing.assert_allclose(fused[(slice(None), *voxel)], wanted, atol=1e-5)
        np.testing.assert_allclose(shares[(slice(None), *voxel)], wanted[1:], atol=1e-6)
    none = AtlasPrior((np.full(size, IGNORE, np.int16),) * 2, classes)
    np.testing.assert_allclose(none.fuse_labels(np.concatenate([maps] * 2)), 1 / classes, atol=1e-6)
    np.testing.assert_allclose(none.foreground_shares(np.concatenate([maps] * 2)), 1 / classes, atol=1e-6)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.booleans(), st.floats(0.1, 0.9))
def test_the_loss_is_that_of_the_annotated_voxels_only(seed, ohem, share):
    """Value and gradients: as if the ignored voxels were cut out, whatever the network's output there."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, 4, 60, generator=generator, dtype=torch.float64)
    target = torch.randint(4, (1, 60), generator=generator)
    target[torch.rand(1, 60, generator=generator) < share] = IGNORE
    known = (target != IGNORE)[0]
    loss = MRELoss(4, (0, 1), LossConfig(ohem, ohem_ratio=2, ohem_min_kept=3, dice_weight=0.7, class_balance=0.5))
    whole, cut = logits.clone().requires_grad_(), logits[..., known].clone().requires_grad_()
    values = [loss(whole, target), loss(cut, target[:, known])]
    for value in values:
        value.backward()
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(whole.grad[..., known], cut.grad)
    assert not whole.grad[..., ~known].any()
    assert batch_dice(logits, target) == pytest.approx(batch_dice(logits[..., known], target[:, known]), nan_ok=True)


def decided(label):
    return decide_fold(tiny_plan(), level="1shot", fold=0, train=["a"], test=[], labels=[label], seed=0)


def test_a_folds_decisions_are_those_of_the_annotated_part():
    label = np.random.default_rng(0).choice(3, size=(6, 8, 8), p=[0.9, 0.07, 0.03]).astype(np.int16)
    half = label.copy()
    half[3:] = IGNORE
    one, other = decided(half), decided(label[:3])
    assert one == other
    assert sum(one.voxel_shares.values()) == pytest.approx(1, abs=1e-5)
    half[:3][half[:3] == 2] = IGNORE
    assert "small" in decided(half).reasons["missing"]


def test_a_class_is_a_single_component_only_if_the_ignored_voxels_cannot_be_another():
    label = np.zeros((10, 10, 10), np.int16)
    label[1:6, 1:6, 1:6] = 1  # 125 voxels
    assert single_component_rule([label], 2) == (
        (1,),
        "in every training scan the largest component has at least 98% of the class's voxels",
    )
    label[9, 9, 8:] = IGNORE  # 2 voxels: at most 1.6 % of the class
    assert single_component_rule([label], 2)[0] == (1,)
    label[9, 9, 7:] = IGNORE  # 3 voxels: 2.3 %
    assert single_component_rule([label], 2)[0] == ()
    assert ", even if all ignored voxels were a second component" in single_component_rule([label], 2)[1]


def test_patches_of_a_partly_annotated_scan_hold_annotated_voxels():
    """Two slices and a distant voxel are annotated; a patch without an annotated voxel would teach nothing."""
    label = np.full((40, 20, 20), IGNORE, np.int16)
    label[7:9], label[38, 2, 3] = 0, 1
    label[7, 5, 5] = 2
    case = numbered_case(label.shape, label=label)
    for foreground in (0.0, 1.0):
        targets = sampler(case, batch=60, spec=NONE, foreground_fraction=foreground)[0][2]
        assert (targets != IGNORE).flatten(1).any(dim=1).all()
        assert set(targets.unique().tolist()) <= {IGNORE, 0, 1, 2}
        if foreground:  # around a voxel of a class, never around an ignored one
            assert (targets > 0).flatten(1).any(dim=1).all()
    nothing = sampler(numbered_case(label.shape, label=np.full_like(label, IGNORE)), batch=2)[0][2]
    assert (nothing == IGNORE).all()


@pytest.mark.parametrize("foreground", [0.0, 1.0])
@pytest.mark.parametrize("axes", [(2,), (0, 1, 2)])
def test_mirrored_patches_of_a_partly_annotated_scan_hold_annotated_voxels(axes, foreground):
    """Annotated at one side, and mirrored around the middle: the patch lies where the mirrored voxels are."""
    label = np.full((8, 16, 41), IGNORE, np.int16)
    label[:5, :7, :6] = 0
    label[1, 4:6, 2:4], label[3, 2, 1] = 1, 2
    case = numbered_case(label.shape, label=label)
    drawn = sampler(case, batch=80, spec=AugmentationConfig(mirror_axes=axes), foreground_fraction=foreground)[0]
    images, maps, targets = (t.numpy() for t in drawn)
    assert ((targets > 0) if foreground else (targets != IGNORE)).reshape(80, -1).any(axis=1).all()
    sides = []
    for image, position, target in zip(images, maps, targets, strict=True):
        covered = box(corner_of(position, label.shape))
        flipped = [axis for axis in axes if image[0].take(0, axis).min() > image[0].take(1, axis).min()]
        np.testing.assert_array_equal(target, np.flip(label, flipped)[covered])
        np.testing.assert_array_equal(
            image, np.flip(case.image, [axis + 1 for axis in flipped])[(slice(None), *covered)]
        )
        sides.append([axis in flipped for axis in axes])
    assert (np.abs(np.mean(sides, axis=0) - 0.5) < 0.2).all()
    assert len(np.unique(sides, axis=0)) == 2 ** len(axes)


def test_rare_annotated_voxels_are_found_in_the_mirrored_scan_too():
    """Placed around the voxel after `MAX_DRAWS`: chance finds it in one of 357 draws."""
    label = np.full((20, 60, 60), IGNORE, np.int16)
    label[3, 8, 50] = 0
    spec = AugmentationConfig(mirror_axes=(0, 1, 2))
    targets = sampler(numbered_case(label.shape, label=label), batch=60, spec=spec)[0][2].flatten(1)
    assert (targets != IGNORE).any(dim=1).all()


def test_patches_without_mirroring_keep_their_draws():
    """Recorded when mirroring was drawn after the patch, and recipe `default` of volumes has none: trained models stay
    reproducible."""
    size = (4, 90, 90)
    label = np.zeros(size, np.int16)
    label[1, 20:24, 30:40], label[2, 60, 70] = 1, 2
    image = numbered_case(size, channels=1).image / 10_000
    spec = AugmentationConfig(spatial_probability=0.5, noise_probability=0.5)
    case = TrainingCase(image, label, (3.0, 1.0, 1.0))
    batches = sampler(case, seed=7, batch=8, spec=spec, foreground_fraction=0.5)
    sums = []
    for n in (0, 1):
        images, _, targets = (t.numpy().astype(np.float64).ravel() for t in batches[n])
        weights = np.arange(images.size) % 97
        sums += [images @ weights, targets @ weights]
    assert sums == pytest.approx([96354.82917, 50, 89975.18012, 2006], rel=1e-6)


def own_coordinates(shape):
    return coordinate_maps(voxel_positions((0, 0, 0), shape), shape)


def test_ignored_voxels_of_an_atlas_have_the_same_share_of_every_class():
    label = np.zeros((4, 8, 8), np.int16)
    label[:, :4], label[1:3, 6:] = 1, IGNORE
    prior, coordinates = AtlasPrior((label,), 3), own_coordinates(label.shape)
    given, shares = prior.foreground_shares(coordinates), prior.fuse_labels(coordinates)
    assert (given[:, label == IGNORE] == np.float32(1 / 3)).all()
    assert not given[:, label == 0].any()
    np.testing.assert_allclose(shares.sum(axis=0), 1, atol=1e-6)
    np.testing.assert_allclose(shares[:, label == IGNORE], 1 / 3, atol=1e-6)
    np.testing.assert_allclose(shares[0][label == 0], 1, atol=1e-6)
    half = (coordinates[:, 1:2, 5:6, :1] + coordinates[:, 1:2, 6:7, :1]) / 2  # between background and ignored
    np.testing.assert_allclose(prior.fuse_labels(half).ravel(), [0.5 + 1 / 6, 1 / 6, 1 / 6], atol=1e-5)


def test_an_ignored_part_of_the_atlas_leaves_the_networks_decision():
    torch.manual_seed(0)
    spec, size = replace(TINY, atlas_prior=True), (4, 8, 8)
    network = build(spec).eval()
    image = np.random.default_rng(0).normal(size=(1, *size)).astype(np.float32)

    def predicted(label, weight):
        plan = tiny_plan(spec, registration="affine", atlas_weight=weight)
        atlas = Atlas(image, label.astype(np.int16), (3.0, 1.0, 1.0))
        predictor = Predictor(Model.of_fold(plan, network, (atlas,)), device=torch.device("cpu"))
        posterior, warped = predictor.raw_posteriors(image, [own_coordinates(size)])
        return refine(posterior, warped, image, predictor.settings).argmax(dim=0).numpy()

    nothing = np.full(size, IGNORE)
    own = predicted(nothing, 0.0)
    assert np.array_equal(predicted(nothing, 0.9), own)
    wanted = (own + 1) % 3
    assert np.array_equal(predicted(wanted, 0.9), wanted)  # the labels of an annotated atlas prevail


@pytest.mark.usefixtures("no_settings")
def test_a_partly_annotated_dataset_from_plan_to_scores(space, tmp_path, capsys):
    """Half of every scan has the ignore label: it counts nowhere, and no prediction contains it."""
    edit(space.raw / "dataset.json", labels={"ignore": 9})
    for path in sorted((space.raw / "labelsTr").iterdir()):
        volume = read_labels(path)
        marked = volume.array.copy()
        marked[: len(marked) // 2] = 9
        write_volume(path, marked, volume.geometry)
    assert space.plan(name="Part", settings=SETTINGS) == 0
    assert space.train(name="Part") == 0
    fold = space.model("Part") / "fold_0"
    decided = json.loads((fold / "plans.json").read_text())
    assert decided["ignore_label"] == 9
    first = read_labels(space.raw / "labelsTr/phantom_001.nii.gz").array
    with np.load(space.prepared / "Part/phantom_001.npz") as case:
        label = case["label"]
    for name, k in decided["labels"].items():
        share = (label == k).sum() / (label != IGNORE).sum()
        assert decided["fold"]["voxel_shares"][name] == pytest.approx(share, abs=1e-6)
    assert 0.4 < (label == IGNORE).mean() < 0.6
    assert set(np.unique(first)) > {9}
    summary = json.loads((fold / "validation/summary.json").read_text())
    for case in summary["metric_per_case"]:
        name = case["prediction_file"].rsplit("/", 1)[1]
        assert 9 not in read_labels(fold / "validation" / name).array
        known = read_labels(space.raw / "labelsTr" / name).array != 9
        row = case["metrics"]["1"]
        assert row["TP"] + row["FP"] + row["FN"] + row["TN"] == known.sum()
    capsys.readouterr()
    scored = ["-djfile", space.raw / "dataset.json", "-o", tmp_path / "scores"]
    # exit code 1: the training scan has no prediction
    assert command("evaluate", space.raw / "labelsTr", fold / "validation", *scored) == 1
    assert "voxels with these reference labels are excluded: 9" in capsys.readouterr().out
    again = json.loads((tmp_path / "scores/summary.json").read_text())
    assert again["foreground_mean"] == pytest.approx(summary["foreground_mean"], nan_ok=True)
