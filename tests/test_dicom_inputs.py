"""Which DICOM series ``mre_predict`` takes: all usable ones, those named, none of another kind; ``--list``."""

import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydicom")

from conftest import command

import mre_lowshot
from tests.dicom_scans import SPACING, phantom, write_scan
from tests.dicom_series import uid, write_series

pytestmark = pytest.mark.usefixtures("one_thread_only", "no_settings")


@pytest.fixture(scope="module")
def hu(trained) -> np.ndarray:
    return phantom(trained)


def test_patients_and_series_are_cases_and_what_is_no_scan_is_left_out(trained, hu, tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "in/out"
    write_scan(folder / "one", hu, "axial")
    write_series(folder / "all", hu + 1000, spacing=SPACING, series="Lung kernel", SeriesNumber=4, seed=100)
    write_series(folder / "all", hu + 1000, spacing=SPACING, PatientID="P2", SeriesInstanceUID="1.2.3", seed=200)
    write_series(
        folder / "all", hu[:2] + 1000, series="Scout", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], seed=300
    )
    (folder / "readme.txt").write_text("no image")
    wanted = {"P1_3_Abdomen", "P1_4_Lung-kernel", "P2_3_Abdomen"}
    for _ in range(2):  # the output folder is no input
        assert trained.predict(folder, out) == 0
        printed = capsys.readouterr().out
        assert "left out: series P1_3_Scout is a localizer (scout), not a scan; leave it out" in printed
        assert "3 of 3 scans segmented" in printed
    assert {p.name for p in out.glob("*.dcm")} == {f"{name}.seg.dcm" for name in wanted}
    record = json.loads((out / "run.json").read_text())
    assert set(record["cases"]) == wanted
    case = record["cases"]["P2_3_Abdomen"]
    assert (case["series"], len(case["inputs"]), case["status"]) == (["1.2.3"], len(hu), "done")
    assert [item["file"] for item in case["outputs"]] == ["P2_3_Abdomen.seg.dcm"]


def test_refused_series_are_named_with_the_fix_and_the_others_are_predicted(trained, hu, tmp_path, capsys):
    write_scan(tmp_path / "in", hu, "axial")
    write_series(tmp_path / "in", hu + 1000, spacing=SPACING, modality="MR", series="T1", seed=100)
    gap = write_series(tmp_path / "in", hu + 1000, spacing=SPACING, series="Gap", seed=200)
    gap[4].unlink()
    (tmp_path / "in/broken").write_bytes(bytes(128) + b"DICM" + b"x" * 50)
    assert trained.predict(tmp_path / "in", tmp_path / "out") == 1
    printed = capsys.readouterr()
    assert "failed: series P1_3_T1 has modality MR, and the model takes CT; leave it out" in printed.err
    assert "failed: series P1_3_Gap lacks 1 slice(s): a gap of 16.5 mm" in printed.err
    assert f"failed: {tmp_path}/in/broken: " in printed.err
    assert "1 of 4 scans segmented" in printed.out
    assert trained.predict(tmp_path / "in", tmp_path / "chosen", "--series", "abdomen") == 0
    assert trained.predict(tmp_path / "in", tmp_path / "refused", "--series", "T1", uid("study", "Abdomen")) == 1
    assert trained.predict(tmp_path / "in", tmp_path / "none", "--series", "liver") == 2
    message = capsys.readouterr().err
    assert "--series 'liver': is no Series Instance UID, name or number of a series here" in message
    assert "P1_3_Gap" in message
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("text", "names"),
    [("4", ["P1_4_Portal-1-5-mm"]), ("04", ["P1_4_Portal-1-5-mm"]), ("P1_5_Portal-5-mm", ["P1_5_Portal-5-mm"]),
     ("portal", ["P1_4_Portal-1-5-mm", "P1_5_Portal-5-mm"]), ("5 MM", ["P1_4_Portal-1-5-mm", "P1_5_Portal-5-mm"]),
     (uid("study", "Portal 5 mm"), ["P1_5_Portal-5-mm"])],
)  # fmt: skip
def test_a_series_is_chosen_by_uid_name_number_or_description(text, names, trained, tmp_path):
    small = np.zeros((3, 4, 4), np.int16)
    write_series(tmp_path, small, series="Portal 1.5 mm", SeriesNumber=4)
    write_series(tmp_path, small, series="Portal 5 mm", SeriesNumber=5, seed=100)
    found = mre_lowshot.list_scans(tmp_path, model=trained.model(), series=[text])
    assert [case.name for case in found.cases] == names
    assert {scan.name: scan.reason for scan in found.scans if scan.name not in names} == {
        scan.name: "is not selected by --series" for scan in found.scans if scan.name not in names
    }


def test_list_shows_what_would_be_taken_and_why_not(trained, hu, tmp_path, capsys):
    write_scan(tmp_path / "in", hu, "axial")
    write_series(tmp_path / "in", hu + 1000, modality="MR", series="T1\x1b[31m", SeriesNumber=7, seed=100)
    assert command("predict", "-i", tmp_path / "in", "--list", "-m", trained.model()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("P1_3_Abdomen: CT; number 3; Abdomen; ")
    assert "8.25 x 8 x 8.5 mm" in lines[1]
    assert lines[2] == "  taken"
    assert lines[3].startswith("P1_7_T1")
    assert "\x1b" not in lines[3]
    assert (
        lines[4]
        == "  not taken: has modality MR, and the model takes CT; leave it out, or give a model of its modality"
    )
    assert lines[-1] == "1 of 2 taken"
    assert command("predict", "-i", tmp_path / "in", "--list", "--workspace", tmp_path) == 0
    assert "2 of 2 taken" in capsys.readouterr().out
    assert command("predict", "-i", tmp_path / "in", "--list", "-d", "5", "--workspace", tmp_path) == 2
    assert command("predict", "-i", trained.raw / "imagesTr", "--list", "--workspace", trained.root) == 0
    assert "3 of 3 taken" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_dicom_beside_other_images(trained, hu, tmp_path, capsys):
    nifti = trained.raw / "imagesTr/phantom_002_0000.nii.gz"
    (tmp_path / "images").mkdir()
    shutil.copy(nifti, tmp_path / "images")
    write_scan(tmp_path / "images/dicom", hu, "axial")
    assert trained.predict(tmp_path / "images", tmp_path / "out") == 1
    printed = "".join(capsys.readouterr())
    assert f"{len(hu)} DICOM file(s) in subfolders (dicom/IM" in printed
    assert "1 of 2 scans segmented" in printed
    write_scan(tmp_path / "dicom", hu, "axial")
    (tmp_path / "dicom/more").mkdir()
    shutil.copy(nifti, tmp_path / "dicom/more")
    assert trained.predict(tmp_path / "dicom", tmp_path / "out2") == 1
    assert "1 other image file(s) (more/phantom_002_0000.nii.gz) are not read beside DICOM" in capsys.readouterr().err


def test_one_file(space, hu, tmp_path, capsys):
    files = write_scan(tmp_path / "in", hu, "axial")
    (many,) = write_scan(tmp_path / "enhanced", hu, "enhanced")
    assert space.predict(many, tmp_path / "out") == 0
    assert space.predict(files[0], tmp_path / "out") == 1
    assert "is a single slice, without the distance to a next one; give the whole series" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["pydicom", "highdicom"])
def test_the_packages_own_files_are_taken_or_named(package, trained, tmp_path, capsys):
    """Files of every kind, many of them damaged on purpose, in one folder. highdicom installs none: the variable
    HIGHDICOM_TEST_FILES gives the folder data/test_files of its source."""
    if package == "pydicom":
        folder = Path(find_spec("pydicom").origin).parent / "data"
    elif not os.environ.get("HIGHDICOM_TEST_FILES"):
        pytest.skip("HIGHDICOM_TEST_FILES is not set")
    else:
        folder = Path(os.environ["HIGHDICOM_TEST_FILES"])
    code = trained.predict(folder, tmp_path / "out")
    printed = capsys.readouterr()
    assert code == 1
    assert "unexpected error" not in printed.err
    assert "Traceback" not in printed.err
    assert printed.err.count("failed: ") > (10 if package == "pydicom" else 0)
    assert "left out: series " in printed.out
    assert command("predict", "-i", folder, "--list", "--workspace", tmp_path) == 0
    assert "not taken: " in capsys.readouterr().out
    code = command("importing", "-i", folder, "--name", "8", "--workspace", tmp_path, "--dry_run")
    assert code == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    assert "internal" not in printed.err
