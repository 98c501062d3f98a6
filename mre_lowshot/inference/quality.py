"""How far to trust a prediction, without a reference: which of many scans a person should look at first.

Two estimates, per class, between 0 and 1:

- ``agreement``: Dice between what the network alone says and the labels that registration brings from the atlas. The
  two err in different places, so where they agree both are likely right. Only where scans are registered.
- ``expected_dice``: the Dice that the predicted probabilities themselves expect, where nothing is registered. A network
  is surer than it is right on scans unlike its training scan, so the number is too high.

Both rank scans; neither is the true Dice (mre_train and mre_evaluate print the correlation with it).
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mre_lowshot.errors import UserError
from mre_lowshot.files import write_text
from mre_lowshot.inference.pooling import told

FILE = "quality.csv"
OWN_COLUMNS = ("case", "score", "basis")


@dataclass(frozen=True)
class Quality:
    """One scan's estimates: ``basis`` says which, ``score`` is their mean over classes, ``classes`` by label value."""

    basis: str
    score: float
    classes: Mapping[int, float]


def estimate(posterior: np.ndarray, brought: np.ndarray | None) -> Quality:
    """Estimate from the network's own class posterior (K, *size) and the labels ``brought`` by registration
    (K, *size), None where there was none. Where these say nothing (`pooling.told`), nothing is compared."""
    if brought is None or not (known := told(brought)).any():
        values, basis = expected_dice(posterior), "expected_dice"
    else:
        one, other = posterior.argmax(axis=0)[known], brought.argmax(axis=0)[known]
        values, basis = label_agreement(one, other, len(posterior)), "agreement"
    defined = [v for v in values.values() if not math.isnan(v)]
    return Quality(basis, float(np.mean(defined)) if defined else 0.0, values)


def expected_dice(probabilities: np.ndarray) -> dict[int, float]:
    """Of each foreground class, 2 sum_{i labelled k} p_k / (sum_i p_k + number labelled k); NaN where neither is."""
    labels = probabilities.argmax(axis=0)
    found = {}
    for k in range(1, len(probabilities)):
        mask = labels == k
        total = float(probabilities[k].sum(dtype=np.float64)) + np.count_nonzero(mask)
        inside = float(probabilities[k][mask].sum(dtype=np.float64))
        found[k] = 2 * inside / total if total >= 1 else math.nan
    return found


def label_agreement(one: np.ndarray, other: np.ndarray, classes: int) -> dict[int, float]:
    """Dice of each foreground class between two label maps; NaN where neither has it."""
    both = np.bincount(one[one == other].ravel(), minlength=classes)
    total = np.bincount(one.ravel(), minlength=classes) + np.bincount(other.ravel(), minlength=classes)
    return {k: float(2 * both[k] / total[k]) if total[k] else math.nan for k in range(1, classes)}


def write_qualities(
    folder: Path, qualities: Mapping[str, Quality], labels: Mapping[str, int], file: str = FILE
) -> Path:
    """Write ``folder/<file>``: a line a scan, the least trusted first. Lines of other scans that stand there
    (from an earlier run into the folder) are kept."""
    rows = read_rows(folder / file)
    numbers = {value: f"label_{label}" if label in OWN_COLUMNS else label for label, value in labels.items() if value}
    for case, quality in qualities.items():
        cells = {numbers[k]: "" if math.isnan(v) else f"{v:.4f}" for k, v in quality.classes.items()}
        rows[case] = {"case": case, "score": f"{quality.score:.4f}", "basis": quality.basis, **cells}
    text = io.StringIO()
    table = csv.DictWriter(text, [*OWN_COLUMNS, *numbers.values()], restval="", extrasaction="ignore",
                           lineterminator="\n")  # fmt: skip
    table.writeheader()
    table.writerows(sorted(rows.values(), key=lambda row: (float(row["score"]), row["case"])))
    write_text(folder / file, text.getvalue())
    return folder / file


def read_rows(path: Path) -> dict[str, dict[str, str]]:
    """The lines of a quality file by case; none where it is not there.

    Raises:
        UserError: it is no such file.
    """
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
        return {row["case"]: row for row in rows if float(row["score"]) >= 0}
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: is no list of qualities (columns case, score, basis ...); move it away") from None


def first_to_check(qualities: Mapping[str, Quality], most: int = 10) -> str:
    """The scans to look at first, in words."""
    worst = sorted(qualities.items(), key=lambda item: (item[1].score, item[0]))[:most]
    return ", ".join(f"{name} ({quality.score:.2f})" for name, quality in worst)
