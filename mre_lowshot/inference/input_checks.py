"""Whether a scan resembles the training scans: warnings, and the refusal of a CT that is not in HU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mre_lowshot.config import Plan
from mre_lowshot.data.verification import copied_channels
from mre_lowshot.data.volume import Volume
from mre_lowshot.errors import UserError
from mre_lowshot.grid import as_slices
from mre_lowshot.planners.fingerprint import (
    CONSTANT_BACKGROUND_SHARE,
    SCALE_FREE,
    layout,
    padding_share,
    percentiles,
)
from mre_lowshot.planners.hounsfield import HuProblem, hu_histogram, hu_rule
from mre_lowshot.preprocessing.cropping import foreground_mask
from mre_lowshot.preprocessing.faults import NOTED, correct_faults
from mre_lowshot.preprocessing.padding import content_box

# A warning is given from these distances outside the planned scans' range on. docs/RESULTS.md states how many scans of
# the training scans' kind get one (python -m benchmarks.warnings).
FEW_SCANS = 4  # fewer scans than these are a narrow range
TOLERANCE = {1: 2.0, 2: 1.7, 3: 1.7}  # factor of spacing and extent by the number of planned scans
LEAST_TOLERANCE = 1.5  # with more scans
POSITION, FEW_POSITION = 0.3, 0.35  # of percentiles between the darkest (0) and the brightest (1)
# Factor of the intensities' width, if they have no absolute scale. Two scans show how a dataset is stored. One shows
# nothing: the scans of Hippocampus differ by a factor of 5,000, and z-scores are the same for each of them.
WIDTH, WIDTH_OF_ONE = 20.0, 10_000.0
SHARE = 0.25  # of padding and of constant background
MIN_CORRELATION = -0.2  # of the layout of bright and dark with the training scans' mean; measured: -0.18 to 0.98
SAMPLE = 1_000_000  # voxels that percentiles are taken from, at most


class Difference(str):
    """One sentence about a difference from the training scans, with the values behind it.

    Attributes:
        name: what differs, for example ``spacing_z``.
        value: of this scan.
        training_range: lowest and highest of the planned scans; None where there is none.
    """

    name: str
    value: float
    training_range: tuple[float, float] | None

    def __new__(
        cls, sentence: str, *, name: str = "note", value: float = 0.0, training_range: Sequence[float] | None = None
    ) -> Difference:
        made = super().__new__(cls, sentence)
        made.name, made.value = name, float(value)
        made.training_range = None if training_range is None else (float(training_range[0]), float(training_range[1]))
        return made

    def to_json(self) -> dict[str, Any]:
        """Plain values for run.json."""
        found = None if self.training_range is None else list(self.training_range)
        return {"name": self.name, "value": self.value, "training_range": found, "warning": str(self)}


def refuse_input(image: Volume, plan: Plan) -> list[HuProblem]:
    """Refuse a scan that cannot be segmented correctly, before any work.

    Returns:
        Doubts about the HU of CT channels that are not certain enough to refuse the scan.

    Raises:
        UserError: a CT channel is certainly not in HU, or a single slice was given to a 3D model or several slices to a
            2D model.
    """
    slices, axes = image.geometry.shape[0], plan.network.axes
    if axes == 3 and 1 in image.geometry.shape:
        raise UserError(
            f"the scan is a single slice of {_size(image)} voxels, the model was trained on volumes; give the whole "
            "volume, or train a model on 2D images"
        )
    if axes == 2 and slices > 1:
        raise UserError(
            f"the scan is a volume of {_size(image)} voxels, the model was trained on 2D images; give single slices"
        )
    doubts = []
    for name, channel, is_ct in zip(plan.channel_names, image.array, plan.preprocessing.is_ct, strict=True):
        low, high = float(channel.min()), float(channel.max())
        if low == high:
            raise UserError(f"channel {name!r} is constant ({low:g} everywhere); export the scan again")
        problem = hu_rule(name, hu_histogram(channel)) if is_ct else None
        if problem and problem.certain:
            raise UserError(problem.for_prediction)
        doubts += [problem] if problem else []
    return doubts


def differences_from_training(
    image: Volume, plan: Plan, *, corrected: np.ndarray | None = None
) -> tuple[Difference, ...]:
    """Differences between the scan and the planned scans: spacing, extent, slices, padding, background, intensities.

    What an older plan has no range for is not compared. ``corrected`` is the result of `correct_faults`, where it has
    been computed.
    """
    ranges, ct = plan.training_ranges, plan.preprocessing.is_ct
    if corrected is None:
        corrected = correct_faults(image.array, ct) if plan.preprocessing.correct_faults else image.array
    limited = corrected
    outliers = 0 if limited is image.array else int(np.count_nonzero(limited != image.array))
    inner = limited
    if "shape" in ranges:  # an older plan's ranges are those of the whole scans
        inner = limited[(slice(None), *as_slices(content_box(limited, crop="none", ct=ct)))]
    found = _grid_differences(image, inner.shape[1:], ranges)
    found += _constant_differences(image, limited, inner, plan)
    if "outliers" in ranges and outliers > max(NOTED - 1, 2 * ranges["outliers"][1]):
        found.append(
            Difference(
                f"{outliers} voxels have extreme intensities or lie in faulty slices and were replaced, training "
                f"scans at most {ranges['outliers'][1]:.0f}; is the file damaged?",
                name="outliers",
                value=outliers,
                training_range=ranges["outliers"],
            )
        )
    copied = copied_channels(plan.channel_names, image.array)
    found += [Difference(line, name="copied_channel", value=1, training_range=(0, 0)) for line in copied]
    for index, channel in enumerate(inner):
        if index < len(ranges.get("channels", ())):
            found += _channel_differences(channel, index, plan)
    return tuple(found)


def _size(image: Volume) -> str:
    return " x ".join(map(str, image.geometry.shape))


def _grid_differences(image: Volume, shape: tuple[int, ...], ranges: dict[str, Any]) -> list[Difference]:
    found = []
    spacing = np.asarray(image.geometry.spacing)
    compared = (
        ("spacing", "spacing", spacing, " mm", (0, 1, 2)),
        ("extent", "extent_mm", spacing * np.asarray(shape), " mm", (0, 1, 2)),
        ("number of voxels", "shape", np.asarray(shape, dtype=float), "", (0,)),
    )
    factor, axes = TOLERANCE.get(ranges.get("scans", FEW_SCANS), LEAST_TOLERANCE), ("z", "y", "x")
    for what, key, values, unit, which in compared:
        if key not in ranges:
            continue
        low, high = np.asarray(ranges[key], dtype=float)
        # slices are counted with the tolerances of spacing and extent together
        allowed = factor**2 if key == "shape" else factor
        for axis in which:
            if not low[axis] / allowed <= values[axis] <= high[axis] * allowed:
                sentence = f"{what} along {axes[axis]} is {values[axis]:.3g}{unit}, training scans "
                sentence += f"{low[axis]:.3g} to {high[axis]:.3g}{unit}"
                name = f"{what.replace(' ', '_')}_{axes[axis]}"
                limits = (low[axis], high[axis])
                found.append(Difference(sentence, name=name, value=values[axis], training_range=limits))
    return found


def _constant_differences(image: Volume, limited: np.ndarray, inner: np.ndarray, plan: Plan) -> list[Difference]:
    ranges, found = plan.training_ranges, []
    padding = padding_share(image.geometry.shape, inner.shape[1:])
    most = ranges.get("padding_share", [0.0, 1.0])[1]
    if padding > most + SHARE:
        sentence = f"{padding:.0%} of it is constant padding, training scans at most {most:.0%}"
        limits = ranges["padding_share"]
        found.append(Difference(sentence, name="padding_share", value=padding, training_range=limits))
    if any(plan.preprocessing.is_ct):  # air is constant where it was clipped
        return found
    if plan.preprocessing.crop == "nonzero":
        constant = 1 - float(foreground_mask(limited).mean())
        if constant < CONSTANT_BACKGROUND_SHARE:
            sentence = f"{constant:.0%} of it is constant background, the training scans are skull-stripped; "
            sentence += "skull-strip this scan too"
            limits = (CONSTANT_BACKGROUND_SHARE, 1.0)
            found.append(Difference(sentence, name="background_share", value=constant, training_range=limits))
    elif "background_share" in ranges:
        constant, most = 1 - float(foreground_mask(inner).mean()), ranges["background_share"][1]
        if constant > most + SHARE:
            sentence = f"{constant:.0%} of it is constant background, training scans at most {most:.0%}"
            limits = ranges["background_share"]
            found.append(Difference(sentence, name="background_share", value=constant, training_range=limits))
    return found


def _channel_differences(channel: np.ndarray, index: int, plan: Plan) -> list[Difference]:
    found, ranges = [], plan.training_ranges["channels"][index]
    scheme, name = plan.preprocessing.normalization[index], plan.channel_names[index]
    which = f"channel {name!r}: " if len(plan.channel_names) > 1 else ""
    step = max(1, int(np.ceil((channel.size / SAMPLE) ** (1 / 3))))
    measured = percentiles(channel[tuple(slice(None, None, step if n > 4 * step else 1) for n in channel.shape)])
    if scheme.scheme == "clip":
        low, high = ranges["median"]
        value, margin = measured["median"], 0.5 * (scheme.upper - scheme.lower)
        if not low - margin <= value <= high + margin:
            sentence = f"median intensity is {value:.0f} HU, training scans {low:.0f} to {high:.0f} HU; "
            sentence += "is the scan in HU?"
            found.append(Difference(which + sentence, name=f"median_{index}", value=value, training_range=(low, high)))
    else:
        few = plan.training_ranges.get("scans", FEW_SCANS) < FEW_SCANS
        tolerance = FEW_POSITION if few else POSITION
        values = {key: value(measured) for key, value in SCALE_FREE.items() if key in ranges}
        width = values.pop("width", None)
        for key, value in values.items():
            low, high = ranges[key]
            if not low - tolerance <= value <= high + tolerance:
                sentence = f"the {key[-2:]}th percentile of the intensities lies at {value:.0%} of their range, "
                sentence += f"training scans {low:.0%} to {high:.0%}; is it the same kind of image?"
                limits = (low, high)
                found.append(Difference(which + sentence, name=f"{key}_{index}", value=value, training_range=limits))
                break
        factor = WIDTH_OF_ONE if plan.training_ranges.get("scans") == 1 else WIDTH
        if width is not None and not ranges["width"][0] / factor <= width <= ranges["width"][1] * factor:
            low, high = ranges["width"]
            sentence = f"the intensities cover {width:.3g} units, training scans {low:.3g} to {high:.3g}; "
            sentence += "is it scaled differently?"
            limits = (low, high)
            found.append(Difference(which + sentence, name=f"width_{index}", value=width, training_range=limits))
    expected, own = ranges.get("layout"), layout(channel)
    if expected and own and len(expected) == len(own):
        correlation = float(np.corrcoef(expected, own)[0, 1])
        if correlation < MIN_CORRELATION:
            sentence = "bright and dark regions lie otherwise than in the training scans (correlation "
            sentence += f"{correlation:.2f}); is it inverted, turned, or another sequence or body part?"
            limits = (MIN_CORRELATION, 1.0)
            found.append(Difference(which + sentence, name=f"layout_{index}", value=correlation, training_range=limits))
    return found
