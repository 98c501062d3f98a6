"""The folds that an experiment runs: one of a row, with its plan, its split and its seed, each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mre_lowshot import devices
from mre_lowshot.config import Plan
from mre_lowshot.data.dataset import Dataset
from mre_lowshot.data.named_splits import level_splits
from mre_lowshot.data.splits import Split
from mre_lowshot.data.workspace import Workspace
from mre_lowshot.errors import UserError
from mre_lowshot.evaluation.statistics import Method
from mre_lowshot.experiments.baselines.registry import baseline
from mre_lowshot.experiments.baselines.requirements import require_data
from mre_lowshot.experiments.equal_plans import trains_the_same
from mre_lowshot.experiments.runner import QUICK_SCANS, Setting, plan_row, quick_split
from mre_lowshot.experiments.tables import Row, Table
from mre_lowshot.planners.fingerprint import write_fingerprint
from mre_lowshot.planners.hardware import Device
from mre_lowshot.planners.planner import facts_of
from mre_lowshot.trainers.fold import FoldJob
from mre_lowshot.workflows.experiment_cluster import ExperimentCluster
from mre_lowshot.workflows.plan import verified_dataset
from mre_lowshot.workflows.reporting import Reporter

if TYPE_CHECKING:
    import torch

QUICK_MARK = "[quick]"  # before each line of a run with --quick


@dataclass(frozen=True)
class Run:
    """The settings that all rows and datasets of an experiment share."""

    table: Table
    rows: Sequence[Row]  # chosen
    named_rows: bool  # whether rows were chosen by name
    reference: str
    settings: Sequence[Setting]  # one for each seed
    statistics: Method
    formats: Sequence[str]
    folds: Sequence[int] | None
    cohort: str | None
    cohorts_file: Path | None
    workers: int | None
    device: str
    space: Workspace
    reporter: Reporter
    cluster: ExperimentCluster | None = None

    @property
    def setting(self) -> Setting:
        """That of the first seed."""
        return self.settings[0]

    def folder_of(self, dataset: str) -> Path:
        """Where the table of a dataset is written."""
        seeds = [setting.seed for setting in self.settings]
        name = f"{self.table.name}__{self.setting.name}"
        name += f"_seeds{'-'.join(map(str, seeds))}" if seeds != [0] else ""
        return self.space.results / dataset / "experiments" / name

    @property
    def quick(self) -> str:
        """How a quick run differs; empty for another."""
        if not self.setting.quick:
            return ""
        return f"QUICK VERSION (--quick): fewer iterations and folds, at most {QUICK_SCANS} test scans in each fold"

    @property
    def remark(self) -> str:
        """Printed with every table: how a quick run differs, and the fields that are changed in all rows."""
        listed = ", ".join(f"{key}={value}" for key, value in self.setting.changes)
        return "; ".join(filter(None, [self.quick, f"changed in all rows (--set): {listed}" if listed else ""]))


@dataclass(frozen=True)
class Task:
    """One fold of a row, to be run."""

    row: Row
    job: FoldJob
    iterations: int | None  # of a baseline


def tasks_of(run: Run, dataset: Dataset, folder: Path) -> tuple[list[Task], int]:
    """The folds to run, and how many rows are left out: baselines whose package is missing or that do not work on the
    data, and rows with a level of their own for which there are too few scans."""
    device = devices.resolve("cpu" if run.cluster else run.device)  # each worker takes its own
    planned_for = run.cluster.planned_for() if run.cluster else Device(device.type, devices.memory_gb(device))
    _, fingerprint = verified_dataset(dataset.folder, run.reporter)
    write_fingerprint(folder, fingerprint)
    splits = _Splits(run, dataset, folder)
    tasks: list[Task] = []
    left_out: list[str] = []
    earlier: list[tuple[Row, Plan]] = []
    noted: dict[str, list[str]] = {}
    # the reference first, so that a row that equals it is left out, and not the reference
    for row in sorted(run.rows, key=lambda row: row.name != run.reference):
        try:
            settings = run.settings if not row.baseline or baseline(row.baseline).random else run.settings[:1]
            found = [(one, plan_row(row, one, facts_of(dataset), fingerprint, planned_for)) for one in settings]
            if row.baseline:
                require_data(baseline(row.baseline), found[0][1])
            if len(settings) < len(run.settings):
                run.reporter.info(f"row {row.name}: does not depend on the seed, is run with {settings[0].seed} only")
            if not row.baseline and (same := _equal_row(row, found[0][1], earlier)):
                run.reporter.info(f"row {row.name}: trains what row {same.name} trains here; not run again")
                continue
            folds = splits.of(row)
        except UserError as problem:
            if not (row.baseline or row.level):
                raise
            left_out.append(f"row {row.name} is left out: {problem}")
            continue
        for reason in found[0][1].reasons.values():
            if reason.startswith("NOTE "):
                noted.setdefault(reason, []).append(row.name)
        earlier += [] if row.baseline else [(row, found[0][1])]
        for setting, plan in found:
            made = _jobs(run, row, setting, plan, folds=folds, prepared=folder, device=device)
            # the iterations of a baseline are its own, unless the user or --quick limits them
            iterations = plan.recipe.optimizer.iterations if setting.quick else setting.iterations
            tasks += [Task(row, job, iterations) for job in made]
    for reason, names in noted.items():
        run.reporter.warning(f"rows {', '.join(names)}: {reason}")
    if left_out and not tasks:
        raise UserError(left_out[0])
    for line in left_out:
        run.reporter.warning(line)
    return tasks, len(left_out)


def _equal_row(row: Row, plan: Plan, earlier: Sequence[tuple[Row, Plan]]) -> Row | None:
    """The row among ``earlier`` whose training is that of ``row``: a part that the plan has or lacks anyway."""
    return next((other for other, its in earlier if other.level == row.level and trains_the_same(its, plan)), None)


def require_levels(run: Run) -> None:
    """Refuse folds that the user names for rows with a number of training scans of their own.

    Raises:
        UserError: names the rows.
    """
    own = [row.name for row in run.rows if row.level]
    if own and run.setting.level.partition("_")[0] == "split":
        raise UserError(
            f"--level {run.setting.level}: rows {', '.join(own)} of {run.table.name} have their own number of training "
            "scans and draw their folds from a list of cases; leave out --level and let --cohort name such a list, or "
            "run named folds with another table, as baselines (--rows unet_aug)"
        )


def _jobs(
    run: Run, row: Row, setting: Setting, plan: Plan, *, folds: dict[int, Split], prepared: Path, device: torch.device
) -> list[FoldJob]:
    level = setting.level_of(row)
    return [
        FoldJob(
            plan,
            level,
            fold,
            quick_split(split) if setting.quick else split,
            prepared=prepared,
            results=run.space.results,
            device=device,
            seed=setting.seed,
        )
        for fold, split in folds.items()
    ]


class _Splits:
    """The chosen folds of each level."""

    def __init__(self, run: Run, dataset: Dataset, folder: Path) -> None:
        self.run, self.folder = run, folder
        self.names, self.dataset = [case.name for case in dataset.labelled], dataset.name

    def of(self, row: Row) -> dict[int, Split]:
        """The folds of a row, by number.

        Raises:
            UserError: there are too few scans, or no such fold, or no test scan.
        """
        run, level = self.run, self.run.setting.level_of(row)
        _, splits = level_splits(
            self.folder,
            level.removesuffix(f"_{run.cohort}"),
            self.names,
            dataset=self.dataset,
            cohort=run.cohort,
            cohorts_file=run.cohorts_file,
            log=run.reporter.info,
        )
        folds = [n for n in run.folds or (0, 1, 2) if n < len(splits) or (run.folds and not row.level)]
        if not folds or max(folds) >= len(splits):
            raise UserError(f"--folds {max(run.folds or folds)}: level {level} has folds 0 to {len(splits) - 1} here")
        if missing := [str(n) for n in run.folds or () if n >= len(splits)]:
            has = f"level {level} has folds 0 to {len(splits) - 1}"
            run.reporter.info(f"row {row.name}: {has}; left out: --folds {' '.join(missing)}")
        if not all(splits[n]["val"] for n in folds):
            raise UserError(f"--level {level}: leaves no test scan; annotate more scans, or train on fewer")
        return {n: splits[n] for n in folds}
