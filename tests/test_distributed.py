"""One fold in several processes: the same as one process with the whole batch; refusal of what cannot be divided."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import SETTINGS, iterations
from references import TINY, single_thread, tiny_case, tiny_plan  # noqa: F401
from torch import multiprocessing
from torch.utils.data import Dataset

from mre_lowshot.errors import UserError
from mre_lowshot.inference import checkpoint
from mre_lowshot.trainers.distributed import SINGLE, Processes, connected_processes
from mre_lowshot.trainers.trainer import MRETrainer, held_interrupt
from mre_lowshot.trainers.training_log import TrainingLog

CPU = torch.device("cpu")
NETWORKS = {
    "instance": replace(TINY, norm="instance", image_level_norm=False),
    "batch": replace(TINY, image_level_norm=False),
}


class Doubled(Dataset):
    """The sampler's mini-batches in double precision, so that rounding explains no difference."""

    def __init__(self, sampler: Dataset) -> None:
        self.sampler = sampler

    def __getitem__(self, n: int):
        images, coordinates, targets = self.sampler[n]
        return images.double(), coordinates.double(), targets


def trainer_of(norm: str, folder: Path, processes: Processes = SINGLE) -> MRETrainer:
    plan = tiny_plan(
        NETWORKS[norm], batch_size=4, iterations=4, dice_weight=1.0, ohem_ratio=2, ema=0.9, learning_rate=1e-2
    )
    trainer = MRETrainer(plan, [tiny_case()], folder=folder, device=CPU, processes=processes)
    trainer.network.double()
    trainer.average.double()
    trainer.sampler = Doubled(trainer.sampler)
    return trainer


def one_of_two(rank: int, folder: Path, port: int) -> None:
    """One process: trains both networks and writes its weights and losses."""
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT=str(port)
    )
    TrainingLog.draw = lambda self: None  # drawing the curves takes longer than training here
    with connected_processes("cpu") as (processes, device):
        assert (processes, device) == (Processes(rank, 2), CPU)
        for norm in NETWORKS:
            trainer = trainer_of(norm, folder / norm / str(rank), processes)
            trainer.fit()
            torch.save([trainer.network.state_dict(), trainer.training_log.history], folder / f"{norm}{rank}.pt")
        import_module("torch.distributed.nn")  # as torch itself does during training
        during = threads()
    (folder / f"threads{rank}.json").write_text(json.dumps([during, threads()]))


def threads() -> list[str]:
    """The names of the process's threads, native ones too; none where there is no /proc."""
    return [(task / "comm").read_text().strip() for task in Path("/proc/self/task").glob("*")]


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(one_of_two, (folder, port), nprocs=2)
    return folder


def written(folder: Path, norm: str, rank: int):
    return torch.load(folder / f"{norm}{rank}.pt", weights_only=True)


def idle_biases(network: torch.nn.Module) -> set[str]:
    """Biases that an instance norm removes at once: their gradient is 0 up to rounding, which Adam scales to full steps
    in a direction that differs between processors."""
    found = set()
    for path, module in network.named_modules():
        if isinstance(module, torch.nn.Sequential):
            for number, (layer, after) in enumerate(pairwise(module)):
                if isinstance(after, torch.nn.InstanceNorm3d) and getattr(layer, "bias", None) is not None:
                    found.add(f"{path}.{number}.bias")
    return found


@pytest.mark.parametrize("norm", NETWORKS)
def test_two_processes_train_as_one_with_the_whole_batch(two, tmp_path, monkeypatch, norm):
    """N_k, OHEM's ranking and Dice are computed over both processes. Batch norm's statistics are each process's own, so
    the reference passes the two halves of the batch through the network in turn."""
    monkeypatch.setattr(TrainingLog, "draw", lambda self: None)
    one = trainer_of(norm, tmp_path)
    if norm == "batch":
        whole = one.network.forward
        halves = lambda *batch: torch.cat([whole(*half) for half in zip(*(t.chunk(2) for t in batch), strict=True)])  # noqa: E731
        monkeypatch.setattr(one.network, "forward", halves)
    one.fit()
    wanted = dict(one.network.named_parameters())
    idle = idle_biases(one.network) if norm == "instance" else set()
    for rank in (0, 1):
        weights, history = written(two, norm, rank)
        assert history["loss"] == pytest.approx(one.training_log.history["loss"], rel=1e-9)
        assert history["dice"] == pytest.approx(one.training_log.history["dice"], rel=1e-9, nan_ok=True)
        for name, value in wanted.items():
            if name in idle:
                continue
            torch.testing.assert_close(weights[name], value.detach(), rtol=1e-7, atol=1e-9, msg=name)
    assert bool(idle) == (norm == "instance")
    if idle:  # they are left out because they have no effect
        images, coordinates, _ = one.sampler[0]
        with torch.no_grad():
            before = one.network(images, coordinates)
            for name in idle:
                wanted[name].add_(1)
            torch.testing.assert_close(one.network(images, coordinates), before, rtol=1e-7, atol=1e-9)
            for name in idle:
                wanted[name].sub_(1)
    start = dict(trainer_of(norm, tmp_path).network.named_parameters())
    moved = max(float((value - start[name]).detach().abs().max()) for name, value in wanted.items())
    assert moved > 1e-2  # the weights changed, so the comparison means something


def test_statistics_of_batch_norm_are_per_process_and_the_log_reports_it(two):
    one, other = (written(two, "batch", rank)[0] for rank in (0, 1))
    assert not torch.equal(one["backbone.encoder.0.2.running_mean"], other["backbone.encoder.0.2.running_mean"])
    (log,) = (two / "batch/0").glob("*.txt")
    assert "2 processes, 2 of 4 patches each" in log.read_text()
    assert "batch-norm statistics per process" in log.read_text()


@pytest.mark.parametrize("norm", NETWORKS)
def test_only_the_first_process_writes(two, norm):
    assert {p.suffix for p in (two / norm / "0").iterdir()} == {".pth", ".txt", ".jsonl"}
    assert not (two / norm / "1").exists()
    saved = torch.load(two / norm / "0" / checkpoint.FINAL, weights_only=True)["training"]  # in float64
    weights, history = written(two, norm, 0)
    assert saved["history"] == history
    assert all(torch.equal(saved["network"][name], value) for name, value in weights.items())


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="lists threads in /proc, which Linux has")
@pytest.mark.parametrize("rank", [0, 1])
def test_no_thread_of_the_group_outlives_it(two, rank):
    """A thread that does is alive at the interpreter's exit, and sometimes aborts it."""
    during, after = json.loads((two / f"threads{rank}.json").read_text())
    assert any("gloo" in name for name in during)
    assert not any("gloo" in name for name in after)


@pytest.mark.parametrize(
    ("count", "settings", "words"),
    [
        (
            3,
            {"batch_size": 4},
            "batch_size 4 cannot be divided evenly among 3 processes .* recipe.sampling.batch_size=3",
        ),
        (8, {"batch_size": 4}, "recipe.sampling.batch_size=8"),
        (4, {"batch_size": 4}, "image_level_norm=false"),
        (2, {"batch_size": 4, "sync_batch_norm": True}, "on CUDA devices only"),
    ],
)
def test_what_cannot_be_divided_among_processes_is_refused(tmp_path, count, settings, words):
    with pytest.raises(UserError, match=words):
        MRETrainer(tiny_plan(**settings), [tiny_case()], folder=tmp_path, device=CPU, processes=Processes(1, count))


def test_a_ctrl_c_that_torchrun_repeats_is_recorded_each_time():
    """A process receives it from the terminal and from torchrun. All processes must stop after the same iteration."""
    before = signal.getsignal(signal.SIGINT)
    with held_interrupt(always=True) as interrupted:
        assert not interrupted()
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
        assert interrupted()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("always", [True, False])
def test_sigterm_is_recorded_each_time_it_arrives(always):
    """A batch system sends it to a process and to torchrun, which forwards it."""
    before = signal.getsignal(signal.SIGTERM)
    with held_interrupt(always=always) as interrupted:
        assert not interrupted()
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert interrupted() == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_ctrl_c_ends_at_once():
    with held_interrupt() as interrupted:
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_single_process_synchronises_nothing(tmp_path):
    trainer = MRETrainer(tiny_plan(sync_batch_norm=True), [tiny_case()], folder=tmp_path, device=CPU)
    assert not any(isinstance(m, torch.nn.SyncBatchNorm) for m in trainer.network.modules())


@pytest.mark.slow
def test_torchrun_trains_a_fold(space):
    """The documented command: the losses of one process, one set of files, validation by the first process."""
    changes = ("recipe.sampling.batch_size=4", "network.norm=instance", "network.image_level_norm=false",
               "recipe.atlas.registration=none", "network.atlas_prior=false")  # fmt: skip
    assert space.plan(name="Two", settings=(*SETTINGS, *changes)) == 0
    assert space.train("--no_val", name="Two") == 0
    fold = space.model("Two") / "fold_0"
    alone = torch.load(fold / checkpoint.FINAL, weights_only=True)["training"]["history"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               "-m", "mre_lowshot.cli.train", "Synthetic", "1shot", "fold0", "-p", "Two",
               "--workspace", space.root, "-device", "cpu", "--overwrite"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("trained 3 iterations") == 1
    assert iterations(fold, checkpoint.FINAL) == [1, 2, 3]
    together = torch.load(fold / checkpoint.FINAL, weights_only=True)["training"]["history"]
    assert together["loss"] == pytest.approx(alone["loss"], rel=1e-4)
    assert json.loads((fold / "debug.json").read_text())["processes"] == 2
    assert len(list(fold.glob("training_log_*.txt"))) == 1
    assert len(json.loads((fold / "validation/summary.json").read_text())["metric_per_case"]) == 2


@pytest.mark.slow
def test_sigterm_to_torchrun_saves_the_last_iteration_and_a_second_run_is_refused(space):
    """As batch systems end a job: torchrun forwards the signal to both processes."""
    changes = ("recipe.sampling.batch_size=4", "network.norm=instance", "network.image_level_norm=false",
               "recipe.atlas.registration=none", "network.atlas_prior=false",
               "recipe.optimizer.iterations=100000")  # fmt: skip
    assert space.plan(name="Two", settings=(*SETTINGS, *changes)) == 0
    fold = space.model("Two") / "fold_0"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               "-m", "mre_lowshot.cli.train", "Synthetic", "1shot", "fold0", "-p", "Two",
               "--workspace", space.root, "-device", "cpu"]  # fmt: skip
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(1200):
        if any("iteration 50 " in path.read_text() for path in fold.glob("training_log_*.txt")):
            break
        time.sleep(0.2)
    assert space.train(name="Two") == 2
    run.send_signal(signal.SIGTERM)
    _, error = run.communicate(timeout=120)
    assert run.returncode != 0
    assert iterations(fold)[-1] >= 50, error[-2000:]
    (log,) = fold.glob("training_log_*.txt")
    assert f"interrupted after iteration {len(iterations(fold))}; --c continues" in log.read_text()
    assert not list(space.root.rglob(".mre-*"))
