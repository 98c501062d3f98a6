"""Fusion of network and warped labels: Dice of several ways, on the same scans in one run.

    python -m benchmarks.fusion MODEL nnUNet_raw/Dataset017_BTCV --cohort develop --ways 0.4,0 0,0.5

Each labelled scan of the cohort on which the model was not trained is preprocessed, registered and predicted once. Then
each way of fusing (docs/METHOD.md) is refined as in mre_predict, second registration included, and the label map is
compared with the reference on the scan's own grid. A way is W,E: recipe.refinement.atlas_weight and atlas_share; or
plan: as the model was planned. Printed are mean Dice of each, the mean difference to the first with its standard error
and 95 % interval, and the number of scans that are better. Without the network: `mre_experiment parts --rows
registration_refined`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from benchmarks import held_out
from mre_lowshot import Predictor
from mre_lowshot.cli import common
from mre_lowshot.config import RefinementConfig
from mre_lowshot.data.dataset import Case
from mre_lowshot.data.scan_input import read_case
from mre_lowshot.data.volume import read_labels
from mre_lowshot.errors import UserError

PLAN = "plan"


def way(text: str) -> str:
    """A way of fusing as it is named in the arguments."""
    if text != PLAN:
        _refinement(text, RefinementConfig())  # ValueError: no two numbers; UserError: out of range
    return text


def _refinement(text: str, config: RefinementConfig) -> RefinementConfig:
    if text == PLAN:
        return config
    weight, share = (float(number) for number in text.split(","))
    return replace(config, atlas_weight=weight, atlas_share=share)


def measure(predictor: Predictor, cases: Sequence[Case], ways: Sequence[str]) -> np.ndarray:
    """Dice (scans, ways); a line is printed for each scan.

    Raises:
        UserError: the model registers nothing.
    """
    planned, rows = predictor.settings, []
    for case in cases:
        assert case.label is not None  # a labelled case
        prepared = predictor.preprocess(read_case(case), name=case.name)
        output, truth = predictor.run_network(predictor.register(prepared)), read_labels(case.label).array
        if output.warped is None:
            raise UserError("the model registers nothing, so there is nothing to fuse; give one that was registered")
        row = []
        for name in ways:
            predictor.settings = replace(planned, config=_refinement(name, planned.config))
            row.append(held_out.dice(predictor, output, truth))
        rows.append(row)
        print(f"  {case.name}: Dice {', '.join(f'{value:.4f}' for value in row)}", flush=True)
    predictor.settings = planned
    return np.array(rows)


def report(ways: Sequence[str], dice: np.ndarray) -> None:
    """Print the Dice of each way, and its difference to the first."""
    for number, name in enumerate(ways):
        text = f"{name}: Dice {dice[:, number].mean():.4f}"
        if number:
            text += f"; minus that of the first: {held_out.difference_text(dice[:, number] - dice[:, 0])}"
        print(text)


def _main(arguments: Sequence[str] | None) -> int:
    parser = held_out.parser_of("fusion", __doc__)
    parser.add_argument("--ways", type=way, nargs="+", default=["0.4,0", "0,0.5"], metavar="W,E",
                        help="atlas_weight,atlas_share, or plan (default: 0.4,0 0,0.5)")  # fmt: skip
    options = parser.parse_args(arguments)
    predictor, cases = held_out.load(options)
    print(f"fused by {', '.join(options.ways)} (atlas_weight,atlas_share)", flush=True)
    report(options.ways, measure(predictor, cases, options.ways))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; exit code 2 for wrong use, with one line on stderr."""
    return common.run(_main, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
