"""Prediction networks through torch.compile, where asked for: the same answers or none, never the end of a prediction.

Compiled code holds for one shape only (how many tiles, and what is kept of them), and making it takes tens of
seconds or more. So a shape is compiled when it has come often enough to come again, and a few shapes at most: the
others, as the last tiles of a scan, run as they are. The first answer for a shape is compared with that of the network
as it is. Whatever goes wrong, no compiler being there included, is said once, and all runs uncompiled from then on.

On CUDA the kernels are replayed as CUDA graphs (``reduce-overhead``). No GPU was at hand: that has not been tried.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mre_lowshot.inference.fast import FastNetwork, Keep, agree
from mre_lowshot.inference.tiles import Tile

ARRIVALS = 3  # the time that a shape comes at which it is compiled
SHAPES = 3  # compiled at most
WARM_UP = 2  # calls on CUDA before what runs is the graph: one to warm up, one to record
Shape = tuple[tuple[int, ...], tuple[tuple[int, int], ...] | None]
"""That of a batch of tiles, and what is kept of them."""


def commonest_first(tiles: Sequence[Tile]) -> list[Tile]:
    """The tiles that keep the same part together, the largest such group first: it is the one worth compiling for."""
    count = Counter(tile.keep for tile in tiles)
    return sorted(tiles, key=lambda tile: (-count[tile.keep], tile.keep))


class Compiler:
    """What the compiled networks of one predictor share: the ``shapes`` compiled (folds differ in their weights only,
    and torch uses the code again), and the first line of the first ``problem``, told through ``say``: after it all run
    uncompiled. ``seconds``: spent on compiling so far."""

    def __init__(self, device: torch.device, say: Callable[[str], None]) -> None:
        self.device, self.say = device, say
        self.shapes: set[Shape] = set()
        self.problem: str | None = None
        self.seconds = 0.0

    def wrap(self, networks: Sequence[nn.Module]) -> list[nn.Module]:
        """The networks, those made for prediction (`inference.fast`) to be compiled as they are used."""
        return [Compiled(n, self) if isinstance(n, FastNetwork) else n for n in networks]

    def takes(self, shape: Shape) -> bool:
        """Whether this shape, which came often enough, is compiled too; said where it is new."""
        if shape not in self.shapes:
            if len(self.shapes) >= SHAPES:
                return False
            self.shapes.add(shape)
            self.say(f"compiling the network for {shape[0][0]} tiles at a time (shape {len(self.shapes)} of at most "
                     f"{SHAPES}); may take a minute or more")  # fmt: skip
        return True

    def give_up(self, problem: str) -> None:
        """Nothing is compiled from now on, and what CUDA graphs hold is let go."""
        self.problem = problem
        self.say(f"torch.compile is not used: {problem}")
        if self.device.type == "cuda":
            torch._dynamo.reset()
            torch.cuda.empty_cache()


class Compiled(nn.Module):
    """Called as `FastNetwork` is, and answers as it does; compiled for the shapes that come often."""

    def __init__(self, network: FastNetwork, compiler: Compiler) -> None:
        super().__init__()
        self.network, self.compiler = network, compiler
        self.arrivals: Counter[Shape] = Counter()
        self.checked: set[Shape] = set()
        self._call: Any = None

    def forward(self, image: Tensor, coordinates: Tensor | None = None, keep: Keep | None = None) -> Tensor:
        try:
            if self._worth(image, coordinates, keep):
                return self._compiled(image, coordinates, keep)
            return self.network(image, coordinates, keep)
        except Exception as error:
            # before anything was compiled an error is the network's own; after that it may lie in the memory held
            if self.compiler.problem is not None or not self.compiler.shapes:
                raise
            problem = first_line(error)
        self.compiler.give_up(problem)  # only now, outside the handler, is what the call held let go
        return self.network(image, coordinates, keep)

    def _worth(self, image: Tensor, coordinates: Tensor | None, keep: Keep | None) -> bool:
        """Whether this shape runs compiled. When it first does, its answer is compared; RuntimeError if it differs."""
        if self.compiler.problem is not None:
            return False
        shape = (tuple(image.shape), None if keep is None else tuple(keep))
        if shape in self.checked:
            return True
        self.arrivals[shape] += 1
        if self.arrivals[shape] < ARRIVALS or not self.compiler.takes(shape):
            return False
        begun = time.monotonic()
        for _ in range(WARM_UP if image.is_cuda else 1):
            self._compiled(image, coordinates, keep)
        self.compiler.seconds += time.monotonic() - begun
        problem = agree(self._compiled, self.network, image, coordinates, keep, "the network as it is")
        if problem is not None:
            raise RuntimeError(problem)
        self.checked.add(shape)
        return True

    def _compiled(self, image: Tensor, coordinates: Tensor | None, keep: Keep | None) -> Tensor:
        if self._call is None:  # not before: some systems refuse at once
            mode = "reduce-overhead" if image.is_cuda else None
            self._call = torch.compile(self.network, fullgraph=True, dynamic=False, mode=mode)
        if not image.is_cuda:
            return self._call(image, coordinates, keep)
        torch.compiler.cudagraph_mark_step_begin()
        return self._call(image, coordinates, keep).clone()  # the next replay writes over it


def first_line(error: Exception) -> str:
    """What went wrong in one line: torch's compiler says much more."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
