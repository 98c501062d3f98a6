"""The roots of the workspace, and the folder that a dataset's name means."""

from pathlib import Path

import pytest

from mre_lowshot.data.workspace import Workspace
from mre_lowshot.errors import UserError

KINDS = ("raw", "preprocessed", "results")
OURS = {"raw": "MRE_RAW", "preprocessed": "MRE_PREPROCESSED", "results": "MRE_RESULTS"}
NNUNET = {"raw": "nnUNet_raw", "preprocessed": "nnUNet_preprocessed", "results": "nnUNet_results"}


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    for name in (*OURS.values(), *NNUNET.values(), "MRE_WORKSPACE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def under(root):
    return {kind: Path(root) / kind for kind in KINDS}


def found(root=None):
    return {kind: getattr(Workspace.resolve(root), kind) for kind in KINDS}


def test_sources_of_the_roots_take_precedence_in_order(monkeypatch):
    assert found() == under("mre_data")
    monkeypatch.setenv("MRE_WORKSPACE", "/space")
    assert found() == under("/space")
    for kind, name in NNUNET.items():
        monkeypatch.setenv(name, f"/nnunet/{kind}")
    assert found() == under("/nnunet")
    for kind, name in OURS.items():
        monkeypatch.setenv(name, f"/ours/{kind}")
    assert found() == under("/ours")
    assert found("/flag") == under("/flag")


def test_the_source_is_chosen_for_each_root(monkeypatch):
    monkeypatch.setenv("nnUNet_results", "/nnunet/results")
    monkeypatch.setenv("MRE_RAW", "/ours/raw")
    monkeypatch.setenv("MRE_WORKSPACE", "/space")
    monkeypatch.setenv("MRE_PREPROCESSED", "")  # an empty value counts as not set
    assert found() == {
        "raw": Path("/ours/raw"),
        "preprocessed": Path("/space/preprocessed"),
        "results": Path("/nnunet/results"),
    }


def test_the_home_folder_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert found("~/data")["raw"] == Path("/home/someone/data/raw")
    monkeypatch.setenv("MRE_RAW", "~/raw")
    assert found()["raw"] == Path("/home/someone/raw")


@pytest.fixture
def space(tmp_path):
    for name in ("Dataset017_BTCV", "Dataset018_BTCV256", "Dataset170_Other", "plain"):
        (tmp_path / "w/raw" / name).mkdir(parents=True)
    (tmp_path / "w/raw/Dataset017_notes.txt").touch()
    return Workspace.resolve(tmp_path / "w")


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("17", "Dataset017_BTCV"),
        ("017", "Dataset017_BTCV"),
        ("BTCV", "Dataset017_BTCV"),
        ("BTCV256", "Dataset018_BTCV256"),
        ("170", "Dataset170_Other"),
        ("Dataset017_BTCV", "Dataset017_BTCV"),
        ("somewhere/else/Dataset017_BTCV", "Dataset017_BTCV"),
        ("somewhere/else/Dataset017_BTCV/", "Dataset017_BTCV"),
        ("plain", "plain"),
    ],
)
def test_a_dataset_is_found_by_id_name_full_name_or_path(space, name, folder):
    assert space.find(name, "raw") == space.raw / folder


def test_a_raw_dataset_anywhere_is_found_by_its_path(space, tmp_path, monkeypatch):
    elsewhere = tmp_path / "disk" / "Dataset500_Far"
    elsewhere.mkdir(parents=True)
    (elsewhere / "dataset.json").touch()
    assert space.find(str(elsewhere), "raw") == elsewhere
    monkeypatch.chdir(elsewhere)
    assert space.find(".", "raw") == elsewhere


def test_an_ambiguous_name_lists_the_folders_that_fit(space):
    (space.raw / "Dataset099_BTCV").mkdir()
    several = r"'BTCV' matches several .*Dataset017_BTCV, Dataset099_BTCV; give the full name"
    with pytest.raises(UserError, match=several):
        space.find("BTCV", "raw")
    (space.raw / "Dataset17_Twin").mkdir()
    with pytest.raises(UserError, match=r"Dataset017_BTCV, Dataset17_Twin"):
        space.find("17", "raw")


def test_the_message_of_a_missing_dataset_lists_the_existing_ones_and_the_fix(space):
    with pytest.raises(UserError, match=r"'BTC' is not in .*found: Dataset017_BTCV, .*plain\); give a path"):
        space.find("BTC", "raw")
    with pytest.raises(UserError, match=r"found: nothing\); run mre_plan_and_preprocess first"):
        space.find("BTCV", "preprocessed")


def test_a_folder_without_dataset_json_is_refused(tmp_path):
    folder = tmp_path / "Dataset001_Mine"
    folder.mkdir()
    (folder / "Dataset.json").touch()
    with pytest.raises(UserError, match=r"Dataset001_Mine: has no dataset.json \(found: Dataset.json\); write one"):
        Workspace.resolve(None).find(str(folder), "raw")
