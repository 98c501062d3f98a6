"""The runner of baselines: a fake one as a row of a table, through the command and on the toy dataset."""

import json
import shutil
import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
from conftest import Space, command

from mre_lowshot.errors import UserError
from mre_lowshot.experiments import tables
from mre_lowshot.experiments.baselines import registry
from mre_lowshot.experiments.baselines.base import Baseline
from mre_lowshot.experiments.resources import Resources
from mre_lowshot.experiments.tables import Row, Table

pytestmark = pytest.mark.usefixtures("one_thread_only", "no_settings")
CALLS: list[str] = []


def fit(fold):
    """The training scan's label map for every scan (they have one size), where the image is not the darkest."""
    CALLS.append("fit")
    assert all(case.label is None for case in fold.unlabelled)
    assert [case.name for case in fold.unlabelled[:1]] == [fold.unlabelled.names[0]]
    fold.log(f"learns from {fold.train[0].name}, seed {fold.seed}, iterations {fold.iterations}")
    counts = np.bincount(fold.train[0].needed_label().ravel(), minlength=fold.classes)

    def segment(case):
        CALLS.append(case.name)
        assert case.label is None
        if case.name == "phantom_003" and "fail" in CALLS:
            raise ValueError("a scan that fails")
        most = np.zeros((fold.classes, *case.image.shape[1:]), np.float32)
        bright = case.image[0] > case.image[0].mean()
        most[0], most[1 + counts[1:].argmax()] = ~bright, bright
        return most

    return segment


def crash(fold):
    raise RuntimeError("no memory left for thoughts")


@pytest.fixture
def fakes(monkeypatch):
    """Baselines `bright`, `crash` and `absent` (whose package is missing), in a table `fake`."""
    CALLS.clear()
    module = ModuleType("fake_baselines")
    module.BRIGHT = Baseline("bright", "the largest structure where it is bright", "a test", fit)
    module.CRASH = Baseline("crash", "fails", "a test", crash)
    module.ABSENT = Baseline("absent", "needs what is not there", "a test", fit, package="no_such_package")
    module.FLAT = Baseline("flat", "for images only", "a test", fit, axes=(2,))
    monkeypatch.setitem(sys.modules, "fake_baselines", module)
    for name in ("bright", "crash", "absent", "flat"):
        monkeypatch.setitem(registry.PLACES, name, f"fake_baselines:{name.upper()}")
    rows = tuple(Row(name, f"row {name}", baseline=name) for name in ("crash", "absent", "flat", "bright"))
    monkeypatch.setitem(tables.TABLES, "fake", Table("fake", "fakes", "", "bright", rows))


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    from mre_lowshot.data.synthetic import write_dataset

    root = tmp_path_factory.mktemp("raw")
    write_dataset(root, subjects=3, shape=(12, 20, 24), spacing=(14.0, 14.0, 14.0))
    return root


@pytest.fixture
def space(raw, tmp_path):
    made = Space(tmp_path / "space")
    shutil.copytree(raw, made.root / "raw")
    return made


def run(space, *arguments):
    dataset = () if "-d" in arguments else ("-d", "900")
    return command("experiment", "fake", *dataset, "--workspace", space.root, "-device", "cpu", *arguments)


def test_a_baseline_is_run_scored_and_skipped_when_done(space, fakes, capsys):
    assert run(space, "--folds", 0) == 1
    out, err = capsys.readouterr()
    assert "row crash (row crash), fold 0: unexpected error (RuntimeError: no memory left" in out + err
    assert (
        "row absent is left out: baseline absent: the package no_such_package is not installed; run: pip" in out + err
    )
    assert "does not work on volumes" in out + err
    fold = space.model("baseline_bright") / "fold_0"
    summary = json.loads((fold / "validation/summary.json").read_text())
    assert [case["case"] for case in summary["metric_per_case"]] == ["phantom_002", "phantom_003"]
    assert summary["baseline"] == "bright"
    assert {"Dice", "HD95", "NSD"} <= set(summary["foreground_mean"])
    assert (fold / "validation/phantom_002.nii.gz").is_file()
    assert json.loads((fold / "plans.json").read_text())["fold"]["train"] == ["phantom_001"]
    resources = Resources.load(fold)
    assert resources.runs == 1
    assert set(resources.scan_seconds) == {"phantom_002", "phantom_003"}
    assert 0.05 < resources.scan_gb < 100
    assert CALLS == ["fit", "phantom_002", "phantom_003"]
    assert run(space, "--folds", 0, "--rows", "bright") == 0
    assert "already complete" in capsys.readouterr().out
    assert len(CALLS) == 3
    assert run(space, "--folds", 0, "--rows", "bright", "--seeds", 0, 3) == 0
    assert CALLS[3:] == ["fit", "phantom_002", "phantom_003"]
    folder = space.root / "results/Dataset900_Synthetic/experiments/fake__1shot_small_seeds0-3"
    rows = {row["name"]: row for row in json.loads((folder / "results.json").read_text())["rows"]}
    assert [(found["seed"], found["fold"]) for found in rows["bright"]["runs"]] == [(0, 0), (3, 0)]


def test_an_interrupted_baseline_segments_the_other_scans_only(space, fakes, capsys):
    CALLS.append("fail")
    assert run(space, "--folds", 0, "--rows", "bright") == 1
    assert "a scan that fails" in capsys.readouterr().out
    fold = space.model("baseline_bright") / "fold_0"
    before = json.loads((fold / "validation/summary.json").read_text())
    assert list(before["failed_cases"]) == ["phantom_003"]
    (fold / "validation/summary.json").unlink()
    CALLS.clear()
    assert run(space, "--folds", 0, "--rows", "bright") == 0
    assert CALLS == ["fit", "phantom_003"]
    after = json.loads((fold / "validation/summary.json").read_text())
    assert after["metric_per_case"][0] == before["metric_per_case"][0]
    (space.model("baseline_bright") / "fold_0/validation/summary.json").unlink()
    CALLS.clear()
    assert run(space, "--folds", 0, "--rows", "bright") == 0
    assert CALLS == []  # nothing left to segment
    listed = json.loads((fold / "baseline/segmented.json").read_text())
    assert set(listed["phantom_002"]["inputs"]) == {"phantom_001", "phantom_002"}
    listed["phantom_002"]["inputs"]["phantom_001"] = "another training scan"
    (fold / "baseline/segmented.json").write_text(json.dumps(listed))
    (fold / "validation/summary.json").unlink()
    CALLS.clear()
    assert run(space, "--folds", 0, "--rows", "bright") == 0
    assert CALLS == ["fit", "phantom_002"]


def test_panels_formats_and_the_report(space, fakes, capsys, monkeypatch):
    monkeypatch.setitem(tables.TABLES, "fake", replace(tables.TABLES["fake"], layout="rows", datasets=("BTCV",)))
    assert run(space, "--quick", "--rows", "bright", "--panels", "--format", "markdown", "csv") == 0
    out = capsys.readouterr().out
    assert "| row bright |" in out
    assert "QUICK VERSION" in out
    folder = space.root / "results/Dataset900_Synthetic/experiments/fake__1shot_small_quick"
    assert (folder / "panels.png").read_bytes().startswith(b"\x89PNG")
    for name in ("table.txt", "table.md", "table.tex", "table.csv"):
        assert "QUICK VERSION" in (folder / name).read_text(), name
    assert "150" in (space.model("baseline_bright_quick") / "fold_0").joinpath("plans.json").read_text()
    assert command("report", folder, "--max_size", "0") in (0, 1)
    page = (folder / "report.html").read_text()
    assert "quick version (--quick)" in page
    assert '<th colspan="2">Dataset900_Synthetic</th>' in page
    assert 'alt="panels"' in page


def test_damaged_layouts_are_left_out_of_the_report():
    from mre_lowshot.report.experiment_content import _paper_table

    assert _paper_table({"head": ["a", "b"], "lines": [{"cells": ["1", "2", "3"]}]}) is None
    assert _paper_table([1]) is None
    found = _paper_table(
        {"head": ["a", "b"], "lines": [{"cells": ["1", 2], "best": ["x", 1]}], "groups": [{"columns": 9}]}
    )
    assert (found.lines[0].best, found.groups) == ((1,), ())


def test_the_registry_names_what_it_does_not_know(fakes):
    with pytest.raises(UserError, match="did you mean 'bright'"):
        registry.baseline("brigth")
    with pytest.raises(UserError, match="pip install no_such_package"):
        registry.baseline("absent")
