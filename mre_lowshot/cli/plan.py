"""``mre_plan_and_preprocess -d X``: verify a dataset, plan how to segment it, and preprocess it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mre_lowshot.cli import common
from mre_lowshot.errors import UserError

EPILOG = """Writes, into preprocessed/DatasetXXX_Name/:
  dataset_fingerprint.json   properties of the images (labels are not used); mre_fingerprint.json instead if nnU-Net
                             has written its own dataset_fingerprint.json
  MREPlans.json              every decision with its reason; it may be edited by hand, then run this command again
                             with --keep_plan
  MREPlans/CASE.npz          the preprocessed cases
  gt_segmentations/          the label maps, for scoring on the scans' own grid

Examples:
  mre_plan_and_preprocess -d BTCV
  mre_plan_and_preprocess -d path/to/Dataset017_BTCV 4
  mre_plan_and_preprocess -d BTCV -p OnePrototype --set network.prototypes_per_class=1

Exit code: 0 done, 2 wrong use or data (each problem is named)."""


def _parser() -> argparse.ArgumentParser:
    made = common.parser(
        "mre_plan_and_preprocess", "Verify datasets, plan how to segment them, and preprocess them.", EPILOG
    )
    made.add_argument(
        "-d",
        nargs="+",
        required=True,
        metavar="DATASET",
        help="id (17), name (BTCV), full name or path; several allowed",
    )
    made.add_argument("-p", default="MREPlans", metavar="NAME", help="name of the plan (default: %(default)s)")
    made.add_argument(
        "--recipe",
        default="default",
        help="default; paper, or paper_aug (with the paper's augmentation), at the paper's size; paper_small, "
        "paper_aug_small: the same at a size for a CPU; or the U-Net baseline unet, unet_aug, unet_spread, "
        "unet_default (default: %(default)s)",
    )
    made.add_argument(
        "--n4",
        choices=("auto", "on", "off"),
        default="auto",
        help="bias field correction of MRI; auto: with recipes default and unet_default, unless the scans were "
        'corrected before (state it by "bias_field_corrected": true in dataset.json) (default: %(default)s)',
    )
    made.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", dest="changes",
        help="change fields of the plan, for example recipe.optimizer.iterations=1000, network.prototypes_per_class=1 "
        "or network.dilations=paper (6, 12, 18) or =patch (fractions of the patch sides); give the changed plan its "
        "own name with -p",
    )  # fmt: skip
    common.add_device(made)
    made.add_argument(
        "--memory",
        type=float,
        metavar="GB",
        help="GPU memory to plan for (default: the GPU's; without a GPU it has no effect)",
    )
    made.add_argument(
        "--gpus",
        type=int,
        default=1,
        metavar="N",
        help="GPUs that will train a fold together with torchrun: each holds its share of a mini-batch (default: "
        "%(default)s)",
    )
    made.add_argument("--keep_plan", action="store_true", help="use the existing plan, perhaps edited by hand")
    made.add_argument("--overwrite", action="store_true", help="replace an existing plan that differs")
    made.add_argument("--no_pp", action="store_true", help="plan only, do not preprocess")
    common.add_workspace(made)
    return made


def parse_changes(changes: Sequence[str]) -> dict[str, str]:
    """``KEY=VALUE`` texts as a dictionary.

    Raises:
        UserError: a text has no ``=``.
    """
    for change in changes:
        if "=" not in change:
            raise UserError(f"--set {change!r}: write KEY=VALUE, as in network.prototypes_per_class=1")
    pairs = (change.partition("=") for change in changes)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _main(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    changes = parse_changes(options.changes)

    from mre_lowshot.cli.console import Console
    from mre_lowshot.workflows.plan import plan

    for dataset in options.d:
        plan(
            dataset,
            plans_name=options.p,
            recipe=options.recipe,
            n4=options.n4,
            changes=changes,
            keep_plan=options.keep_plan,
            overwrite=options.overwrite,
            preprocess=not options.no_pp,
            device=options.device,
            memory_gb=options.memory,
            gpus=options.gpus,
            workspace=options.workspace,
            reporter=Console(),
        )
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``mre_plan_and_preprocess``."""
    return common.run(_main, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
