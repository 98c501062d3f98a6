"""Reports of mre_evaluate and mre_experiment: replaced only as long as they have not been changed by others."""

import json
import math

import numpy as np
import pytest
import SimpleITK as sitk

import mre_lowshot.evaluation.summary as summaries
from mre_lowshot.cli.evaluate import main
from mre_lowshot.errors import UserError
from mre_lowshot.signed import changed_files, set_aside, write_signed
from mre_lowshot.workflows.evaluate import evaluate


@pytest.fixture
def folders(tmp_path):
    """References and predictions of the cases a and b."""
    array = np.zeros((4, 5, 6), np.uint8)
    array[1:3, 1:4, 1:4] = 1
    for folder in ("reference", "prediction"):
        (tmp_path / folder).mkdir()
        for name in "ab":
            sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / folder / f"{name}.nii.gz"))
    return tmp_path / "reference", tmp_path / "prediction"


def run(folders, *options):
    return main([*map(str, folders), *map(str, options)])


def test_a_summary_of_its_own_is_replaced_again_and_again(folders):
    for _ in range(3):
        assert run(folders) == 0
    summary = json.loads((folders[1] / "summary.json").read_text())
    assert summary["written_by"]["software"].startswith("mre_lowshot ")
    (folders[1] / "a.nii.gz").unlink()
    assert run(folders) == 1
    assert len((folders[1] / "summary.csv").read_text().splitlines()) == 2
    assert run(folders) == 1
    (folders[1] / "summary.csv").unlink()
    assert run(folders) == 1


@pytest.mark.parametrize("file", ["summary.json", "summary.csv"])
@pytest.mark.parametrize("how", ["another program's", "changed by hand", "empty", "link"])
def test_a_summary_of_others_is_replaced_only_on_request(file, how, folders, tmp_path, capsys):
    reference, prediction = folders
    path = prediction / file
    if how == "changed by hand":
        assert run(folders) == 0
        path.write_text(path.read_text().replace("1.0", "0.9", 1))
    elif how == "link":
        (tmp_path / "elsewhere").write_text("{}")
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.write_text("" if how == "empty" else '{"foreground_mean": {"Dice": 0.8}, "written_by": {"files": 3}}')
    before = {p.name: p.read_bytes() for p in prediction.iterdir()}
    capsys.readouterr()
    assert run(folders) == 2
    message = capsys.readouterr().err
    assert f"{prediction}: {file}" in message
    assert ": mre_evaluate has not written this, or it has changed since" in message
    assert {p.name: p.read_bytes() for p in prediction.iterdir()} == before
    with pytest.raises(UserError, match="--overwrite"):
        evaluate(reference, prediction)
    assert run(folders, "-o", tmp_path / "out") == 0
    assert run(folders, "--overwrite") == 0
    assert json.loads((prediction / "summary.json").read_text())["number_of_cases"] == 2
    if how == "link":
        assert (tmp_path / "elsewhere").read_text() == "{}"


def test_a_run_that_was_killed_between_the_two_files_may_be_repeated(tmp_path, monkeypatch):
    write_signed(tmp_path / "a.json", {"x": math.nan}, {"a.csv": "one\n"})

    def killed(path, text):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mre_lowshot.signed.write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            write_signed(tmp_path / "a.json", {"x": 2}, {"a.csv": "two\n"})
    assert changed_files(tmp_path / "a.json", ["a.csv"]) == []
    write_signed(tmp_path / "a.json", {"x": 3}, {"a.csv": "three\n"})
    (tmp_path / "a.csv").write_text("other\n")
    assert changed_files(tmp_path / "a.json", ["a.csv"]) == [tmp_path / "a.csv"]
    assert set_aside([tmp_path / "a.csv"]) == [tmp_path / "a.csv.old"]
    (tmp_path / "a.csv").write_text("mine\n")
    assert set_aside([tmp_path / "a.csv"]) == [tmp_path / "a.csv.old2"]
    assert (tmp_path / "a.csv.old").read_text() == "other\n"


@pytest.mark.parametrize(
    "problem", [MemoryError(), RuntimeError("bad"), IndexError("far"), OSError(5, "I/O error", "x")]
)
def test_any_failure_of_a_case_is_named_and_the_others_are_evaluated(problem, folders, monkeypatch, capsys):
    metrics = summaries.case_metrics

    def fails(reference, prediction, *others):
        if not calls:
            calls.append(1)
            raise problem
        return metrics(reference, prediction, *others)

    calls = []
    monkeypatch.setattr(summaries, "case_metrics", fails)
    assert run(folders) == 1
    summary = json.loads((folders[1] / "summary.json").read_text())
    assert list(summary["failed_cases"]) == ["a"]
    assert summary["failed_cases"]["a"].startswith("case a: ")
    assert [c["case"] for c in summary["metric_per_case"]] == ["b"]


def test_a_full_disk_leaves_the_earlier_summary(folders, monkeypatch, capsys):
    assert run(folders) == 0
    before = {p.name: p.read_bytes() for p in folders[1].iterdir()}

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert run(folders) == 2
    message = capsys.readouterr().err
    assert f"{folders[1] / 'summary.json'}: cannot be written (No space left on device, " in message
    assert "GB free); make space or give a folder on another disk" in message
    assert {p.name: p.read_bytes() for p in folders[1].iterdir()} == before
