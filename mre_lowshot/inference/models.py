"""Trained models on disk: finding one under results/, and loading its folds."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mre_lowshot.atlas.atlas import Atlas, Atlases
from mre_lowshot.atlas.mirrored import with_mirrored
from mre_lowshot.config import Plan
from mre_lowshot.config.check import require_path, require_whole
from mre_lowshot.data.colours import label_colours
from mre_lowshot.data.dicom.codes import Code, label_codes
from mre_lowshot.errors import UserError
from mre_lowshot.files import sha256
from mre_lowshot.inference import checkpoint
from mre_lowshot.inference.ensemble import needs_tuning
from mre_lowshot.inference.model_archive import ModelArchive, is_archive, read_archive, require_folds
from mre_lowshot.inference.model_folders import REPLACED
from mre_lowshot.network.build import outline
from mre_lowshot.plain import shown

MAX_FOLD = 999_999_999
_FOLD = re.compile(r"fold_[0-9]{1,9}$")


@dataclass(frozen=True)
class Model:
    """The networks of one or more folds of one model folder; they share everything but weights and fold."""

    folder: Path
    folds: tuple[int, ...]
    plans: tuple[Plan, ...]
    networks: tuple[nn.Module, ...]
    atlases: tuple[Atlases, ...]
    unfinished: tuple[int, ...] = ()  # folds whose training has not ended
    checkpoints: tuple[Path, ...] = ()  # the files that were loaded, one a fold
    hashes: tuple[str, ...] = ()  # their SHA-256, where it is in the model's zip file
    trained_by: str = ""  # version of mre_lowshot
    dataset: Mapping[str, Any] | None = None  # content of dataset.json, as the first fold was trained with

    @property
    def plan(self) -> Plan:
        """What the folds share (network, patch, preprocessing, labels): the first fold's plan."""
        return self.plans[0]

    @cached_property
    def colours(self) -> dict[int, str]:
        """``#rrggbb`` of each label value above 0: those that dataset.json gives, and of the palette.

        Raises:
            UserError: dataset.json gives something else as a colour.
        """
        return label_colours(self.plan.labels, self._of_labels("label_colours"), f"{self.folder}: dataset.json")

    @cached_property
    def codes(self) -> dict[str, Code]:
        """The coded terms that dataset.json gives labels, by name.

        Raises:
            UserError: it gives something else.
        """
        return label_codes(self.plan.labels, self._of_labels("label_codes"), f"{self.folder}: dataset.json")

    def _of_labels(self, key: str) -> Any:
        """What dataset.json gives for the labels of the plan, among which ``ignore`` is not."""
        given = (self.dataset or {}).get(key)
        return {k: v for k, v in given.items() if k in self.plan.labels} if isinstance(given, Mapping) else given

    @cached_property
    def version(self) -> str:
        """The version of the software that trained it, and eight digits of the SHA-256 of its checkpoints."""
        found = self.hashes or tuple(map(sha256, self.checkpoints))
        digest = found[0] if found else ""
        if found[1:]:
            digest = hashlib.sha256("".join(found).encode()).hexdigest()
        return f"{self.trained_by} {digest[:8]}".strip()

    @classmethod
    def of_fold(
        cls,
        plan: Plan,
        network: nn.Module,
        atlases: Atlases,
        folder: Path = Path(),
        *,
        dataset: Mapping[str, Any] | None = None,
    ) -> Model:
        """The model of a single fold, as its trainer has it in memory; ``dataset`` is the content of dataset.json."""
        number = plan.fold.fold if plan.fold else 0
        return cls(folder, (number,), (plan,), (network,), (atlases,), dataset=dataset)


def load_model(
    folder: Path, folds: Sequence[int] | None, device: torch.device, *, checkpoint_name: str | None = None
) -> Model:
    """Load the given folds (None: all that are trained) of a model's folder or zip file, or a single fold's folder or
    checkpoint file, wherever it lies: nothing else is read.

    Args:
        folder: of the model or of a fold, or a checkpoint file.
        folds: numbers of the folds.
        device: to load the weights to.
        checkpoint_name: ``checkpoint_final.pth`` or ``checkpoint_latest.pth`` of each fold; None: the final one, the
            latest one where training has not ended.

    Raises:
        UserError: no such folder, fold or checkpoint, or a checkpoint cannot be used.
    """
    require_checkpoint_name(checkpoint_name)
    require_path("-m", folder)
    for fold in folds or ():
        require_whole("fold", fold, 0, MAX_FOLD)
    if not folder.exists():
        raise UserError(
            f"model {folder}: does not exist; give .../MRETrainer__MREPlans__1shot, a model's zip file or a checkpoint "
            "file"
        )
    if folder.is_file() and is_archive(folder):
        if checkpoint_name not in (None, checkpoint.FINAL):
            raise UserError(f"-chk {checkpoint_name}: {folder} holds final checkpoints only; leave out -chk")
        archive = read_archive(folder)
        return _of_archive(archive, require_folds(archive, folds), device)
    single = _single_checkpoint(folder)
    if single is not None:
        if folds is not None:
            raise UserError(f"{folder}: is a single fold; leave out the choice of folds (-f)")
        if checkpoint_name is not None:
            single = _of_name(single if folder.is_file() else folder / checkpoint_name, checkpoint_name)
        return _loaded(folder, [single], device)
    found = trained_folds(folder, folds)
    if checkpoint_name is None:
        return _loaded(folder, list(found.values()), device)
    return _loaded(folder, [_of_name(p.parent / checkpoint_name, checkpoint_name) for p in found.values()], device)


def trained_folds(folder: Path, folds: Sequence[int] | None) -> dict[int, Path]:
    """The newest checkpoint of the given folds (None: all that are trained) of a model's folder, by number.

    Raises:
        UserError: one is not trained.
    """
    names = {p.name for place in (folder, folder / REPLACED) for p in place.glob("fold_*") if _FOLD.match(p.name)}
    trained = {int(name[5:]): folder / name for name in names if _newest(folder / name).is_file()}
    wanted = sorted(trained) if folds is None else sorted(set(folds))
    if not trained:
        raise UserError(
            f"model {folder}: holds no trained fold (fold_N/checkpoint_*.pth); give .../MRETrainer__MREPlans__1shot"
        )
    missing = [fold for fold in wanted if fold not in trained]
    if missing or not wanted:
        raise UserError(
            f"{folder}: fold {missing or 'any'} is not trained (trained: {sorted(trained) or 'none'}); see -f"
        )
    return {fold: _newest(trained[fold]) for fold in wanted}


def require_checkpoint_name(name: str | None) -> None:
    """Refuse a name of a checkpoint that training does not write.

    Raises:
        UserError: names those that it writes.
    """
    both = f"{checkpoint.FINAL} or {checkpoint.LATEST}"
    if name == "checkpoint_best.pth":
        raise UserError(
            f"-chk {name}: there is none, because training keeps no scan apart to choose a best checkpoint by; give "
            f"{both}, or leave out -chk"
        )
    if name is not None and name not in (checkpoint.FINAL, checkpoint.LATEST):
        raise UserError(f"-chk {shown(name)}: is not {both}; give one of them, or -m with the path of a file")


def _of_name(path: Path, name: str) -> Path:
    if path.name != name:
        raise UserError(f"-m {path}: is a checkpoint file itself, and not {name}; leave out -chk")
    if not path.is_file():
        raise UserError(
            f"-chk {name}: {path.parent} has none; leave out -chk (the newest checkpoint is used then), or "
            "continue the training with mre_train --c"
        )
    return path


def _newest(fold: Path) -> Path:
    """The newest checkpoint of a fold; while it is trained again and has none, that of the earlier training."""
    places = (fold, fold.parent / REPLACED / fold.name)
    found = (place / name for place in places for name in (checkpoint.FINAL, checkpoint.LATEST))
    return next((path for path in found if path.is_file()), fold / checkpoint.LATEST)


def _single_checkpoint(path: Path) -> Path | None:
    """The checkpoint that ``path`` is, or that lies directly in it."""
    if path.is_file():
        return path
    return _newest(path) if _newest(path).is_file() else None


def _loaded(folder: Path, paths: Sequence[Path], device: torch.device) -> Model:
    return _assembled(folder, ((path, *checkpoint.load(path, device)) for path in paths))


def _of_archive(archive: ModelArchive, folds: Sequence[int], device: torch.device) -> Model:
    """Folds of a zip file, loaded from where they lie in it."""
    names = [f"fold_{fold}/{checkpoint.FINAL}" for fold in folds]
    model = _assembled(archive.path, (load_member(archive, name, device) for name in names))
    return replace(model, hashes=tuple(archive.members[name].sha256 for name in names))


def load_member(archive: ModelArchive, name: str, device: torch.device) -> tuple[Path, Plan, dict[str, Any]]:
    """A checkpoint in a model's zip file: its path, plan and content (`checkpoint.load`).

    Raises:
        UserError: it cannot be used.
    """
    path = archive.path / name
    with archive.section(name) as source:
        return path, *checkpoint.load(path, device, source)


def _assembled(folder: Path, loaded: Iterable[tuple[Path, Plan, dict[str, Any]]]) -> Model:
    """The model of checkpoints with their paths; they must share everything but weights and fold."""
    folds, plans, networks, atlases, unfinished, paths = [], [], [], [], [], []
    contents: list[dict[str, Any]] = []
    for path, plan, content in loaded:
        fold = int(path.parent.name[5:]) if _FOLD.match(path.parent.name) else plan.fold.fold if plan.fold else 0
        network = outline(plan.network)  # without initialising weights, which the checkpoint's replace
        network.load_state_dict(content["weights"], assign=True)
        contents.append({name: content.get(name) for name in ("dataset", "versions")})
        folds.append(fold)
        plans.append(plan)
        networks.append(network)
        paths.append(path)
        atlases.append(with_mirrored(tuple(Atlas.from_tensors(data) for data in content["atlases"]), plan))
        if content["training"]["iteration"] < plan.recipe.optimizer.iterations or needs_tuning(plan):
            unfinished.append(fold)
    different = [f for f, p in zip(folds, plans, strict=True) if _shared(p) != _shared(plans[0])]
    if different:
        raise UserError(
            f"{folder}: folds {different} were trained with another plan than fold {folds[0]}; choose with -f"
        )
    versions, dataset = contents[0]["versions"], contents[0]["dataset"]
    model = Model(
        folder,
        tuple(folds),
        tuple(plans),
        tuple(networks),
        tuple(atlases),
        unfinished=tuple(unfinished),
        checkpoints=tuple(paths),
        trained_by=str(versions.get("mre_lowshot", "")) if isinstance(versions, dict) else "",
        dataset=dataset if isinstance(dataset, dict) else None,
    )
    _ = model.colours, model.codes  # refused before any work
    return model


def _shared(plan: Plan) -> tuple[object, ...]:
    return (
        plan.network,
        plan.patch,
        plan.preprocessing,
        plan.labels,
        plan.channel_names,
        plan.recipe.inference,
        plan.recipe.refinement,
        plan.recipe.atlas.registration,
    )
