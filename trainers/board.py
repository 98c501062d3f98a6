"""TensorBoard: the curves of a training as event files, where the extra is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mre_lowshot.errors import UserError, install_extra
from mre_lowshot.trainers.step_log import FIELDS
from mre_lowshot.trainers.trainer import MRETrainer

FOLDER = "tensorboard"


def require_tensorboard() -> None:
    """Refuse ``--tensorboard`` where the package is missing.

    Raises:
        UserError: names the extra to install.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError(f"--tensorboard: the package tensorboard is not installed; {install_extra('tensorboard')}")


@contextmanager
def curves(folder: Path, begun: int) -> Iterator[Callable[[MRETrainer], None]]:
    """A callback for `MRETrainer.fit` that writes loss, patch Dice and learning rate to ``folder/tensorboard``.

    Args:
        folder: of the fold.
        begun: the iteration from which the training goes on; later points of an earlier run are hidden.
    """
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / FOLDER), purge_step=begun + 1 if begun else None)

    def on_step(trainer: MRETrainer) -> None:
        for key, name in FIELDS.items():
            value = trainer.training_log.history[key][-1]
            if value == value:  # NaN Dice: no foreground in the batch
                writer.add_scalar(f"train/{name}", value, trainer.iteration)

    try:
        yield on_step
    finally:
        writer.close()
