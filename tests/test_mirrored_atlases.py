"""Mirrored atlases: sides, when they are used, their weight, and their use in the commands."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from brains import LABELS, LIKE, SIDED, brain, decisions, two_brains  # noqa: F401 - a fixture
from conftest import command, interrupt_after
from references import TINY, numbered_case, single_thread, whole_map, with_settings  # noqa: F401 - a fixture

from mre_lowshot.atlas.alignment import align
from mre_lowshot.atlas.atlas import Atlas, make_atlases
from mre_lowshot.atlas.label_fusion import AtlasPrior, atlas_prior_of
from mre_lowshot.atlas.mirrored import mirrored, swap_sides, with_mirrored
from mre_lowshot.evaluation.metrics import dice
from mre_lowshot.inference.models import load_model
from mre_lowshot.planners.fold import mirrored_atlases_rule
from mre_lowshot.refinement.fusion import registrations_per_scan
from mre_lowshot.sampling import TrainingCase, location_maps
from mre_lowshot.trainers.symmetry import left_right_dice


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["background", "Left-Hippocampus", "Right-Hippocampus", "stem"], [0, 2, 1, 3]),
        (["background", "kidney (L)", "kidney (R)"], [0, 2, 1]),
        (["background", "LH_cortex", "rh_cortex", "left"], [0, 2, 1, 3]),
        (["background", "liver", "lens", "cleft", "right kidney"], [0, 1, 2, 3, 4]),  # the left one is no label
        (["background", "A", "a", "L", "r"], [0, 1, 2, 4, 3]),
    ],
)
def test_sides_are_read_from_the_names(names, wanted):
    assert swap_sides({name: number for number, name in enumerate(names)}) == wanted


def test_mirroring_twice_gives_the_scan():
    case = numbered_case((3, 4, 5))
    case.label[0, 0] = -1
    atlas = Atlas(case.image, case.label, case.spacing)
    other = mirrored(atlas, SIDED)
    assert np.array_equal(other.image, np.flip(case.image, 3))
    assert other.mirrored
    for here, there in ((1, 2), (2, 1), (0, 0), (-1, -1)):
        assert np.array_equal(other.label == here, np.flip(case.label == there, 2))
    again = mirrored(other, SIDED)
    assert np.array_equal(again.image, case.image)
    assert np.array_equal(again.label, case.label)
    assert not again.mirrored


def test_mirrored_atlases_have_half_the_weight_and_are_no_input_of_the_network():
    rng, size = np.random.default_rng(0), (4, 5, 6)
    labels = tuple(rng.integers(0, 3, size).astype(np.int16) for _ in range(4))
    labels[3][:, 2] = -1
    at = np.concatenate([whole_map(size)] * 4)
    shares = [np.stack([label == k for k in range(3)]).astype(float) for label in labels]
    prior = AtlasPrior(labels, 3, mirrored_count=2)
    last = 0.5 * (labels[3] != -1)  # where it is not annotated, the others decide
    wanted = (shares[0] + shares[1] + 0.5 * shares[2] + last * shares[3]) / (2.5 + last)
    np.testing.assert_allclose(prior.fuse_labels(at), wanted, atol=1e-5)
    np.testing.assert_allclose(prior.foreground_shares(at), (shares[0] + shares[1])[1:] / 2, atol=1e-6)
    np.testing.assert_allclose(prior.foreground_shares(at, without=0), shares[1][1:], atol=1e-6)
    assert np.array_equal(location_maps(at, prior), np.concatenate([at[:3], prior.foreground_shares(at)]))


@pytest.mark.parametrize("sided", [False, True])
def test_symmetric_halves_are_recognised_and_others_are_not(sided):
    plan = replace(LIKE, labels=SIDED if sided else LABELS)
    both = left_right_dice([brain(0, sided), brain(0, sided, alike=False)], plan)
    assert min(both[0].values()) > 0.75
    assert mirrored_atlases_rule(both[:1])[0]
    decided, reason = mirrored_atlases_rule(both)
    assert not decided
    assert "no mirrored atlases" in reason
    if sided:  # names without a side: the mirrored right one would keep the label of the left
        nameless = replace(plan, labels={"background": 0, "PrimaBall": 1, "SecundaBall": 2})
        assert max(left_right_dice([brain(0, sided)], nameless)[0].values()) < 0.1


def test_the_mean_and_every_class_must_be_symmetric_in_every_scan():
    alike = {"stem": 0.9, "ball": 0.8}
    decided, reason = mirrored_atlases_rule([alike])
    assert decided
    assert "0.850" in reason
    many = {**{f"c{n}": 0.9 for n in range(9)}, "LeftNucleus": 0.0}  # the mean would pass
    decided, reason = mirrored_atlases_rule([alike, many])
    assert not decided
    assert "that of LeftNucleus is 0.000" in reason
    for other, why in (({"stem": 0.9, "ball": 0.45}, "below 0.7: no mirrored atlases"), ({}, "cannot be measured")):
        decided, reason = mirrored_atlases_rule([alike, other])
        assert not decided
        assert why in reason


def test_voxels_ignored_in_either_half_do_not_count():
    """Two thirds labelled: where both are known they agree."""
    partly = brain(0)
    partly.label[..., :12] = -1
    found = left_right_dice([partly], LIKE)[0]
    assert found.keys() == {"large", "small"}
    assert min(found.values()) > 0.75
    hidden = brain(0, alike=False)  # a ball in one half, and the other not annotated
    hidden.label[..., :18] = -1
    assert left_right_dice([hidden], LIKE) == [{}]


def test_symmetry_is_not_measured_where_mirrored_atlases_would_not_be_used():
    thin = TrainingCase(np.zeros((1, 2, 4, 4), np.float32), np.zeros((2, 4, 4), np.int16), (1.0,) * 3)
    assert left_right_dice([thin], LIKE) == [{}]  # cannot be registered
    for change in ({"mirrored_atlases": False}, {"registration": "none"}):
        assert left_right_dice([thin], replace(LIKE, recipe=with_settings(LIKE.recipe, **change))) == []
    assert left_right_dice([thin], replace(LIKE, network=TINY)) == []  # without the prior
    assert left_right_dice([thin] * 4, LIKE) == []


def test_registrations_are_counted():
    """Two per scan where all scans have mirrored atlases; an ensemble counts those of all its folds."""
    label = np.zeros((2, 2, 2), np.int16)
    alone, two = AtlasPrior((label,), 3), AtlasPrior((label, label), 3)
    both, all_four = AtlasPrior((label, label), 3, mirrored_count=1), AtlasPrior((label,) * 4, 3, mirrored_count=2)
    assert all(registrations_per_scan(priors) == 1 for priors in ([alone], [two], [None, alone], [None]))
    assert registrations_per_scan([both]) == registrations_per_scan([all_four]) == 2
    assert registrations_per_scan([both, alone]) == 1.5


def test_mirrored_atlases_follow_where_the_fold_uses_them():
    atlases = make_atlases([brain(0), brain(1)], LIKE)
    assert with_mirrored(atlases, LIKE) == atlases
    decided = replace(LIKE, fold=replace(LIKE.fold, mirrored_atlases=True))
    together = with_mirrored(atlases, decided)
    assert [atlas.mirrored for atlas in together] == [False, False, True, True]
    assert np.array_equal(together[3].image, np.flip(atlases[1].image, 3))
    assert atlas_prior_of(together, decided).mirrored_count == 2
    assert with_mirrored(atlases, replace(decided, fold=None)) == atlases


def test_a_mirrored_atlas_registers_to_a_new_scan():
    """The halves of a symmetric brain are alike, so that the mirrored labels fit another brain too."""
    train, new = brain(0), brain(5)
    plan = replace(LIKE, fold=replace(LIKE.fold, mirrored_atlases=True))
    atlases = with_mirrored(make_atlases([train], plan), plan)
    coordinates, prior = align(atlases, new.image, new.spacing, plan=plan), atlas_prior_of(atlases, plan)
    pairs = zip(atlases, np.split(coordinates, 2), strict=True)
    direct, flipped = (AtlasPrior((atlas.label,), 3).fuse_labels(maps).numpy() for atlas, maps in pairs)
    both, weighted = (prior.fuse_labels(coordinates, image).numpy() for image in (None, new.image))
    np.testing.assert_allclose(both, (2 * direct + flipped) / 3, atol=1e-5)
    assert not np.allclose(direct, flipped, atol=0.1)
    assert all(dice(warped.argmax(0) == 2, new.label == 2) > 0.7 for warped in (direct, flipped, both, weighted))


@pytest.mark.slow
def test_a_continued_training_keeps_the_decision(brains, tmp_path, monkeypatch):
    """Another machine may round the registration differently; a training begun with mirrored atlases keeps them."""
    common = ("901", "1shot", "fold1", "-p", "Tiny", "--workspace", brains, "-device", "cpu")
    assert command("train", *common, "--c") == 2  # nothing to continue; no trace is left
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        assert command("train", *common, "--no_val") == 130
    monkeypatch.setattr("mre_lowshot.trainers.fold.left_right_dice", lambda cases, plan, device: [{"large": 0.0}])
    assert command("train", *common, "--c") == 0
    fold = brains / "results/Dataset901_Brains/MRETrainer__Tiny__1shot/fold_1"
    assert decisions(fold)["mirrored_atlases"]
    before = (fold / "validation/summary.json").read_text()
    assert command("train", *common, "--val") == 0
    assert (fold / "validation/summary.json").read_text() == before
    assert command("train", *common, "--no_val", "--overwrite") == 0
    assert not decisions(fold)["mirrored_atlases"]


def test_through_the_commands(brains, capsys):
    """Decided and reported in the fold; a loaded model registers a scan to the labelled scan and its mirror image."""
    common = ("901", "1shot", "fold0", "-p", "Tiny", "--workspace", brains, "-device", "cpu")
    assert command("train", *common) == 0
    assert ": mirrored atlases are used" in capsys.readouterr().out
    fold = brains / "results/Dataset901_Brains/MRETrainer__Tiny__1shot/fold_0"
    assert decisions(fold)["mirrored_atlases"]
    (model,) = load_model(fold, None, torch.device("cpu")).atlases
    assert [atlas.mirrored for atlas in model] == [False, True]
