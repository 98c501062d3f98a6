"""``mre_experiment TABLE -d DATASET``: the paper's tables by name, on any datasets, resumable."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mre_lowshot.cli import common
from mre_lowshot.errors import UserError

EPILOG = """Tables: table2 (or II) ablation, table3 N_e, table4 M, table5 mixing, table6 distance, table7 and table8
comparison label by label, table9 time, table10 sSE, table11 DataAug, table12 ultrasound; baselines, readings,
candidates, parts. Figures: figure3, figure4 (segmentations side by side), figure5 (t-SNE of embeddings); their rows are
trained on fold 0, then drawn.
Each row has its own plan (preprocessed/DatasetXXX_Name/table2_a.json; the full method is table2_e in every table), and
is trained and scored as by mre_train. Rows and folds that are complete are skipped; an interrupted fold is continued. A
row may run a method of the literature instead of a recipe (--list shows which; docs/BASELINES.md). If its package is
missing, the row is left out.

--base small: the paper's method (recipe paper_small) with the network that is planned for a CPU.
--base paper: the paper's recipe at the paper's size; needs a GPU.
--quick: a short version of a table, meant to take about an hour on two cores; every output is marked.
Table candidates: the recipe default with parts removed, and candidates beyond it; table parts: what registration,
refinement, the network and its parts contribute. Choose candidates on the development set (--cohort develop --cohorts
benchmarks/dev_report_split.json) and report figures of the report set; --iterations 300 is enough to screen candidates.
Several datasets after -d give one table for each dataset, and an overview.

Writes results/DatasetXXX_Name/experiments/TABLE__LEVEL_BASE/: results.json, results.csv, pairs.csv (one line for each
combination of row, training scan and test scan), table.txt, and table.md, table.tex, table.csv in the paper's layout.

Examples:
  mre_experiment --list
  mre_experiment table2 -d Hippocampus --folds 0 1 2
  mre_experiment table2 -d BTCV --folds 0 --rows b e f --labels paper
  mre_experiment table2 -d Hippocampus --print --format markdown
  mre_experiment table10 -d Hippocampus --quick
  mre_experiment parts -d Hippocampus --seeds 0 1 --cohort develop --cohorts benchmarks/dev_report_split.json
  mre_experiment parts -d Hippocampus --rows registration default unet_prior --panels
  mre_experiment figure5 -d Hippocampus

Exit code: 0 done, 1 some scans failed (named), a row was left out or a training diverged, 2 wrong use, 130 interrupted
(run it again)."""


def _parser() -> argparse.ArgumentParser:
    made = common.parser(
        "mre_experiment", "Repeat the paper's tables and figures by name; each row of a table is a plan.", EPILOG
    )
    made.add_argument(
        "table",
        nargs="?",
        help="table2 ... table12, baselines, readings, candidates, parts, figure3 ... (--list shows all)",
    )
    made.add_argument("-d", nargs="+", metavar="DATASET", help="id (17), name (BTCV), full name or path; one or more")
    made.add_argument("--rows", nargs="+", metavar="ROW", help="only these rows (default: all)")
    made.add_argument(
        "--folds", nargs="+", type=int, metavar="N", help="folds (default: 0 1 2; --print: all that exist)"
    )
    made.add_argument(
        "--level",
        default="1shot",
        help="1shot, 2shot, 3shot, ...; rows with a level of their own keep it (default: %(default)s)",
    )
    common.add_cohort(made)
    made.add_argument(
        "--base", choices=("small", "paper"), default="small", help="size of the network (default: %(default)s)"
    )
    made.add_argument(
        "--iterations",
        type=int,
        metavar="N",
        help="number of iterations for all rows; they get separate plans (table2_a_N)",
    )
    made.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", dest="changes",
        help="change fields of the plan in all rows, as in preprocessing.spacing=[6,6,6]; a row's own fields are "
        "changed after these. The rows get separate plans, and the table lists the fields",
    )  # fmt: skip
    seeds = made.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=int, default=0, help="seed of weights and patches (default: %(default)s)")
    seeds.add_argument(
        "--seeds", nargs="+", type=int, metavar="N", help="train each row and fold with all of these seeds"
    )
    made.add_argument(
        "--workers",
        type=int,
        help="data-loading processes; 0: the training process loads (default: on CUDA up to 4, one less than the cores "
        "of a process; else 0). The result is the same with any number",
    )
    made.add_argument(
        "--quick",
        action="store_true",
        help="a short version, meant to take about an hour on two cores: at most 150 iterations, fold 0, at most three "
        "test scans; marked in all outputs",
    )
    made.add_argument(
        "--format",
        nargs="+",
        choices=("text", "markdown", "latex", "csv", "json"),
        default=(),
        help="print the table in the paper's layout in these formats (it is saved in all of them)",
    )
    made.add_argument(
        "--panels", action="store_true", help="draw the segmentations of the rows on the same slices (panels.png)"
    )
    made.add_argument("--reference", metavar="ROW", help="row to compare the others with (default: the table's)")
    made.add_argument(
        "--statistics", choices=("default", "paper"), default="default",
        help="default: sign-flip permutation and Holm; paper: Bonferroni as in the paper, with the paired t test "
        "(the paper names no test); results.json has both",
    )  # fmt: skip
    made.add_argument(
        "--labels", nargs="+", metavar="NAME",
        help="labels to score (default: all); 'paper': those that the paper scores in its two datasets",
    )  # fmt: skip
    made.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="train the folds on the workers of a dask scheduler: its address (tcp://host:8786) or scheduler file; "
        "extra cluster, see docs/CLUSTER.md",
    )
    made.add_argument("--list", action="store_true", help="show all tables and rows, and exit")
    made.add_argument("--print", action="store_true", dest="only_print", help="train nothing, show what exists")
    common.add_device(made)
    common.add_workspace(made)
    return made


def _main(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    if options.list:
        from mre_lowshot.experiments.text import listing

        print(listing())
        return 0
    if not options.table or not options.d:
        raise UserError("name a table and a dataset, as in: mre_experiment table2 -d Hippocampus (--list shows tables)")

    from mre_lowshot.cli.console import Console
    from mre_lowshot.cli.plan import parse_changes
    from mre_lowshot.workflows.experiment import experiment

    result = experiment(
        options.table,
        options.d,
        rows=options.rows,
        folds=options.folds,
        level=options.level,
        base=options.base,
        iterations=options.iterations,
        seed=options.seed,
        seeds=options.seeds,
        quick=options.quick,
        changes=parse_changes(options.changes),
        formats=options.format,
        panels=options.panels,
        reference=options.reference,
        statistics=options.statistics,
        labels=options.labels,
        only_print=options.only_print,
        workers=options.workers,
        cohort=options.cohort,
        cohorts_file=options.cohorts,
        device=options.device,
        workspace=options.workspace,
        scheduler=options.scheduler,
        reporter=Console(),
    )
    return 1 if result.failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``mre_experiment``."""
    return common.run(_main, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
