"""What the viewer shows: the case list, the labels, the volumes, and what is wrong with a folder."""

import json
import shutil
import sys
import threading

import numpy as np
import pytest

from mre_lowshot.data.label_table import LabelTable
from mre_lowshot.data.seg_nrrd import write_seg_nrrd
from mre_lowshot.data.volume import Volume, read_labels, write_volume
from mre_lowshot.errors import UserError
from mre_lowshot.inference.record import FORMAT, VERSION
from mre_lowshot.viewer.cases import find_cases
from mre_lowshot.viewer.labels import find_labels, with_values
from mre_lowshot.viewer.notebook import show_case
from mre_lowshot.viewer.volumes import EXTRA, MISSED, OTHER, VolumeCache, differences, load_case
from mre_lowshot.workflows.view import view
from tests.viewer_folders import (
    COLOURS,
    LABELS,
    SHAPE,
    ask,
    ask_json,
    label_array,
    numbers,
    oblique,
    photograph,
    scan_array,
    volume_of,
    write_folder,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("viewer"))


@pytest.fixture(scope="module")
def running(folder):
    with view(folder, reference=folder.parent / "references") as made:
        yield made


# The case list.


def test_cases_are_listed_worst_first_with_scores_and_warnings(running):
    listed = ask_json(running, "cases.json")["cases"]
    assert [case["name"] for case in listed] == ["broken", "bad", "middle", "good"]
    assert [case["score"] for case in listed] == [None, 0.2, 0.55, 0.9]
    assert [case["failed"] for case in listed] == [True, False, False, False]
    assert listed[0]["warnings"] == ["case broken: out of memory"]
    assert listed[1]["warnings"] == ["spacing differs from the training scans"]
    assert listed[1]["basis"] == "agreement"


def test_a_failed_case_is_shown_without_labels(running):
    info = ask_json(running, f"{numbers(running)['broken']}/info.json")
    assert info["files"] == ["scan-0"]
    assert info["problems"] == {}


def test_labels_have_the_names_colours_volumes_and_dice(running):
    rows = ask_json(running, f"{numbers(running)['bad']}/info.json")["labels"]
    assert [(row["value"], row["name"], row["colour"]) for row in rows] == [
        (value, name, COLOURS[value]) for name, value in LABELS.items() if value
    ]
    assert [row["prediction_ml"] for row in rows] == pytest.approx([6 * 10 * 4 * 0.0045, 3 * 6 * 4 * 0.0045])
    assert [row["dice"] for row in rows] == [0.75, 1.0]


def test_labels_come_from_dataset_json_or_the_label_map_where_there_is_no_table(tmp_path):
    assert find_labels(tmp_path, []).names == {}
    inside = tmp_path / "a.nii.gz"
    write_volume(inside, label_array(), oblique(), LabelTable.of(LABELS, COLOURS))
    assert find_labels(tmp_path, [inside]).names == {1: "liver", 4: "left kidney"}
    dataset = {"labels": {**LABELS, "ignore": 5}, "label_colours": {"liver": "#102030"}}
    (tmp_path / "dataset.json").write_text(json.dumps(dataset))
    below = tmp_path / "fold_0/validation"
    below.mkdir(parents=True)
    table = find_labels(below, [inside])
    assert table.names == {1: "liver", 4: "left kidney"}
    assert table.colours[1] == "#102030"
    (below / "dseg.tsv").write_text("index\tname\tcolor\n1\tfoie\t#ABCDEF\n2\trein\tred\n")
    table = find_labels(below, [inside])
    assert table.names == {1: "foie", 2: "rein"}
    assert table.colours[1] == "#abcdef"
    assert len({*table.colours.values()}) == 2
    more = with_values(table, {0, 2, 9})
    assert more.names[9] == "label 9"
    assert len({*more.colours.values()}) == 3


def test_a_missing_label_map_and_a_damaged_record_are_named(tmp_path):
    made = write_folder(tmp_path)
    (made / "bad.nii.gz").unlink()
    cases = {case.name: case.problems for case in find_cases(made)}
    assert cases == {
        "broken": {},
        "good": {},
        "middle": {},
        "bad": {"prediction": "its label map is not in the folder any more"},
    }
    (made / "run.json").write_text("{")
    assert "run.json is damaged, so the scan is not known" in find_cases(made)[0].problems["scan"]


def test_the_label_maps_of_a_validation_are_shown_on_the_scans_of_the_dataset(trained):
    cases = find_cases(trained.model() / "fold_0/validation")
    assert {case.name for case in cases} == {"phantom_002", "phantom_003"}
    for case in cases:
        assert case.problems == {}
        assert [path.resolve() for path in case.scan] == [trained.raw / f"imagesTr/{case.name}_0000.nii.gz"]


# The volumes.


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_what_is_served_equals_the_files(ending, tmp_path):
    made = write_folder(tmp_path, ending)
    with view(made, reference=tmp_path / "references") as running:
        number = numbers(running)["bad"]
        scan = Volume.read(tmp_path / f"scans/bad_0000{ending}")
        served, affine, header = volume_of(ask(running, f"{number}/scan-0.nii")[2])
        np.testing.assert_array_equal(served, scan.array[0])
        np.testing.assert_array_equal(served, scan_array(seed=1)[:, ::1, ::1])
        np.testing.assert_allclose(affine, np.diag([-1, -1, 1, 1]) @ scan.geometry.affine(), atol=1e-4)
        assert header.get_data_dtype() == np.int16
        for kind, place in (("prediction", made), ("reference", tmp_path / "references")):
            labels = read_labels(place / f"bad{ending}", like=scan.geometry)
            served, own, header = volume_of(ask(running, f"{number}/{kind}.nii")[2])
            np.testing.assert_array_equal(served, labels.array)
            np.testing.assert_allclose(own, affine, atol=1e-6)
            assert int(header["intent_code"]) == 1002
        served, _, _ = volume_of(ask(running, f"{number}/difference.nii")[2])
        np.testing.assert_array_equal(served, differences(label_array(), label_array(shift=1), {1, 4}))


def test_a_picture_is_shown_as_one_plane(tmp_path):
    (tmp_path / "scans").mkdir()
    (tmp_path / "maps").mkdir()
    pixels = photograph(tmp_path / "scans/lesion_0000.png")
    shutil.copy(tmp_path / "scans/lesion_0000.png", tmp_path / "maps/lesion.png")
    with view(tmp_path / "maps", scans=tmp_path / "scans") as running:
        info = ask_json(running, "0/info.json")
        assert (info["plane"], info["has_directions"], info["problems"]) == ("axial", False, {})
        served, affine, _ = volume_of(ask(running, "0/scan-0.nii")[2])
        np.testing.assert_array_equal(served, pixels)
        np.testing.assert_allclose(affine, np.diag([-1, -1, 1, 1]))


@pytest.mark.parametrize("ending", [".seg.nrrd", ".nii.gz"])
def test_a_dicom_series_is_shown_with_its_label_map(ending, tmp_path):
    pytest.importorskip("pydicom")
    from tests.dicom_series import write_series

    files = write_series(tmp_path / "study", scan_array().astype(np.int16), "oblique")
    scan = Volume.read(tmp_path / "study")
    labels = Volume(label_array(scan.array.shape[1:]), scan.geometry)
    (tmp_path / "maps").mkdir()
    if ending == ".seg.nrrd":
        write_seg_nrrd(tmp_path / "maps/liver.seg.nrrd", labels, label_names=LABELS, colours=COLOURS)
    else:
        labels.save(tmp_path / "maps/liver.nii.gz")
    entry = {"run": "one", "status": "done", "inputs": [{"file": f"study/{path.name}"} for path in files]}
    record = {"runs": {"one": {"input": str(tmp_path / "study")}}, "cases": {"liver": entry}}
    record |= {"format": FORMAT, "format_version": VERSION}
    (tmp_path / "maps/run.json").write_text(json.dumps(record))
    with view(tmp_path / "maps") as running:
        assert ask_json(running, "0/info.json")["problems"] == {}
        served, affine, _ = volume_of(ask(running, "0/scan-0.nii")[2])
        np.testing.assert_array_equal(served, scan.array[0])
        np.testing.assert_allclose(affine, np.diag([-1, -1, 1, 1]) @ scan.geometry.affine(), atol=1e-4)
        np.testing.assert_array_equal(volume_of(ask(running, "0/prediction.nii")[2])[0], labels.array)


def test_channels_of_dicom_are_in_the_order_of_the_model(tmp_path):
    pytest.importorskip("pydicom")
    from mre_lowshot.data.dicom.series import read_files
    from mre_lowshot.data.dicom.volume import read_series
    from tests.dicom_series import write_series

    channels = {}
    for seed, name in ((0, "T1"), (100, "FLAIR")):
        array = scan_array(seed=seed).astype(np.int16)
        channels[name] = write_series(tmp_path / "study", array, modality="MR", series=name, seed=seed)
    files = [*channels["FLAIR"], *channels["T1"]]
    keys = [read_files(channels[name]).series[0].key for name in ("FLAIR", "T1")]
    entry = {"status": "done", "series": keys, "inputs": [{"file": str(path)} for path in files]}
    (tmp_path / "maps").mkdir()
    record = {"format": FORMAT, "format_version": VERSION, "runs": {}, "cases": {"head": entry}}
    (tmp_path / "maps/run.json").write_text(json.dumps(record))
    case = find_cases(tmp_path / "maps")[0]
    loaded = load_case(case, LabelTable({}, {}), {"prediction": tmp_path / "maps"})
    assert sorted(loaded.files) == ["scan-0", "scan-1"]
    for number, name in enumerate(("FLAIR", "T1")):
        wanted = read_series(read_files(channels[name]).series[0]).array[0]
        np.testing.assert_array_equal(volume_of(loaded.files[f"scan-{number}"])[0], wanted)


def test_differences_are_of_three_kinds():
    prediction, reference = np.array([[[0, 1, 1, 0, 2, 1]]]), np.array([[[0, 1, 0, 2, 1, 9]]])
    np.testing.assert_array_equal(differences(prediction, reference, {1, 2}), [[[0, 0, EXTRA, MISSED, OTHER, 0]]])


def test_a_large_scan_is_shown_coarser(monkeypatch, folder):
    monkeypatch.setattr("mre_lowshot.viewer.volumes.MAX_SIDE", 12)
    case = next(case for case in find_cases(folder) if case.name == "good")
    loaded = load_case(case, LabelTable({}, {}), {"prediction": folder})
    served, affine, _ = volume_of(loaded.files["scan-0"])
    np.testing.assert_array_equal(served, scan_array()[::2, ::2, ::2])
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), [3.0, 2.0, 6.0], rtol=1e-6)
    np.testing.assert_array_equal(volume_of(loaded.files["prediction"])[0], label_array()[::2, ::2, ::2])
    assert "every 2. voxel" in loaded.info["notes"][0]
    assert loaded.info["labels"][0]["prediction_ml"] == pytest.approx(6 * 10 * 4 * 0.0045)  # of all voxels


def test_the_cache_is_bounded_and_nothing_is_written(folder, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in folder.parent.rglob("*")}
    cases = [case for case in find_cases(folder) if not case.failed]
    reads = []
    monkeypatch.setattr("mre_lowshot.viewer.volumes.load_case", lambda *a: reads.append(a[0].name) or load_case(*a))
    cache = VolumeCache(find_labels(folder, []), {"prediction": folder}, limit=2.5 * load_case(
        cases[0], LabelTable({}, {}), {"prediction": folder}).size)  # fmt: skip
    first = cache.get(cases[0])
    assert cache.get(cases[0]) is first
    for case in (*cases, cases[0]):
        cache.get(case)
        assert cache.kept_bytes <= cache.limit
    assert reads == [cases[0].name, cases[1].name, cases[2].name, cases[0].name]
    assert {path: path.stat().st_mtime_ns for path in folder.parent.rglob("*")} == before


def test_requests_at_once_read_a_case_once(folder, monkeypatch):
    reads = []
    monkeypatch.setattr("mre_lowshot.viewer.volumes.load_case", lambda *a: reads.append(a[0].name) or load_case(*a))
    with view(folder) as running:
        found = []
        asked = [
            threading.Thread(target=lambda name=name: found.append(ask(running, f"1/{name}.nii")[0]))
            for name in ("scan-0", "prediction") * 4
        ]
        for one in asked:
            one.start()
        for one in asked:
            one.join()
    assert found == [200] * 8
    assert reads == ["bad"]


# What is wrong with a folder is named.


@pytest.fixture
def copy(folder, tmp_path):
    shutil.copytree(folder.parent, tmp_path / "copy")
    record = tmp_path / "copy/predictions/run.json"
    record.write_text(record.read_text().replace(str(folder.parent), str(tmp_path / "copy")))
    return tmp_path / "copy"


def problems(running, name):
    return ask_json(running, f"{numbers(running)[name]}/info.json")["problems"]


def test_a_missing_scan_is_named_and_its_label_map_shown(copy):
    (copy / "scans/bad_0000.nii.gz").unlink()
    (copy / "scans/good_0000.nii.gz").write_bytes(b"damaged")
    with view(copy / "predictions") as running:
        info = ask_json(running, "1/info.json")
        assert info["files"] == ["prediction"]
        assert info["scanless"]
        assert info["problems"] == {
            "scan": "the scan in/bad_0000.nii.gz is not there any more; name its folder with --scans"
        }
        assert "good_0000.nii.gz: cannot be read" in problems(running, "good")["scan"]
        assert problems(running, "middle") == {}
    with view(copy / "predictions", scans=copy / "scans") as running:
        assert problems(running, "bad") == {"scan": "the folder of --scans has no file of this case"}
        assert problems(running, "middle") == {}


def test_a_scan_that_has_changed_is_noted(copy):
    write_volume(copy / "scans/bad_0000.nii.gz", scan_array(seed=77), oblique())
    with view(copy / "predictions") as running:
        assert ask_json(running, "1/info.json")["notes"] == ["the scan has changed since it was predicted"]
        assert ask_json(running, "2/info.json")["notes"] == []


def test_symbolic_links_that_lead_out_are_not_followed(copy, tmp_path):
    secret = tmp_path / "secret.nii.gz"
    shutil.move(copy / "predictions/bad.nii.gz", secret)
    (copy / "predictions/bad.nii.gz").symlink_to(secret)
    shutil.move(copy / "references/good.nii.gz", tmp_path / "other.nii.gz")
    (copy / "references/good.nii.gz").symlink_to(tmp_path / "other.nii.gz")
    with view(copy / "predictions", reference=copy / "references") as running:
        number = numbers(running)["bad"]
        assert "is a symbolic link that leads out of" in problems(running, "bad")["prediction"]
        assert ask(running, f"{number}/prediction.nii")[0] == 404
        assert "is a symbolic link that leads out of" in problems(running, "good")["reference"]


def test_label_maps_that_do_not_fit_are_named(copy):
    write_volume(copy / "predictions/bad.nii.gz", label_array()[:9], oblique((9, *SHAPE[1:])))
    write_volume(copy / "predictions/good.nii.gz", np.full(SHAPE, 70000.0, np.float32), oblique())
    with view(copy / "predictions") as running:
        assert "is not on the grid of the scan: size" in problems(running, "bad")["prediction"]
        assert "a label map has values from 0 to 65535" in problems(running, "good")["prediction"]
        assert problems(running, "middle") == {}


def test_a_record_from_elsewhere_opens_images_only(copy, tmp_path):
    text = tmp_path / "secret"
    text.write_text("secret")
    record = json.loads((copy / "predictions/run.json").read_text())
    record["cases"]["bad"]["inputs"] = [{"file": str(text)}]
    record["cases"]["good"]["inputs"] = [{"file": "/dev/zero"}]
    record["cases"]["middle"]["inputs"] = ["x", {"file": 3}, {"file": "a\0b"}]
    record["cases"]["middle"]["warnings"] = [{"a": 1}, "<img src=x>"]
    (copy / "predictions/run.json").write_text(json.dumps(record))
    with view(copy / "predictions") as running:
        assert "no DICOM file" in problems(running, "bad")["scan"]
        assert "is not there any more" in problems(running, "good")["scan"]
        assert "does not name the scan" in problems(running, "middle")["scan"]
        number = numbers(running)["middle"]
        assert ask_json(running, "cases.json")["cases"][number]["warnings"] == ["<img src=x>"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": "difference"}, "layer 'difference': must be prediction or reference"),
        ({"opacity": 2}, r"opacity 2: must lie in \[0, 1\]"),
        ({}, r'ipyniivue is not installed; pip install -c constraints.txt -e "\.\[view\]"'),
    ],
)
def test_what_the_notebook_cannot_show_is_refused(arguments, message, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipyniivue", None)
    with pytest.raises(UserError, match=message):
        show_case(folder, **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folder": "missing"}, "folder missing: does not exist; give a folder"),
        ({"folder": "scans.txt"}, "folder scans.txt: is no folder; give a folder"),
        ({"folder": "empty"}, "empty: holds neither label maps nor a run.json of mre_predict; give the folder that"),
        ({"reference": "empty"}, "--reference empty: holds no label maps; give the folder with the reference"),
        ({"reference": "scans"}, "has the name of a case in predictions (for example bad); give the matching folder"),
        ({"scans": "missing"}, "--scans missing: does not exist"),
        ({"folder": ""}, "folder is empty; give a path"),
        ({"port": 70000}, "--port 70000: must be at least 0 (a whole number, at most 65535)"),
    ],
)
def test_a_wrong_folder_or_port_is_refused_with_the_fix(change, message, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("predictions", "scans"):
        (tmp_path / name).symlink_to(folder.parent / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "scans.txt").write_text("")
    arguments = {"folder": "predictions", **change}
    with pytest.raises(UserError) as found:
        view(arguments.pop("folder"), **arguments)
    assert message in str(found.value)


def test_a_port_that_is_taken_is_refused(running, folder):
    with pytest.raises(
        UserError, match=rf"--port {running.port}: cannot be used .*; give another, or 0 for a free one"
    ):
        view(folder, port=running.port)
