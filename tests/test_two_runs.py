"""Two runs on one folder, options refused before anything is written, inputs that changed, and signals."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import Space, command, edit, iterations

from mre_lowshot import processes
from mre_lowshot.config.plan_files import load_plan
from mre_lowshot.data.volume import read_labels, write_volume
from mre_lowshot.errors import UserError
from mre_lowshot.inference import checkpoint
from mre_lowshot.inference.predictor import Predictor
from mre_lowshot.trainers.distributed import Processes
from mre_lowshot.trainers.fold import FoldJob
from mre_lowshot.trainers.trainer import MRETrainer
from mre_lowshot.workflows import plan as plan_workflow

pytestmark = pytest.mark.usefixtures("one_thread_only", "no_settings")


def start(space: Space, name: str, *arguments: object) -> subprocess.Popen:
    """A command in another process."""
    code = f"import sys\nfrom mre_lowshot.cli.{name} import main\nraise SystemExit(main(sys.argv[1:]))"
    given = [sys.executable, "-c", code, *map(str, arguments), "--workspace", str(space.root), "-device", "cpu"]
    return subprocess.Popen(given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def at_iteration(monkeypatch, number, action):
    """Call ``action`` within a training."""
    step = MRETrainer.step

    def with_action(self, *batch):
        step(self, *batch)
        if self.iteration == number:
            action()

    monkeypatch.setattr(MRETrainer, "step", with_action)


def content(folder):
    """Every file with its content, without locks."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".mre-lock")
    }


@pytest.mark.slow
def test_what_a_running_training_uses_is_not_changed_by_other_runs(space, monkeypatch):
    answers = {}

    def others():
        model, prepared = content(space.model() / "fold_1"), content(space.prepared)
        runs = {
            "plan": start(space, "plan", "-d", "900", "-p", "Tiny", "--overwrite"),
            "same fold": start(space, "train", "900", "1shot", "1", "-p", "Tiny", "--overwrite"),
            "validation": start(space, "train", "900", "1shot", "1", "-p", "Tiny", "--val"),
            "all folds": start(space, "train", "900", "1shot", "all", "-p", "Tiny", "--overwrite"),
        }
        for name, run in runs.items():
            answers[name] = (run.communicate(timeout=120)[1], run.returncode)
        assert content(space.model() / "fold_1") == model
        assert content(space.prepared) == prepared
        runs = {
            "other fold": start(space, "train", "900", "1shot", "2", "-p", "Tiny", "--no_val"),
            "other plan": start(space, "plan", "-d", "900", "-p", "Other"),
        }
        for name, run in runs.items():
            answers[name] = (run.communicate(timeout=120)[1], run.returncode)

    at_iteration(monkeypatch, 2, others)
    assert space.train("--no_val", fold="1") == 0
    owner = f"(process {os.getpid()} on "
    for name in ("plan", "same fold", "validation", "all folds"):
        error, code = answers[name]
        assert code == 2, (name, error)
        assert error.startswith("error: "), (name, error)
        assert "in use by another run, which train" in error, (name, error)
        assert owner in error, (name, error)
        assert error.count("\n") == 1, (name, error)
    for name in ("other fold", "other plan"):
        assert answers[name][1] == 0, (name, answers[name])
    assert iterations(space.model() / "fold_1", checkpoint.FINAL) == [1, 2, 3]
    assert iterations(space.model() / "fold_2", checkpoint.FINAL) == [1, 2, 3]
    assert not list(space.root.rglob(".mre-*"))


def test_a_second_planning_of_one_plan_and_a_training_of_it_are_refused(space, monkeypatch):
    answers = []

    def prepared(*arguments):
        runs = [
            start(space, "plan", "-d", "900", "-p", "Tiny"),
            start(space, "train", "900", "1shot", "1", "-p", "Tiny"),
        ]
        answers.extend((run.communicate(timeout=120)[1], run.returncode) for run in runs)
        return []

    monkeypatch.setattr(plan_workflow, "prepare_dataset", prepared)
    assert space.plan("--overwrite") == 0
    assert len(answers) == 2
    for error, code in answers:
        assert code == 2
        assert "in use by another run, which plans and preprocesses Tiny (process" in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seed", "-1"], "--seed -1: must be at least 0 (a whole number, at most 4294967295)"),
        (["--seed", str(2**32)], "--seed 4294967296: must be"),
        (["--seed", str(2**63)], "--seed a whole number beyond 64 bits: must be"),
        (["--iterations", str(10**30)], "--iterations a whole number beyond 64 bits: must be at least 1"),
        (["--iterations", "9" * 60], "--iterations a whole number beyond 64 bits: must be at least 1"),
        (["--workers", "1000000"], "--workers 1000000: must be at least 0 (a whole number, at most"),
        (["--workers", "-1"], "--workers -1: must be at least 0"),
        (["-device", "cuda:99"], "-device"),
        (["--cohort", "two"], "cohorts.json: is missing"),
    ],
)
def test_options_are_refused_before_anything_is_written(space, arguments, words, capsys):
    shutil.rmtree(space.root / "results")
    (space.prepared / "splits_1shot.json").unlink()
    before = content(space.root)
    assert space.train(*arguments, level="2shot") == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1
    assert content(space.root) == before
    assert not (space.root / "results").exists()


def test_a_fold_that_does_not_exist_writes_no_splits(space, capsys):
    assert space.train(level="2shot", fold="99") == 2
    assert "fold 99: level 2shot has folds 0 to 2 here" in capsys.readouterr().err
    assert not (space.prepared / "splits_2shot.json").exists()


@pytest.mark.parametrize(
    ("level", "fold"), [("9" * 5000 + "shot", "0"), ("1shot", "1" * 5000), ("1shot", "fold" + "9" * 30)]
)
def test_numbers_of_thousands_of_digits_are_refused(space, level, fold, capsys):
    assert space.train(level=level, fold=fold) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_run_that_failed_before_its_first_checkpoint_does_not_refuse_the_right_one(space, monkeypatch, capsys):
    shutil.rmtree(space.root / "results")
    with monkeypatch.context() as patch:
        patch.setattr(MRETrainer, "step", lambda *_: (_ for _ in ()).throw(UserError("stopped")))
        assert space.train("--iterations", 7) == 2
    assert "stopped" in capsys.readouterr().err
    assert space.train("--no_val", "--seed", 4) == 0
    assert iterations(space.model() / "fold_0", checkpoint.FINAL) == [1, 2, 3]
    assert space.train("--no_val", "--iterations", 7, fold="1") == 2  # but this one has results
    assert "holds results of another plan (recipe.optimizer.iterations: existing 3, new 7)" in capsys.readouterr().err
    (space.model() / "plans.json").unlink()
    assert space.train("--no_val", "--iterations", 7, fold="1") == 2  # also where only the folds hold the plan
    assert "fold_0: holds results of another plan" in capsys.readouterr().err


def relabel(path):
    volume = read_labels(path)
    write_volume(path, np.where(volume.array == 1, 2, volume.array), volume.geometry)


def test_a_label_corrected_after_planning_is_reported_and_a_begun_training_does_not_go_on_with_it(space, capsys):
    path = space.raw / "labelsTr/phantom_001.nii.gz"
    relabel(path)
    for mode in ([], ["--c"], ["--val"], ["--overwrite"]):
        assert space.train(*mode, fold="0") == 2
        message = capsys.readouterr().err
        assert "changed since the cases of plan Tiny were preprocessed" in message
        assert "labelsTr/phantom_001.nii.gz; run mre_plan_and_preprocess" in message
    assert space.plan() == 0
    assert space.train("--c") == 2
    assert "scan or label map of phantom_001 changed since this training began" in capsys.readouterr().err
    assert space.train("--overwrite", "--no_val") == 0
    relabel(space.raw / "labelsTr/phantom_002.nii.gz")  # a test scan: the training stays as it is
    assert space.plan() == 0
    assert space.train("--val") == 0


def test_a_plan_edited_in_another_field_than_preprocessing_is_refused(space, capsys):
    edit(space.prepared / "Tiny.json", channel_names=["MR"])
    assert space.train(fold="1") == 2
    assert "(channel_names: the cases' ['CT'], the plan's ['MR'])" in capsys.readouterr().err
    assert not (space.model() / "fold_1").exists()


@pytest.mark.parametrize("error", [RuntimeError("broken"), MemoryError(), OSError(28, "No space left"), KeyError("x")])
def test_whatever_one_scan_fails_with_the_others_are_scored(space, monkeypatch, capsys, error):
    register = Predictor.register

    def failing(self, case, *arguments, **named):
        if case.name == "phantom_002":
            raise error
        return register(self, case, *arguments, **named)

    monkeypatch.setattr(Predictor, "register", failing)
    assert space.train("--val") == 1
    summary = checkpoint_summary(space)
    assert [row["case"] for row in summary["metric_per_case"]] == ["phantom_003"]
    assert list(summary["failed_cases"]) == ["phantom_002"]
    assert summary["failed_cases"]["phantom_002"].startswith("case phantom_002: ")


def checkpoint_summary(space):
    return json.loads((space.model() / "fold_0/validation/summary.json").read_text())


def test_a_damaged_case_or_reference_fails_alone(space):
    path = space.prepared / "Tiny/phantom_002.npz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert space.train("--val") == 1
    assert "phantom_002.npz is damaged" in checkpoint_summary(space)["failed_cases"]["phantom_002"]
    assert space.plan() == 0
    path = space.prepared / "gt_segmentations/phantom_003.nii.gz"
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
    assert space.train("--val") == 1
    reason = checkpoint_summary(space)["failed_cases"]["phantom_003"]
    assert "phantom_003.nii.gz is missing or changed since preprocessing; run mre_plan_and_preprocess" in reason


def test_ctrl_c_is_no_failure_of_a_scan(space, monkeypatch):
    monkeypatch.setattr(Predictor, "register", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    assert space.train("--val") == 130


def test_sigterm_saves_as_ctrl_c_does(space, monkeypatch, capsys):
    whole = torch.load(space.model() / "fold_0/checkpoint_final.pth", weights_only=True)["weights"]
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        at_iteration(patch, 2, lambda: [signal.raise_signal(signal.SIGTERM) for _ in range(2)])
        assert space.train("--overwrite") == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert capsys.readouterr().err.endswith("interrupted by SIGTERM\n")
    assert iterations(space.model() / "fold_0") == [1, 2]
    with monkeypatch.context() as patch:
        at_iteration(patch, 3, lambda: signal.raise_signal(signal.SIGINT))
        assert space.train("--c") == 130  # the signal of the run before is forgotten
    assert space.train("--c", "--no_val") == 0
    again = torch.load(space.model() / "fold_0/checkpoint_final.pth", weights_only=True)["weights"]
    assert all(torch.equal(whole[key], again[key]) for key in whole)


@pytest.mark.slow
def test_sigterm_to_all_processes_of_a_training_with_loaders_saves_too(space):
    """Batch systems send it to the loaders as well, whose end would stop the training within an iteration."""
    edit(space.prepared / "Tiny.json", recipe={"optimizer": {"iterations": 100000}})
    code = "import sys\nfrom mre_lowshot.cli.train import main\nraise SystemExit(main(sys.argv[1:]))"
    given = [sys.executable, "-c", code, "900", "2shot", "0", "-p", "Tiny", "--workers", "2", "--workspace",
             str(space.root), "-device", "cpu"]  # fmt: skip
    run = subprocess.Popen(given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    log = space.model(level="2shot") / "fold_0"
    for _ in range(600):
        if any("iteration 50 " in path.read_text() for path in log.glob("training_log_*.txt")):
            break
        try:
            run.wait(0.2)
            break
        except subprocess.TimeoutExpired:
            continue
    os.killpg(run.pid, signal.SIGTERM)
    _, error = run.communicate(timeout=120)
    assert run.returncode == 143, error
    assert iterations(log)[-1] >= 50
    assert not list(space.root.rglob(".mre-*"))


def test_all_folds_trained_again_under_another_plan_leave_none_of_the_old_one(space, monkeypatch):
    assert space.train("--no_val", fold="1") == 0
    edit(space.prepared / "Tiny.json", recipe={"optimizer": {"learning_rate": 0.5}})
    at_iteration(monkeypatch, 2, lambda: signal.raise_signal(signal.SIGINT))
    assert space.train("--overwrite", "--no_val", fold="all") == 130
    assert [path.parent.name for path in space.model().rglob("*.pth")] == ["fold_0"]


def test_the_training_state_of_a_checkpoint_is_checked_before_it_is_used(space, capsys):
    path = space.model() / "fold_0/checkpoint_latest.pth"
    fine = torch.load(path, weights_only=True)
    state = fine["training"]
    history = state["history"]
    wrong = {
        "fewer rows": {"history": {**history, "loss": history["loss"][:2]}},
        "a key": {"history": {key: history[key] for key in ("iteration", "loss", "dice")}},
        "text": {"history": {**history, "loss": ["a"] * 3}},
        "iteration": {"iteration": 10**9},
        "negative": {"iteration": -1},
        "network": {"network": {}},
        "optimizer": {"optimizer": {"state": {}, "param_groups": []}},
    }
    for name, changes in wrong.items():
        torch.save({**fine, "training": {**state, **changes}}, path)
        assert space.train("--c") == 2, name
        message = capsys.readouterr().err
        assert "checkpoint_latest.pth" in message, name
        assert message.count("\n") == 1, (name, message)
        assert "Traceback" not in message, name


def test_of_several_processes_only_the_first_locks(space):
    """The others would be refused by it."""
    plan, nothing = load_plan(space.prepared / "Tiny.json"), {"train": [], "val": []}
    job = FoldJob(plan, "1shot", 0, nothing, prepared=space.prepared, results=space.root / "results",
                  device=torch.device("cpu"), processes=Processes(0, 2))  # fmt: skip
    other = replace(job, processes=Processes(1, 2))
    with job.reading(), job.locked(), other.reading(), other.locked():
        assert len(list(space.root.rglob(".mre-lock*"))) == 3
        with pytest.raises(UserError, match="in use by another run"), job.locked():
            pass


@pytest.mark.slow
def test_an_experiment_neither_bypasses_locks_nor_is_refused_by_itself(space, monkeypatch):
    arguments = ("table2", "-d", "900", "--rows", "a", "--iterations", 2, "--folds", 0)
    answers = []

    def same_fold():
        run = start(space, "experiment", *arguments)
        answers.append((run.communicate(timeout=180)[1], run.returncode))

    at_iteration(monkeypatch, 1, same_fold)
    assert command("experiment", *arguments, "--workspace", space.root, "-device", "cpu") == 0
    ((error, code),) = answers
    assert code == 2, error
    assert "in use by another run, which trains or scores fold 0" in error
    assert not list(space.root.rglob(".mre-*"))


def test_what_a_killed_run_left_is_no_trained_fold_and_is_removed_by_the_next_run_of_any_fold(space, capsys):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    name = f".mre-partial.{processes.host_tag()}.{gone.pid}.0123abcd"
    shutil.rmtree(space.model() / "fold_0")
    places = [space.model() / "fold_2", space.model(), space.prepared, space.prepared / "Other",
              space.prepared / "gt_segmentations", space.model() / "fold_1/validation"]  # fmt: skip
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{name}.pth").write_bytes(b"half")
    assert space.predict(space.raw / "imagesTr", space.root / "out") == 2
    assert "no trained model" in capsys.readouterr().err
    assert space.predict(space.raw / "imagesTr", space.root / "out", "-m", space.model()) == 2
    assert "holds no trained fold" in capsys.readouterr().err
    assert space.train("--no_val", "--iterations", 2) == 0  # another plan than before: no fold is trained
    assert not list(space.root.rglob(".mre-*"))
