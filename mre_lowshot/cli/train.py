"""``mre_train DATASET 1shot fold0``: train a fold, then score it on the fold's other cases."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mre_lowshot.cli import common

EPILOG = """Levels: 1shot, 2shot, 3shot (any number), 5pct (percent of the annotated cases, at least one), loo (leave
one out), all; with --cohort NAME also rest (train on the annotated cases outside the cohort, test on the cohort), and
split (the folds that the file of --cohorts lists under NAME: {"NAME": [{"train": [cases], "val": [cases]}]}). Folds are
saved in preprocessed/DatasetXXX_Name/splits_LEVEL.json. The cases of a fold that are not trained on are its test set,
scored once with the final weights (no decision uses them). A dataset with a single annotated case can be trained too. A
separate test set (imagesTs, labelsTs) is scored with mre_predict -i imagesTs and mre_evaluate labelsTs; add --no_val if
the fold's other cases need no scores.

Writes results/DatasetXXX_Name/MRETrainer__MREPlans__LEVEL/fold_N/: checkpoint_latest.pth, checkpoint_final.pth,
plans.json, progress.png, training_log_*.txt, training_log.jsonl (one JSON object per iteration: loss, patch Dice,
learning rate, seconds, memory), run.json (versions, device, seed, options and times of each run), debug.json,
validation/summary.json and quality.csv (the test scans, lowest quality score first).

Ctrl-C and SIGTERM (batch systems) leave a usable checkpoint_latest.pth; --c continues from it.
With two or three annotated scans: `loo all` estimates the accuracy by leave-one-out; `all fold0` then trains on all of
them.

Several GPUs (or, with -device cpu, processes) train one fold together, each on its shard of every mini-batch:
  torchrun --standalone --nproc_per_node=2 -m mre_lowshot.cli.train BTCV 1shot fold0

Exit code: 0 done, 1 a training diverged or test scans failed (named), 2 wrong use, 130 interrupted,
143 ended by SIGTERM."""


def _parser() -> argparse.ArgumentParser:
    made = common.parser("mre_train", "Train on one to three annotated scans, score on the others.", EPILOG)
    made.add_argument("dataset", help="id (17), name (BTCV) or full name")
    made.add_argument("level", help="1shot, 2shot, 3shot, 5pct, loo, all; with --cohort also rest, split")
    made.add_argument("fold", help="fold0, 0 or all")
    made.add_argument("-p", default="MREPlans", metavar="NAME", help="name of the plan (default: %(default)s)")
    made.add_argument("--iterations", type=int, metavar="N", help="train this many iterations (default: the plan's)")
    made.add_argument(
        "--seed", type=int, help="seed of weights and patches (default: 0; with --c and --val, that of the training)"
    )
    made.add_argument(
        "--workers",
        type=int,
        help="data-loading processes; 0: the training process loads (default: on CUDA up to 4, one less than the cores "
        "of a process; else 0). The result is the same with any number",
    )
    common.add_cohort(made)
    made.add_argument(
        "--pretrained_weights",
        "-pretrained_weights",
        type=common.path,
        metavar="CHECKPOINT",
        help="begin with the weights of this checkpoint (or fold's folder), with a new optimizer; same network, "
        "channels and labels",
    )
    made.add_argument(
        "--deterministic", action="store_true",
        help="bit-identical weights in every run on the same GPU; slower (on the CPU this always holds)",
    )  # fmt: skip
    made.add_argument(
        "--tensorboard",
        action="store_true",
        help="also write the curves to fold_N/tensorboard (needs the extra tensorboard)",
    )
    made.add_argument(
        "--report", action="store_true", help="also write report.html, a page to look at, into the model's folder"
    )
    common.add_device(made)
    group = made.add_mutually_exclusive_group()
    group.add_argument(
        "--c", action="store_const", dest="mode", const="continue", help="continue from the latest checkpoint"
    )
    group.add_argument(
        "--val", action="store_const", dest="mode", const="validate", help="only score, with the latest checkpoint"
    )
    group.add_argument(
        "--overwrite",
        action="store_const",
        dest="mode",
        const="overwrite",
        help="train the fold again and replace the earlier training",
    )
    made.set_defaults(mode="new")
    made.add_argument("--no_val", action="store_true", help="do not score the other cases afterwards")
    common.add_workspace(made)
    return made


def _main(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)

    from mre_lowshot.cli.console import Console
    from mre_lowshot.workflows.train import train

    result = train(
        options.dataset,
        options.level,
        options.fold,
        plans_name=options.p,
        iterations=options.iterations,
        seed=options.seed,
        mode=options.mode,
        score=not options.no_val,
        workers=options.workers,
        cohort=options.cohort,
        cohorts_file=options.cohorts,
        pretrained_weights=options.pretrained_weights,
        deterministic=options.deterministic,
        tensorboard=options.tensorboard,
        report=options.report,
        device=options.device,
        workspace=options.workspace,
        reporter=Console(),
    )
    return 1 if result.failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``mre_train``."""
    return common.run(_main, arguments)


if __name__ == "__main__":  # as torchrun -m starts it
    raise SystemExit(main())
