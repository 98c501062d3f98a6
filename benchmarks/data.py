"""The data path: how many patches a second the sampler gives, and how long a training step waits for them."""

from __future__ import annotations

import time
from typing import Any

from torch.utils.data import DataLoader, Subset

from benchmarks.setting import Setting
from benchmarks.timing import Spread, seconds, synchronise
from mre_lowshot.trainers.trainer import MRETrainer

BATCH = 24
WORKERS = (0, 1, 2)
STEPS = 6  # iterations counted, after one that is not
BATCHES = 8  # counted where nothing but loading is done, after two that are not


def loader(setting: Setting) -> dict[str, Any]:
    """Patches a second of the sampler alone, what a training step needs, and the share of an iteration that training
    waits for its batch, by loader processes (0: in the training process, as ``mre_train`` does by default)."""
    trainer = setting.trainer(batch=BATCH)
    batch = trainer.sampler[0]
    trainer.step(*batch)
    step = Spread(tuple(seconds(lambda: trainer.step(*batch), setting.device) for _ in range(setting.repeats)))
    need = BATCH / step.median
    setting.say(f"loading, batch {BATCH}: a training step takes {step} s, so it needs {need:.1f} patches a second")
    result: dict[str, Any] = {"batch": BATCH, "step_seconds": step.record(), "patches_needed": need}
    for workers in WORKERS:
        alone = _rate(trainer, workers)
        waits = _waiting(setting, trainer, workers)
        result[f"workers_{workers}"] = {"patches_per_second": alone, "share_of_iteration": waits.record()}
        setting.say(f"  {workers} workers: {alone:.1f} patches a second alone ({alone / need:.1f} times the need); "
                    f"an iteration waits {100 * waits.median:.1f} % of its time "
                    f"({100 * min(waits.values):.1f} to {100 * max(waits.values):.1f} %)")  # fmt: skip
    return result


def _loader(trainer: MRETrainer, workers: int, count: int) -> DataLoader:
    return DataLoader(Subset(trainer.sampler, range(count)), batch_size=None, num_workers=workers)


def _rate(trainer: MRETrainer, workers: int) -> float:
    """Patches a second with nothing else to do, once the loader's processes run."""
    batches = iter(_loader(trainer, workers, 2 + BATCHES))
    next(batches), next(batches)
    begun = time.perf_counter()
    count = sum(1 for _ in batches)
    return count * BATCH / (time.perf_counter() - begun)


def _waiting(setting: Setting, trainer: MRETrainer, workers: int) -> Spread:
    """The share of each iteration of a training loop that passes in waiting for the batch."""
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
