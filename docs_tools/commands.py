"""The reference of commands, from their argument parsers."""

from __future__ import annotations

import argparse
import re
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def commands() -> dict[str, str]:
    """Name of each command -> its module, in the order of pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return dict(re.findall(r'^(mre_\w+) = "([\w.]+):main"', text, re.M))


def page() -> str:
    """The page of all commands, in Markdown."""
    parts = [
        "# Commands",
        "",
        "Generated from the commands' own argument parsers: the same text as `-h`. Options that nnU-Net has too keep "
        "its names. For tasks from beginning to end see the how-tos.",
        "",
        *(f"- [`{name}`](#{name}): {_parser(module).description}" for name, module in commands().items()),
        "",
        "Exit codes of every command: 0 done; 1 some cases failed, a training diverged or memory was short; 2 wrong "
        "use; 3 an internal error; 130 interrupted (Ctrl-C); 143 ended by SIGTERM. `MRE_TRACEBACK=1` prints the Python "
        "traceback of an error.",
    ]
    for name, module in commands().items():
        parts += ["", *_command(name, _parser(module))]
    return "\n".join(parts) + "\n"


def _parser(module: str) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = import_module(module)._parser()
    return made


def _command(name: str, parser: argparse.ArgumentParser) -> list[str]:
    formatter = argparse.HelpFormatter(parser.prog, width=86)
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups, prefix="")
    usage = formatter.format_help().strip().splitlines()
    lines = [f"## {name}", "", parser.description or "", "", "``` { .text .usage }", *usage, "```", ""]
    lines += ["| option | value | meaning |", "|---|---|---|"]
    for action in parser._actions:
        if not isinstance(action, argparse._HelpAction | argparse._VersionAction):
            lines.append(f"| {_names(action)} | {_value(action)} | {_help(parser, action)} |")
    # the epilog is laid out for a terminal; the disclaimer at its end is on the start page
    epilog = (parser.epilog or "").rpartition("\n\n")[0]
    if epilog:
        lines += ["", "``` { .text .usage }", *epilog.splitlines(), "```"]
    return lines


def _names(action: argparse.Action) -> str:
    if action.option_strings:
        return ", ".join(f"`{text}`" for text in action.option_strings) + (" (required)" if action.required else "")
    return f"`{action.metavar or action.dest}`" + (" (required)" if action.nargs not in ("?", "*") else "")


def _value(action: argparse.Action) -> str:
    if action.nargs == 0 or not action.option_strings:
        return ""
    if action.choices is not None and action.metavar is None:
        return ", ".join(f"`{choice}`" for choice in action.choices)
    name = str(action.metavar or action.dest.upper())
    return f"`{name}`" + (" ..." if action.nargs in ("+", "*") else "")


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    text = parser._get_formatter()._expand_help(action) if action.help else ""
    return cell(text)


def cell(text: str) -> str:
    """``text`` in a cell of a Markdown table: shown as it is."""
    text = re.sub(r"\s+", " ", text.strip())
    return re.sub(r"([|*_<>\[\]`])", r"\\\1", text)
