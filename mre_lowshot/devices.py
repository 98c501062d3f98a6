"""Selection of the torch device, its memory, and deterministic computation."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import TypeVar

import psutil
import torch
from torch import Tensor
from torch.nn import functional as F

from mre_lowshot.errors import UserError, is_out_of_memory
from mre_lowshot.plain import shown

T = TypeVar("T")
_NAME = re.compile(r"auto|cpu|mps|cuda(:[0-9]{1,3})?")
MOST_LOADERS = 4  # data-loading processes by default
MPS_TOLERANCE = 1e-3  # relative error against the CPU; float32 rounding causes about 1e-6, a wrong kernel 0.1 or more


def resolve(name: str) -> torch.device:
    """The torch device ``name``; ``auto`` is CUDA if available, else MPS if it computes correctly, else the CPU.

    Raises:
        UserError: the name is none of auto, cpu, cuda, cuda:N, mps, or the device is not available, or it is MPS and
            does not compute what the CPU computes.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        given = shown(name)[1:-1] if isinstance(name, str) else shown(name)
        raise UserError(f"-device {given}: not a device of mre_lowshot; use cuda, cuda:1, mps, cpu or auto")
    if name == "auto":
        if torch.cuda.is_available():
            allow_tf32(False)
            return torch.device("cuda")
        return torch.device("cpu" if mps_problem() else "mps")
    try:
        if name == "mps" and (problem := mps_problem()):
            raise UserError(f"-device mps: {problem}; use cpu or auto")
        device = torch.device(name)
        torch.zeros(1, device=device)
        allow_tf32(False)
    except (RuntimeError, AssertionError, NotImplementedError) as problem:
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise UserError(f"-device {name}: not available ({reason}); use cpu or auto") from None
    return device


@cache
def mps_problem() -> str:
    """Why this machine's MPS device (Apple's GPU) is not used; empty where it computes what the CPU computes."""
    if not torch.backends.mps.is_built():
        return "not available (this torch is built without it)"
    if not torch.backends.mps.is_available():
        return "not available (it needs a Mac with Apple silicon and a recent macOS)"
    return difference_from_cpu(lambda tensor: tensor.to("mps"))


def difference_from_cpu(move: Callable[[Tensor], Tensor]) -> str:
    """Compare the operations of training and prediction, and their gradients, with the CPU; why they are not the same,
    or empty. ``move`` puts a tensor on the device."""
    for name, operation, shapes in _operations():
        random = torch.Generator().manual_seed(0)
        values = [torch.randn(shape, generator=random) for shape in shapes]
        try:
            expected, found = _with_gradients(operation, values), _with_gradients(operation, [*map(move, values)])
        except (RuntimeError, NotImplementedError, TypeError) as problem:
            reason = (str(problem).splitlines() or [type(problem).__name__])[0][:200]
            return f"it lacks {name} ({reason})"
        for one, other in zip(expected, found, strict=True):
            gap = float((other.cpu() - one).norm() / one.norm().clamp_min(1e-12))
            if not gap <= MPS_TOLERANCE:
                return f"its {name} is wrong (relative error {gap:.2g} against the CPU)"
    return ""


def _with_gradients(operation: Callable[..., Tensor], values: list[Tensor]) -> list[Tensor]:
    """The output of an operation, and the gradients of its inputs for the sum of the output's squares."""
    inputs = [value.detach().requires_grad_() for value in values]
    output = operation(*inputs)
    return [output.detach(), *torch.autograd.grad((output * output).sum(), inputs)]


def _operations() -> list[tuple[str, Callable[..., Tensor], list[tuple[int, ...]]]]:
    """Name, function and shapes of the inputs of each operation."""
    image, kernel = (2, 4, 6, 8, 8), (4, 4, 3, 3, 3)

    def loss(x: Tensor) -> Tensor:
        target = torch.arange(x.shape[2], device=x.device)[None].repeat(x.shape[0], 1) % x.shape[1]
        return F.cross_entropy(x, target, reduction="none")

    def counted(x: Tensor) -> Tensor:
        classes = x.detach().argmax(dim=1).flatten()
        return x * torch.bincount(classes, minlength=x.shape[1]).to(x.dtype).reshape(1, -1, 1, 1, 1)

    return [
        ("3D convolution", lambda x, w: F.conv3d(x, w, padding=1), [image, kernel]),
        ("dilated 3D convolution", lambda x, w: F.conv3d(x, w, padding=2, dilation=2), [image, kernel]),
        ("2D convolution", lambda x, w: F.conv2d(x, w, padding=1), [(2, 4, 8, 8), (4, 4, 3, 3)]),
        ("3D average pooling", lambda x: F.avg_pool3d(x, (1, 2, 2)), [image]),
        ("batch norm", lambda x: F.batch_norm(x, None, None, training=True), [image]),
        ("instance norm", lambda x: F.instance_norm(x), [image]),
        (
            "trilinear interpolation",
            lambda x: F.interpolate(x, size=(9, 12, 11), mode="trilinear", align_corners=False),
            [image],
        ),
        ("matrix product of normalised vectors", lambda a, b: F.normalize(a) @ F.normalize(b).T, [(30, 8), (6, 8)]),
        ("softmax", lambda x: x.softmax(dim=1), [image]),
        ("cross-entropy", loss, [(2, 4, 50)]),
        ("selection of the largest values", lambda x: x[torch.topk(x.detach(), 20, sorted=False).indices], [(100,)]),
        ("counting of labels", counted, [image]),
    ]


def make_deterministic() -> None:
    """Make computations reproducible: equal input gives equal results on the same device.

    Call it before the device is used. On CUDA torch selects slower deterministic kernels, and raises an error for
    operations without one.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS at initialisation
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def allow_tf32(allowed: bool) -> None:
    """Whether NVIDIA GPUs may round the factors of float32 products to TF32 (10 bits instead of 23), in matrix products
    and in convolutions. torch's own default allows it in convolutions only; here float32 is float32 in both, and a
    training may ask for TF32 (``recipe.optimizer.precision=tf32``)."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


@contextmanager
def fixed_shapes(tf32: bool = False) -> Iterator[None]:
    """Within the block the shapes of a training step repeat: cuDNN times its algorithms for each shape and takes the
    fastest, unless computations must be deterministic. ``tf32`` as in `allow_tf32`."""
    before = torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
    allow_tf32(tf32)
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before[0]
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before[1:]


def loader_processes(device: torch.device, processes: int = 1) -> int:
    """Data-loading processes of a training by default: on CUDA up to `MOST_LOADERS`, and one core is left for each of
    the ``processes`` that train on this machine; elsewhere none, because they would take cores from the training."""
    if device.type != "cuda":
        return 0
    return max(0, min(MOST_LOADERS, usable_cores() // processes - 1))


def usable_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def autocast_type(device: torch.device) -> torch.dtype | None:
    """The type of products under autocast; None where autocast is off (on ``meta`` always)."""
    on = device.type != "meta" and torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if on else None


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """A block in which autocast is off."""
    return torch.autocast(device.type, enabled=False) if autocast_type(device) else nullcontext()


CHUNK, GPU_CHUNK = 2**18, 2**26  # numbers worked on at a time: by a thread, in its cache; on a GPU


def volume_device(device: torch.device) -> torch.device:
    """Where whole volumes are computed for a network on ``device``: there, except that MPS has neither float64 nor
    interpolation of volumes, so that the CPU is used instead."""
    return torch.device("cpu") if device.type == "mps" else device


def slabs(depth: int, plane: int, device: torch.device) -> list[slice]:
    """Parts of an axis of ``depth`` planes, each of ``plane`` numbers, that are worked on one after the other: small
    enough for the processor's cache, or for a GPU's memory."""
    numbers = GPU_CHUNK if device.type == "cuda" else CHUNK * torch.get_num_threads()
    step = max(1, numbers // max(plane, 1))
    return [slice(first, min(first + step, depth)) for first in range(0, depth, step)]


def has_memory(device: torch.device, needed: float) -> bool:
    """Whether ``needed`` bytes more fit on the device, as far as it tells: of the CPU they are checked before a scan is
    begun (`limits.require_memory`)."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return needed <= free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def where_it_fits(work: Callable[[Tensor], T], values: Tensor, log: Callable[[str], None]) -> T:
    """``work`` of ``values`` on their device; of their copy on the CPU, with a message, if the device's memory is too
    small for it."""
    try:
        return work(values)
    except RuntimeError as problem:
        if values.device.type == "cpu" or not is_out_of_memory(problem):
            raise
    free_memory()  # the tensors in the traceback are gone by now
    log(f"{values.device}: out of memory; this step of the scan is computed on the CPU")
    return work(values.cpu())


def memory_gb(device: torch.device) -> float:
    """Total memory of the device in GB (10^9 bytes); for the CPU and MPS, memory of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 1e9
    return float(psutil.virtual_memory().total) / 1e9


def used_memory(device: torch.device) -> float:
    """Bytes in use: at most so far on CUDA, at present on MPS, and by this process for the CPU."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    if device.type == "mps":
        return float(torch.mps.driver_allocated_memory())
    return float(_process().memory_info().rss)


@cache
def _process_of(pid: int) -> psutil.Process:
    return psutil.Process(pid)


def _process() -> psutil.Process:
    return _process_of(os.getpid())  # a forked process is another one


def name_of(device: torch.device) -> str | None:
    """The model of a GPU; None for other devices."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def free_memory() -> None:
    """Give back what is no longer used, after an out-of-memory error: Python's cycles and the GPU's cached blocks."""
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
