"""Mirror images of labelled scans as atlases: sides, when they are used, what they say, the way to a prediction."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from brains import LABELS, LIKE, SIDED, brain, decisions, two_brains  # noqa: F401 - a fixture
from conftest import command, interrupt_after
from references import TINY, numbered_case, single_thread, whole_map  # noqa: F401 - a fixture

from mre_lowshot import mirroring
from mre_lowshot.alignment import Atlas, align, make_atlases, make_prior
from mre_lowshot.evaluation.metrics import dice
from mre_lowshot.inference.models import load_model
from mre_lowshot.inference.pooling import registrations_of
from mre_lowshot.planners.fold import mirror_images_rule
from mre_lowshot.sampling import Prior, TrainingCase, location_maps
from mre_lowshot.trainers.symmetry import MOST_SCANS, measured


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["background", "Left-Hippocampus", "Right-Hippocampus", "stem"], [0, 2, 1, 3]),
        (["background", "kidney (L)", "kidney (R)"], [0, 2, 1]),
        (["background", "LH_cortex", "rh_cortex", "left"], [0, 2, 1, 3]),
        (["background", "liver", "lens", "cleft", "right kidney"], [0, 1, 2, 3, 4]),  # its partner is no label
        (["background", "A", "a", "L", "r"], [0, 1, 2, 4, 3]),
    ],
)
def test_sides_are_told_by_the_names(names, wanted):
    assert mirroring.partners({name: number for number, name in enumerate(names)}) == wanted


def test_a_mirror_image_mirrored_is_the_scan():
    case = numbered_case((3, 4, 5))
    case.label[0, 0] = -1
    atlas = Atlas(case.image, case.label, case.spacing)
    image = mirroring.image_of(atlas, SIDED)
    assert np.array_equal(image.image, np.flip(case.image, 3))
    assert image.mirrored
    for here, there in ((1, 2), (2, 1), (0, 0), (-1, -1)):
        assert np.array_equal(image.label == here, np.flip(case.label == there, 2))
    again = mirroring.image_of(image, SIDED)
    assert np.array_equal(again.image, case.image)
    assert np.array_equal(again.label, case.label)
    assert not again.mirrored


def test_what_images_say_counts_half_and_is_not_told_to_the_network():
    rng, size = np.random.default_rng(0), (4, 5, 6)
    labels = tuple(rng.integers(0, 3, size).astype(np.int16) for _ in range(4))
    labels[3][:, 2] = -1
    at = np.concatenate([whole_map(size)] * 4)
    shares = [np.stack([np.where(label == -1, 1 / 3, label == k) for k in range(3)]) for label in labels]
    prior = Prior(labels, 3, images=2)
    wanted = (shares[0] + shares[1] + 0.5 * shares[2] + 0.5 * shares[3]) / 3
    np.testing.assert_allclose(prior.posterior(at), wanted, atol=1e-5)
    np.testing.assert_allclose(prior(at), (shares[0] + shares[1])[1:] / 2, atol=1e-6)
    np.testing.assert_allclose(prior(at, without=0), shares[1][1:], atol=1e-6)
    assert np.array_equal(location_maps(at, prior), np.concatenate([at[:3], prior(at)]))


@pytest.mark.parametrize("sided", [False, True])
def test_halves_that_are_alike_are_seen_and_others_are_not(sided):
    plan = replace(LIKE, labels=SIDED if sided else LABELS)
    both = measured([brain(0, sided), brain(0, sided, alike=False)], plan)
    assert min(both[0].values()) > 0.75
    assert mirror_images_rule(both[:1])[0]
    decided, reason = mirror_images_rule(both)
    assert not decided
    assert "mirror images are not used" in reason
    if sided:  # names that do not tell the side: what is right in the image would be called left
        nameless = replace(plan, labels={"background": 0, "PrimaBall": 1, "SecundaBall": 2})
        assert max(measured([brain(0, sided)], nameless)[0].values()) < 0.1


def test_the_mean_and_every_class_must_agree_in_every_scan():
    alike = {"stem": 0.9, "ball": 0.8}
    decided, reason = mirror_images_rule([alike])
    assert decided
    assert "0.850" in reason
    many = {**{f"c{n}": 0.9 for n in range(9)}, "LeftNucleus": 0.0}  # the mean would pass
    decided, reason = mirror_images_rule([alike, many])
    assert not decided
    assert "LeftNucleus by 0.000" in reason
    for other, why in (({"stem": 0.9, "ball": 0.45}, "left and right differ"), ({}, "cannot be told")):
        decided, reason = mirror_images_rule([alike, other])
        assert not decided
        assert why in reason


def test_what_either_has_ignored_does_not_count():
    """Two thirds labelled: what is known of both agrees."""
    partly = brain(0)
    partly.label[..., :12] = -1
    found = measured([partly], LIKE)[0]
    assert found.keys() == {"large", "small"}
    assert min(found.values()) > 0.75
    hidden = brain(0, alike=False)  # a ball in one half, and nothing known of the other
    hidden.label[..., :18] = -1
    assert measured([hidden], LIKE) == [{}]


def test_nothing_is_measured_where_images_would_not_be_used():
    thin = TrainingCase(np.zeros((1, 2, 4, 4), np.float32), np.zeros((2, 4, 4), np.int16), (1.0,) * 3)
    assert measured([thin], LIKE) == [{}]  # cannot be registered
    for recipe in ({"mirror_images": False}, {"alignment": "none"}):
        assert measured([thin], replace(LIKE, recipe=replace(LIKE.recipe, **recipe))) == []
    assert measured([thin], replace(LIKE, network=TINY)) == []  # without the prior
    assert measured([thin] * (MOST_SCANS + 1), LIKE) == []


def test_registrations_are_counted():
    """Twice as many with the images of all scans; an ensemble counts all of its folds'."""
    label = np.zeros((2, 2, 2), np.int16)
    alone, two = Prior((label,), 3), Prior((label, label), 3)
    image, images = Prior((label, label), 3, images=1), Prior((label,) * 4, 3, images=2)
    assert all(registrations_of(priors) == 1 for priors in ([alone], [two], [None, alone], [None]))
    assert registrations_of([image]) == registrations_of([images]) == 2
    assert registrations_of([image, alone]) == 1.5


def test_images_are_atlases_where_the_fold_decided_so():
    atlases = make_atlases([brain(0), brain(1)], LIKE)
    assert mirroring.with_images(atlases, LIKE) == atlases
    decided = replace(LIKE, fold=replace(LIKE.fold, mirror_images=True))
    together = mirroring.with_images(atlases, decided)
    assert [atlas.mirrored for atlas in together] == [False, False, True, True]
    assert np.array_equal(together[3].image, np.flip(atlases[1].image, 3))
    assert make_prior(together, decided).images == 2
    assert mirroring.with_images(atlases, replace(decided, fold=None)) == atlases


def test_an_image_brings_what_a_new_scan_has():
    """Of a symmetric brain both halves are alike: the image's labels fit another brain too."""
    train, new = brain(0), brain(5)
    plan = replace(LIKE, fold=replace(LIKE.fold, mirror_images=True))
    atlases = mirroring.with_images(make_atlases([train], plan), plan)
    place, prior = align(atlases, new.image, new.spacing, plan), make_prior(atlases, plan)
    scan, image = (Prior((a.label,), 3).posterior(p) for a, p in zip(atlases, np.split(place, 2), strict=True))
    both, told = prior.posterior(place), prior.posterior(place, new.image)
    np.testing.assert_allclose(both, (2 * scan + image) / 3, atol=1e-5)
    assert not np.allclose(scan, image, atol=0.1)
    assert all(dice(told.argmax(0) == 2, new.label == 2) > 0.7 for told in (scan, image, both, told))


def test_going_on_keeps_what_was_decided(brains, tmp_path, monkeypatch):
    """Another machine may round the registration otherwise: what was begun with mirror images goes on with them."""
    common = ("901", "1shot", "fold1", "-p", "Tiny", "--workspace", brains, "-device", "cpu")
    assert command("train", *common, "--c") == 2  # by mistake, and of no consequence
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        assert command("train", *common, "--no_val") == 130
    monkeypatch.setattr("mre_lowshot.trainers.fold.measured", lambda cases, plan: [{"large": 0.0}])
    assert command("train", *common, "--c") == 0
    fold = brains / "results/Dataset901_Brains/MRETrainer__Tiny__1shot/fold_1"
    assert decisions(fold)["mirror_images"]
    before = (fold / "validation/summary.json").read_text()
    assert command("train", *common, "--val") == 0
    assert (fold / "validation/summary.json").read_text() == before
    assert command("train", *common, "--no_val", "--overwrite") == 0
    assert not decisions(fold)["mirror_images"]


def test_through_the_commands(brains, capsys):
    """Decided in the fold and said; whoever loads it registers a scan to the labelled one and to its mirror image."""
    common = ("901", "1shot", "fold0", "-p", "Tiny", "--workspace", brains, "-device", "cpu")
    assert command("train", *common) == 0
    assert "left and right are alike" in capsys.readouterr().out
    fold = brains / "results/Dataset901_Brains/MRETrainer__Tiny__1shot/fold_0"
    assert decisions(fold)["mirror_images"]
    (model,) = load_model(fold, None, torch.device("cpu")).atlases
    assert [atlas.mirrored for atlas in model] == [False, True]
