"""What mkdocs calls while it builds the site: it adds the generated pages, and the pages that lie outside docs/.

Generated at every build, the reference of commands, plan fields and Python cannot differ from the code.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docs_tools import GENERATED, commands, plan_fields, python_api

ROOT = Path(__file__).resolve().parents[1]
# Files outside docs/ that are pages of the site; links to other files of the repository become plain text.
OUTSIDE = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
PLACES = {**{f"../{name}": page for name, page in OUTSIDE.items()}, "../README.md": "index.md"}
_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not files in docs/."""
    made = dict(zip(GENERATED, (commands.page(), plan_fields.page(), python_api.page()), strict=True))
    for name, page in OUTSIDE.items():
        made[page] = from_root((ROOT / name).read_text(encoding="utf-8"))
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Lead links out of docs/ to the page that holds the file, or leave the text alone."""
    folder = posixpath.dirname(page.file.src_uri)
    return _LINK.sub(lambda found: _link(found, folder), markdown)


def from_root(text: str) -> str:
    """``text`` of a file at the top of the repository, with its links as seen from docs/."""

    def moved(found: re.Match[str]) -> str:
        label, target = found[1], found[2]
        if target.startswith(("http", "#")):
            return found[0]
        return f"[{label}]({target.removeprefix('docs/') if target.startswith('docs/') else '../' + target})"

    return _LINK.sub(moved, text)


def _link(found: re.Match[str], folder: str) -> str:
    label, (target, mark, heading) = found[1], found[2].partition("#")
    if not target or target.startswith("http"):
        return found[0]
    place = posixpath.normpath(posixpath.join(folder, target))
    if not place.startswith(".."):
        return found[0]
    if place not in PLACES:
        return label
    return f"[{label}]({posixpath.relpath(PLACES[place], folder or '.')}{mark}{heading})"
