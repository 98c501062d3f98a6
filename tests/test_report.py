"""mre_report: what a page shows, that it is one safe file, and what is refused."""

import base64
import io
import json
import math
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import command, edit
from report_folder import SHAPE, SPACING, reference_array, write_folder
from test_colours import VISION, lab

import mre_lowshot
from mre_lowshot.data.colours import rgb
from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.volume import Volume, write_volume
from mre_lowshot.errors import UserError
from mre_lowshot.report.content import CaseContent, Label, LabelScore, Report, ordered
from mre_lowshot.report.findings import with_findings
from mre_lowshot.report.page import is_own_page, write_page
from mre_lowshot.report.samples import make_images

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&%DATA%"


class Page(HTMLParser):
    """The tags and the texts of a page, and which tags are not closed."""

    VOID = frozenset(("meta", "link", "input", "br", "img", "circle", "path", "rect"))

    def __init__(self, text):
        super().__init__()
        self.open, self.problems, self.tags, self.blocks = [], [], [], {}
        self._block = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._block = dict(attributes).get("id") if tag == "script" else None
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.problems.append(tag)

    def handle_data(self, data):
        if self._block:
            self.blocks[self._block] = self.blocks.get(self._block, "") + data


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder, and the report on it with references."""
    root = tmp_path_factory.mktemp("report")
    folder = write_folder(root)
    for number, name in enumerate("abc"):  # the files are called as the cases
        for part in ("ref", "pred"):
            (root / part / f"case{number}.nii.gz").rename(root / part / f"{name}.nii.gz")
    return root, mre_lowshot.write_report(folder, reference=root / "ref")


def page_of(result):
    return result.path.read_text(encoding="utf-8")


def test_cases_are_ordered_by_dice_the_worst_first(made):
    _, result = made
    assert [case.name for case in result.content.cases] == ["c", "b", "a"]
    dice = [case.mean("Dice") for case in result.content.cases]
    assert dice == sorted(dice)
    assert dice[-1] == 1
    worst = result.content.cases[0]
    assert any(line.startswith("spleen: missed completely (reference") for line in worst.findings)
    assert result.content.cases[2].findings == ()
    assert result.content.metrics == ("Dice", "NSD", "HD95")
    assert any("tolerance 4 mm" in fact.note for fact in result.content.facts)
    assert worst.seconds == {"read": 0.1, "network": 3.0}


def test_without_references_cases_are_ordered_by_quality(tmp_path):
    result = mre_lowshot.write_report(write_folder(tmp_path), max_size=0)
    assert [case.quality for case in result.content.cases] == pytest.approx([0.8, 0.9, 1.0])
    assert all(math.isnan(case.mean("Dice")) for case in result.content.cases)
    assert all(case.images is None for case in result.content.cases)


def test_the_page_is_well_formed_and_states_its_size(made):
    _, result = made
    page = Page(page_of(result))
    assert page.problems == []
    assert page.open == []
    assert f"({result.size} bytes)" in page_of(result)
    assert result.size == result.path.stat().st_size
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    anchors = {a["href"][1:] for tag, a in page.tags if tag == "a" and not a["href"].startswith("#case-")}
    assert anchors <= set(ids)


def test_the_stated_size_is_right_for_pages_of_all_lengths(tmp_path):
    for length in range(0, 3000, 97):
        size = write_page(Report("prediction", "x" * length), tmp_path / "a.html")
        assert size == (tmp_path / "a.html").stat().st_size
        assert f"({size} bytes)" in (tmp_path / "a.html").read_text()


def test_the_page_loads_nothing(made):
    """No address of another place, and a policy that allows no connection."""
    text = page_of(made[1])
    page = Page(text)
    assert not re.search(
        r"https?://|//[a-z]+\.", re.sub(r'<script type="text/plain".*?</script>', "", text, flags=re.S)
    )
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "action", "data"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def test_hostile_names_and_warnings_stay_text(tmp_path):
    hostile = {HOSTILE: 1, "spleen": 2}
    folder = write_folder(tmp_path, names=(HOSTILE, "b"), labels=hostile, warnings=(HOSTILE,))
    edit(folder / "run.json", cases={"b": {"status": "failed", "reason": HOSTILE, "outputs": []}})
    (folder / "case1.nii.gz").unlink()
    result = mre_lowshot.write_report(folder)
    assert result.content.cases[0].failed == HOSTILE
    text = page_of(result)
    page = Page(text)
    assert page.problems == []
    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    assert [a.get("type") for a in scripts if a.get("type") != "text/plain"] == ["application/json", None]
    assert all(tag != "img" for tag, _ in page.tags)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "alert(1)</script>" not in text
    names = [case["name"] for case in json.loads(page.blocks["data"])["cases"]]
    assert HOSTILE in names


def test_images_hold_scan_and_label_maps(made):
    from PIL import Image

    _, result = made
    page = Page(page_of(result))
    images = json.loads(page.blocks["data"])["cases"][2]["images"]
    assert tuple(images["shape"]) == SHAPE
    labels = np.frombuffer(zlib.decompress(base64.b64decode(page.blocks["prediction-2"])), np.uint8)
    assert (labels.reshape(SHAPE) == reference_array()).all()
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(page.blocks["scan-2"]))))
    height, width = images["tile"]
    z = 6
    top, left = z // images["columns"] * height, z % images["columns"] * width
    tile = np.interp(sheet[top : top + SHAPE[1], left : left + SHAPE[2]], images["codes"], images["values"])
    assert tile[reference_array()[z] == 1].mean() == pytest.approx(60, abs=3)
    assert tile[reference_array()[z] == 0].mean() == pytest.approx(0, abs=3)


def test_the_planes_cut_the_largest_difference_at_first():
    geometry = Geometry((20, 30, 40), (1.0, 1.0, 1.0))
    truth = np.zeros(geometry.shape, np.uint8)
    predicted = truth.copy()
    predicted[2:6, 20:26, 30:36] = 1
    predicted[15, 3, 3] = 1
    volumes = [Volume(array, geometry) for array in (predicted, truth)]
    images = make_images(None, *volumes, values=[1], max_size=64)
    assert predicted[images.start] == 1
    assert images.start[0] < 6


def test_large_scans_are_reduced_and_keep_their_extent_in_mm():
    geometry = Geometry((10, 100, 50), (5.0, 1.0, 2.0))
    scan = Volume(np.random.default_rng(0).normal(size=(1, *geometry.shape)).astype(np.float32), geometry)
    labels = Volume(np.ones(geometry.shape, np.uint8), geometry)
    images = make_images(scan, labels, None, values=[1], max_size=32)
    assert images.shape == (10, 32, 32)
    extent = [n * s for n, s in zip(images.shape, images.spacing, strict=True)]
    assert extent == pytest.approx([50, 100, 100])
    assert set(zlib.decompress(images.prediction)) == {1}
    assert not images.reference


def test_scans_that_are_gone_are_named_and_found_elsewhere(tmp_path, capsys):
    folder = write_folder(tmp_path)
    (tmp_path / "scans").rename(tmp_path / "moved")
    assert command("report", folder) == 1
    assert "case0_0000.nii.gz is not there any more" in capsys.readouterr().err
    assert "not there any more" in (folder / "report.html").read_text()
    for number, name in enumerate("abc"):
        (tmp_path / f"moved/case{number}_0000.nii.gz").rename(tmp_path / f"moved/{name}_0000.nii.gz")
    assert command("report", folder, "--images", tmp_path / "moved") == 0
    assert "not there any more" not in (folder / "report.html").read_text()


def test_wrong_folders_and_options_are_refused(tmp_path):
    folder = write_folder(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.zip").touch()
    for wrong, message in (
        ({"folder": tmp_path / "empty"}, "neither a trained model"),
        ({"folder": tmp_path / "none"}, "is not a folder"),
        ({"folder": tmp_path / "model.zip"}, "install the model with mre_install_model"),
        ({"folder": folder, "max_size": 5}, "--max_size 5"),
        ({"folder": folder, "reference": tmp_path / "empty"}, "holds no label maps"),
        ({"folder": folder, "images": tmp_path / "none"}, "is not a folder"),
        ({"folder": folder, "output": tmp_path / "page.txt"}, "ends in .html"),
    ):
        with pytest.raises(UserError, match=message):
            mre_lowshot.write_report(**wrong)
    assert not (folder / "report.html").exists()


def test_a_page_is_replaced_only_while_it_is_our_own(tmp_path):
    folder = write_folder(tmp_path, names=("a",))
    first = mre_lowshot.write_report(folder)
    assert is_own_page(first.path)
    assert mre_lowshot.write_report(folder).path == first.path
    with first.path.open("a") as page:
        page.write("my notes")
    assert not is_own_page(first.path)
    with pytest.raises(UserError, match="is not replaced"):
        mre_lowshot.write_report(folder)
    mre_lowshot.write_report(folder, overwrite=True)
    assert is_own_page(first.path)


def test_damaged_records_and_label_maps_are_survived(tmp_path):
    folder = write_folder(tmp_path)
    (folder / "case1.nii.gz").write_bytes(b"damaged")
    edit(
        folder / "run.json", cases={"c": {"seconds": [1], "quality": "x", "outputs": [{"file": "../ref/case2.nii.gz"}]}}
    )
    (folder / "summary.json").write_text('{"metric_per_case": [{"case": 5}, 7], "labels": []}')
    result = mre_lowshot.write_report(folder)
    assert any("label map" in line for line in result.missing["b"])
    assert any("label map is not there" in line for line in result.missing["c"])  # never a file of another folder


def test_an_unreadable_record_and_label_values_without_a_name_are_reported(tmp_path, capsys):
    folder = write_folder(tmp_path, names=("a",))
    labels = reference_array()
    labels[0, 0, :3] = (7, 9, 7)
    write_volume(folder / "case0.nii.gz", labels, Geometry(SHAPE, SPACING))
    (case,) = mre_lowshot.write_report(folder).content.cases
    assert case.warnings == (
        "its label map was changed after the prediction; the quality score is that of the predicted one",
        "label map case0.nii.gz: 2 label value(s) without a name (7, 9), drawn in white",
    )
    (folder / "run.json").write_text('{"cases": ')
    (folder / "case0.nii.gz").rename(folder / "a.nii.gz")
    assert command("report", folder) == 1  # the scan is not known
    shown = capsys.readouterr().err
    assert f"note: {folder / 'run.json'}: is damaged, or not a record of mre_predict" in shown
    (tmp_path / "other").mkdir()
    write_volume(tmp_path / "other/b.nii.gz", labels, Geometry(SHAPE, SPACING))
    with pytest.raises(
        UserError, match=r"-ref .*other: none of its 1 label maps has the name of a case .* example a\)"
    ):
        mre_lowshot.write_report(folder, reference=tmp_path / "other")


def test_findings_without_reference_name_unusual_volumes():
    def case(name, volume):
        return CaseContent(name, quality=0.9, labels=(LabelScore(1, quality=0.9, volume_ml=volume),))

    cases = [*(case(f"n{i}", 100.0 + i) for i in range(5)), case("small", 20.0), case("none", 0.0)]
    found = {c.name: c.findings for c in with_findings(cases, [Label(1, "liver", "#e69f00")])}
    assert found["n0"] == ()
    assert found["small"] == ("liver: volume 20 ml, median of the scans 102 ml",)
    assert found["none"][0] == "the label map is empty"


@pytest.mark.parametrize("vision", VISION)
def test_colours_of_differences_are_distinct_for_every_vision(vision):
    """From each other and from the grey below them, with the opacity of the page."""
    script, style = (Path(mre_lowshot.__path__[0], "report", name).read_text() for name in ("page_draw.js", "page.css"))
    colours = re.findall(r"#[0-9a-f]{6}", re.search(r"const DIFFERENCE = .*", script)[0])
    assert colours == re.findall(r"--(?:missed|extra|other): (#[0-9a-f]{6})", style)
    for grey in (60, 128, 200):
        blended = [[round(0.6 * v + 0.4 * grey) for v in rgb(colour)] for colour in colours]
        seen = lab([f"#{r:02x}{g:02x}{b:02x}" for r, g, b in [*blended, (grey,) * 3]], VISION[vision])
        distance = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + 1e9 * np.eye(len(seen))
        assert distance.min() > 20


def test_failed_scans_come_first():
    cases = [
        CaseContent("good", quality=0.9),
        CaseContent("bad", quality=0.1),
        CaseContent("lost", failed="unreadable"),
    ]
    assert [case.name for case in ordered(cases)] == ["lost", "bad", "good"]


def test_a_trained_model_shows_curves_plan_and_calibration(trained, tmp_path, capsys):
    page = tmp_path / "model.html"
    assert command("report", trained.model(), "-o", page) == 0
    assert f"({page.stat().st_size} bytes)" in capsys.readouterr().out
    text = page.read_text()
    assert Page(text).problems == []
    for part in (
        "Training curves",
        "Plan and reasons",
        "Calibration of the probabilities",
        "Dice, registration alone",
        "phantom_002",
        "phantom_003",
    ):
        assert part in text
    assert len([name for name in Page(text).blocks if name.startswith("scan-")]) == 2


@pytest.mark.slow
def test_training_and_prediction_write_it(space, tmp_path, capsys):
    scan = space.raw / "imagesTr/phantom_002_0000.nii.gz"
    assert space.predict(scan, tmp_path / "out", "--report") == 0
    assert (tmp_path / "out/report.html").read_text().count('id="prediction-') == 1
    assert space.train("--val", "--report") == 0
    page = space.model() / "report.html"
    assert is_own_page(page)
    page.write_text("mine")
    capsys.readouterr()
    assert space.train("--val", "--report") == 2
    assert "is not replaced" in capsys.readouterr().err
    assert space.predict(scan, tmp_path / "out", "--report", "-num_parts", 2) == 2
    assert "run mre_report once all parts" in capsys.readouterr().err


def test_an_experiment_shows_its_rows(tmp_path):
    folder = tmp_path / "results/Dataset900_Synthetic/experiments/table2__1shot_small"
    folder.mkdir(parents=True)
    run = {"fold": 0, "Dice": 0.5, "HD95": 9.0, "failed": []}
    compared = {"default": {"Dice": {"difference": -0.1, "low": -0.2, "high": -0.05, "p_corrected": 0.03}}}
    rows = [
        {"name": "a", "label": "without <b>", "plan": "t_a", "runs": [run], "against_reference": compared},
        {"name": "e", "label": "full", "plan": "t_e", "runs": [{**run, "Dice": 0.6, "NSD": 0.7}]},
        {"name": "f", "label": "later", "plan": "t_f", "runs": []},
    ]
    data = {"table": "table2", "title": "ablation", "dataset": "Dataset900_Synthetic", "reference": "e", "rows": rows,
            "setting": {"level": "1shot", "base": "small"}}  # fmt: skip
    (folder / "results.json").write_text(json.dumps(data))
    result = mre_lowshot.write_report(folder)
    text = page_of(result)
    assert "-0.1000 [-0.2000, -0.0500], p 0.03" in text
    assert "without &lt;b&gt;" in text
    assert "Not run yet: f" in text
    assert "later" not in text
    assert text.count("NSD of each run") == 2  # title of the axis, title for screen readers
    assert Page(text).problems == []
    assert result.cases == 0  # the models of the rows are not there
