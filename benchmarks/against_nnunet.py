"""Our method against nnU-Net with one labelled scan, on this machine's CPU: training time, and Dice on the other scans.

nnU-Net runs as a separate program in its own environment:

    python3 -m venv nnunet-env
    nnunet-env/bin/pip install torch==2.13.0 torchvision==0.28.0 nnunetv2==2.8.1
    python -m benchmarks.against_nnunet path/to/Dataset004_Hippocampus hippocampus_014 \\
        --nnunet_python nnunet-env/bin/python --out comparison

(Install torch and torchvision from one index: a CPU build of one does not load with a CUDA build of the other.)
Both plan and preprocess a dataset with only that scan, train (nnU-Net with its own plan and a schedule of 500
iterations; ours with the default recipe and few iterations), predict all other labelled scans (nnU-Net without
test-time augmentation) and are scored by mre_evaluate. Training time is that of the whole training command with its
start-up. comparison/results.json is written after every step; steps listed there are not run again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.subprocess_env import environment_python
from mre_lowshot.errors import UserError
from mre_lowshot.experiments.baselines.ants_process import last_line
from mre_lowshot.files import read_json, write_json

TRAINER = Path(__file__).parent / "nnunet_trainer"
# nnU-Net uses as many threads as there are cores, whatever its settings: the number of cores is replaced.
NNUNET = "import multiprocessing, sys; multiprocessing.cpu_count = lambda: {threads}; from {module} import {entry}; "
NNUNET += "sys.argv[0] = '{entry}'; {entry}()"
OURS = "from mre_lowshot.cli.{name} import main; raise SystemExit(main())"


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        source: the dataset's folder.
        scan: the case to train on.
        nnunet_python: Python executable of nnU-Net's environment.
        out: folder for all output.
        nnunet_iterations, iterations: length of nnU-Net's training and of ours.
        threads: of each program.
        changes: fields of our plan to change, KEY=VALUE.
    """

    source: Path
    scan: str
    nnunet_python: Path
    out: Path
    nnunet_iterations: int
    iterations: int
    threads: int
    changes: tuple[str, ...] = ()

    @property
    def raw(self) -> Path:
        """Folder of the dataset with the single scan."""
        return self.out / "raw" / self.source.name

    @property
    def number(self) -> str:
        return str(int(self.source.name[7:10]))

    @property
    def environment(self) -> dict[str, str]:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(self.threads))
        nnunet = {
            "nnUNet_raw": str(self.out / "raw"),
            "nnUNet_preprocessed": str(self.out / "nnunet_preprocessed"),
            "nnUNet_results": str(self.out / "nnunet_results"),
            "nnUNet_extTrainer": str(TRAINER),
            "nnUNet_n_proc_DA": "1",
            "SHORT_ITERATIONS": str(self.nnunet_iterations),
        }
        checkout = str(Path(__file__).resolve().parents[1])
        path = os.pathsep.join(filter(None, (checkout, os.environ.get("PYTHONPATH"))))
        return {**os.environ, **threads, **nnunet, "PYTHONPATH": path}

    def nnunet(self, module: str, entry: str, *arguments: object) -> list[str]:
        code = NNUNET.format(threads=self.threads, module=module, entry=entry)
        return [str(self.nnunet_python), "-c", code, *map(str, arguments)]

    def ours(self, name: str, *arguments: object) -> list[str]:
        return [sys.executable, "-c", OURS.format(name=name), *map(str, arguments)]


def steps(job: Comparison) -> dict[str, list[str]]:
    """The commands, in order, by name."""
    others, work = job.out / "others", job.out / "mre"
    device = ("-device", "cpu")
    workspace = ("--workspace", work, "-p", "Compared")
    changes = ("--set", *job.changes) if job.changes else ()
    number, trainer = job.number, ("-tr", "ShortTrainer")
    predicted = {side: job.out / f"predicted_{side}" for side in ("ours", "nnunet")}
    made = {
        "ours: plan": job.ours("plan", "-d", job.raw, *workspace, *device, *changes),
        "ours: train": job.ours("train", number, "1shot", "fold0", "--iterations", job.iterations, *workspace,
                                *device, "--overwrite"),
        "ours: predict": job.ours("predict", "-i", others, "-o", predicted["ours"], "-d", number, *workspace, *device),
        "nnunet: plan": job.nnunet("nnunetv2.experiment_planning.plan_and_preprocess_entrypoints",
                                   "plan_and_preprocess_entry", "-d", number, "-c", "3d_fullres",
                                   "-npfp", 1, "-np", 1),
        "nnunet: train": job.nnunet("nnunetv2.run.run_training", "run_training_entry", number, "3d_fullres", "all",
                                    *trainer, *device),
        "nnunet: predict": job.nnunet("nnunetv2.inference.predict_from_raw_data", "predict_entry_point", "-i", others,
                                      "-o", predicted["nnunet"], "-d", number, "-c", "3d_fullres", "-f", "all",
                                      *trainer, *device, "--disable_tta", "-npp", 1, "-nps", 1),
    }  # fmt: skip
    for side, folder in predicted.items():
        made[f"{side}: evaluate"] = job.ours("evaluate", job.out / "references", folder, "-djfile",
                                             job.raw / "dataset.json", "-o", job.out / f"scores_{side}")  # fmt: skip
    return made


def prepare(job: Comparison) -> list[str]:
    """Write the dataset with the single scan, the other scans and their references; returns the names of the others.

    Raises:
        UserError: the dataset or the scan is missing, or no other scan is labelled.
    """
    listed = read_json(job.source / "dataset.json", "dataset.json")
    ending = listed["file_ending"]
    labelled = sorted(path.name[: -len(ending)] for path in (job.source / "labelsTr").glob(f"*{ending}"))
    if job.scan not in labelled:
        raise UserError(f"{job.source / 'labelsTr'}: has no {job.scan}{ending}; its cases are {', '.join(labelled)}")
    others = [name for name in labelled if name != job.scan]
    if not others:
        raise UserError(f"{job.source}: {job.scan} is its only labelled case; none is left to test on")
    folders = {"imagesTr": job.raw / "imagesTr", "labelsTr": job.raw / "labelsTr"}
    test_folders = {"imagesTr": job.out / "others", "labelsTr": job.out / "references"}
    for folder in (*folders.values(), *test_folders.values()):
        folder.mkdir(parents=True, exist_ok=True)
    for name in labelled:
        target = folders if name == job.scan else test_folders
        shutil.copyfile(job.source / "labelsTr" / f"{name}{ending}", target["labelsTr"] / f"{name}{ending}")
        for channel in (job.source / "imagesTr").glob(f"{name}_[0-9][0-9][0-9][0-9]{ending}"):
            shutil.copyfile(channel, target["imagesTr"] / channel.name)
    write_json(job.raw / "dataset.json", {**listed, "numTraining": 1})
    return others


def compare(job: Comparison, log: Callable[[str], None]) -> dict[str, Any]:
    """Run every step that has not been run, and print and return the results.

    Raises:
        UserError: a step failed (its output is in its log), or ``out`` contains another comparison.
    """
    path = job.out / "results.json"
    settings = {"dataset": job.source.name, "scan": job.scan, "threads": job.threads, "iterations": job.iterations,
                "nnunet_iterations": job.nnunet_iterations, "set": list(job.changes)}  # fmt: skip
    results: dict[str, Any] = {"settings": settings, "seconds": {}}
    if path.is_file():
        results = read_json(path, "results")
    if results["settings"] != settings:
        raise UserError(f"{path}: is of another comparison, {results['settings']}; give another --out")
    results["test_scans"] = len(prepare(job))
    for name, command in steps(job).items():
        if name not in results["seconds"]:
            results["seconds"][name] = _timed(name, command, job)
            write_json(path, results)
        log(f"{name}: {results['seconds'][name]:.1f} s")
    dice = {}
    for side in ("ours", "nnunet"):
        dice[side] = read_json(job.out / f"scores_{side}" / "summary.json", "scores")["foreground_mean"]["Dice"]
    ours, theirs = results["seconds"]["ours: train"], results["seconds"]["nnunet: train"]
    results |= {"dice": dice, "nnunet_time_over_ours": theirs / ours}
    write_json(path, results)
    log(
        f"\n{results['test_scans']} test scans, {job.threads} threads\n"
        f"nnU-Net, {job.nnunet_iterations} iterations: Dice {dice['nnunet']:.4f}, training {theirs:.1f} s\n"
        f"ours, {job.iterations} iterations: Dice {dice['ours']:.4f}, training {ours:.1f} s "
        f"(nnU-Net's time / ours: {theirs / ours:.1f})\n"
        f"(prediction, not counted: nnU-Net {results['seconds']['nnunet: predict']:.0f} s, "
        f"ours {results['seconds']['ours: predict']:.0f} s, registration to the training scan included)\n"
        f"ours reaches nnU-Net's Dice: {'yes' if dice['ours'] >= dice['nnunet'] else 'no'}; "
        f"in a tenth of its time: {'yes' if 10 * ours <= theirs else 'no'}"
    )
    return results


def _timed(name: str, command: list[str], job: Comparison) -> float:
    path = job.out / f"{name.replace(': ', '_')}.log"
    begun = time.perf_counter()
    with path.open("w", encoding="utf-8") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, env=job.environment, cwd=job.out)
    if done.returncode:
        raise UserError(f"{name}: failed ({last_line(path.read_text(encoding='utf-8'))}); see {path}")
    return time.perf_counter() - begun


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.against_nnunet", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("dataset", type=Path, help="folder of a dataset in nnU-Net's layout")
    parser.add_argument("scan", help="the case to train on")
    parser.add_argument("--nnunet_python", type=Path, required=True, metavar="FILE",
                        help="Python executable of the environment with nnunetv2")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for all output")
    parser.add_argument("--nnunet_iterations", type=int, default=500, metavar="N",
                        help="length of nnU-Net's training (default: %(default)s)")  # fmt: skip
    parser.add_argument("--iterations", type=int, default=60, metavar="N",
                        help="length of our training (default: %(default)s)")  # fmt: skip
    parser.add_argument("--set", nargs="+", default=[], dest="changes", metavar="KEY=VALUE",
                        help="change fields of our plan; the network alone, without registration: "
                        "recipe.atlas.registration=none network.atlas_prior=false "
                        "recipe.refinement.atlas_weight=0 recipe.refinement.atlas_share=0")  # fmt: skip
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="of each program (default: %(default)s)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; exit code 2 for wrong use or a failed step, with one line on stderr."""
    options = _parser().parse_args(arguments)
    try:
        for name in ("nnunet_iterations", "iterations", "threads"):
            if getattr(options, name) < 1:
                raise UserError(f"--{name} {getattr(options, name)}: must be at least 1")
        python = environment_python(options.nnunet_python, "--nnunet_python")
        job = Comparison(
            options.dataset.resolve(), options.scan, python, options.out.resolve(),
            options.nnunet_iterations, options.iterations, options.threads, tuple(options.changes),
        )  # fmt: skip
        compare(job, lambda line: print(line, flush=True))
    except UserError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
