"""Plans of the paper's recipes: its OHEM groups, crop, precision and dilations."""

import pytest
from test_planners import BRAIN, BTCV, CPU, CT, GPU12, GPU80, MRBRAINS, ULTRASOUND, case, planned


@pytest.mark.parametrize("recipe", ["paper", "paper_small"])
def test_the_papers_ohem_groups_are_used_on_the_papers_datasets(recipe):
    ct = planned(CT, ("CT",), recipe=recipe, labels=BTCV)
    assert set(ct.labels) - set(ct.recipe.loss.majority) == {"gallbladder", "esophagus"}
    assert (ct.recipe.loss.ohem_ratio, "BTCV" in ct.reasons["ohem_groups"]) == (4, True)
    assert ct.reasons["ohem_groups"].endswith("esophagus (paper, IV-C), N_Lg 4 (paper, Table I)")
    brain = planned(BRAIN, ("T1", "T1IR", "FLAIR"), recipe=recipe, labels=MRBRAINS)
    assert brain.recipe.loss.majority == ("background", "Cortical gray matter", "White matter", "Ventricles")
    assert brain.recipe.loss.ohem_ratio == 6
    other = planned(CT, ("CT",), recipe=recipe, labels={k: v for k, v in BTCV.items() if v < 4})
    assert (other.recipe.loss.majority, other.recipe.loss.ohem_ratio) == ((), 6)  # derived in each fold
    assert planned(CT, ("CT",), labels=BTCV).recipe.loss.majority == ()


def test_given_crops_are_used_by_the_paper_recipe_only():
    assert planned(CT, ("CT",), recipe="paper", crops=True).preprocessing.crop == "given"
    assert planned(CT, ("CT",), crops=True).preprocessing.crop == "body"


def test_the_papers_recipes_warn_where_the_crop_that_the_paper_was_given_is_missing():
    for recipe, crops, warned in (
        ("paper", False, True),
        ("paper_aug", False, True),
        ("paper", True, False),
        ("paper_small", False, False),  # the planner's rules: no size or field of view of the paper
        ("default", False, False),
    ):
        reason = planned(CT, ("CT",), recipe=recipe, crops=crops).reasons["crop"]
        assert (reason.startswith("NOTE ") and "write such boxes to crops.json" in reason) == warned
        assert ("box of the patient" in reason) != crops
    assert "crops.json" not in planned(BRAIN, recipe="paper").reasons["crop"]


@pytest.mark.parametrize("device", [CPU, GPU12, GPU80])
def test_the_papers_recipes_train_in_float32_and_its_2d_networks_have_its_dilations(device):
    large = [case((1, 900, 1200), (1, 0.3, 0.3))] * 2
    for recipe in ("paper", "paper_aug", "paper_small", "paper_aug_small", "unet", "unet_spread"):
        assert planned(BRAIN, ("T1",), device, recipe).recipe.optimizer.precision == "float32"
        assert planned(CT, ("CT",), device, recipe).recipe.optimizer.precision == "float32"
    for images in (ULTRASOUND, large):
        for recipe in ("paper", "paper_aug"):
            plan = planned(images, ("US",), device, recipe)
            assert plan.network.dilations == ((6, 6), (12, 12), (18, 18))
            assert plan.recipe.optimizer.precision == "float32"
