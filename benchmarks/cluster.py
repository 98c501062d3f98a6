"""``python -m benchmarks.cluster``: how prediction scales with the workers of a dask scheduler on this machine.

Simulated work: each task sleeps, so that scheduler and client are measured, not the cores. With --model and --scans
also real work: `mre_predict --scheduler` on the scans with 1, 2, ... workers of one thread each, and without scheduler
in one thread. Workers are started anew for each number and have loaded nothing: the model's loading is included.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mre_lowshot.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 120.0  # for scheduler and workers


@contextmanager
def processes(folder: Path, workers: int) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A scheduler and workers of one thread each on loopback, with their logs in ``folder``: the scheduler file, and
    the processes of the workers.

    Raises:
        UserError: the scheduler does not start.
    """
    one = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
    environment = {**os.environ, **dict.fromkeys(one, "1"), "PYTHONPATH": str(ROOT)}
    begun: list[subprocess.Popen[bytes]] = []

    def start(kind: str, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *options]
        with (folder / f"{kind}{len(begun)}.log").open("wb") as log:
            begun.append(subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log))
        return begun[-1]

    file = folder / "scheduler.json"
    try:
        place = ("--scheduler-file", str(file), "--no-dashboard")
        scheduler = start("scheduler", "--host", "127.0.0.1", "--port", "0", *place)
        limit = time.monotonic() + START_SECONDS
        while not file.is_file():
            if scheduler.poll() is not None or time.monotonic() > limit:
                raise UserError(f"the scheduler has not started; see {folder / 'scheduler0.log'}")
            time.sleep(0.1)
        options = (*place, "--nthreads", "1", "--no-nanny", "--memory-limit", "0")
        yield str(file), [start("worker", *options) for _ in range(workers)]
    finally:
        for process in begun:
            process.kill()
            process.wait()


def simulated(tasks: int, seconds: float, workers: int) -> float:
    """Seconds that ``workers`` processes take for tasks that sleep."""
    from mre_lowshot.workflows.cluster_client import as_done, connected

    with (
        tempfile.TemporaryDirectory() as folder,
        processes(Path(folder), workers) as (file, _),
        connected(file) as made,
    ):
        made.wait_for_workers(workers, timeout=START_SECONDS)
        begun = time.perf_counter()
        done = [number for number, _ in as_done(made, time.sleep, [(seconds,)] * tasks)]
        assert sorted(done) == list(range(tasks))
        return time.perf_counter() - begun


def real(model: Path, scans: Path, workers: int) -> float:
    """Seconds of a call of `predict` for all scans; without a scheduler where ``workers`` is 0."""
    import torch

    from mre_lowshot.workflows.cluster_client import connected
    from mre_lowshot.workflows.predict import predict

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        if not workers:
            begun = time.perf_counter()
            result = predict(scans, folder / "out", model=model, device="cpu")
        else:
            with processes(folder, workers) as (file, _):
                with connected(file) as made:
                    made.wait_for_workers(workers, timeout=START_SECONDS)
                begun = time.perf_counter()
                result = predict(scans, folder / "out", model=model, device="cpu", scheduler=file)
        seconds = time.perf_counter() - begun
    if result.failed:
        raise UserError(result.failed[0])
    return seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line for each number of workers."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 3], help="numbers of workers")
    parser.add_argument("--tasks", type=int, default=60, help="simulated scans")
    parser.add_argument("--seconds", type=float, default=0.5, help="that each of them sleeps")
    parser.add_argument("--model", type=Path, help="a trained model")
    parser.add_argument("--scans", type=Path, help="folder of scans for it")
    options = parser.parse_args(arguments)
    for workers in options.workers if options.tasks else ():
        found, best = simulated(options.tasks, options.seconds, workers), options.tasks * options.seconds / workers
        print(f"simulated, {workers} worker(s): {found:.2f} s, {best / found:.1%} of linear", flush=True)
    if options.model and options.scans:
        alone = real(options.model, options.scans, 0)
        print(f"real, no scheduler, one thread: {alone:.1f} s", flush=True)
        for workers in options.workers:
            found = real(options.model, options.scans, workers)
            print(f"real, {workers} worker(s): {found:.1f} s, {alone / found:.2f} times as fast", flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as problem:
        sys.exit(f"error: {problem}")
