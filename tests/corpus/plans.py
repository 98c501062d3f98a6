"""Plans, splits and prepared files edited badly: ``BAD_PLANS`` maps a name to (the change, pattern of the message).

Each change is made to a planned workspace (tests.conftest.Space); training must refuse it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

BAD_PLANS: dict[str, tuple[Callable[[Any], None], str]] = {}


def bad(pattern: str):
    """Register a change of a workspace as a bad plan."""

    def register(change):
        BAD_PLANS[change.__name__] = (change, pattern)
        return change

    return register


def plan_field(name: str, path: str, value: object, pattern: str) -> None:
    """A bad plan with one field changed."""

    def change(space) -> None:
        file = space.prepared / "Tiny.json"
        data = json.loads(file.read_text())
        section, keys = data, path.split(".")
        for key in keys[:-1]:
            section = section[key]
        section[keys[-1]] = value
        file.write_text(json.dumps(data))

    BAD_PLANS[name] = (change, pattern)


plan_field("an_unknown_key", "recipe.optimizer.iteratons", 5, "unknown key 'iteratons'; did you mean 'iterations'")
plan_field("a_wrong_type", "recipe.optimizer.iterations", "many", "must be an int")
plan_field("an_older_format", "format_version", 1, "format_version is 1")
plan_field("an_infinite_learning_rate", "recipe.optimizer.learning_rate", float("inf"), "Infinity|finite|JSON")
plan_field("a_learning_rate_that_is_nan", "recipe.optimizer.learning_rate", float("nan"), "NaN|finite|JSON")
plan_field("no_iterations", "recipe.optimizer.iterations", 0, "at least 1")
plan_field("too_many_iterations", "recipe.optimizer.iterations", 10**30, "64 bits|iterations")
plan_field("a_network_of_terabytes", "network.widths", [10**6, 10**6, 10**6], "widths|memory|parameters")
plan_field("a_network_that_takes_minutes_to_build", "network.convs", [10**6, 10**6, 10**6], "convs")
plan_field("an_embedding_of_terabytes", "network.embedding_dim", 10**12, "embedding_dim|memory|parameters")
plan_field("a_thousand_million_prototypes", "network.prototypes_per_class", 10**9, "prototypes_per_class|memory")
plan_field("a_patch_that_is_not_divisible", "patch.size", [7, 7, 7], "divisible|centre")
plan_field("a_patch_of_terabytes", "patch.size", [2**20, 2**20, 2**20], "patch|memory")
plan_field("a_batch_of_millions", "recipe.sampling.batch_size", 10**9, "batch_size|memory")
plan_field("a_spacing_of_nanometres", "preprocessing.spacing", [1e-6, 1e-6, 1e-6], "other settings|spacing|memory")
plan_field("another_spacing", "preprocessing.spacing", [9.0, 9.0, 9.0], "preprocessed with other settings|preprocess")
plan_field("a_negative_spacing", "preprocessing.spacing", [-1.0, 1.0, 1.0], "above 0")
plan_field("labels_of_another_dataset", "labels", {"background": 0, "heart": 1}, "labels")
plan_field("a_channel_too_many", "channel_names", ["CT", "PET"], "channels|channel")
plan_field("a_name_that_leaves_the_folder", "dataset_name", "../../outside", "dataset_name|name")
plan_field("a_plan_of_another_name", "plans_name", "Other", "plans_name is 'Other'")
plan_field("a_file_ending_that_leaves_the_folder", "file_ending", "/../x.nii.gz", "file_ending")
plan_field("a_probability_above_one", "recipe.augmentation.noise_probability", 7.0, "between 0 and 1|noise_probability")
plan_field("an_unknown_enum", "recipe.atlas.registration", "rigid", "must be one of")
plan_field("a_boolean_as_a_number", "recipe.sampling.batch_size", True, "must be an int")
plan_field("mirror_axes_beyond_three", "recipe.inference.mirror_axes", [5], "mirror_axes")


@bad("missing")
def no_plan(space):
    (space.prepared / "Tiny.json").unlink()


@bad("not valid JSON")
def a_plan_cut_off(space):
    path = space.prepared / "Tiny.json"
    path.write_text(path.read_text()[:200])


@bad("nest|deep|JSON")
def a_plan_nested_too_deep(space):
    (space.prepared / "Tiny.json").write_text('{"a":' * 50_000 + "1" + "}" * 50_000)


@bad("splits")
def splits_of_another_form(space):
    (space.prepared / "splits_1shot.json").write_text('{"train": 5}')


@bad("absent|splits")
def a_split_with_a_case_that_is_not_there(space):
    (space.prepared / "splits_1shot.json").write_text('[{"train": ["absent"], "val": ["phantom_001"]}]')


@bad("both|train.*val|splits")
def a_split_that_tests_on_its_training_scan(space):
    (space.prepared / "splits_1shot.json").write_text('[{"train": ["phantom_001"], "val": ["phantom_001"]}]')


@bad("outside|name|splits")
def a_split_that_leaves_the_folder(space):
    (space.prepared / "splits_1shot.json").write_text('[{"train": ["../../../etc/passwd"], "val": ["phantom_001"]}]')


@bad("damaged|missing|phantom_001")
def a_prepared_case_with_a_flipped_byte(space):
    path = space.prepared / "Tiny/phantom_001.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@bad("damaged|phantom_001")
def a_prepared_case_cut_off(space):
    path = space.prepared / "Tiny/phantom_001.npz"
    path.write_bytes(path.read_bytes()[:-1000])


@bad("phantom_001")
def a_prepared_case_missing(space):
    (space.prepared / "Tiny/phantom_001.npz").unlink()


@bad("complete|preprocess")
def preprocessing_that_did_not_end(space):
    (space.prepared / "Tiny/preprocessing.json").unlink()


@bad("changed|label")
def a_label_map_corrected_after_planning(space):
    import nibabel as nib
    import numpy as np

    path = space.raw / "labelsTr/phantom_001.nii.gz"
    image = nib.load(path)
    array = np.asarray(image.dataobj).copy()
    array[array == 1] = 2
    nib.save(nib.Nifti1Image(array, image.affine, image.header), path)
