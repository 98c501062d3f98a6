"""``mre_experiment --scheduler``: each fold of a row is a task; lost workers, failing folds, and the end of a run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import Space, command, iterations, one_thread

from benchmarks.cluster import processes
from mre_lowshot.errors import NumericalError, UserError
from mre_lowshot.locks import holders, locked
from mre_lowshot.planners import hardware
from mre_lowshot.planners.hardware import Device
from mre_lowshot.workflows import experiment_worker
from mre_lowshot.workflows.experiment_cluster import ExperimentCluster
from mre_lowshot.workflows.experiment_worker import FoldTask, RunEnded, planning_device, run_on_worker
from mre_lowshot.workflows.reporting import Reporter

distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.usefixtures("one_thread_only", "no_settings")
COUNT = 16


class Job(SimpleNamespace):
    """A fold with two test scans that is locked by no other run, or by one."""

    def reading(self):
        if self.refused:
            raise UserError("another run trains it")
        return open(os.devnull)

    locked = reading


def task(folder: Path, refused: bool = False) -> FoldTask:
    plan = SimpleNamespace(dataset_name="D", plans_name="P")
    model = folder / "model"
    job = Job(fold=1, level="1shot", split={"val": ["x", "y"]}, plan=plan, prepared=folder, folder=model / "fold_1",
              refused=refused)  # fmt: skip
    (folder / "on").mkdir(exist_ok=True)
    return FoldTask(SimpleNamespace(name="e"), job, iterations=None, workers=None, device="cpu", running=folder / "on")


@pytest.fixture
def on_worker(monkeypatch):
    """As on a worker; the fold is run by the function that is given."""
    monkeypatch.setattr(distributed, "get_worker", lambda: SimpleNamespace(address="tcp://here:1"))
    monkeypatch.setattr(experiment_worker, "replace", lambda job, **changes: Job(**{**vars(job), **changes}))
    monkeypatch.setattr(experiment_worker, "check_prepared", lambda plan, folder: None)

    def set_up(function):
        monkeypatch.setattr(experiment_worker, "run_fold", lambda *given, reporter, **options: function(reporter))

    return set_up


def test_whatever_a_fold_fails_with_is_its_outcome(on_worker, tmp_path):
    def diverges(reporter):
        reporter.warning("the loss grows")
        raise NumericalError("iteration 3: loss nan")

    on_worker(diverges)
    found = run_on_worker(task(tmp_path))
    assert (found.failed, found.lines) == (2, ((True, "the loss grows"),))
    assert found.problem == "row e, fold 1, worker tcp://here:1: iteration 3: loss nan"
    assert "another run trains it" in run_on_worker(task(tmp_path, refused=True)).problem
    on_worker(lambda reporter: reporter.info("row e: Dice 0.5") or 1)
    assert run_on_worker(task(tmp_path)).lines == ((False, "row e: Dice 0.5"),)


@pytest.mark.parametrize("end", ["run", "claim"])
def test_a_fold_ends_with_the_run_that_sent_it_or_where_another_worker_has_it(on_worker, tmp_path, monkeypatch, end):
    monkeypatch.setattr(experiment_worker, "ASK_SECONDS", 0.0)
    steps, claim = [], tmp_path / "on/D__P__1shot__fold_1.json"

    def trains(reporter):
        with reporter.bar(3, description="", unit="it") as bar:
            for step in range(3):
                bar.update()
                steps.append(step)
                if end == "run":
                    shutil.rmtree(tmp_path / "on", ignore_errors=True)
                else:
                    claim.write_text(claim.read_text().replace('"pid"', '"other"'))
        return 0

    on_worker(trains)
    one = task(tmp_path)
    with pytest.raises(UserError, match="row e, fold 1: the run has ended, or another worker has the fold"):
        run_on_worker(one)
    assert steps == [0]
    assert issubclass(RunEnded, KeyboardInterrupt)  # no handler of failures takes it for one
    if end == "run":
        with pytest.raises(UserError, match="the run has ended"):
            run_on_worker(one)
        assert steps == [0]


def test_the_lock_of_a_lost_machine_is_removed_after_a_while(on_worker, tmp_path, monkeypatch):
    """Its worker may still run; it had time to see that another worker has the fold. Other locks stay."""
    monkeypatch.setattr(experiment_worker, "ASK_SECONDS", 0.01)
    monkeypatch.setattr(experiment_worker, "LOST_SECONDS", 0.1)
    on_worker(lambda reporter: 0)
    one = task(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("mre_lowshot.processes.host", lambda: "elsewhere")
        lost, other = (
            locked(one.job.folder.parent, "fold_1", "trains"),
            locked(one.job.folder.parent, "fold_2", "trains"),
        )
        lost.__enter__()
        other.__enter__()
        run_on_worker(one)  # whose worker is lost: its lock is left
    assert holders(one.job.folder.parent, "fold_") == ["fold_1", "fold_2"]
    begun = time.monotonic()
    assert run_on_worker(one).problem == ""
    assert time.monotonic() - begun >= 0.1
    assert holders(one.job.folder.parent, "fold_") == ["fold_2"]


def test_rows_are_planned_for_the_smallest_device_of_the_workers(monkeypatch):
    cluster = ExperimentCluster("tcp://there:1", device="cuda", reporter=Reporter())
    found = {"a": Device("cuda", 24.0), "b": Device("cuda", 12.0)}
    monkeypatch.setattr(cluster, "_on_workers", lambda function, name: found)
    assert cluster.planned_for() == Device("cuda", 12.0)
    found["c"] = planning_device("cpu")
    with pytest.raises(UserError, match="the workers of tcp://there:1 have cpu and cuda; give -device cpu or"):
        cluster.planned_for()


def test_lost_workers_fail_a_fold_and_a_lost_scheduler_ends_the_run(tmp_path):
    cluster, one = ExperimentCluster("tcp://there:1", device="cpu", reporter=Reporter()), task(tmp_path)

    def future(status, failure=None):
        return SimpleNamespace(status=status, exception=lambda: failure)

    lost = cluster._outcome(future("error", distributed.scheduler.KilledWorker("key", None, 4)), one)
    assert lost.problem.startswith("row e, fold 1: the workers that trained it were lost")
    assert lost.failed == 2
    assert "unexpected error (KeyError" in cluster._outcome(future("error", KeyError("x")), one).problem
    with pytest.raises(UserError, match="is no longer reachable; folds that are done are kept; run it again"):
        cluster._outcome(future("cancelled"), one)


def experiment(space: Space, *arguments: object) -> int:
    return command("experiment", "table2", "--rows", "a", "e", "--folds", 0, 1, "--iterations", COUNT, "-d", "900",
                   "--workspace", space.root, "-device", "cpu", *arguments)  # fmt: skip


PRELOAD = """
import time
from mre_lowshot.trainers import trainer, training_log
trainer.SAVE_SECONDS = 0.0
training_log.TrainingLog.draw = lambda self: None
def slow(self, *batch, step=trainer.MRETrainer.step):
    time.sleep(0.1)
    return step(self, *batch)
trainer.MRETrainer.step = slow
"""


@pytest.mark.slow
def test_an_experiment_survives_a_lost_worker(trained, tmp_path, monkeypatch, capsys):
    """The fold of the worker that is killed continues from its checkpoint; the results are those of a local run."""
    monkeypatch.setattr(hardware, "SMALL_SIZE", replace(
        hardware.SMALL_SIZE, widths=(4, 4, 4), aspp_channels=4, embedding_dim=8, mixing_dim=4, batch_size=2,
        patch_voxels=1024,
    ))  # fmt: skip
    local, remote = (Space(tmp_path / name) for name in ("local", "remote"))
    for space in (local, remote):
        shutil.copytree(trained.root / "raw", space.root / "raw")
    with one_thread():
        assert experiment(local) == 0
    (tmp_path / "preload.py").write_text(PRELOAD)
    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__PRELOAD", str(tmp_path / "preload.py"))
    killed: list[Path] = []
    with processes(tmp_path, workers=2) as (scheduler, _):

        def kill() -> None:
            """Once a fold has a checkpoint, kill the process that holds its lock."""
            while not killed:
                time.sleep(0.02)
                for lock in remote.root.glob("results/*/*/.mre-lock.fold_*.json"):
                    fold = lock.parent / lock.name.split(".")[2]
                    if (fold / "checkpoint_latest.pth").is_file() and not (fold / "checkpoint_final.pth").is_file():
                        os.kill(json.loads(lock.read_text())["pid"], signal.SIGKILL)
                        killed.append(fold)
                        break

        threading.Thread(target=kill, daemon=True).start()
        assert experiment(remote, "--scheduler", scheduler) == 0
        assert killed
        assert iterations(killed[0]) == list(range(1, COUNT + 1))
        capsys.readouterr()
        assert experiment(remote, "--scheduler", scheduler) == 0
        assert capsys.readouterr().out.count("already complete") == 4
    name = f"experiments/table2__1shot_small_{COUNT}/results.json"
    found = [json.loads((s.root / "results/Dataset900_Synthetic" / name).read_text()) for s in (local, remote)]
    scores = [{row["name"]: row["runs"] for row in one["rows"] if row["runs"]} for one in found]
    assert [run["Dice"] for run in scores[0]["e"]] == [run["Dice"] for run in scores[1]["e"]]
    assert not list(remote.root.glob("results/.mre*"))


def test_an_unreachable_scheduler_is_refused_before_anything_is_written(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mre_lowshot.workflows.cluster_client.CONNECT_SECONDS", 0.2)
    space = Space(tmp_path)
    shutil.copytree(trained.root / "raw", space.root / "raw")
    assert experiment(space, "--scheduler", "tcp://127.0.0.1:1") == 2
    assert "no dask scheduler answers within 0.2 s" in capsys.readouterr().err
    assert not [path for path in space.root.rglob("*.json") if "raw" not in path.parts]
