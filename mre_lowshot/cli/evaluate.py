"""``mre_evaluate GT PRED``: compare predicted label maps with their references, print a table, write summary.json."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mre_lowshot.cli import common

PROFILES = ("default", "medpy", "mrbrains18", "bus")
EPILOG = """Files are paired by case name; their formats may differ, their grids may not. The labels come from
dataset.json: the given one, or one found in PRED, the folder above it, GT or the folder above that; without any,
every value found in the label maps is evaluated.

Profiles: default: HD95 is the larger of the two directed 95th percentiles; medpy: the 95th percentile of the distances
of both directions together, as in MedPy; mrbrains18: HD95 between in-plane edges; voxels with reference label 9 or 10
are excluded; bus (2D images only): as default, and the measures of breast ultrasound: F1, averaged radial error (ARE),
TP_share and FP_share, fractions of the reference's area.

NSD (normalised surface Dice) is the fraction of both surfaces, by area, that lies within a tolerance of the other one.
Without --nsd_tolerance it is the longest side of the reference's voxels. State it with every NSD that you report.
Distances are in mm; in pixels (px) where all references are PNG or TIFF without a pixel size.

Exit code: 0 all cases evaluated, 1 some were missing or refused, 2 wrong use."""


def _parser() -> argparse.ArgumentParser:
    made = common.parser(
        "mre_evaluate", "Compare predicted label maps with their references: Dice, HD95, NSD, volumes.", EPILOG
    )
    made.add_argument("reference", metavar="GT", type=common.path, help="folder with the reference label maps")
    made.add_argument("prediction", metavar="PRED", type=common.path, help="folder with the predicted label maps")
    made.add_argument("-djfile", metavar="FILE", type=common.path, help="dataset.json that lists the labels")
    made.add_argument(
        "-o", metavar="DIR", type=common.path, help="where summary.json and summary.csv go (default: PRED)"
    )
    made.add_argument(
        "--profile",
        choices=PROFILES,
        default="default",
        help="how metrics are defined (default: %(default)s; see below)",
    )
    made.add_argument(
        "--ignore",
        metavar="N",
        type=int,
        help="exclude voxels whose reference label is N (default: dataset.json's 'ignore')",
    )
    made.add_argument(
        "--nsd_tolerance",
        nargs="+",
        metavar="MM",
        help="tolerance of NSD in mm: one number for all labels, or LABEL=MM ... by name; write it after GT and PRED",
    )
    made.add_argument(
        "--overwrite",
        action="store_true",
        help="replace a summary.json or summary.csv that mre_evaluate has not written, or that has changed since",
    )
    return made


def _tolerance(texts: Sequence[str] | None) -> float | dict[str, float] | None:
    """The tolerance of NSD from the words of ``--nsd_tolerance``."""
    from mre_lowshot.errors import UserError

    found: dict[str, float] = {}
    for text in texts or ():
        name, _, number = text.rpartition("=")
        try:
            found[name] = float(number)
        except ValueError:
            rule = "is neither a number in mm nor LABEL=MM, for example spleen=2; write it after GT and PRED"
            raise UserError(f"--nsd_tolerance {text!r}: {rule}") from None
    if "" not in found:
        return found or None
    if len(texts or ()) > 1:
        raise UserError("--nsd_tolerance: give one number for all labels, or LABEL=MM for each, not both")
    return found[""]


def _main(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)

    from mre_lowshot.cli.console import Console
    from mre_lowshot.workflows.evaluate import evaluate

    result = evaluate(
        options.reference,
        options.prediction,
        dataset_json=options.djfile,
        output=options.o,
        profile=options.profile,
        ignore=options.ignore,
        nsd_tolerance=_tolerance(options.nsd_tolerance),
        overwrite=options.overwrite,
        reporter=Console(),
    )
    return 0 if result.complete else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``mre_evaluate``."""
    return common.run(_main, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
