"""The demonstration from end to end, through its command; slow: it preprocesses and predicts seven whole scans."""

import json

import pytest
from conftest import command

from mre_lowshot.cli import demo
from mre_lowshot.errors import UserError
from mre_lowshot.files import sha256
from mre_lowshot.workflows.demo_folder import DemoFolder


@pytest.mark.slow
def test_the_demo_trains_predicts_scores_and_draws(tmp_path, capsys):
    folder = tmp_path / "demo"
    assert command("demo", "-o", folder, "--iterations", 30, "-device", "cpu") == 0
    output = capsys.readouterr().out
    scores = json.loads((folder / "predictions/summary.json").read_text())
    assert len(scores["metric_per_case"]) == 6
    assert scores["mean"]["1"]["Dice"] > 0.3  # the liver, after 30 iterations
    assert "not a medical device" in output
    assert "6 cases" in output
    pictures = list(folder.glob("overlay_*.png"))
    assert len(pictures) == 1
    assert str(pictures[0]) in output
    assert pictures[0].read_bytes().startswith(b"\x89PNG")
    assert str(folder / "predictions/report.html") in output
    assert f"mre_view {folder / 'predictions'} --reference {folder / 'new_scans_reference'}" in output
    assert (folder / "predictions/report.html").read_text().count('type="text/plain" id="reference-') == 6


def test_the_demo_replaces_nothing_but_a_demo(tmp_path, capsys):
    (tmp_path / "mine/raw/Dataset900_Synthetic").mkdir(parents=True)
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    assert command("demo", "-o", tmp_path / "mine") == 2
    assert command("demo", "-o", tmp_path / "mine", "--overwrite") == 2
    assert "is not a demo folder, so it is not replaced" in capsys.readouterr().err
    assert command("demo", "-o", tmp_path / "mine/thesis.txt") == 2
    assert (tmp_path / "mine/thesis.txt").read_text() == "years of work"
    assert (tmp_path / "mine/raw/Dataset900_Synthetic").is_dir()


@pytest.fixture
def made(tmp_path):
    """A folder with a demo of two files, and two files of the user."""
    folder = DemoFolder(tmp_path / "demo", overwrite=False)
    (folder.root / "raw/imagesTr").mkdir(parents=True)
    (folder.root / "raw/imagesTr/a.nii.gz").write_bytes(b"scan")
    (folder.root / "predictions").mkdir()
    (folder.root / "predictions/a.nii.gz").write_bytes(b"map")
    folder.update()
    (folder.root / "thesis.txt").write_text("years of work")
    (folder.root / "predictions/mine.nii.gz").write_bytes(b"mine")
    return folder.root


def test_overwriting_deletes_only_what_the_demo_made(made):
    again = DemoFolder(made, overwrite=True)
    left = sorted(p.relative_to(made).as_posix() for p in made.rglob("*"))
    assert left == ["demo_files.json", "predictions", "predictions/mine.nii.gz", "thesis.txt"]
    (made / "new.txt").write_text("new")
    again.update()
    assert json.loads((made / "demo_files.json").read_text())["files"] == {"new.txt": sha256(made / "new.txt")}


def test_a_file_of_the_demo_that_was_changed_is_not_deleted(made):
    (made / "predictions/a.nii.gz").write_bytes(b"corrected")
    before = {p: p.read_bytes() for p in made.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=r"predictions/a.nii.gz: changed since the demo made it"):
        DemoFolder(made, overwrite=True)
    assert {p: p.read_bytes() for p in made.rglob("*") if p.is_file()} == before


def test_a_list_from_elsewhere_deletes_nothing_outside_the_folder(made, tmp_path):
    (tmp_path / "victim.txt").write_text("precious")
    (made / "link").symlink_to(tmp_path, target_is_directory=True)
    state = sha256(tmp_path / "victim.txt")
    listed = {"../victim.txt": state, str(tmp_path / "victim.txt"): state, "link/victim.txt": state}
    (made / "demo_files.json").write_text(json.dumps({"format": "mre_lowshot demo", "files": listed}))
    DemoFolder(made, overwrite=True)
    assert (tmp_path / "victim.txt").read_text() == "precious"


def test_an_interrupted_demo_may_be_replaced(tmp_path, monkeypatch):
    def interrupted(root, seed):
        (root / "half.txt").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_dataset", interrupted)
    for overwrite in ((), ("--overwrite",)):
        assert command("demo", "-o", tmp_path / "demo", *overwrite) == 130
        assert sorted(p.name for p in (tmp_path / "demo").iterdir()) == ["demo_files.json", "half.txt"]
