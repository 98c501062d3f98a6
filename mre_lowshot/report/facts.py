"""Headline figures of a report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mre_lowshot.data.pixel_size import common_unit
from mre_lowshot.report import stored
from mre_lowshot.report.content import TOLERANCE, CaseContent, Fact, Label, mean_of

DIGITS = {"HD95": 1}
MEANINGS = {
    "Dice": "overlap with the reference, 0 to 1",
    "NSD": "share of the surfaces within a tolerance of each other, 0 to 1",
    "HD95": "95th percentile of the distances between the surfaces",
}


def label_mean(cases: Sequence[CaseContent], value: int, metric: str) -> float:
    """The mean of a metric of one label over cases."""
    return mean_of(s.metrics.get(metric, math.nan) for case in cases for s in case.labels if s.value == value)


def shown(value: float, metric: str = "Dice") -> str:
    """A value of a metric as text."""
    return "-" if math.isnan(value) else f"{value:.{DIGITS.get(metric, 3)}f}"


def headline(cases: Sequence[CaseContent], labels: Sequence[Label]) -> tuple[Fact, ...]:
    """Means over labels of the means over cases, the worst case, and counts."""
    found = []
    unit = common_unit(case.unit for case in cases if not case.failed)
    names = {name for case in cases for score in case.labels for name in score.metrics}
    for metric in [name for name in MEANINGS if name in names]:
        value = mean_of(label_mean(cases, label.value, metric) for label in labels)
        meaning = MEANINGS[metric] + (_tolerance(cases, unit) if metric == "NSD" else "")
        meaning += ", in pixels: the images state no pixel size" if metric == "HD95" and unit == "px" else ""
        found.append(Fact(f"mean {metric}", shown(value, metric) + (f" {unit}" if metric == "HD95" else ""), meaning))
    failed = [case for case in cases if case.failed]
    rated = [case for case in cases if not math.isnan(case.mean("Dice"))]
    if rated:
        worst = min(rated, key=lambda case: case.mean("Dice"))
        found.append(Fact("lowest Dice", shown(worst.mean("Dice")), f"{worst.name} {worst.group}".strip()))
    scored = [case for case in cases if not math.isnan(case.quality)]
    if scored:
        lowest = min(scored, key=lambda case: case.quality)
        note = f"estimated without reference, 0 to 1; lowest {lowest.quality:.2f} ({lowest.name})"
        found.append(Fact("mean quality score", f"{mean_of(case.quality for case in scored):.2f}", note))
    found.append(Fact("scans", str(len(cases)), f"{len(failed)} not segmented" if failed else "all segmented"))
    warned = sum(1 for case in cases if case.warnings)
    found.append(Fact("scans with warnings", str(warned), "unlike the training scans, or otherwise unusual"))
    return tuple(found)


def _tolerance(cases: Sequence[CaseContent], unit: str) -> str:
    found = {s.metrics[TOLERANCE] for case in cases for s in case.labels if s.metrics.get(TOLERANCE, 0) > 0}
    if not found:
        return ""
    low, high = f"{min(found):.3g}", f"{max(found):.3g}"
    return f" (tolerance {low} {unit})" if low == high else f" (tolerances {low} to {high} {unit})"


def run_facts(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a run.json says of a run, as names and values."""
    versions, options = stored.table(run.get("versions")), stored.table(run.get("options"))
    chosen = {k: v for k, v in options.items() if v not in (None, False, [], "", {})}
    device = " ".join(filter(None, (stored.text(run.get("device")), stored.text(run.get("device_name")))))
    listed = [
        ("last run", f"{stored.text(run.get('started'))}, {stored.text(run.get('status'))}"),
        ("device", device),
        ("seed", stored.text(run.get("seed"))),
        ("options", ", ".join(f"{name} {_plain(value)}" for name, value in chosen.items())),
        ("versions", ", ".join(f"{name} {stored.text(value)}" for name, value in versions.items())),
    ]
    return [(name, value) for name, value in listed if value.strip(", ")]


def _plain(value: object) -> str:
    return " ".join(map(_plain, value)) if isinstance(value, list) else "yes" if value is True else stored.text(value)
