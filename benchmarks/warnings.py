"""How many held-out scans of a dataset get a warning of `inference.input_checks`, with the training ranges of one
labelled scan (or a few). No network is trained.

    python -m benchmarks.warnings RAW_DATASET... [--scans 1]

Scans of one dataset are of one kind, so every warning counts as a false one. With N labelled scans, each one (each run
of ``--scans`` in the order of names, the first following the last) gives the ranges in turn, and all others are
compared with it.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mre_lowshot.config import Plan
from mre_lowshot.data.dataset import Dataset
from mre_lowshot.data.vocabulary import is_ct
from mre_lowshot.data.volume import Volume, read_channels
from mre_lowshot.inference.input_checks import differences_from_training
from mre_lowshot.planners.facts import DatasetFacts
from mre_lowshot.planners.fingerprint import case_fingerprint, dataset_fingerprint
from mre_lowshot.planners.hardware import Device
from mre_lowshot.planners.planner import make_plan


@dataclass(frozen=True)
class WarningShare:
    """How many scans got a warning.

    Attributes:
        compared: pairs of training ranges and a held-out scan.
        warned: those with at least one warning.
        names: what differed, with the number of pairs.
        examples: one warning for each name.
    """

    compared: int
    warned: int
    names: Counter[str]
    examples: dict[str, str]

    @property
    def share(self) -> float:
        """Of the pairs, from 0 to 1."""
        return self.warned / self.compared if self.compared else 0.0


def warning_share(folder: Path, scans: int = 1) -> WarningShare:
    """Compare each labelled scan of a raw dataset with the training ranges of ``scans`` others.

    Raises:
        UserError: the dataset cannot be read.
    """
    dataset = Dataset.load(folder)
    ct = [is_ct(name) for name in dataset.channel_names]
    volumes: dict[str, Volume] = {case.name: read_channels(list(case.images)) for case in dataset.labelled}
    prints = {
        name: case_fingerprint(v.array, v.geometry.spacing, v.geometry.orientation, ct=ct)
        for name, v in volumes.items()
    }
    names, found = list(volumes), Counter[str]()
    examples: dict[str, str] = {}
    compared = warned = 0
    for index in range(len(names)):
        training = [names[(index + k) % len(names)] for k in range(scans)]
        plan = _plan(dataset, {name: prints[name] for name in training})
        for name in names:
            if name in training:
                continue
            differences = differences_from_training(volumes[name], plan)
            compared += 1
            warned += bool(differences)
            for difference in differences:
                found[difference.name] += 1
                examples.setdefault(difference.name, f"{name} with {', '.join(training)}: {difference}")
    return WarningShare(compared, warned, found, examples)


def _plan(dataset: Dataset, prints: dict[str, dict[str, object]]) -> Plan:
    facts = DatasetFacts(dataset.name, dataset.channel_names, dataset.labels, dataset.ignore_label, dataset.file_ending)
    return make_plan(facts, dataset_fingerprint(dataset.name, prints), device=Device("cpu", 8.0), recipe="default")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each dataset."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.warnings", description=__doc__)
    made.add_argument("datasets", nargs="+", type=Path, help="folders of raw datasets (imagesTr, labelsTr)")
    made.add_argument("--scans", type=int, default=1, help="labelled scans that give the ranges (default: 1)")
    options = made.parse_args(arguments)
    for folder in options.datasets:
        result = warning_share(folder, options.scans)
        print(f"{folder.name}: {result.warned} of {result.compared} held-out scans get a warning ({result.share:.1%})")
        for name, count in result.names.most_common():
            print(f"  {name}: {count}, for example {result.examples[name]}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
