"""The training that follows when a dataset has got one annotated scan more."""

from __future__ import annotations

import shlex
from pathlib import Path

from mre_lowshot.config import Plan
from mre_lowshot.config.plan_files import TRAINER, load_plan, results_folder
from mre_lowshot.data.workspace import Workspace
from mre_lowshot.errors import UserError
from mre_lowshot.inference import checkpoint


def next_command(space: Workspace, plan: Plan, *, before: Path | None = None) -> str:
    """The command that trains on all annotated scans.

    Args:
        space: where results are.
        plan: to train with.
        before: checkpoint whose weights it begins with; None: from scratch.
    """
    words = ["mre_train", plan.dataset_name, "all", "fold0"]
    if plan.plans_name != "MREPlans":
        words += ["-p", plan.plans_name]
    if before is not None:
        words += ["--pretrained_weights", str(before)]
    fold = results_folder(space.results, plan.dataset_name, plan.plans_name, "all") / "fold_0"
    if any((fold / name).is_file() for name in (checkpoint.LATEST, checkpoint.FINAL)):
        words.append("--overwrite")
    if space.root is not None:
        words += ["--workspace", str(space.root)]
    return shlex.join(words)


def last_weights(results: Path, plan: Plan) -> Path | None:
    """The final checkpoint of the last training with a plan's network and labels; None where there is none."""
    found = sorted(
        (results / plan.dataset_name).glob(f"{TRAINER}__{plan.plans_name}__*/fold_*/{checkpoint.FINAL}"),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )
    for path in found:
        try:
            made = load_plan(path.parent / "plans.json")
        except UserError:
            continue
        if made.network == plan.network and made.labels == plan.labels:
            return path
    return None
