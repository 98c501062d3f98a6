"""The registration baseline: ANTs registers a fold's training scan to each test scan, and its labels are propagated.

ANTs runs as a separate program in its own environment:

    python3 -m venv ants-env
    ants-env/bin/pip install antspyx==0.6.3
    python -m benchmarks.against_ants path/to/Dataset004_Hippocampus --ants_python ants-env/bin/python \\
        --out comparison --cohort report

Folds are those of mre_train, and scores those of its validation (summary.json, summary.csv). Registration is SyN with
antspyx's default settings, on the first channel of each scan; labels are interpolated with genericLabel. With several
training scans (2shot, 3shot) each voxel gets the label that most of them propagate, in a tie that of the first scan.
A failed registration counts as an empty label map. Scans are raw. On CT, whose values are negative in air, ANTs is
better on preprocessed scans: `mre_experiment table8 -d DATASET --rows ants_1` (docs/RESULTS.md).

comparison/DATASET/propagated/TRAIN/TEST: label maps, each pair of scans once for all folds and levels, with the seconds
and the reason of a failure; delete a label map to register its pair again. comparison/DATASET/LEVEL/fold_N: the fold's
label maps and scores; LEVEL/results.json: the figures. ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS: threads (default: 1).
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.label_propagation import Ants
from benchmarks.subprocess_env import environment_python
from mre_lowshot.cli import common
from mre_lowshot.data.dataset import Dataset
from mre_lowshot.data.readers import COLOUR_ENDINGS
from mre_lowshot.data.splits import Split, make_splits, parse_level, read_cohort
from mre_lowshot.data.verification import raise_problems, verify
from mre_lowshot.data.volume import read_labels, write_volume
from mre_lowshot.errors import UserError
from mre_lowshot.evaluation.metrics import case_metrics
from mre_lowshot.evaluation.summary import CaseResult, format_table, summarise, write_summary
from mre_lowshot.experiments.baselines.ants_process import THREADS, AntsProcess, environment, majority_vote
from mre_lowshot.files import read_json, write_json
from mre_lowshot.workflows.experiment import labels_to_score

METRICS = ("Dice", "HD95", "HD95_diagonal")


def folds(
    raw: Dataset, level: str, cohort: Sequence[str] | None = None, wanted: Sequence[int] | None = None
) -> dict[int, Split]:
    """The folds that mre_train makes of this dataset, by number; ``wanted`` None takes the first three.

    Raises:
        UserError: as `splits.make_splits`; or there is no such fold, or it has no test scan.
    """
    made = make_splits(level, [case.name for case in raw.labelled], cohort=cohort)
    numbers = list(range(min(3, len(made)))) if wanted is None else list(dict.fromkeys(wanted))
    for number in numbers:
        if not 0 <= number < len(made):
            raise UserError(f"--folds {number}: level {level} has folds 0 to {len(made) - 1} here; choose among them")
        if not made[number]["val"]:
            raise UserError(
                f"--level {level}: fold {number} trains on all {len(made[number]['train'])} scans and leaves none to "
                "test on; choose a level with fewer"
            )
    return {number: made[number] for number in numbers}


def propagate_fold(raw: Dataset, split: Split, ants: Ants, folder: Path) -> dict[str, Any]:
    """Write the label maps of a fold's test scans to ``folder``, and score them.

    Returns:
        The summary, with ``seconds`` of each test scan (over its training scans) and ``failed_registrations`` (test
        scan to reasons).
    """
    cases = {case.name: case for case in raw.labelled}
    labels = {name: value for name, value in raw.labels.items() if value}
    results, seconds, failures = [], {}, {}
    for name in split["val"]:
        test, done = cases[name], {train: ants.propagate(cases[train], cases[name]) for train in split["train"]}
        seconds[name] = sum(record["seconds"] for record in done.values())
        if failed := [f"from {train}: {r['failed']}" for train, r in done.items() if r["failed"]]:
            failures[name] = failed
        before = "" if any(record["new"] for record in done.values()) else " (registered before)"
        print(f"  {name}: {seconds[name]:.1f} s{before}", flush=True)
        for reason in failures.get(name, ()):
            print(f"  {name}: registration failed {reason}; its label map counts as empty", flush=True)
        assert test.label
        truth, out = read_labels(test.label), folder / test.label.name
        files = [ants.file(cases[train], test) for train in split["train"]]
        found = majority_vote([read_labels(path, like=truth.geometry).array for path in files])
        write_volume(out, found, truth.geometry)
        metrics = case_metrics(truth.array, found, labels, truth.geometry.spacing, raw.ignore_label)
        results.append(CaseResult(name, metrics, str(out), str(test.label)))
    summary = summarise(results, labels, ignore_label=raw.ignore_label)
    summary |= {"seconds": seconds, "failed_registrations": failures, "train": split["train"]}
    write_summary(summary, folder)
    return summary


def means(summary: Mapping[str, Any], labels: Sequence[str]) -> dict[str, float]:
    """Each of `METRICS`: the mean over ``labels`` of their means over scans, without undefined values."""
    rows = [summary["mean"][str(summary["labels"][name])] for name in labels]
    return {metric: _mean([row[metric] for row in rows]) for metric in METRICS}


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return statistics.fmean(defined) if defined else math.nan


def _formatted(values: Mapping[str, float]) -> str:
    return f"Dice {values['Dice']:.4f}, HD95 {values['HD95']:.2f} mm (HD95* {values['HD95_diagonal']:.2f})"


def _check_settings(ants: Ants, folder: Path) -> None:
    """Record what the label maps in ``folder`` are made with.

    Raises:
        UserError: the label maps there were made with other settings.
    """
    settings, path = ants.process.settings(), folder / "settings.json"
    if path.is_file() and (found := read_json(path, "settings")) != settings:
        raise UserError(f"{path}: the label maps there were made with {found}, not with {settings}; give another --out")
    write_json(path, settings)
    text = ", ".join(f"{name} {value}" for name, value in settings.items())
    print(f"{text}; {environment()[THREADS]} thread(s)")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.against_ants", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("dataset", type=Path, help="folder of a dataset in nnU-Net's layout")
    parser.add_argument("--ants_python", type=Path, required=True, metavar="FILE",
                        help="Python executable of the environment with antspyx")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for all output")
    parser.add_argument("--level", default="1shot", help="1shot, 2shot, 3shot, ... (default: %(default)s)")
    parser.add_argument("--folds", nargs="+", type=int, metavar="N", help="folds (default: 0 1 2)")
    parser.add_argument("--cohort", metavar="NAME", help="train and test on these cases only, as mre_train --cohort")
    parser.add_argument(
        "--cohorts", type=Path, metavar="FILE", default=Path(__file__).with_name("dev_report_split.json"),
        help="JSON with the cohorts (default: benchmarks/dev_report_split.json)",
    )  # fmt: skip
    parser.add_argument("--labels", nargs="+", metavar="NAME",
                        help="print the mean over these labels too; 'paper': those that the paper scores")  # fmt: skip
    return parser


def _load(folder: Path) -> Dataset:
    """The dataset, verified as by mre_plan_and_preprocess, so that cases and folds are the same."""
    raw = Dataset.load(folder)
    raise_problems(raw, verify(raw, test_cases=False))
    if raw.file_ending in COLOUR_ENDINGS:
        raise UserError(
            f"{raw.name}/dataset.json: file_ending {raw.file_ending} is a 2D format; only volumes are registered here"
        )
    return raw


def _main(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    python = environment_python(options.ants_python, "--ants_python")
    level = parse_level(options.level)
    if "_" in level:
        raise UserError(f"--level {level}: names a cohort; use --level {level.partition('_')[0]} --cohort NAME")
    raw = _load(options.dataset)
    cohort = read_cohort(options.cohorts, raw.name, options.cohort) if options.cohort else None
    splits = folds(raw, level, cohort, options.folds)
    every = [name for name, value in raw.labels.items() if value]
    chosen = labels_to_score(options.labels, list(raw.labels))
    folder = options.out.resolve() / raw.name
    ants = Ants(AntsProcess(python, "--ants_python"), folder / "propagated")
    _check_settings(ants, folder)
    if len(raw.channel_names) > 1:
        print(f"{len(raw.channel_names)} channels; only the first, {raw.channel_names[0]}, is registered")
    scored = {f"all {len(every)} labels": every} | ({f"{len(chosen)} labels": chosen} if chosen else {})
    out = folder / (f"{level}_{options.cohort}" if options.cohort else level)
    rows: dict[int, dict[str, Any]] = {}
    for number, split in splits.items():
        print(f"fold {number}: from {', '.join(split['train'])}", flush=True)
        summary = propagate_fold(raw, split, ants, out / f"fold_{number}")
        print(format_table(summary))
        rows[number] = {
            "train": split["train"],
            "test_scans": len(split["val"]),
            "seconds_a_scan": statistics.fmean(summary["seconds"].values()),
            "failed_registrations": summary["failed_registrations"],
            **{name: means(summary, labels) for name, labels in scored.items()},
        }
        for name in scored:
            print(f"fold {number}, {name}: {_formatted(rows[number][name])}", flush=True)
    overall = {n: {m: _mean([row[n][m] for row in rows.values()]) for m in METRICS} for n in scored}
    write_json(out / "results.json", {"labels": scored, "folds": rows, "mean": overall})
    seconds = statistics.fmean(row["seconds_a_scan"] for row in rows.values())
    for name, values in overall.items():
        print(f"mean of {len(rows)} fold(s), {name}: {_formatted(values)}")
    print(f"{seconds:.1f} s a scan; written to {out}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the baseline; exit code 2 for wrong use, with one line on stderr."""
    return common.run(_main, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
