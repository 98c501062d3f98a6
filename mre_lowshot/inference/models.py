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
from mre_lowshot.inference.pooling import to_weigh
from mre_lowshot.mirroring import with_images
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
    unfinished: tuple[int, ...]  # folds whose training has not come to its end

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
    """Load the named folds (None: all that are trained) of a model folder. A fold's folder, copied anywhere, or a
    checkpoint file alone do as well: nothing else is read.

    Raises:
        UserError: a fold is not there, or its checkpoint cannot be used.
    """
    alone = _alone(folder)
    if alone is not None:
        if folds is not None:
            raise UserError(f"{folder}: is a single fold's; leave out -f")
        return _loaded(folder, [alone], device)
    there = {int(p.name[5:]): p for p in folder.glob("fold_*") if p.name[5:].isdigit() and list(p.glob("*.pth"))}
    wanted = sorted(there) if folds is None else sorted(set(folds))
    missing = [fold for fold in wanted if fold not in there]
    if missing or not wanted:
        raise UserError(f"{folder}: fold {missing or 'any'} is not trained (there: {sorted(there) or 'none'}); see -f")
    return _loaded(folder, [_newest(there[fold]) for fold in wanted], device)


def _newest(fold: Path) -> Path:
    final = fold / checkpoint.FINAL
    return final if final.is_file() else fold / checkpoint.LATEST


def _alone(path: Path) -> Path | None:
    """The checkpoint that ``path`` is, or that lies in it directly."""
    if path.is_file():
        return path
    return _newest(path) if _newest(path).is_file() else None


def _loaded(folder: Path, paths: Sequence[Path], device: torch.device) -> Model:
    folds, plans, networks, atlases, unfinished = [], [], [], [], []
    for path in paths:
        plan, content = checkpoint.load(path, device)
        fold = int(path.parent.name[5:]) if path.parent.name.startswith("fold_") else plan.fold.fold if plan.fold else 0
        network = build(plan.network)
        network.load_state_dict(content["weights"])
        folds.append(fold)
        plans.append(plan)
        networks.append(network)
        atlases.append(with_images(tuple(Atlas.from_tensors(data) for data in content["atlases"]), plan))
        if content["training"]["iteration"] < plan.recipe.iterations or to_weigh(plan):
            unfinished.append(fold)
    different = [f for f, p in zip(folds, plans, strict=True) if _shared(p) != _shared(plans[0])]
    if different:
        raise UserError(
            f"{folder}: folds {different} were trained by another plan than fold {folds[0]}; choose with -f"
        )
    return Model(folder, tuple(folds), tuple(plans), tuple(networks), tuple(atlases), tuple(unfinished))


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
