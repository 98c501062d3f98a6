"""What is wrong with a label map, in sentences: from the scores of its structures, and, where there is no reference,
from their volumes in the other scans."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from mre_lowshot.data.pixel_size import Unit
from mre_lowshot.report.content import CaseContent, Label, LabelScore

_POOR, _FAIR = 0.5, 0.8  # Dice
_VOLUME = 0.15  # share of the reference's volume that is worth a sentence
_NEARLY_ALL = 0.95
_FAR = 20.0  # mm of HD95, or pixels
_LOW_QUALITY = 0.5
_FACTOR = 2.0  # of the median volume of the other scans
_FEWEST = 4  # scans with a structure, for a median
_MOST = 6  # sentences about structures


def with_findings(cases: Sequence[CaseContent], labels: Sequence[Label]) -> tuple[CaseContent, ...]:
    """The cases with their findings, the most important first."""
    names = {label.value: label.name for label in labels}
    medians = _medians(cases)
    return tuple(replace(case, findings=_of_case(case, names, medians)) for case in cases)


def _medians(cases: Sequence[CaseContent]) -> dict[int, float]:
    """The median volume of each structure over the scans that have it, in ml."""
    found: dict[int, list[float]] = {}
    for case in cases:
        for score in case.labels:
            if score.volume_ml > 0:
                found.setdefault(score.value, []).append(score.volume_ml)
    return {value: float(np.median(volumes)) for value, volumes in found.items() if len(volumes) >= _FEWEST}


def _of_case(case: CaseContent, names: Mapping[int, str], medians: Mapping[int, float]) -> tuple[str, ...]:
    if case.failed:
        return (f"not segmented: {case.failed.removeprefix(f'case {case.name}: ')}",)
    rated = []
    for score in case.labels:
        name = names.get(score.value, str(score.value))
        against = "Dice" in score.metrics
        one = _against_reference(score, name, case.unit) if against else _alone(score, name, medians, case.unit)
        if one:
            rated.append(one)
    rated.sort()
    found = [text for _, text in rated[:_MOST]]
    if len(rated) > _MOST:
        found.append(f"and {len(rated) - _MOST} more structures, see the table")
    measured = [score.volume_ml for score in case.labels if not math.isnan(score.volume_ml)]
    if measured and not any(measured):
        found.insert(0, "the label map is empty")
    return tuple(found)


def _against_reference(score: LabelScore, name: str, unit: Unit) -> tuple[float, str] | None:
    """Rank and sentence; None where the structure is right, or in neither label map."""
    dice, far = score.metrics["Dice"], score.metrics.get("HD95", math.nan)
    predicted, reference = score.volume_ml, score.reference_ml
    if math.isnan(dice):
        return None
    if reference > 0 and predicted == 0:
        return (_rank(0.0, reference), f"{name}: missed completely (reference {_ml(reference, unit)})")
    if reference == 0 and predicted > 0:
        return (_rank(0.0, predicted), f"{name}: {_ml(predicted, unit)} where the reference has none")
    parts = []
    change = (predicted - reference) / reference if reference > 0 else 0.0
    if change < -_NEARLY_ALL:
        parts.append(f"almost missed ({_ml(predicted, unit)}, reference {_ml(reference, unit)})")
    elif abs(change) > _VOLUME:
        kind = (
            f"{predicted / reference:.1f} times too large"
            if change > 1
            else f"{abs(change):.0%} too " + ("large" if change > 0 else "small")
        )
        parts.append(f"{kind} ({_ml(predicted, unit)}, reference {_ml(reference, unit)})")
    elif dice < _FAIR:
        parts.append(f"{'displaced' if dice < _POOR else 'displaced or of another shape'}, of the right volume")
    if far > _FAR:
        parts.append(f"borders up to {far:.0f} {unit} off (HD95)")
    if dice >= _FAIR and not far > _FAR and abs(change) <= _VOLUME:
        return None
    return (
        _rank(dice, max(predicted, reference)),
        f"{name}: Dice {dice:.2f}" + (f"; {'; '.join(parts)}" if parts else ""),
    )


def _rank(dice: float, volume: float) -> float:
    """Lower for what matters more: large structures before small ones of the same Dice."""
    return -(1 - dice) * math.log1p(volume)


def _alone(score: LabelScore, name: str, medians: Mapping[int, float], unit: Unit) -> tuple[float, str] | None:
    """The same without a reference."""
    volume, median = score.volume_ml, medians.get(score.value, math.nan)
    if volume == 0:
        usual = f"; median of the other scans {_ml(median, unit)}" if median > 0 else ""
        return (-1.0, f"{name}: not found{usual}")
    parts = []
    if score.quality < _LOW_QUALITY:
        parts.append(f"uncertain (quality score {score.quality:.2f})")
    if volume > _FACTOR * median or volume < median / _FACTOR:
        parts.append(f"volume {_ml(volume, unit)}, median of the scans {_ml(median, unit)}")
    rank = score.quality if not math.isnan(score.quality) else 1.0
    return (rank, f"{name}: {'; '.join(parts)}") if parts else None


def _ml(volume: float, unit: Unit) -> str:
    """A volume as text; in pixels where their size is not known."""
    if unit == "px":
        return f"{volume * 1000:.0f} px"
    if volume < 0.1:
        return f"{volume * 1000:.3g} mm\u00b3"
    return f"{volume:.0f} ml" if volume >= 10 else f"{volume:.2g} ml"
