"""``python -m benchmarks``: the plain reference against ours, in one process, taking turns."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mre_lowshot.errors import UserError

if TYPE_CHECKING:
    import torch

    from benchmarks.setting import Setting

DEFAULT = ("training", "prediction", "width", "loader")
NAMES = (*DEFAULT, "compile")
EPILOG = """Sections:
  training     a step (forward, loss, backward, optimizer): time, multiply-adds, share of the measured
               matrix-multiply ceiling, memory; loss and gradients compared
  prediction   a scan with centre tiles: the same, and labels compared. On the CPU the paper-size scan of
               216x216x48 is extrapolated from 16 tiles
  width        our training step over N_e 512, 1024, 2048, 4096 (paper size only)
  loader       patches a second with 0, 1 and 2 loader processes, and how long training waits for them, batch 24
               (CPU plan only)
  compile      only if named: our prediction network through torch.compile against itself as it is, on one batch of
               tiles that keep their centre, fresh weights

"Plain" is benchmarks/plain.py: torch's own operations, the same weights, threads, batch and precision. Figures are
the median (lowest to highest) of turns taken alternately."""


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--only", nargs="+", choices=NAMES, default=DEFAULT, metavar="NAME",
                      help=f"run only these sections: {', '.join(NAMES)}")  # fmt: skip
    made.add_argument("--size", nargs="+", choices=("paper", "cpu"), default=("paper", "cpu"),
                      help="the paper's network, that of the CPU plan (default: both)")  # fmt: skip
    made.add_argument("--quick", action="store_true", help="a tiny network instead: seconds, to see that all runs")
    made.add_argument("--device", nargs="+", default=["auto"], metavar="NAME",
                      help="cpu, cuda (default: the CPU, and CUDA where there is one)")  # fmt: skip
    made.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's)")
    made.add_argument("--repeats", type=int, default=3, metavar="N", help="turns each (default: %(default)s)")
    made.add_argument("--checkpoint", type=Path, metavar="FILE",
                      help="predict with this trained network (default: that of a few steps)")  # fmt: skip
    made.add_argument("--case", type=Path, metavar="FILE",
                      help="predict this preprocessed case (.../MREPlans/CASE.npz), its middle on the CPU")  # fmt: skip
    made.add_argument("--json", type=Path, metavar="FILE", help="write all figures here, after each section")
    return made


def _sections() -> dict[str, Callable[[Setting], dict[str, Any]]]:
    from benchmarks.compiling import compiled
    from benchmarks.data import loader
    from benchmarks.prediction import prediction
    from benchmarks.training import embedding_width, training

    return dict(zip(NAMES, (training, prediction, embedding_width, loader, compiled), strict=True))


def _check(options: argparse.Namespace) -> None:
    for name, value in (("--threads", options.threads), ("--repeats", options.repeats)):
        if value is not None and value < 1:
            raise UserError(f"{name} {value}: must be at least 1")
    if options.checkpoint and (options.quick or len(options.size) != 1):
        raise UserError("--checkpoint brings its own network: name one --size (for batch and scan), without --quick")
    if options.case and not options.checkpoint:
        raise UserError("--case is predicted with trained weights: name their --checkpoint too")
    if options.json and not options.json.absolute().parent.is_dir():
        raise UserError(f"--json {options.json}: its folder is missing; make it first")


def _devices(names: Sequence[str]) -> list[torch.device]:
    import torch

    from mre_lowshot import devices

    if list(names) == ["auto"]:
        names = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return [devices.resolve(name) for name in names]


def _ceiling(device: torch.device, quick: bool) -> float:
    from benchmarks.timing import matrix_ceiling

    side = 256 if quick else 8192 if device.type == "cuda" else 2048
    found = matrix_ceiling(device, side, 5)
    print(f"ceiling, {device.type}: {found:.0f} GFLOP/s (torch.mm, float32, {side} x {side})", flush=True)
    return found


def _skipped(section: str, setting: Setting) -> bool:
    """Loading is a matter of the CPU plan, N_e one of the paper's network; each is shown where it matters."""
    return setting.size.name == {"loader": "paper", "width": "cpu"}.get(section)


def _settings(options: argparse.Namespace, device: torch.device, folder: Path) -> list[Setting]:
    from benchmarks.setting import Setting, of_case, of_checkpoint
    from benchmarks.sizes import SIZES

    ceiling = _ceiling(device, options.quick)
    made = []
    for name in ("tiny",) if options.quick else options.size:
        size, weights = SIZES[name](), None
        if options.checkpoint:
            size, weights = of_checkpoint(size, options.checkpoint)
        scan = of_case(options.case) if options.case else None
        made.append(Setting(size, device, options.repeats, ceiling, folder, _say, weights, scan))
    return made


def _say(line: str) -> None:
    print(line, flush=True)


def _write(path: Path | None, results: dict[str, Any]) -> None:
    if path:
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _main(arguments: Sequence[str] | None) -> None:
    options = _parser().parse_args(arguments)
    _check(options)
    import torch

    from mre_lowshot.checkpoint import versions

    if options.threads:
        torch.set_num_threads(options.threads)
    results: dict[str, Any] = {
        "versions": versions(), "machine": platform.machine(), "cores": os.cpu_count(),
        "threads": torch.get_num_threads(), "repeats": options.repeats, "results": {},
    }  # fmt: skip
    _say(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} cores, "
         f"load {os.getloadavg()[0]:.1f} at the start")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for device in _devices(options.device):
            for setting in _settings(options, device, Path(folder)):
                found = results["results"].setdefault(f"{setting.size.name} {device}", {"ceiling": setting.ceiling})
                _say(f"\n== {setting.size.name} size, {device} ==")
                for name, section in _sections().items():
                    if name in options.only and _skipped(name, setting):
                        _say(f"{name}: not of this size")
                    elif name in options.only:
                        begun = time.monotonic()
                        found[name] = section(setting)
                        found[name]["section_seconds"] = time.monotonic() - begun
                        _write(options.json, results)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sections asked for; 2 for wrong use, told on one line."""
    try:
        _main(arguments)
    except UserError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
