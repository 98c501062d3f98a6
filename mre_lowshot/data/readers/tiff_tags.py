"""Which tags of a TIFF page are known, and which values contradict each other. TIFF has no checksum of its header, so
this is all that shows a damaged one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _ORIENTATION, _SAMPLES = 258, 259, 262, 266, 274, 277
_PLANAR, _PREDICTOR, _COLOURS, _EXTRA, _FORMAT = 284, 317, 320, 338, 339
_PRIVATE = 32768  # and above: of software, any number
# Of the format's definition (TIFF 6.0, its supplements, TIFF/EP), below the private ones.
_KNOWN = frozenset(
    (*range(254, 267), *range(269, 298), 300, 301, *range(305, 307), *range(315, 348), 351, *range(400, 406),
     *range(433, 436), *range(512, 522), *range(529, 533), 559, 700, 999, *range(18246, 18250), *range(20481, 20700))
)  # fmt: skip
_CHOICES = {
    _FILL_ORDER: (1, 2), _ORIENTATION: range(1, 9), _PLANAR: (1, 2), _PREDICTOR: (1, 2, 3), _FORMAT: range(1, 7),
}  # fmt: skip
_NAMES = {_FILL_ORDER: "fill order", _ORIENTATION: "orientation", _PLANAR: "planar configuration",
          _PREDICTOR: "predictor", _FORMAT: "sample format"}  # fmt: skip
CHECKED = (_PHOTOMETRIC, _FILL_ORDER, _ORIENTATION, _PREDICTOR, _COLOURS, _EXTRA)
_COLOUR_SAMPLES = {0: 1, 1: 1, 2: 3, 3: 1, 4: 1, 5: 4, 6: 3, 8: 3}  # by photometric interpretation


def is_known(tag: int) -> bool:
    """Whether a tag is of the format's definition, or private."""
    return tag >= _PRIVATE or tag in _KNOWN


def contradiction(page: Mapping[int, Sequence[int]]) -> str:
    """What is wrong with the values of a page's tags; empty where nothing is."""
    for tag, choices in _CHOICES.items():
        if any(value not in choices for value in page.get(tag, ())):
            return f"its {_NAMES[tag]} is {list(page[tag])}"
    samples, bits = page.get(_SAMPLES, [1])[0], list(page.get(_BITS, [1]))
    formats = list(page.get(_FORMAT, [1]))
    if len(bits) not in (1, samples) or len(set(bits)) > 1:
        return f"it has {samples} samples a pixel, with {bits} bits"
    if len(formats) not in (1, samples) or len(set(formats)) > 1:
        return f"it has {samples} samples a pixel, of the formats {formats}"
    if formats[0] == 3 and bits[0] not in (16, 32, 64):
        return f"its samples are floating-point numbers of {bits[0]} bits"
    if page.get(_PREDICTOR, [1])[0] == 3 and formats[0] != 3:
        return "its predictor is for floating-point numbers"
    if page.get(_PREDICTOR, [1])[0] > 1 and page.get(_COMPRESSION, [1])[0] == 1:
        return "it has a predictor, but is not compressed"
    if _PHOTOMETRIC not in page:
        return ""
    kind = page[_PHOTOMETRIC][0]
    if kind not in _COLOUR_SAMPLES:
        return f"its photometric interpretation is {kind}"
    if kind == 3 and len(page.get(_COLOURS, ())) != 3 << bits[0]:
        return "it has no palette of the size of its samples"
    extra = len(page.get(_EXTRA, ()))
    if _EXTRA in page and _COLOUR_SAMPLES[kind] + extra != samples:
        return f"it has {samples} samples a pixel, {extra} of them beside the colours"
    if samples < _COLOUR_SAMPLES[kind]:
        return f"it has {samples} samples a pixel, its colours need {_COLOUR_SAMPLES[kind]}"
    return ""
