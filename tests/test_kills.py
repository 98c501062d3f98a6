"""SIGKILL at random moments of planning, training and prediction: nothing half-written is taken for whole, and what
goes on afterwards ends as if nothing had happened. A full disk and lost permissions: one error, earlier files intact.

The commands run in processes forked from one that has loaded torch, so that a kill costs no start of Python.
"""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SETTINGS, Space, command
from test_trainer import assert_same

from mre_lowshot import files
from mre_lowshot.config.plan_files import load_plan
from mre_lowshot.data.volume import read_labels
from mre_lowshot.errors import UserError
from mre_lowshot.inference import checkpoint
from mre_lowshot.inference.model_folders import REPLACED
from mre_lowshot.preprocessing.prepare import check_prepared
from mre_lowshot.preprocessing.store import load_case

pytestmark = pytest.mark.usefixtures("one_thread_only", "no_settings")
CPU = torch.device("cpu")
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [f"mre_lowshot.{m}" for m in ("workflows.plan", "workflows.train", "workflows.predict", "data.readers.simpleitk")]
)
ITERATIONS = 6


def in_process(name: str, arguments: list[str], output: str, limit: int | None) -> None:
    """Run a command with a checkpoint after every iteration; ``limit``: bytes that a file may have."""
    out = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    torch.set_num_threads(1)
    from mre_lowshot.trainers import trainer, training_log

    trainer.SAVE_SECONDS = 0.0
    training_log.TrainingLog.draw = lambda self: None  # takes longer than the training
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    os._exit(command(name, *arguments))


class Runs:
    """Commands in one workspace, killed or not, with counts."""

    def __init__(self, space: Space, seed: int) -> None:
        self.space, self.random, self.kills, self.finished = space, random.Random(seed), 0, 0
        self.seconds: dict[str, float] = {}

    def run(self, name: str, *arguments: object, limit: int | None = None, after: float | None = None) -> int | None:
        """The exit code; None where it was killed, ``after`` seconds."""
        device = [] if name == "add_case" else ["-device", "cpu"]
        given = [*map(str, arguments), "--workspace", str(self.space.root), *device]
        output = str(self.space.root / "output.txt")
        process = CONTEXT.Process(target=in_process, args=(name, given, output, limit))
        begun = time.monotonic()
        process.start()
        process.join(after)
        if process.exitcode is None:
            process.kill()
            process.join()
            self.kills += 1
            return None
        if after is None:
            self.seconds[name] = time.monotonic() - begun
        assert process.exitcode is not None
        return process.exitcode

    def kill(self, name: str, *arguments: object) -> int | None:
        """As `run`, killed at a random moment of the time that the command took without a kill."""
        return self.run(name, *arguments, after=self.random.uniform(0.02, 1.0) * self.seconds[name])

    @property
    def output(self) -> str:
        return (self.space.root / "output.txt").read_text()

    def report(self, what: str) -> None:
        print(f"\n{what}: kills survived: {self.kills}, runs to the end: {self.finished}, wrong results: 0")
        print({name: round(seconds, 1) for name, seconds in self.seconds.items()})


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if ".mre-" in path.name]


def counts(few: int, many: int) -> Callable:
    """A few kills in the fast tests, many in the slow ones."""
    return pytest.mark.parametrize("kills", [few, pytest.param(many, marks=pytest.mark.slow)])


PLANS = {
    size: ("plan", "-d", "900", "-p", "Tiny", "--overwrite", "--set", *SETTINGS, f"preprocessing.spacing=[{size}]")
    for size in ("8,8,8", "9,9,9")
}


@pytest.mark.slow
@pytest.mark.parametrize("kills", [26])
def test_planning_killed_at_any_moment_leaves_no_cases_of_two_plans(space, kills):
    """Two plans of one name in turn, so that cases of both lie in the folder after a kill."""
    runs = Runs(space, seed=1)
    wanted, refused = {}, 0
    for size, arguments in PLANS.items():
        assert runs.run(*arguments) == 0, runs.output
        wanted[size] = {p.name: np.load(p)["image"] for p in (space.prepared / "Tiny").glob("*.npz")}
    while runs.kills < kills:
        size = runs.random.choice(list(PLANS))
        whole = runs.kills % 4 == 3 and refused > runs.finished  # so that some kills meet a complete set
        ended = runs.run(*PLANS[size]) if whole else runs.kill(*PLANS[size])
        assert ended in (None, 0), runs.output
        runs.finished += ended == 0
        plan = load_plan(space.prepared / "Tiny.json")
        size = ",".join(f"{s:g}" for s in plan.preprocessing.spacing)
        try:
            names = check_prepared(plan, space.prepared)
        except UserError:
            assert ended is None, runs.output
            refused += 1
            continue
        assert len(names) == 3
        for name in names:
            assert np.array_equal(load_case(space.prepared / "Tiny", name, plan).image, wanted[size][f"{name}.npz"])
    assert runs.run(*PLANS["8,8,8"]) == 0, runs.output
    assert leftovers(space.root) == []
    for path in (space.prepared / "gt_segmentations").iterdir():
        assert path.read_bytes() == (space.raw / "labelsTr" / path.name).read_bytes()
    shutil.rmtree(space.root / "results")
    assert runs.run("train", "900", "1shot", "1", "-p", "Tiny", "--no_val") == 0, runs.output
    runs.report(f"planning, {refused} times without a complete set of cases")


def whole_files(space: Space) -> None:
    """Everything in the results that bears its final name is whole."""
    for path in space.model().rglob("*"):
        if ".mre-" in str(path) or not path.is_file():
            continue
        if path.suffix == ".pth":
            checkpoint.load(path, CPU)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.name.endswith(".nii.gz"):
            read_labels(path)


@counts(1, 30)
@pytest.mark.slow
def test_a_training_killed_at_any_moment_goes_on_to_the_same_bits(space, kills):
    runs = Runs(space, seed=2)
    shutil.rmtree(space.root / "results")
    arguments = ("train", "900", "1shot", "0", "-p", "Tiny", "--iterations", ITERATIONS)
    assert runs.run(*arguments) == 0, runs.output
    fold = space.model() / "fold_0"
    wanted = checkpoint.load(fold / checkpoint.FINAL, CPU)[1]
    scores = json.loads((fold / "validation/summary.json").read_text())["metric_per_case"]
    mode = "--overwrite"
    while runs.kills < kills or mode == "--c":
        if runs.kills < kills:
            ended = runs.kill(*arguments, *[m for m in [mode] if m])
        else:
            ended = runs.run(*arguments, *[m for m in [mode] if m])
        assert ended in (None, 0), runs.output
        whole_files(space)
        again = "--overwrite" if (space.model() / REPLACED).exists() else ""  # the earlier results are still there
        mode = "--c" if (fold / checkpoint.LATEST).is_file() else again
        if ended == 0:
            runs.finished += 1
            assert leftovers(space.root) == []
            found = checkpoint.load(fold / checkpoint.FINAL, CPU)[1]
            assert_same(wanted["weights"], found["weights"])
            assert_same(wanted["training"], found["training"])
            logged = [json.loads(row) for row in (fold / "training_log.jsonl").read_text().splitlines()]
            assert [row["iteration"] for row in logged] == found["training"]["history"]["iteration"]
            assert [row["loss"] for row in logged] == found["training"]["history"]["loss"]
            states = [run["status"] for run in json.loads((fold / "run.json").read_text())["runs"]]
            assert states == ["killed"] * (len(states) - 1) + ["complete"]
            assert json.loads((fold / "validation/summary.json").read_text())["metric_per_case"] == scores
            mode = "--overwrite"
    if mode in ("", "--overwrite"):
        assert runs.run(*arguments, *[m for m in [mode] if m]) == 0, runs.output
        assert_same(wanted["weights"], checkpoint.load(fold / checkpoint.FINAL, CPU)[1]["weights"])
    assert leftovers(space.root) == []
    runs.report("training")


@pytest.mark.slow
@pytest.mark.parametrize("kills", [12])
def test_a_prediction_killed_at_any_moment_goes_on(space, kills):
    runs = Runs(space, seed=3)
    out = space.root / "out"
    arguments = ("predict", "-i", space.raw / "imagesTr", "-o", out)
    assert runs.run(*arguments) == 0, runs.output
    wanted = {p.name: read_labels(p).array for p in out.glob("*.nii.gz")}
    assert len(wanted) == 3
    shutil.rmtree(out)
    while runs.kills < kills:
        ended = runs.kill(*arguments, *(["--continue_prediction"] if out.exists() else []))
        assert ended in (None, 0), runs.output
        for path in (p for p in out.glob("*.nii.gz") if not p.name.startswith(".")):
            assert np.array_equal(read_labels(path).array, wanted[path.name])
        if ended == 0:
            runs.finished += 1
            shutil.rmtree(out)
    assert runs.run(*arguments, *(["--continue_prediction"] if out.exists() else [])) == 0, runs.output
    found = {p.name: read_labels(p).array for p in out.glob("*.nii.gz") if not p.name.startswith(".")}
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    runs.report("prediction")


# A full disk, lost permissions


def one_error(text: str, *words: str) -> None:
    """The output ends in one line of error with these words."""
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, text
    assert "Traceback" not in text
    for word in words:
        assert word in errors[0], text


@pytest.mark.slow
def test_a_disk_that_becomes_full_while_planning_is_one_error(space):
    runs = Runs(space, seed=0)
    before = (space.model() / "fold_0/checkpoint_final.pth").read_bytes()
    assert runs.run(*PLANS["8,8,8"], limit=30_000) == 2, runs.output
    one_error(runs.output, "phantom_001.npz: cannot be written (File too large", "GB free); make space")
    with pytest.raises(UserError, match="holds no complete set"):
        check_prepared(load_plan(space.prepared / "Tiny.json"), space.prepared)
    assert leftovers(space.root) == []
    assert (space.model() / "fold_0/checkpoint_final.pth").read_bytes() == before
    assert runs.run(*PLANS["8,8,8"]) == 0, runs.output


@pytest.mark.slow
def test_a_disk_that_becomes_full_while_training_is_one_error_and_the_fold_can_be_trained(space):
    runs = Runs(space, seed=0)
    fold = space.model() / "fold_1"
    arguments = ("train", "900", "1shot", "1", "-p", "Tiny", "--no_val")
    assert runs.run(*arguments, limit=60_000) == 2, runs.output
    one_error(runs.output, f"{fold / checkpoint.LATEST}: cannot be written (File too large", "GB free); make space")
    assert leftovers(space.root) == []
    assert not list(fold.glob("*.pth"))
    assert runs.run(*arguments) == 0, runs.output


def test_a_checkpoint_that_cannot_be_replaced_stays(space, monkeypatch, capfd):
    from mre_lowshot.trainers import trainer

    monkeypatch.setattr(trainer, "SAVE_SECONDS", 0.0)
    replace, done = os.replace, []

    def failing(source, target):
        if Path(target).name == checkpoint.LATEST:
            done.append(target)
            if len(done) == 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source), None, str(target))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", failing)
        assert space.train("--no_val", fold="1") == 2
    one_error(capfd.readouterr().err, f"checkpoint_latest.pth: cannot be written ({os.strerror(errno.ENOSPC)}")
    assert checkpoint.load(space.model() / "fold_1" / checkpoint.LATEST, CPU)[1]["training"]["iteration"] == 2
    assert leftovers(space.root) == []
    assert space.train("--c", "--no_val", fold="1") == 0
