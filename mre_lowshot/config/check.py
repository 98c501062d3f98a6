"""How the configuration records and the commands' options refuse a value."""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import os
import re
import types
import typing
from typing import Any

from mre_lowshot.errors import UserError
from mre_lowshot.plain import is_printable, shown

LARGEST = 1e12  # no quantity of a configuration (HU, mm, voxels, iterations, weights) is larger
MAX_ENTRIES = 10_000  # of a list or dict in a configuration (a fold's test scans, a plan's reasons)
RESERVED_LETTERS = '/\\:*?"<>|'  # that Windows does not allow in a file name
_DEVICE = re.compile(r"(?i)con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3]")
MAX_NAME = 200  # bytes of a name that is part of a path: file systems take 255 with what is added


def require(condition: bool, rule: str) -> None:
    """Raise `UserError` with ``rule``, which names the field, the value found and what it must be."""
    if not condition:
        raise UserError(rule)


def require_range(name: str, value: float, low: float, high: float, *, open_end: bool = False) -> None:
    """Require a number with ``low <= value <= high`` (``< high`` with ``open_end``); NaN is refused."""
    require(_is_number(value), f"{name} is {shown(value)}; must be a number")
    inside = low <= value < high if open_end else low <= value <= high
    require(inside, f"{name} is {shown(value)}; must lie in [{low:g}, {high:g}{')' if open_end else ']'}")


def require_whole(name: str, value: object, low: int, high: int) -> int:
    """Require a whole number from ``low`` to ``high``, and return it as int.

    Args:
        name: begins the message: the field or option.
        value: as given; a truth value or a float is refused.
        low, high: both allowed.

    Raises:
        UserError: it is none.
    """
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or not low <= int(typing.cast(int, value)) <= high:
        raise UserError(f"{name} {shown(value)}: must be at least {low} (a whole number, at most {high})")
    return int(typing.cast(int, value))


def require_number(name: str, value: object, low: float, high: float) -> float:
    """Require a finite number from ``low`` to ``high``, and return it as float; see `require_whole`."""
    if not _is_number(value) or not low <= float(typing.cast(float, value)) <= high:
        raise UserError(f"{name} {shown(value)}: must lie in [{low:g}, {high:g}]")
    return float(typing.cast(float, value))


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond float64
        return False


def require_mirror_axes(axes: tuple[int, ...]) -> None:
    """Require spatial axis numbers, each once: their subsets are the mirrored views."""
    require(
        set(axes) <= {0, 1, 2} and len(set(axes)) == len(axes),
        f"mirror_axes is {axes}; axes are 0 (z), 1 (y), 2 (x), each at most once",
    )


def require_path(name: str, value: object) -> None:
    """Require a path: a text or `os.PathLike`, not empty (an unset variable of the shell) and without NUL.

    Raises:
        UserError: it is none.
    """
    require(isinstance(value, str | os.PathLike), f"{name} {shown(value)}: must be a path")
    text = os.fspath(typing.cast("str | os.PathLike[str]", value))
    require(isinstance(text, str) and text != "", f"{name} is empty; give a path")
    require("\0" not in text, f"{name} {shown(text)}: a path has no NUL character")


def require_text(name: str, text: object, limit: int = MAX_NAME) -> None:
    """Require a text of 1 to ``limit`` bytes (UTF-8) without line breaks and control characters."""
    require(isinstance(text, str), f"{name} is {shown(text)}; must be a text")
    text = typing.cast(str, text)
    require(is_printable(text), f"{name} is {shown(text)}; it contains a control character or line break, remove it")
    size = len(text.encode("utf-8"))
    require(0 < size <= limit, f"{name} is {shown(text)}, of {size} bytes; must have 1 to {limit}")


def require_file_name(name: str, text: object, limit: int = MAX_NAME) -> None:
    """As `require_text`, for the name of a file or folder: it must not lead to another folder."""
    require_text(name, text, limit)
    text = typing.cast(str, text)
    require(
        not set(text) & set("/\\") and text not in (".", ".."),
        f"{name} is {shown(text)}; it names a file or folder, so it may not contain / or \\",
    )
    require(
        not set(text) & set(RESERVED_LETTERS) and text == text.rstrip(". ") and not is_device_name(text),
        f"{name} is {shown(text)}; it names a file or folder, so it may not contain any of {RESERVED_LETTERS}, end "
        "with a dot or blank, or be a device of Windows (CON, NUL, COM1 ...)",
    )


def is_device_name(name: str) -> bool:
    """Whether Windows takes ``name``, with whatever ending, for a device."""
    return _DEVICE.fullmatch(name.split(".")[0].rstrip(" ")) is not None


def require_plans_name(name: str, text: object) -> None:
    """Require the name of a plan: letters, digits, - and _, without leading, trailing or double _."""
    require(isinstance(text, str), f"{name} {shown(text)}: must be a text")
    text = typing.cast(str, text)
    require(
        text.replace("_", "").replace("-", "").isalnum() and "__" not in f"_{text}_",
        f"{name} {shown(text)}: use letters, digits, - and _ only, and no leading, trailing or double _ "
        "(the name is part of folder names)",
    )
    require_text(name, text, limit=100)
    require(not is_device_name(text), f"{name} {shown(text)}: is a device on Windows; give another name")


def require_fields(record: Any) -> None:
    """Require that the fields of a frozen dataclass have their declared types, in finite numbers and short lists.

    Records are also built in Python, where nothing else checks them.

    Raises:
        UserError: names the field.
    """
    for name, hint in _hints(record.__class__).items():
        _require_type(hint, getattr(record, name), name)


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind)}


def _require_type(hint: Any, value: Any, where: str) -> None:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is not None:
            _require_type(next(a for a in arguments if a is not type(None)), value, where)
    elif origin is typing.Literal:
        known = isinstance(value, str) and value in arguments
        require(known, f"{where} is {shown(value)}; must be one of {', '.join(map(repr, arguments))}")
    elif origin in (tuple, dict):
        require(isinstance(value, origin), f"{where} is {shown(value)}; must be a {origin.__name__}")
        require(len(value) <= MAX_ENTRIES, f"{where} has {len(value)} entries; at most {MAX_ENTRIES} are allowed")
        for index, inner in enumerate(value):
            _require_type(arguments[0], inner, f"{where}[{index}]")
        for key in value if origin is dict else ():
            _require_type(arguments[1], value[key], f"{where}.{shown(key)}")
    elif hint is float:
        require(
            _is_number(value) and abs(value) <= LARGEST,
            f"{where} is {shown(value)}; must be a finite number, at most {LARGEST:g}",
        )
    elif hint is int:
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        require(
            whole and abs(value) <= LARGEST, f"{where} is {shown(value)}; must be a whole number, at most {LARGEST:g}"
        )
    elif hint is bool or hint is str:
        require(isinstance(value, hint), f"{where} is {shown(value)}; must be a {hint.__name__}")
    elif dataclasses.is_dataclass(hint):
        name = getattr(hint, "__name__", "record")
        require(isinstance(value, typing.cast(type, hint)), f"{where} is {shown(value)}; must be a {name}")
