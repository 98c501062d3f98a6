"""Series of a folder: grouped, ordered by position, divided into volumes, or refused by name with the fix."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydicom")

import pydicom
from pydicom.uid import RLELossless

from mre_lowshot.data.dicom.names import case_name, distinct
from mre_lowshot.data.dicom.series import find_series, read_folder
from mre_lowshot.data.dicom.volume import read_series
from mre_lowshot.errors import UserError
from tests.dicom_series import ORIENTATIONS, positions, uid, write_enhanced, write_series

STORED = np.random.default_rng(1).integers(-1000, 3000, (6, 5, 7)).astype(np.int16)


def only(folder: Path):
    (series,) = find_series(folder)
    return series


def axial(count: int, step: float = 3.0) -> np.ndarray:
    return positions(count, ORIENTATIONS["axial"], step)


def test_a_nested_folder_of_several_series_and_other_files(tmp_path):
    write_series(tmp_path / "a/b", STORED, series="Liver")
    write_series(tmp_path / "a/b", STORED[:4], series="Brain", modality="MR", PatientID="P2", seed=100)
    write_series(tmp_path / "c", STORED, series="Liver", PatientID="P3", seed=200)
    (tmp_path / "a/notes.txt").write_text("no image")
    (tmp_path / "a/empty").touch()
    (tmp_path / "a/.DS_Store").write_bytes(b"\0" * 200)
    (tmp_path / "a/loop").symlink_to(tmp_path / "a")
    (tmp_path / "a/again").symlink_to(next((tmp_path / "c").iterdir()))
    (tmp_path / "a/nowhere").symlink_to(tmp_path / "missing")
    os.mkfifo(tmp_path / "a/pipe")
    found = read_folder(tmp_path)
    assert [(s.name, s.modality, s.size, s.spacing, s.problem) for s in found.series] == [
        ("P1_3_Liver", "CT", (6, 5, 7), (3.0, 0.8, 0.7), ""),
        ("P2_3_Brain", "MR", (4, 5, 7), (3.0, 0.8, 0.7), ""),
        ("P3_3_Liver", "CT", (6, 5, 7), (3.0, 0.8, 0.7), ""),
    ]
    assert found.others == 3
    first = found.series[0]
    assert (first.patient_id, first.study_date, first.description, first.number) == ("P1", "20240102", "Liver", "3")
    assert (first.uid, first.key, first.part) == (uid("study", "Liver"), uid("study", "Liver"), 0)


def test_slices_are_in_the_order_of_their_positions(tmp_path):
    paths = write_series(tmp_path, STORED, "coronal")
    assert list(only(tmp_path).files) == paths  # of write_series: along row x column
    assert sorted(paths) != paths


def test_one_file_may_be_given(tmp_path):
    path = write_enhanced(tmp_path / "scan", STORED)
    assert only(path).size == (6, 5, 7)


@pytest.mark.parametrize("what", ["missing", "file"])
def test_a_folder_that_is_none(tmp_path, what):
    if what == "missing":
        with pytest.raises(UserError, match="missing: the folder is missing"):
            find_series(tmp_path / "missing")
    else:
        (tmp_path / "file").write_text("text")
        assert read_folder(tmp_path / "file").others == 1


def test_a_directory_file_is_no_image(tmp_path):
    source = Path(pydicom.__file__).parent / "data/test_files/dicomdirtests/DICOMDIR"
    shutil.copy(source, tmp_path)
    assert read_folder(tmp_path).series == ()
    assert read_folder(tmp_path).others == 1


def test_copies_of_a_file_are_left_out_with_a_note(tmp_path):
    paths = write_series(tmp_path / "a", STORED)
    (tmp_path / "b").mkdir()
    for path in paths[:2]:
        shutil.copy(path, tmp_path / "b" / f"copy of {path.name}")
    series = only(tmp_path)
    assert series.size == (6, 5, 7)
    assert series.notes == ("2 file(s) are copies of others and are left out",)


def test_different_files_of_one_instance_are_refused(tmp_path):
    write_series(tmp_path / "a", STORED)
    write_series(tmp_path / "b", STORED + 1)
    assert "two different files with one SOP Instance UID" in only(tmp_path).problem


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"at": axial(7)[[0, 1, 2, 4, 5, 6]]},
            r"lacks 1 slice\(s\): a gap of 6 mm between the slices at 11.5 and 17.5",
        ),
        ({"at": axial(9)[[0, 1, 2, 3, 7, 8]]}, r"lacks 3 slice\(s\)"),
        (
            {"at": axial(6) + np.array([[0, 0, 0]] * 3 + [[0, 0, 1]] * 3)},
            r"slices at unequal distances, 3 to 4 mm \(the largest between the slices at 11.5 and 15.5 mm\)",
        ),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "is a localizer"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "is a mosaic of slices in one image"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, r"is a colour image \(RGB\)"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "is a colour image"),
        ({"ImagePositionPatient": None}, "has no ImagePositionPatient: its place in the patient is unknown"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "not two directions at right angles"),
        ({"PixelSpacing": [0, 1]}, "both must be above 0"),
        ({"RescaleSlope": 0}, "Rescale Slope 0"),
        ({"BitsStored": 12, "HighBit": 15}, "has HighBit 15 with 12 BitsStored; 11 is read"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.481.3"}, r"is a set of contours \(RTSTRUCT\)"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4"}, r"is a label map \(DICOM SEG\)"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.481.2"}, r"is a dose distribution"),
        ({"NumberOfFrames": 2}, "has 2 frames without a position of each"),
    ],
)
def test_what_is_no_volume_is_refused_with_the_fix(tmp_path, change, problem):
    write_series(tmp_path, STORED, **change)
    series = only(tmp_path)
    assert re.search(problem, series.problem), series.problem
    assert series.geometry is None
    assert series.size == ()
    assert series.name
    with pytest.raises(UserError, match=r"^series \S+: "):
        read_series(series)


def test_unequal_gaps_of_a_tenth_of_the_distance_are_refused_and_rounded_positions_are_not(tmp_path):
    write_series(tmp_path / "a", STORED, at=axial(6) + np.array([0, 0, 0.3]) * (np.arange(6) > 2)[:, None])
    assert "unequal distances" in only(tmp_path / "a").problem
    rounded = np.round(axial(6, 0.625), 1)  # distances of 0.6 and 0.7 mm
    write_series(tmp_path / "b", STORED, at=rounded, spacing=(0.625, 0.8, 0.7))
    assert only(tmp_path / "b").spacing[0] == pytest.approx(0.62)


def test_gantry_tilt_is_refused_with_its_angle(tmp_path):
    tilted = axial(6) + np.arange(6)[:, None] * np.array([0, 3.0 * np.tan(np.radians(12)), 0])
    write_series(tmp_path, STORED, at=tilted, GantryDetectorTilt="12")
    assert "shifted sideways, each by 0.638 mm (12 degrees), as with a gantry tilt" in only(tmp_path).problem


def test_a_slice_beside_the_others_is_refused(tmp_path):
    at = axial(6)
    at[2, 0] += 2
    write_series(tmp_path, STORED, at=at)
    assert "is 2 mm beside the others" in only(tmp_path).problem


def test_a_single_slice_is_refused(tmp_path):
    write_series(tmp_path, STORED[:1])
    assert "is a single slice" in only(tmp_path).problem


def test_three_planes_of_a_localizer_are_refused_and_a_scan_keeps_its_volume_beside_scouts(tmp_path):
    for number, plane in enumerate(("axial", "coronal", "sagittal")):
        write_series(tmp_path / "localizer", STORED[:2], plane, series="Loc", seed=50 * number + 50)
        write_series(tmp_path / "stacks", STORED, plane, series="Stacks", seed=50 * number + 50)
    assert "2 axial of 7 x 5; 2 coronal of 7 x 5; 2 sagittal of 7 x 5" in only(tmp_path / "localizer").problem
    stacks = find_series(tmp_path / "stacks")
    assert [s.part for s in stacks] == [1, 2, 3]
    assert all("images of different orientation or size (6 " in s.problem for s in stacks)
    write_series(tmp_path / "scan", STORED, series="Scan")
    write_series(tmp_path / "scan", STORED[:1], "sagittal", series="Scan", seed=100)
    series = only(tmp_path / "scan")
    assert series.problem == ""
    assert series.notes == ("1 image(s) of another orientation or size in the same series are left out",)
    assert series.size == (6, 5, 7)


def test_volumes_at_the_same_positions_are_divided_by_their_attributes(tmp_path):
    for number, echo in enumerate((4.6, 2.3, 9.2)):
        write_series(tmp_path, STORED + number, series="Echoes", modality="MR", seed=50 * number, EchoTime=echo,
                     AcquisitionTime=lambda i, n=number: f"1010{n:02d}.{i}")  # fmt: skip
    found = find_series(tmp_path)
    assert [(s.part, s.key[-2:], s.variant, s.name) for s in found] == [
        (1, "#1", "volume 1 of 3: EchoTime 2.3", "P1_3_Echoes_v1"),
        (2, "#2", "volume 2 of 3: EchoTime 4.6", "P1_3_Echoes_v2"),
        (3, "#3", "volume 3 of 3: EchoTime 9.2", "P1_3_Echoes_v3"),
    ]
    assert [float(read_series(s).array[0, 0, 0, 0]) - STORED[0, 0, 0] + 1000 for s in found] == [1, 0, 2]


def test_volumes_divided_by_two_attributes(tmp_path):
    for number in range(4):
        write_series(tmp_path, STORED, series="Dynamic", modality="MR", seed=50 * number,
                     EchoTime=number % 2, TemporalPositionIdentifier=number // 2)  # fmt: skip
    assert [s.variant for s in find_series(tmp_path)][2] == (
        "volume 3 of 4: EchoTime 1.0, TemporalPositionIdentifier 0"
    )


def test_an_incomplete_volume_is_refused_and_the_complete_ones_are_kept(tmp_path):
    write_series(tmp_path, STORED, series="Dynamic", modality="MR", AcquisitionNumber=1)
    write_series(tmp_path, STORED[:4], series="Dynamic", modality="MR", AcquisitionNumber=2, seed=50)
    first, second = find_series(tmp_path)
    assert first.problem == ""
    assert second.problem.startswith("has 4 slices of 6 (volume 2 of 2: AcquisitionNumber 2)")


def test_images_at_one_position_that_nothing_distinguishes_are_refused(tmp_path):
    times = {"AcquisitionTime": lambda i: f"10101{i}"}  # differs in all images, so it divides nothing
    write_series(tmp_path, STORED, **times)
    write_series(tmp_path, STORED[2:3], at=axial(6)[2:3], seed=50, AcquisitionTime="101020")
    assert "has 2 images at one position (" in only(tmp_path).problem


def test_multi_frame_files_of_one_series_are_volumes_of_their_own(tmp_path):
    write_enhanced(tmp_path / "a", STORED, SOPInstanceUID=uid("first"))
    write_enhanced(tmp_path / "b", STORED, SOPInstanceUID=uid("second"))
    found = find_series(tmp_path)
    assert [(s.part, s.problem, len(s.files)) for s in found] == [(1, "", 1), (2, "", 1)]


def test_a_compression_without_a_decoder_is_refused_by_name(tmp_path):
    (path,) = write_series(tmp_path, STORED[:1], syntax=RLELossless)
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"  # MPEG2
    data.save_as(path)
    assert "is compressed as MPEG2 Main Profile / Main Level, which no decoder reads" in only(tmp_path).problem


def test_a_file_cut_off_in_its_header_refuses_its_series(tmp_path):
    paths = write_series(tmp_path, STORED)
    content = paths[0].read_bytes()  # the first slice: the rest is a regular volume
    paths[0].write_bytes(content[: content.index(b"\x28\x00\x02\x00US")])
    assert only(tmp_path).problem.startswith(f"{paths[0].name} has no Rows and Columns, as a file that was cut off")


@pytest.mark.parametrize("kind", ["damaged", "cut off before the series is named", "without a series"])
def test_a_file_of_no_series_is_named_and_the_series_beside_it_has_a_note(tmp_path, kind):
    paths = write_series(tmp_path, STORED)
    content = paths[0].read_bytes()  # the first slice: the rest is a regular volume
    if kind == "damaged":
        paths[0].write_bytes(content[:162] + b"\xff" * 12)
    elif kind == "without a series":
        data = pydicom.dcmread(paths[0])
        data.SeriesInstanceUID = ""
        data.save_as(paths[0])
    else:
        paths[0].write_bytes(content[: content.index(b"\x20\x00\x0e\x00UI")])
    damaged, series = find_series(tmp_path)
    assert damaged.files == (paths[0],)
    assert re.search("export (it|the file) again", damaged.problem)
    assert series.size == (5, 5, 7)
    assert series.notes == ("1 file(s) in the same folder cannot be read, and may belong to it",)


def test_the_packages_are_named_where_they_are_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UserError, match=r'the package pydicom.*pip install -c constraints.txt -e "\.\[dicom\]"'):
        find_series(tmp_path)


def test_without_the_packages_everything_else_can_be_imported():
    code = """
import sys
for name in ("pydicom", "highdicom", "gdcm"):
    sys.modules[name] = None
import importlib
from pathlib import Path
from mre_lowshot.errors import UserError
for name in ("series", "volume", "seg", "codes"):
    importlib.import_module(f"mre_lowshot.data.dicom.{name}")
from mre_lowshot.data.dicom.series import find_series
try:
    find_series(Path("."))
except UserError as problem:
    print(problem)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("DICOM needs the package pydicom, which is missing: pip install"), done.stderr


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (("P1", "3", "Abdomen"), "P1_3_Abdomen"),
        (("../..", "C:\\x", "a/b"), "C-x_a-b"),
        (("", "", ""), "scan"),
        (("CON",), "CON-scan"),
        (("lpt1",), "lpt1-scan"),
        (("Müller", "T1 w/ fat. sat."), "Muller_T1-w-fat-sat"),
        (("日本",), "scan"),
        (("P1", "1001"), "P1-1001"),
        (("P", "0000"), "P-0000"),
        (("x" * 300,), "x" * 60),
        (("a\0b\n", "-_-"), "a-b"),
    ],
)
def test_case_names_are_safe_file_names(parts, name):
    assert case_name(*parts) == name


def test_case_names_are_distinct_in_any_case_of_letters():
    made = distinct(["a", "A", "b", "a-2"], ["1", "2", "3", "4"])
    assert made[2:] == ["b", "a-2"]
    assert len({name.lower() for name in made}) == 4
    assert distinct(["a", "a"], ["1", "2"]) == list(reversed(distinct(["a", "a"], ["2", "1"])))
    assert len(set(distinct(["a", "a", "a"], ["1", "1", "1"]))) == 3


ROOT = Path(pydicom.__file__).parent / "data"
PACKAGED = sorted(path for path in ROOT.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc", ".json"))


@pytest.mark.parametrize("path", PACKAGED, ids=lambda path: path.name)
def test_packaged_files_are_read_or_refused_by_name(path):
    """None raises anything else. There is none that forms a volume alone."""
    for series in find_series(path):
        assert series.problem
        assert series.name
        assert series.files


def test_all_packaged_files_together():
    found = find_series(ROOT)
    readable = [series for series in found if not series.problem]
    assert [series.size for series in readable] == [(5, 16, 16)]
    assert len({series.name.lower() for series in found}) == len(found)
    assert sum(len(series.files) for series in found) > 150
