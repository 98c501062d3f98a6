"""Mixed precision: the network in bf16 or fp16 under autocast, weights and loss in float32.

The gradients of the low-precision kernels, layer by layer, and of the fused head are compared with float32 before
training, on the device that trains: on a CPU torch 2.13 returns wrong weight gradients for a bf16 3x3x3 convolution
over a small grid, and training then diverges to NaN without a warning.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mre_lowshot.config import Plan
from mre_lowshot.errors import NumericalError, UserError
from mre_lowshot.network.build import MRENet
from mre_lowshot.network.optimized.fused_head import fused_logits

LOW = {"bf16": torch.bfloat16, "fp16": torch.float16}
CPU = torch.device("cpu")
TOLERANCE = 0.1  # relative error of a gradient; bf16 rounding causes about 0.005, a wrong kernel 1 or more
FIRST_SCALE = 2.0**12  # initial scale of the fp16 loss, which is about 10
GROWTH_INTERVAL = 200  # steps without overflow after which the scale is doubled
LEAST_SCALE = 2.0**-10  # below this scale an overflow is not caused by the scale


def chosen(name: str, device: torch.device) -> str:
    """``float32``, ``tf32``, ``bf16`` or ``fp16``; ``auto``: bf16 on CUDA devices that support it, else float32."""
    if name != "auto":
        return name
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "float32"


class Precision:
    """Mixed precision of a training step: `autocast` for the forward pass, then `backward`, `unscale` and `step`.

    ``note`` says why ``auto`` is not bf16 on a device that supports it; else it is empty.

    Raises:
        UserError: the device does not support the precision, or its gradients are wrong.
    """

    def __init__(self, plan: Plan, network: nn.Module, device: torch.device) -> None:
        asked, self.note = plan.recipe.optimizer.precision, ""
        self.name, self.device = chosen(asked, device), device
        low = LOW.get(self.name)
        if low is not None and device.type not in ("cpu", "cuda"):
            raise UserError(
                f"recipe.optimizer.precision {self.name}: only for cuda and cpu devices; set it to float32 or auto"
            )
        if self.tf32 and device.type != "cuda":
            raise UserError("recipe.optimizer.precision tf32: only for cuda devices; set it to float32 or auto")
        if low is not None:
            try:
                check_gradients(network, plan, low, device)
            except UserError as problem:
                if asked != "auto":
                    raise
                self.name, self.note = "float32", f"trained in float32: {problem}"
        self.scaler = torch.amp.GradScaler(
            device.type, FIRST_SCALE, growth_interval=GROWTH_INTERVAL, enabled=self.name == "fp16"
        )

    @property
    def tf32(self) -> bool:
        """Whether products of float32 may be rounded to TF32."""
        return self.name == "tf32"

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


def check_gradients(network: nn.Module, plan: Plan, low: torch.dtype, device: torch.device) -> None:
    """Compare the gradients of the layers and of the fused head in precision ``low`` with those in float32, on
    ``device``.

    Raises:
        UserError: a relative error exceeds `TOLERANCE`, or torch raises an error.
    """
    name = next(n for n, dtype in LOW.items() if dtype == low)
    try:
        gap, where = gradient_gap(network, plan, low, device)
    except RuntimeError as problem:
        gap, where = float("inf"), f"({str(problem).splitlines()[0]})"
    if not gap <= TOLERANCE:
        where_run = "GPU" if device.type == "cuda" else "CPU"
        raise UserError(
            f"recipe.optimizer.precision {name}: on this {where_run} torch {torch.__version__} gives wrong gradients "
            f"for this network (layer {where}: relative error {gap:.2g}); set it to float32 or auto"
        )


def gradient_gap(
    network: nn.Module, plan: Plan, low: torch.dtype | None, device: torch.device = CPU
) -> tuple[float, str]:
    """The largest relative error of a gradient in precision ``low``, and the name of its layer.

    Each layer is checked separately, because normal rounding errors accumulate over the network to the size of a wrong
    gradient; the fused head, which uses the parameters of several layers in one operation, as a whole. The input is
    random, with the shape that it has for a mini-batch of two patches, because the errors of torch depend on the shape.
    """
    gaps = {}
    for name, size in _layers_met(network, plan):
        layer = copy.deepcopy(network.get_submodule(name)).train().to(device)
        gaps[name] = _gap(layer, [size], low, device)
    if isinstance(network, MRENet) and network.fused:
        gaps["head"] = _gap(_FusedHead(network).to(device), _FusedHead.sizes(network, plan), low, device)
    worst = max(gaps, key=lambda n: gaps[n])
    return gaps[worst], worst


class _FusedHead(nn.Module):
    """Fusion and head of a network as `MRENet` computes them where it is fused: features (B, V, *size) and (B, P)."""

    def __init__(self, network: MRENet) -> None:
        super().__init__()
        self.fusion, self.head = (copy.deepcopy(part) for part in (network.embedding.fusion, network.head))

    def forward(self, features: Tensor, pooled: Tensor | None = None) -> Tensor:
        head: Any = self.head
        return fused_logits(features, pooled, self.fusion, head)

    @staticmethod
    def sizes(network: MRENet, plan: Plan) -> list[torch.Size]:
        """Of the input for two patches."""
        part = network.embedding
        features = torch.Size((2, part.varying_features, *plan.patch.size))
        return [features, torch.Size((2, part.constant_features))] if part.constant_features else [features]


def _layers_met(network: nn.Module, plan: Plan) -> list[tuple[str, torch.Size]]:
    """Name and input shape of every layer with parameters that the forward pass calls."""
    met: list[tuple[str, torch.Size]] = []
    trial = copy.deepcopy(network).train().to("meta")
    for name, layer in trial.named_modules():
        if not list(layer.children()) and list(layer.parameters()):
            layer.register_forward_hook(lambda m, x, _, name=name: met.append((name, x[0].shape)))
    spec, size = plan.network, plan.patch.size
    with torch.no_grad():
        image, maps = (torch.zeros((2, n, *size), device="meta") for n in (spec.in_channels, spec.location_channels))
        trial(image, maps)
    return met


def _gap(layer: nn.Module, sizes: Sequence[torch.Size], low: torch.dtype | None, device: torch.device) -> float:
    """The largest relative error of a gradient of a layer for input of these sizes."""
    exact, rounded = (_gradients(layer, sizes, dtype, device) for dtype in (None, low))
    errors = [float((r - e).norm() / e.norm().clamp_min(1e-12)) for e, r in zip(exact, rounded, strict=True)]
    return max(e if e == e else float("inf") for e in errors)


def _gradients(
    layer: nn.Module, sizes: Sequence[torch.Size], low: torch.dtype | None, device: torch.device
) -> list[Tensor]:
    """Gradients of the input and the parameters of ``layer``, for seeded random input and output gradients."""
    random = torch.Generator().manual_seed(0)
    inputs = [torch.randn(size, generator=random).to(device).requires_grad_() for size in sizes]
    with _autocast(device, low):
        y = layer(*inputs)
    y.float().backward(torch.randn(y.shape, generator=random).to(device))
    wanted = [*inputs, *layer.parameters()]
    found = [t.grad.float().clone() for t in wanted if t.grad is not None]
    layer.zero_grad(set_to_none=True)
    return found
