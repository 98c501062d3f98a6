"""Training one fold: the MRE network and the OHEM loss in a short loop that can be interrupted and goes on."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Subset

from mre_lowshot import checkpoint
from mre_lowshot.alignment import Atlases, make_prior
from mre_lowshot.codec import to_json
from mre_lowshot.errors import NumericalError, UserError
from mre_lowshot.files import write_json
from mre_lowshot.inference.pooling import to_weigh
from mre_lowshot.losses import IGNORE, MRELoss
from mre_lowshot.network.build import build
from mre_lowshot.plans import same_plan
from mre_lowshot.sampling import BatchSampler, TrainingCase
from mre_lowshot.specs import FoldDecisions, Plan, Recipe
from mre_lowshot.trainers.distributed import ALONE, Processes
from mre_lowshot.trainers.logbook import Logbook
from mre_lowshot.trainers.memory import Memory, together
from mre_lowshot.trainers.precision import Precision
from mre_lowshot.trainers.weighing import found_weights

SAVE_SECONDS = 60.0  # a latest checkpoint at least this often


def schedule(optimizer: torch.optim.Optimizer, recipe: Recipe) -> torch.optim.lr_scheduler.LRScheduler:
    """The recipe's learning-rate schedule, stepped once an iteration."""
    if recipe.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.iterations)
    return torch.optim.lr_scheduler.StepLR(optimizer, recipe.step_every, recipe.step_factor)


@contextmanager
def held_interrupt(always: bool = False) -> Iterator[Callable[[], bool]]:
    """Notes a Ctrl-C instead of raising it, once (``always``: each time, as torchrun repeats it); gives a function
    that tells whether there was one. Outside the main thread, where signals do not arrive, nothing is changed."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before, seen = signal.getsignal(signal.SIGINT), []

    def note(*_: object) -> None:
        seen.append(True)
        if not always:
            signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, before)


@torch.no_grad()
def batch_dice(logits: Tensor, target: Tensor) -> float:
    """Mean Dice of the arg-max labels over the foreground classes in the batch; NaN when there is none."""
    valid = target != IGNORE
    predicted, wanted = logits.argmax(dim=1)[valid], target[valid]
    classes = logits.shape[1]
    right = torch.bincount(wanted[predicted == wanted], minlength=classes)[1:]
    total = (torch.bincount(predicted, minlength=classes) + torch.bincount(wanted, minlength=classes))[1:]
    present = torch.bincount(wanted, minlength=classes)[1:] > 0
    if not bool(present.any()):
        return float("nan")
    return float((2 * right[present] / total[present]).mean())


class MRETrainer:
    """Trains the network of a fold's plan on its training cases; writes checkpoints, log and curves to ``folder``.

    ``dataset`` is the content of dataset.json, kept in the checkpoints. With several ``processes`` each trains on its
    share of every mini-batch, and the first one writes.

    Raises:
        UserError: the plan's precision or batch does not go with the device or the number of processes.
    """

    def __init__(
        self,
        plan: Plan,
        cases: Sequence[TrainingCase],
        folder: Path,
        device: torch.device,
        atlases: Atlases = (),
        dataset: dict[str, Any] | None = None,
        processes: Processes = ALONE,
    ) -> None:
        if plan.fold is None:
            raise ValueError("a fold's plan is needed: planners.fold.decide fills it")
        self.plan, self.folder, self.device, self.seed = plan, folder, device, plan.fold.seed
        recipe = plan.recipe
        torch.manual_seed(self.seed)
        self.processes, self.dataset = processes, dataset
        network = build(plan.network)
        network.recompute(recipe.recompute)
        self.precision = Precision(plan, network, device)
        self.network = processes.prepared(network.to(device), plan, device)
        self.average = None
        if recipe.ema:
            rule = get_ema_multi_avg_fn(recipe.ema)
            self.average = AveragedModel(self.network, multi_avg_fn=rule, use_buffers=True)
        self.loss = MRELoss(
            plan.network.classes,
            plan.fold.majority,
            recipe.ohem,
            recipe.n_lg,
            recipe.ohem_floor,
            recipe.dice_weight,
            recipe.class_balance,
        )
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.schedule = schedule(self.optimizer, recipe)
        self.atlases = atlases
        prior = make_prior(atlases, plan)
        self.sampler = BatchSampler(cases, plan.patch.size, recipe, plan.network.classes, self.seed, prior)
        self.iteration = 0
        self.logbook = Logbook(folder, writes=processes.first)
        smallest = 2 if plan.network.image_level_norm else 1  # a norm over single vectors is none
        self.memory = Memory(self.network, recipe.batch_size, smallest, self.logbook.say)
        if processes.count > 1:
            self.logbook.say(processes.summary(plan))

    @property
    def best_network(self) -> nn.Module:
        """The network to predict with: the moving average where the recipe keeps one."""
        return self.average.module if self.average is not None else self.network

    def fit(self, workers: int = 0, on_step: Callable[[MRETrainer], None] | None = None) -> None:
        """Train from the present iteration to the recipe's last; ``on_step`` is called after each.

        Ctrl-C lets the present iteration finish (half an iteration would count in the running statistics), saves
        ``checkpoint_latest.pth`` and is raised on; a second one stops at once. At the end the weight of registration is
        found (`trainers.weighing`) and the last state saved as latest and final.

        Raises:
            NumericalError: the loss or a gradient is not finite; the last good checkpoint is kept.
        """
        rest = Subset(self.sampler, range(self.iteration, self.plan.recipe.iterations))
        loader = DataLoader(rest, batch_size=None, num_workers=workers, persistent_workers=False)
        saved = time.monotonic()
        self.network.train()
        with held_interrupt(always=self.processes.count > 1) as interrupted:
            for images, coordinates, targets in loader:
                self.step(images, coordinates, targets)
                if on_step:
                    on_step(self)
                if self.processes.any(interrupted(), self.device):
                    self.save(checkpoint.LATEST)
                    self.processes.any(True, self.device)  # nobody leaves before the first one has saved
                    self.logbook.say(f"interrupted after iteration {self.iteration}; --c goes on")
                    raise KeyboardInterrupt
                if time.monotonic() - saved > SAVE_SECONDS:
                    self.save(checkpoint.LATEST)
                    self.logbook.draw()
                    saved = time.monotonic()
        self.save(checkpoint.LATEST)
        self.logbook.draw()
        fold = self.plan.fold
        if fold and self.processes.first and to_weigh(self.plan):
            self._weigh(fold)
            self.save(checkpoint.LATEST)
        self.save(checkpoint.FINAL)

    def _weigh(self, fold: FoldDecisions) -> None:
        """Add to the fold's decisions what was found on mirror images, or why it was not found."""
        weight = agreement = None
        try:
            weight, agreement, reason = found_weights(self.plan, self.best_network, self.atlases, self.device)
        except UserError as problem:
            told = self.plan.recipe.inference.prior_weight
            reason = f"registration weighs the recipe's {told:g} against the network: on a mirror image: {problem}"
        self.logbook.say(reason)
        reasons = {**fold.reasons, "prior_weight": reason}
        fold = replace(fold, prior_weight=weight, neighbour_weight=agreement, reasons=reasons)
        self.plan = replace(self.plan, fold=fold)
        write_json(self.folder / "plans.json", to_json(self.plan))

    def step(self, images: Tensor, coordinates: Tensor, targets: Tensor) -> None:
        """One iteration on one mini-batch (Algorithm 1 of the paper)."""
        share, targets = self.processes.share, targets.to(self.device)
        images, coordinates = share(images).to(self.device), share(coordinates).to(self.device)
        self.optimizer.zero_grad(set_to_none=True)
        step = partial(self._gradients, images, coordinates, targets)
        logits, loss = self.memory.fit(step) if self.processes.count == 1 else together(step)
        self.processes.sum_gradients(self.network)
        self.precision.unscale(self.optimizer)
        norm = torch.nn.utils.get_total_norm(p.grad for p in self.network.parameters() if p.grad is not None)
        value = loss.item()
        if not math.isfinite(value) or not (math.isfinite(norm.item()) or self.precision.may_skip()):
            raise NumericalError(
                f"iteration {self.iteration + 1}: loss {value:g}, gradient norm {norm.item():g} is not finite; "
                f"training stopped, the last good checkpoint in {self.folder} is kept; lower recipe.learning_rate"
            )
        rate = self.optimizer.param_groups[0]["lr"]
        self.precision.step(self.optimizer)
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        self.iteration += 1
        self.logbook.add(self.iteration, value, batch_dice(logits.detach(), targets), rate)

    def _gradients(self, images: Tensor, coordinates: Tensor, targets: Tensor, parts: int) -> tuple[Tensor, Tensor]:
        """Add the gradients of a mini-batch, computed in ``parts`` (see `trainers.memory`); its logits and loss."""
        done = []
        for image, place, target in zip(*(t.chunk(parts) for t in (images, coordinates, targets)), strict=True):
            with self.precision.autocast():
                logits = self.network(image, place)
            logits = self.processes.joined(logits)
            loss = self.loss(logits, target) / parts
            self.precision.backward(loss)
            done.append((logits.detach(), loss.detach()))
        return torch.cat([logits for logits, _ in done]), torch.stack([loss for _, loss in done]).sum()

    def save(self, name: str) -> None:
        """Write a checkpoint of the present state (the first process does)."""
        if not self.processes.first:
            return
        training: dict[str, Any] = {
            "iteration": self.iteration,
            "network": self.network.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "history": self.logbook.history,
        }
        weights = self.best_network.state_dict()
        checkpoint.save(self.folder / name, self.plan, weights, training, self.atlases, self.dataset)

    def resume(self, saved: tuple[Plan, dict[str, Any]] | None = None) -> None:
        """Go on from ``checkpoint_latest.pth``, read already (``saved``, what `checkpoint.load` gave) or not yet.

        Raises:
            UserError: there is none, or it was trained by another plan.
        """
        path = self.folder / checkpoint.LATEST
        plan, content = saved or checkpoint.load(path, self.device)
        if not same_plan(plan, self.plan):
            raise UserError(f"{path}: was trained by another plan than the present one; use another -p, or --overwrite")
        state = content["training"]
        self.network.load_state_dict(state["network"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.precision.scaler.is_enabled():
            self.precision.scaler.load_state_dict(state["scaler"])
        self.iteration = state["iteration"]
        self.logbook.history = {key: list(values) for key, values in state["history"].items()}
