"""``mre_train DATASET 1shot fold0``: train a fold, then score it on the fold's other cases."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mre_lowshot.cli import common
from mre_lowshot.errors import UserError

if TYPE_CHECKING:
    import torch

    from mre_lowshot.trainers.distributed import Processes
    from mre_lowshot.trainers.fold import FoldJob
    from mre_lowshot.trainers.trainer import MRETrainer

EPILOG = """Levels: 1shot, 2shot, 3shot (any number), 5pct, loo (leave one out), all. Folds are saved in
preprocessed/DatasetXXX_Name/splits_LEVEL.json; the cases of a fold that are not trained on are its test set, scored
once with the final weights (nothing is chosen on them). A dataset with a single annotated case trains all the same.
5pct trains on 5 percent of the annotated cases, rounded, at least one. A test set of its own (imagesTs, labelsTs) is
scored with mre_predict -i imagesTs and mre_evaluate labelsTs; --no_val then leaves the fold's other cases out.

Writes results/DatasetXXX_Name/MRETrainer__MREPlans__LEVEL/fold_N/: checkpoint_latest.pth, checkpoint_final.pth,
plans.json, progress.png, training_log_*.txt, debug.json, validation/summary.json and quality.csv (the test scans,
least trusted first).

Ctrl-C leaves a usable checkpoint_latest.pth; --c goes on from it.
With two or three annotated scans: `loo all` leaves out each in turn and tells how well such training does, `all fold0`
then trains on all of them.

Several GPUs (or, with -device cpu, processes) train one fold together, each on its share of every mini-batch:
  torchrun --standalone --nproc_per_node=2 -m mre_lowshot.cli.train BTCV 1shot fold0

Exit code: 0 done, 1 a training diverged or test scans failed (named), 2 wrong use, 130 interrupted."""


def _parser() -> argparse.ArgumentParser:
    made = common.parser("mre_train", "Train on one to three annotated scans, score on the others.", EPILOG)
    made.add_argument("dataset", help="id (17), name (BTCV) or full name")
    made.add_argument("level", help="1shot, 2shot, 3shot, 5pct, loo or all")
    made.add_argument("fold", help="fold0, 0 or all")
    made.add_argument("-p", default="MREPlans", metavar="NAME", help="name of the plan (default: %(default)s)")
    made.add_argument("--iterations", type=int, metavar="N", help="train this many iterations (default: the plan's)")
    made.add_argument("--seed", type=int, help="seed of weights and patches (default: 0; with --c and --val, as begun)")
    made.add_argument("--workers", type=int, default=0, help="loader processes (default: %(default)s: in this one)")
    common.add_cohort(made)
    made.add_argument(
        "--deterministic", action="store_true",
        help="the same weights in every run on the same GPU too, more slowly (on the CPU they always are)",
    )  # fmt: skip
    common.add_device(made)
    group = made.add_mutually_exclusive_group()
    group.add_argument("--c", action="store_true", dest="resume", help="go on from the latest checkpoint")
    group.add_argument("--val", action="store_true", help="only validate, with the latest checkpoint")
    group.add_argument("--overwrite", action="store_true", help="start anew where the fold was trained before")
    made.add_argument("--no_val", action="store_true", help="do not score the other cases afterwards")
    common.add_workspace(made)
    return made


def _jobs(options: argparse.Namespace, processes: Processes, device: torch.device) -> list[FoldJob]:
    from dataclasses import replace

    from mre_lowshot.plans import load_plan, results_folder
    from mre_lowshot.preprocessing.prepare import check_prepared
    from mre_lowshot.splits import load_or_make, parse_fold, parse_level, read_cohort, with_cohort
    from mre_lowshot.trainers.fold import FoldJob
    from mre_lowshot.workspace import Workspace

    level, fold = parse_level(options.level), parse_fold(options.fold)
    workspace = Workspace.resolve(options.workspace)
    prepared = workspace.find(options.dataset, "preprocessed")
    plan = load_plan(prepared / f"{options.p}.json")
    names = check_prepared(plan, prepared)
    cohort = None
    if options.cohort:
        level = with_cohort(level, options.cohort)
        cohort = read_cohort(options.cohorts or prepared / "cohorts.json", plan.dataset_name, options.cohort)
    splits = load_or_make(prepared, level, names, cohort=cohort)
    there = results_folder(workspace.results, plan.dataset_name, plan.plans_name, level) / "plans.json"
    if options.iterations is None and (options.resume or options.val) and there.is_file():
        options.iterations = load_plan(there).recipe.iterations
    if options.iterations is not None:
        plan = replace(plan, recipe=replace(plan.recipe, iterations=options.iterations))
    numbers = range(len(splits)) if fold == "all" else [fold]
    if max(numbers) >= len(splits):
        raise UserError(f"fold {max(numbers)}: level {level} has folds 0 to {len(splits) - 1} here; choose one of them")
    seeds = {n: _seed(options, there.parent, n) for n in numbers}
    replaced = tuple(numbers) if options.overwrite else ()
    return [
        FoldJob(plan, level, n, splits[n], prepared, workspace.results, device, seeds[n], processes, replaced)
        for n in numbers
    ]


def _seed(options: argparse.Namespace, model: Path, fold: int) -> int:
    """The seed asked for, or that of the fold to go on with."""
    from mre_lowshot.plans import load_plan

    path = model / f"fold_{fold}" / "plans.json"
    if options.seed is None and (options.resume or options.val) and path.is_file():
        decisions = load_plan(path).fold
        return decisions.seed if decisions else 0
    return options.seed or 0


def _train(job: FoldJob, trainer: MRETrainer, workers: int) -> None:
    from tqdm import tqdm

    total = job.plan.recipe.iterations
    with tqdm(
        total=total,
        initial=trainer.iteration,
        desc=f"fold {job.fold}",
        unit="it",
        disable=None if job.processes.first else True,
    ) as bar:

        def on_step(current: MRETrainer) -> None:
            book = current.logbook
            bar.update()
            if current.iteration % 10 == 0 or current.iteration == total:
                bar.set_postfix(loss=f"{book.recent('loss'):.3f}", dice=f"{book.recent('dice'):.3f}")
            if current.iteration % 50 == 0 or current.iteration == total:
                line = f"iteration {current.iteration} loss {book.recent('loss', 50):.4f}"
                book.say(f"{line} patch Dice {book.recent('dice', 50):.4f}")

        trainer.fit(workers, on_step)


def _fold(options: argparse.Namespace, job: FoldJob) -> dict[str, Any] | None:
    from mre_lowshot import checkpoint
    from mre_lowshot.evaluation.calibration import in_words
    from mre_lowshot.evaluation.summary import format_table, rank_correlation
    from mre_lowshot.inference.pooling import to_weigh
    from mre_lowshot.trainers.fold import make_trainer, validate

    begun = time.monotonic()
    # with 'all', --c goes on with the folds that were begun and starts the others
    begun_before = options.fold.strip().lower() != "all" or (job.folder / checkpoint.LATEST).is_file()
    resume = options.val or (options.resume and begun_before)
    trainer = make_trainer(job, resume, options.overwrite, train=not options.val)
    fold = trainer.plan.fold
    print(f"fold {job.fold}: trains on {', '.join(job.split['train'])} ({job.device}); results in {job.folder}")
    for reason in (fold.reasons if fold else {}).values():
        print(f"  {reason}")
    if not options.val:
        if to_weigh(trainer.plan):
            print("  when trained, mirror images are predicted, which takes a while, to find what registration weighs")
        _train(job, trainer, options.workers)
        seconds = time.monotonic() - begun
        print(f"  trained {trainer.iteration} iterations in {seconds:.0f} s")
        trainer.logbook.say(f"trained to iteration {trainer.iteration} in {seconds:.0f} s")
        for name, reason in (trainer.plan.fold.reasons if trainer.plan.fold else {}).items():
            if fold and name not in fold.reasons:  # found in training
                print(f"  {reason}")
    names = job.split["val"]
    if not job.processes.first:
        return None
    if options.no_val or not names:
        print("  nothing to validate on" if not names else "  validation left out (--no_val)")
        return None
    from tqdm import tqdm

    with tqdm(total=len(names), desc="validate", unit="scan", disable=None, delay=2) as bar:
        summary = validate(job, trainer, names, job.folder / "validation", lambda _: bar.update())
    print(format_table(summary))
    print(f"  {rank_correlation(summary)}")
    print(f"  {in_words(summary['calibration'])}")
    print(f"  {len(names)} test scans; summary in {job.folder / 'validation' / 'summary.json'}")
    return summary


def _main(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    if options.iterations is not None and options.iterations < 1:
        raise UserError(f"--iterations {options.iterations}: must be at least 1")
    if options.workers < 0:
        raise UserError(f"--workers {options.workers}: must be 0 or more")
    from mre_lowshot import devices
    from mre_lowshot.trainers.distributed import started

    if options.deterministic:
        devices.make_deterministic()
    with started(options.device) as (processes, device), _silent(not processes.first):
        jobs = _jobs(options, processes, device)
        summaries = [summary for job in jobs if (summary := _fold(options, job))]
    if len(summaries) > 1:
        import statistics

        means = [s["foreground_mean"]["Dice"] for s in summaries]
        print(
            f"{len(means)} folds: mean Dice {statistics.mean(means):.4f}, SD over folds {statistics.stdev(means):.4f}"
        )
    return 1 if any(s["failed_cases"] for s in summaries) else 0


@contextmanager
def _silent(silent: bool) -> Iterator[None]:
    """Nothing on stdout; errors still come on stderr."""
    if not silent:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``mre_train``."""
    return common.run(_main, arguments)


if __name__ == "__main__":  # as torchrun -m starts it
    raise SystemExit(main())
