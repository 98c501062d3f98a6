"""Voxels marked `ignore` add nothing: to the loss, the fold's decisions, the patches drawn, the prior, the scores."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import SETTINGS, command, edit
from hypothesis import given, settings
from hypothesis import strategies as st
from references import NONE, TINY, numbered_case, sampler, tiny_plan

from mre_lowshot.inference.predictor import Predictor
from mre_lowshot.losses import IGNORE, MRELoss
from mre_lowshot.network.build import build
from mre_lowshot.planners.fold import decide, single_component_rule
from mre_lowshot.sampling import Prior, coordinate_maps, voxel_positions
from mre_lowshot.specs import InferenceSpec, PatchSpec
from mre_lowshot.trainers.trainer import batch_dice
from mre_lowshot.volume import read_labels, write_volume


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.floats(0.1, 0.9))
def test_the_loss_is_that_of_the_other_voxels_alone(seed, ohem, share):
    """Value and gradients: as if the ignored voxels were cut out, whatever the network says there."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, 4, 60, generator=generator, dtype=torch.float64)
    target = torch.randint(4, (1, 60), generator=generator)
    target[torch.rand(1, 60, generator=generator) < share] = IGNORE
    known = (target != IGNORE)[0]
    loss = MRELoss(4, (0, 1), ohem, n_lg=2, ohem_floor=3, dice_weight=0.7, class_balance=0.5)
    whole, cut = logits.clone().requires_grad_(), logits[..., known].clone().requires_grad_()
    values = [loss(whole, target), loss(cut, target[:, known])]
    for value in values:
        value.backward()
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(whole.grad[..., known], cut.grad)
    assert not whole.grad[..., ~known].any()
    assert batch_dice(logits, target) == pytest.approx(batch_dice(logits[..., known], target[:, known]), nan_ok=True)


def test_a_folds_decisions_are_those_of_the_labelled_part():
    label = np.random.default_rng(0).choice(3, size=(6, 8, 8), p=[0.9, 0.07, 0.03]).astype(np.int16)
    half = label.copy()
    half[3:] = IGNORE
    plan = tiny_plan()
    one = decide(plan, "1shot", 0, ["a"], [], [half], 0)
    other = decide(plan, "1shot", 0, ["a"], [], [label[:3]], 0)
    assert one == other
    assert sum(one.voxel_shares.values()) == pytest.approx(1, abs=1e-5)
    half[:3][half[:3] == 2] = IGNORE
    assert "small" in decide(plan, "1shot", 0, ["a"], [], [half], 0).reasons["missing"]


def test_a_class_is_one_piece_only_if_the_ignored_voxels_cannot_be_another():
    label = np.zeros((10, 10, 10), np.int16)
    label[1:6, 1:6, 1:6] = 1  # 125 voxels
    assert single_component_rule([label], 2) == (
        (1,),
        "their largest piece holds at least 98% of them in every training scan",
    )
    label[9, 9, 8:] = IGNORE  # 2 voxels: at most 1.6 % of the class
    assert single_component_rule([label], 2)[0] == (1,)
    label[9, 9, 7:] = IGNORE  # 3 voxels: 2.3 %
    assert single_component_rule([label], 2)[0] == ()
    assert "ignored" in single_component_rule([label], 2)[1]


def test_patches_of_a_partly_labelled_scan_hold_labelled_voxels():
    """Two slices and a far voxel are labelled; places without a label would teach nothing."""
    label = np.full((40, 20, 20), IGNORE, np.int16)
    label[7:9], label[38, 2, 3] = 0, 1
    label[7, 5, 5] = 2
    for balanced in (0.0, 1.0):
        targets = sampler(numbered_case(label.shape, label=label), batch=60, spec=NONE, balanced_share=balanced)[0][2]
        assert (targets != IGNORE).flatten(1).any(dim=1).all()
        assert set(targets.unique().tolist()) <= {IGNORE, 0, 1, 2}
        if balanced:  # around a voxel of a class, never around an ignored one
            assert (targets > 0).flatten(1).any(dim=1).all()
    nothing = sampler(numbered_case(label.shape, label=np.full_like(label, IGNORE)), batch=2)[0][2]
    assert (nothing == IGNORE).all()


def places(shape):
    return coordinate_maps(voxel_positions((0, 0, 0), shape), shape)


def test_the_atlas_says_unknown_where_it_is_ignored():
    label = np.zeros((4, 8, 8), np.int16)
    label[:, :4], label[1:3, 6:] = 1, IGNORE
    prior = Prior((label,), 3)
    told, shares = prior(places(label.shape)), prior.posterior(places(label.shape))
    assert (told[:, label == IGNORE] == np.float32(1 / 3)).all()
    assert not told[:, label == 0].any()
    np.testing.assert_allclose(shares.sum(axis=0), 1, atol=1e-6)
    np.testing.assert_allclose(shares[:, label == IGNORE], 1 / 3, atol=1e-6)
    np.testing.assert_allclose(shares[0][label == 0], 1, atol=1e-6)
    half = places(label.shape)[:, 1:2, 5:6, :1] / 2 + places(label.shape)[:, 1:2, 6:7, :1] / 2  # background, ignored
    np.testing.assert_allclose(prior.posterior(half).ravel(), [0.5 + 1 / 6, 1 / 6, 1 / 6], atol=1e-5)


def test_an_ignored_part_of_the_atlas_leaves_the_networks_decision():
    torch.manual_seed(0)
    network, size = build(TINY).eval(), (4, 8, 8)
    image = np.random.default_rng(0).normal(size=(1, *size)).astype(np.float32)
    patch, at = PatchSpec(size, size), [places(size)]

    def predicted(label, weight):
        rule = InferenceSpec(prior_weight=weight)
        priors = [Prior((label,), 3)]
        predictor = Predictor([network], TINY, patch, rule, torch.device("cpu"), priors=priors)
        # told to the network itself or not: here only the pooling is looked at
        predictor._locations = lambda tiles, frame, axes: [torch.from_numpy(at[0])[None]]  # type: ignore[method-assign]
        return predictor.predict(image, coordinates=at).argmax(axis=0)

    own = predicted(np.full(size, IGNORE, np.int16), 0.0)
    assert np.array_equal(predicted(np.full(size, IGNORE, np.int16), 0.9), own)
    wanted = (own + 1) % 3
    assert np.array_equal(predicted(wanted.astype(np.int16), 0.9), wanted)  # a labelled atlas would have had its way


@pytest.mark.usefixtures("no_settings")
def test_a_partly_labelled_dataset_from_plan_to_scores(space, tmp_path, capsys):
    """Half of every scan is marked as not labelled: it counts nowhere, and no prediction holds the mark."""
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
    assert "ignored, where the reference has them: 9" in capsys.readouterr().out
    again = json.loads((tmp_path / "scores/summary.json").read_text())
    assert again["foreground_mean"] == pytest.approx(summary["foreground_mean"], nan_ok=True)
