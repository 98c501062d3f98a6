"""Train one fold or all of a level, and score each on its other cases."""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from mre_lowshot import devices
from mre_lowshot.config.check import require_path, require_plans_name, require_whole
from mre_lowshot.config.json import suggest
from mre_lowshot.config.plan_files import load_plan, results_folder
from mre_lowshot.config.recipe import MAX_ITERATIONS
from mre_lowshot.data.named_splits import level_splits
from mre_lowshot.data.splits import parse_fold, parse_level, save_splits
from mre_lowshot.data.workspace import Workspace
from mre_lowshot.errors import UserError
from mre_lowshot.plain import shown
from mre_lowshot.preprocessing.prepare import check_prepared
from mre_lowshot.preprocessing.references import clean, reading
from mre_lowshot.trainers.board import require_tensorboard
from mre_lowshot.trainers.distributed import Processes, connected_processes
from mre_lowshot.trainers.fold import FoldJob, TrainMode
from mre_lowshot.trainers.pretrained import OPTION
from mre_lowshot.trainers.replaced import restore
from mre_lowshot.workflows.fold_run import FoldResult, FoldRun
from mre_lowshot.workflows.plan import DEFAULT_NAME
from mre_lowshot.workflows.report import NAME as PAGE
from mre_lowshot.workflows.report import require_replaceable, write_report
from mre_lowshot.workflows.reporting import Reporter, Silent

Mode = Literal["new", "continue", "overwrite", "validate"]


@dataclass(frozen=True)
class TrainResult:
    """Result of `train`: the model's folder, to predict with, its folds, and the page, if it was asked for."""

    folder: Path
    folds: tuple[FoldResult, ...]
    report: Path | None = None

    @property
    def failed(self) -> dict[str, str]:
        """Test scans that could not be scored, as ``fold N, CASE``, with the reason."""
        found = {}
        for result in self.folds:
            for case, reason in (result.summary or {"failed_cases": {}})["failed_cases"].items():
                found[f"fold {result.fold}, {case}"] = reason
        return found


def train(
    dataset: str | Path,
    level: str = "1shot",
    fold: int | str = 0,
    *,
    plans_name: str = DEFAULT_NAME,
    iterations: int | None = None,
    seed: int | None = None,
    mode: Mode = "new",
    score: bool = True,
    workers: int | None = None,
    cohort: str | None = None,
    cohorts_file: str | Path | None = None,
    pretrained_weights: str | Path | None = None,
    deterministic: bool = False,
    tensorboard: bool = False,
    report: bool = False,
    device: str = "auto",
    workspace: str | Path | None = None,
    reporter: Reporter | None = None,
) -> TrainResult:
    """Train a fold (or all) of a planned dataset, and score it on the fold's other cases.

    Args:
        dataset: id (17), name (BTCV) or full name.
        level: 1shot, 2shot, ..., 5pct, loo (leave one out) or all.
        fold: its number, ``"fold0"`` or ``"all"``.
        plans_name: name of the plan.
        iterations: instead of the plan's.
        seed: of weights and patches; by default 0, or that of the training to continue.
        mode: ``new`` refuses a fold that was trained before, ``continue`` goes on from its latest checkpoint,
            ``overwrite`` trains it again, ``validate`` only scores it.
        score: predict and score the fold's other cases.
        workers: data-loading processes; 0: this process loads; None: on CUDA up to four, else 0.
        cohort, cohorts_file: name of a cohort of cases to restrict the level to, and its file.
        pretrained_weights: checkpoint, or folder of a fold, whose weights the training begins with, with a new
            optimizer; of the same network, channels and labels.
        deterministic: bit-identical weights in every run on the same GPU; slower (on the CPU this always holds).
        tensorboard: also write the curves for TensorBoard; needs the extra ``tensorboard``.
        report: also write report.html, a page to look at (`workflows.report`), into the model's folder.
        device: to train on.
        workspace: folder with raw/, preprocessed/ and results/; None: see `data.workspace.Workspace`.
        reporter: receives progress and messages.

    Raises:
        UserError: an option is wrong, the dataset is not planned, or the fold was trained before (mode ``new``).
        NumericalError: the training diverged; the last good checkpoint is kept.
    """
    check_options(iterations=iterations, seed=seed, workers=workers)
    require_plans_name("-p", plans_name)
    require_path("the dataset", str(dataset))
    if cohorts_file is not None:
        require_path("--cohorts", cohorts_file)
    if mode not in (modes := [m.value for m in TrainMode]):
        raise UserError(f"mode {shown(mode)}: {suggest(mode, modes)}")
    given = _pretrained(pretrained_weights, mode)
    if tensorboard:
        require_tensorboard()
    reporter = reporter or Reporter()
    if deterministic:
        devices.make_deterministic()
    with connected_processes(device) as (processes, found):
        workers = devices.loader_processes(found, processes.count) if workers is None else workers
        reporter = reporter if processes.first else Silent()
        request = _Request(
            dataset=str(dataset),
            level=level,
            fold=str(fold),
            plans_name=plans_name,
            iterations=iterations,
            seed=seed,
            mode=TrainMode(mode),
            cohort=cohort,
            cohorts_file=Path(cohorts_file) if cohorts_file else None,
            pretrained=given,
        )
        space = Workspace.resolve(workspace)
        prepared = space.find(str(dataset), "preprocessed")
        with ExitStack() as held:
            if processes.first:
                held.enter_context(_held_cases(prepared, plans_name))
            jobs = _jobs(request, space, prepared, processes=processes, device=found, reporter=reporter)
            if report and processes.first:  # refused now, not after hours
                require_replaceable(jobs[0].folder.parent / PAGE, overwrite=False)
            for job in jobs:  # all at once: a fold in use is refused before others were trained for hours
                held.enter_context(job.locked())
            options = {
                "level": level,
                "fold": fold,
                "plans_name": plans_name,
                "iterations": iterations,
                "seed": seed,
                "cohort": cohort,
                "score": score,
                "workers": workers,
                "tensorboard": tensorboard,
                "deterministic": deterministic,
                "device": device,
            }
            run = FoldRun(score, workers, tensorboard, options, reporter)
            results = [run.fold(job, _mode_of(job, request)) for job in jobs]
    dice = [r.summary["foreground_mean"]["Dice"] for r in results if r.summary]
    if len(dice) > 1:
        spread = statistics.stdev(dice)
        reporter.info(f"{len(dice)} folds: mean Dice {statistics.mean(dice):.4f}, SD over folds {spread:.4f}")
    model = jobs[0].folder.parent
    page = write_report(model, reporter=reporter).path if report and processes.first else None
    return TrainResult(model, tuple(results), page)


def _pretrained(path: str | Path | None, mode: Mode) -> Path | None:
    """The given pretrained weights, for a training from its beginning.

    Raises:
        UserError: there is no such checkpoint, or a training is continued or validated.
    """
    if path is None:
        return None
    require_path(OPTION, path)
    if mode in ("continue", "validate"):
        raise UserError(
            f"{OPTION} is for a training from its beginning; --c and --val use the fold's own; leave it out"
        )
    return Path(path)


def check_options(*, iterations: int | None, seed: int | None, workers: int | None) -> None:
    """Refuse numbers that no training can use, before anything is written.

    Raises:
        UserError: names the option.
    """
    if iterations is not None:
        require_whole("--iterations", iterations, 1, MAX_ITERATIONS)
    if seed is not None:
        require_whole("--seed", seed, 0, 2**32 - 1)
    if workers is not None:
        require_whole("--workers", workers, 0, max(64, 4 * (os.cpu_count() or 1)))


@contextmanager
def _held_cases(prepared: Path, plans_name: str) -> Iterator[None]:
    """Hold the plan's preprocessed cases for reading, and remove what killed runs left."""
    if not (prepared / f"{plans_name}.json").is_file() or not re.fullmatch(r"[\w-]+", plans_name):
        raise UserError(
            f"plan {prepared / f'{plans_name}.json'} is missing; run mre_plan_and_preprocess first (-p names another "
            "plan)"
        )
    with reading(prepared, plans_name):
        clean(prepared)
        yield


@dataclass(frozen=True)
class _Request:
    """Which folds of which plan, and how."""

    dataset: str
    level: str
    fold: str
    plans_name: str
    iterations: int | None
    seed: int | None
    mode: TrainMode
    cohort: str | None
    cohorts_file: Path | None
    pretrained: Path | None = None

    @property
    def loads(self) -> bool:
        """Whether existing checkpoints are used."""
        return self.mode in (TrainMode.CONTINUE, TrainMode.VALIDATE)


def _jobs(
    request: _Request,
    workspace: Workspace,
    prepared: Path,
    *,
    processes: Processes,
    device: torch.device,
    reporter: Reporter,
) -> list[FoldJob]:
    fold = parse_fold(request.fold)
    parse_level(request.level)
    plan = load_plan(prepared / f"{request.plans_name}.json")
    check_options(iterations=plan.recipe.optimizer.iterations, seed=None, workers=0)
    names = check_prepared(plan, prepared, log=reporter.info)
    level, splits = level_splits(
        prepared,
        request.level,
        names,
        dataset=plan.dataset_name,
        cohort=request.cohort,
        cohorts_file=request.cohorts_file,
        log=reporter.info,
        save=False,
    )
    model = results_folder(workspace.results, plan.dataset_name, plan.plans_name, level)
    if processes.first:
        restore(model)
    iterations = request.iterations
    if iterations is None and request.loads and (model / "plans.json").is_file():
        iterations = load_plan(model / "plans.json").recipe.optimizer.iterations
    if iterations is not None:
        optimizer = replace(plan.recipe.optimizer, iterations=iterations)
        plan = replace(plan, recipe=replace(plan.recipe, optimizer=optimizer))
    numbers = range(len(splits)) if fold == "all" else [fold]
    if max(numbers) >= len(splits):
        raise UserError(f"fold {max(numbers)}: level {level} has folds 0 to {len(splits) - 1} here; choose one of them")
    if processes.first:
        save_splits(prepared, level, splits)
    overwritten = tuple(numbers) if request.mode is TrainMode.OVERWRITE else ()
    return [
        FoldJob(
            plan,
            level,
            n,
            splits[n],
            prepared=prepared,
            results=workspace.results,
            device=device,
            seed=_seed(request, model, n),
            processes=processes,
            overwritten=overwritten,
            pretrained=request.pretrained,
        )
        for n in numbers
    ]


def _seed(request: _Request, model: Path, fold: int) -> int:
    """The requested seed, or that of the training to continue."""
    path = model / f"fold_{fold}" / "plans.json"
    if request.seed is None and request.loads and path.is_file():
        decisions = load_plan(path).fold
        return decisions.seed if decisions else 0
    return request.seed or 0


def _mode_of(job: FoldJob, request: _Request) -> TrainMode:
    """The request's mode; with all folds, ``continue`` starts those that were not begun."""
    if request.mode is TrainMode.CONTINUE and request.fold.strip().lower() == "all" and not job.has_checkpoint:
        return TrainMode.NEW
    return request.mode
