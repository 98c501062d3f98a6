"""The page of mre_report in headless Chromium, with mouse and keys: slow, and skipped without playwright or Chromium
(extra ``browser``; Debian: apt-get install chromium)."""

import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
from report_folder import write_folder

import mre_lowshot
from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.volume import Volume
from mre_lowshot.report.content import CaseContent, Fact, Label, LabelScore, Report
from mre_lowshot.report.page import write_page
from mre_lowshot.report.samples import make_images

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]
LAPTOP = {"width": 1366, "height": 768}
AXIAL = '#planes canvas[data-plane="axial"][data-kind="prediction"]'


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="the extra 'browser' is not installed")
    with playwright.sync_playwright() as running:
        found = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("browser")
    folder = write_folder(root)
    for number, name in enumerate("abc"):
        (root / f"ref/case{number}.nii.gz").rename(root / f"ref/{name}.nii.gz")
    return mre_lowshot.write_report(folder, reference=root / "ref")


@pytest.fixture
def page(browser, made):
    """The page with a case open; every problem that the browser reports fails the test."""
    context = browser.new_context(viewport=LAPTOP, offline=True)
    opened, problems = context.new_page(), []
    opened.on(
        "console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None
    )
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on(
        "request",
        lambda request: None if request.url.startswith(("file:", "data:", "blob:")) else problems.append(request.url),
    )
    opened.goto(made.path.as_uri())
    opened.wait_for_selector(AXIAL)
    opened.evaluate("document.getElementById('viewer').scrollIntoView()")
    yield opened
    context.close()
    assert problems == []


def picture(page, selector=AXIAL):
    return page.eval_on_selector(selector, "canvas => canvas.toDataURL()")


def name(page):
    return page.inner_text("#case-name")


def test_the_worst_case_is_open_beside_its_reference(page):
    assert name(page) == "c"
    assert "spleen: missed completely" in page.inner_text("#findings")
    kinds = page.eval_on_selector_all("#planes canvas", "all => all.map(c => c.dataset.kind + ' ' + c.dataset.plane)")
    assert len(kinds) == 9
    assert len(set(kinds)) == 9


def test_opening_a_page_or_a_case_does_not_scroll_it(browser, tmp_path):
    """The list is far below the top of a page on an experiment."""
    facts = tuple(Fact(f"fact {n}", "1", "a note that takes some lines " * 9) for n in range(40))
    cases = tuple(CaseContent(f"case {n:03d}", quality=n / 100) for n in range(100))
    write_page(Report("prediction", "long", facts=facts, cases=cases), tmp_path / "a.html")
    opened = browser.new_page(viewport=LAPTOP)
    opened.goto((tmp_path / "a.html").as_uri())
    opened.wait_for_selector('#list button[aria-current="true"]')
    assert opened.evaluate("window.scrollY") == 0
    opened.evaluate("document.getElementById('viewer').scrollIntoView()")
    before = opened.evaluate("window.scrollY")
    opened.keyboard.press("End")
    assert name(opened) == "case 099"
    list_box, box = (opened.locator(s).bounding_box() for s in ("#list", '#list button[aria-current="true"]'))
    assert list_box["y"] <= box["y"] <= box["y"] + box["height"] <= list_box["y"] + list_box["height"] + 1
    opened.keyboard.press("Home")
    list_box, box = (opened.locator(s).bounding_box() for s in ("#list", '#list button[aria-current="true"]'))
    assert list_box["y"] < box["y"] < list_box["y"] + 60
    assert opened.evaluate("window.scrollY") == before
    opened.close()


# The text whose colour differs least from what is behind it: contrast as WCAG defines it, and the element.
LEAST_CONTRAST = r"""() => {
  const TEXTS = "p, td, th, li, b, span, h1, h2, h3, nav a, label, li button, #list button, svg text";
  const rgb = (text) => text.match(/[\d.]+/g).map(Number);
  const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const found = rgb(getComputedStyle(at).backgroundColor);
      if (found.length < 4 || found[3] > 0) return found;
    }
    return [255, 255, 255];
  };
  let least = [99, ""];
  for (const node of document.querySelectorAll(TEXTS)) {
    if (!node.textContent.trim() || !node.getClientRects().length) continue;
    const style = getComputedStyle(node);
    const pair = [light(rgb(node.closest("svg") ? style.fill : style.color)), light(behind(node))].sort();
    const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    if (ratio < least[0]) least = [ratio, node.outerHTML.slice(0, 200)];
  }
  return [...least, light(behind(document.body))];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_in_light_and_dark_mode(browser, made, scheme):
    opened = browser.new_page(viewport=LAPTOP, color_scheme=scheme)
    opened.goto(made.path.as_uri())
    opened.wait_for_selector(AXIAL)
    contrast, where, background = opened.evaluate(LEAST_CONTRAST)
    assert (background < 0.05) == (scheme == "dark")
    assert contrast >= 4.5, where
    opened.close()


def test_slider_wheel_and_keys_change_the_slice(page):
    seen = [picture(page)]
    page.focus("#slice-axial")
    page.keyboard.press("ArrowLeft")
    seen.append(picture(page))
    box = page.locator("#slice-axial").bounding_box()
    page.mouse.click(box["x"] + 0.6 * box["width"], box["y"] + box["height"] / 2)
    seen.append(picture(page))
    page.hover(AXIAL)
    page.mouse.wheel(0, -100)
    page.wait_for_timeout(100)
    seen.append(picture(page))
    page.focus(AXIAL)
    page.keyboard.press("ArrowUp")
    seen.append(picture(page))
    assert len(set(seen)) == len(seen)


def test_a_click_moves_the_cross_in_all_planes(page):
    before = page.input_value("#slice-sagittal")
    box = page.locator(AXIAL).bounding_box()
    page.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + 0.1 * box["height"])
    assert page.input_value("#slice-sagittal") != before
    assert page.input_value("#slice-coronal") == "2"


def test_labels_are_switched_off_and_on(page):
    shown = picture(page)
    page.locator("#scores-body input").first.uncheck()
    without_liver = picture(page)
    page.locator("#scores-body input").first.check()
    assert picture(page) == shown
    page.focus(AXIAL)
    page.keyboard.press("h")
    assert shown not in (without_liver, picture(page))
    page.keyboard.press("h")
    assert picture(page) == shown


def test_arrows_go_to_the_next_and_the_previous_case(page):
    page.focus(AXIAL)
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(AXIAL)
    assert name(page) == "b"
    page.keyboard.press("ArrowLeft")
    assert name(page) == "c"
    page.click("#list button >> nth=2")
    assert name(page) == "a"
    page.keyboard.press("ArrowUp")  # in the list
    assert name(page) == "b"
    page.fill("#filter", "a")
    assert page.locator("#list button:visible").count() == 1


def test_window_planes_and_columns_are_chosen(page):
    before = picture(page)
    page.focus("#width")
    for _ in range(80):
        page.keyboard.press("ArrowRight")
    assert picture(page) != before
    page.uncheck("#show-reference")
    assert page.locator("#planes canvas").count() == 6
    page.select_option("#plane", "coronal")
    assert page.locator("#planes canvas").count() == 2
    page.dblclick('#planes canvas[data-kind="difference"]')
    assert page.locator("#planes canvas").count() == 6


def test_the_patients_right_is_on_the_left(browser, tmp_path):
    """A structure at the right, anterior, superior end of the scan, in every plane."""
    geometry = Geometry((20, 20, 20), (1.0, 1.0, 1.0))
    labels = np.zeros(geometry.shape, np.uint8)
    labels[15:19, 1:5, 1:5] = 1
    images = make_images(None, Volume(labels, geometry), None, values=[1], max_size=64)
    case = CaseContent("a", labels=(LabelScore(1),), images=replace(images, start=(16, 2, 2)))
    write_page(Report("prediction", "a", labels=(Label(1, "one", "#ff0000"),), cases=(case,)), tmp_path / "a.html")
    page = browser.new_page(viewport=LAPTOP)
    page.goto((tmp_path / "a.html").as_uri())
    page.wait_for_selector(AXIAL)
    page.uncheck("#show-cross")
    page.fill("#opacity", "1")
    found = {}
    for plane in ("axial", "coronal", "sagittal"):
        found[plane] = page.eval_on_selector(
            f'#planes canvas[data-plane="{plane}"]',
            """canvas => {
              const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
              let [x, y, n] = [0, 0, 0];
              for (let i = 0; i < pixels.length; i += 4)
                if (pixels[i] > 200 && pixels[i + 1] < 60) {
                  x += (i / 4) % canvas.width; y += Math.floor(i / 4 / canvas.width); n++;
                }
              return [x / n / canvas.width, y / n / canvas.height];
            }""",
        )
    page.close()
    assert found["axial"] == pytest.approx([3 / 20, 3 / 20], abs=0.02)  # right, anterior
    assert found["coronal"] == pytest.approx([3 / 20, 3 / 20], abs=0.02)  # right, superior
    assert found["sagittal"] == pytest.approx([3 / 20, 3 / 20], abs=0.02)  # anterior, superior


def test_it_prints_the_open_case(page, tmp_path):
    pdf = page.pdf(path=tmp_path / "a.pdf")
    assert pdf.startswith(b"%PDF")
    page.emulate_media(media="print")
    assert not page.is_visible(".controls")
    assert page.is_visible(AXIAL)


def test_a_page_of_200_cases_opens_in_two_seconds(browser, tmp_path, record_property):
    """Synthetic CTs of 160 x 160 x 160 voxels with noise, which take more space than real ones."""
    rng = np.random.default_rng(0)
    geometry = Geometry((160, 160, 160), (2.0, 2.0, 2.0))
    scan = Volume((rng.normal(40, 15, (1, *geometry.shape))).astype(np.float32), geometry)
    labels = np.zeros(geometry.shape, np.uint8)
    for value in range(1, 14):
        z, y, x = rng.integers(10, 110, 3)
        labels[z : z + 40, y : y + 40, x : x + 40] = value
    images = make_images(scan, Volume(labels, geometry), Volume(np.roll(labels, 3, 2), geometry),
                         values=list(range(1, 14)), max_size=160, is_ct=True)  # fmt: skip
    scores = tuple(LabelScore(v, 0.5, 100.0, 120.0, {"Dice": v / 14, "HD95": 3.0}) for v in range(1, 14))
    cases = tuple(CaseContent(f"case_{n:03}", labels=scores, images=images) for n in range(200))
    listed = tuple(Label(v, f"label {v}", "#e69f00") for v in range(1, 14))
    size = write_page(Report("prediction", "200 scans", labels=listed, cases=cases), tmp_path / "a.html")
    seconds = []
    while len(seconds) < 8 and (len(seconds) < 3 or min(seconds) >= 2):  # other programs may be running
        page = browser.new_page(viewport=LAPTOP)
        begun = time.perf_counter()
        page.goto((tmp_path / "a.html").as_uri(), wait_until="commit")
        page.wait_for_selector(AXIAL)
        seconds.append(time.perf_counter() - begun)
        page.close()
    record_property("page of 200 cases, MB", round(size / 1e6))
    record_property("page of 200 cases, milliseconds to the first case", round(1000 * min(seconds)))
    assert min(seconds) < 2
