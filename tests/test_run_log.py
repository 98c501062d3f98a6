"""What a training leaves behind: training_log.jsonl with every iteration, run.json, and TensorBoard's files."""

import importlib.util
import json
import platform

import pytest

from mre_lowshot.errors import NumericalError, UserError
from mre_lowshot.trainers import step_log
from mre_lowshot.trainers.step_log import StepLog
from mre_lowshot.trainers.trainer import MRETrainer
from tests.conftest import interrupt_after, iterations

pytestmark = pytest.mark.usefixtures("one_thread_only")
KEYS = ["iteration", "loss", "patch_dice", "learning_rate", "seconds", "memory_mb"]


def rows(folder):
    text = (folder / "training_log.jsonl").read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def runs(folder):
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))["runs"]


def test_a_training_writes_a_line_for_each_iteration(trained):
    found = rows(trained.model() / "fold_0")
    assert [row["iteration"] for row in found] == [1, 2, 3]
    assert all(list(row) == KEYS for row in found)
    assert all(row["loss"] > 0 and 0 < row["seconds"] < 600 and 50 < row["memory_mb"] < 50_000 for row in found)


def test_the_lines_hold_the_checkpoints_history(trained):
    import torch

    folder = trained.model() / "fold_0"
    history = torch.load(folder / "checkpoint_final.pth", weights_only=True)["training"]["history"]
    found = rows(folder)
    for key, name in step_log.FIELDS.items():
        assert [row[name] for row in found] == [v if v == v else None for v in history[key]]


@pytest.mark.slow
def test_an_interrupted_and_continued_training_has_each_iteration_once(space, monkeypatch):
    folder = space.model() / "fold_0"
    interrupt_after(monkeypatch, 4)
    assert space.train("--overwrite", "--iterations", "7", "--no_val") == 130
    assert [row["iteration"] for row in rows(folder)] == [1, 2, 3, 4]
    first = rows(folder)
    monkeypatch.undo()
    log = folder / "training_log.jsonl"
    # What a kill may leave: iterations after the checkpoint, and a line that is cut off.
    log.write_text(log.read_text() + json.dumps({**first[3], "iteration": 5, "loss": 99.0}) + '\n{"iteration": 6, "lo')
    assert space.train("--c", "--no_val") == 0
    assert [row["iteration"] for row in rows(folder)] == [1, 2, 3, 4, 5, 6, 7]
    assert rows(folder)[:4] == first
    assert rows(folder)[4]["loss"] != 99.0
    assert iterations(folder) == [1, 2, 3, 4, 5, 6, 7]
    kinds = [(run["mode"], run["status"], run["first_iteration"], run["last_iteration"]) for run in runs(folder)]
    assert kinds == [("overwrite", "interrupted", 1, 4), ("continue", "complete", 5, 7)]


HISTORY = {
    "iteration": [1, 2, 3],
    "loss": [3.0, 2.0, 1.0],
    "dice": [0.1, float("nan"), 0.3],
    "learning_rate": [1e-3] * 3,
}


def line(number):
    return json.dumps({"iteration": number, "loss": 4.0 - number, "seconds": 0.5})


@pytest.mark.parametrize(
    ("text", "measured"),
    [
        ("", []),
        (None, []),
        (f"{line(1)}\n{line(2)}\n{line(3)}\n", [1, 2, 3]),
        (f"{line(1)}\n{line(2)}\n{line(3)[:9]}", [1, 2]),
        (f"{line(1)}\n{line(1)}\n{line(2)}\n{line(1)}\n{line(3)}\n{line(4)}\n", [1, 2, 3]),
        (f"{line(1)}\n{line(3)}\n", [1, 3]),
        (f"{line(3)}\n{line(2)}\n", [3]),
        ('\0\0\0\n[]\n3\n{"iteration": true}\n{"iteration": "1"}\n{"iteration": -1}\n{}\n' + line(2) + "\n", [2]),
        ("[" * 100_000 + "\n" + line(1) + "\n", [1]),
    ],
)
def test_a_damaged_log_is_repaired_from_the_history(tmp_path, text, measured):
    log = StepLog(tmp_path)
    if text is not None:
        log.path.write_text(text)
    log.begin(HISTORY, 3)
    log.add({"iteration": 4, "loss": 0.5})
    log.close()
    found = rows(tmp_path)
    assert [row["iteration"] for row in found] == [1, 2, 3, 4]
    assert [row["loss"] for row in found] == [3.0, 2.0, 1.0, 0.5]
    assert [row["iteration"] for row in found if row.get("seconds")] == measured


def test_a_new_training_in_a_folder_of_an_earlier_attempt_begins_anew(tmp_path):
    log = StepLog(tmp_path)
    log.path.write_text(line(1) + "\n")
    log.begin({}, 0)
    log.add({"iteration": 1, "loss": 8.0})
    log.close()
    assert [row["loss"] for row in rows(tmp_path)] == [8.0]


def test_lines_reach_the_file_within_a_second_and_with_each_checkpoint(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(step_log.time, "monotonic", lambda: now[0])
    log = StepLog(tmp_path)
    log.begin({}, 0)
    log.add({"iteration": 1})
    assert log.path.read_text() == ""  # no write for each iteration
    now[0] += 1.5
    log.add({"iteration": 2})
    assert len(rows(tmp_path)) == 2
    log.add({"iteration": 3})
    log.flush()
    assert len(rows(tmp_path)) == 3
    log.close()


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "training_log.jsonl").mkdir()
    with pytest.raises(UserError, match=r"training_log\.jsonl: cannot be written"):
        StepLog(tmp_path).begin({}, 0)


def test_run_json_names_software_device_seed_and_options_but_no_machine_or_folder(trained):
    folder = trained.model() / "fold_0"
    (run,) = runs(folder)
    assert (run["mode"], run["status"], run["seed"], run["device"]) == ("new", "complete", 0, "cpu")
    assert (run["first_iteration"], run["last_iteration"], run["processes"]) == (1, 3, 1)
    assert run["options"]["plans_name"] == "Tiny"
    assert run["options"]["workers"] == 0
    assert {"torch", "numpy", "mre_lowshot"} <= run["versions"].keys()
    assert run["started"] <= run["ended"]
    text = (folder / "run.json").read_text()
    assert str(trained.root) not in text
    assert platform.node() not in text or not platform.node()


def test_a_training_that_diverges_is_recorded_as_failed(space, monkeypatch):
    def step(self, *batch):
        raise NumericalError("loss nan")

    monkeypatch.setattr(MRETrainer, "step", step)
    assert space.train("--overwrite") == 1
    (run,) = runs(space.model() / "fold_0")
    assert (run["status"], run["reason"], run["last_iteration"]) == ("failed", "loss nan", 0)
    assert rows_or_none(space.model() / "fold_0") == []


def rows_or_none(folder):
    return (folder / "training_log.jsonl").read_text().splitlines()


def test_scoring_alone_is_recorded_and_another_file_of_that_name_is_kept(space):
    folder = space.model() / "fold_0"
    (folder / "run.json").write_text("my notes")
    assert space.train("--val") == 0
    (run,) = runs(folder)
    assert (run["mode"], run["status"]) == ("validate", "complete")
    assert (folder / "run.json.old").read_text() == "my notes"


def test_without_the_package_tensorboard_is_refused_before_anything_is_written(space, monkeypatch, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "tensorboard" else real(name, *a))
    before = sorted(p.name for p in space.model().rglob("*"))
    assert space.train("--overwrite", "--tensorboard") == 2
    error = capsys.readouterr().err
    assert 'pip install -c constraints.txt -e ".[tensorboard]"' in error
    assert sorted(p.name for p in space.model().rglob("*")) == before


def test_tensorboard_shows_the_curves_of_the_log(space, monkeypatch):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = space.model() / "fold_0"
    interrupt_after(monkeypatch, 2)
    assert space.train("--overwrite", "--iterations", "4", "--no_val", "--tensorboard") == 130
    monkeypatch.undo()
    assert space.train("--c", "--no_val", "--tensorboard") == 0
    found = accumulators.EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    points = {event.step: event.value for event in found.Scalars("train/loss")}
    assert points == pytest.approx({row["iteration"]: row["loss"] for row in rows(folder)}, rel=1e-6)
    assert sorted(found.Tags()["scalars"]) == ["train/learning_rate", "train/loss", "train/patch_dice"]
