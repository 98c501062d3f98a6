"""``python -m benchmarks.refinement``: the steps after the network, each against its plain reference.

A synthetic abdomen of ellipsoids on the paper's grid (72x324x396, 14 classes, native grid 140x400x500) goes through the
warped labels of one atlas, their fusion with the network's posterior, the EM step, the CRF, and the label map on the
native grid, from which small components are removed (forty a class).
Plain (`benchmarks/plain_refinement.py`) and ours run in turns, on one thread unless --threads says otherwise. Printed
are seconds as median (minimum to maximum), the ratio, and how far the results differ. With --cpu-time they are seconds
of CPU time, which other programs hardly change.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

CLASSES = 14
GRID, NATIVE = (72, 324, 396), (140, 400, 500)
QUICK_GRID, QUICK_NATIVE = (12, 30, 36), (20, 40, 50)
WEIGHT = 0.4


def abdomen(grid: tuple[int, ...]) -> np.ndarray:
    """Class probabilities (K, *grid) of ellipsoids with soft borders at random positions."""
    import numpy as np

    rng = np.random.default_rng(0)
    axes = np.ogrid[tuple(slice(n) for n in grid)]
    logits = np.zeros((CLASSES, *grid), np.float32)
    logits[0] = 4
    for organ in logits[1:]:
        centre, radius = rng.uniform(0.2, 0.8, 3) * grid, rng.uniform(0.05, 0.15, 3) * grid
        distance = sum(((a - c) / r) ** 2 for a, c, r in zip(axes, centre, radius, strict=True))
        organ[:] = np.clip(8 - 4 * distance, -12, 12)
    shares = np.exp(logits)
    shares /= shares.sum(axis=0)
    return shares


def with_pieces(labels: np.ndarray) -> np.ndarray:
    """A label map (D, H, W) with forty small pieces of each class around its structure."""
    import numpy as np
    from scipy.ndimage import find_objects

    rng, made = np.random.default_rng(2), labels.astype(np.int16)
    for number, box in enumerate(find_objects(labels.astype(np.int16)), start=1):
        for _ in range(40 if box else 0):
            corner = [rng.integers(max(0, b.start - 10), min(n - 1, b.stop + 10)) for b, n in
                      zip(box, labels.shape, strict=True)]  # fmt: skip
            made[tuple(slice(c, c + 2) for c in corner)] = number
    return made


def steps(
    grid: tuple[int, ...], native: tuple[int, ...]
) -> dict[str, tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]]:
    """Of each step, the plain computation and ours on the same input."""
    import numpy as np
    import torch

    from benchmarks import plain_refinement as plain
    from mre_lowshot.filters import resized_linear
    from mre_lowshot.grid import argmax_resized, sample_shares, voxel_positions
    from mre_lowshot.refinement.components import keep_largest_component
    from mre_lowshot.refinement.crf import crf_mean_field
    from mre_lowshot.refinement.em import em_step
    from mre_lowshot.refinement.fusion import fuse_posteriors

    posterior = abdomen(grid)
    label = posterior.argmax(axis=0).astype(np.int16)
    positions = voxel_positions([0] * 3, grid)
    positions += np.reshape((1.3, -2.2, 3.7), (3, 1, 1, 1)) + 0.01 * positions[::-1]
    warped = plain.warped_shares(label, positions, CLASSES)
    fused = plain.fuse(posterior, warped, WEIGHT)
    image = (label + np.random.default_rng(1).normal(0, 0.5, grid)).astype(np.float32)[None]

    small = tuple(max(1, round(0.7 * n)) for n in grid)
    pieces = with_pieces(plain.native_labels(fused, native))

    def ours_components() -> np.ndarray:
        changed = pieces.copy()
        keep_largest_component(changed, range(1, CLASSES))
        return changed

    def ours_mean_field() -> np.ndarray:
        changed = fused.copy()
        crf_mean_field(changed, image, 1.0)
        return changed

    def ours_em() -> np.ndarray:
        changed = fused.copy()
        em_step(changed, image, 1.0)
        return changed

    def ours_shrunk() -> np.ndarray:
        shrunk: np.ndarray = resized_linear(torch.from_numpy(fused), small).numpy()
        return shrunk

    return {
        "warped labels": (
            lambda: plain.warped_shares(label, positions, CLASSES),
            lambda: np.asarray(sample_shares(label, positions, CLASSES)),
        ),
        "fusion": (
            lambda: plain.fuse(posterior, warped, WEIGHT),
            lambda: np.asarray(fuse_posteriors(posterior, warped, WEIGHT)),
        ),
        "EM": (lambda: plain.em_step(fused, image, 1.0), ours_em),
        "CRF": (lambda: plain.mean_field(fused.copy(), plain.neighbour_similarity(image), 1.0), ours_mean_field),
        "shares for registration": (lambda: plain.shrunk(fused, small), ours_shrunk),
        "native labels": (
            lambda: plain.native_labels(fused, native),
            lambda: argmax_resized(iter(fused), native, floor=0.5 / CLASSES),
        ),
        "components": (lambda: plain.largest_components(pieces.copy(), CLASSES), ours_components),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.refinement", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of torch (default: 1)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="turns of each (default: 3)")
    parser.add_argument("--only", metavar="STEP", help="one step, for example components")
    parser.add_argument("--scale", type=float, default=1.0, metavar="S", help="of the grids' sides (default: 1)")
    parser.add_argument("--cpu-time", action="store_true", help="measure CPU time instead of wall time")
    parser.add_argument("--quick", action="store_true", help="a tiny grid, to check that everything runs")
    options = parser.parse_args(argv)
    if options.threads < 1 or options.repeats < 1:
        parser.error("--threads and --repeats must be at least 1")
    if not 0.05 <= options.scale <= 2:
        parser.error("--scale must lie in [0.05, 2]")

    import numpy as np
    import torch

    from benchmarks.timing import interleaved, ratio

    torch.set_num_threads(options.threads)
    grid, native = (
        tuple(max(4, round(options.scale * n)) for n in size)
        for size in ((QUICK_GRID, QUICK_NATIVE) if options.quick else (GRID, NATIVE))
    )
    clock = time.process_time if options.cpu_time else time.perf_counter
    print(f"grid {grid}, native {native}, {CLASSES} classes, {options.threads} thread(s)")
    found = steps(grid, native)
    if options.only and options.only not in found:
        parser.error(f"--only {options.only}: must be one of {', '.join(found)}")
    for name in [options.only] if options.only else found:
        plain, ours = found[name]
        difference = float(np.abs(plain() - ours()).max())
        times = interleaved({"plain": plain, "ours": ours}, options.repeats, torch.device("cpu"), clock=clock)
        print(f"{name}: plain {times['plain']} s, ours {times['ours']} s, {ratio(times)} times as fast; "
              f"largest difference {difference:.2g}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
