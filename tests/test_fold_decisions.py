"""Decisions of a fold, derived from its own training labels only."""

from dataclasses import replace

import numpy as np
from references import with_settings
from test_planners import BRAIN, planned

from mre_lowshot.planners.fold import decide_fold, ohem_groups_rule, single_component_rule


def decided(plan, label, train=(), test=(), seed=0):
    return decide_fold(plan, level="1shot", fold=0, train=train, test=test, labels=[label], seed=seed)


def test_ohem_groups_come_from_the_training_labels_or_from_the_recipe():
    assert ohem_groups_rule(np.array([1000, 100, 99, 0]))[0] == (0, 1)
    assert ohem_groups_rule(np.array([1000, 100, 99, 30, 5]))[0] == (0, 1)  # a tenth of the largest class
    assert ohem_groups_rule(np.array([5, 1000, 90, 100]))[0] == (0, 1, 3)
    label = np.array([0] * 90 + [1] * 9 + [-1] * 50)
    derived = decided(planned(BRAIN), label, train=["a"], test=["b"], seed=3)
    assert derived.majority == (0,)  # the organ is large, but without it no minority voxel would be left
    assert ohem_groups_rule(np.array([900, 300, 0, 200]))[0] == (0, 1)
    assert ohem_groups_rule(np.array([900, 300, 1, 200]))[0] == (0, 1, 3)
    assert ohem_groups_rule(np.array([900, 0]))[0] == (0,)
    assert derived.voxel_shares == {"background": 0.909091, "organ": 0.090909, "vessel": 0.0}
    assert "vessel" in derived.reasons["missing"]
    assert (derived.train, derived.test, derived.seed) == (("a",), ("b",), 3)
    plan = planned(BRAIN)
    plan = replace(plan, recipe=with_settings(plan.recipe, majority=("vessel",)))
    assert decided(plan, label).majority == (2,)


def test_a_class_is_a_single_component_only_if_it_is_one_in_every_training_scan():
    whole, broken = np.zeros((2, 9, 9, 9), np.int16)
    whole[1:6, 1:6, 1:6] = 1
    whole[7, 7, 7] = 1  # one scattered voxel of 126
    broken[1:6, 1:6, 1:6] = 1
    broken[0, 7:9, 7:9] = 1
    whole[8, 0, 0] = broken[8, 0, 0] = broken[8, 8, 8] = 2
    assert single_component_rule([whole], 4)[0] == (1, 2)  # class 3 is nowhere
    assert single_component_rule([whole, broken], 4)[0] == ()
