"""A dataset that was planned from a path outside raw/ is found by its name afterwards."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import SETTINGS, command

import mre_lowshot
from mre_lowshot.data.synthetic import write_dataset
from mre_lowshot.data.volume import read_image
from mre_lowshot.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread_only", "no_settings")


@pytest.fixture
def outside(space, tmp_path) -> Path:
    """The raw dataset, moved out of the workspace and preprocessed again from its path."""
    folder = Path(shutil.move(space.raw, tmp_path / "disk/Dataset900_Synthetic"))
    assert command("plan", "-d", folder, "-p", "Tiny", "--keep_plan", "--workspace", space.root) == 0
    return folder


@pytest.fixture(scope="module")
def another(tmp_path_factory) -> Path:
    """A dataset with a subject that is not in the workspace's."""
    folder = tmp_path_factory.mktemp("more")
    return write_dataset(folder, subjects=1, seed=1, shape=(20, 36, 44), spacing=(8.0, 8.0, 8.0))


@pytest.mark.parametrize("name", ["900", "Synthetic", "Dataset900_Synthetic"])
def test_a_case_is_added_and_planned_again_by_the_name(space, outside, another, name, capfd):
    image, label = another / "imagesTr/phantom_001_0000.nii.gz", another / "labelsTr/phantom_001.nii.gz"
    added = ("--name", "visit", "-p", "Tiny", "--workspace", space.root)
    assert command("add_case", name, image, label, *added) == 0
    assert (outside / "labelsTr/visit.nii.gz").is_file()
    capfd.readouterr()
    assert command("plan", "-d", name, "-p", "Tiny", "--keep_plan", "--workspace", space.root) == 0
    assert f"raw data in {outside}" in capfd.readouterr().out


def test_a_dataset_in_raw_comes_first_and_unclear_ones_are_refused(space, outside, another, tmp_path):
    def add():
        image, label = another / "imagesTr/phantom_001_0000.nii.gz", another / "labelsTr/phantom_001.nii.gz"
        mre_lowshot.add_case("900", image, label, name="visit", plans_name="Tiny", workspace=space.root)

    shutil.copytree(outside, space.raw)
    with pytest.raises(UserError, match=r"the preprocessed cases in .* were made from .*disk"):
        add()
    shutil.move(space.raw, tmp_path / "copy/Dataset900_Synthetic")
    other = ("-p", "Other", "--workspace", space.root, "--set", *SETTINGS)
    assert command("plan", "-d", tmp_path / "copy/Dataset900_Synthetic", *other) == 0
    with pytest.raises(UserError, match=r"dataset '900' is not in .*; give a path"):  # the two plans' differ
        add()
    with pytest.raises(UserError, match=r"dataset '901' is not in .*; give a path"):
        mre_lowshot.plan("901", workspace=space.root)
    with pytest.raises(UserError, match=r"nowhere/Dataset900_Synthetic' is not in .*; give a path"):
        mre_lowshot.plan("nowhere/Dataset900_Synthetic", workspace=space.root)


def test_suggest_uses_the_boxes_beside_it(space, outside, another, tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    shutil.copy(another / "imagesTr/phantom_001_0000.nii.gz", scans / "new_0000.nii.gz")
    images = {**{p.name: p for p in (outside / "imagesTr").iterdir()}, "new_0000.nii.gz": scans / "new_0000.nii.gz"}
    boxes = {
        name.removesuffix("_0000.nii.gz"): [[0, size] for size in read_image(path).array.shape[1:]]
        for name, path in images.items()
    }
    (outside / "crops.json").write_text(json.dumps(boxes))
    boxed = ("-p", "Boxed", "--workspace", space.root, "--set", *SETTINGS, "preprocessing.crop=given")
    assert command("plan", "-d", outside, *boxed) == 0
    made = mre_lowshot.suggest("900", scans, plans_name="Boxed", workspace=space.root)
    assert ([one.case for one in made.suggestions], made.failed) == (["new"], ())
