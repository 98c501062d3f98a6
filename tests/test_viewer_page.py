"""The viewer's page in a browser, with keys and mouse; the notebook; and what is vendored."""

import hashlib
import io
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from mre_lowshot.workflows.view import view
from tests.viewer_folders import write_folder

ROOT = Path(__file__).resolve().parents[1]
VENDORED = ROOT / "mre_lowshot/viewer/web/niivue"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
SOFTWARE_GL = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-sandbox"]


def test_niivue_is_the_file_that_its_readme_states():
    readme = (VENDORED / "README.md").read_text()
    digest = re.search(r"\| sha256 \| ([0-9a-f]{64}) \|", readme)[1]
    assert hashlib.sha256((VENDORED / "niivue.umd.js").read_bytes()).hexdigest() == digest
    licence = (VENDORED / "LICENSE.txt").read_text()
    version = re.search(r"\| version \| ([\d.]+) \|", readme)[1]
    assert f"@niivue/niivue {version}, unchanged" in licence
    assert "BSD 2-Clause License" in licence
    assert "viewer/web/niivue" in (ROOT / "NOTICE").read_text()


def test_the_page_has_no_code_or_style_of_its_own_and_no_address_elsewhere():
    """The content policy would block them."""
    web = VENDORED.parent
    page = (web / "index.html").read_text()
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", page) == []
    for path in (*web.glob("*.js"), *web.glob("*.css"), web / "index.html"):
        assert "//" not in re.sub(r"(^|\s)//.*", "", path.read_text(), flags=re.M), path.name
        assert "innerHTML" not in path.read_text()


class Page:
    """The viewer's page in a browser."""

    def __init__(self, browser, url):
        self.page = browser.new_page(viewport={"width": 1300, "height": 820})
        self.problems, self.hosts = [], set()
        self.page.on("console", lambda line: self.problems.append(f"{line.type}: {line.text}"))
        self.page.on("pageerror", lambda problem: self.problems.append(str(problem)))
        self.page.on("requestfailed", lambda request: self.problems.append(f"{request.url}: {request.failure}"))
        self.page.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))
        self.page.goto(url)
        self.wait_for("broken")

    def wait_for(self, name):
        """Wait until a case is shown."""
        self.page.wait_for_selector(f'body[data-shown="{name}"]', timeout=120_000)

    def pixels(self, figure="one"):
        """(height, width, 3) of a canvas, as it is on the screen."""
        from PIL import Image

        self.page.wait_for_timeout(500)
        return np.asarray(Image.open(io.BytesIO(self.page.locator(f"#{figure} canvas").screenshot())).convert("RGB"))

    def text(self, selector):
        return self.page.inner_text(selector)


def like(pixels, colour, tolerance=60):
    """The number of pixels with the hue of a colour, whatever their brightness."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], float)
    found = pixels.astype(float)
    saturation = found.max(axis=-1) - found.min(axis=-1)
    cosine = (found @ wanted) / (np.linalg.norm(found, axis=-1) * np.linalg.norm(wanted) + 1e-6)
    return int(((saturation > tolerance) & (cosine > 0.97)).sum())


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra browser")
    pytest.importorskip("PIL")
    if not CHROMIUM:
        pytest.skip("Chromium is not installed (or name it with CHROMIUM)")
    with sync_api.sync_playwright() as started:
        made = started.chromium.launch(executable_path=CHROMIUM, args=SOFTWARE_GL)
        yield made
        made.close()


@pytest.mark.slow
def test_the_page_with_keys_and_mouse(browser, tmp_path):
    folder = write_folder(tmp_path)
    with view(folder, reference=tmp_path / "references") as running:
        page = Page(browser, running.ticket_url)
        keys, screen = page.page.keyboard, page.page
        assert screen.url == running.url
        # The worst case is shown first: it failed, and has a scan without labels.
        assert [row.split("\n")[0] for row in page.text("#cases").split("\n\n")][:1] == ["broken"]
        assert "out of memory" in page.text("#messages")
        assert like(page.pixels(), "#00c389") == 0
        # The next case by key has labels in the dataset's colours.
        keys.press("n")
        page.wait_for("bad")
        assert page.text("#title").startswith("2 of 4: bad, quality score 0.20")
        assert "spacing differs" in page.text("#messages")
        shown = page.pixels()
        assert like(shown, "#00c389") > 500
        assert like(shown, "#56b4e9") > 200
        # A label is hidden by its box and shown again by its number.
        screen.click('input[data-value="1"]')
        hidden = page.pixels()
        assert like(hidden, "#00c389") == 0
        assert like(hidden, "#56b4e9") > 200
        keys.press("1")
        assert like(page.pixels(), "#00c389") > 500
        # Opacity: the mean saturation of the picture rises.
        keys.press("o")  # without outlines
        faint = page.pixels().astype(int)
        for _ in range(5):
            keys.press("+")
        strong = page.pixels().astype(int)
        assert np.ptp(strong, axis=-1).mean() > 1.2 * np.ptp(faint, axis=-1).mean()
        assert screen.input_value("#opacity") == "0.85"
        # Reference, side by side, difference.
        before = page.pixels()
        keys.press("r")
        screen.wait_for_selector('#layer button[value="reference"][aria-pressed="true"]')
        assert page.text("#one figcaption") == "reference"
        assert (page.pixels() != before).any()
        keys.press("s")
        screen.wait_for_selector('#layer button[value="both"][aria-pressed="true"]')
        assert like(page.pixels("one"), "#00c389") > 100
        assert like(page.pixels("two"), "#00c389") > 100
        keys.press("d")
        screen.wait_for_selector('#layer button[value="difference"][aria-pressed="true"]')
        shown = page.pixels()
        assert like(shown, "#e69f00") > 50
        assert like(shown, "#56b4e9") > 50
        keys.press("d")
        screen.wait_for_selector('#layer button[value="prediction"][aria-pressed="true"]')
        # Mouse: a click moves the position, the right button changes window and level, the wheel the slice.
        box = screen.locator("#one canvas").bounding_box()
        x, y = box["x"] + box["width"] * 0.2, box["y"] + box["height"] * 0.7
        place = page.text("#position")
        screen.mouse.click(x, y)
        assert page.text("#position") != place
        window = page.text("#window")
        screen.mouse.move(x, y)
        screen.mouse.down(button="right")
        screen.mouse.move(x + 40, y + 30, steps=4)
        screen.mouse.up(button="right")
        assert page.text("#window") != window
        keys.press("w")
        assert page.text("#window") == window
        place = page.text("#position")
        screen.mouse.wheel(0, 100)
        screen.wait_for_timeout(300)
        assert page.text("#position") != place
        place = page.text("#position")
        keys.press("ArrowRight")
        assert page.text("#position") != place
        # Views, and the previous case by key.
        planes = page.pixels()
        keys.press("v")
        assert (page.pixels() != planes).mean() > 0.2
        keys.press("p")
        page.wait_for("broken")
        screen.click("#cases li:nth-child(4)")
        page.wait_for("good")
        assert page.text("#title").startswith("4 of 4: good")
        assert page.problems == []
        assert page.hosts == {f"127.0.0.1:{running.port}"}


@pytest.mark.slow
def test_keys_that_are_pressed_while_a_case_is_loaded_do_no_harm(browser, tmp_path):
    folder = write_folder(tmp_path)
    with view(folder, reference=tmp_path / "references") as running:
        page = Page(browser, running.url)
        page.page.keyboard.press("n")
        page.wait_for("bad")
        for key in ("n", "s", "ArrowRight", "g", "n", "ArrowRight"):
            page.page.keyboard.press(key)
        page.wait_for("good")
        page.page.wait_for_selector('#layer button[value="both"][aria-pressed="true"]')
        page.page.wait_for_timeout(2000)
        assert "cannot be shown" not in page.text("#messages")
        assert like(page.pixels("two"), "#00c389") > 100
        assert page.problems == []


@pytest.mark.slow
def test_right_and_left_are_where_the_page_states_them(browser, tmp_path):
    """The label at the patient's right is on the left of the axial plane."""
    folder = write_folder(tmp_path)
    with view(folder) as running:
        page = Page(browser, running.url)
        page.page.keyboard.press("n")
        page.wait_for("bad")
        page.page.click('#view button[value="axial"]')
        shown = page.pixels()
        columns = {
            colour: np.mean([x for x in range(shown.shape[1]) if like(shown[:, x : x + 1], colour)])
            for colour in ("#00c389", "#56b4e9")
        }
        # LPS: x rises to the left; liver at x 3 to 6, left kidney at 10 to 13
        assert columns["#00c389"] < columns["#56b4e9"]
        assert "right is on the left" in page.text("#convention")
        box = page.page.locator("#one canvas").bounding_box()
        page.page.mouse.click(box["x"] + 0.25 * box["width"], box["y"] + 0.5 * box["height"])
        first = page.text("#position")
        page.page.mouse.click(box["x"] + 0.75 * box["width"], box["y"] + 0.5 * box["height"])
        assert first != page.text("#position")
        assert page.problems == []


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="needs the extra view")
    pytest.importorskip("ipyniivue")
    pytest.importorskip("ipykernel")
    nbformat = pytest.importorskip("nbformat")
    write_folder(tmp_path / "mre_demo")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(ROOT / "docs/notebooks/view.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)  # committed without outputs
    done = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in done.cells for output in cell.get("outputs", ())]
    assert any("application/vnd.jupyter.widget-view+json" in output.get("data", {}) for output in outputs)
    texts = "".join(output.get("text", "") for output in outputs)
    assert "bad 0.20" in texts
