"""Plain values (JSON) from files and options of strangers: parsed and checked before anything uses them."""

from __future__ import annotations

import json
import math
import unicodedata
from typing import Any

from mre_lowshot.errors import UserError

MAX_DEPTH = 32  # nested lists and objects; a plan has 6
MAX_VALUES = 5_000_000  # values in one file, counted as often as they are reached
MAX_INTEGER = 2**63 - 1
MAX_DIGITS = 400  # of a number as it is written; float64 needs 17, and at most 325 before an exponent


def parse_json(text: str, where: str) -> Any:
    """Parse JSON strictly: unlike `json.loads`, what has several readings or none is refused.

    Raises:
        UserError: no JSON, nested deeper than `MAX_DEPTH`, a key that occurs twice, NaN, Infinity, a number beyond
            float64 or 64 bits, or a lone surrogate in a text. The message starts with ``where``.
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=_without_duplicates,
            parse_constant=_no_constant,
            parse_float=_float,
            parse_int=_int,
        )
    except RecursionError:
        raise UserError(f"{where} is nested deeper than {MAX_DEPTH} levels; no such file is written here") from None
    except json.JSONDecodeError as problem:
        raise UserError(f"{where} is not valid JSON ({problem}); correct or restore it") from None
    except UserError as problem:
        raise UserError(f"{where}: {problem}") from None
    require_plain(value, where)
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise UserError(f"key {shown(twice)} occurs twice; keep the one that is meant")
    return found


def _no_constant(text: str) -> Any:
    raise UserError(f"{text} is not a number in JSON; write a finite number")


def _float(text: str) -> float:
    value = float(text) if len(text) <= MAX_DIGITS else math.inf
    if not math.isfinite(value):
        raise UserError(f"the number {text[:30]} is too large or too long; write a finite number")
    return value


def _int(text: str) -> int:
    if len(text) > len(str(MAX_INTEGER)) + 1 or abs(int(text)) > MAX_INTEGER:
        raise UserError(f"the number {text[:30]}{'...' * (len(text) > 30)} exceeds 64 bits; write a smaller one")
    return int(text)


def require_plain(value: Any, where: str) -> None:
    """Require nothing but texts, finite numbers, truth values, None, lists and dicts with texts as keys, nested at most
    `MAX_DEPTH` deep. Lists that contain themselves are refused as well.

    Raises:
        UserError: the message starts with ``where``.
    """
    waiting, count = [(value, 1)], 0
    while waiting:
        item, depth = waiting.pop()
        count += 1
        if depth > MAX_DEPTH or count > MAX_VALUES:
            limit = f"nested deeper than {MAX_DEPTH} levels" if depth > MAX_DEPTH else f"more than {MAX_VALUES} values"
            raise UserError(f"{where} is {limit}; no such file is written here")
        if isinstance(item, dict):
            for key in item:
                if not isinstance(key, str):
                    raise UserError(f"{where}: the key {shown(key)} is not a text")
                _require_text(key, where)
            waiting.extend((inner, depth + 1) for inner in item.values())
        elif isinstance(item, (list, tuple)):
            waiting.extend((inner, depth + 1) for inner in item)
        else:
            _require_scalar(item, where)


def _require_scalar(item: Any, where: str) -> None:
    if isinstance(item, str):
        _require_text(item, where)
    elif isinstance(item, int) and not isinstance(item, bool):
        if abs(item) > MAX_INTEGER:
            raise UserError(f"{where}: a number exceeds 64 bits; write a smaller one")
    elif isinstance(item, float):
        if not math.isfinite(item):
            raise UserError(f"{where}: holds {item}; write a finite number")
    elif item is not None and not isinstance(item, bool):
        raise UserError(f"{where}: holds a {type(item).__name__}; only texts, numbers, lists and objects are allowed")


def _require_text(text: str, where: str) -> None:
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UserError(f"{where}: the text {shown(text)} holds a lone surrogate, which is no letter; correct it")


def shown(value: Any, limit: int = 80) -> str:
    """``value`` for a message: at most ``limit`` letters, which every console can print."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > MAX_INTEGER:
        return "a whole number beyond 64 bits"  # Python refuses to convert the largest to text
    try:
        text = value[:limit] if isinstance(value, str) else value
        found = repr(text)
    except Exception as problem:  # deep nesting, or integers with too many digits inside
        return f"a {type(value).__name__} that cannot be shown ({type(problem).__name__})"
    found = found.encode("utf-8", "backslashreplace").decode("utf-8")
    longer = len(found) > limit + 2 or (isinstance(value, str) and len(value) > limit)
    return found[:limit] + "..." if longer else found


def is_printable(text: str) -> bool:
    """Whether ``text`` has no control character, surrogate or line break."""
    return not any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in text)
