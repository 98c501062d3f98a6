"""Frozen dataclasses to JSON and back, with every unknown key and wrong type refused by name.

A plan is meant to be edited by hand, so reading one is a boundary: the message says which key of which file is wrong
and which key was probably meant.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from typing import Any, TypeVar

from mre_lowshot.errors import UserError

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """Turn (nested) dataclasses and tuples into dicts and lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    if isinstance(value, dict):
        return {str(k): to_json(v) for k, v in value.items()}
    return value


def from_json(kind: type[T], data: Any, where: str) -> T:
    """Build dataclass ``kind`` from JSON ``data``. ``where`` names the place for messages: "MREPlans.json: recipe".

    Raises:
        UserError: a key is unknown (the nearest known one is named) or missing, or a value has the wrong type or
            breaks a rule of the dataclass.
    """
    if not isinstance(data, dict):
        raise UserError(f"{where}: must be a JSON object with named fields, found {data!r}")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            raise UserError(f"{where}: unknown key {key!r}; {nearest(key, fields)}")
    missing = [
        n
        for n, f in fields.items()
        if n not in data and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f"{where}: key {missing[0]!r} is missing; add it, or plan the dataset again")
    values = {name: _value(hints[name], v, f"{where}.{name}") for name, v in data.items()}
    try:
        return kind(**values)
    except UserError as problem:
        raise UserError(f"{where}: {problem}") from None


def nearest(key: str, known: typing.Iterable[str]) -> str:
    """Name the known key that ``key`` was probably meant to be, or list them all."""
    known = list(known)
    close = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(known))}"


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _value(next(a for a in arguments if a is not type(None)), value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise UserError(f"{where}: is {value!r}; must be one of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{where}: is {value!r}; must be a list")
        return tuple(_value(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"{where}: is {value!r}; must be a JSON object")
        return {_value(arguments[0], k, where): _value(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast(Any, hint), value, where)
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (bool, int, float, str) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise UserError(f"{where}: is {value!r}; must be {'an' if hint is int else 'a'} {hint.__name__}")
    return value


def changed(value: T, path: str, text: str, where: str) -> T:
    """``value`` with the field at dotted ``path`` replaced by ``text`` (JSON, or a bare word), as ``--set`` does."""
    return all_changed(value, {path: text}, where)


def all_changed(value: T, changes: dict[str, str], where: str) -> T:
    """As `changed`, several fields at once: rules that join fields are checked when all are set.

    Raises:
        UserError: the path names no field, or the new value breaks a rule.
    """
    import json

    data = to_json(value)
    for path, text in changes.items():
        place, names = data, path.split(".")
        for depth, name in enumerate(names):
            if not isinstance(place, dict):
                above = ".".join(names[:depth])
                raise UserError(f"{where}: {path!r} names no field; {above!r} has no fields of its own")
            if name not in place:
                raise UserError(f"{where}: {path!r} names no field; {nearest(name, place)}")
            if depth + 1 < len(names):
                place = place[name]
        try:
            place[names[-1]] = json.loads(text)
        except json.JSONDecodeError:
            place[names[-1]] = text
    return from_json(type(value), data, where)
