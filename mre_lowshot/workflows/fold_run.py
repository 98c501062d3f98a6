"""One fold of a training run: trained, scored and recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mre_lowshot.config import Plan
from mre_lowshot.evaluation import registration_alone
from mre_lowshot.evaluation.calibration import describe
from mre_lowshot.evaluation.summary import format_table, rank_correlation
from mre_lowshot.inference.ensemble import needs_tuning
from mre_lowshot.trainers.board import curves
from mre_lowshot.trainers.fold import FoldJob, TrainMode, make_trainer, validate
from mre_lowshot.trainers.run_record import recorded
from mre_lowshot.trainers.trainer import MRETrainer
from mre_lowshot.workflows.reporting import Reporter

OnStep = Callable[[MRETrainer], None]


@dataclass(frozen=True)
class FoldResult:
    """One trained fold.

    Attributes:
        fold: its number.
        folder: with checkpoints and, where it was scored, ``validation/``.
        plan: the fold's plan.
        iterations: trained in total.
        summary: content of validation/summary.json; None where nothing was scored.
    """

    fold: int
    folder: Path
    plan: Plan
    iterations: int
    summary: dict[str, Any] | None = None


@dataclass(frozen=True)
class FoldRun:
    """How the folds of a run are trained.

    Attributes:
        score: predict and score each fold's other cases.
        workers: data-loading processes.
        tensorboard: write the curves for TensorBoard.
        options: of the run as they were given, without paths; for run.json.
        reporter: receives progress and messages.
    """

    score: bool
    workers: int
    tensorboard: bool
    options: Mapping[str, Any]
    reporter: Reporter

    def fold(self, job: FoldJob, mode: TrainMode) -> FoldResult:
        """Train and score a fold; run.json in its folder says how.

        Raises:
            UserError: the fold was trained before (mode NEW), or belongs to another plan.
            NumericalError: the training diverged.
        """
        begun = time.monotonic()
        trainer = make_trainer(job, mode)
        entry = {
            "mode": mode.value,
            "dataset": job.plan.dataset_name,
            "level": job.level,
            "fold": job.fold,
            "seed": job.seed,
            "processes": job.processes.count,
            "options": dict(self.options),
            "first_iteration": trainer.iteration + 1,
            "pretrained_weights": trainer.pretrained.origin if trainer.pretrained else None,
        }
        with recorded(job.folder, job.device, entry, writes=job.processes.first) as run:
            try:
                return self._train_and_score(job, trainer, mode, begun)
            finally:
                run["last_iteration"] = trainer.iteration

    def _train_and_score(self, job: FoldJob, trainer: MRETrainer, mode: TrainMode, begun: float) -> FoldResult:
        reporter = self.reporter
        fold = trainer.plan.fold
        before = dict(fold.reasons) if fold else {}
        reporter.info(
            f"fold {job.fold}: training on {', '.join(job.split['train'])} ({job.device}); results in {job.folder}"
        )
        for reason in before.values():
            reporter.info(f"  {reason}")
        if trainer.pretrained is not None:
            origin = trainer.pretrained.origin
            reporter.info(
                f"  begins with the weights of {origin['file']} (trained on {', '.join(origin['cases'])}, "
                f"{origin['iterations']} iterations)"
            )
            for note in trainer.pretrained.notes:
                reporter.warning(f"  NOTE {note}")
        first = trainer.iteration
        if mode is not TrainMode.VALIDATE:
            if needs_tuning(trainer.plan):
                reporter.info(
                    "  after training, the fusion weights are tuned on mirrored training scans, which can take several "
                    "minutes"
                )
            with ExitStack() as held:
                on_step = held.enter_context(training_progress(job, trainer, reporter))
                if self.tensorboard and job.processes.first:
                    on_step = _both(on_step, held.enter_context(curves(job.folder, trainer.iteration)))
                trainer.fit(self.workers, on_step)
            seconds = time.monotonic() - begun
            if trainer.iteration > first:
                reporter.info(f"  trained {trainer.iteration} iterations in {seconds:.0f} s")
            else:
                reporter.info(f"  its training was complete already: {trainer.iteration} iterations")
            trainer.training_log.log(f"trained to iteration {trainer.iteration} in {seconds:.0f} s")
            for name, reason in (trainer.plan.fold.reasons if trainer.plan.fold else {}).items():
                if name not in before:  # tuned at the end of training
                    reporter.info(f"  {reason}")
        result = FoldResult(job.fold, job.folder, trainer.plan, trainer.iteration)
        names = job.split["val"]
        if not job.processes.first:
            return result
        if not self.score or not names:
            reporter.info("  the fold has no test scan to score" if not names else "  not scored (--no_val)")
            return result
        with reporter.bar(len(names), description="validate", unit="scan") as bar:
            summary = validate(
                job, trainer, names, job.folder / "validation", on_case=lambda _: bar.update(), log=reporter.warning
            )
        reporter.info(format_table(summary))
        for line in registration_alone.describe(summary):
            reporter.info(f"  {line}")
        reporter.info(f"  {rank_correlation(summary)}")
        reporter.info(f"  {describe(summary['calibration'])}")
        reporter.info(f"  {len(names)} test scans; summary in {job.folder / 'validation' / 'summary.json'}")
        return replace(result, summary=summary)


def _both(one: OnStep, other: OnStep) -> OnStep:
    def on_step(trainer: MRETrainer) -> None:
        one(trainer)
        other(trainer)

    return on_step


@contextmanager
def training_progress(job: FoldJob, trainer: MRETrainer, reporter: Reporter, title: str = "") -> Iterator[Any]:
    """A callback for `MRETrainer.fit` that shows progress, and writes every 50th iteration to the training log."""
    total = job.plan.recipe.optimizer.iterations
    with reporter.bar(total, description=title or f"fold {job.fold}", unit="it", initial=trainer.iteration) as bar:

        def on_step(current: MRETrainer) -> None:
            log = current.training_log
            bar.update()
            if current.iteration % 10 == 0 or current.iteration == total:
                bar.show(loss=f"{log.recent('loss'):.3f}", dice=f"{log.recent('dice'):.3f}")
            if current.iteration % 50 == 0 or current.iteration == total:
                line = f"iteration {current.iteration} loss {log.recent('loss', 50):.4f}"
                log.log(f"{line} patch Dice {log.recent('dice', 50):.4f}")

        yield on_step
