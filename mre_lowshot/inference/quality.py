"""Quality of a prediction estimated without a reference: which of many scans a person should check first.

Two estimates per class, between 0 and 1:

- ``agreement``: Dice between the network's own labels and the labels warped from the atlases. Their errors lie in
  different positions, so where they agree both are probably right. Only where scans are registered.
- ``expected_dice``: the expected Dice of the predicted probabilities, where nothing is registered. It is too high, as a
  network is overconfident on scans that differ from its training scan.

Both rank scans; neither is the true Dice (mre_train and mre_evaluate print the correlation with it).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mre_lowshot.evaluation.agreement import agreement_of, expected_dice, most_probable
from mre_lowshot.files import printable
from mre_lowshot.inference.tables import Row, read_table, write_table
from mre_lowshot.refinement.fusion import is_informative
from mre_lowshot.transfers import Array, as_tensor, to_host

FILE = "quality.csv"
OWN_COLUMNS = ("case", "score", "basis", "warnings")


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


def estimate_quality(posterior: Array, warped: Array | None, lesions: Sequence[int] = ()) -> Quality:
    """Estimate from the network's posterior (K, *size) and the labels warped from the atlases (K, *size) on the same
    device, None where nothing was registered. Voxels where the warped labels carry no information are left out, and so
    are the classes ``lesions`` (`Plan.lesions`) from an agreement: the network's most probable other class is
    compared."""
    own, classes = as_tensor(posterior), len(posterior)
    known = None if warped is None else is_informative(warped)
    if warped is None or known is None or not bool(to_host(known.any())[0]):
        values, basis = expected_dice(own), "expected_dice"
    else:
        pair = [own, as_tensor(warped)]
        if len(lesions):
            organs = torch.tensor([k for k in range(classes) if k not in lesions]).to(own.device)
            one, other = (organs[most_probable(shares[organs])] for shares in pair)
        else:
            one, other = (most_probable(shares) for shares in pair)
        values, basis = agreement_of(one, other, known, classes), "agreement"
    defined = [v for v in values.values() if not math.isnan(v)]
    return Quality(basis, float(np.mean(defined)) if defined else 0.0, values)


def write_qualities(
    folder: Path,
    qualities: Mapping[str, Quality],
    labels: Mapping[str, int],
    file: str = FILE,
    *,
    warnings: Mapping[str, Sequence[str]] | None = None,
) -> Path:
    """Write ``folder/<file>``: one row per scan, the lowest score first. Rows of other scans are kept, and so are the
    columns and rows that someone has added.

    Args:
        folder: of the label maps.
        qualities: by case.
        labels: name to value.
        file: name of the table.
        warnings: of each case; joined in the column ``warnings``. None: no such column is written.

    Raises:
        UserError: the file is another kind of table, or cannot be written.
    """
    columns, rows = _read_table(folder / file)
    numbers = {value: f"label_{label}" if label in OWN_COLUMNS else label for label, value in labels.items() if value}
    own = ["case", "score", "basis", *numbers.values(), *(["warnings"] if warnings is not None else [])]
    columns = [*own, *(name for name in columns if name not in own)]
    for case, quality in qualities.items():
        name = printable(case)
        cells = {numbers[k]: "" if math.isnan(v) else f"{v:.4f}" for k, v in quality.classes.items()}
        cells |= {"case": name, "score": f"{quality.score:.4f}", "basis": quality.basis}
        if warnings is not None:
            cells["warnings"] = "; ".join(warnings.get(case, ()))
        present = [row for row in rows if row.get("case") == name]
        for row in present:
            row |= cells
        if not present:
            rows.append(cells)
    ranked = sorted(rows, key=lambda row: _score(row) if _is_rated(row) else (math.inf, ""))
    write_table(folder / file, columns, ranked)
    return folder / file


def _score(row: Mapping[str, str]) -> tuple[float, str]:
    return float(row["score"]), row["case"]


def read_rows(path: Path) -> dict[str, dict[str, str]]:
    """The rows of a quality file that have a case and a score, by case; none where there is no file.

    Raises:
        UserError: it is another kind of file.
    """
    return {row["case"]: row for row in _read_table(path)[1] if _is_rated(row)}


def _read_table(path: Path) -> tuple[list[str], list[Row]]:
    return read_table(path, ("case", "score"), "qualities")


def _is_rated(row: Mapping[str, str]) -> bool:
    try:
        return bool(row.get("case")) and 0 <= float(row.get("score", "")) < math.inf
    except ValueError:
        return False


def first_to_check(qualities: Mapping[str, Quality], most: int = 10) -> str:
    """The scans with the lowest scores, with these scores, as text."""
    worst = sorted(qualities.items(), key=lambda item: (item[1].score, item[0]))[:most]
    return ", ".join(f"{name} ({quality.score:.2f})" for name, quality in worst)
