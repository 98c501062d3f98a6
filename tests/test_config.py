"""Plans as JSON: written and read without a difference, and every error of a hand edit is named with its key."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mre_lowshot.config import (
    AugmentationConfig,
    ChannelNormalization,
    FoldDecisions,
    InferenceConfig,
    LossConfig,
    NetworkConfig,
    OptimizerConfig,
    PatchConfig,
    Plan,
    PreprocessingConfig,
    Recipe,
    SamplingConfig,
)
from mre_lowshot.config.json import changed, from_json, suggest, to_json
from mre_lowshot.config.plan_files import load_plan, write_or_verify
from mre_lowshot.errors import UserError
from mre_lowshot.files import read_json, write_json

FOLD = FoldDecisions("1shot", 2, ("a",), ("b", "c"), (0, 1), {"background": 0.9, "x": 0.1}, {"majority": "why"}, 7)


def made(**fields):
    """A plan of a two-channel dataset; every kind of field differs from its default."""
    plan = Plan(
        dataset_name="Dataset001_X",
        plans_name="Mine",
        channel_names=("T1", "FLAIR"),
        labels={"background": 0, "x": 1},
        file_ending=".nii.gz",
        preprocessing=PreprocessingConfig(
            "body",
            (ChannelNormalization(), ChannelNormalization("clip", lower=-5.5)),
            spacing=(3.0, 0.1, 1 / 3),
            crop_margin_mm=2.5,
        ),
        patch=PatchConfig((8, 40, 24), (6, 30, 20)),
        network=NetworkConfig(2, 2, mixing="average", prototype_head=False),
        recipe=Recipe(
            "mine",
            loss=LossConfig(majority=("x",)),
            augmentation=AugmentationConfig(mirror_axes=(2,)),
            inference=InferenceConfig("overlap", 0.25),
        ),
        reasons={"patch": "so"},
        training_ranges={"spacing": [[1.0, 2.0, 3.0], [1.0, 2.0, 4.0]], "channels": [{"median": [0.5, 1e-7]}]},
        ignore_label=9,
        fold=FOLD,
    )
    return replace(plan, **fields)


@pytest.mark.parametrize("plan", [made(), made(ignore_label=None, fold=None)])
def test_a_plan_is_read_as_it_was_written(plan, tmp_path):
    write_json(tmp_path / "Mine.json", to_json(plan))
    assert load_plan(tmp_path / "Mine.json") == plan


@given(
    rate=st.floats(1e-9, 1e3),
    shares=st.floats(0, 1),
    batch=st.integers(1, 999),
    axes=st.lists(st.sampled_from([0, 1, 2]), max_size=3, unique=True),
    majority=st.lists(st.text(max_size=9), max_size=3),
    low=st.floats(0.01, 1),
    high=st.floats(1, 9),
    step=st.floats(0.05, 1),
    ohem=st.booleans(),
)
@settings(max_examples=60, derandomize=True)
def test_any_recipe_is_read_as_it_was_written(rate, shares, batch, axes, majority, low, high, step, ohem):
    recipe = Recipe(
        "r",
        optimizer=OptimizerConfig(iterations=5, learning_rate=rate),
        loss=LossConfig(ohem=ohem, majority=tuple(majority)),
        sampling=SamplingConfig(batch_size=batch, foreground_fraction=shares),
        augmentation=AugmentationConfig(spatial_probability=shares, scaling=(low, high)),
        inference=InferenceConfig(step=step, mirror_axes=tuple(axes)),
    )
    assert from_json(Recipe, json.loads(json.dumps(to_json(recipe))), "recipe") == recipe


def edited(path, value):
    """The plan's JSON with ``value`` at dotted ``path`` (a number is an index of a list; DELETE removes the field)."""
    data = to_json(made())
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    section = data
    for parent in parents:
        section = section[parent]
    if value == "DELETE":
        del section[last]
    else:
        section[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("recipe.optimizer.iteratons", 5, ("P.json.recipe.optimizer", "'iteratons'", "did you mean 'iterations'?")),
        ("recipe.optimiser", {}, ("P.json.recipe:", "'optimiser'", "did you mean 'optimizer'?")),
        ("network.prototypes_per_clas", 1, ("P.json.network", "did you mean 'prototypes_per_class'?")),
        ("recipe.augmentation.qqq", 1, ("P.json.recipe.augmentation", "known are", "mirror_axes")),
        ("pach", {}, ("P.json:", "did you mean 'patch'?")),
        ("patch", "DELETE", ("P.json", "'patch' is missing")),
        ("recipe.optimizer.iterations", "many", ("P.json.recipe.optimizer.iterations", "'many'", "must be an int")),
        ("recipe.optimizer.iterations", 5.5, ("P.json.recipe.optimizer.iterations", "5.5", "must be an int")),
        ("recipe.optimizer.iterations", True, ("P.json.recipe.optimizer.iterations", "must be an int")),
        ("recipe.loss.ohem", 1, ("P.json.recipe.loss.ohem", "must be a bool")),
        ("recipe.optimizer.learning_rate", None, ("P.json.recipe.optimizer.learning_rate", "must be a float")),
        ("recipe.loss.majority", "x", ("P.json.recipe.loss.majority", "must be a list")),
        ("patch.size", [8, "40", 24], ("P.json.patch.size[1]", "'40'")),
        ("network.mixing", "adaptiv", ("P.json.network.mixing", "'adaptive', 'average', 'one_hot'")),
        ("labels", [0, 1], ("P.json.labels", "must be a JSON object")),
        ("labels", {"background": 0, "x": "1"}, ("P.json.labels.x", "must be an int")),
        ("network", [], ("P.json.network", "must be a JSON object")),
        ("preprocessing.normalization.0", {"schema": "clip"}, ("normalization[0]", "did you mean 'scheme'?")),
        ("recipe.sampling.batch_size", 0, ("P.json.recipe.sampling", "batch_size is 0")),
        ("recipe.optimizer.learning_rate", -1, ("P.json.recipe.optimizer", "learning_rate is -1")),
        ("recipe.optimizer.ema", 1, ("P.json.recipe.optimizer", "ema is 1")),
        ("recipe.inference.step", 0, ("P.json.recipe.inference", "step is 0")),
        ("recipe.inference.mirror_axes", [3], ("P.json.recipe.inference", "mirror_axes")),
        ("recipe.augmentation.noise_probability", 1.1, ("P.json.recipe.augmentation", "noise_probability is 1.1")),
        ("recipe.augmentation.scaling", [2, 1], ("P.json.recipe.augmentation", "scaling is (2.0, 1.0)")),
        ("network.strides", [[2, 2, 2]], ("P.json.network", "3 encoder blocks need 2 poolings")),
        ("network.strides", [[2, 2, 2], [2, 2]], ("P.json.network", "one per axis")),
        ("network.dilations", [[6, 6]], ("P.json.network", "dilations", "3 whole numbers")),
        ("network.widths", [2, 8, 8], ("P.json.network", "at least 4")),
        ("network.norm", "instance", ("P.json.network", "image_level_norm")),
        ("patch.centre", [9, 30, 20], ("P.json.patch", "must fit into the patch")),
        ("patch.size", [8, 42, 24], ("P.json:", "must be divisible by (2, 4, 4)")),
        ("channel_names", ["T1"], ("P.json:", "1 channels, 2 network inputs")),
        ("labels", {"background": 0, "x": 2}, ("P.json:", "numbered 0 to 1")),
        ("recipe.loss.majority", ["liver"], ("P.json:", "['liver']", "['background', 'x']")),
        ("preprocessing.spacing", [1, 0, 1], ("P.json.preprocessing", "spacing is (1.0, 0.0, 1.0)")),
        ("format_version", 1, ("P.json:", "format_version is 1", "plan the dataset again")),
        ("format_version", 3, ("P.json:", "format_version is 3", "plan the dataset again")),
    ],
)
def test_an_error_in_a_plan_is_refused_by_name(path, value, words):
    with pytest.raises(UserError) as caught:
        from_json(Plan, edited(path, value), "P.json")
    assert [word for word in words if word not in str(caught.value)] == [], caught.value


def test_a_plan_of_another_format_is_refused_as_such_and_not_by_a_key_that_it_names_otherwise():
    data = {**edited("format_version", 1), "seen": {}}
    del data["training_ranges"]
    with pytest.raises(UserError, match="format_version is 1, this mre_lowshot reads 2; plan the dataset again"):
        from_json(Plan, data, "P.json")


def test_a_plan_that_is_no_json_or_is_missing_is_refused(tmp_path):
    (tmp_path / "P.json").write_text('{"dataset_name": ')
    with pytest.raises(UserError, match=r"P\.json is not valid JSON \(.*line 1"):
        load_plan(tmp_path / "P.json")
    with pytest.raises(UserError, match="mre_plan_and_preprocess"):
        load_plan(tmp_path / "Q.json")


def test_suggest_names_the_nearest_or_all():
    assert suggest("learnin_rate", ["learning_rate", "ema"]) == "did you mean 'learning_rate'?"
    assert suggest("zzz", ["b", "a"]) == "known are a, b"


@pytest.mark.parametrize(
    ("path", "text", "get", "value"),
    [
        ("network.prototypes_per_class", "1", lambda p: p.network.prototypes_per_class, 1),
        ("recipe.optimizer.learning_rate", "2", lambda p: p.recipe.optimizer.learning_rate, 2.0),
        ("network.mixing", "one_hot", lambda p: p.network.mixing, "one_hot"),
        ("recipe.loss.majority", '["background"]', lambda p: p.recipe.loss.majority, ("background",)),
        ("recipe.inference.tiling", "centre", lambda p: p.recipe.inference.tiling, "centre"),
        ("network.strides", "[[2, 2, 2], [2, 2, 2]]", lambda p: p.network.strides, ((2, 2, 2), (2, 2, 2))),
    ],
)
def test_set_changes_one_field_and_nothing_else(path, text, get, value):
    plan = changed(made(), path, text, "--set")
    assert get(plan) == value
    before, after = to_json(made()), to_json(plan)
    *parents, last = path.split(".")
    for section in (before, after):
        for parent in parents:
            section = section[parent]
        del section[last]
    assert before == after


@pytest.mark.parametrize(
    ("path", "text", "words"),
    [
        ("recipe.optimizer.iteration", "5", "did you mean 'iterations'?"),
        ("recip.optimizer.iterations", "5", "did you mean 'recipe'?"),
        ("recipe.iterations", "5", "did you mean 'recipe.optimizer.iterations'?"),
        ("recipe.mirror_axes", "[]", "'recipe.augmentation.mirror_axes' or 'recipe.inference.mirror_axes'?"),
        ("recipe.optimizer.iterations", "five", "must be an int"),
        ("recipe.optimizer.iterations", "0", "iterations is 0"),
        ("recipe.optimizer.iterations.x", "5", "'recipe.optimizer.iterations.x' is not a field"),
        ("recipe.optimizer.iterations.x.y", "5", "'recipe.optimizer.iterations.x.y' is not a field"),
    ],
)
def test_set_refuses_a_path_that_is_no_field_and_a_wrong_value(path, text, words):
    with pytest.raises(UserError) as caught:
        changed(made(), path, text, "--set")
    assert words in str(caught.value)


def test_a_batch_norm_over_a_single_vector_is_refused_in_the_plan():
    """The image-level branch pools a patch to one vector: torch cannot batch-normalise a batch of one."""
    with pytest.raises(UserError, match=r"batch_size|image_level_norm"):
        made(recipe=Recipe(sampling=SamplingConfig(batch_size=1)))
    made(recipe=Recipe(sampling=SamplingConfig(batch_size=1)), network=NetworkConfig(2, 2, image_level_norm=False))


def test_two_plans_cannot_share_a_results_folder(tmp_path):
    path = tmp_path / "plans.json"
    write_or_verify(path, made())
    write_or_verify(path, made())
    other = made(recipe=replace(made().recipe, optimizer=OptimizerConfig(ema=0.5)))
    with pytest.raises(UserError, match=r"recipe\.optimizer\.ema: existing 0\.0, new 0\.5"):
        write_or_verify(path, other)
    assert read_json(path, "plan") == to_json(made())
