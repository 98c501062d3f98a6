"""Quality of a prediction estimated without a reference: which of many scans a person should check first.

Two estimates per class, between 0 and 1:

- ``agreement``: Dice between the network's own labels and the labels warped from the atlases. Their errors lie in
  different positions, so where they agree both are probably right. Only where scans are registered.
- ``expected_dice``: the expected Dice of the predicted probabilities, where nothing is registered. It is too high, as a
  network is overconfident on scans that differ from its training scan.

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
from mre_lowshot.evaluation.agreement import expected_dice, label_agreement
from mre_lowshot.files import write_text
from mre_lowshot.refinement.fusion import is_informative

FILE = "quality.csv"
OWN_COLUMNS = ("case", "score", "basis")


@dataclass(frozen=True)
class Quality:
    """Estimates of one scan.

    Attributes:
        basis: ``agreement`` or ``expected_dice``.
        score: their mean over classes; 0 where none is defined.
        classes: by label value; NaN where undefined.
    """

    basis: str
    score: float
    classes: Mapping[int, float]

    @property
    def is_defined(self) -> bool:
        """Whether any class has an estimate."""
        return not all(math.isnan(value) for value in self.classes.values())


def estimate_quality(posterior: np.ndarray, warped: np.ndarray | None) -> Quality:
    """Estimate from the network's posterior (K, *size) and the labels warped from the atlases (K, *size), None where
    nothing was registered. Voxels where the warped labels carry no information are left out."""
    if warped is None or not (known := is_informative(warped)).any():
        values, basis = expected_dice(posterior), "expected_dice"
    else:
        one, other = posterior.argmax(axis=0)[known], warped.argmax(axis=0)[known]
        values, basis = label_agreement(one, other, len(posterior)), "agreement"
    defined = [v for v in values.values() if not math.isnan(v)]
    return Quality(basis, float(np.mean(defined)) if defined else 0.0, values)


def write_qualities(
    folder: Path, qualities: Mapping[str, Quality], labels: Mapping[str, int], file: str = FILE
) -> Path:
    """Write ``folder/<file>``: one row per scan, the lowest score first. Rows of other scans, from an earlier run into
    the folder, are kept. ``labels`` is name to value."""
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
    """The rows of a quality file by case; none where there is no file.

    Raises:
        UserError: it is another kind of file.
    """
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
        return {row["case"]: row for row in rows if float(row["score"]) >= 0}
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: is not a table of qualities (columns case, score, basis ...); move it away") from None


def first_to_check(qualities: Mapping[str, Quality], most: int = 10) -> str:
    """The scans with the lowest scores, with these scores, as text."""
    worst = sorted(qualities.items(), key=lambda item: (item[1].score, item[0]))[:most]
    return ", ".join(f"{name} ({quality.score:.2f})" for name, quality in worst)
