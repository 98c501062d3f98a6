"""Tiles of prediction: Dice, number of tiles and seconds for several tilings, on the same scans in one run.

    python -m benchmarks.tiling MODEL nnUNet_raw/Dataset017_BTCV --cohort develop --tilings .5 .75 centre

Each labelled scan of the cohort on which the model was not trained is preprocessed and registered once. Then, for each
tiling (a number: -step_size of overlapping tiles; centre: the paper's, each voxel once), the network's tiles are
computed and refined as in mre_predict, second registration included, and the label map is compared with the reference
on the scan's own grid. Printed for each are mean Dice, tiles and seconds of the network stage for a scan, the mean
difference of Dice to the first tiling with its standard error and 95 % interval (t distribution), and the number of
scans that are better. CPU seconds hardly depend on other programs; seconds do.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks import held_out
from mre_lowshot import Predictor
from mre_lowshot.cli import common
from mre_lowshot.config import InferenceConfig
from mre_lowshot.data.dataset import Case
from mre_lowshot.data.scan_input import read_case
from mre_lowshot.data.volume import read_labels
from mre_lowshot.inference.options import inference_with
from mre_lowshot.inference.stages import RegisteredScan

CENTRE = "centre"  # the paper's tiling


def tiling(text: str) -> str:
    """A tiling as it is named in the arguments: a step within its limits, or ``centre``."""
    if text != CENTRE:
        inference_with(InferenceConfig(), step_size=float(text))  # ValueError: not a number; UserError: out of range
    return text


@dataclass(frozen=True)
class Measured:
    """What a tiling gave on a scan; seconds are those of the network stage."""

    dice: float
    tiles: int
    seconds: float
    cpu: float


def predicted(predictor: Predictor, scan: RegisteredScan, variant: str, truth: np.ndarray) -> Measured:
    """Predict a registered scan, and compare it with ``truth`` (D, H, W) on its own grid."""
    centre = variant == CENTRE
    predictor.window.inference = inference_with(
        predictor.plan.recipe.inference, step_size=None if centre else float(variant), centre_tiles=centre
    )
    done = [0]
    begun, cpu = time.perf_counter(), time.process_time()
    output = predictor.run_network(scan, progress=lambda count, _: done.append(count))
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    return Measured(held_out.dice(predictor, output, truth), done[-1], seconds, cpu)


def measure(predictor: Predictor, cases: Sequence[Case], variants: Sequence[str]) -> list[list[Measured]]:
    """For each case what each variant gives; a line is printed for each case."""
    rows = []
    for case in cases:
        assert case.label is not None  # a labelled case
        prepared = predictor.preprocess(read_case(case), name=case.name)
        scan, truth = predictor.register(prepared), read_labels(case.label).array
        rows.append([predicted(predictor, scan, variant, truth) for variant in variants])
        print(f"  {case.name}: Dice {', '.join(f'{one.dice:.4f}' for one in rows[-1])}", flush=True)
    return rows


def report(variants: Sequence[str], rows: Sequence[Sequence[Measured]]) -> None:
    """Print the figures of each variant, and its difference to the first."""
    for number, variant in enumerate(variants):
        column = [row[number] for row in rows]
        dice, tiles, seconds, cpu = (
            float(np.mean([getattr(one, name) for one in column])) for name in ("dice", "tiles", "seconds", "cpu")
        )
        print(f"tiling {variant}: Dice {dice:.4f}, {tiles:.0f} tiles, {seconds:.1f} s, CPU {cpu:.1f} s a scan")
        if number:
            differences = [row[number].dice - row[0].dice for row in rows]
            print(f"  Dice minus that of the first: {held_out.difference_text(differences)}")


def _main(arguments: Sequence[str] | None) -> int:
    parser = held_out.parser_of("tiling", __doc__)
    parser.add_argument("--tilings", type=tiling, nargs="+", default=["0.5", "0.75", CENTRE], metavar="STEP",
                        help="-step_size of overlapping tiles, or centre (default: 0.5 0.75 centre)")  # fmt: skip
    options = parser.parse_args(arguments)
    predictor, cases = held_out.load(options)
    print(f"tilings {', '.join(options.tilings)}", flush=True)
    report(options.tilings, measure(predictor, cases, options.tilings))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; exit code 2 for wrong use, with one line on stderr."""
    return common.run(_main, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
