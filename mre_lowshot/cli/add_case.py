"""``mre_add_case DATASET image label``: add an annotated scan to a planned dataset."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mre_lowshot.cli import common
from mre_lowshot.errors import UserError

EPILOG = """Examples:
  mre_add_case BTCV scan_0000.nii.gz scan_corrected.nii.gz
  mre_add_case Brain t1.nii.gz flair.nii.gz labels.nii.gz --name patient_07
  mre_add_case BTCV --from segmentations/
  mre_add_case BTCV --from segmentations/ case_3 case_8

With --from, all label maps of the folder that were changed since mre_predict has written them are added, with the
scans that run.json lists; or those of the cases that are named, changed or not. A scan may be a folder with one DICOM
series.

The files are verified as by mre_plan_and_preprocess, and copied; no file is overwritten. The scan is preprocessed
under each plan of the dataset that has preprocessed cases. A scan that does not fit a plan is refused. Existing folds
keep their training scans and test on the new scan too; level 1shot gets one fold more, levels all and loo train on it.
Either all of this happens or nothing, even if the command is killed.

Prints the next command. Exit code: 0 done, 2 wrong use or data (each problem is named), 130 interrupted."""


def _parser() -> argparse.ArgumentParser:
    made = common.parser(
        "mre_add_case", "Add an annotated scan, or corrected predictions, to a planned dataset.", EPILOG
    )
    made.add_argument("dataset", help="id (17), name (BTCV), full name or path")
    made.add_argument(
        "files", nargs="*", type=common.path, metavar="FILE",
        help="the scan's channel files in order, then its label map; with --from: names of cases",
    )  # fmt: skip
    made.add_argument(
        "--from", dest="predictions", type=common.path, metavar="DIR", help="output folder of mre_predict"
    )
    made.add_argument(
        "-i", dest="scans", type=common.path, metavar="DIR",
        help="with --from: folder of the scans, if they were moved since they were predicted",
    )  # fmt: skip
    made.add_argument("--name", help="name of the case (default: that of the image file)")
    made.add_argument(
        "-p", default="MREPlans", metavar="NAME", help="plan of the training that is printed (default: %(default)s)"
    )
    common.add_workspace(made)
    return made


def _main(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_intermixed_args(arguments)  # names of cases may follow --from
    files: list[Path] = []
    if options.predictions is None:
        if len(options.files) < 2:
            raise UserError("give the scan's file (or files) and its label map, or a folder of predictions (--from)")
        files = options.files

    from mre_lowshot.cli.console import Console
    from mre_lowshot.workflows.add_case import add_case

    add_case(
        options.dataset,
        files[:-1] or None,
        files[-1] if files else None,
        name=options.name,
        predictions=options.predictions,
        cases=() if files else [str(name) for name in options.files],
        scans=options.scans,
        plans_name=options.p,
        workspace=options.workspace,
        reporter=Console(),
    )
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``mre_add_case``."""
    return common.run(_main, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
