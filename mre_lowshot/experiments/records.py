"""Tables as data: a table has rows, a row is a training, and figures are what the paper prints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mre_lowshot.config.json import suggest
from mre_lowshot.errors import UserError
from mre_lowshot.experiments.baselines.registry import baseline

Base = Literal["small", "paper"]
Layout = Literal["rows", "columns", "labels", "efficiency", "ultrasound"]
SMALL_OF = {"paper": "paper_small", "paper_aug": "paper_aug_small"}  # recipes with a small variant
MEAN, MEAN_EXCL = "Mean", "Mean excl."
_VALUE = re.compile(r"\*?([\d.]+) \(([\d.]+|-)\)|(-)(?: |$)")
NAN = float("nan")


@dataclass(frozen=True)
class Figure:
    """Figures of the paper: means and standard deviations of Dice (%) and HD95 (mm) as printed."""

    dataset: str
    dice: float
    dice_sd: float
    hd95: float
    hd95_sd: float
    level: str = "1shot"
    memory: str = ""  # of the GPU, as printed
    time: str = ""  # of training, as printed
    dice_by: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # label, or "Mean excl." -> mean, SD
    hd95_by: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One row of a table: a training that differs from the base recipe in a few fields."""

    name: str
    label: str  # printed description
    changes: Mapping[str, str] = field(default_factory=dict)  # plan fields and values, as for --set
    scaled: Mapping[str, float] = field(default_factory=dict)  # factors of planned numbers, as N_e in the small network
    recipe: str = "paper"
    paper: tuple[Figure, ...] = ()  # the paper's results of the row
    base: Base | None = None  # the only base with this row; None: both
    baseline: str = ""  # the method of the literature that the row runs (baselines.registry), which has its own recipe
    level: str = ""  # the row's own number of training scans, where the table has several; empty: that of --level
    cohort_level: str = ""  # instead of ``level`` where a cohort is named
    group: str = ""  # heading above the row and those that follow it with the same

    def recipe_at(self, base: Base) -> str:
        """The recipe of the row at the given base."""
        if self.baseline:
            method = baseline(self.baseline)
            if base == "small":
                return SMALL_OF.get(method.recipe, method.recipe)
            of_paper = {small: paper for paper, small in SMALL_OF.items()}
            return method.paper_recipe or of_paper.get(method.recipe, method.recipe)
        return SMALL_OF.get(self.recipe, self.recipe) if base == "small" else self.recipe

    def same_as(self, other: Row) -> bool:
        """Whether the two rows define the same training, regardless of their names and levels."""
        one, two = ((r.baseline, r.recipe, dict(r.changes), dict(r.scaled)) for r in (self, other))
        return one == two


@dataclass(frozen=True)
class Reference:
    """A line of figures of another work that the paper prints, without a row of ours."""

    label: str
    dice_by: Mapping[str, tuple[float, float]]
    hd95_by: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A named table.

    Attributes:
        name: of the command.
        title: one line.
        source: number of the table in the paper, or empty.
        reference: name of the row with which the others are compared.
        rows: the trainings.
        layout: of the table in the paper: a line for each row; a column for each row (III, IV, V); a column for each
            label (VII, VIII, XI); training and inference time (IX); metrics of ultrasound (XII). Empty: only the plain
            table of results.
        datasets: of the paper's figures, in its order.
        excluded: names of the label that "Mean excl." leaves out, as `paper_datasets.plain` gives them; empty: no such
            column.
        costs: print memory and time of training beside the scores.
        marks: columns of parts, which a row has unless it makes these changes.
        references: lines of other works, below the rows.
        note: printed below the table.
    """

    name: str
    title: str
    source: str
    reference: str
    rows: tuple[Row, ...]
    layout: Layout | Literal[""] = ""
    datasets: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    costs: bool = False
    marks: tuple[tuple[str, Mapping[str, str]], ...] = ()
    references: tuple[Reference, ...] = ()
    note: str = ""

    def row(self, name: str) -> Row:
        """The row named ``name``.

        Raises:
            UserError: the table has no such row; the message suggests a similar name.
        """
        found = {row.name: row for row in self.rows}
        if name not in found:
            raise UserError(f"--rows: table {self.name} has no row {name!r}; {suggest(name, found)}")
        return found[name]

    @property
    def shows_more(self) -> bool:
        """Whether the paper's layout shows what the plain table of results does not: single labels, time, memory, or
        the metrics of ultrasound."""
        return self.costs or self.layout in ("labels", "efficiency", "ultrasound")

    def rows_at(self, base: Base) -> tuple[Row, ...]:
        """The rows that exist at the given base."""
        return tuple(row for row in self.rows if row.base in (None, base))


def printed(columns: tuple[str, ...], line: str) -> dict[str, tuple[float, float]]:
    """A line of the paper, ``57.06 (3.18) *71.58 (1.29) - 92 (-)``, as means and standard deviations by column. A
    column with ``-`` is left out; a standard deviation that is not given is NaN.

    Raises:
        ValueError: the line has another number of values.
    """
    values = [(m[1], m[2]) for m in _VALUE.finditer(line)]
    if len(values) != len(columns):
        raise ValueError(f"{len(values)} values for {len(columns)} columns: {line}")
    return {
        column: (float(mean), NAN if sd == "-" else float(sd))
        for column, (mean, sd) in zip(columns, values, strict=True)
        if mean is not None
    }


def figure_of(
    dataset: str, columns: tuple[str, ...], dice: str, hd95: str, *, level: str = "1shot", mean: str = MEAN
) -> Figure:
    """The figure of two lines of the paper with a column ``mean``."""
    one, other = printed(columns, dice), printed(columns, hd95)
    return Figure(dataset, *one.pop(mean), *other.pop(mean), level=level, dice_by=one, hd95_by=other)
