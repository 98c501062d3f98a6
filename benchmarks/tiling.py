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

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mre_lowshot import Predictor
from mre_lowshot.cli import common
from mre_lowshot.config import InferenceConfig
from mre_lowshot.data.dataset import Case, Dataset
from mre_lowshot.data.scan_input import read_case
from mre_lowshot.data.splits import read_cohort
from mre_lowshot.data.volume import read_labels
from mre_lowshot.errors import UserError
from mre_lowshot.evaluation.agreement import label_agreement
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
    labels = predictor.export(predictor.refine(output)).labels.array.reshape(truth.shape)
    known = truth >= 0
    dice = label_agreement(labels[known], truth[known], predictor.plan.network.classes)
    return Measured(float(np.mean([dice[k] for k in np.unique(truth[truth > 0])])), done[-1], seconds, cpu)


def difference_text(differences: Sequence[float]) -> str:
    """Mean difference with its standard error and 95 % interval, and the number of scans that are better."""
    from scipy.stats import t

    mean, count = float(np.mean(differences)), len(differences)
    better = sum(value > 0 for value in differences)
    if count < 2:
        return f"{mean:+.4f} ({better} of {count} better)"
    error = float(np.std(differences, ddof=1)) / count**0.5
    reach = float(t.ppf(0.975, count - 1)) * error
    return (
        f"{mean:+.4f}, standard error {error:.4f}, 95 % interval {mean - reach:+.4f} to {mean + reach:+.4f} "
        f"({better} of {count} better)"
    )


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
            print(f"  Dice minus that of the first: {difference_text(differences)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.tiling", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("model", type=Path, help="a trained model")
    parser.add_argument("dataset", type=Path, help="raw dataset with labels (DatasetXXX_Name)")
    parser.add_argument("-f", type=int, nargs="+", metavar="FOLD", help="folds to average (default: all)")
    parser.add_argument("--tilings", type=tiling, nargs="+", default=["0.5", "0.75", CENTRE], metavar="STEP",
                        help="-step_size of overlapping tiles, or centre (default: 0.5 0.75 centre)")  # fmt: skip
    parser.add_argument("--cohort", default="develop", metavar="NAME", help="cases to use (default: %(default)s)")
    parser.add_argument(
        "--cohorts", type=Path, metavar="FILE", default=Path(__file__).with_name("dev_report_split.json"),
        help="JSON with the cohorts (default: benchmarks/dev_report_split.json)",
    )  # fmt: skip
    parser.add_argument("--most", type=int, metavar="N", help="only the first N scans")
    parser.add_argument("--threads", type=int, metavar="N", help="of torch (default: all cores)")
    return parser


def _main(arguments: Sequence[str] | None) -> int:
    import torch

    options = _parser().parse_args(arguments)
    for name in ("most", "threads"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise UserError(f"--{name} {value}: must be 1 or more")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    predictor = Predictor.load(options.model, folds=options.f, device="cpu")
    trained = {name for plan in predictor.model.plans for name in (plan.fold.train if plan.fold else ())}
    chosen = set(read_cohort(options.cohorts, predictor.plan.dataset_name, options.cohort)) - trained
    cases = [case for case in Dataset.load(options.dataset).labelled if case.name in chosen][: options.most]
    if not cases:
        raise UserError(f"{options.dataset}: no labelled scan of cohort {options.cohort!r} besides the training scans")
    variants = options.tilings
    print(f"{len(cases)} scans, trained on {', '.join(sorted(trained))}, {torch.get_num_threads()} thread(s), load "
          f"{os.getloadavg()[0]:.1f}: tilings {', '.join(variants)}", flush=True)  # fmt: skip
    report(variants, measure(predictor, cases, variants))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; exit code 2 for wrong use, with one line on stderr."""
    return common.run(_main, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
