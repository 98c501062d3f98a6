"""Whether the scan that `mre_suggest` names is a better second scan than a random one, measured by registration alone.

    mre_plan_and_preprocess -d Hippocampus
    python -m benchmarks.suggestion mre_data/preprocessed/Dataset004_Hippocampus --cohort develop --out measured

A cheap measure without a network: labels are propagated by the plan's registration, from one scan (the first) and from
two, fused as in prediction. For each first scan, each other scan is taken as the second, and the others are scored by
mean Dice on the plan's grid. Compared are the second scans that the suggestion ranks first, with and without the
quality of predictions (in place of the quality score stands the Dice that the first scan alone reaches, which is better
than any score), the least similar one, the one with the lowest Dice, the mean of all (a random one), and the best one.
The gain over the first scan alone is taken on the same scans, because a second scan that is an outlier leaves the test
set. All images are compared in the frame of the cohort's first scan; mre_suggest takes the first annotated one.
OUT/pairs.jsonl holds a line for each test scan; a later run continues.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.arguments import add_prepared
from benchmarks.pretrained import add_line, read_lines
from benchmarks.registration import mean_dice, warp_labels
from mre_lowshot.atlas.alignment import align
from mre_lowshot.atlas.atlas import Atlas
from mre_lowshot.atlas.suggestion import Comparison, rank, similarities
from mre_lowshot.cli import common
from mre_lowshot.config import Plan
from mre_lowshot.config.plan_files import load_plan
from mre_lowshot.config.recipe import Registration
from mre_lowshot.data.splits import read_cohort
from mre_lowshot.errors import UserError
from mre_lowshot.preprocessing.prepare import check_prepared
from mre_lowshot.preprocessing.store import PreparedCase, load_case

RESULTS = "pairs.jsonl"
ROWS = ("suggested", "suggested, with quality", "least similar", "lowest Dice", "random (mean)", "best")


@dataclass(frozen=True)
class Propagated:
    """Dice of each scan as target, from one and from two of the others.

    Attributes:
        names: of the scans.
        one: (target, first); NaN where they are the same.
        two: (target, first, second), symmetric.
    """

    names: Sequence[str]
    one: np.ndarray
    two: np.ndarray

    def gain(self, first: int, second: int) -> tuple[float, float]:
        """Mean Dice of the remaining scans from both, and its difference from the first alone."""
        rest = [t for t in range(len(self.names)) if t not in (first, second)]
        both = self.two[rest, first, second]
        return float(both.mean()), float((both - self.one[rest, first]).mean())


def with_registration(plan: Plan, kind: Registration) -> Plan:
    """``plan`` with another kind of registration."""
    atlas = replace(plan.recipe.atlas, registration=kind)
    return replace(plan, recipe=replace(plan.recipe, atlas=atlas))


def measure(target: PreparedCase, others: Sequence[PreparedCase], plan: Plan) -> dict[str, Any]:
    """Dice of the labels propagated to a scan from each other one, and from each two of them."""
    begun, truth, classes = time.perf_counter(), target.needed_label(), plan.network.classes
    atlases = {c.name: Atlas(c.image, c.needed_label(), c.transform.spacing) for c in others}
    maps = {}
    for name, atlas in atlases.items():
        found = align((atlas,), target.image, target.transform.spacing, plan=plan)
        if found is None:
            raise UserError(f"plan {plan.plans_name} registers nothing (recipe.atlas.registration); use another plan")
        maps[name] = found.astype(np.float32)
    one = {n: mean_dice(warp_labels([atlases[n]], maps[n], classes), truth, classes) for n in maps}
    two = {}
    for a, b in combinations(maps, 2):
        fused = warp_labels([atlases[a], atlases[b]], np.concatenate([maps[a], maps[b]]), classes, target.image)
        two[f"{a}|{b}"] = round(mean_dice(fused, truth, classes), 5)
    seconds = round(time.perf_counter() - begun, 1)
    return {"target": target.name, "one": {n: round(v, 5) for n, v in one.items()}, "two": two, "seconds": seconds}


def table_of(lines: Sequence[dict[str, Any]], names: Sequence[str]) -> Propagated:
    """The Dice of all lines as arrays."""
    index, count = {name: i for i, name in enumerate(names)}, len(names)
    one, two = np.full((count, count), np.nan), np.full((count, count, count), np.nan)
    for line in lines:
        if line["target"] not in index:
            continue
        t = index[line["target"]]
        for name in index.keys() & line["one"].keys():
            one[t, index[name]] = line["one"][name]
        for a, b in combinations(names, 2):
            dice = line["two"].get(f"{a}|{b}", line["two"].get(f"{b}|{a}"))
            if dice is not None:
                two[t, index[a], index[b]] = two[t, index[b], index[a]] = dice
    return Propagated(names, one, two)


def compare(table: Propagated, similar: np.ndarray) -> dict[str, np.ndarray]:
    """For each row of `ROWS`: (first scans, 2), the mean Dice of the remaining scans and its gain.

    Args:
        table: Dice.
        similar: similarity of the scans to each other, (N, N).
    """
    found: dict[str, list[tuple[float, float]]] = {row: [] for row in ROWS}
    for first in range(len(table.names)):
        rest = np.array([n for n in range(len(table.names)) if n != first])
        labelled, among = similar[rest][:, [first]], similar[np.ix_(rest, rest)]
        weights = 1 - table.one[rest, first]
        chosen = {
            ROWS[0]: rest[rank(labelled, among)[0].number],
            ROWS[1]: rest[rank(labelled, among, weights)[0].number],
            ROWS[2]: rest[labelled[:, 0].argmin()],
            ROWS[3]: rest[weights.argmax()],
        }
        for row, second in chosen.items():
            found[row].append(table.gain(first, int(second)))
        each = np.array([table.gain(first, int(second)) for second in rest])
        found[ROWS[4]].append((float(each[:, 0].mean()), float(each[:, 1].mean())))
        found[ROWS[5]].append((float(each[each[:, 1].argmax(), 0]), float(each[:, 1].max())))
    return {row: np.array(values) for row, values in found.items()}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.suggestion", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add_prepared(parser, cohort=None)
    parser.add_argument("--registration", choices=("affine", "deformable"), help="of the labels (default: the plan's)")
    parser.add_argument("--most", type=int, metavar="N", help="only the first N scans")
    parser.add_argument("--out", type=Path, required=True, help="folder for results; a later run continues")
    return parser


def _main(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    plan = load_plan(options.prepared / f"{options.plans}.json")
    names = check_prepared(plan, options.prepared)
    if options.cohort:
        names = read_cohort(options.cohorts, plan.dataset_name, options.cohort)
    names = names[: options.most]
    if len(names) < 4 or plan.network.axes != 3:
        raise UserError(f"{options.prepared}: {len(names)} scans of {plan.network.axes} axes; four volumes are needed")
    kind = options.registration or plan.recipe.atlas.registration
    cases = {name: load_case(options.prepared / options.plans, name, plan) for name in names}
    path = options.out / RESULTS
    for name in names:
        if any(line["target"] == name for line in read_lines(path)):
            continue
        others = [case for other, case in cases.items() if other != name]
        line = {"registration": kind, **measure(cases[name], others, with_registration(plan, kind))}
        add_line(path, line)
        print(f"{name}: Dice from one scan {np.mean([*line['one'].values()]):.4f}, from two "
              f"{np.mean([*line['two'].values()]):.4f}, {line['seconds']:.0f} s", flush=True)  # fmt: skip
    frame = Comparison(cases[names[0]].image, cases[names[0]].transform.spacing)
    begun = time.perf_counter()
    features = [frame.features(case.image, case.transform.spacing) for case in cases.values()]
    print(f"comparison of {len(names)} scans: {time.perf_counter() - begun:.1f} s")
    table = table_of(read_lines(path), names)
    rows = compare(table, similarities(features, features))
    random = rows[ROWS[4]][:, 1]
    alone = np.nanmean(table.one)
    print(f"mean over {len(names)} first scans; from the first alone: Dice {alone:.4f}")
    for row, values in rows.items():
        different = values[:, 1] - random
        spread = different.std(ddof=1) / np.sqrt(len(different))
        print(f"  second scan {row}: Dice {values[:, 0].mean():.4f}, gain {values[:, 1].mean():+.4f}; gain minus that "
              f"of a random one {different.mean():+.4f} (standard error {spread:.4f}), above it for "
              f"{int((different > 0).sum())} of {len(different)} first scans")  # fmt: skip
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the measurement; exit code 2 for wrong use, with one line on stderr."""
    return common.run(_main, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
