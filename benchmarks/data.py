"""Data loading: patches per second of the sampler, and the time that a training step waits for them."""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Subset

from benchmarks.setting import Setting
from benchmarks.timing import Spread, seconds, synchronise
from mre_lowshot.trainers.trainer import MRETrainer

BATCH = 24
WORKERS = (0, 1, 2)
STEPS = 6  # measured iterations, after one that is not measured
BATCHES = 8  # measured batches of loading alone, after two that are not measured


def loader(setting: Setting) -> dict[str, Any]:
    """Patches per second of the sampler alone, the rate that training needs, and the share of an iteration that is
    spent waiting for its batch, by number of loader processes (0: in the training process, the default of
    ``mre_train``)."""
    trainer = setting.trainer(batch=BATCH)
    batch = trainer.sampler[0]
    trainer.step(*batch)
    step = Spread(tuple(seconds(lambda: trainer.step(*batch), setting.device) for _ in range(setting.repeats)))
    needed = BATCH / step.median
    setting.log(f"loading, batch {BATCH}: a training step takes {step} s, so it needs {needed:.1f} patches a second")
    result: dict[str, Any] = {"batch": BATCH, "step_seconds": step.record(), "patches_needed": needed}
    for workers in WORKERS:
        rate = _patches_per_second(trainer, workers)
        waits = _waiting(setting, trainer, workers)
        result[f"workers_{workers}"] = {"patches_per_second": rate, "share_of_iteration": waits.record()}
        setting.log(f"  {workers} loader processes: {rate:.1f} patches a second without training ({rate / needed:.1f} "
                    f"times the needed rate); an iteration waits {100 * waits.median:.1f} % of its time "
                    f"({100 * min(waits.values):.1f} to {100 * max(waits.values):.1f} %)")  # fmt: skip
    return result


def _loader(trainer: MRETrainer, workers: int, count: int) -> DataLoader[tuple[Tensor, Tensor, Tensor]]:
    return DataLoader(Subset(trainer.sampler, range(count)), batch_size=None, num_workers=workers)


def _patches_per_second(trainer: MRETrainer, workers: int) -> float:
    """Of loading alone, once the loader processes run."""
    batches = iter(_loader(trainer, workers, 2 + BATCHES))
    next(batches), next(batches)
    begun = time.perf_counter()
    count = sum(1 for _ in batches)
    return count * BATCH / (time.perf_counter() - begun)


def _waiting(setting: Setting, trainer: MRETrainer, workers: int) -> Spread:
    """The share of each training iteration that is spent waiting for the batch."""
    batches = iter(_loader(trainer, workers, 1 + STEPS))
    shares = []
    trainer.step(*next(batches))
    for _ in range(STEPS):
        synchronise(setting.device)
        begun = time.perf_counter()
        batch = next(batches)
        loaded = time.perf_counter()
        trainer.step(*batch)
        synchronise(setting.device)
        shares.append((loaded - begun) / (time.perf_counter() - begun))
    return Spread(tuple(shares))
