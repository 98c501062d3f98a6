"""Plans as JSON: what goes out comes back, and every slip of an editing hand is named with its key."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mre_lowshot.codec import changed, from_json, nearest, to_json
from mre_lowshot.errors import UserError
from mre_lowshot.files import read_json, write_json
from mre_lowshot.plans import claim, load_plan
from mre_lowshot.specs import (
    AugmentationSpec,
    ChannelNormalization,
    FoldDecisions,
    InferenceSpec,
    NetworkSpec,
    PatchSpec,
    Plan,
    PreprocessingSpec,
    Recipe,
)

FOLD = FoldDecisions("1shot", 2, ("a",), ("b", "c"), (0, 1), {"background": 0.9, "x": 0.1}, {"majority": "why"}, 7)


def made(**fields):
    """A plan of a two-channel dataset; every kind of field holds something other than its default."""
    plan = Plan(
        dataset_name="Dataset001_X",
        plans_name="Mine",
        channel_names=("T1", "FLAIR"),
        labels={"background": 0, "x": 1},
        file_ending=".nii.gz",
        preprocessing=PreprocessingSpec("body", (ChannelNormalization(), ChannelNormalization("clip", lower=-5.5)),
                                        spacing=(3.0, 0.1, 1 / 3), crop_margin_mm=2.5),
        patch=PatchSpec((8, 40, 24), (6, 30, 20)),
        network=NetworkSpec(2, 2, mixing="average", dml=False),
        recipe=Recipe("mine", majority=("x",), augmentation=AugmentationSpec(mirror_axes=(2,)),
                      inference=InferenceSpec("overlap", 0.25)),
        reasons={"patch": "so"},
        seen={"spacing": [[1.0, 2.0, 3.0], [1.0, 2.0, 4.0]], "channels": [{"median": [0.5, 1e-7]}]},
        ignore_label=9,
        fold=FOLD,
    )  # fmt: skip
    return replace(plan, **fields)


@pytest.mark.parametrize("plan", [made(), made(ignore_label=None, fold=None)])
def test_a_plan_comes_back_from_its_file(plan, tmp_path):
    write_json(tmp_path / "Mine.json", to_json(plan))
    assert load_plan(tmp_path / "Mine.json") == plan


@given(
    rate=st.floats(1e-9, 1e3), shares=st.floats(0, 1), batch=st.integers(1, 999),
    axes=st.lists(st.sampled_from([0, 1, 2]), max_size=3), majority=st.lists(st.text(max_size=9), max_size=3),
    low=st.floats(0.01, 1), high=st.floats(1, 9), step=st.floats(0.01, 1), ohem=st.booleans(),
)  # fmt: skip
@settings(max_examples=60, derandomize=True, deadline=None)
def test_any_recipe_comes_back_from_json_text(rate, shares, batch, axes, majority, low, high, step, ohem):
    recipe = Recipe("r", 5, batch, rate, ohem=ohem, majority=tuple(majority), balanced_share=shares,
                    augmentation=AugmentationSpec(spatial_probability=shares, scaling=(low, high)),
                    inference=InferenceSpec(step=step, mirror_axes=tuple(axes)))  # fmt: skip
    assert from_json(Recipe, json.loads(json.dumps(to_json(recipe))), "recipe") == recipe


def edited(path, value):
    """The plan's JSON with ``value`` put at dotted ``path`` (a number is a place in a list; DELETE takes it away)."""
    data = to_json(made())
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    place = data
    for parent in parents:
        place = place[parent]
    if value == "DELETE":
        del place[last]
    else:
        place[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("recipe.iteratons", 5, ("P.json.recipe", "'iteratons'", "did you mean 'iterations'?")),
        ("network.mods", 1, ("P.json.network", "did you mean 'modes'?")),
        ("recipe.augmentation.qqq", 1, ("P.json.recipe.augmentation", "known are", "mirror_axes")),
        ("pach", {}, ("P.json:", "did you mean 'patch'?")),
        ("patch", "DELETE", ("P.json", "'patch' is missing")),
        ("recipe.iterations", "many", ("P.json.recipe.iterations", "'many'", "must be an int")),
        ("recipe.iterations", 5.5, ("P.json.recipe.iterations", "5.5", "must be an int")),
        ("recipe.iterations", True, ("P.json.recipe.iterations", "must be an int")),
        ("recipe.ohem", 1, ("P.json.recipe.ohem", "must be a bool")),
        ("recipe.learning_rate", None, ("P.json.recipe.learning_rate", "must be a float")),
        ("recipe.majority", "x", ("P.json.recipe.majority", "must be a list")),
        ("patch.size", [8, "40", 24], ("P.json.patch.size[1]", "'40'")),
        ("network.mixing", "adaptiv", ("P.json.network.mixing", "'adaptive', 'average', 'one_hot'")),
        ("labels", [0, 1], ("P.json.labels", "must be a JSON object")),
        ("labels", {"background": 0, "x": "1"}, ("P.json.labels.x", "must be an int")),
        ("network", [], ("P.json.network", "must be a JSON object")),
        ("preprocessing.normalization.0", {"schema": "clip"}, ("normalization[0]", "did you mean 'scheme'?")),
        ("recipe.batch_size", 0, ("P.json.recipe", "batch_size is 0")),
        ("recipe.learning_rate", -1, ("P.json.recipe", "learning_rate is -1")),
        ("recipe.ema", 1, ("P.json.recipe", "ema is 1")),
        ("recipe.inference.step", 0, ("P.json.recipe.inference", "step is 0")),
        ("recipe.inference.mirror_axes", [3], ("P.json.recipe.inference", "mirror_axes")),
        ("recipe.augmentation.noise_probability", 1.1, ("P.json.recipe.augmentation", "noise_probability is 1.1")),
        ("recipe.augmentation.scaling", [2, 1], ("P.json.recipe.augmentation", "scaling is (2.0, 1.0)")),
        ("network.strides", [[2, 2, 2]], ("P.json.network", "3 encoder blocks need 2 poolings")),
        ("network.strides", [[2, 2, 2], [2, 2]], ("P.json.network", "one an axis")),
        ("network.dilations", [[6, 6]], ("P.json.network", "dilations", "3 whole numbers")),
        ("network.widths", [2, 8, 8], ("P.json.network", "at least 4")),
        ("network.norm", "instance", ("P.json.network", "image_level_norm")),
        ("patch.centre", [9, 30, 20], ("P.json.patch", "must fit into the patch")),
        ("patch.size", [8, 42, 24], ("P.json:", "must be divisible by (2, 4, 4)")),
        ("channel_names", ["T1"], ("P.json:", "1 channels, 2 network inputs")),
        ("labels", {"background": 0, "x": 2}, ("P.json:", "numbered 0 to 1")),
        ("recipe.majority", ["liver"], ("P.json:", "['liver']", "['background', 'x']")),
        ("preprocessing.spacing", [1, 0, 1], ("P.json.preprocessing", "spacing is (1.0, 0.0, 1.0)")),
        ("format_version", 2, ("P.json:", "format_version is 2", "plan the dataset again")),
    ],
)
def test_a_slip_in_a_plan_is_refused_by_name(path, value, words):
    with pytest.raises(UserError) as caught:
        from_json(Plan, edited(path, value), "P.json")
    assert [word for word in words if word not in str(caught.value)] == [], caught.value


def test_a_plan_that_is_no_json_or_not_there_is_refused(tmp_path):
    (tmp_path / "P.json").write_text('{"dataset_name": ')
    with pytest.raises(UserError, match=r"P\.json is not valid JSON \(.*line 1"):
        load_plan(tmp_path / "P.json")
    with pytest.raises(UserError, match="mre_plan_and_preprocess"):
        load_plan(tmp_path / "Q.json")


def test_nearest_names_one_or_all():
    assert nearest("learnin_rate", ["learning_rate", "ema"]) == "did you mean 'learning_rate'?"
    assert nearest("zzz", ["b", "a"]) == "known are a, b"


@pytest.mark.parametrize(
    ("path", "text", "get", "value"),
    [
        ("network.modes", "1", lambda p: p.network.modes, 1),
        ("recipe.learning_rate", "2", lambda p: p.recipe.learning_rate, 2.0),
        ("network.mixing", "one_hot", lambda p: p.network.mixing, "one_hot"),
        ("recipe.majority", '["background"]', lambda p: p.recipe.majority, ("background",)),
        ("recipe.inference.tiling", "centre", lambda p: p.recipe.inference.tiling, "centre"),
        ("network.strides", "[[2, 2, 2], [2, 2, 2]]", lambda p: p.network.strides, ((2, 2, 2), (2, 2, 2))),
    ],
)
def test_set_changes_one_field_and_nothing_else(path, text, get, value):
    plan = changed(made(), path, text, "--set")
    assert get(plan) == value
    before, after = to_json(made()), to_json(plan)
    *parents, last = path.split(".")
    for tree in (before, after):
        place = tree
        for parent in parents:
            place = place[parent]
        del place[last]
    assert before == after


@pytest.mark.parametrize(
    ("path", "text", "words"),
    [
        ("recipe.iteration", "5", "did you mean 'iterations'?"),
        ("recip.iterations", "5", "did you mean 'recipe'?"),
        ("recipe.iterations", "five", "must be an int"),
        ("recipe.iterations", "0", "iterations is 0"),
        ("recipe.iterations.x", "5", "'recipe.iterations.x' names no field"),
        ("recipe.iterations.x.y", "5", "'recipe.iterations.x.y' names no field"),
    ],
)
def test_set_refuses_what_is_no_field_or_no_value(path, text, words):
    with pytest.raises(UserError) as caught:
        changed(made(), path, text, "--set")
    assert words in str(caught.value)


def test_a_batch_norm_over_a_single_vector_is_refused_in_the_plan():
    """The image-level branch pools a patch to one vector: torch cannot batch-normalise a batch of one."""
    with pytest.raises(UserError, match=r"batch_size|image_level_norm"):
        made(recipe=Recipe(batch_size=1))
    made(recipe=Recipe(batch_size=1), network=NetworkSpec(2, 2, image_level_norm=False))


def test_two_plans_never_share_a_results_folder(tmp_path):
    path = tmp_path / "plans.json"
    claim(path, made())
    claim(path, made())
    other = made(recipe=replace(made().recipe, ema=0.5))
    with pytest.raises(UserError, match=r"recipe\.ema: 0\.0 there, 0\.5 now"):
        claim(path, other)
    assert read_json(path, "plan") == to_json(made())
