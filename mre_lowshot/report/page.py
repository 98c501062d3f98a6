"""A report as one HTML file that needs nothing else: no network, no other file.

Images are kept as text (base64) in blocks that a browser does not decode; page.js decodes those of a scan when it is
opened. It stands before the plots and the blocks of all scans but the first, which is shown while the browser reads
the others. A content security policy allows the page's own script and style only, and no connection.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from mre_lowshot import __version__
from mre_lowshot.files import atomic_write, json_line
from mre_lowshot.limits import bytes_text
from mre_lowshot.report.content import CaseContent, Images, Report, amount
from mre_lowshot.report.sections import sections, text

_MARK = b"<!-- mre_lowshot report "
_END = re.compile(rb"<!-- mre_lowshot report ([0-9a-f]{64}) -->\n\Z")
_STATED = 60  # letters for the size, so that the page is as long whatever it is
_TAIL = len(_MARK) + 64 + len(b" -->\n")
_KINDS = {"model": "a trained model", "prediction": "label maps", "experiment": "an experiment"}


def write_page(report: Report, path: Path) -> int:
    """Write the page; returns its size in bytes, which the page states too.

    Raises:
        UserError: it cannot be written.
    """
    size = sum(len(_encoded(part)) for part in _parts(report, 0)) + _TAIL  # the same with any size stated in it
    digest = hashlib.sha256()
    with atomic_write(path) as temporary, temporary.open("wb") as out:
        for part in map(_encoded, _parts(report, size)):
            digest.update(part)
            out.write(part)
        out.write(_MARK + digest.hexdigest().encode() + b" -->\n")
    return size


def _encoded(part: str) -> bytes:
    return part.encode("utf-8", "backslashreplace")


def is_own_page(path: Path) -> bool:
    """Whether a file is a page of `write_page` that has not changed since."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(max(size - _TAIL, 0))
            end = _END.match(file.read())
            if end is None:
                return False
            file.seek(0)
            digest, left = hashlib.sha256(), size - _TAIL
            while left and (block := file.read(min(left, 1 << 20))):
                digest.update(block)
                left -= len(block)
    except OSError:
        return False
    return digest.hexdigest().encode() == end[1]


def _parts(report: Report, size: int) -> Iterator[str]:
    """The page in pieces: the template, with the content in place of its marks. Content is never searched for marks."""
    script, style = _file("page_draw.js") + _file("page.js"), _file("page.css")
    listed = sections(report)
    made = [
        f'<section id="{name}" class="long">{f"<h2>{title}</h2>" if title else ""}{html}</section>'
        for name, title, html in listed
    ]
    viewer = next((number for number, (name, _, _) in enumerate(listed, 1) if name == "cases"), 0)
    content = {
        "TITLE": text(report.title),
        "SUBTITLE": _subtitle(report, size),
        "SCRIPT_HASH": _hash(script),
        "STYLE_HASH": _hash(style),
        "STYLE": style,
        "SCRIPT": script,
        "NAVIGATION": "".join(f'<a href="#{name}">{title}</a>' for name, title, _ in listed if title),
        "TOP": "".join(made[:viewer]),
        "BELOW": "".join(made[viewer:]),
        "DATA": json_line(_data(report)).replace("<", "\\u003c"),
    }
    for number, piece in enumerate(re.split(r"%([A-Z_]+)%", _file("page.html"))):
        if number % 2 == 0:
            yield piece
        elif piece in ("FIRST", "OTHERS"):
            yield from _payloads(report, slice(0, 1) if piece == "FIRST" else slice(1, None))
        else:
            yield content[piece]


def _subtitle(report: Report, size: int) -> str:
    stated = f"This page has {bytes_text(size)} ({size} bytes)."
    return (
        f"Report on {_KINDS[report.kind]}, written by mre_lowshot {__version__}. {len(report.cases)} scan(s), "
        f"{sum(case.images is not None for case in report.cases)} with images. {stated.ljust(_STATED)}"
    )


def _payloads(report: Report, part: slice) -> Iterator[str]:
    for number, case in list(enumerate(report.cases))[part]:
        for kind in ("scan", "prediction", "reference") if case.images else ():
            if content := getattr(case.images, kind):
                yield f'<script type="text/plain" id="{kind}-{number}">{base64.b64encode(content).decode()}</script>\n'


def _data(report: Report) -> dict[str, Any]:
    """What page.js needs; the rest of the page is HTML already."""
    return {
        "labels": [{"name": label.name, "colour": label.colour} for label in report.labels],
        "metrics": list(report.metrics),
        "cases": [_case(case, report) for case in report.cases],
    }


def _case(case: CaseContent, report: Report) -> dict[str, Any]:
    scores = {score.value: score for score in case.labels}
    unit, factor = amount(case.unit)
    rows = []
    for label in report.labels:
        score = scores.get(label.value)
        rows.append(
            {
                "quality": _rounded(score.quality) if score else None,
                "metrics": [_rounded(score.metrics.get(m)) if score else None for m in report.metrics],
                "volume": _rounded(factor * score.volume_ml) if score else None,
                "reference": _rounded(factor * score.reference_ml) if score else None,
            }
        )
    return {
        "name": case.name,
        "group": case.group,
        "dice": _rounded(case.mean("Dice")),
        "quality": _rounded(case.quality),
        "findings": case.findings,
        "warnings": case.warnings,
        "missing": case.missing,
        "scores": rows,
        "amount": unit,
        "images": _images(case.images) if case.images else None,
    }


def _images(images: Images) -> dict[str, Any]:
    kinds = {kind: bool(getattr(images, kind)) for kind in ("scan", "prediction", "reference")}
    return {**asdict(images), **kinds}


def _rounded(value: float | None) -> float | None:
    return None if value is None or value != value else float(f"{value:.5g}")


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _file(name: str) -> str:
    return (files("mre_lowshot.report") / name).read_text(encoding="utf-8")
