"""Training on one scan more, from pretrained weights and from scratch, at equal and at a third of the iterations.

    mre_plan_and_preprocess -d Hippocampus
    python -m benchmarks.pretrained mre_data/preprocessed/Dataset004_Hippocampus --out measured

Of a cohort in random order, the last --test scans are test scans and are never trained on. A draw is three consecutive
scans of the others. It is trained on its first scan; on two, from scratch and from the weights for one; and on all
three, from scratch and from the weights for two (those trained in the same way, at full length). Each of the latter is
trained for --iterations and for a third of them, with the same seed, and scored by the mean Dice of the test scans, as
mre_train does. OUT/results.jsonl holds a line for each training; trainings that are listed are not repeated.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.arguments import add_prepared
from mre_lowshot.cli import common
from mre_lowshot.config import Plan
from mre_lowshot.config.check import require_whole
from mre_lowshot.config.plan_files import load_plan
from mre_lowshot.data.splits import Split, read_cohort
from mre_lowshot.errors import UserError
from mre_lowshot.files import json_line
from mre_lowshot.inference import checkpoint
from mre_lowshot.trainers.fold import FoldJob, TrainMode, make_trainer, validate

RESULTS = "results.jsonl"


@dataclass(frozen=True)
class Training:
    """One training: its scans in the order drawn, and how it begins."""

    draw: int
    train: tuple[str, ...]
    start: str  # scratch, or pretrained: with the weights for one scan less
    iterations: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"draw{self.draw}_{len(self.train)}_{self.start}_{self.iterations}"


@dataclass(frozen=True)
class Measurement:
    """What is measured: the preprocessed dataset, its test scans, and the folder for results."""

    prepared: Path
    plan: Plan
    test: tuple[str, ...]
    out: Path
    iterations: int
    seed: int

    def trainings(self, order: Sequence[str], draws: int) -> Iterator[Training]:
        """All trainings, each after the one that it begins with."""
        third = max(1, round(self.iterations / 3))
        for draw in range(draws):
            scans = tuple(order[(draw + i) % len(order)] for i in range(3))
            yield Training(draw, scans[:1], "scratch", self.iterations)
            for count in (2, 3):
                for start in ("pretrained", "scratch"):
                    for iterations in (self.iterations, third):
                        yield Training(draw, scans[:count], start, iterations)

    def job(self, training: Training) -> FoldJob:
        """Where a training reads and writes."""
        optimizer = replace(self.plan.recipe.optimizer, iterations=training.iterations)
        plan = replace(self.plan, recipe=replace(self.plan.recipe, optimizer=optimizer))
        split: Split = {"train": sorted(training.train), "val": list(self.test)}
        before = None
        if training.start == "pretrained":
            start = "scratch" if len(training.train) == 2 else "pretrained"
            earlier = Training(training.draw, training.train[:-1], start, self.iterations)
            before = self.job(earlier).folder / checkpoint.FINAL
        return FoldJob(
            plan,
            f"{len(split['train'])}shot",
            0,
            split,
            prepared=self.prepared,
            results=self.out / training.name,
            device=torch.device("cpu"),
            seed=self.seed + training.draw,
            pretrained=before,
        )

    def run(self, training: Training) -> dict[str, Any]:
        """Train and score; the line for the results."""
        job = self.job(training)
        with ExitStack() as held:
            held.enter_context(job.reading())
            held.enter_context(job.locked())
            begun = time.perf_counter()
            trainer = make_trainer(job, TrainMode.OVERWRITE)
            trainer.fit()
            seconds = time.perf_counter() - begun
            summary = validate(job, trainer, self.test, job.folder / "validation")
        by_case = {row["case"]: _dice_of(row) for row in summary["metric_per_case"]}
        return {
            "dataset": self.plan.dataset_name,
            "plan": self.plan.plans_name,
            **asdict(training),
            "seed": job.seed,
            "test": list(self.test),
            "dice": summary["foreground_mean"]["Dice"],
            "dice_by_case": by_case,
            "seconds": round(seconds, 1),
            "threads": torch.get_num_threads(),
        }


def _dice_of(row: dict[str, Any]) -> float | None:
    values = [m["Dice"] for m in row["metrics"].values() if m["Dice"] is not None and m["Dice"] == m["Dice"]]
    return round(statistics.mean(values), 4) if values else None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of results; one that a killed run has cut off is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def add_line(path: Path, line: dict[str, Any]) -> None:
    """Append a line; one that was cut off before is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        file.seek(0)
        text = file.read()
        file.write(("\n" if text and not text.endswith("\n") else "") + json_line(line) + "\n")


def report(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Mean Dice by number of scans, start and iterations, and the mean difference of pretrained and scratch."""
    groups: dict[tuple[int, int], dict[str, dict[int, float]]] = {}
    for line in lines:
        key = (len(line["train"]), line["iterations"])
        groups.setdefault(key, {}).setdefault(line["start"], {})[line["draw"]] = line["dice"]
    text = []
    for (count, iterations), starts in sorted(groups.items()):
        scratch, pretrained = starts.get("scratch", {}), starts.get("pretrained", {})
        both = sorted(scratch.keys() & pretrained.keys())
        parts = [f"{name} {statistics.mean(d.values()):.4f}" for name, d in sorted(starts.items())]
        if both:
            different = [pretrained[d] - scratch[d] for d in both]
            spread = f" (SD {statistics.stdev(different):.4f})" if len(both) > 1 else ""
            better = sum(d > 0 for d in different)
            parts.append(
                f"pretrained - scratch {statistics.mean(different):+.4f}{spread}, better in {better} of {len(both)} "
                "draws"
            )
        text.append(f"{count} scan(s), {iterations} iterations: {'; '.join(parts)}")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.pretrained", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add_prepared(parser, cohort="develop")
    parser.add_argument("--draws", type=int, default=3, metavar="N", help="draws (default: %(default)s)")
    parser.add_argument("--test", type=int, default=5, metavar="N", help="test scans (default: %(default)s)")
    parser.add_argument("--iterations", type=int, metavar="N", help="of the longer trainings (default: the plan's)")
    parser.add_argument("--seed", type=int, default=0, help="of the order and of the trainings (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder for results; a later run continues")
    return parser


def _main(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    plan = load_plan(options.prepared / f"{options.plans}.json")
    order = read_cohort(options.cohorts, plan.dataset_name, options.cohort)
    require_whole("--test", options.test, 1, max(1, len(order) - 3))
    require_whole("--draws", options.draws, 1, 100)
    random.Random(options.seed).shuffle(order)
    iterations = options.iterations or plan.recipe.optimizer.iterations
    require_whole("--iterations", iterations, 3, 1_000_000)
    if len(order) < 4:
        raise UserError(f"cohort {options.cohort!r}: has {len(order)} cases; three to train on and one to test needed")
    test = tuple(sorted(order[-options.test :]))
    measured = Measurement(options.prepared, plan, test, options.out, iterations, options.seed)
    path = options.out / RESULTS
    keys = ("draw", "train", "start", "iterations")
    for training in measured.trainings(order[: -options.test], options.draws):
        known = read_lines(path)
        wanted = json.loads(json_line(asdict(training)))
        if any(all(line.get(key) == wanted[key] for key in keys) for line in known):
            continue
        line = measured.run(training)
        add_line(path, line)
        print(f"{training.name}: Dice {line['dice']:.4f}, trained in {line['seconds']:.0f} s", flush=True)
    for text in report(read_lines(path)):
        print(text)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the measurement; exit code 2 for wrong use, with one line on stderr."""
    return common.run(_main, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
