"""The measures of breast ultrasound against figures worked out by hand, and through mre_evaluate."""

import csv
import json
import math

import numpy as np
import pytest
import SimpleITK as sitk

from mre_lowshot.cli.evaluate import main
from mre_lowshot.errors import UserError
from mre_lowshot.evaluation.bus import averaged_radial_error, bus_metrics

ROWS, COLUMNS = np.mgrid[:128, :160]
SPACING = (1.0, 1.0, 1.0)


def disc(radius, row=64.0, column=80.0, squeeze=1.0):
    return ((ROWS - row) * squeeze) ** 2 + (COLUMNS - column) ** 2 <= radius**2


@pytest.mark.parametrize(("radius", "expected"), [(40, 0.0), (60, 0.5), (30, 0.25), (10, 0.75)])
def test_radial_error_of_concentric_discs_is_that_of_their_radii(radius, expected):
    assert averaged_radial_error(disc(40), disc(radius)) == pytest.approx(expected, abs=0.01)


def test_radial_error_of_a_shifted_disc():
    """The boundary of a disc of radius a moved by d lies, along the ray at angle t from the old centre, at
    d cos t + sqrt(a^2 - d^2 sin^2 t)."""
    a, d = 40, 15
    t = np.linspace(0, 2 * np.pi, 10_000, endpoint=False)
    r = d * np.cos(t) + np.sqrt(a**2 - (d * np.sin(t)) ** 2)
    assert averaged_radial_error(disc(a), disc(a, column=80 + d)) == pytest.approx(np.abs(r - a).mean() / a, abs=0.01)
    assert averaged_radial_error(disc(a), disc(a, row=64 - d)) == pytest.approx(np.abs(r - a).mean() / a, abs=0.01)


def test_radial_error_of_boxes_by_rays_along_the_axes():
    """Four rays from the middle of a 21 x 41 box; the prediction reaches 5 and 10 pixels farther up and left."""
    reference, prediction = np.zeros((2, 100, 100), bool)
    reference[40:61, 30:71] = True  # half sides 10 and 20 pixels beyond the centre's
    prediction[35:61, 20:71] = True
    up, left = 5 / 10.25, 10 / 20.25  # the last quarter step inside the outer pixel's square
    assert averaged_radial_error(reference, prediction, rays=4) == pytest.approx((up + left) / 4, abs=0.02)


def test_radial_error_is_measured_in_mm():
    wide = disc(30, squeeze=2.0)  # an ellipse in pixels, a disc where rows are twice as far apart
    grown = disc(45, squeeze=2.0)
    assert averaged_radial_error(wide, grown, (2.0, 1.0)) == pytest.approx(0.5, abs=0.02)


def test_radial_error_of_nothing():
    empty = np.zeros((128, 160), bool)
    assert averaged_radial_error(disc(20), empty) == 1
    assert math.isnan(averaged_radial_error(empty, disc(20)))
    assert averaged_radial_error(disc(10), disc(10, row=20, column=20)) > 1  # far off, and met by few rays
    ring = disc(40) & ~disc(30)  # its centre lies outside it: rays meet it all the same
    assert averaged_radial_error(ring, ring) == 0
    corner = disc(20, 0, 0)  # cut by the image's edge: rays that meet no reference are left out
    assert averaged_radial_error(corner, corner) == 0


def test_shares_by_hand_with_an_ignored_pixel():
    reference = np.array([[[1, 1, 1, 1, 0, 0, 9, 2]]])
    prediction = np.array([[[1, 1, 1, 0, 1, 1, 1, 0]]])
    rows = bus_metrics(reference, prediction, {"a": 1, "b": 2, "c": 3}, SPACING, ignore_label=9)
    assert (rows[1]["TP_share"], rows[1]["FP_share"], rows[1]["F1"]) == (3 / 4, 2 / 4, pytest.approx(6 / 9))
    assert (rows[2]["TP_share"], rows[2]["FP_share"], rows[2]["F1"], rows[2]["ARE"]) == (0, 0, 0, 1)
    assert all(math.isnan(v) for v in rows[3].values())
    assert bus_metrics(reference, prediction, {"a": 1}, SPACING)[1]["FP_share"] == 3 / 4
    with pytest.raises(UserError, match="profile bus measures 2D images, this label map has 2 slices"):
        bus_metrics(np.ones((2, 4, 4), int), np.ones((2, 4, 4), int), {"a": 1}, SPACING)


def save(path, mask):
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(mask.astype(np.uint8)), str(path))


def test_command_writes_the_measures(tmp_path, capsys):
    gt, pred = tmp_path / "gt", tmp_path / "pred"
    for name, radius in (("a", 40), ("b", 60), ("c", 30)):
        save(gt / f"{name}.png", disc(40))
        save(pred / f"{name}.png", disc(radius))
    assert main([str(gt), str(pred), "--profile", "bus"]) == 0
    summary = json.loads((pred / "summary.json").read_text())
    mean = summary["mean"]["1"]
    assert summary["profile"] == "bus"
    assert mean["ARE"] == pytest.approx(0.25, abs=0.01)
    assert mean["F1"] == mean["Dice"]
    assert mean["FP_share"] == pytest.approx((60**2 / 40**2 - 1) / 3, abs=0.02)
    assert mean["HD95"] == pytest.approx((20 + 10) / 3, abs=0.5)  # pixels
    out = capsys.readouterr().out
    assert f"ARE {100 * mean['ARE']:.2f} (" in out
    assert f"TP {100 * mean['TP_share']:.2f} (" in out
    with (pred / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[1]["ARE"]) == pytest.approx(0.5, abs=0.01)


def test_command_refuses_volumes_by_case(tmp_path, capsys):
    for folder in ("gt", "pred"):
        save(tmp_path / folder / "flat.nii.gz", disc(40)[None])
        save(tmp_path / folder / "deep.nii.gz", np.stack([disc(40)] * 3))
    assert main([str(tmp_path / "gt"), str(tmp_path / "pred"), "--profile", "bus"]) == 1
    assert "case deep: profile bus measures 2D images, this label map has 3 slices" in capsys.readouterr().out
