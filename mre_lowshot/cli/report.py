"""``mre_report FOLDER``: one HTML page to look at: scores, scans with their label maps, curves, plan, warnings."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mre_lowshot.cli import common

EPILOG = """FOLDER is one of
  label maps   the folder that mre_predict -o wrote; with -ref, or after mre_evaluate, against references
  a model      results/DatasetXXX_Name/MRETrainer__MREPlans__1shot (its folds' test scans), or one fold_N of it
  a table      results/DatasetXXX_Name/experiments/TABLE__LEVEL_BASE of mre_experiment

The page is one file without network access: open it with a browser, also from a disk, send it, print it. Scans are
ordered by Dice, or by quality score where there is no reference, the worst first. The planes cut the place where label
map and reference differ most. Scans are found where they were predicted; one that is not there any more is named on the
page, and --images gives another folder. The page holds images of the patients: treat it as you treat the scans.

Size: a scan takes about 0.05 MB (hippocampus) to 0.8 MB (abdominal CT); --max_size makes it smaller, --max_size 0
leaves the images out. docs/REPORT.md describes the page.

Exit code: 0 written, 1 written without some images (named), 2 wrong use."""


def _parser() -> argparse.ArgumentParser:
    made = common.parser("mre_report", "Write an HTML page on a model, on label maps or on an experiment.", EPILOG)
    made.add_argument("folder", metavar="FOLDER", type=common.path, help="of label maps, of a model, or of a table")
    made.add_argument("-o", metavar="FILE", type=common.path, help="the page (default: FOLDER/report.html)")
    made.add_argument("-ref", "--reference", metavar="DIR", type=common.path,
                      help="folder with reference label maps (default: those that mre_evaluate compared)")  # fmt: skip
    made.add_argument("--images", metavar="DIR", type=common.path,
                      help="folder with the scans (default: where they were predicted)")  # fmt: skip
    made.add_argument("--max_size", type=int, default=160, metavar="N",
                      help="reduce scans to at most N voxels along each axis, 16 to 512; 0: no images (default: "
                      "%(default)s)")  # fmt: skip
    made.add_argument("--overwrite", action="store_true",
                      help="replace a file that is no page of mre_report, or that has changed since")  # fmt: skip
    return made


def _main(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)

    from mre_lowshot.cli.console import Console
    from mre_lowshot.workflows.report import write_report

    result = write_report(
        options.folder,
        options.o,
        reference=options.reference,
        images=options.images,
        max_size=options.max_size,
        overwrite=options.overwrite,
        reporter=Console(),
    )
    return 1 if result.missing else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``mre_report``."""
    return common.run(_main, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
