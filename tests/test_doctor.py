"""mre_doctor: a report fit for a bug report, a tiny run, and the exit code."""

import json
import os
from pathlib import Path

import pytest
from conftest import command

from mre_lowshot.files import partial_name
from mre_lowshot.workflows.doctor import doctor, home_hidden, report_lines

pytestmark = pytest.mark.usefixtures("one_thread_only", "no_settings")


def checks(result):
    return {check.name: check.passed for check in result.checks}


def test_the_report_of_a_healthy_installation_with_its_tiny_run(tmp_path, capsys):
    assert command("doctor", "--workspace", tmp_path / "work", "-device", "cpu") == 0
    text = capsys.readouterr().out
    for section in ("versions:", "machine:", "devices:", "environment:", "folders:", "checks:"):
        assert f"\n{section}\n" in f"\n{text}"
    for name in ("mre_lowshot", "python", "torch", "numpy", "SimpleITK", "nibabel", "pynrrd"):
        assert f"  {name}: " in text
    assert "ok     tiny run: planned, trained and segmented a synthetic scan in " in text
    assert "FAILED" not in text
    assert not (tmp_path / "work").exists()  # it only looks


def test_json_without_the_run(tmp_path, capsys):
    assert command("doctor", "--no_run", "--json", "--workspace", tmp_path) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["healthy"] is True
    assert {c["name"] for c in report["checks"]} == {
        "memory", "device", "folder raw", "folder preprocessed", "folder results",
    }  # fmt: skip


def test_a_failed_check_is_named(tmp_path, capsys, monkeypatch):
    assert command("doctor", "--no_run", "-device", "cuda:77", "--workspace", tmp_path) == 1
    assert "FAILED device: -device cuda:77" in (text := capsys.readouterr().out)
    assert text.endswith("failed: device\n")
    (tmp_path / "file").write_text("")
    assert command("doctor", "--no_run", "--workspace", tmp_path / "file") == 1
    assert "FAILED workspace: " in capsys.readouterr().out
    monkeypatch.setenv("MRE_MEMORY_GB", "0.5")
    assert checks(doctor(workspace=tmp_path, run=False))["memory"] is False
    monkeypatch.setenv("MRE_MEMORY_GB", "much")
    assert checks(doctor(workspace=tmp_path, run=False))["memory"] is False


def test_a_failing_run_is_a_failed_check_and_no_traceback(tmp_path, capsys, monkeypatch):
    def fail(*arguments, **options):
        raise ZeroDivisionError("no")

    monkeypatch.setattr("mre_lowshot.data.synthetic.write_dataset", fail)
    assert command("doctor", "--workspace", tmp_path, "-device", "cpu") == 1
    assert "FAILED tiny run: ZeroDivisionError: no" in capsys.readouterr().out


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(tmp_path):
    (tmp_path / "results").mkdir(mode=0o500)
    assert checks(doctor(workspace=tmp_path, run=False))["folder results"] is False


def test_leftovers_are_counted_and_the_home_folder_is_hidden(tmp_path, monkeypatch):
    home = tmp_path / "home" / "jane.doe"
    space = home / "space"
    (space / "results" / "Dataset001_X").mkdir(parents=True)
    (space / "results" / "Dataset001_X" / partial_name(Path("x.pth"))).write_text("")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("MRE_WORKSPACE", str(space))
    monkeypatch.setenv("SECRET", "secret")
    result = doctor(run=False)
    text = "\n".join(report_lines(result))
    assert "results: ~/space/results: 1 datasets, 1 locks and partial files" in text
    assert "MRE_WORKSPACE: ~/space" in text
    assert "jane" not in text + json.dumps(result.to_json())
    assert "secret" not in text
    assert home_hidden(f"{home}/x") == "~/x"
