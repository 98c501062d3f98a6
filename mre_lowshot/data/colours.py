"""One colour for each label, the same in overlays, DICOM SEG and label tables."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Mapping
from typing import Any

from mre_lowshot.errors import UserError

# Distinct on grey, also for colour-blind readers: chosen so that the smallest difference in CIELAB between any two of
# the first n, seen with normal vision, without red, green or (weighted less) blue cones (Machado et al. 2009), is as
# large as possible: 17 for the first 16, 11 for all (11 and 7 without blue cones).
PALETTE = (
    "#e69f00", "#56b4e9", "#f0e442", "#00c389", "#e8412c", "#5a3cff", "#96ffff", "#b42d87",
    "#b4ff96", "#0078e1", "#c31e4b", "#69ffc3", "#69b45a", "#2d8769", "#f05ac3", "#a52da5",
    "#f0a5c3", "#87e15a", "#4b780f", "#ff00ff", "#78e1ff", "#2da596", "#a5e196", "#a52dc3",
    "#e1ff0f", "#c3ff69", "#f03c69", "#3c96c3", "#c38700", "#3c96ff", "#78873c", "#ff785a",
)  # fmt: skip
_TOO_CLOSE = 40  # distance in RGB (0 to 255) at which a colour of the palette is not used beside a given one


def palette_colour(number: int) -> str:
    """The colour ``#rrggbb`` number 0, 1, 2, ...: the palette, then further ones of other hues and lightness."""
    if number < len(PALETTE):
        return PALETTE[number]
    hue = number * 0.61803398875 % 1  # the golden ratio: far from the ones before
    lightness, saturation = ((0.45, 0.9), (0.65, 0.6), (0.55, 0.75), (0.75, 0.9))[number % 4]
    return _hex(tuple(round(255 * v) for v in colorsys.hls_to_rgb(hue, lightness, saturation)))


def label_colours(
    labels: Mapping[str, int], given: Mapping[str, Any] | None = None, where: str = "dataset.json"
) -> dict[int, str]:
    """The colour ``#rrggbb`` of each label value above 0.

    Args:
        labels: name to value.
        given: ``label_colours`` of dataset.json: name to ``"#rrggbb"`` or ``[r, g, b]`` (0 to 255). Labels without one
            get colours of the palette in the order of their values, none of them close to a given one.
        where: begins the messages.

    Raises:
        UserError: a name is not a label, or a colour is not one.
    """
    if given is not None and not isinstance(given, Mapping):
        raise UserError(f'{where}: label_colours is {given!r}; must map names to colours, as in {{"liver": "#e69f00"}}')
    own = {name: _parsed(name, value, where) for name, value in (given or {}).items()}
    if unknown := sorted(set(own) - set(labels)):
        raise UserError(
            f"{where}: label_colours names {unknown[0]!r}, which is not in labels {sorted(labels)}; remove it"
        )
    taken = [rgb(colour) for colour in own.values()]
    colours: dict[int, str] = {}
    number = 0
    for name, value in sorted(labels.items(), key=lambda item: item[1]):
        if value <= 0:
            continue
        if name in own:
            colours[value] = own[name]
            continue
        while any(_distance(rgb(palette_colour(number)), other) < _TOO_CLOSE for other in taken):
            number += 1
        colours[value] = palette_colour(number)
        number += 1
    return colours


def colours_of(dataset: Mapping[str, Any], where: str = "dataset.json") -> dict[int, str]:
    """`label_colours` of the content of a dataset.json.

    Raises:
        UserError: as `label_colours`.
    """
    return label_colours(dataset["labels"], dataset.get("label_colours"), where)


def rgb(colour: str) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of ``#rrggbb``."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _hex(values: tuple[int, ...]) -> str:
    return "#" + "".join(f"{value:02x}" for value in values)


def _distance(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    return float(sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5)


def _parsed(name: str, value: Any, where: str) -> str:
    if isinstance(value, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", value):
        return value.lower()
    numbers = value if isinstance(value, (list, tuple)) else ()
    whole = all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v <= 255 for v in numbers)
    if len(numbers) == 3 and whole:
        return _hex(tuple(numbers))
    raise UserError(
        f'{where}: label_colours gives {name!r} the colour {value!r}; write "#rrggbb" or three whole numbers from 0 to '
        "255, as in [230, 159, 0]"
    )
