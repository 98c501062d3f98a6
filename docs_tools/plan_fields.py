"""The reference of the plan's fields, from the configuration records and the comments in their source."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import textwrap
import tokenize
import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints

from docs_tools.commands import cell
from mre_lowshot.config import NetworkConfig, PreprocessingConfig, Recipe
from mre_lowshot.config.plan import ChannelNormalization, FoldDecisions, PatchConfig, Plan
from mre_lowshot.config.presets import DEFAULT

SECTIONS: tuple[tuple[str, type, str], ...] = (
    ("", Plan, "The plan itself"),
    ("preprocessing", PreprocessingConfig, "Preprocessing"),
    ("preprocessing.normalization[i]", ChannelNormalization, "Normalisation of a channel"),
    ("patch", PatchConfig, "Patch"),
    ("network", NetworkConfig, "Network"),
    ("recipe", Recipe, "Recipe"),
    ("fold", FoldDecisions, "Decisions of a fold"),
)


def page() -> str:
    """The page of all fields, in Markdown."""
    parts = [
        "# Fields of the plan",
        "",
        "Generated from the configuration records (`mre_lowshot/config/`). `MREPlans.json` holds these fields. Change "
        "one with `mre_plan_and_preprocess -d DATASET -p NAME --set FIELD=VALUE`, or in the file, followed by "
        "`mre_plan_and_preprocess -d DATASET -p NAME --keep_plan`. A value that is not allowed is refused with the "
        "rule. [The method](../METHOD.md) explains what the fields do.",
        "",
        "The column *default* is the value of a record that is not given, which is the paper's. `recipe` fields have a "
        "second column with the value of recipe `default`, before the planner adapts it to the data and the device.",
    ]
    for prefix, record, title in SECTIONS:
        parts += ["", f"## {title}", "", *_section(prefix, record)]
    return "\n".join(parts) + "\n"


def _section(prefix: str, record: type) -> list[str]:
    head = [_first_paragraph(record), ""]
    in_recipe = prefix.startswith("recipe")
    preset = _preset(prefix) if in_recipe else None
    columns = "| field | type | default | recipe `default` | meaning |" if in_recipe else (
        "| field | type | default | meaning |"
    )  # fmt: skip
    lines = [*head, columns, "|---" * (5 if in_recipe else 4) + "|"]
    nested: list[tuple[str, type]] = []
    for item, comment in described(record):
        name = f"{prefix}.{item.name}" if prefix else item.name
        kind = get_type_hints(record)[item.name]
        if is_dataclass(kind):
            if in_recipe:
                nested.append((name, typing.cast(type, kind)))
                continue
            comment = comment or "see the section below"
        shown = [f"`{name}`", _type(kind), _default(item)]
        if in_recipe:
            shown.append(_code(getattr(preset, item.name)))
        lines.append(f"| {' | '.join([*shown, cell(comment)])} |")
    for name, kind in nested:
        lines += ["", f"### {name}", "", *_section(name, kind)]
    return lines


def described(record: type) -> list[tuple[dataclasses.Field[Any], str]]:
    """The fields of a record, each with the comment behind it or above it."""
    source = textwrap.dedent(inspect.getsource(record))
    comments: dict[int, str] = {}
    alone: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ").strip()
            if not token.line[: token.start[1]].strip():
                alone.add(token.start[0])
    body = typing.cast(ast.ClassDef, ast.parse(source).body[0]).body
    places = {n.target.id: n for n in body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    found = []
    for item in fields(typing.cast(Any, record)):
        node = places[item.name]
        first, last = node.lineno, node.end_lineno or node.lineno
        above = first
        while above - 1 in alone:
            above -= 1
        words = [comments[n] for n in range(above, last + 1) if n in comments and comments[n] != "fmt: skip"]
        found.append((item, " ".join(words)))
    return found


def _first_paragraph(record: type) -> str:
    return " ".join((inspect.getdoc(record) or "").split("\n\n")[0].split()).replace("``", "`")


def _preset(prefix: str) -> Any:
    found: Any = DEFAULT
    for name in prefix.split(".")[1:]:
        found = getattr(found, name)
    return found


def _type(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in typing.get_args(kind))
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return " or ".join(map(_type, typing.get_args(kind)))
    return "none" if kind is type(None) else f"`{_spelled(kind)}`"


def _spelled(kind: Any) -> str:
    if typing.get_origin(kind) is None:
        return getattr(kind, "__name__", str(kind))
    inner = ", ".join("..." if arg is Ellipsis else _spelled(arg) for arg in typing.get_args(kind))
    return f"{typing.get_origin(kind).__name__}[{inner}]"


def _default(item: dataclasses.Field[Any]) -> str:
    if item.default is not MISSING:
        return _code(item.default)
    return "" if item.default_factory is MISSING else _code(item.default_factory())


def _code(value: Any) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if value is None:
        return "none"
    if value in ((), ""):
        return "empty"
    return f"`{value}`"
