"""Lesions among organs: what the atlases, the limits and the components leave out for them, and where a plan names
them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from references import TINY, tiny_case, tiny_plan
from scipy import ndimage
from test_hu_limits import CT as WINDOW
from test_hu_limits import blocks
from test_planners import BRAIN, CUBE, MRBRAINS, ULTRASOUND, numbered, planned

from mre_lowshot.atlas import alignment
from mre_lowshot.atlas.alignment import PreviousPass, align
from mre_lowshot.atlas.atlas import Atlas
from mre_lowshot.atlas.label_fusion import atlas_prior_of, build_prior, class_shares
from mre_lowshot.atlas.lesions import organ_shares, without_lesions
from mre_lowshot.config import Plan
from mre_lowshot.config.json import from_json, to_json
from mre_lowshot.config.presets import DEFAULT
from mre_lowshot.errors import UserError
from mre_lowshot.evaluation.agreement import label_agreement
from mre_lowshot.grid import IGNORE, coordinate_maps, voxel_positions
from mre_lowshot.inference.models import Model
from mre_lowshot.inference.predictor import Predictor
from mre_lowshot.inference.quality import estimate_quality
from mre_lowshot.planners.fold import decide_fold, min_hu_rule, single_component_rule
from mre_lowshot.planners.planner import with_changes
from mre_lowshot.preprocessing.normalization import normalize
from mre_lowshot.refinement.components import keep_largest_component
from mre_lowshot.refinement.fusion import fuse_posteriors
from mre_lowshot.refinement.pipeline import RefinementSettings, refine
from mre_lowshot.trainers.symmetry import left_right_dice

LESION = 3  # class of the lesion; 1 and 2 are two organs side by side


def posterior_of(seed: int, classes: int = 4, size=(5, 6, 7)) -> np.ndarray:
    p = np.random.default_rng(seed).random((classes, *size)) ** 3
    return (p / p.sum(axis=0)).astype(np.float32)


def anatomy(centre: tuple[int, int, int] | None, size=(20, 24, 28)) -> tuple[np.ndarray, np.ndarray]:
    """Two organs that meet, with a bright lesion of radius 3 at ``centre``: image (1, *size), labels."""
    label = np.zeros(size, np.int16)
    label[4:16, 4:20, 4:14] = 1
    label[4:16, 4:20, 14:24] = 2
    if centre:
        away = np.indices(size) - np.reshape(centre, (3, 1, 1, 1))
        label[(away**2).sum(axis=0) <= 9] = LESION
    noise = np.random.default_rng(0).normal(0, 0.1, size)
    return (np.array([0.0, 1.0, 1.0, 2.5])[label] + noise).astype(np.float32)[None], label


def with_lesion(**settings: object) -> Plan:
    """A plan with two organs and a lesion."""
    plan, network = tiny_plan(**settings), replace(TINY, classes=4, atlas_prior=True)
    return replace(plan, network=network, labels={**plan.labels, "lesion": LESION}, lesions=("lesion",))


def test_a_lesion_becomes_the_tissue_around_it():
    label = np.zeros((3, 5, 9), np.int16)
    label[:, :, 1:5], label[:, :, 5:8] = 1, 2
    label[1, 1:4, 3:6] = LESION
    label[0, 0, 8] = IGNORE
    filled = without_lesions(label, (LESION,), (9.0, 1.0, 1.0))
    assert filled[1, 2, 3:6].tolist() == [1, 1, 2]  # in the slice: 9 mm to the next one
    changed = label == LESION
    assert np.array_equal(filled[~changed], label[~changed])
    assert label[1, 2, 4] == LESION  # the argument stays
    assert without_lesions(label, (), (1.0,) * 3) is label
    assert without_lesions(label, (4,), (1.0,) * 3) is label
    assert not without_lesions(np.full((2, 3, 3), 4, np.int16), (4, 5), (1.0,) * 3).any()
    # against the nearest voxel of the whole map
    random = np.random.default_rng(1).integers(0, 4, (6, 7, 8)).astype(np.int16)
    random[2:5, 2:6, 3:7] = LESION
    found, others = without_lesions(random, (LESION,), (2.0, 1.0, 1.5)), np.argwhere(random != LESION)
    for voxel in np.argwhere(random == LESION):
        distance = (((others - voxel) * (2.0, 1.0, 1.5)) ** 2).sum(axis=1)
        nearest = others[np.isclose(distance, distance.min())]
        assert found[tuple(voxel)] in random[tuple(nearest.T)]


def test_the_shares_of_organs_are_conditional_on_no_lesion():
    p = posterior_of(0)
    p[:, 0, 0, 0] = (0, 0, 0, 1)  # certainly a lesion: what lies under it is unknown
    shares = organ_shares(p, (LESION,))
    assert not shares[LESION].any()
    np.testing.assert_allclose(shares.sum(axis=0), 1, atol=1e-6)
    np.testing.assert_allclose(shares[:, 0, 0, 0], [1 / 3, 1 / 3, 1 / 3, 0], atol=1e-6)
    np.testing.assert_allclose(shares[:, 3, 3, 3], [*p[:3, 3, 3, 3] / p[:3, 3, 3, 3].sum(), 0], rtol=1e-5)
    assert organ_shares(p, ()) is p


def test_fusion_leaves_a_lesion_its_probability_and_fuses_the_organs_among_themselves():
    p, q = posterior_of(1), posterior_of(2)
    p[:, 0, 0, 0], p[:, 0, 0, 1] = (0, 0, 0, 1), (0.2, 0.3, 0.5, 0)
    q[:, 0, 1, 0] = 1 / 4  # not annotated in the atlas
    q[LESION], q[:, 0, 1, 0] = 0, 1 / 4
    fused = fuse_posteriors(p, q, 0.4, 2, lesions=(LESION,))
    np.testing.assert_array_equal(fused[LESION], p[LESION])
    np.testing.assert_allclose(fused.sum(axis=0), 1, atol=1e-5)
    np.testing.assert_array_equal(fused[:, 0, 1, 0], p[:, 0, 1, 0])
    there = p[LESION] < 0.99
    there[0, 1, 0] = False
    conditional = (p[:3] / np.maximum(p[:3].sum(axis=0), 1e-9))[:, None, there]
    organs = fuse_posteriors(conditional, q[:3, None, there], 0.4, 2)[:, 0]
    np.testing.assert_allclose((fused[:3, there] / fused[:3, there].sum(axis=0)), organs, atol=1e-4)
    assert np.isfinite(fused).all()


def test_the_atlas_helps_the_organs_and_does_not_destroy_a_lesion_elsewhere():
    """The lesion lies elsewhere in the atlas. Fused as an organ it would vanish from the scan, and appear where the
    atlas has it."""
    image, truth = anatomy((10, 12, 18))
    atlas = Atlas(*anatomy((10, 8, 8)), (1.0, 1.0, 1.0))
    rng = np.random.default_rng(3)
    scores = 2.0 * class_shares(truth, 4) + ndimage.gaussian_filter(rng.normal(0, 4, (4, *truth.shape)), (0, 1, 1, 1))
    scores[1:3, 4:16, 4:20, 11:17] = 1.0  # the network does not see where the organs meet
    posterior = np.exp(scores) / np.exp(scores).sum(axis=0)
    posterior = posterior.astype(np.float32)
    at = coordinate_maps(voxel_positions((0, 0, 0), truth.shape), truth.shape)
    dice = {}
    for name, lesions in (("alone", None), ("by class", (LESION,)), ("as an organ", ())):
        warped = None if lesions is None else build_prior([atlas], 4, lesions).fuse_labels(at)
        settings = RefinementSettings(DEFAULT.refinement, lesions=lesions or ())
        found = refine(posterior, warped, image, settings).argmax(axis=0)
        dice[name] = label_agreement(found, truth, 4)
    assert dice["by class"][LESION] > dice["alone"][LESION] - 0.02
    assert dice["by class"][LESION] > 0.8
    assert dice["as an organ"][LESION] < dice["by class"][LESION] - 0.15
    for organ in (1, 2):
        assert dice["by class"][organ] > dice["alone"][organ] + 0.03


def test_the_network_gets_no_prior_of_lesions_and_no_holes_where_the_atlas_has_them():
    plan = with_lesion(registration="affine", largest_component=True)
    (_, label), (_, healthy) = anatomy((10, 12, 18)), anatomy(None)
    atlas = Atlas(np.zeros((1, *label.shape), np.float32), label, (1.0, 1.0, 1.0))
    at = coordinate_maps(voxel_positions((0, 0, 0), label.shape), label.shape)
    shares = atlas_prior_of((atlas,), plan).foreground_shares(at)
    assert not shares[LESION - 1].any()
    assert np.array_equal(shares[:2], class_shares(healthy, 3)[1:])
    as_before = atlas_prior_of((atlas,), replace(plan, lesions=())).foreground_shares(at)
    assert np.array_equal(as_before, class_shares(label, 4)[1:])
    predictor = Predictor(Model(Path(), (0,), (plan,), (torch.nn.Identity(),), ((atlas,),)), device=torch.device("cpu"))
    assert predictor.settings.lesions == (LESION,)
    assert np.array_equal(predictor.priors[0].labels[0], healthy)


def test_the_next_registration_is_guided_by_organs_only(monkeypatch):
    image, label = anatomy((10, 12, 18))
    atlas, spacing = Atlas(*anatomy((10, 8, 8)), (1.0, 1.0, 1.0)), (1.0, 1.0, 1.0)
    plan = with_lesion(registration="deformable")
    given, own = [], coordinate_maps(voxel_positions((0, 0, 0), label.shape), label.shape)
    monkeypatch.setattr(alignment, "deformable", lambda *found: given.append(found) or found[2])
    previous = PreviousPass(own, class_shares(label, 4))
    align((atlas,), image, spacing, plan=plan, previous=previous)
    classes = given[0][3]
    import SimpleITK as sitk

    assert not classes.fixed[LESION].any()
    assert np.array_equal(sitk.GetArrayFromImage(classes.moving), anatomy(None)[1])
    align((atlas,), image, spacing, plan=replace(plan, lesions=()), previous=previous)
    assert given[1][3].fixed is previous.shares


def test_the_quality_score_compares_organs():
    p, q = posterior_of(4), posterior_of(5)
    q[LESION] = 0
    quality = estimate_quality(p, q, (LESION,))
    wanted = label_agreement(p[:3].argmax(axis=0), q[:3].argmax(axis=0), 3)
    assert {k: quality.classes[k] for k in (1, 2)} == wanted
    assert math.isnan(quality.classes[LESION])
    assert quality.score == pytest.approx(np.mean(list(wanted.values())))
    # background without a number: the classes keep theirs where a lesion comes first
    swapped = estimate_quality(p[[0, 3, 1, 2]], q[[0, 3, 1, 2]], (1,))
    assert (swapped.classes[2], swapped.classes[3]) == (wanted[1], wanted[2])


def test_symmetry_is_that_of_the_organs():
    case = tiny_case((12, 16, 16), (1.0, 1.0, 1.0))
    plan = tiny_plan(replace(TINY, atlas_prior=True), registration="affine", mirrored_atlases=True)
    assert set(left_right_dice([case], plan)[0]) == {"large", "small"}
    assert set(left_right_dice([case], replace(plan, lesions=("small",)))[0]) == {"large"}


def test_a_lesion_keeps_all_components_and_connects_what_it_divides():
    label = np.zeros((4, 6, 20), np.int16)
    label[1:3, 1:5, 1:12], label[1:3, 1:5, 12:14], label[1:3, 1:5, 14:17] = 1, LESION, 1
    label[0, 0, 19], label[3, 5, 19] = LESION, 1  # a second lesion; a scattered voxel of the organ
    assert single_component_rule([label], 4)[0] == ()
    assert single_component_rule([label], 4, (LESION,))[0] == (1,)
    found, alone = label.copy(), label.copy()
    keep_largest_component(found, (1,), (LESION,))
    assert (found != label).sum() == 1  # the scattered voxel
    assert found[3, 5, 19] == 0
    keep_largest_component(alone, (1,))
    assert not alone[1:3, 1:5, 14:17].any()


def test_a_lesion_has_no_hu_limit():
    image, label = blocks({1: 50.0, 2: 20.0})
    prepared = normalize(image, (WINDOW,))
    assert [limit.label for limit in min_hu_rule([prepared], [label], 3, (WINDOW,), (2,))[0]] == [1]
    plan = planned([CUBE[0]], ("CT",), labels={"background": 0, "liver": 1, "liver_tumour": 2})
    images = [normalize(image, plan.preprocessing.normalization)]
    fold = decide_fold(plan, level="1shot", fold=0, train=["a"], test=[], labels=[label], seed=0, images=images)
    assert [limit.label for limit in fold.min_hu] == [1]
    assert fold.single_component == (1,)


def test_organs_are_registered_and_their_lesions_named_in_the_plan():
    plan = planned(BRAIN, ("T1", "T1IR", "FLAIR"), labels=MRBRAINS)
    assert plan.lesions == ("White matter lesions", "Infarction")
    assert plan.lesion_classes == (4, 9)
    organs = planned(BRAIN, ("T1", "T1IR", "FLAIR"), labels=numbered(*[f"organ {n}" for n in range(1, 11)]))
    assert plan.preprocessing.grid == organs.preprocessing.grid
    # the atlases have no prior of the lesions: it stays an input
    assert (plan.network.atlas_prior_at, plan.network.multiscale) == ("input", True)
    assert "no prior of White matter lesions, Infarction" in plan.reasons["atlas_prior"]
    assert plan.recipe == organs.recipe
    assert replace(plan.network, atlas_prior_at="logits", multiscale=False) == organs.network
    assert plan.preprocessing.spacing == organs.preprocessing.spacing or plan.preprocessing.bias_field is False
    assert plan.recipe.atlas.registration == "deformable"
    assert "White matter lesions, Infarction: position" in plan.reasons["lesions"]
    assert "no atlas prior, no fusion" in plan.reasons["lesions"]
    assert organs.lesions == ()
    assert "lesions" not in organs.reasons


def test_where_every_label_is_a_lesion_or_no_step_asks_the_plan_is_as_before():
    lesions, mixed = numbered("edema", "necrosis"), numbered("liver", "liver_tumour")
    alone = planned(CUBE, labels=lesions)
    assert (alone.lesions, alone.recipe.atlas.registration, alone.recipe.refinement.em_weight) == ((), "none", 1.0)
    assert planned(CUBE, labels=mixed).recipe.refinement.em_weight == 0.5
    for recipe in ("paper", "paper_small", "unet"):
        assert planned(CUBE, labels=mixed, recipe=recipe).lesions == ()
    # what is not registered has small components and, in CT, HU limits
    for plan in (planned(CUBE, labels=mixed, recipe="unet_default"), planned(ULTRASOUND, ("US",), labels=mixed)):
        assert (plan.lesions, plan.recipe.atlas.registration) == (("liver_tumour",), "none")
        assert "atlas prior" not in plan.reasons["lesions"]


def test_the_user_decides_which_labels_are_lesions():
    plan = planned(CUBE, labels=numbered("liver", "cystic_duct", "mass"))
    assert plan.lesions == ("cystic_duct",)  # by its name
    assert with_changes(plan, {"lesions": '["mass"]'}).lesion_classes == (3,)
    assert with_changes(plan, {"lesions": "[]"}).lesion_classes == ()
    for wrong in ('["background"]', '["liver", "spleen"]'):
        with pytest.raises(UserError, match=r"lesions names .* which are not foreground labels"):
            with_changes(plan, {"lesions": wrong})


def test_a_plan_without_the_field_reads_as_one_without_lesions():
    plan = planned(CUBE, labels=numbered("liver", "liver_tumour"))
    data = to_json(plan)
    assert from_json(Plan, data, "x") == plan
    del data["lesions"]
    assert from_json(Plan, data, "x") == replace(plan, lesions=())
