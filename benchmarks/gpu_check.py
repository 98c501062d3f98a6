"""``python -m benchmarks.gpu_check --json FILE``: what only a GPU can show, in at most 8 minutes, as one JSON file.

On a CUDA device: the tests named "cuda"; training at the paper's size (24 patches of 12x36x36, N_e 2048) in float32,
TF32 and bf16, with the time of an iteration, how often the host waits for the GPU in one, and peak memory; prediction
of a scan of 48x216x216 voxels with centre tiles; refinement and label map of the abdomen of `benchmarks.refinement`.

Without CUDA it ends with exit code 2. With --quick a tiny network runs on the CPU, to check that the script works.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

    from benchmarks.sizes import Size
    from mre_lowshot.trainers.trainer import MRETrainer

BUDGET = 440.0  # seconds after which no part is begun; the tests are ended after TESTS_SECONDS
TESTS_SECONDS = 180
WARM_UP, STEPS = 6, 20  # iterations of a training: not timed, and in all
TESTS = Path(__file__).resolve().parents[1] / "tests"
NO_GPU = "no CUDA device was found; run this on a machine with one, or with --quick to check the script on the CPU"
Precision = Literal["float32", "tf32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bf16")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", required=True, help="file that the figures are written to")
    parser.add_argument("--quick", action="store_true", help="a tiny network on the CPU: seconds, figures without use")
    return parser


def run_tests() -> dict[str, Any]:
    """Run the tests whose name has "cuda", in their own process."""
    command = [sys.executable, "-m", "pytest", "-q", "-k", "cuda", "-p", "no:cacheprovider", "-n", "0", str(TESTS)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TESTS_SECONDS, cwd=TESTS.parent)
    except subprocess.TimeoutExpired:
        return {"exit_code": None, "summary": f"not finished after {TESTS_SECONDS} s"}
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines()
    return {"exit_code": done.returncode, "summary": lines[-1] if lines else "", "end_of_output": lines[-25:]}


@contextmanager
def counted_waits(device: torch.device) -> Iterator[dict[str, int | None]]:
    """Yield a dict whose ``waits`` is, after the block, how often the host waited for the GPU in it; None elsewhere."""
    import torch

    found: dict[str, int | None] = {"waits": None}
    if device.type != "cuda":
        yield found
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found["waits"] = sum("synchroniz" in str(warning.message) for warning in caught)


def train(size: Size, device: torch.device, precision: Precision, folder: Path) -> dict[str, Any]:
    """Train `STEPS` iterations as ``mre_train`` does, with its data-loading processes: seconds of an iteration and of
    the step in it, waits in one iteration, and peak memory."""
    from benchmarks.flops import peak_memory
    from benchmarks.sizes import synthetic_case
    from benchmarks.timing import Spread, seconds
    from mre_lowshot import devices
    from mre_lowshot.trainers.trainer import MRETrainer

    plan = size.plan(size.batch_cuda)
    optimizer = replace(plan.recipe.optimizer, iterations=STEPS, precision=precision)
    plan = replace(plan, recipe=replace(plan.recipe, optimizer=optimizer))
    case = synthetic_case(size.scan, size.network.in_channels, size.network.classes, size.spacing)
    workers = devices.loader_processes(device)
    with peak_memory(device) as peak:
        trainer = MRETrainer(plan, [case], folder=folder, device=device)
        times = _iteration_times(trainer, workers)
    batch = [tensor.to(device) for tensor in trainer.sampler[0]]
    trainer.network.train()
    with devices.fixed_shapes(trainer.precision.tf32):
        steps = [seconds(lambda: trainer.step(*batch), device) for _ in range(6)][1:]
        with counted_waits(device) as counted:
            trainer.step(*batch)
    return {
        "patches": size.batch_cuda,
        "precision": trainer.precision.name,
        "note": trainer.precision.note,
        "recomputed": trainer.network.recomputes,
        "loader_processes": workers,
        "iteration_seconds": Spread(tuple(times)).record(),
        "step_seconds": Spread(tuple(steps)).record(),
        "waits_in_a_step": counted["waits"],
        "peak_gb": peak["gb"],
        "minutes_of_3000_iterations": 3000 * Spread(tuple(times)).median / 60,
        "last_loss": trainer.training_log.history["loss"][-1],
    }


def _iteration_times(trainer: MRETrainer, workers: int) -> list[float]:
    """The seconds of the iterations after `WARM_UP`. A step ends with the transfer of its loss, so the GPU has finished
    all but the update of the weights."""
    ends: list[float] = []
    trainer.fit(workers, lambda _: ends.append(time.perf_counter()))
    return [after - before for before, after in zip(ends[WARM_UP:-1], ends[WARM_UP + 1 :], strict=True)]


def predict(size: Size, device: torch.device, precision: Literal["float32", "bf16"]) -> dict[str, Any]:
    """Seconds and peak memory of the network stage for one scan, with initial weights; the second of two runs."""
    import torch

    from benchmarks.flops import peak_memory
    from benchmarks.sizes import synthetic_case
    from benchmarks.timing import seconds
    from mre_lowshot.config import InferenceConfig
    from mre_lowshot.inference.sliding_window import SlidingWindow
    from mre_lowshot.network.build import build

    torch.manual_seed(0)
    notes: list[str] = []
    window = SlidingWindow(
        [build(size.network)], size.network, patch=size.patch, inference=InferenceConfig(), device=device,
        precision=precision, log=notes.append,
    )  # fmt: skip
    image = synthetic_case(size.scan, size.network.in_channels, size.network.classes, size.spacing).image
    window.posterior(image)
    with peak_memory(device) as peak:
        taken = seconds(lambda: window.posterior(image), device)
    return {"voxels": list(size.scan), "seconds": taken, "peak_gb": peak["gb"], "notes": notes}


def refinement(device: torch.device, quick: bool) -> dict[str, Any]:
    """Seconds and peak memory of the refinement of a posterior and of its label map on the scan's own grid; the second
    of two runs."""
    import numpy as np
    import torch

    from benchmarks.flops import peak_memory
    from benchmarks.refinement import CLASSES, GRID, NATIVE, QUICK_GRID, QUICK_NATIVE, WEIGHT, abdomen
    from benchmarks.timing import seconds
    from mre_lowshot.config import RefinementConfig
    from mre_lowshot.grid import argmax_resized
    from mre_lowshot.refinement.pipeline import RefinementSettings, refine

    grid, native = (QUICK_GRID, QUICK_NATIVE) if quick else (GRID, NATIVE)
    shares = abdomen(grid)
    noise = np.random.default_rng(1).normal(0, 0.5, grid)
    image = torch.from_numpy((shares.argmax(axis=0) + noise).astype(np.float32)[None]).to(device)
    posterior = torch.from_numpy(shares).to(device)
    warped = posterior.roll(2, dims=-1)
    settings = RefinementSettings(RefinementConfig(atlas_weight=WEIGHT, em_weight=1.0, crf_weight=1.0))

    def work() -> None:
        argmax_resized(refine(posterior, warped, image, settings), native, floor=0.5 / CLASSES)

    work()
    with peak_memory(device) as peak:
        taken = seconds(work, device)
    return {"voxels": list(grid), "native_voxels": list(native), "seconds": taken, "peak_gb": peak["gb"]}


def _parts(size: Size, device: torch.device, folder: Path, quick: bool) -> dict[str, Callable[[], dict[str, Any]]]:
    parts: dict[str, Callable[[], dict[str, Any]]] = {} if quick else {"tests": run_tests}
    for precision in PRECISIONS[:1] if quick else PRECISIONS:
        parts[f"training {precision}"] = lambda p=precision: train(size, device, p, folder / p)  # type: ignore[misc]
    for kind in ("float32",) if quick else ("float32", "bf16"):
        parts[f"prediction {kind}"] = lambda p=kind: predict(size, device, p)  # type: ignore[misc]
    parts["refinement"] = lambda: refinement(device, quick)
    return parts


def _main(options: argparse.Namespace) -> int:
    import torch

    from benchmarks.sizes import paper_size, tiny_size
    from mre_lowshot import devices
    from mre_lowshot.inference.checkpoint import versions

    device = devices.resolve("cpu" if options.quick else "cuda")
    begun = time.monotonic()
    results: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions(),
        "device": devices.name_of(device) or device.type,
        "memory_gb": devices.memory_gb(device),
        "cuda": torch.version.cuda,
        "quick": options.quick,
    }
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        size = tiny_size() if options.quick else paper_size()
        for name, part in _parts(size, device, Path(folder), options.quick).items():
            if time.monotonic() - begun > BUDGET:
                results[name] = {"problem": f"not run: {BUDGET:.0f} s had passed"}
            else:
                results[name] = _result(part)
            failed |= "problem" in results[name] or results[name].get("exit_code", 0) != 0
            print(f"{name}: {json.dumps(results[name])}", flush=True)
            results["seconds"] = time.monotonic() - begun
            options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return int(failed)


def _result(part: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a part found, or why it failed: the other parts are run in any case."""
    try:
        return part()
    except Exception as problem:
        text = (str(problem).splitlines() or [""])[0]
        return {"problem": f"{type(problem).__name__}: {text}"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all parts: 0, or 1 where one failed, or 2 for wrong use or without a GPU."""
    options = _parser().parse_args(arguments)
    if not options.json.absolute().parent.is_dir():
        print(f"error: --json {options.json}: its folder does not exist; create it first", file=sys.stderr)
        return 2
    import torch

    if not options.quick and not torch.cuda.is_available():
        print(f"error: {NO_GPU}", file=sys.stderr)
        return 2
    return _main(options)


if __name__ == "__main__":
    raise SystemExit(main())
