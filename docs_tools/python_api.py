"""The reference of the Python interface: which objects are shown; mkdocstrings fills in their docstrings."""

from __future__ import annotations

import dataclasses
import sys
import typing

import mre_lowshot
from mre_lowshot.inference.predictor import Predictor

# Functions for single arrays, and errors, beside the names of `mre_lowshot`.
MORE = {
    "Metrics of arrays": [
        "mre_lowshot.evaluation.metrics.dice",
        "mre_lowshot.evaluation.metrics.hd95",
        "mre_lowshot.evaluation.surfaces.surface_dice",
        "mre_lowshot.evaluation.label_statistics.label_statistics",
    ],
    "Errors": ["mre_lowshot.errors.UserError", "mre_lowshot.errors.NumericalError"],
}


def objects() -> dict[str, list[str]]:
    """Title -> dotted names of the objects of that section."""
    public = [getattr(mre_lowshot, name) for name in mre_lowshot.__all__]
    classes = [thing for thing in public if isinstance(thing, type)]
    functions = [thing for thing in public if not isinstance(thing, type)]
    returned = [_returned(call) for call in (Predictor.predict, *functions)]
    results = [kind for kind in returned if dataclasses.is_dataclass(kind)]
    found = {"Classes": classes, "Functions": functions, "Results": list(dict.fromkeys(results))}
    return {title: [_name(thing) for thing in things] for title, things in found.items()} | MORE


def page() -> str:
    """The page, in Markdown."""
    parts = [
        "# Python reference",
        "",
        "Generated from the docstrings. The names of the first two sections are imported from `mre_lowshot` itself, as "
        "in `from mre_lowshot import Predictor`. [From Python](../PYTHON.md) shows them in use.",
    ]
    for title, names in objects().items():
        parts += ["", f"## {title}"]
        for name in names:
            parts += ["", f"::: {name}"]
    return "\n".join(parts) + "\n"


def _returned(call: typing.Any) -> typing.Any:
    """The class that a function returns; None where it is not one class."""
    return getattr(sys.modules[call.__module__], call.__annotations__["return"], None)


def _name(thing: typing.Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"
