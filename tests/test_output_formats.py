"""``mre_predict --output_format seg.nrrd`` and others, together with statistics and pictures."""

import csv
from pathlib import Path

import nrrd
import numpy as np
import pytest
from predicted import predict_into
from test_label_table import extension_of

from mre_lowshot.data.colours import label_colours, rgb
from mre_lowshot.data.synthetic import LABELS
from mre_lowshot.data.volume import read_labels

pytestmark = pytest.mark.usefixtures("one_thread_only", "no_settings")
CASE = "phantom_002"
NAMES = {value: name for name, value in LABELS.items() if value}
MEASURED = ("--statistics", "--continue_prediction")


@pytest.fixture(scope="module")
def predicted(trained, tmp_path_factory) -> Path:
    """A scan, and a folder into which it was predicted as ``seg.nrrd`` and NIfTI with all that can be asked for."""
    options = ("--output_format", "seg.nrrd", "nifti", "--statistics", "--preview", "--overlays")
    return predict_into(tmp_path_factory.mktemp("formats"), trained, *options, "--save_probabilities", cases=[CASE])


def voxels(out: Path) -> dict[str, int]:
    with (out / "statistics.csv").open(newline="") as file:
        return {row["label"]: int(row["voxels"]) for row in csv.DictReader(file)}


def counts(array: np.ndarray) -> dict[str, int]:
    return {name: int(np.count_nonzero(array == value)) for value, name in NAMES.items()}


def test_both_formats_have_the_same_labels_names_and_colours(predicted):
    out, colours = predicted / "out", label_colours(LABELS)
    nifti = read_labels(out / f"{CASE}.nii.gz")
    assert len(np.unique(nifti.array)) > 2
    assert np.array_equal(read_labels(out / f"{CASE}.seg.nrrd", like=nifti.geometry).array, nifti.array)
    assert {value: name for value, (name, _) in extension_of(out / f"{CASE}.nii.gz")[1].items()} == NAMES
    header = nrrd.read_header(str(out / f"{CASE}.seg.nrrd"))
    for number, (value, name) in enumerate(sorted(NAMES.items())):
        assert header[f"Segment{number}_Name"] == name
        assert header[f"Segment{number}_LabelValue"] == str(value)
        got = [round(255 * float(part)) for part in header[f"Segment{number}_Color"].split()]
        assert got == list(rgb(colours[value]))
    assert voxels(out) == counts(nifti.array)
    for file in (f"previews/{CASE}.png", f"overlays/{CASE}.png", f"{CASE}.npz"):
        assert (out / file).stat().st_size > 0


def test_a_whole_folder_is_not_predicted_again(trained, done, capsys):
    before = {p: p.read_bytes() for p in done.rglob("*.nrrd")}
    formats = ("--output_format", "seg.nrrd", "nifti", "--preview")
    assert trained.predict(done / "in", done / "out", *formats, *MEASURED) == 0
    assert "predicted again" not in capsys.readouterr().out
    assert {p: p.read_bytes() for p in done.rglob("*.nrrd")} == before


def test_a_segmentation_that_slicer_has_corrected_and_cropped_is_kept_and_measured(trained, done, capsys):
    path = done / f"out/{CASE}.seg.nrrd"
    array, header = nrrd.read(str(path))
    expected = counts(array)
    x, y, z = (slice(np.nonzero(array)[axis].min(), None) for axis in range(3))
    first = [x.start, y.start, z.start]
    assert any(first)
    header["space origin"] = header["space origin"] + np.array(first) @ header["space directions"]
    array = array[x, y, z].copy()
    changed = int(array.max())
    array[tuple(index[0] for index in np.nonzero(array == changed))] = 0
    expected[NAMES[changed]] -= 1
    nrrd.write(str(path), array, header)
    content = path.read_bytes()
    for extra in ((), ("--preview",)):
        assert trained.predict(done / "in", done / "out", "--output_format", "seg.nrrd", *MEASURED, *extra) == 0
    assert "predicted again" not in capsys.readouterr().out
    assert path.read_bytes() == content
    assert voxels(done / "out") == expected


def test_a_segment_that_another_program_numbered_anew_is_measured_by_its_name(trained, done):
    path = done / f"out/{CASE}.seg.nrrd"
    array, header = nrrd.read(str(path))
    expected = voxels(done / "out")
    array[array == 1] = 77
    header["Segment0_LabelValue"] = "77"
    nrrd.write(str(path), array, header)
    assert trained.predict(done / "in", done / "out", "--output_format", "seg.nrrd", *MEASURED) == 0
    assert voxels(done / "out") == expected


@pytest.mark.parametrize("change", ["name", "grid", "cut"])
def test_a_segmentation_that_does_not_fit_is_not_replaced(change, trained, done, capsys):
    path = done / f"out/{CASE}.seg.nrrd"
    array, header = nrrd.read(str(path))
    if change == "name":
        header["Segment0_Name"] = "tumour"
    elif change == "grid":
        header["space directions"] = header["space directions"] * 1.1
    nrrd.write(str(path), array, header)
    if change == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    content, code = path.read_bytes(), 0 if change == "cut" else 2
    assert trained.predict(done / "in", done / "out", "--output_format", "seg.nrrd", *MEASURED) == code
    if change == "cut":  # damaged: set aside
        assert path.with_name(f"{path.name}.damaged").read_bytes() == content
        return
    segment = "holds the segment 'tumour', and the model's labels are"
    reason = {"name": segment, "grid": "does not fit the scan: spacing"}[change]
    assert reason in capsys.readouterr().err
    assert path.read_bytes() == content


@pytest.mark.parametrize("first", ["dicom-seg", "dicom-labelmap", "seg.nrrd"])
def test_dicom_has_statistics_and_pictures_too(first, trained, tmp_path):
    pytest.importorskip("highdicom")
    from tests.dicom_scans import NAME, phantom, write_scan

    write_scan(tmp_path / "in", phantom(trained), "sagittal")
    out, formats = tmp_path / "out", ("--output_format", first, "nifti")
    assert trained.predict(tmp_path / "in", out, *formats, "--statistics", "--preview", "--overlays") == 0
    assert (out / f"previews/{NAME}.png").is_file()
    assert (out / f"overlays/{NAME}.png").is_file()
    assert {value: name for value, (name, _) in extension_of(out / f"{NAME}.nii.gz")[1].items()} == NAMES
    found = voxels(out)
    assert found == counts(read_labels(out / f"{NAME}.nii.gz").array)
    for table in out.glob("statistics.*"):
        table.unlink()
    assert trained.predict(tmp_path / "in", out, *formats[:2], *MEASURED) == 0  # there is no other to measure
    assert voxels(out) == found
