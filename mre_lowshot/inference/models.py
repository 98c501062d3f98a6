"""Finding trained models under results/ and loading their networks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mre_lowshot import checkpoint
from mre_lowshot.alignment import Atlas, Atlases
from mre_lowshot.errors import UserError
from mre_lowshot.network.build import MRENet, build
from mre_lowshot.plans import TRAINER
from mre_lowshot.specs import Plan


@dataclass(frozen=True)
class Model:
    """The networks of one or more folds of one model folder; they share everything but weights and fold."""

    folder: Path
    folds: tuple[int, ...]
    plans: tuple[Plan, ...]
    networks: tuple[MRENet, ...]
    atlases: tuple[Atlases, ...]
    unfinished: tuple[int, ...]  # folds of which only checkpoint_latest.pth is there

    @property
    def plan(self) -> Plan:
        """What the folds share (network, patch, preprocessing, labels): the first fold's plan."""
        return self.plans[0]


def find_folder(
    results: Path, dataset: str | None = None, level: str | None = None, plans: str | None = None
) -> tuple[Path, str]:
    """The model folder to use, and in words how it was chosen: the only one that fits, else the one trained last.

    Args:
        results: the results root. dataset: id, name or full name; level, plans: as given in training; None fits all.

    Raises:
        UserError: nothing trained fits; the message lists what is there.
    """
    trained = {}
    for path in sorted(results.glob(f"*/{TRAINER}__*__*")):
        checkpoints = list(path.glob("fold_*/checkpoint_*.pth"))
        if checkpoints:
            trained[path] = max(c.stat().st_mtime for c in checkpoints)
    fitting = [p for p in trained if _fits(p, dataset, level, plans)]
    if not fitting:
        there = "; ".join(f"{p.parent.name}/{p.name}" for p in trained) or "nothing"
        raise UserError(f"no trained model in {results} fits (there: {there}); train one with mre_train, or give -m")
    newest = max(fitting, key=lambda p: trained[p])
    how = "the only trained model" if len(fitting) == 1 else f"the one of {len(fitting)} trained last"
    return newest, how


def _fits(path: Path, dataset: str | None, level: str | None, plans: str | None) -> bool:
    _, its_plans, its_level = path.name.split("__", 2)
    if dataset is not None:
        match = re.match(r"Dataset(\d+)_(.+)$", path.parent.name)
        names = {path.parent.name, *(match.groups() if match else ())}
        if dataset not in names and not (match and dataset.isdigit() and int(dataset) == int(match[1])):
            return False
    return (level is None or its_level == level) and (plans is None or its_plans == plans)


def load_model(folder: Path, folds: Sequence[int] | None, device: torch.device) -> Model:
    """Load the named folds (None: all that are trained) of a model folder.

    Raises:
        UserError: a fold is not there, or its checkpoint cannot be used.
    """
    there = {int(p.name[5:]): p for p in folder.glob("fold_*") if p.name[5:].isdigit() and list(p.glob("*.pth"))}
    wanted = sorted(there) if folds is None else sorted(set(folds))
    missing = [fold for fold in wanted if fold not in there]
    if missing or not wanted:
        raise UserError(f"{folder}: fold {missing or 'any'} is not trained (there: {sorted(there) or 'none'}); see -f")
    plans, networks, atlases, unfinished = [], [], [], []
    for fold in wanted:
        path = there[fold] / checkpoint.FINAL
        if not path.is_file():
            path = there[fold] / checkpoint.LATEST
            unfinished.append(fold)
        plan, content = checkpoint.load(path, device)
        network = build(plan.network)
        network.load_state_dict(content["weights"])
        plans.append(plan)
        networks.append(network)
        atlases.append(tuple(Atlas.from_tensors(data) for data in content["atlases"]))
    different = [f for f, p in zip(wanted, plans, strict=True) if _shared(p) != _shared(plans[0])]
    if different:
        raise UserError(
            f"{folder}: folds {different} were trained by another plan than fold {wanted[0]}; choose with -f"
        )
    return Model(folder, tuple(wanted), tuple(plans), tuple(networks), tuple(atlases), tuple(unfinished))


def _shared(plan: Plan) -> tuple[object, ...]:
    return (
        plan.network,
        plan.patch,
        plan.preprocessing,
        plan.labels,
        plan.channel_names,
        plan.recipe.inference,
        plan.recipe.alignment,
    )
