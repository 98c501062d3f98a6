"""``python -m benchmarks.start MODEL SCAN``: how long `mre_predict` takes before it reads a scan.

Each call is a process of its own, which ends when the scan's stages begin: the model is loaded and the scan was read.
Printed, from its start: when the scan's file is opened and when the stages begin; the CPU time until then, which other
programs change less; and the packages with a long import (`HEAVY`) that were loaded then.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("numpy", "torch", "torch._dynamo", "sympy", "scipy.ndimage", "SimpleITK", "skimage", "matplotlib", "pydicom",
         "highdicom", "batchgenerators", "distributed")  # fmt: skip
CODE = f"""
import json, os, sys, time
begun, scan, last = float(sys.argv[1]), os.path.abspath(sys.argv[2]), sys.argv[3]
found = {{}}
def note(what):
    loaded = [name for name in {HEAVY!r} if name in sys.modules]
    found.setdefault(what, [time.time() - begun, time.process_time(), loaded])
def end():
    print("found" + json.dumps(found), flush=True)
    os._exit(0)
def hook(event, values):
    if event == "open" and isinstance(values[0], (str, os.PathLike)) and os.path.abspath(values[0]) == scan:
        note("read")
        if last == "read":
            end()
sys.addaudithook(hook)
from mre_lowshot.cli.predict import main
class Stages:
    def find_spec(self, name, path=None, target=None):
        if name == "mre_lowshot.workflows.prediction_run":  # torch and the predictor are loaded
            from mre_lowshot.inference.predictor import Predictor
            def preprocess(self, *arguments, **options):
                note("stages")
                end()
            Predictor.preprocess = preprocess
sys.meta_path.insert(0, Stages())
raise SystemExit(main(sys.argv[4:]) or 1)
"""


@dataclass(frozen=True)
class Moment:
    """Seconds since the start, CPU seconds, and the heavy packages that were loaded."""

    wall: float
    cpu: float
    loaded: list[str]


def start(model: Path, scan: Path, last: str = "stages") -> dict[str, Moment]:
    """When the scan's file was opened (``read``) and its stages began (``stages``); the process ends at ``last``.

    Raises:
        RuntimeError: the command fails.
    """
    with tempfile.TemporaryDirectory() as out:
        options = ["-i", str(scan), "-o", out, "-m", str(model), "-device", "cpu"]
        command = [sys.executable, "-c", CODE, str(time.time()), str(scan), last, *options]
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise RuntimeError(done.stderr)
    line = next(line for line in done.stdout.splitlines() if line.startswith("found"))
    return {what: Moment(*values) for what, values in json.loads(line.removeprefix("found")).items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0."""
    parser = argparse.ArgumentParser("python -m benchmarks.start", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("model", type=Path, help="a trained model")
    parser.add_argument("scan", type=Path, help="a scan for it")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}, {options.repeats} calls", flush=True)
    found = [start(options.model, options.scan) for _ in range(options.repeats)]
    for what, text in (("read", "the scan is opened"), ("stages", "its stages begin")):
        wall, cpu = [one[what].wall for one in found], [one[what].cpu for one in found]
        loaded = sorted({name for one in found for name in one[what].loaded})
        print(f"{text}: median {statistics.median(wall):.2f} s ({min(wall):.2f} to {max(wall):.2f}), CPU "
              f"{statistics.median(cpu):.2f} s; loaded: {', '.join(loaded)}")  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
