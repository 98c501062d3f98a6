"""A change of a label map or a scan is seen where the voxels lie in a file beside the header (.mhd)."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from mre_lowshot.errors import UserError
from mre_lowshot.inference.record import FORMAT, VERSION, FileState, was_changed
from mre_lowshot.viewer.cases import find_cases
from mre_lowshot.viewer.labels import find_labels
from mre_lowshot.viewer.volumes import load_case
from mre_lowshot.workflows.corrected_maps import corrected_maps
from mre_lowshot.workflows.report import write_report
from tests.viewer_folders import label_array, scan_array


def state(path: Path, name: str) -> dict:
    return FileState.of(path, name).to_json()


def write(path: Path, array: np.ndarray) -> None:
    """A .mhd file and its .raw file, which has the same size whatever its voxels."""
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(path))


@pytest.fixture
def folder(tmp_path):
    """A scan and its predicted label map as .mhd and .raw, listed in run.json."""
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    out.mkdir()
    write(scans / "one_0000.mhd", scan_array())
    write(out / "one.mhd", label_array())
    entry = {
        "run": "first",
        "status": "done",
        "inputs": [state(path, str(path)) for path in sorted(scans.iterdir())],
        "outputs": [state(path, path.name) for path in sorted(out.iterdir())],
        "warnings": [],
    }
    runs = {"first": {"input": str(scans)}}
    record = {"format": FORMAT, "format_version": VERSION, "runs": runs, "cases": {"one": entry}}
    (out / "run.json").write_text(json.dumps(record))
    return out


def change(header: Path, array: np.ndarray) -> None:
    """Write other voxels beside a header, which stays as it is."""
    before = header.read_bytes()
    write(header, array)
    assert header.read_bytes() == before


def entry_of(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())["cases"]["one"]


def notes_of(case) -> list[str]:
    return load_case(case, find_labels(case.label.parent, [case.label]), {}).info["notes"]


def test_what_was_written_is_unchanged(folder):
    assert len(list(folder.parent.joinpath("scans").iterdir())) == 2
    assert not was_changed(entry_of(folder), folder / "one.mhd")
    with pytest.raises(UserError, match="no label map was changed"):
        corrected_maps(folder)
    (case,) = find_cases(folder)
    assert [path.name for path in case.scan] == ["one_0000.mhd"]
    assert case.warnings == ()
    assert notes_of(case) == []


def test_corrected_voxels_beside_the_header_are_a_correction(folder):
    change(folder / "one.mhd", np.roll(label_array(), 2, axis=2))
    assert was_changed(entry_of(folder), folder / "one.mhd")
    found, problems = corrected_maps(folder)
    assert [(one.name, one.label.name) for one in found] == [("one", "one.mhd")]
    assert problems == []
    (case,) = find_cases(folder)
    assert "was changed after the prediction" in case.warnings[0]
    (shown,) = write_report(folder).content.cases
    assert "was changed after the prediction" in " ".join(shown.warnings)
    assert shown.missing == ()


def test_a_scan_whose_voxels_have_changed_is_noted(folder):
    change(folder.parent / "scans/one_0000.mhd", scan_array(seed=5))
    (case,) = find_cases(folder)
    assert notes_of(case) == ["the scan has changed since it was predicted"]
    with pytest.raises(UserError, match="no label map was changed"):
        corrected_maps(folder)
    _, problems = corrected_maps(folder, ["one"])
    assert "was changed since it was predicted" in problems[0]


def test_missing_voxels_of_a_scan_are_named(folder):
    (path,) = (path for path in (folder.parent / "scans").iterdir() if path.suffix != ".mhd")
    path.unlink()
    (case,) = find_cases(folder)
    assert path.name in case.problems["scan"]


def test_voxels_that_no_header_names_any_more_are_no_channel(folder):
    scan = folder.parent / "scans/one_0000.mhd"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(scan_array(seed=5)), str(scan), useCompression=True)
    assert {path.suffix for path in scan.parent.iterdir()} == {".mhd", ".raw", ".zraw"}
    (case,) = find_cases(folder)
    assert [path.name for path in case.scan] == ["one_0000.mhd"]
    assert notes_of(case) == ["the scan has changed since it was predicted"]


def test_a_corrected_label_map_in_another_format_counts(folder):
    array = np.where(label_array() > 0, 1, 0).astype(np.uint8)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(folder / "one.nii.gz"))
    found, _ = corrected_maps(folder)
    assert [one.label.name for one in found] == ["one.nii.gz"]
