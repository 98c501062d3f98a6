"""One size on one device: the trainer and the plain network that the sections compare, made once and shared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.plain import PlainMRENet
from benchmarks.sizes import Size, prior_of, synthetic_case
from mre_lowshot import checkpoint
from mre_lowshot.preprocessing.store import load_case
from mre_lowshot.sampling import TrainingCase
from mre_lowshot.trainers.trainer import MRETrainer

Say = Callable[[str], None]


@dataclass
class Setting:
    """What a section is given. ``ceiling``: GFLOP/s of the best matrix product; ``folder``: scratch, thrown away;
    ``weights`` and ``scan``: a checkpoint's network and a preprocessed case, where the user named them."""

    size: Size
    device: torch.device
    repeats: int
    ceiling: float
    folder: Path
    say: Say
    weights: dict[str, Tensor] | None = None
    scan: TrainingCase | None = None

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def batch(self) -> int:
        """Patches in a training step."""
        return self.size.batch_cuda if self.cuda else self.size.batch

    def case(self) -> TrainingCase:
        """The scan to train on."""
        network = self.size.network
        return synthetic_case(self.size.scan, network.in_channels, network.classes, self.size.spacing)

    def trainer(self, size: Size | None = None, batch: int | None = None) -> MRETrainer:
        """Ours: the trainer that ``mre_train`` uses, on the synthetic scan, in training mode."""
        size = size or self.size
        case = self.case()
        made = MRETrainer(size.plan(batch or self.batch), [case], self.folder, self.device)
        made.sampler.prior = prior_of(case, size.network)
        made.network.train()
        return made

    @cached_property
    def pair(self) -> tuple[MRETrainer, PlainMRENet]:
        """Ours and the plain network, with the same weights at first."""
        trainer = self.trainer()
        plain = PlainMRENet(self.size.network).to(self.device)
        plain.load_state_dict(trainer.network.state_dict())
        return trainer, plain

    def share(self, multiply_adds: int, seconds: float) -> float:
        """Which part of the ceiling was reached."""
        return 2e-9 * multiply_adds / seconds / self.ceiling


def of_checkpoint(size: Size, path: Path) -> tuple[Size, dict[str, Tensor]]:
    """The size with a checkpoint's network and patch, and its weights (those to predict with).

    Raises:
        UserError: the file is missing or no checkpoint.
    """
    plan, content = checkpoint.load(path, torch.device("cpu"))
    return replace(size, network=plan.network, patch=plan.patch), content["weights"]


def of_case(path: Path) -> TrainingCase:
    """A preprocessed case, ``.../MREPlans/CASE.npz``.

    Raises:
        UserError: the file is missing or damaged.
    """
    case = load_case(path.parent, path.stem)
    label = case.label if case.label is not None else torch.zeros(case.image.shape[1:], dtype=torch.int16).numpy()
    return TrainingCase(case.image, label, case.transform.spacing)
