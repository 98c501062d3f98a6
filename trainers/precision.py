"""Mixed precision: the network in bf16 or fp16 under autocast, weights and loss in float32.

On a CPU the gradients of the low-precision kernels are compared with float32 before training: torch 2.13 returns wrong
weight gradients for a bf16 3x3x3 convolution over a small grid, and training then diverges to NaN without a warning.
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from mre_lowshot.config import Plan
from mre_lowshot.errors import NumericalError, UserError

LOW = {"bf16": torch.bfloat16, "fp16": torch.float16}
TOLERANCE = 0.1  # relative error of a gradient; bf16 rounding causes about 0.005, a wrong kernel 1 or more
FIRST_SCALE = 2.0**12  # initial scale of the fp16 loss, which is about 10
GROWTH_INTERVAL = 200  # steps without overflow after which the scale is doubled
LEAST_SCALE = 2.0**-10  # below this scale an overflow is not caused by the scale


def chosen(name: str, device: torch.device) -> str:
    """``float32``, ``bf16`` or ``fp16``; ``auto`` selects bf16 on CUDA devices that support it, else float32."""
    if name != "auto":
        return name
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "float32"


class Precision:
    """Mixed precision of a training step: `autocast` for the forward pass, then `backward`, `unscale` and `step`.

    Raises:
        UserError: the device does not support the precision, or its gradients are wrong (checked on a CPU).
    """

    def __init__(self, plan: Plan, network: nn.Module, device: torch.device) -> None:
        self.name, self.device = chosen(plan.recipe.optimizer.precision, device), device
        low = LOW.get(self.name)
        if low is not None and device.type not in ("cpu", "cuda"):
            raise UserError(
                f"recipe.optimizer.precision {self.name}: only for cuda and cpu devices; set it to float32 or auto"
            )
        if low is not None and device.type == "cpu":
            check_gradients(network, plan, low)
        self.scaler = torch.amp.GradScaler(
            device.type, FIRST_SCALE, growth_interval=GROWTH_INTERVAL, enabled=self.name == "fp16"
        )

    def autocast(self) -> AbstractContextManager[None]:
        """The context manager for the forward pass of the network."""
        return _autocast(self.device, LOW.get(self.name))

    def backward(self, loss: Tensor) -> None:
        """Backpropagate; the fp16 loss is scaled so that small gradients do not underflow."""
        self.scaler.scale(loss).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Undo the scaling of the accumulated gradients."""
        self.scaler.unscale_(optimizer)

    def may_skip(self) -> bool:
        """Whether a non-finite gradient may be an fp16 overflow, for which `step` skips the step and halves the scale.

        Raises:
            NumericalError: gradients overflow at the smallest scale.
        """
        if not self.scaler.is_enabled():
            return False
        if self.scaler.get_scale() < LEAST_SCALE:
            raise NumericalError(
                f"fp16 overflows even with a loss scale of {LEAST_SCALE:g}; set recipe.optimizer.precision to float32"
            )
        return True

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """The step of the optimizer; fp16 skips it after an overflow."""
        self.scaler.step(optimizer)
        self.scaler.update()


def _autocast(device: torch.device, low: torch.dtype | None) -> AbstractContextManager[None]:
    return nullcontext() if low is None else torch.autocast(device.type, low)


def check_gradients(network: nn.Module, plan: Plan, low: torch.dtype) -> None:
    """Compare the gradients of the layers in precision ``low`` with those in float32.

    Raises:
        UserError: a relative error exceeds `TOLERANCE`, or torch raises an error.
    """
    name = next(n for n, dtype in LOW.items() if dtype == low)
    try:
        gap, where = gradient_gap(network, plan, low)
    except RuntimeError as problem:
        gap, where = float("inf"), f"({str(problem).splitlines()[0]})"
    if not gap <= TOLERANCE:
        raise UserError(
            f"recipe.optimizer.precision {name}: on this CPU torch {torch.__version__} gives wrong gradients for this "
            f"network (layer {where}: relative error {gap:.2g}); set it to float32 or auto"
        )


def gradient_gap(network: nn.Module, plan: Plan, low: torch.dtype | None) -> tuple[float, str]:
    """The largest relative error of a gradient in precision ``low``, and the name of its layer.

    Each layer is checked separately, because normal rounding errors accumulate over the network to the size of a wrong
    gradient. Its input is random, with the shape that it has for a mini-batch of two patches, because the errors of
    torch depend on the shape.
    """
    gaps = {}
    for name, layer, size in _layers_met(network, plan):
        exact, rounded = (_gradients(layer, size, dtype) for dtype in (None, low))
        errors = [float((r - e).norm() / e.norm().clamp_min(1e-12)) for e, r in zip(exact, rounded, strict=True)]
        gaps[name] = max(e if e == e else float("inf") for e in errors)
    worst = max(gaps, key=lambda n: gaps[n])
    return gaps[worst], worst


def _layers_met(network: nn.Module, plan: Plan) -> list[tuple[str, nn.Module, torch.Size]]:
    """Name, module and input shape of every layer with parameters that the forward pass uses."""
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
    """Gradients of the input and the parameters of ``layer``, for seeded random input and output gradients."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(size, generator=random).requires_grad_()
    with _autocast(torch.device("cpu"), low):
        y = layer(x)
    y.float().backward(torch.randn(y.shape, generator=random))
    wanted = [x, *layer.parameters()]
    found = [t.grad.float().clone() for t in wanted if t.grad is not None]
    layer.zero_grad(set_to_none=True)
    return found
