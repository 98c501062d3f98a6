"""What the comparisons on held-out scans share: the model, the scans it was not trained on, Dice and differences."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mre_lowshot import Predictor
from mre_lowshot.data.dataset import Case, Dataset
from mre_lowshot.data.splits import read_cohort
from mre_lowshot.errors import UserError
from mre_lowshot.evaluation.agreement import label_agreement
from mre_lowshot.inference.stages import NetworkOutput


def parser_of(name: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of a comparison, with the arguments that name the model, the dataset and the scans."""
    parser = argparse.ArgumentParser(f"python -m benchmarks.{name}", description=description,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("model", type=Path, help="a trained model")
    parser.add_argument("dataset", type=Path, help="raw dataset with labels (DatasetXXX_Name)")
    parser.add_argument("-f", type=int, nargs="+", metavar="FOLD", help="folds to average (default: all)")
    parser.add_argument("--cohort", default="develop", metavar="NAME", help="cases to use (default: %(default)s)")
    parser.add_argument(
        "--cohorts", type=Path, metavar="FILE", default=Path(__file__).with_name("dev_report_split.json"),
        help="JSON with the cohorts (default: benchmarks/dev_report_split.json)",
    )  # fmt: skip
    parser.add_argument("--most", type=int, metavar="N", help="only the first N scans")
    parser.add_argument("--threads", type=int, metavar="N", help="of torch (default: all cores)")
    return parser


def load(options: argparse.Namespace) -> tuple[Predictor, list[Case]]:
    """The predictor, and the labelled scans of the cohort that it was not trained on; a line is printed.

    Raises:
        UserError: an option is wrong, or there is no such scan.
    """
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
    print(f"{len(cases)} scans, trained on {', '.join(sorted(trained))}, {torch.get_num_threads()} thread(s), load "
          f"{os.getloadavg()[0]:.1f}", flush=True)  # fmt: skip
    return predictor, cases


def dice(predictor: Predictor, output: NetworkOutput, truth: np.ndarray) -> float:
    """Mean Dice, over the labels of ``truth`` (D, H, W), of the refined label map on the scan's own grid."""
    labels = predictor.export(predictor.refine(output)).labels.array.reshape(truth.shape)
    known = truth >= 0
    found = label_agreement(labels[known], truth[known], predictor.plan.network.classes)
    return float(np.mean([found[k] for k in np.unique(truth[truth > 0])]))


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
