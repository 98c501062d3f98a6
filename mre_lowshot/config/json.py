"""Conversion of frozen dataclasses to JSON and back, with strict checks of keys and types.

Users may edit plans, so errors name the file, the wrong key, and the valid key that it resembles.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from typing import Any, TypeVar

from mre_lowshot.errors import UserError
from mre_lowshot.plain import MAX_INTEGER, parse_json, require_plain, shown

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """Convert (nested) dataclasses and tuples to dicts and lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    if isinstance(value, dict):
        return {str(k): to_json(v) for k, v in value.items()}
    return value


def from_json(kind: type[T], data: Any, where: str) -> T:
    """Build dataclass ``kind`` from JSON ``data``; ``where`` starts error messages, for example "MREPlans.json": the
    path of a field follows after a dot, or directly where ``where`` ends with ": " (an option, as "--set: network").

    Raises:
        UserError: a key is unknown (the message suggests a similar one) or missing, or a value has the wrong type or
            breaks a rule of the dataclass.
    """
    start, where = where if where.endswith(": ") else f"{where}.", where.removesuffix(": ")
    if not isinstance(data, dict):
        raise UserError(f"{where}: must be a JSON object with named fields, found {shown(data)}")
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, kind))}
    if "format_version" in fields:
        _check_version(data, where)
    hints = typing.get_type_hints(kind)
    for key in data:
        if key not in fields:
            raise UserError(f"{where}: unknown key {shown(key)}; {suggest(key, fields)}")
    missing = [
        n
        for n, f in fields.items()
        if n not in data and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f"{where}: key {missing[0]!r} is missing; add it, or plan the dataset again")
    values = {name: _value(hints[name], v, f"{start}{name}") for name, v in data.items()}
    try:
        return kind(**values)
    except UserError as problem:
        raise UserError(f"{where}: {problem}") from None


def _check_version(data: dict[str, Any], where: str) -> None:
    """Report another format version as such, instead of the first key that differs between versions."""
    from mre_lowshot.config.plan import FORMAT_VERSION, wrong_version

    found = data.get("format_version", FORMAT_VERSION)
    if found != FORMAT_VERSION:
        raise UserError(f"{where}: {wrong_version(found)}")


def suggest(key: object, known: typing.Iterable[str]) -> str:
    """The end of an error message: the known key most similar to ``key``, or the list of all known keys."""
    known = list(known)
    close = difflib.get_close_matches(str(key)[:100], known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(known))}"


def _suggest_path(last: str, name: str, section: dict[str, Any], data: dict[str, Any]) -> str:
    """As `suggest`; where no field of the ``section`` is similar, the paths of the fields called ``last`` anywhere."""
    elsewhere = [path for path in _paths(data) if path.rpartition(".")[2] == last]
    if difflib.get_close_matches(name, section, n=1) or not elsewhere:
        return suggest(name, section)
    return f"did you mean {' or '.join(map(repr, elsewhere))}?"


def _paths(data: dict[str, Any], above: str = "") -> typing.Iterator[str]:
    """The dotted paths of all fields of nested JSON objects."""
    for key, value in data.items():
        yield f"{above}{key}"
        if isinstance(value, dict):
            yield from _paths(value, f"{above}{key}.")


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _value(next(a for a in arguments if a is not type(None)), value, where)
    if origin is typing.Literal:
        if not isinstance(value, str) or value not in arguments:
            raise UserError(f"{where}: is {shown(value)}; must be one of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{where}: is {shown(value)}; must be a list")
        return tuple(_value(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"{where}: is {shown(value)}; must be a JSON object")
        return {_value(arguments[0], k, where): _value(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast(Any, hint), value, where)
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) <= MAX_INTEGER else math.inf  # which the record refuses
    if hint in (bool, int, float, str) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise UserError(f"{where}: is {shown(value)}; must be {'an' if hint is int else 'a'} {hint.__name__}")
    return value


def changed(value: T, path: str, text: str, where: str) -> T:
    """A copy of dataclass ``value`` with one changed field, as with ``--set``.

    Args:
        value: a dataclass, possibly nested.
        path: the field, for example ``recipe.optimizer.ema``.
        text: the new value as JSON, or an unquoted string.
        where: starts error messages.

    Raises:
        UserError: ``path`` is not a field, or the new value breaks a rule.
    """
    return all_changed(value, {path: text}, where)


def _parsed(text: str, where: str) -> Any:
    """``text`` as JSON, or as it is where it is no JSON at all: a plan that is written can be read again."""
    try:
        json.loads(text, parse_int=str, parse_float=str)
    except json.JSONDecodeError:
        require_plain(text, where)
        return text
    except RecursionError:
        pass  # named below
    return parse_json(text, where)


def all_changed(value: T, changes: dict[str, str], where: str) -> T:
    """As `changed`, for several fields; rules that involve several fields are checked after all changes.

    Raises:
        UserError: a path is not a field, or the new values break a rule.
    """
    data = to_json(value)
    for path, text in changes.items():
        section, names = data, path.split(".")
        for depth, name in enumerate(names):
            if not isinstance(section, dict):
                above = ".".join(names[:depth])
                raise UserError(f"{where}: {path!r} is not a field; {above!r} has no fields")
            if name not in section:
                raise UserError(f"{where}: {path!r} is not a field; {_suggest_path(names[-1], name, section, data)}")
            if depth + 1 < len(names):
                section = section[name]
        section[names[-1]] = _parsed(text, f"{where}: {path}")
    return from_json(type(value), data, f"{where}: ")
