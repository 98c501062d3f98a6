"""Images that state no pixel size: distances are printed in pixels, not in mm."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import command
from PIL import Image
from test_experiment_layouts import made

from mre_lowshot.data.pixel_size import states_pixel_size
from mre_lowshot.data.volume import read_labels
from mre_lowshot.experiments.layouts import layout, plain_grid
from mre_lowshot.experiments.runner import Setting
from mre_lowshot.experiments.text import format_rows

pytestmark = pytest.mark.usefixtures("no_settings")


def disc(radius):
    rows, columns = np.mgrid[:60, :60]
    return ((rows - 30) ** 2 + (columns - 30) ** 2 <= radius**2).astype(np.uint8)


def save(path, mask, spacing=1.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(mask)
    image.SetSpacing((spacing,) * mask.ndim)
    sitk.WriteImage(image, str(path))


def test_a_file_states_a_pixel_size_or_not(tmp_path):
    def stated(path):
        return states_pixel_size(path, read_labels(path).geometry)

    for name, more, wanted in (("a.png", {}, False), ("a.tif", {}, False), ("b.tif", {"dpi": (100, 100)}, True)):
        Image.fromarray(disc(9)).save(tmp_path / name, **more)
        assert stated(tmp_path / name) is wanted, name
    for name in ("c.png", "c.tif"):
        save(tmp_path / name, disc(9))
        assert not stated(tmp_path / name)
        save(tmp_path / name, disc(9), 0.2)
        assert stated(tmp_path / name)
    save(tmp_path / "d.nii.gz", disc(9)[None])
    assert stated(tmp_path / "d.nii.gz")  # 1 mm


def evaluated(tmp_path, capfd, *arguments):
    assert command("evaluate", tmp_path / "gt", tmp_path / "pred", "--overwrite", *arguments) == 0
    return capfd.readouterr().out, json.loads((tmp_path / "pred/summary.json").read_text())


def test_scores_are_in_pixels_where_no_image_states_a_size(tmp_path, capfd):
    for name, radius in (("a", 12), ("b", 16)):
        save(tmp_path / f"gt/{name}.png", disc(12))
        save(tmp_path / f"pred/{name}.png", disc(radius))
    out, summary = evaluated(tmp_path, capfd, "--profile", "bus")
    assert summary["distance_unit"] == "px"
    assert "HD95 px" in out
    assert "each reference, 1 px (--nsd" in out
    assert "The images state no pixel size: distances are in pixels (px)." in out
    assert not re.search(r"\bmm\b", out)
    out, _ = evaluated(tmp_path, capfd, "--nsd_tolerance", 2)
    assert "tolerance: 2 px." in out
    save(tmp_path / "gt/c.png", disc(12), 0.2)  # one of several states its size
    save(tmp_path / "pred/c.png", disc(12), 0.2)
    out, summary = evaluated(tmp_path, capfd)
    assert summary["distance_unit"] == "mm"
    assert "HD95 mm" in out
    assert "0.2 to 1 mm" in out


def test_import_and_planning_name_no_mm_and_two_axes(tmp_path, capfd):
    """The second image states its size; so import shows it there, and nowhere else."""
    rng = np.random.default_rng(0)
    for name, spacing in (("a", 1.0), ("b", 0.2)):
        save(
            tmp_path / f"in/{name}.png", (rng.integers(40, 90, (50, 60)) + 90 * disc(9)[:50]).astype(np.uint8), spacing
        )
        save(tmp_path / f"in/{name}_seg.png", disc(9)[:50], spacing)
    arguments = ("-i", tmp_path / "in", "--name", 7, "--label_names", "1=lesion", "--modality", "US")
    assert command("importing", *arguments, "--workspace", tmp_path / "w") == 0
    out = capfd.readouterr().out
    assert "60 x 50 pixels, without a pixel size" in out
    assert "60 x 50 pixels of 0.2 x 0.2 mm" in out
    assert command("plan", "-d", 7, "--workspace", tmp_path / "w") == 0
    (line,) = [line for line in capfd.readouterr().out.splitlines() if "plan written to" in line]
    assert re.search(r"patch \(\d+, \d+\), centre \(\d+, \d+\) \(y, x\)", line)


def test_a_report_shows_sizes_and_distances_in_pixels(tmp_path, capfd):
    out = tmp_path / "pred"
    for name, radius in (("a", 12), ("b", 28)):
        save(tmp_path / f"gt/{name}.png", disc(6))
        save(out / f"{name}.png", disc(radius))
    with (out / "quality.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["case", "score", "lesion"], ["a", 0.9, 0.9], ["b", 0.5, 0.5]])
    assert command("report", out, "-ref", tmp_path / "gt") in (0, 1)  # the scans are not known
    page = Path(out / "report.html").read_text()
    assert "predicted px" in page
    assert re.search(r"HD95</[^>]*>.*? px", page)
    assert "borders up to 22 px off" in page
    assert f"({int(disc(12).sum())} px, reference {int(disc(6).sum())} px)" in page
    assert "(tolerance 1 px)" in page
    assert not re.search(r"\d mm\b|>HD95, mm|predicted ml", page)


def test_tables_of_experiments_name_the_unit_of_their_runs():
    def with_unit(unit, table, values):
        found = made(table, values)
        rows = [replace(r, runs={k: replace(run, unit=unit) for k, run in r.runs.items()}) for r in found.rows]
        return replace(found, rows=rows)

    def texts(unit):
        content = with_unit(unit, "parts", {"default": (0.5, 0.6), "m1": (0.4, 0.6)})
        arguments = content.table, content.rows, Setting("small"), "Dataset001_X", "default"
        columns = layout(with_unit(unit, "table6", {"cosine": (0.5,)}))
        return format_rows(*arguments, "default"), plain_grid(*arguments).head, columns.head

    text, head, columns = texts("px")
    assert "HD95 px" in text
    assert "HD95 in pixels" in text
    assert not re.search(r"\bmm\b", text)
    assert head[3] == "HD95 (px)"
    assert [title for title in columns if title.startswith("HD95")] == ["HD95 (px)", "HD95 (mm)", "HD95 (mm)"]
    text, head, _ = texts("mm")
    assert "HD95 mm" in text
    assert head[3] == "HD95 (mm)"
