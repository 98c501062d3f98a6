"""Inference networks through torch.compile, on request. Results stay the same, and a failure never aborts a prediction.

Compiled code serves one shape only (number of tiles, and kept part), and compiling takes tens of seconds or more. So a
shape is compiled once it has occurred often enough to occur again, and only a few shapes are: the others, such as the
last tiles of a scan, run uncompiled. The first result for a shape is compared with the uncompiled network's. Any
failure, a missing compiler included, is reported once, and everything runs uncompiled afterwards.

On CUDA the kernels are replayed as CUDA graphs (``reduce-overhead``). This has not been run on a GPU.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mre_lowshot.grid import Box
from mre_lowshot.inference.tiles import Tile
from mre_lowshot.network.optimized.inference import InferenceNetwork, compare_outputs

MIN_OCCURRENCES = 3  # of a shape before it is compiled
MAX_SHAPES = 3  # that are compiled
WARM_UP = 2  # calls on CUDA before the graph runs: one to warm up, one to record
Shape = tuple[tuple[int, ...], tuple[tuple[int, int], ...] | None]
"""Of a batch of tiles, and of the part kept of them."""


def most_frequent_first(tiles: Sequence[Tile]) -> list[Tile]:
    """Tiles grouped by the part that they keep, the largest group first: it is the one to compile for."""
    count = Counter(tile.keep for tile in tiles)
    return sorted(tiles, key=lambda tile: (-count[tile.keep], tile.keep))


class Compiler:
    """State shared by the compiled networks of one predictor. Folds differ in their weights only, and torch reuses the
    code.

    Attributes:
        shapes: compiled so far.
        problem: first line of the first failure, reported through ``log``; afterwards nothing is compiled.
        seconds: spent on compiling.
    """

    def __init__(self, device: torch.device, log: Callable[[str], None]) -> None:
        self.device, self.log = device, log
        self.shapes: set[Shape] = set()
        self.problem: str | None = None
        self.seconds = 0.0

    def wrap(self, networks: Sequence[nn.Module]) -> list[nn.Module]:
        """The networks, with inference networks compiled as they are used."""
        return [Compiled(n, self) if isinstance(n, InferenceNetwork) else n for n in networks]

    def accepts(self, shape: Shape) -> bool:
        """Whether this frequent shape is compiled; a new one is reported."""
        if shape not in self.shapes:
            if len(self.shapes) >= MAX_SHAPES:
                return False
            self.shapes.add(shape)
            self.log(f"compiling the network for {shape[0][0]} tiles at a time (shape {len(self.shapes)} of at most "
                     f"{MAX_SHAPES}); may take a minute or more")  # fmt: skip
        return True

    def give_up(self, problem: str) -> None:
        """Compile nothing from now on, and free what CUDA graphs hold."""
        self.problem = problem
        self.log(f"torch.compile is not used: {problem}")
        if self.device.type == "cuda":
            torch._dynamo.reset()
            torch.cuda.empty_cache()


class Compiled(nn.Module):
    """An `InferenceNetwork` that is compiled for frequent shapes, with the same results."""

    def __init__(self, network: InferenceNetwork, compiler: Compiler) -> None:
        super().__init__()
        self.network, self.compiler = network, compiler
        self.occurrences: Counter[Shape] = Counter()
        self.checked: set[Shape] = set()
        self._call: Any = None

    def forward(self, image: Tensor, coordinates: Tensor | None = None, keep: Box | None = None) -> Tensor:
        try:
            if self._is_compiled(image, coordinates, keep):
                return self._compiled(image, coordinates, keep)
            logits: Tensor = self.network(image, coordinates, keep)
            return logits
        except Exception as error:
            # before anything was compiled an error is the network's own; afterwards memory held by CUDA graphs may
            # cause it
            if self.compiler.problem is not None or not self.compiler.shapes:
                raise
            problem = first_line(error)
        self.compiler.give_up(problem)  # outside the handler, so that the failed call's memory is freed
        logits = self.network(image, coordinates, keep)
        return logits

    def _is_compiled(self, image: Tensor, coordinates: Tensor | None, keep: Box | None) -> bool:
        """Whether this shape runs compiled. The first compiled result is compared; RuntimeError if it differs."""
        if self.compiler.problem is not None:
            return False
        shape = (tuple(image.shape), None if keep is None else tuple(keep))
        if shape in self.checked:
            return True
        self.occurrences[shape] += 1
        if self.occurrences[shape] < MIN_OCCURRENCES or not self.compiler.accepts(shape):
            return False
        begun = time.monotonic()
        for _ in range(WARM_UP if image.is_cuda else 1):
            self._compiled(image, coordinates, keep)
        self.compiler.seconds += time.monotonic() - begun
        problem = compare_outputs(self._compiled, self.network, image, coordinates, keep, "the uncompiled network")
        if problem is not None:
            raise RuntimeError(problem)
        self.checked.add(shape)
        return True

    def _compiled(self, image: Tensor, coordinates: Tensor | None, keep: Box | None) -> Tensor:
        if self._call is None:  # not before: on some systems it fails immediately
            mode = "reduce-overhead" if image.is_cuda else None
            self._call = torch.compile(self.network, fullgraph=True, dynamic=False, mode=mode)
        if image.is_cuda:
            torch.compiler.cudagraph_mark_step_begin()
        logits: Tensor = self._call(image, coordinates, keep)
        return logits.clone() if image.is_cuda else logits  # the next replay of a CUDA graph writes over it


def first_line(error: Exception) -> str:
    """The error in one line: torch's compiler logs much more."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
