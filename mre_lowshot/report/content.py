"""What a report page shows, as records without any HTML: `report.page` writes them, the readers in `report` fill them.

Numbers that are undefined or unknown are NaN. Names and sentences come from files; the page escapes them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from mre_lowshot.data.pixel_size import Unit, common_unit

METRICS = ("Dice", "NSD", "HD95")  # of a summary, as far as it holds them
TOLERANCE = "NSD_tolerance"  # mm or pixels, beside them


@dataclass(frozen=True)
class Label:
    """A structure; ``colour`` is ``#rrggbb``."""

    value: int
    name: str
    colour: str


@dataclass(frozen=True)
class Fact:
    """A headline figure, with what it means."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Images:
    """Reduced volumes of a case for display, axes (z, y, x) in LPS.

    Attributes:
        shape: voxels.
        spacing: mm.
        full_shape: voxels of the scan's file.
        scan: JPEG of all axial slices, ``columns`` to a row in tiles of ``tile`` (height, width) pixels; empty where
            the scan is missing.
        codes, values: grey values of the JPEG and the intensities that they stand for, linear between them.
        window: intensities shown as black and white at first.
        unit: of the intensities: ``HU`` or empty.
        prediction, reference: number of the label in the report's list, from 1, as bytes (C order), zlib-compressed;
            255: a value that is not in the list; empty where there is none.
        start: voxel that the planes cut at first.
        directions: whether anatomical directions and mm are known (not in a photograph or an ultrasound frame).
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    full_shape: tuple[int, int, int]
    scan: bytes
    tile: tuple[int, int]
    columns: int
    codes: tuple[int, ...]
    values: tuple[float, ...]
    window: tuple[float, float]
    unit: str
    prediction: bytes
    reference: bytes
    start: tuple[int, int, int]
    directions: bool


@dataclass(frozen=True)
class LabelScore:
    """A structure in one case.

    Attributes:
        value: of the label.
        quality: estimate without reference.
        volume_ml: predicted.
        reference_ml: in the reference.
        metrics: by name, as far as there is a reference.
    """

    value: int
    quality: float = math.nan
    volume_ml: float = math.nan
    reference_ml: float = math.nan
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class CaseContent:
    """A scan.

    Attributes:
        name: of the case.
        group: the fold or row that it was predicted by; empty where there is one only.
        failed: why there is no label map; empty otherwise.
        quality: score estimated without reference.
        labels: of each structure.
        findings: what is wrong and where, one sentence each, the most important first.
        warnings: of the prediction.
        missing: what cannot be shown, with the reason.
        seconds: of each step.
        images: None where nothing can be shown.
        unit: of distances; ``px`` where the label map's file states no pixel size. Areas are then in 1000 pixels, not
            in ml.
    """

    name: str
    group: str = ""
    failed: str = ""
    quality: float = math.nan
    labels: tuple[LabelScore, ...] = ()
    findings: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    images: Images | None = None
    unit: Unit = "mm"

    def mean(self, metric: str) -> float:
        """The mean over labels with a defined value."""
        return mean_of(score.metrics.get(metric, math.nan) for score in self.labels)

    @property
    def order(self) -> tuple[float, float, str]:
        """Sorts the worst first: failed, then by Dice, or by quality score where there is no reference."""
        dice = self.mean("Dice")
        value = self.quality if math.isnan(dice) else dice
        return (0.0 if self.failed else 1.0, 2.0 if math.isnan(value) else value, f"{self.name} {self.group}")


@dataclass(frozen=True)
class Training:
    """Curves of one fold; the lists have one value an iteration."""

    name: str
    cases: tuple[str, ...]  # that it was trained on
    iterations: tuple[int, ...]
    loss: tuple[float, ...]
    dice: tuple[float, ...]
    learning_rate: tuple[float, ...]
    seconds: float  # of all iterations together
    status: str  # of the last run


@dataclass(frozen=True)
class Decision:
    """A decision of the plan; ``value`` is empty where it cannot be named in one line."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True)
class Calibration:
    """Confidence, accuracy and number of voxels of each bin, and the expected calibration error."""

    name: str
    ece: float
    bins: tuple[tuple[float, float, int], ...]


@dataclass(frozen=True)
class Row:
    """A row of an experiment's table."""

    name: str
    label: str
    dice: tuple[float, ...]  # one value a run
    hd95: tuple[float, ...]
    nsd: tuple[float, ...]
    difference: str  # to the reference row, with interval and p
    is_reference: bool = False


@dataclass(frozen=True)
class TableLine:
    """A line of a table: a heading where it has one cell; ``printed`` where the figures are the paper's."""

    cells: tuple[str, ...]
    printed: bool = False
    best: tuple[int, ...] = ()  # numbers of the cells set in bold


@dataclass(frozen=True)
class PaperTable:
    """An experiment's table in the paper's layout."""

    title: str
    groups: tuple[tuple[str, int], ...]  # title and number of columns
    head: tuple[str, ...]
    lines: tuple[TableLine, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Picture:
    """A picture (PNG) and its name."""

    name: str
    png: bytes


KIND = Literal["model", "prediction", "experiment"]


@dataclass(frozen=True)
class Report:
    """A page.

    Attributes:
        kind: of what.
        title: of the page.
        about: name and value of what is stated about its origin: folder, model, versions, device, options.
        labels: structures, in the order of their values.
        cases: the worst first (`ordered`).
        facts: headline figures.
        warnings: that do not belong to one case.
        trainings, calibrations, rows, pictures: where there are any.
        paper_table: of an experiment, in the paper's layout.
        decisions: by heading: of the plan, and of each fold.
        plan: the whole plan as text (JSON).
    """

    kind: KIND
    title: str
    about: tuple[tuple[str, str], ...] = ()
    labels: tuple[Label, ...] = ()
    cases: tuple[CaseContent, ...] = ()
    facts: tuple[Fact, ...] = ()
    warnings: tuple[str, ...] = ()
    trainings: tuple[Training, ...] = ()
    calibrations: tuple[Calibration, ...] = ()
    decisions: Mapping[str, tuple[Decision, ...]] = field(default_factory=dict)
    plan: str = ""
    rows: tuple[Row, ...] = ()
    rows_title: str = ""
    paper_table: PaperTable | None = None
    pictures: tuple[Picture, ...] = ()

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that any case has."""
        found = {name for case in self.cases for score in case.labels for name in score.metrics}
        return tuple(name for name in METRICS if name in found)

    @property
    def unit(self) -> Unit:
        """Of distances."""
        return common_unit(case.unit for case in self.cases if not case.failed)


def amount(unit: Unit) -> tuple[str, float]:
    """The unit in which the size of a structure is shown, and how many of it a ``volume_ml`` of 1 is."""
    return ("px", 1000.0) if unit == "px" else ("ml", 1.0)


def ordered(cases: Sequence[CaseContent]) -> tuple[CaseContent, ...]:
    """The worst first."""
    return tuple(sorted(cases, key=lambda case: case.order))


def mean_of(values: Iterable[float]) -> float:
    """The mean of the values that are not NaN; NaN where there is none."""
    defined = [v for v in values if not math.isnan(v)]
    return math.fsum(defined) / len(defined) if defined else math.nan
