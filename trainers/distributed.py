"""One fold trained by several processes, started by torch's own ``torchrun``: what they share, and how.

Every process draws the same mini-batch (a function of seed and number alone), takes its share of the patches through
the network and gives its logits to all. So each has the loss of the joined batch: N_k, OHEM's ranking and the Dice
term are pooled by construction. Its gradient goes back through the process's own patches; the processes' gradients
add up to that of one process with the whole batch. Only the first process writes files and says anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import cast

import torch
from torch import Tensor, nn
from torch import distributed as dist

from mre_lowshot import devices
from mre_lowshot.errors import UserError
from mre_lowshot.network.build import MRENet
from mre_lowshot.specs import Plan

LONGEST_WAIT = timedelta(hours=24)  # the others wait while the first one registers, saves or validates


@dataclass(frozen=True)
class Processes:
    """The processes that train together: this one is number ``rank`` of ``count``. Alone, nothing is exchanged."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """This process's patches of a mini-batch (B, ...): (B / count, ...), the rank-th run of them."""
        return batch if self.count == 1 else batch.chunk(self.count)[self.rank]

    def joined(self, logits: Tensor) -> Tensor:
        """All processes' logits (B / count, K, *size) as those of the mini-batch, (B, K, *size), in its order; the
        gradient goes to this process's own."""
        if self.count == 1:
            return logits
        logits = (logits if logits.dtype == torch.float64 else logits.float()).contiguous()
        parts = [torch.empty_like(logits) for _ in range(self.count)]
        dist.all_gather(parts, logits.detach())
        parts[self.rank] = logits
        return torch.cat(parts)

    def sum_gradients(self, network: nn.Module) -> None:
        """Add up the processes' gradients, in one message: each then holds that of the joined batch."""
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        if self.count == 1 or not gradients:
            return
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(total.view_as(gradient))

    def any(self, here: bool, device: torch.device) -> bool:
        """Whether it is so in any process; also where they wait for each other."""
        if self.count == 1:
            return here
        seen = torch.tensor(float(here), device=device)
        dist.all_reduce(seen, dist.ReduceOp.MAX)
        return bool(seen)

    def prepared(self, network: MRENet, plan: Plan, device: torch.device) -> MRENet:
        """``network``, its batch norms synchronised where the plan says so.

        Raises:
            UserError: the mini-batch cannot be shared evenly, or norms are to be synchronised on a CPU.
        """
        batch = plan.recipe.batch_size
        if batch % self.count:
            fitting = max(self.count, batch // self.count * self.count)
            raise UserError(
                f"recipe.batch_size {batch} cannot be shared evenly by {self.count} processes (torchrun "
                f"--nproc_per_node); plan with --set recipe.batch_size={fitting}, or start another number"
            )
        spec = plan.network
        pooled = spec.ams and spec.aspp and spec.image_level and spec.image_level_norm and spec.norm == "batch"
        synchronised = plan.recipe.sync_batch_norm and self.count > 1
        if self.count == batch > 1 and pooled and not synchronised:
            raise UserError(
                f"{self.count} processes leave each a single patch, which is nothing to normalise in the image-level "
                "branch; start fewer, or plan with --set network.image_level_norm=false"
            )
        if not synchronised:
            return network
        if device.type != "cuda":
            raise UserError(
                "recipe.sync_batch_norm: torch synchronises batch norms on CUDA devices only; on the CPU plan with "
                "--set recipe.sync_batch_norm=false (statistics per process, as in the paper) or network.norm=instance"
            )
        return cast(MRENet, nn.SyncBatchNorm.convert_sync_batchnorm(network))

    def summary(self, plan: Plan) -> str:
        """What is shared and what is not, for the log."""
        norm = "instance norm needs no sharing"
        if plan.network.norm == "batch":
            norm = "batch-norm statistics " + ("synchronised" if plan.recipe.sync_batch_norm else "per process")
        return (
            f"{self.count} processes, {plan.recipe.batch_size // self.count} of {plan.recipe.batch_size} patches each; "
            f"N_k, OHEM and Dice pooled over all; {norm}"
        )


ALONE = Processes()


@contextmanager
def started(device_name: str) -> Iterator[tuple[Processes, torch.device]]:
    """The processes that ``torchrun`` started with this one, connected (NCCL on CUDA, else gloo), and this one's
    device. Without ``torchrun`` it is alone on ``device_name``.

    Raises:
        UserError: the device is not usable, or there are more processes than GPUs.
    """
    given = all(name in os.environ for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"))
    count, rank, local = (int(os.environ[n]) for n in ("WORLD_SIZE", "RANK", "LOCAL_RANK")) if given else (1, 0, 0)
    if count > 1 and device_name != "cpu" and local < torch.cuda.device_count():
        torch.cuda.set_device(local)  # before anything is put on the first GPU
    device = devices.resolve(device_name)
    if count == 1:
        yield ALONE, device
        return
    if device.type == "cuda":
        if device.index is not None:
            raise UserError(f"-device {device_name}: {count} processes take a GPU each; say cuda, or start one process")
        if local >= torch.cuda.device_count():
            raise UserError(
                f"torchrun --nproc_per_node: process {local + 1} on this machine finds {torch.cuda.device_count()} "
                "GPUs; start one process a GPU"
            )
        device = torch.device("cuda", local)
    elif device.type != "cpu":
        raise UserError(f"-device {device_name}: several processes train on cuda or cpu only")
    # Its functions' defaults take the group there is when it is first imported, as torch itself does while training:
    # imported after the group it would keep gloo's threads alive past its end, which now and then abort the exit.
    import_module("torch.distributed.nn")
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=LONGEST_WAIT)
    try:
        yield Processes(rank, count), device
    finally:
        dist.destroy_process_group()
