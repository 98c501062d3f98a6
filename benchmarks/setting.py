"""One size on one device: the trainer and the plain network that the sections compare, made once and shared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.plain import PlainMRENet
from benchmarks.sizes import Size, own_prior, synthetic_case
from mre_lowshot.inference import checkpoint
from mre_lowshot.preprocessing.store import load_case
from mre_lowshot.sampling import TrainingCase
from mre_lowshot.trainers.trainer import MRETrainer


@dataclass
class Setting:
    """The input of a section.

    Attributes:
        size: the network and what of it is timed.
        device: to compute on.
        repeats: turns of each alternative.
        ceiling: GFLOP/s of the fastest matrix product.
        folder: for temporary files.
        log: receives the lines to print.
        weights: of the given checkpoint; None: of a short training.
        scan: the given preprocessed case; None: a synthetic scan.
    """

    size: Size
    device: torch.device
    repeats: int
    ceiling: float
    folder: Path
    log: Callable[[str], None]
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
        """The synthetic scan to train on."""
        network = self.size.network
        return synthetic_case(self.size.scan, network.in_channels, network.classes, self.size.spacing)

    def trainer(self, size: Size | None = None, batch: int | None = None) -> MRETrainer:
        """Our trainer, as in ``mre_train``, on the synthetic scan, in training mode."""
        size = size or self.size
        case = self.case()
        made = MRETrainer(size.plan(batch or self.batch), [case], folder=self.folder, device=self.device)
        made.sampler.prior = own_prior(case, size.network)
        made.network.train()
        return made

    @cached_property
    def pair(self) -> tuple[MRETrainer, PlainMRENet]:
        """Our trainer and the plain network, with the same initial weights."""
        trainer = self.trainer()
        plain = PlainMRENet(self.size.network).to(self.device)
        plain.load_state_dict(trainer.network.state_dict())
        return trainer, plain

    def share(self, multiply_adds: int, seconds: float) -> float:
        """The speed reached, as a share of the ceiling."""
        return 2e-9 * multiply_adds / seconds / self.ceiling


def read_checkpoint(size: Size, path: Path) -> tuple[Size, dict[str, Tensor]]:
    """``size`` with a checkpoint's network and patch, and the checkpoint's weights for prediction.

    Raises:
        UserError: the file is missing or not a checkpoint.
    """
    plan, content = checkpoint.load(path, torch.device("cpu"))
    return replace(size, network=plan.network, patch=plan.patch), content["weights"]


def read_case(path: Path) -> TrainingCase:
    """A preprocessed case, ``.../MREPlans/CASE.npz``.

    Raises:
        UserError: the file is missing or damaged.
    """
    case = load_case(path.parent, path.stem)
    label = case.label if case.label is not None else np.zeros(case.image.shape[1:], dtype=np.int16)
    return TrainingCase(case.image, label, case.transform.spacing)
