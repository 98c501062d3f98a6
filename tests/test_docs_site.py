"""The documentation site: generated pages are complete, commands in the pages are valid, the site builds."""

import argparse
import os
import re
import shlex
import subprocess
import sys
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from typing import get_type_hints

import pytest

from docs_tools import GENERATED, commands, drawings, plan_fields, python_api

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
ADDED = {*GENERATED, "changelog.md", "contributing.md"}


def blocks(path):
    """The lines of each block of commands (fenced, without a language), continued lines joined."""
    text = path.read_text(encoding="utf-8")
    for block in re.findall(r"^ *```\n(.*?)^ *```$", text, re.M | re.S):
        yield re.sub(r"\\\n\s*", " ", block).splitlines()


def command_lines(path):
    return [line.strip() for block in blocks(path) for line in block if line.strip().startswith("mre_")]


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"(?:: |- )([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M))
    assert listed - ADDED == {path.relative_to(ROOT / "docs").as_posix() for path in PAGES}
    assert listed >= ADDED


def test_the_reference_lists_every_option_of_every_command():
    page = commands.page()
    assert set(commands.commands()) == set(re.findall(r"^## (mre_\w+)$", page, re.M))
    for name, module in commands.commands().items():
        section = page.split(f"## {name}\n")[1].split("\n## ")[0]
        rows = re.findall(r"^\| (`[^|]*) \|", section, re.M)
        for action in import_module(module)._parser()._actions:
            if action.help == argparse.SUPPRESS or action.dest in ("help", "version"):
                continue
            word = action.option_strings[0] if action.option_strings else action.metavar or action.dest
            assert any(f"`{word}`" in row for row in rows), (name, word)


def test_every_field_of_the_plan_has_a_row_with_a_meaning():
    page, missing = plan_fields.page(), []

    def rows(prefix, record):
        for item, _ in plan_fields.described(record):
            name = f"{prefix}.{item.name}" if prefix else item.name
            kind = get_type_hints(record)[item.name]
            if prefix.startswith("recipe") and is_dataclass(kind):
                rows(name, kind)
            elif not re.search(rf"^\| `{re.escape(name)}` \|.*\| [^|]*\w[^|]*\|$", page, re.M):
                missing.append(name)

    for prefix, record, _ in plan_fields.SECTIONS:
        rows(prefix, record)
    assert missing == []
    assert "| `recipe.optimizer.iterations` | `int` | `3000` | `600` | mini-batches of a training |" in page


def test_the_python_reference_shows_documented_objects():
    shown = python_api.objects()
    names = [name for names in shown.values() for name in names]
    assert len(names) == len(set(names)) > 20
    assert "mre_lowshot.workflows.evaluate.EvaluationResult" in shown["Results"]
    for name in names:
        module, _, thing = name.rpartition(".")
        assert (getattr(import_module(module), thing).__doc__ or "").strip(), name


@pytest.mark.parametrize("name", drawings.DRAWINGS)
def test_drawings_are_those_of_the_script(name, tmp_path):
    drawings.DRAWINGS[name]().save(tmp_path / "new.svg")
    assert (tmp_path / "new.svg").read_bytes() == (drawings.FOLDER / f"{name}.svg").read_bytes()


@pytest.mark.parametrize("path", [*PAGES, ROOT / "README.md"], ids=lambda path: path.stem)
def test_commands_in_pages_are_accepted_by_their_parsers(path, capsys):
    """Whole command lines: options, values, what is required."""
    known, refused = commands.commands(), []
    for line in command_lines(path):
        name, *words = shlex.split(line.split(" || ")[0], comments=True)
        if name not in known:
            continue
        module = import_module(known[name])
        parser = module._parser()
        mixed = "parse_intermixed_args" in Path(module.__file__).read_text()  # options may stand between names
        try:
            parser.parse_intermixed_args(words) if mixed else parser.parse_args(words)
        except SystemExit:
            refused.append((line, capsys.readouterr().err.splitlines()[-1]))
    assert refused == []


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", tmp_path / "site"],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING" not in done.stderr
    pages = {path: path.read_text(encoding="utf-8") for path in (tmp_path / "site").rglob("*.html")}
    assert len(pages) > 25
    loaded = [(path.name, url) for path, text in pages.items()
              for url in re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)', text)]  # fmt: skip
    assert loaded == []  # nothing is loaded from elsewhere
