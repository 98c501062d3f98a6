"""``python -m benchmarks``: the plain reference against our implementation, in one process, in alternating turns."""

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
  training     a step (forward, loss, backward, optimizer): time, multiply-adds, share of the ceiling (the measured
               speed of a matrix product), memory; agreement of loss and gradients
  prediction   a scan with centre tiles: the same, and agreement of labels. On the CPU the time of the paper's scan of
               216x216x48 is extrapolated from 16 tiles
  width        our training step with N_e 512, 1024, 2048, 4096 (paper size only)
  loader       patches a second with 0, 1 and 2 loader processes, and the time that training waits for them, batch 24
               (CPU plan only)
  compile      only if named: our prediction network with torch.compile against the uncompiled one, on one batch of
               tiles that keep their centre, with initial weights

"Plain" is benchmarks/plain.py: torch's own operations, with the same weights, threads, batch and precision. Figures
are the median (minimum to maximum) of alternating turns."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=NAMES, default=DEFAULT, metavar="NAME",
                        help=f"run only these sections: {', '.join(NAMES)}")  # fmt: skip
    parser.add_argument("--size", nargs="+", choices=("paper", "cpu"), default=("paper", "cpu"),
                        help="the paper's network or that of the CPU plan (default: both)")  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true", help="a tiny network instead: takes seconds, to check that everything runs"
    )
    parser.add_argument("--device", nargs="+", default=["auto"], metavar="NAME",
                        help="cpu, cuda (default: the CPU, and CUDA where available)")  # fmt: skip
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="turns of each (default: %(default)s)")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE",
                        help="predict with this trained network (default: one of a few training steps)")  # fmt: skip
    parser.add_argument(
        "--case", type=Path, metavar="FILE",
        help="predict this preprocessed case (.../MREPlans/CASE.npz), on the CPU its middle part",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file, after each section")
    return parser


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
        raise UserError("--checkpoint has its own network: give one --size (for batch and scan), without --quick")
    if options.case and not options.checkpoint:
        raise UserError("--case needs trained weights: give their --checkpoint too")
    if options.json and not options.json.absolute().parent.is_dir():
        raise UserError(f"--json {options.json}: its folder does not exist; create it first")


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
    _print(f"ceiling, {device.type}: {found:.0f} GFLOP/s (torch.mm, float32, {side} x {side})")
    return found


def _skipped(section: str, setting: Setting) -> bool:
    """Loading is measured with the CPU plan only, N_e with the paper's network only."""
    return setting.size.name == {"loader": "paper", "width": "cpu"}.get(section)


def _settings(options: argparse.Namespace, device: torch.device, folder: Path) -> list[Setting]:
    from benchmarks.setting import Setting, read_case, read_checkpoint
    from benchmarks.sizes import SIZES

    ceiling = _ceiling(device, options.quick)
    made = []
    for name in ("tiny",) if options.quick else options.size:
        size, weights = SIZES[name](), None
        if options.checkpoint:
            size, weights = read_checkpoint(size, options.checkpoint)
        scan = read_case(options.case) if options.case else None
        made.append(Setting(size, device, options.repeats, ceiling, folder, _print, weights, scan))
    return made


def _print(line: str) -> None:
    print(line, flush=True)


def _write(path: Path | None, results: dict[str, Any]) -> None:
    if path:
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _main(arguments: Sequence[str] | None) -> None:
    options = _parser().parse_args(arguments)
    _check(options)
    import torch

    from mre_lowshot.inference.checkpoint import versions

    if options.threads:
        torch.set_num_threads(options.threads)
    results: dict[str, Any] = {
        "versions": versions(), "machine": platform.machine(), "cores": os.cpu_count(),
        "threads": torch.get_num_threads(), "repeats": options.repeats, "results": {},
    }  # fmt: skip
    _print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} cores, "
           f"load {os.getloadavg()[0]:.1f} at the start")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for device in _devices(options.device):
            for setting in _settings(options, device, Path(folder)):
                found = results["results"].setdefault(f"{setting.size.name} {device}", {"ceiling": setting.ceiling})
                _print(f"\n== {setting.size.name} size, {device} ==")
                for name, section in _sections().items():
                    if name in options.only and _skipped(name, setting):
                        _print(f"{name}: not measured for this size")
                    elif name in options.only:
                        begun = time.monotonic()
                        found[name] = section(setting)
                        found[name]["section_seconds"] = time.monotonic() - begun
                        _write(options.json, results)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the selected sections; exit code 2 for wrong use, with one line on stderr."""
    try:
        _main(arguments)
    except UserError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
