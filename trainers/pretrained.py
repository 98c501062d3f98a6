"""Weights of an earlier training to begin another one with: those of a checkpoint, for the same network and labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mre_lowshot.config import Plan
from mre_lowshot.config.json import to_json
from mre_lowshot.errors import UserError
from mre_lowshot.files import sha256
from mre_lowshot.inference import checkpoint

OPTION = "--pretrained_weights"


@dataclass(frozen=True)
class Pretrained:
    """Weights to begin with, and where they are from.

    Attributes:
        weights: of the network that the earlier training predicts with.
        origin: dataset, level, fold, training cases, iterations and SHA-256 of the checkpoint; for run.json.
        notes: differences between the plans that do not prevent it.
    """

    weights: dict[str, torch.Tensor]
    origin: dict[str, Any]
    notes: tuple[str, ...] = ()


def checkpoint_file(path: Path) -> Path:
    """The checkpoint that ``path`` names: the file itself, or the final (else the latest) one of a fold's folder.

    Raises:
        UserError: there is none.
    """
    if not path.is_dir():
        if not path.is_file():
            raise UserError(f"{OPTION} {path}: is missing; give a fold's checkpoint_final.pth, or the fold's folder")
        return path
    for name in (checkpoint.FINAL, checkpoint.LATEST):
        if (path / name).is_file():
            return path / name
    folds = sorted(f.name for f in path.glob("fold_*") if any(f.glob("checkpoint_*.pth")))
    fix = f"give one of its folds, as {path / folds[0]}" if folds else "give a fold's folder, or a checkpoint"
    raise UserError(f"{OPTION} {path}: holds no {checkpoint.FINAL}; {fix}")


def load_pretrained(path: Path, plan: Plan, device: torch.device, *, test: Sequence[str] = ()) -> Pretrained:
    """Read the weights of a checkpoint, for a network of ``plan``.

    Args:
        path: of the checkpoint, or of its fold's folder.
        plan: of the training that begins with them.
        device: to load them to.
        test: test cases of that training.

    Raises:
        UserError: there is no checkpoint, it is damaged, its network, channels or labels are not the plan's, or it was
            trained on a test case.
    """
    file = checkpoint_file(path)
    made, content = checkpoint.load(file, device)
    for what, one, other in (
        ("labels", dict(made.labels), dict(plan.labels)),
        ("channels", list(made.channel_names), list(plan.channel_names)),
        ("network", to_json(made.network), to_json(plan.network)),
    ):
        if one != other:
            verb, those = ("s", "that") if what == "network" else ("", "those")
            raise UserError(
                f"{OPTION} {file}: its {what} differ{verb} from {those} of plan {plan.plans_name} "
                f"({_difference(what, one, other)}); give a checkpoint of the same {what}, or leave the option out"
            )
    seen = [name for name in (made.fold.train if made.fold else ()) if name in test]
    if seen and made.dataset_name == plan.dataset_name:
        raise UserError(
            f"{OPTION} {file}: was trained on {', '.join(seen)}, a test case of this fold, whose score would not be "
            "that of a new scan; train level all, choose a fold that trains on it too, or leave the option out"
        )
    notes = []
    if made.preprocessing != plan.preprocessing:
        settings = _difference("preprocessing", to_json(made.preprocessing), to_json(plan.preprocessing))
        notes.append(f"the pretrained weights are of scans that were preprocessed otherwise ({settings})")
    fold = made.fold
    origin = {
        "file": f"{file.parent.name}/{file.name}",
        "sha256": sha256(file),
        "dataset": made.dataset_name,
        "plan": made.plans_name,
        "level": fold.level if fold else None,
        "fold": fold.fold if fold else None,
        "cases": list(fold.train) if fold else [],
        "iterations": content["training"]["iteration"],
    }
    return Pretrained(content["weights"], origin, tuple(notes))


def _difference(what: str, one: Any, other: Any) -> str:
    """The first field that differs, with both values."""
    if isinstance(one, dict) and isinstance(other, dict) and what != "labels":
        for key in {**one, **other}:
            if one.get(key) != other.get(key):
                return f"{key}: the checkpoint's {one.get(key)!r}, the plan's {other.get(key)!r}"
    return f"the checkpoint's {one!r}, the plan's {other!r}"
