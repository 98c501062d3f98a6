"""Mixed precision: the network in bf16 or fp16 under autocast, weights and loss in float32.

A CPU's low-precision kernels are not trusted before their gradients have been compared with float32's: torch 2.13's
weight gradient of a bf16 3x3x3 convolution over a tiny grid is garbage, and training looks fine until all is NaN.
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from mre_lowshot.errors import NumericalError, UserError
from mre_lowshot.specs import Plan

LOW = {"bf16": torch.bfloat16, "fp16": torch.float16}
TOLERANCE = 0.1  # of a gradient's length; a layer rounded to bf16 is off by about 0.005, garbage by 1 and more
FIRST_SCALE = 2.0**12  # of fp16's loss, a sum of means of about ten; doubled after so many steps without overflow
GROWTH_INTERVAL = 200
LEAST_SCALE = 2.0**-10  # fp16's loss scale has been halved in vain this often: it is not the scale


def chosen(name: str, device: torch.device) -> str:
    """``float32``, ``bf16`` or ``fp16``; ``auto`` is bf16 on CUDA devices that compute it, else float32."""
    if name != "auto":
        return name
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "float32"


class Precision:
    """How a training step is computed: `autocast` around the forward pass, then `backward`, `unscale`, `step`.

    Raises:
        UserError: the precision is not usable on the device, or (CPU) gives other gradients than float32.
    """

    def __init__(self, plan: Plan, network: nn.Module, device: torch.device) -> None:
        self.name, self.device = chosen(plan.recipe.precision, device), device
        low = LOW.get(self.name)
        if low is not None and device.type not in ("cpu", "cuda"):
            raise UserError(f"recipe.precision {self.name}: for cuda and cpu devices only; set float32 or auto")
        if low is not None and device.type == "cpu":
            check_gradients(network, plan, low)
        self.scaler = torch.amp.GradScaler(
            device.type, FIRST_SCALE, growth_interval=GROWTH_INTERVAL, enabled=self.name == "fp16"
        )

    def autocast(self) -> AbstractContextManager:
        """The context of the network's forward pass."""
        return _autocast(self.device, LOW.get(self.name))

    def backward(self, loss: Tensor) -> None:
        """Back-propagate; fp16's loss is scaled up, so that small gradients survive."""
        self.scaler.scale(loss).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Undo the scaling, once the gradients are whole."""
        self.scaler.unscale_(optimizer)

    def may_skip(self) -> bool:
        """Whether a gradient that is not finite is only fp16's overflow: the step is left out and the scale halved.

        Raises:
            NumericalError: halving has not helped.
        """
        if not self.scaler.is_enabled():
            return False
        if self.scaler.get_scale() < LEAST_SCALE:
            raise NumericalError("fp16 overflows however small the loss is scaled; set recipe.precision to float32")
        return True

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer's step (fp16: unless a gradient overflowed)."""
        self.scaler.step(optimizer)
        self.scaler.update()


def _autocast(device: torch.device, low: torch.dtype | None) -> AbstractContextManager:
    return nullcontext() if low is None else torch.autocast(device.type, low)


def check_gradients(network: nn.Module, plan: Plan, low: torch.dtype) -> None:
    """Compare the gradients of the network's layers in ``low`` with float32's.

    Raises:
        UserError: one differs by more than `TOLERANCE` of its length, or torch refuses the computation.
    """
    name = next(n for n, dtype in LOW.items() if dtype == low)
    try:
        gap, where = gradient_gap(network, plan, low)
    except RuntimeError as problem:
        gap, where = float("inf"), f"({str(problem).splitlines()[0]})"
    if not gap <= TOLERANCE:
        raise UserError(
            f"recipe.precision {name}: on this CPU torch {torch.__version__} gives wrong gradients for this network "
            f"(layer {where}: off by {gap:.2g} of their length); set it to float32 or auto"
        )


def gradient_gap(network: nn.Module, plan: Plan, low: torch.dtype | None) -> tuple[float, str]:
    """The largest relative error of a gradient in ``low``, and its layer: each layer alone, on random values of the
    size that it meets in a mini-batch of two patches (what goes wrong depends on the size). Through the whole network
    at once, honest rounding would add up to as much as an error."""
    gaps = {}
    for name, layer, size in _layers_met(network, plan):
        exact, rounded = (_gradients(layer, size, dtype) for dtype in (None, low))
        errors = [float((r - e).norm() / e.norm().clamp_min(1e-12)) for e, r in zip(exact, rounded, strict=True)]
        gaps[name] = max(e if e == e else float("inf") for e in errors)
    worst = max(gaps, key=lambda n: gaps[n])
    return gaps[worst], worst


def _layers_met(network: nn.Module, plan: Plan) -> list[tuple[str, nn.Module, torch.Size]]:
    """Every layer with parameters that a patch goes through, and the size of its input."""
    met: list[tuple[str, nn.Module, torch.Size]] = []
    trial = copy.deepcopy(network).train()
    for name, layer in trial.named_modules():
        if not list(layer.children()) and list(layer.parameters()):
            layer.register_forward_hook(lambda m, x, _, name=name: met.append((name, m, x[0].shape)))
    spec, size = plan.network, plan.patch.size
    with torch.no_grad():
        trial(torch.zeros((2, spec.in_channels, *size)), torch.zeros((2, spec.location_channels, *size)))
    return [(name, copy.deepcopy(network.get_submodule(name)).train(), size) for name, _, size in met]


def _gradients(layer: nn.Module, size: torch.Size, low: torch.dtype | None) -> list[Tensor]:
    """Of the layer's input and parameters, for a fixed random input and a fixed random gradient of its output."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(size, generator=random).requires_grad_()
    with _autocast(torch.device("cpu"), low):
        y = layer(x)
    y.float().backward(torch.randn(y.shape, generator=random))
    wanted = [x, *layer.parameters()]
    found = [t.grad.float().clone() for t in wanted if t.grad is not None]
    layer.zero_grad(set_to_none=True)
    return found
