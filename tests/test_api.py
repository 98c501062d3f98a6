"""The package from Python: `plan`, `train`, `predict`, `evaluate`, their results and files; a light import; logging."""

from __future__ import annotations

import doctest
import io
import json
import logging
import shutil
import subprocess
import sys
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SETTINGS, Space, command, edit

import mre_lowshot
from mre_lowshot.config import Plan
from mre_lowshot.errors import UserError
from mre_lowshot.inference import checkpoint
from mre_lowshot.inference.quality import Quality
from mre_lowshot.workflows.evaluate import EvaluationResult
from mre_lowshot.workflows.plan import PlanResult
from mre_lowshot.workflows.prediction_run import PredictResult
from mre_lowshot.workflows.reporting import Reporter
from mre_lowshot.workflows.train import FoldResult, TrainResult

pytestmark = pytest.mark.usefixtures("one_thread_only", "no_settings")
NAMES = ["phantom_001", "phantom_002", "phantom_003"]
PUBLIC = [
    "Dataset",
    "Predictor",
    "Volume",
    "add_case",
    "evaluate",
    "export_model",
    "import_dataset",
    "install_model",
    "list_scans",
    "plan",
    "predict",
    "suggest",
    "train",
    "view",
    "write_report",
]
CHANGES = dict(setting.split("=", 1) for setting in SETTINGS)
VERSION_1 = "format_version is 1, this mre_lowshot reads 2; plan the dataset again and train again"


@dataclass(frozen=True)
class Run:
    """A workspace like that of `trained`, made from Python, with what each function returned and printed."""

    space: Space
    planned: PlanResult
    trained: TrainResult
    predicted: PredictResult
    evaluated: EvaluationResult
    printed: str


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory, one_thread_only) -> Run:
    space = Space(tmp_path_factory.mktemp("python"))
    shutil.copytree(trained.raw, space.raw)
    options = {"workspace": space.root, "device": "cpu"}
    with redirect_stdout(io.StringIO()) as printed:
        planned = mre_lowshot.plan("900", plans_name="Tiny", changes=CHANGES, **options)
        trained = mre_lowshot.train("Synthetic", plans_name="Tiny", **options)
        predicted = mre_lowshot.predict(space.raw / "imagesTr", space.root / "out", **options)
        evaluated = mre_lowshot.evaluate(
            space.raw / "labelsTr", space.root / "out", dataset_json=space.raw / "dataset.json"
        )
    return Run(space, planned, trained, predicted, evaluated, printed.getvalue())


def files(folder: Path) -> set[str]:
    """The relative paths of the files in ``folder``, without the date in the name of a training log."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name.partition("training_log_")[0] + "log" if "training_log_" in name else name for name in found}


def test_plan_returns_the_plan_and_writes_the_commands_files(run, trained):
    result = run.planned
    assert isinstance(result, PlanResult)
    assert isinstance(result.plan, Plan)
    assert isinstance(result.dataset, mre_lowshot.Dataset)
    assert (result.path, result.folder) == (run.space.prepared / "Tiny.json", run.space.prepared)
    assert [case.name for case in result.dataset.labelled] == NAMES
    assert result.plan.network.widths == (4, 8, 8)
    assert result.plan.recipe.optimizer.iterations == 3
    assert result.notes == ()
    assert files(run.space.prepared) == files(trained.prepared)
    assert result.path.read_text() == (trained.prepared / "Tiny.json").read_text()


def test_train_returns_the_folds_and_writes_the_commands_files(run, trained):
    result = run.trained
    assert isinstance(result, TrainResult)
    assert result.folder == run.space.model()
    (fold,) = result.folds
    assert isinstance(fold, FoldResult)
    assert (fold.fold, fold.folder, fold.iterations) == (0, run.space.model() / "fold_0", 3)
    assert (fold.plan.fold.train, fold.plan.fold.test) == (tuple(NAMES[:1]), tuple(NAMES[1:]))
    assert [case["case"] for case in fold.summary["metric_per_case"]] == NAMES[1:]
    assert result.failed == {}
    assert files(run.space.model()) == files(trained.model())
    ours, theirs = (
        torch.load(s.model() / "fold_0/checkpoint_final.pth", weights_only=True)["weights"]
        for s in (run.space, trained)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_predict_returns_files_and_qualities_and_writes_the_commands_files(run, tmp_path):
    result, out = run.predicted, run.space.root / "out"
    assert isinstance(result, PredictResult)
    assert result.folder == out
    assert dict(result.files) == {name: out / f"{name}.nii.gz" for name in NAMES}
    assert sorted(result.qualities) == NAMES
    assert all(isinstance(quality, Quality) for quality in result.qualities.values())
    assert result.failed == ()
    assert files(out) == {
        *(f"{name}.nii.gz" for name in NAMES),
        "dseg.tsv",
        "label_descriptions.txt",
        "quality.csv",
        "run.json",
        "summary.json",
        "summary.csv",
    }
    assert run.space.predict(run.space.raw / "imagesTr/phantom_003_0000.nii.gz", tmp_path) == 0
    texts = {"dseg.tsv", "label_descriptions.txt"}
    assert files(tmp_path) == {"phantom_003.nii.gz", "quality.csv", "run.json", *texts}
    head, row = (tmp_path / "quality.csv").read_text().splitlines()
    lines = (out / "quality.csv").read_text().splitlines()
    assert lines[0] == head
    assert row in lines[1:]
    ours, theirs = (mre_lowshot.Volume.read(folder / "phantom_003.nii.gz") for folder in (out, tmp_path))
    assert np.array_equal(ours.array, theirs.array)
    assert not ours.geometry.differences(theirs.geometry)


def test_a_predictor_gives_the_label_map_that_predict_writes(run):
    predictor = mre_lowshot.Predictor.load(run.trained.folder, device="cpu")
    prediction = predictor.predict(run.space.raw / "imagesTr/phantom_002_0000.nii.gz")
    assert prediction.name == "phantom_002"
    assert np.array_equal(prediction.labels.array, mre_lowshot.Volume.read(run.predicted.files["phantom_002"]).array[0])
    assert prediction.quality == run.predicted.qualities["phantom_002"]


def test_evaluate_returns_the_summary_and_writes_the_commands_files(run, tmp_path):
    result, out = run.evaluated, run.space.root / "out"
    assert isinstance(result, EvaluationResult)
    assert result.files == (out / "summary.json", out / "summary.csv")
    assert result.complete
    assert result.dice == result.summary["foreground_mean"]["Dice"]
    assert 0 < result.dice < 1
    reference, described = run.space.raw / "labelsTr", run.space.raw / "dataset.json"
    assert command("evaluate", reference, out, "-djfile", described, "-o", tmp_path) == 0
    assert files(tmp_path) == {"summary.json", "summary.csv"}
    for path in result.files:
        assert path.read_text() == (tmp_path / path.name).read_text()
    assert json.loads(result.files[0].read_text())["foreground_mean"]["Dice"] == pytest.approx(result.dice)


def test_an_evaluation_with_a_missing_prediction_is_not_complete(run, tmp_path):
    (tmp_path / "predictions").mkdir()
    for name in NAMES[1:]:
        (tmp_path / f"predictions/{name}.nii.gz").write_bytes(run.predicted.files[name].read_bytes())
    result = mre_lowshot.evaluate(run.space.raw / "labelsTr", tmp_path / "predictions")
    assert not result.complete
    assert result.summary["missing_predictions"] == NAMES[:1]


def test_a_scan_that_fails_is_in_the_result(run, tmp_path):
    (tmp_path / "broken.nii.gz").write_bytes(b"none")
    options = {"workspace": run.space.root, "device": "cpu"}
    result = mre_lowshot.predict(tmp_path / "broken.nii.gz", tmp_path / "out", **options)
    assert (dict(result.files), dict(result.qualities)) == ({}, {})
    (problem,) = result.failed
    assert problem.startswith("case broken: ")


def test_wrong_use_raises_a_user_error(run, tmp_path):
    options = {"workspace": run.space.root, "device": "cpu"}
    for attempt, words in (
        (lambda: mre_lowshot.plan("Nothing", **options), "dataset 'Nothing' is not in"),
        (
            lambda: mre_lowshot.plan("900", changes=CHANGES, **options),
            "--set makes another plan; give it its own name with -p NAME",
        ),
        (lambda: mre_lowshot.train("Synthetic", plans_name="Absent", **options), "Absent.json is missing"),
        (
            lambda: mre_lowshot.train("Synthetic", plans_name="Tiny", mode="contine", **options),
            "mode 'contine': did you mean 'continue'?",
        ),
        (
            lambda: mre_lowshot.evaluate(tmp_path, tmp_path, profile="medpi"),
            "--profile 'medpi': did you mean 'medpy'?",
        ),
        (lambda: mre_lowshot.train("Synthetic", plans_name="Tiny", **options), "was trained already, or begun"),
        (lambda: mre_lowshot.predict(tmp_path, tmp_path / "out", level="3shot", **options), "no trained model in"),
        (lambda: mre_lowshot.evaluate(tmp_path / "nowhere", tmp_path), "nowhere: is not a folder"),
    ):
        with pytest.raises(UserError, match=words):
            attempt()


def test_changes_may_be_numbers_lists_and_truth_values(run, tmp_path):
    shutil.copytree(run.space.root / "raw", tmp_path / "raw")
    changes = {"network.widths": [4, 8, 8], "recipe.optimizer.iterations": 7, "recipe.refinement.min_hu": False}
    options = {"workspace": tmp_path, "device": "cpu", "preprocess": False}
    plan = mre_lowshot.plan("900", plans_name="Typed", changes=changes, **options).plan
    assert plan.network.widths == (4, 8, 8)
    assert plan.recipe.optimizer.iterations == 7
    assert plan.recipe.refinement.min_hu is False


def test_a_change_that_other_decisions_follow_from_is_made_before_them(run, tmp_path):
    shutil.copytree(run.space.root / "raw", tmp_path / "raw")
    options = {"workspace": tmp_path, "device": "cpu", "preprocess": False}
    plan = mre_lowshot.plan("900", plans_name="Unet", changes={"recipe.architecture": "unet"}, **options).plan
    wanted = mre_lowshot.plan("900", plans_name="Baseline", recipe="unet_default", **options).plan
    assert plan.network == wanted.network
    assert plan.recipe.atlas.registration == "none"


def test_cases_that_could_not_be_scored_are_named_by_fold(run):
    summary, plan = {"failed_cases": {"a": "its label map is damaged"}}, run.planned.plan
    results = tuple(FoldResult(fold, Path("model"), plan, 3, summary if fold else None) for fold in (0, 1))
    assert TrainResult(Path("model"), results).failed == {"fold 1, a": "its label map is damaged"}


def test_nothing_is_printed_and_messages_go_to_the_logger(run, tmp_path, caplog, capsys):
    assert run.printed == ""
    with caplog.at_level(logging.INFO, logger="mre_lowshot"):
        mre_lowshot.evaluate(run.space.raw / "labelsTr", run.space.root / "out", output=tmp_path)
        Reporter().warning("a line to notice")
    assert capsys.readouterr().out == ""
    assert {record.name for record in caplog.records} == {"mre_lowshot"}
    levels = {record.getMessage(): record.levelno for record in caplog.records}
    assert levels["a line to notice"] == logging.WARNING
    assert {level for line, level in levels.items() if line != "a line to notice"} == {logging.INFO}
    assert any(line.startswith("labels from ") for line in levels)


def test_a_reporter_of_ones_own_receives_progress_and_messages(run, tmp_path):
    class Recorder(Reporter):
        def __init__(self):
            self.lines, self.tasks = [], []

        def info(self, line):
            self.lines.append(line)

        def iterate(self, items, *, description, unit):
            self.tasks.append((description, unit, len(items)))
            return items

    recorder = Recorder()
    mre_lowshot.plan(
        run.space.raw, plans_name="Other", changes=CHANGES, workspace=tmp_path, device="cpu", reporter=recorder
    )
    assert recorder.tasks == [("verify", "scan", 3), ("preprocess", "scan", 3)]
    assert any("3 labelled scans" in line for line in recorder.lines)


def test_the_names_of_the_package():
    assert set(PUBLIC) <= set(dir(mre_lowshot))
    assert [name for name in dir(mre_lowshot) if not name.startswith("_")] == PUBLIC
    assert sorted(mre_lowshot.__all__) == PUBLIC
    for name in PUBLIC:
        assert callable(getattr(mre_lowshot, name))
        assert getattr(mre_lowshot, name).__doc__


def test_an_unknown_attribute_is_refused():
    with pytest.raises(AttributeError, match="'mre_lowshot' has no attribute 'segment'"):
        mre_lowshot.segment  # noqa: B018


def python(code: str) -> tuple[float, str]:
    """Seconds and output of a new interpreter."""
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return time.perf_counter() - begun, done.stdout


def test_importing_the_package_is_fast_and_loads_nothing_heavy():
    heavy = {"torch", "numpy", "SimpleITK", "scipy", "skimage", "matplotlib", "tqdm"}
    code = f"import sys, mre_lowshot; print(sorted({heavy} & set(sys.modules)))"
    ours, bare = [], []
    while len(ours) < 10 and (not ours or min(ours) - min(bare) >= 0.1):
        seconds, output = python(code)
        assert output == "[]\n"
        ours.append(seconds)
        bare.append(python("import sys; print(sys.version)")[0])
    assert min(ours) - min(bare) < 0.1


@pytest.mark.parametrize("module", ["mre_lowshot", "mre_lowshot.data.volume"])
def test_the_examples_in_the_docstrings_run(module):
    result = doctest.testmod(import_module(module))
    assert result.attempted > 0
    assert result.failed == 0


def test_a_plan_of_the_old_format_is_refused_with_the_advice_to_plan_again(space):
    """Before its fields are looked at: an old plan has other names."""
    path = space.prepared / "Tiny.json"
    plan = json.loads(path.read_text())
    plan["seen"] = plan.pop("training_ranges")
    path.write_text(json.dumps({**plan, "format_version": 1}))
    options = {"plans_name": "Tiny", "workspace": space.root, "device": "cpu"}
    for attempt in (
        lambda: mre_lowshot.train("Synthetic", fold=1, **options),
        lambda: mre_lowshot.plan("900", keep_plan=True, **options),
        lambda: mre_lowshot.plan("900", changes=CHANGES, **options),
    ):
        with pytest.raises(UserError) as refused:
            attempt()
        assert str(refused.value) == f"{path}: {VERSION_1}"
    mre_lowshot.plan("900", changes=CHANGES, overwrite=True, preprocess=False, **options)
    assert json.loads(path.read_text())["format_version"] == 2


def test_results_of_the_old_format_are_refused_with_the_advice_to_plan_again(space):
    edit(space.model() / "plans.json", format_version=1)
    with pytest.raises(UserError, match=VERSION_1):
        mre_lowshot.train("Synthetic", fold=1, plans_name="Tiny", workspace=space.root, device="cpu")
    path = space.model() / "fold_0/checkpoint_final.pth"
    content = torch.load(path, weights_only=True)
    torch.save({**content, "format_version": 1}, path)
    with pytest.raises(UserError) as refused:
        mre_lowshot.predict(space.raw / "imagesTr", space.root / "out", model=path, device="cpu")
    assert str(refused.value) == f"{path}: {VERSION_1}"
    torch.save({**content, "plan": {**content["plan"], "format_version": 1}}, path)
    with pytest.raises(UserError, match=VERSION_1):
        checkpoint.load(path, torch.device("cpu"))
