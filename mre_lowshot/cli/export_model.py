"""``mre_export_model -d BTCV -o model.zip``: a trained model in one file, to predict with it elsewhere."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mre_lowshot.cli import common

EPILOG = """\
The zip file holds, for each fold, the plan and the checkpoint without the state of the training (predictions are
the same to the last bit); plans.json, dataset.json (without lists of files), the model card as model.json and
MODEL_CARD.md (what it was trained on, scores of validation/summary.json, versions, intended use, limits), and the
SHA-256 of every member. The same model gives the same bytes.

PATIENT DATA: a model that registers new scans holds the images and label maps of its labelled training scans (up to
five a fold), because prediction needs them. Share it only as you would share the scans. --without_atlas refuses such a
model. Names of cases are replaced by case_1, case_2 ... (--keep_names keeps them).

Use the file with mre_predict -m model.zip, or install it with mre_install_model model.zip.

Exit code: 0 done, 2 wrong use (nothing was written), 130 or 143 interrupted."""


def _parser() -> argparse.ArgumentParser:
    made = common.parser("mre_export_model", "Write a trained model to one zip file.", EPILOG)
    made.add_argument("-o", required=True, type=common.path, metavar="FILE", help="the zip file to write")
    made.add_argument(
        "-m",
        type=common.path,
        metavar="DIR",
        help="model folder (.../MRETrainer__MREPlans__1shot); default: the newest that fits -d, -c, -p",
    )
    common.add_trained(made)
    made.add_argument("--without_atlas", action="store_true",
                      help="no labelled scan in the file; refused where prediction needs it (only plans with "
                      "recipe.atlas.registration=none and network.atlas_prior=false do without)")  # fmt: skip
    made.add_argument("--keep_names", action="store_true", help="keep the names of the cases")
    made.add_argument("--intended_use", metavar="TEXT", help="for the model card (default: a general text)")
    made.add_argument("--overwrite", action="store_true", help="replace a file of that name")
    common.add_workspace(made)
    return made


def _main(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)

    from mre_lowshot.cli.console import Console
    from mre_lowshot.workflows.export_model import export_model

    export_model(
        options.o,
        **common.trained(options),
        folds=options.f,
        without_atlas=options.without_atlas,
        keep_names=options.keep_names,
        intended_use=options.intended_use,
        overwrite=options.overwrite,
        reporter=Console(),
    )
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``mre_export_model``."""
    return common.run(_main, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
