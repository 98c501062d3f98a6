"""``mre_install_model model.zip``: a model that was exported elsewhere, into the results folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mre_lowshot.cli import common

EPILOG = """\
The model is put into results/DatasetXXX_Name/MRETrainer__MREPlans__LEVEL, whole or not at all. Before that, every
member is compared with its SHA-256, and every checkpoint is loaded. Nothing in the file is run, and nothing is written
outside that folder. Read MODEL_CARD.md there: training data, scores, limits.

Exit code: 0 done (also where the same model is installed already), 2 wrong use or a damaged file (nothing was
written), 130 or 143 interrupted."""


def _parser() -> argparse.ArgumentParser:
    made = common.parser("mre_install_model", "Install a model that mre_export_model has written.", EPILOG)
    made.add_argument("file", type=common.path, help="the zip file")
    made.add_argument("--overwrite", action="store_true", help="replace another model of the same name")
    common.add_workspace(made)
    return made


def _main(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)

    from mre_lowshot.cli.console import Console
    from mre_lowshot.workflows.install_model import install_model

    install_model(options.file, overwrite=options.overwrite, workspace=options.workspace, reporter=Console())
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``mre_install_model``."""
    return common.run(_main, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
