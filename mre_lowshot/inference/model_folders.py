"""Finding a trained model under results/, by the names of folders alone: torch is not needed for it."""

from __future__ import annotations

from pathlib import Path

from mre_lowshot.config.plan_files import TRAINER
from mre_lowshot.data.workspace import names_dataset
from mre_lowshot.errors import UserError

REPLACED = ".mre-replaced"  # in a model's folder: folds that are trained again, until their first checkpoint is there


def find_folder(
    results: Path, dataset: str | None = None, level: str | None = None, plans: str | None = None
) -> tuple[Path, str]:
    """The model folder to use, and how it was chosen: the only one that fits, else the one trained last.

    Args:
        results: the results root.
        dataset: id, name or full name; None fits all.
        level, plans: as in training; None fits all.

    Raises:
        UserError: nothing trained fits; the message lists what is there.
    """
    trained = {}
    for path in sorted(results.glob(f"*/{TRAINER}__*__*")):
        checkpoints = [c for place in (path, path / REPLACED) for c in place.glob("fold_*/checkpoint_*.pth")]
        if checkpoints:
            trained[path] = max(c.stat().st_mtime for c in checkpoints)
    fitting = [p for p in trained if _fits(p, dataset, level, plans)]
    if not fitting:
        there = "; ".join(f"{p.parent.name}/{p.name}" for p in trained) or "nothing"
        raise UserError(f"no trained model in {results} fits (trained: {there}); train one with mre_train, or give -m")
    newest = max(fitting, key=lambda p: trained[p])
    if len(fitting) > 1:
        return newest, f"the one of {len(fitting)} trained last"
    return newest, "the only trained model" if len(trained) == 1 else f"the only one of {len(trained)} that fits"


def _fits(path: Path, dataset: str | None, level: str | None, plans: str | None) -> bool:
    _, its_plans, its_level = path.name.split("__", 2)
    if dataset is not None and not names_dataset(path.parent.name, dataset):
        return False
    return (level is None or its_level == level) and (plans is None or its_plans == plans)
