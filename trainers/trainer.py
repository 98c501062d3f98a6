"""Training one fold: the MRE network and the OHEM loss in a short loop that can be interrupted and continued."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from mre_lowshot import devices
from mre_lowshot.atlas.atlas import Atlases
from mre_lowshot.atlas.label_fusion import atlas_prior_of
from mre_lowshot.config import FoldDecisions, Plan
from mre_lowshot.config.json import to_json
from mre_lowshot.config.plan_files import same_plan
from mre_lowshot.errors import NumericalError, UserError
from mre_lowshot.files import write_json
from mre_lowshot.grid import IGNORE
from mre_lowshot.heap import freed_memory_is_kept
from mre_lowshot.inference import checkpoint
from mre_lowshot.inference.ensemble import needs_tuning
from mre_lowshot.losses import MRELoss
from mre_lowshot.network.build import build, require_patch_memory
from mre_lowshot.sampling import BatchSampler, TrainingCase
from mre_lowshot.signals import Terminated
from mre_lowshot.trainers.distributed import SINGLE, Processes
from mre_lowshot.trainers.oom import OptimizerSteps, OutOfMemoryPolicy, step_distributed
from mre_lowshot.trainers.optimizer import MovingAverage, adam, load_adam, schedule
from mre_lowshot.trainers.precision import Precision
from mre_lowshot.trainers.pretrained import Pretrained
from mre_lowshot.trainers.training_log import TrainingLog, checked_history
from mre_lowshot.trainers.tune_fusion import tune_weights
from mre_lowshot.transfers import counts_of, to_device, to_host

SAVE_SECONDS = 60.0  # between two latest checkpoints, at most


@contextmanager
def held_interrupt(always: bool = False) -> Iterator[Callable[[], int]]:
    """Record Ctrl-C and SIGTERM instead of ending; yields a function that returns the first one's number, 0 for none.

    A second Ctrl-C ends immediately (``always``: is recorded too, as torchrun repeats it). SIGTERM is recorded each
    time, because batch systems send it to a process and to its parent, which forwards it. Outside the main thread,
    where signals do not arrive, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    received: list[int] = []

    def record(number: int, _: object) -> None:
        received.append(number)
        if number == signal.SIGINT and not always:
            signal.signal(number, before[signal.SIGINT] or signal.SIG_DFL)

    for number in before:
        signal.signal(number, record)
    try:
        yield lambda: received[0] if received else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def ignore_signals(_: int) -> None:
    """In a data-loading process: the training process decides when to end. Ctrl-C and batch systems send their signal
    to all processes, and a loader that ends by it would stop the training within an iteration."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@torch.no_grad()
def dice_counts(logits: Tensor, target: Tensor) -> Tensor:
    """Voxels of each class (3, K), int64: labelled correctly by the arg-max, given by it, and in the target."""
    valid = target != IGNORE
    predicted, classes = logits.argmax(dim=1), logits.shape[1]
    correct = target.masked_fill(predicted != target, IGNORE)
    return torch.stack([counts_of(t, classes) for t in (correct, predicted.masked_fill(~valid, IGNORE), target)])


def dice_of(counts: Tensor) -> float:
    """Mean Dice over the foreground classes in the target, from `dice_counts` on the CPU; NaN when there is none."""
    correct, predicted, truth = counts[:, 1:]
    present = truth > 0
    if not bool(present.any()):
        return float("nan")
    return float((2 * correct[present] / (predicted + truth)[present]).mean())


def batch_dice(logits: Tensor, target: Tensor) -> float:
    """Mean Dice of the arg-max labels over the foreground classes in the batch; NaN when there is none."""
    return dice_of(to_host(dice_counts(logits, target))[0])


class MRETrainer:
    """Trains the network of a fold's plan on its training cases.

    Args:
        plan: the fold's plan (``plan.fold`` filled).
        cases: the training cases, with their coordinates in the atlases.
        folder: for checkpoints, log and curves.
        device: to train on.
        atlases: the fold's, without mirrored ones; kept in the checkpoints.
        dataset: content of dataset.json, kept in the checkpoints.
        processes: that train together, each on its shard of every mini-batch; the first one writes.
        inputs: hash of each training case's scan and label map, kept in the checkpoints: a training goes on with the
            same ones only.

    Raises:
        UserError: the device does not support the plan's precision, or the batch cannot be divided among the processes.
    """

    def __init__(
        self,
        plan: Plan,
        cases: Sequence[TrainingCase],
        *,
        folder: Path,
        device: torch.device,
        atlases: Atlases = (),
        dataset: dict[str, Any] | None = None,
        processes: Processes = SINGLE,
        inputs: Mapping[str, str] | None = None,
    ) -> None:
        if plan.fold is None:
            raise ValueError("a fold's plan is needed: planners.fold.decide_fold fills it")
        self.plan, self.folder, self.device, self.seed = plan, folder, device, plan.fold.seed
        recipe, optimizer = plan.recipe, plan.recipe.optimizer
        torch.manual_seed(self.seed)
        self.processes, self.dataset, self.inputs = processes, dataset, dict(inputs or {})
        if device.type == "cpu":
            batch = plan.recipe.sampling.batch_size
            require_patch_memory(plan.network, plan.patch.size, batch=batch, what="training")
        network = build(plan.network)
        network.recompute(optimizer.recompute)
        self.precision = Precision(plan, network, device)
        self.network = processes.prepare(network.to(device), plan, device)
        self.average = None
        if optimizer.ema:
            self.average = MovingAverage(self.network, optimizer.ema)
        self.loss = MRELoss(plan.network.classes, plan.fold.majority, recipe.loss)
        self.optimizer = adam(self.network.parameters(), optimizer, device)
        self.schedule = schedule(self.optimizer, optimizer)
        self.pretrained: Pretrained | None = None
        self.atlases = atlases
        prior = atlas_prior_of(atlases, plan)
        self.sampler = BatchSampler(cases, plan.patch.size, recipe, plan.network.classes, self.seed, prior)
        self.iteration = 0
        self.after_save: Callable[[], None] | None = None  # called after each checkpoint, in the first process
        used = partial(devices.used_memory, device)
        self.training_log = TrainingLog(folder, writes=processes.first, used_memory=used)
        smallest = 2 if plan.network.pooled_norm else 1  # a norm needs two vectors
        self.memory = OutOfMemoryPolicy(self.network, recipe.sampling.batch_size, smallest, self.training_log.log)
        self.updates = OptimizerSteps(self.optimizer, self.training_log.log, repeats=processes.count == 1)
        if self.precision.note:
            self.training_log.log(self.precision.note)
        if processes.count > 1:
            self.training_log.log(processes.summary(plan))

    @property
    def inference_network(self) -> nn.Module:
        """The network for prediction: the moving average where the recipe has one."""
        return self.average.module if self.average is not None else self.network

    def fit(self, workers: int = 0, on_step: Callable[[MRETrainer], None] | None = None) -> None:
        """Train from the present iteration to the last one of the recipe; ``on_step`` is called after each iteration.

        Ctrl-C or SIGTERM lets the present iteration finish (half an iteration would change the running statistics),
        saves ``checkpoint_latest.pth`` and raises KeyboardInterrupt; a second Ctrl-C stops immediately. At the end the
        fusion weights are tuned (`trainers.tune_fusion`), and the last state is saved as latest and final.

        Raises:
            NumericalError: the loss or a gradient is not finite; the last good checkpoint is kept.
        """
        rest = Subset(self.sampler, range(self.iteration, self.plan.recipe.optimizer.iterations))
        pinned = self.device.type == "cuda"
        loader = DataLoader(
            rest, batch_size=None, num_workers=workers, worker_init_fn=ignore_signals, pin_memory=pinned
        )
        saved = time.monotonic()
        self.network.train()
        with (
            self.training_log.steps(self.iteration),
            freed_memory_is_kept() if self.device.type == "cpu" else nullcontext(),
            devices.fixed_shapes(tf32=self.precision.tf32),
            held_interrupt(always=self.processes.count > 1) as interrupted,
        ):
            for images, location, targets in loader:
                self.step(images, location, targets)
                if on_step:
                    on_step(self)
                if self.processes.any_rank(bool(interrupted()), self.device):
                    self.save(checkpoint.LATEST)
                    self.processes.any_rank(True, self.device)  # no process leaves before the first one has saved
                    self.training_log.log(f"interrupted after iteration {self.iteration}; --c continues")
                    raise Terminated(signal.SIGTERM) if interrupted() == signal.SIGTERM else KeyboardInterrupt
                if time.monotonic() - saved > SAVE_SECONDS:
                    self.save(checkpoint.LATEST)
                    self.training_log.draw()
                    self.training_log.restart_clock()
                    saved = time.monotonic()
        self.save(checkpoint.LATEST)
        self.training_log.draw()
        if self.processes.first and self.plan.fold is not None and needs_tuning(self.plan):
            self._tune_fusion(self.plan.fold)
            self.save(checkpoint.LATEST)
        self.save(checkpoint.FINAL)

    def _tune_fusion(self, decisions: FoldDecisions) -> None:
        """Add the tuned fusion weights to the fold's decisions, or the reason why there are none."""
        atlas = crf = None
        try:
            tuned = tune_weights(self.plan, self.inference_network, self.atlases, self.device)
            atlas, crf, reason = tuned.atlas_weight, tuned.crf_weight, tuned.reason
        except UserError as problem:
            default = self.plan.recipe.refinement.atlas_weight
            reason = f"atlas_weight {default:g} (recipe), not tuned: a mirrored training scan {problem}"
        self.training_log.log(reason)
        reasons = {**decisions.reasons, "atlas_weight": reason}
        fold = replace(decisions, atlas_weight=atlas, crf_weight=crf, reasons=reasons)
        self.plan = replace(self.plan, fold=fold)
        write_json(self.folder / "plans.json", to_json(self.plan))

    def step(self, images: Tensor, location: Tensor, targets: Tensor) -> None:
        """One iteration on one mini-batch (Algorithm 1 of the paper)."""
        shard, on_device = self.processes.shard, partial(to_device, device=self.device)
        images, location, labels = on_device(shard(images)), on_device(shard(location)), on_device(targets)
        self.optimizer.zero_grad(set_to_none=True)
        step = partial(self._gradients, images, location, labels, targets)
        logits, loss = self.memory.fit(step) if self.processes.count == 1 else step_distributed(step)
        self.processes.sum_gradients(self.network)
        self.precision.unscale(self.optimizer)
        norm = torch.nn.utils.get_total_norm(p.grad for p in self.network.parameters() if p.grad is not None)
        read = to_host(loss, norm, dice_counts(logits.detach(), labels))  # the step's results, in one transfer
        value, length = read[0].item(), read[1].item()
        if not math.isfinite(value) or not (math.isfinite(length) or self.precision.may_skip()):
            raise NumericalError(
                f"iteration {self.iteration + 1}: loss {value:g}, gradient norm {length:g} is not finite; "
                f"training stopped, the last good checkpoint in {self.folder} is kept; lower "
                "recipe.optimizer.learning_rate"
            )
        rate = self.optimizer.param_groups[0]["lr"]
        self.updates.step(partial(self.precision.step, self.optimizer))
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        self.iteration += 1
        self.training_log.add(self.iteration, value, dice_of(read[2]), rate)

    def _gradients(
        self, images: Tensor, location: Tensor, labels: Tensor, targets: Tensor, parts: int
    ) -> tuple[Tensor, Tensor]:
        """Add the gradients of a mini-batch, computed in ``parts`` (`trainers.oom`); its logits and loss. ``labels``
        are the ``targets`` on the device; the loss counts those in this process's memory, without waiting."""
        done = []
        for image, maps, label, target in zip(
            *(t.chunk(parts) for t in (images, location, labels, targets)), strict=True
        ):
            with self.precision.autocast():
                logits = self.network(image, maps)
            logits = self.processes.all_gather(logits)
            counts = counts_of(target, self.loss.classes).tolist()
            loss = self.loss(logits, label, counts) / parts
            self.precision.backward(loss)
            done.append((logits.detach(), loss.detach()))
        return torch.cat([logits for logits, _ in done]), torch.stack([loss for _, loss in done]).sum()

    def save(self, name: str) -> None:
        """Write a checkpoint of the present state, in the first process."""
        if not self.processes.first:
            return
        self.training_log.flush()
        training: dict[str, Any] = {
            "iteration": self.iteration,
            "network": self.network.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "history": self.training_log.history,
            "inputs": self.inputs,
        }
        weights = self.inference_network.state_dict()
        checkpoint.save(
            self.folder / name,
            self.plan,
            weights=weights,
            training=training,
            atlases=self.atlases,
            dataset=self.dataset,
        )
        if self.after_save:
            self.after_save()

    def begin_with(self, pretrained: Pretrained) -> None:
        """Start from the weights of another training, with a new optimizer."""
        self.network.load_state_dict(pretrained.weights)
        if self.average is not None:
            self.average.module.load_state_dict(pretrained.weights)
        self.pretrained = pretrained
        for note in pretrained.notes:
            self.training_log.log(f"note: {note}")

    def resume(self, saved: tuple[Plan, dict[str, Any]] | None = None) -> None:
        """Continue from ``checkpoint_latest.pth``, or from ``saved``, the result of `checkpoint.load`.

        Raises:
            UserError: there is none, or it was trained with another plan.
        """
        path = self.folder / checkpoint.LATEST
        plan, content = saved or checkpoint.load(path, self.device)
        if not same_plan(plan, self.plan):
            raise UserError(f"{path}: was trained with another plan; use another -p, or --overwrite")
        state = content["training"]
        check_inputs(state.get("inputs"), self.inputs, path)
        total = self.plan.recipe.optimizer.iterations
        try:
            history = checked_history(state["history"], int(state["iteration"]), total)
            self.network.load_state_dict(state["network"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            load_adam(self.optimizer, state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            if self.precision.scaler.is_enabled():
                self.precision.scaler.load_state_dict(state["scaler"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as problem:
            reason = (str(problem).splitlines() or [type(problem).__name__])[0]
            raise UserError(
                f"{path}: its training state is damaged or of another network ({reason}); train again (--overwrite)"
            ) from None
        self.iteration = int(state["iteration"])
        self.training_log.history = history


def check_inputs(saved: Mapping[str, str] | None, present: Mapping[str, str], path: Path) -> None:
    """Refuse to go on with other scans or label maps than a training began with.

    Raises:
        UserError: names the cases whose hashes differ; ``path`` is the checkpoint.
    """
    changed = [name for name, found in (saved or {}).items() if present.get(name, found) != found]
    if changed:
        raise UserError(
            f"{path}: scan or label map of {', '.join(changed)} changed since this training began; train again "
            "(--overwrite), or restore the files and preprocess them again"
        )
