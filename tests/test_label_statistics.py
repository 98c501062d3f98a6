"""Statistics of structures against plain numpy, and the tables that they are written to."""

import csv
import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.volume import Volume
from mre_lowshot.errors import UserError
from mre_lowshot.evaluation.label_statistics import Intensity, LabelStatistics, label_statistics
from mre_lowshot.inference.statistics_table import StatisticsTable

NAMES = {"background": 0, "liver": 1, "spleen": 2, "cyst": 3}
OBLIQUE = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)


def volumes(array, labels, spacing=(3.0, 2.0, 1.5), **grid):
    array = np.asarray(array, np.float32)
    geometry = Geometry(array.shape[1:], spacing, **grid)
    return Volume(array, geometry), Volume(np.asarray(labels), geometry)


@given(seed=st.integers(0, 10_000), shape=st.tuples(*[st.integers(1, 6)] * 3), channels=st.integers(1, 2))
def test_equal_to_plain_numpy(seed, shape, channels):
    random = np.random.default_rng(seed)
    image = random.normal(40, 300, (channels, *shape)).astype(np.float32)
    labels = random.integers(0, 4, shape).astype(np.uint8) * (random.random(shape) < 0.5).astype(np.uint8)
    origin = (5.0, -7.0, 11.0)
    scan, label_map = volumes(image, labels, origin=origin, direction=OBLIQUE)
    before = image.copy()
    found = label_statistics(scan, label_map, NAMES, ["CT", "PET"])
    assert [(f.name, f.value) for f in found] == [("liver", 1), ("spleen", 2), ("cyst", 3)]
    for row in found:
        mask = labels == row.value
        assert row.voxels == mask.sum()
        assert row.volume_mm3 == pytest.approx(mask.sum() * 9.0)
        assert row.volume_ml == pytest.approx(mask.sum() * 0.009)
        places = np.argwhere(mask)
        if not len(places):
            assert (row.intensity, row.centroid, row.extent, row.touches_border) == ({}, None, None, False)
            continue
        for name, channel in zip(("CT", "PET"), image, strict=False):
            values = channel[mask].astype(np.float64)
            expected = (values.mean(), values.std(), np.median(values))
            got = row.intensity[name]
            assert (got.mean, got.std, got.median) == pytest.approx(expected, rel=1e-6, abs=1e-4)
        x, y, z = places.mean(0)[::-1] * [1.5, 2.0, 3.0]
        expected = np.array(origin) + np.reshape(OBLIQUE, (3, 3)) @ [x, y, z]
        assert row.centroid == pytest.approx(tuple(expected), abs=1e-6)
        sides = (np.ptp(places, axis=0) + 1) * [3.0, 2.0, 1.5]
        assert row.extent == pytest.approx(tuple(sides[::-1]))
        faces = [(places[:, a] == 0) | (places[:, a] == n - 1) for a, n in enumerate(shape) if n > 1]
        assert row.touches_border == bool(np.any(faces))
    np.testing.assert_array_equal(image, before)


def test_a_large_offset_costs_no_digits():
    values = 30_000 + np.arange(4, dtype=np.float32)
    scan, labels = volumes(values.reshape(1, 1, 2, 2), np.ones((1, 2, 2), np.uint8))
    (row,) = label_statistics(scan, labels, {"background": 0, "a": 1})
    assert row.intensity == {"channel_0": Intensity(30_001.5, pytest.approx(1.25**0.5), 30_001.5)}
    assert row.touches_border  # the only slice has no border, but its rows and columns do


def test_channels_with_one_name_are_numbered():
    scan, labels = volumes(np.zeros((3, 1, 1, 2)), [[[1, 0]]])
    (row,) = label_statistics(scan, labels, {"a": 1}, ["T1", "T2", "T1"])
    assert list(row.intensity) == ["T1_0", "T2", "T1_2"]


def test_another_grid_is_refused():
    scan, _ = volumes(np.zeros((1, 2, 2, 2)), np.zeros((2, 2, 2), int))
    _, labels = volumes(np.zeros((1, 2, 2, 3)), np.zeros((2, 2, 3), int))
    with pytest.raises(ValueError, match="not on the grid"):
        label_statistics(scan, labels, NAMES)


def test_no_copy_of_the_scan_is_made():
    """One structure in half of the scan: its values as float32 and its mask, but nothing in float64."""
    image = np.ones((1, 60, 200, 200), np.float32)
    labels = np.zeros((60, 200, 200), np.uint8)
    labels[:30] = 1
    scan, label_map = volumes(image, labels)
    tracemalloc.start()
    label_statistics(scan, label_map, NAMES)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < image.nbytes + 20_000_000  # 9.6 MB; a float64 copy of the structure alone takes 9.6 MB more
    assert peak < 0.5 * image.nbytes + labels.nbytes + 17_000_000


def row(name="liver", value=1, voxels=10, mean=1.5, border=False):
    intensity = {"CT": Intensity(mean, 0.5, 2.0)} if voxels else {}
    places = ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0)) if voxels else (None, None)
    return LabelStatistics(name, value, voxels, voxels * 9.0, intensity, *places, touches_border=border)


def table_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_both_files_hold_the_statistics(tmp_path):
    table = StatisticsTable(tmp_path)
    table.add("b", "2", [row(), row("cyst", 2, 0)])
    table.add("a", "1", [row(voxels=1000, border=True)])
    table.write(finished=True)
    rows = table_of(tmp_path / "statistics.csv")
    assert [(r["case"], r["label"]) for r in rows] == [("a", "liver"), ("b", "liver"), ("b", "cyst")]
    assert rows[0] == {
        "case": "a", "label": "liver", "value": "1", "voxels": "1000", "volume_mm3": "9000", "volume_ml": "9",
        "touches_border": "yes", "centroid_l_mm": "1", "centroid_p_mm": "2", "centroid_s_mm": "3",
        "extent_rl_mm": "4", "extent_ap_mm": "5", "extent_is_mm": "6", "CT_mean": "1.5", "CT_std": "0.5",
        "CT_median": "2",
    }  # fmt: skip
    assert (rows[2]["voxels"], rows[2]["CT_mean"], rows[2]["centroid_l_mm"]) == ("0", "", "")
    content = json.loads((tmp_path / "statistics.json").read_text())
    assert (content["format"], content["format_version"]) == ("mre_lowshot statistics", 1)
    assert content["cases"]["a"] == {
        "label_map_sha256": "1",
        "labels": {
            "liver": {
                "value": 1, "voxels": 1000, "volume_mm3": 9000.0, "volume_ml": 9.0, "touches_border": True,
                "intensity": {"CT": {"mean": 1.5, "std": 0.5, "median": 2.0}},
                "centroid_lps_mm": [1.0, 2.0, 3.0], "extent_mm": [4.0, 5.0, 6.0],
            }
        },
    }  # fmt: skip


def test_later_runs_add_to_the_tables_and_keep_what_a_person_has_added(tmp_path):
    table = StatisticsTable(tmp_path)
    table.add("a", "1", [row(), row("old", 2)])
    table.add("b", "1", [row()])
    table.write(finished=True)
    lines = (tmp_path / "statistics.csv").read_text().splitlines()
    mine = [lines[0] + ",remark", lines[1] + ",good", *(line + "," for line in lines[2:]), "a,mine,7,1" + "," * 13]
    (tmp_path / "statistics.csv").write_text("\n".join(mine))
    content = json.loads((tmp_path / "statistics.json").read_text())
    content["note"], content["cases"]["a"]["note"] = "mine", "hers"
    (tmp_path / "statistics.json").write_text(json.dumps(content))
    table = StatisticsTable(tmp_path)
    assert table.has("a", "1")
    assert not table.has("a", "2")
    assert not table.has("c", "1")
    table.add("a", "2", [row(voxels=5)])
    table.write(finished=True)
    rows = table_of(tmp_path / "statistics.csv")
    assert [(r["case"], r["label"], r["voxels"], r["remark"]) for r in rows] == [
        ("a", "liver", "5", "good"), ("a", "mine", "1", ""), ("b", "liver", "10", ""),
    ]  # fmt: skip
    content = json.loads((tmp_path / "statistics.json").read_text())
    assert (content["note"], content["cases"]["a"]["note"]) == ("mine", "hers")
    assert content["cases"]["a"]["label_map_sha256"] == "2"
    (tmp_path / "statistics.csv").unlink()
    assert not StatisticsTable(tmp_path).has("a", "2")


def test_the_parts_of_a_run_share_what_is_known(tmp_path):
    table = StatisticsTable(tmp_path, "_part1")
    table.add("a", "1", [row()])
    table.write(finished=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["statistics_part1.csv", "statistics_part1.json"]
    assert StatisticsTable(tmp_path).has("a", "1")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("statistics.csv", b"name,age\n"), ("statistics.csv", b"\xff\xfe\0"), ("statistics.json", b"{}"),
        ("statistics.json", b"mine"), ("statistics.json", b'{"format": "mre_lowshot statistics", "cases": []}'),
    ],
)  # fmt: skip
def test_other_files_of_these_names_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}: .*; move it away"):
        StatisticsTable(tmp_path)
    assert (tmp_path / name).read_bytes() == content
