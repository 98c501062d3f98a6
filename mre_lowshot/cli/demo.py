"""``mre_demo``: the whole pipeline on a synthetic dataset, through the real commands, in minutes on a CPU."""

from __future__ import annotations

import argparse
import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mre_lowshot.cli import common
from mre_lowshot.errors import UserError

EPILOG = """Makes seven synthetic abdomens (six organs, HU-like intensities), then runs
  mre_plan_and_preprocess, mre_train Synthetic 1shot fold0, mre_predict on the six others, mre_evaluate
and mre_report, and draws an overlay. Nothing is downloaded."""


def _parser() -> argparse.ArgumentParser:
    made = common.parser("mre_demo", "Try the whole pipeline on synthetic scans: no data needed.", EPILOG)
    made.add_argument(
        "-o", type=common.path, default=Path("mre_demo"), metavar="DIR", help="folder (default: %(default)s)"
    )
    made.add_argument(
        "--iterations",
        type=int,
        default=250,
        metavar="N",
        help="number of training iterations (default: %(default)s, for a short demo)",
    )
    made.add_argument("--seed", type=int, default=0, help="seed of subjects and training (default: %(default)s)")
    made.add_argument(
        "--overwrite",
        action="store_true",
        help="replace an earlier demo in the folder; files that it has not made stay",
    )
    common.add_device(made)
    return made


def _command(main: Callable[[Sequence[str] | None], int], name: str, arguments: list[str]) -> None:
    print(f"\n$ {shlex.join([name, *arguments])}", flush=True)
    code = main(arguments)
    if code:
        raise UserError(f"{name} exited with code {code}; the demo stops here")


def _dataset(root: Path, seed: int) -> tuple[Path, Path, list[str]]:
    """Write the seven subjects; copy the six that are not trained on, and their references, to separate folders."""
    from mre_lowshot.data.synthetic import write_dataset

    raw = write_dataset(root / "raw", seed=seed)
    scans, references = root / "new_scans", root / "new_scans_reference"
    scans.mkdir(exist_ok=True)
    references.mkdir(exist_ok=True)
    names = sorted(path.name.removesuffix("_0000.nii.gz") for path in (raw / "imagesTr").iterdir())
    for name in names[1:]:
        shutil.copyfile(raw / "imagesTr" / f"{name}_0000.nii.gz", scans / f"{name}_0000.nii.gz")
        shutil.copyfile(raw / "labelsTr" / f"{name}.nii.gz", references / f"{name}.nii.gz")
    return scans, references, names[1:]


def _main(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    root: Path = options.o
    if not 1 <= options.iterations <= 10_000_000:
        raise UserError(f"--iterations {options.iterations}: must be at least 1 (at most 10000000)")

    from mre_lowshot.locks import locked
    from mre_lowshot.workflows.demo_folder import DemoFolder

    with locked(root, "demo", "makes a demo in it"):
        folder = DemoFolder(root, overwrite=options.overwrite)
        try:
            return _run_demo(options, folder.update)
        finally:
            folder.update()


def _run_demo(options: argparse.Namespace, note_files: Callable[[], None]) -> int:
    root: Path = options.o

    from mre_lowshot.cli import evaluate, plan, predict, report, train
    from mre_lowshot.data.synthetic import LABELS
    from mre_lowshot.report.overlays import draw_case

    begun = time.monotonic()
    print("making seven synthetic subjects ...", flush=True)
    scans, references, others = _dataset(root, options.seed)
    note_files()
    dataset = root / "raw" / "Dataset900_Synthetic"
    here = ["--workspace", str(root)]
    device = ["-device", options.device]
    iterations = ["--iterations", str(options.iterations)]
    seed = ["--seed", str(options.seed)]
    _command(plan.main, "mre_plan_and_preprocess", ["-d", str(dataset), *here, *device])
    note_files()
    _command(train.main, "mre_train", ["Synthetic", "1shot", "fold0", "--no_val", *iterations, *seed, *here, *device])
    note_files()
    predictions = root / "predictions"
    _command(predict.main, "mre_predict", ["-i", str(scans), "-o", str(predictions), *here, *device])
    note_files()
    _command(
        evaluate.main, "mre_evaluate", [str(references), str(predictions), "-djfile", str(dataset / "dataset.json")]
    )
    note_files()
    page = predictions / "report.html"
    _command(report.main, "mre_report", [str(predictions)])
    picture, drawn = root / f"overlay_{others[0]}.png", f"{others[0]}.nii.gz"
    draw_case(
        picture,
        [scans / f"{others[0]}_0000.nii.gz"],
        predictions / drawn,
        labels=LABELS,
        title=f"{others[0]}: one-shot",
        reference=references / drawn,
    )
    results = next((root / "results").glob("*/*/fold_0"))
    print(f"\ndone in {time.monotonic() - begun:.0f} s: one annotated scan, six others segmented")
    print(f"  scans        {scans}\n  predictions  {predictions}\n  model        {results}")
    print(f"  scores       {predictions / 'summary.json'} (and summary.csv)\n  overlay      {picture}")
    print(f"  report       {page} (open it with a browser)")
    view = shlex.join(["mre_view", str(predictions), "--reference", str(references)])
    print(f"Look at the scans in the browser: {view}")
    print("Your own scans: docs/first_steps.md, or mre_import -h")
    print(common.DISCLAIMER)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``mre_demo``."""
    return common.run(_main, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
