"""``python -m benchmarks.overlap MODEL SCANS``: how well `mre_predict` uses the cores with several scans in one call.

Predicts the scans with overlap (-npp 1) and without (-npp 0), in turn, each in a process of its own, and compares the
label maps. While a call runs, its threads are sampled: "busy" is the share of its wall time in which at least as many
threads as there are cores can run (Linux: state R), whether or not other programs take cores from them; "cores" is its
CPU time divided by its wall time, which other programs do reduce.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SAMPLE_SECONDS = 0.1


@dataclass(frozen=True)
class Call:
    """What was measured of one call: seconds, share of the time in which all cores are wanted, peak bytes."""

    wall: float
    cpu: float
    busy: float
    peak: int

    def __str__(self) -> str:
        return (
            f"{self.wall:.1f} s, CPU {self.cpu:.1f} s ({self.cpu / self.wall:.2f} cores), busy {self.busy:.1%}, peak "
            f"{self.peak / 1e9:.2f} GB"
        )


def running_threads(process: int) -> int:
    """How many threads of a process run or wait for a core only."""
    count = 0
    for folder in Path(f"/proc/{process}/task").iterdir():
        try:
            state = (folder / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0]
        except (OSError, IndexError):  # the thread has ended
            continue
        count += state == "R"
    return count


def measure(model: Path, scans: Path, out: Path, *, ahead: int, cores: int) -> Call:
    """Predict ``scans`` into ``out``.

    Raises:
        RuntimeError: the command fails.
    """
    import psutil

    command = [sys.executable, "-m", "mre_lowshot.cli.predict", "-i", str(scans), "-o", str(out), "-m", str(model)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    begun, samples, busy, cpu, peak = time.monotonic(), 0, 0, 0.0, 0
    with subprocess.Popen(
        [*command, "-device", "cpu", "-npp", str(ahead)], env=environment, stdout=subprocess.DEVNULL
    ) as call:
        process = psutil.Process(call.pid)
        while call.poll() is None:
            try:
                busy += running_threads(call.pid) >= cores
                times, peak = process.cpu_times(), max(peak, process.memory_info().rss)
                cpu = times.user + times.system
            except (OSError, psutil.Error):
                break
            samples += 1
            time.sleep(SAMPLE_SECONDS)
    wall = time.monotonic() - begun
    if call.returncode:
        raise RuntimeError(f"mre_predict ended with exit code {call.returncode}")
    return Call(wall, cpu, busy / max(samples, 1), peak)


def same_labels(one: Path, other: Path) -> bool:
    """Whether both folders hold label maps of the same names and the same content."""
    first, second = (sorted(folder.glob("*.nii.gz")) for folder in (one, other))
    return [p.name for p in first] == [p.name for p in second] and all(
        a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 where label maps differ."""
    parser = argparse.ArgumentParser("python -m benchmarks.overlap", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("model", type=Path, help="a trained model")
    parser.add_argument("scans", type=Path, help="folder of scans for it")
    parser.add_argument("--ahead", type=int, nargs="+", default=[1, 0], metavar="COUNT", help="-npp of each call")
    options = parser.parse_args(arguments)
    cores = len(os.sched_getaffinity(0))
    count = sum(path.name.endswith("_0000.nii.gz") for path in options.scans.iterdir())
    print(f"{count} scans, {cores} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    equal = True
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, str(number)) for number in range(len(options.ahead))]
        for ahead, out in zip(options.ahead, outputs, strict=True):
            print(f"-npp {ahead}: {measure(options.model, options.scans, out, ahead=ahead, cores=cores)}", flush=True)
        for out in outputs[1:]:
            equal &= same_labels(outputs[0], out)
    print(f"label maps {'equal' if equal else 'DIFFER'}")
    return 0 if equal else 1


if __name__ == "__main__":
    raise SystemExit(main())
