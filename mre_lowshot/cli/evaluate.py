"""``mre_evaluate GT PRED``: compare predicted label maps with their references, print a table, write summary.json."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mre_lowshot.cli import common
from mre_lowshot.errors import UserError
from mre_lowshot.evaluation.metrics import MRBRAINS18_IGNORED, PROFILES
from mre_lowshot.files import read_json

EPILOG = """Files are paired by case name; their formats may differ, their grids may not. The labels come from
dataset.json: the one given, or one found in PRED, the folder above it, GT or the folder above that; without any,
every value found in the label maps is evaluated.

Profiles: default: HD95 is the larger of the two directed 95th percentiles; medpy: of both directions pooled, as
MedPy's; mrbrains18: over in-plane edges, reference labels 9 and 10 taken out; bus (2D images only): as default, and
the measures of breast ultrasound: F1, averaged radial error (ARE), TP and FP as shares of the reference's area.
2D images without a pixel size are measured in pixels.

Exit code: 0 all cases evaluated, 1 some were missing or refused, 2 wrong use."""


def _parser() -> argparse.ArgumentParser:
    made = common.parser(
        "mre_evaluate", "Compare predicted label maps with their references: Dice, HD95, volumes.", EPILOG
    )
    made.add_argument("reference", metavar="GT", type=Path, help="folder with the reference label maps")
    made.add_argument("prediction", metavar="PRED", type=Path, help="folder with the predicted label maps")
    made.add_argument("-djfile", metavar="FILE", type=Path, help="dataset.json that lists the labels")
    made.add_argument("-o", metavar="DIR", type=Path, help="where summary.json and summary.csv go (default: PRED)")
    made.add_argument(
        "--profile",
        choices=(*PROFILES, "bus"),
        default="default",
        help="how it is measured (default: %(default)s; see below)",
    )
    made.add_argument(
        "--ignore",
        metavar="N",
        type=int,
        help="take voxels whose reference is N out (default: dataset.json's 'ignore')",
    )
    return made


def labels_from_dataset_json(path: Path) -> tuple[dict[str, int], int | None]:
    """The foreground labels (name to value) and the ignore label of an nnU-Net dataset.json.

    Raises:
        UserError: missing, no JSON, no labels, region-based labels, or values that are not distinct whole numbers.
    """
    from mre_lowshot.dataset import whole_labels

    data = read_json(path, "labels")
    listed = whole_labels(data.get("labels") if isinstance(data, dict) else None, str(path))
    if len(set(listed.values())) < len(listed):
        raise UserError(f"{path}: two labels share a value: {listed}; give each its own")
    ignore = listed.get("ignore")
    return {name: value for name, value in listed.items() if value != 0 and name != "ignore"}, ignore


def _labels_found(folders: Sequence[Path]) -> dict[str, int]:
    """A label for every value but 0 in the readable label maps of ``folders``."""
    import numpy as np

    from mre_lowshot.evaluation.summary import label_files
    from mre_lowshot.volume import read_labels

    values: set[int] = set()
    for path in (path for folder in folders for files in label_files(folder).values() for path in files):
        try:
            values |= set(np.unique(read_labels(path).array).tolist())
        except UserError:
            continue  # the evaluation names the file and the reason
    return {f"label_{value}": value for value in sorted(values - {0})}


def _labels(options: argparse.Namespace) -> tuple[dict[str, int], int | None]:
    """The labels to evaluate and the one to ignore; says where they come from."""
    places = [options.prediction, options.prediction / "..", options.reference, options.reference / ".."]
    found = options.djfile or next((p / "dataset.json" for p in places if (p / "dataset.json").is_file()), None)
    ignore: int | None = None
    if found:
        labels, ignore = labels_from_dataset_json(found)
        print(f"labels from {found.resolve()}: {_told(labels)}")
    else:
        labels = _labels_found([options.reference, options.prediction])
        print(f"no dataset.json found or given (-djfile): labels are the values found: {_told(labels)}")
    ignore = options.ignore if options.ignore is not None else ignore
    ignored = {ignore} if ignore is not None else set()
    if options.profile == "mrbrains18":
        ignored |= set(MRBRAINS18_IGNORED)
    if ignored:
        print(f"ignored, where the reference has them: {', '.join(map(str, sorted(ignored)))}")
    labels = {name: value for name, value in labels.items() if value not in ignored}
    if not labels:
        raise UserError(f"no label to evaluate is left in {options.reference} and {options.prediction}; give -djfile")
    return labels, ignore


def _told(labels: dict[str, int]) -> str:
    return ", ".join(f"{value} {name}" for name, value in labels.items()) or "none"


def _main(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    out = options.o or options.prediction
    if out.suffix == ".json":
        raise UserError(f"-o {out}: name a folder, not a file; summary.json and summary.csv are written into it")

    from mre_lowshot.evaluation.summary import (
        evaluate_folder,
        format_table,
        label_files,
        rank_correlation,
        write_summary,
    )
    from mre_lowshot.inference.quality import read_rows

    for folder in (options.reference, options.prediction):
        label_files(folder)  # a wrong folder is told before anything else
    labels, ignore = _labels(options)
    summary = evaluate_folder(
        options.reference, options.prediction, labels, ignore_label=ignore, profile=options.profile
    )
    try:
        written = write_summary(summary, out)
    except OSError as problem:
        raise UserError(f"{out}: cannot be written ({problem.strerror}); name another folder with -o") from None
    print(format_table(summary))
    scores: dict[str, float] = {}
    for path in sorted(options.prediction.glob("quality*.csv")):
        try:
            scores |= {name: float(row["score"]) for name, row in read_rows(path).items()}
        except UserError as problem:
            print(f"note: {problem}")
    if scores:
        print(rank_correlation(summary, scores))
    print(f"written: {', '.join(map(str, written))}")
    return 1 if summary["missing_predictions"] or summary["failed_cases"] else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``mre_evaluate``."""
    return common.run(_main, arguments)
