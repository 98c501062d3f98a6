"""What a fold decides by its own training labels alone."""

from dataclasses import replace

import numpy as np
from test_planners import BRAIN, planned

from mre_lowshot.planners.fold import decide, groups_rule, single_component_rule


def test_groups_come_from_training_labels_or_from_the_recipe():
    assert groups_rule(np.array([1000, 100, 99, 0]))[0] == (0, 1)
    assert groups_rule(np.array([5, 1000, 90, 100]))[0] == (0, 1, 3)
    label = np.array([0] * 90 + [1] * 9 + [-1] * 50)
    derived = decide(planned(BRAIN), "1shot", 0, ["a"], ["b"], [label], 3)
    assert derived.majority == (0,)  # the organ is large, but without it no minority voxel would be left
    assert groups_rule(np.array([900, 300, 0, 200]))[0] == (0, 1)
    assert groups_rule(np.array([900, 300, 1, 200]))[0] == (0, 1, 3)
    assert groups_rule(np.array([900, 0]))[0] == (0,)
    assert derived.voxel_shares == {"background": 0.909091, "organ": 0.090909, "vessel": 0.0}
    assert "vessel" in derived.reasons["missing"]
    assert (derived.train, derived.test, derived.seed) == (("a",), ("b",), 3)
    plan = planned(BRAIN)
    plan = replace(plan, recipe=replace(plan.recipe, majority=("vessel",)))
    assert decide(plan, "1shot", 0, [], [], [label], 0).majority == (2,)


def test_a_class_in_one_piece_is_one_in_every_training_scan():
    whole, broken = np.zeros((2, 9, 9, 9), np.int16)
    whole[1:6, 1:6, 1:6] = 1
    whole[7, 7, 7] = 1  # a stray voxel of 126
    broken[1:6, 1:6, 1:6] = 1
    broken[0, 7:9, 7:9] = 1
    whole[8, 0, 0] = broken[8, 0, 0] = broken[8, 8, 8] = 2
    assert single_component_rule([whole], 4)[0] == (1, 2)  # class 3 is nowhere
    assert single_component_rule([whole, broken], 4)[0] == ()
