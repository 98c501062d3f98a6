"""Options that several measurements share."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_prepared(parser: argparse.ArgumentParser, *, cohort: str | None) -> None:
    """Add the preprocessed dataset, its plan and the cohort of its cases; ``cohort``: the default, None for all."""
    parser.add_argument("prepared", type=Path, help="preprocessed/DatasetXXX_Name")
    parser.add_argument("-p", dest="plans", default="MREPlans", metavar="NAME", help="plan (default: %(default)s)")
    parser.add_argument("--cohort", default=cohort, metavar="NAME", help=f"cases to use (default: {cohort or 'all'})")
    parser.add_argument(
        "--cohorts", type=Path, metavar="FILE", default=Path(__file__).with_name("dev_report_split.json"),
        help="JSON with the cohorts (default: benchmarks/dev_report_split.json)",
    )  # fmt: skip
