"""The runner of baselines: a fake one as a row of a table, through the command and on the toy dataset."""

import json
import shutil
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from conftest import Space, command

from mre_lowshot.data.volume import read_labels, write_volume
from mre_lowshot.errors import UserError
from mre_lowshot.experiments import tables
from mre_lowshot.experiments.baselines import registry
from mre_lowshot.experiments.baselines.base import Baseline
from mre_lowshot.experiments.resources import Resources
from mre_lowshot.experiments.results import collect
from mre_lowshot.experiments.runner import Setting, summary_path_of
from mre_lowshot.experiments.tables import Row, Table
from mre_lowshot.workflows import experiment_progress
from mre_lowshot.workflows.experiment_progress import RunTimes
from mre_lowshot.workflows.experiment_tasks import Task
from mre_lowshot.workflows.reporting import Reporter

pytestmark = pytest.mark.usefixtures("one_thread_only", "no_settings")
CALLS: list[str] = []


def fit(fold):
    """The training scan's label map for every scan (they have one size), where the image is not the darkest."""
    CALLS.append("fit")
    assert all(case.label is None for case in fold.unlabelled)
    assert [case.name for case in fold.unlabelled[:1]] == [fold.unlabelled.names[0]]
    fold.ask()
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


def test_a_baseline_is_run_scored_and_skipped_when_done(space, fakes, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(Reporter, "ask", lambda self: asked.append(self))  # that of the command
    assert run(space, "--folds", 0) == 1
    assert len(asked) == 1
    out, err = capsys.readouterr()
    assert "row crash (row crash), fold 0: unexpected error (RuntimeError: no memory left" in out + err
    assert "row absent is left out: baseline absent: the package no_such_package is not installed; pip" in out + err
    assert "row flat is left out: baseline flat: works on 2D images only, Dataset900_Synthetic holds volumes" in err
    assert not space.model("baseline_flat").exists()  # known before anything is preprocessed
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
    assert set(listed["phantom_002"]["inputs"]) == {"phantom_001", "phantom_002", "phantom_003"}  # one unlabelled
    listed["phantom_002"]["inputs"]["phantom_001"] = "another training scan"
    (fold / "baseline/segmented.json").write_text(json.dumps(listed))
    (fold / "validation/summary.json").unlink()
    CALLS.clear()
    assert run(space, "--folds", 0, "--rows", "bright") == 0
    assert CALLS == ["fit", "phantom_002"]


def test_the_summary_names_what_a_baseline_learned_from_in_a_resumed_run_too(space, fakes, monkeypatch, capsys):
    """It reads one unlabelled scan, a test scan; the other test scan it only segments."""

    def reads_one(fold):
        assert fold.unlabelled[0].name == "phantom_002"
        return lambda case: np.eye(fold.classes, dtype=np.float32)[np.zeros(case.image.shape[1:], int)].transpose(
            3, 0, 1, 2
        )

    sys.modules["fake_baselines"].ONE = Baseline("one", "reads one", "a test", reads_one)
    monkeypatch.setitem(registry.PLACES, "one", "fake_baselines:ONE")
    rows = (Row("one", "SAS-aug-5", baseline="one"),)
    monkeypatch.setitem(tables.TABLES, "fake", replace(tables.TABLES["fake"], rows=rows, reference="one"))
    path = space.model("baseline_one") / "fold_0/validation/summary.json"
    for _ in range(2):
        assert run(space, "--folds", 0) == 0
        assert json.loads(path.read_text())["learned_from"] == ["phantom_001", "phantom_002"]
        (found,) = collect(rows, [Setting()], space.root / "results", "Dataset900_Synthetic", None)
        assert found.runs[(0, 0)].unlabelled == 1
        assert "SAS-aug-5 was trained on 1 scan here, not 5." in capsys.readouterr().out
        path.unlink()


def test_a_fold_that_was_scored_on_other_input_is_not_done(space, fakes, capsys, monkeypatch):
    rows = (Row("bright", "row bright", baseline="bright", level="1shot"),)
    monkeypatch.setitem(tables.TABLES, "fake", replace(tables.TABLES["fake"], rows=rows))
    assert run(space, "--folds", 0, 5) == 0
    assert "row bright: level 1shot has folds 0 to 2; left out: --folds 5" in capsys.readouterr().out
    fold = space.model("baseline_bright") / "fold_0"
    summary = json.loads((fold / "validation/summary.json").read_text())
    assert set(summary["inputs"]) == {f"phantom_{n:03}" for n in (1, 2, 3)}
    path = space.raw / "labelsTr/phantom_003.nii.gz"
    label = read_labels(path)
    path.unlink()
    label.array[0, 0, 0] = 1
    write_volume(path, label.array, label.geometry)
    assert run(space, "--folds", 0) == 2
    words = f"{fold / 'validation/summary.json'}: scan, label map or crop box of phantom_003 changed since"
    assert words in (error := capsys.readouterr().err)
    assert f"delete {fold} to run it again" in error
    assert run(space, "--print") == 0
    out, err = capsys.readouterr()
    assert "row bright, fold 0 is left out of the table" in err
    assert "no run yet: bright" in out
    shutil.rmtree(fold)
    assert run(space, "--folds", 0) == 0
    assert run(space, "--print") == 0
    assert "left out" not in capsys.readouterr().err
    del summary["inputs"]  # an older version
    (fold / "validation/summary.json").write_text(json.dumps(summary))
    assert run(space, "--folds", 0) == 0
    assert "already complete" in capsys.readouterr().out


def test_complete_runs_do_not_count_in_the_time_left(tmp_path, monkeypatch):
    def task(row, number):
        plan = SimpleNamespace(dataset_name="D", plans_name=row)
        return Task(Row(row, row), SimpleNamespace(results=tmp_path, plan=plan, level="1shot", fold=number), None)

    def complete(task):
        path = summary_path_of(task.job)
        path.parent.mkdir(parents=True)
        path.write_text("{}")

    tasks = [task(row, number) for row in ("short", "long", "other") for number in range(3)]
    for number in (0, 4, 8):
        complete(tasks[number])
    clock, times = [0.0], RunTimes(tasks)
    monkeypatch.setattr(experiment_progress.time, "monotonic", lambda: clock[0])
    lines = []
    for number, seconds in enumerate((50, 10, 20, 900, 50, 1100)):
        with times.measured(number):
            clock[0] += seconds
            if number not in (0, 4):
                complete(tasks[number])
        lines.append(times.line(number))
    assert lines[0] == lines[4] == ""  # complete before
    assert lines[1] == "4 of 9 runs done; time left about 50 s"  # five runs as long as the only one
    assert lines[2] == "5 of 9 runs done; time left about 60 s"
    assert lines[3] == "6 of 9 runs done; time left about 25 min"  # one of 900 s, two of the mean of 10, 20 and 900 s
    assert lines[5] == "7 of 9 runs done; time left about 17 min"


def test_panels_formats_and_the_report(space, fakes, capsys, monkeypatch):
    monkeypatch.setitem(tables.TABLES, "fake", replace(tables.TABLES["fake"], layout="rows", datasets=("BTCV",)))
    assert run(space, "--quick", "--rows", "bright", "--panels", "--format", "markdown", "csv") == 0
    out, err = capsys.readouterr()
    assert "| row bright |" in out
    assert "QUICK VERSION" in out
    folder = space.root / "results/Dataset900_Synthetic/experiments/fake__1shot_small_quick"
    assert (folder / "panels.png").read_bytes().startswith(b"\x89PNG")
    printed = out + err
    for name in ("table.md", "table.csv"):
        printed = printed.replace((folder / name).read_text(), "")
    lines = [line for line in printed.splitlines() if line]
    assert len(lines) > 4
    assert all(line.startswith("[quick] ") for line in lines), lines
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
