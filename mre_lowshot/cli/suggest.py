"""``mre_suggest MODEL_OR_DATASET FOLDER``: rank unlabelled scans by what annotating them would bring."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mre_lowshot.cli import common

EPILOG = """Scans are preprocessed by the plan, aligned to an annotated scan by an affine transform on a coarse grid,
and compared. A scan ranks high that is unlike the annotated scans and like many others; with --predictions, scans whose
segmentations have a low quality score count more. docs/CORRECTING.md gives figures on what this brings.

Writes suggest.csv and suggest.json, with the reasons for each scan.

Examples:
  mre_suggest BTCV new_scans/
  mre_suggest BTCV new_scans/ --predictions segmentations/
  mre_suggest model.zip new_scans/ -n 3

Exit code: 0 done, 1 some scans could not be read, 2 wrong use, 130 interrupted."""


def _parser() -> argparse.ArgumentParser:
    made = common.parser("mre_suggest", "Rank unlabelled scans by what annotating them would bring.", EPILOG)
    made.add_argument("model", metavar="MODEL_OR_DATASET", help="a trained model (folder, checkpoint, zip file), or a "
                      "planned dataset: id (17), name (BTCV) or full name")  # fmt: skip
    made.add_argument("folder", type=common.path, metavar="FOLDER", help="folder with the unlabelled scans")
    made.add_argument(
        "--predictions", type=common.path, metavar="DIR", help="output folder of mre_predict for these scans"
    )
    made.add_argument(
        "-o", type=common.path, metavar="DIR", dest="output",
        help="folder for suggest.csv and suggest.json (default: that of --predictions, else the current one)",
    )  # fmt: skip
    made.add_argument("-n", type=int, default=10, metavar="N", help="scans that are printed (default: %(default)s)")
    made.add_argument("-p", default="MREPlans", metavar="NAME", help="plan of the dataset (default: %(default)s)")
    made.add_argument(
        "--overwrite", action="store_true", help="replace suggest.csv and suggest.json if they were changed"
    )
    common.add_workspace(made)
    return made


def _main(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)

    from mre_lowshot.cli.console import Console
    from mre_lowshot.config.check import require_whole
    from mre_lowshot.workflows.suggest import suggest

    require_whole("-n", options.n, 1, 1_000_000)
    console = Console()
    result = suggest(
        options.model,
        options.folder,
        predictions=options.predictions,
        output=options.output or options.predictions or Path(),
        plans_name=options.p,
        overwrite=options.overwrite,
        workspace=options.workspace,
        reporter=console,
    )
    for number, one in enumerate(result.suggestions[: options.n], start=1):
        console.info(f"{number:3}. {one.case}: {'; '.join(one.reasons)}")
    console.info(f"{len(result.suggestions)} scans ranked; table in {result.files[1]}")
    return 1 if result.failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``mre_suggest``."""
    return common.run(_main, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
