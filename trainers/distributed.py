"""One fold trained by several processes, started by torch's ``torchrun``.

Every process draws the same mini-batch (a function of seed and number only), passes its shard of the patches through
the network and gathers the logits of all. So each has the loss of the whole batch: N_k, OHEM's ranking and the Dice
term are computed over it by construction. Gradients go back through the process's own patches and are summed, which
gives the gradient of one process with the whole batch. Only the first process writes files and prints.
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
from mre_lowshot.config import Plan
from mre_lowshot.errors import UserError
from mre_lowshot.network.build import MRENet

LONGEST_WAIT = timedelta(hours=24)  # for the first process while it registers, saves or validates


@dataclass(frozen=True)
class Processes:
    """The processes that train together: this one is number ``rank`` of ``count``. A single one exchanges nothing."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def shard(self, batch: Tensor) -> Tensor:
        """This process's patches of a mini-batch (B, ...): (B / count, ...), the rank-th run of them."""
        return batch if self.count == 1 else batch.chunk(self.count)[self.rank]

    def all_gather(self, logits: Tensor) -> Tensor:
        """All processes' logits (B / count, K, *size) as those of the mini-batch, (B, K, *size), in its order; the
        gradient goes to this process's own logits."""
        if self.count == 1:
            return logits
        logits = (logits if logits.dtype == torch.float64 else logits.float()).contiguous()
        parts = [torch.empty_like(logits) for _ in range(self.count)]
        dist.all_gather(parts, logits.detach())
        parts[self.rank] = logits
        return torch.cat(parts)

    def sum_gradients(self, network: nn.Module) -> None:
        """Sum the processes' gradients, in one message: each then holds the gradient of the whole batch."""
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        if self.count == 1 or not gradients:
            return
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(total.view_as(gradient))

    def any_rank(self, here: bool, device: torch.device) -> bool:
        """Whether ``here`` holds in any process; also a barrier."""
        if self.count == 1:
            return here
        flag = torch.tensor(float(here), device=device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)

    def require_shares(self, plan: Plan) -> None:
        """Require that these processes can share the plan's mini-batch.

        Raises:
            UserError: it cannot be divided evenly, or leaves a process too few patches for a norm.
        """
        batch = plan.recipe.sampling.batch_size
        if batch % self.count:
            fitting = max(self.count, batch // self.count * self.count)
            raise UserError(
                f"recipe.sampling.batch_size {batch} cannot be divided evenly among {self.count} processes (torchrun "
                f"--nproc_per_node); plan with -p NAME --set recipe.sampling.batch_size={fitting}, "
                "or start another number of processes"
            )
        if self.count == batch > 1 and plan.network.pooled_norm and not plan.recipe.optimizer.sync_batch_norm:
            raise UserError(
                f"{self.count} processes leave each a single patch, too few for the norm of the image-level "
                "branch; start fewer, or plan with -p NAME --set network.image_level_norm=false"
            )

    def prepare(self, network: MRENet, plan: Plan, device: torch.device) -> MRENet:
        """``network``, with synchronised batch norms where the plan has them.

        Raises:
            UserError: see `require_shares`; or norms are to be synchronised on a CPU.
        """
        self.require_shares(plan)
        if not plan.recipe.optimizer.sync_batch_norm or self.count == 1:
            return network
        if device.type != "cuda":
            raise UserError(
                "recipe.optimizer.sync_batch_norm: torch synchronises batch norms on CUDA devices only; on the CPU "
                "plan with -p NAME --set recipe.optimizer.sync_batch_norm=false (statistics per process, as in the "
                "paper) or network.norm=instance"
            )
        return cast(MRENet, nn.SyncBatchNorm.convert_sync_batchnorm(network))

    def summary(self, plan: Plan) -> str:
        """What is computed over all processes and what per process, for the log."""
        batch, norm = plan.recipe.sampling.batch_size, "instance norm needs no synchronisation"
        if plan.network.norm == "batch":
            norm = "batch-norm statistics " + (
                "synchronised" if plan.recipe.optimizer.sync_batch_norm else "per process"
            )
        return (
            f"{self.count} processes, {batch // self.count} of {batch} patches each; "
            f"N_k, OHEM and Dice over all; {norm}"
        )


SINGLE = Processes()


@contextmanager
def connected_processes(device_name: str) -> Iterator[tuple[Processes, torch.device]]:
    """The processes that ``torchrun`` started with this one, connected (NCCL on CUDA, else gloo), and this one's
    device. Without ``torchrun`` it is a single process on ``device_name``.

    Raises:
        UserError: the device is not usable, or there are more processes than GPUs.
    """
    given = all(name in os.environ for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"))
    count, rank, local = (int(os.environ[n]) for n in ("WORLD_SIZE", "RANK", "LOCAL_RANK")) if given else (1, 0, 0)
    if count > 1 and device_name != "cpu" and local < torch.cuda.device_count():
        torch.cuda.set_device(local)  # before anything is put on the first GPU
    device = devices.resolve(device_name)
    if count > 1 and device_name == "auto" and device.type == "mps":
        device = torch.device("cpu")  # several processes cannot share a Mac's GPU
    if count == 1:
        yield SINGLE, device
        return
    if device.type == "cuda":
        if device.index is not None:
            raise UserError(
                f"-device {device_name}: {count} processes take a GPU each; give cuda, or start one process"
            )
        if local >= torch.cuda.device_count():
            raise UserError(
                f"torchrun --nproc_per_node: process {local + 1} on this machine finds {torch.cuda.device_count()} "
                "GPUs; start one process per GPU"
            )
        device = torch.device("cuda", local)
    elif device.type != "cpu":
        raise UserError(f"-device {device_name}: several processes train on cuda or cpu only")
    # The defaults of its functions hold the group that exists when it is first imported, and torch imports it while
    # training. Imported after the group exists, it would keep gloo's threads alive past the group's end, which
    # sometimes aborts the process at exit. So it is imported first.
    import_module("torch.distributed.nn")
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=LONGEST_WAIT)
    try:
        yield Processes(rank, count), device
    finally:
        dist.destroy_process_group()
