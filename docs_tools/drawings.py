"""``python -m docs_tools.drawings``: the line drawings of docs/method_in_pictures.md, as SVG."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "docs/images"
INK, SOFT, PALE, MARK, SECOND = "#263238", "#607d8b", "#eceff1", "#00897b", "#e64a19"
Point = tuple[float, float]


class Drawing:
    """Shapes on a white sheet."""

    def __init__(self, width: int, height: int) -> None:
        self.size = (width, height)
        self.parts = [f'<rect width="{width}" height="{height}" rx="6" fill="#fff"/>']

    def box(self, x: float, y: float, w: float, h: float, *, fill: str = PALE, line: str = SOFT) -> None:
        """A rectangle."""
        self.parts.append(f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="5" fill="{fill}" stroke="{line}"/>')

    def text(
        self, x: float, y: float, words: str, *, size: int = 13, colour: str = INK, anchor: str = "middle"
    ) -> None:
        """Lines of text, centred at x."""
        for number, line in enumerate(words.split("\n")):
            place = f'x="{x}" y="{y + number * (size + 3):g}" font-size="{size}" text-anchor="{anchor}"'
            self.parts.append(f'<text {place} fill="{colour}">{escape(line)}</text>')

    def arrow(self, start: Point, end: Point, *, colour: str = SOFT) -> None:
        """A line with a head at its end."""
        angle = math.atan2(end[1] - start[1], end[0] - start[0])
        sides = [(end[0] - 8 * math.cos(angle + s), end[1] - 8 * math.sin(angle + s)) for s in (-0.45, 0.45)]
        head = " ".join(f"{x:.1f},{y:.1f}" for x, y in (end, *sides))
        self.parts.append(
            f'<path d="M{start[0]},{start[1]} L{end[0]},{end[1]}" stroke="{colour}" stroke-width="1.6"/>'
            f'<polygon points="{head}" fill="{colour}"/>'
        )

    def blob(
        self, x: float, y: float, r: float, *, fill: str, line: str = INK, dash: str = "", wave: float = 0
    ) -> None:
        """A closed curve around (x, y): an organ, or its contour."""
        points = []
        for step in range(72):
            angle = step * math.pi / 36
            radius = r * (1 + 0.16 * math.sin(2 * angle + 0.6) + 0.06 * math.sin(3 * angle + wave))
            points.append(f"{x + radius * math.cos(angle):.1f},{y + 0.8 * radius * math.sin(angle):.1f}")
        style = f'stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<polygon points="{" ".join(points)}" fill="{fill}" stroke="{line}" stroke-width="2" {style}/>'
        )

    def save(self, path: Path) -> None:
        """Write the SVG."""
        w, h = self.size
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" width="{w}" height="{h}" '
        body = "\n".join(self.parts)
        path.write_text(f'{head}fill="none" font-family="sans-serif">\n{body}\n</svg>\n', encoding="utf-8")


def scan(on: Drawing, x: float, y: float, *, shift: float = 0, labels: bool = False, wave: float = 0) -> None:
    """A slice of a body with two organs, 90 x 80."""
    on.box(x, y, 90, 80, fill="#37474f", line=INK)
    on.blob(x + 45, y + 40, 35, fill="#78909c", line="#b0bec5", wave=1)
    for cx, cy, r, colour in ((31, 36, 14, MARK), (60 + shift, 45, 10, SECOND)):
        on.blob(x + cx, y + cy, r, fill=colour if labels else "#90a4ae", line="#cfd8dc", wave=wave)


def stages() -> Drawing:
    """From a scan to its label map."""
    sheet = Drawing(880, 310)
    scan(sheet, 15, 20, labels=True)
    sheet.text(60, 118, "annotated scan\n(the atlas)")
    scan(sheet, 15, 180, shift=-8, wave=2)
    sheet.text(60, 280, "new scan")
    for x, title, words in (
        (150, "Registration", "finds for each voxel\nits place in the atlas"),
        (342, "Network", "from intensities, place\nand atlas labels"),
        (534, "Fusion", "weighs network\nand atlas labels"),
    ):
        sheet.box(x, 95, 160, 90)
        sheet.text(x + 80, 122, title, size=17, colour=MARK)
        sheet.text(x + 80, 148, words, size=14)
    sheet.box(712, 15, 158, 90)
    sheet.text(791, 42, "Refinement", size=17, colour=MARK)
    sheet.text(791, 68, "HU, intensities,\nneighbours, pieces", size=14)
    scan(sheet, 746, 180, shift=-8, labels=True, wave=2)
    sheet.text(791, 280, "label map and\nquality score")
    sheet.arrow((107, 60), (152, 94))
    sheet.arrow((107, 220), (152, 187))
    sheet.arrow((311, 140), (340, 140))
    sheet.arrow((503, 140), (532, 140))
    sheet.arrow((695, 122), (716, 106))
    sheet.arrow((791, 106), (791, 177))
    sheet.parts.append(f'<path d="M614,186 C614,240 234,240 230,196" stroke="{SOFT}" stroke-dasharray="5 4"/>')
    sheet.arrow((230, 198), (229, 188))
    sheet.text(422, 256, "where both disagree: once more, with the prediction as a guide", colour=SOFT)
    return sheet


def prototypes() -> Drawing:
    """A voxel's embedding and the prototypes of the classes."""
    sheet = Drawing(640, 280)
    centre = (320.0, 245.0)
    sheet.parts.append(f'<path d="M120,245 A200,200 0 0 1 520,245" stroke="{SOFT}"/>')
    for degrees, colour in ((158, MARK), (142, MARK), (126, MARK), (66, SECOND), (48, SECOND), (28, SECOND)):
        angle = math.radians(degrees)
        end = (centre[0] + 200 * math.cos(angle), centre[1] - 200 * math.sin(angle))
        sheet.arrow(centre, end, colour=colour)
    angle = math.radians(112)
    end = (centre[0] + 200 * math.cos(angle), centre[1] - 200 * math.sin(angle))
    sheet.arrow(centre, end, colour=INK)
    sheet.text(end[0] - 10, end[1] - 10, "embedding of a voxel", size=14, anchor="end")
    sheet.text(40, 80, "prototypes\nof the liver", colour=MARK, anchor="start", size=14)
    sheet.text(510, 80, "prototypes\nof the spleen", colour=SECOND, anchor="start", size=14)
    sheet.text(320, 268, "the class is that of the prototypes at the smallest angle", size=14, colour=SOFT)
    return sheet


def folds() -> Drawing:
    """Which scans are trained on and scored at three levels."""
    sheet = Drawing(720, 230)
    for column, (level, rows) in enumerate(
        (("1shot", ("x..", ".x.", "..x")), ("loo", (".xx", "x.x", "xx.")), ("all", ("xxx",)))
    ):
        left = 30 + column * 235
        sheet.text(left + 90, 30, f"level {level}", size=15, colour=MARK)
        for number, row in enumerate(rows):
            top = 50 + number * 50
            sheet.text(left, top + 24, f"fold {number}", size=12, anchor="start")
            for place, mark in enumerate(row):
                x = left + 52 + place * 46
                sheet.box(x, top, 40, 36, fill=MARK if mark == "x" else "#fff")
                words, colour = ("train", "#fff") if mark == "x" else ("test", SOFT)
                sheet.text(x + 20, top + 22, words, size=11, colour=colour)
    sheet.text(360, 218, "three annotated scans: each fold is one model", size=12, colour=SOFT)
    return sheet


def tolerance() -> Drawing:
    """NSD: surfaces within a tolerance."""
    sheet = Drawing(640, 250)
    for left, words, shift in ((150, "NSD high: within the tolerance\nnearly everywhere", 6), (480, "NSD low", 26)):
        sheet.blob(left, 110, 88, fill="#b2dfdb", line="none")
        sheet.blob(left, 110, 72, fill="#fff", line="none")
        sheet.blob(left, 110, 80, fill="none", line=MARK)
        sheet.blob(left + shift, 110, 80, fill="none", line=SECOND, dash="6 4", wave=0.5)
        sheet.text(left, 215, words, size=12)
    sheet.text(315, 100, "reference", size=12, colour=MARK)
    sheet.text(315, 118, "prediction", size=12, colour=SECOND)
    sheet.text(315, 136, "tolerance", size=12, colour="#4db6ac")
    return sheet


DRAWINGS = {"stages": stages, "prototypes": prototypes, "folds": folds, "tolerance": tolerance}


def main() -> None:
    """Write all drawings."""
    for name, draw in DRAWINGS.items():
        draw().save(FOLDER / f"{name}.svg")


if __name__ == "__main__":
    main()
