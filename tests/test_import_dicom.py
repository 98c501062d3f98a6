"""mre_import from DICOM: series with DICOM SEG or other label maps, in all orientations; SEG files that are refused;
from series and SEG to a trained model and its predictions."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import Space, command
from loose_files import files, points

pytest.importorskip("pydicom")

import pydicom
from pydicom.dataset import Dataset

from mre_lowshot.data.axes import inverse, turn_array
from mre_lowshot.data.dicom import seg_reader
from mre_lowshot.data.dicom.seg import write_seg
from mre_lowshot.data.dicom.series import find_series
from mre_lowshot.data.dicom.volume import read_series
from mre_lowshot.data.volume import Volume, read_labels
from mre_lowshot.errors import UserError
from tests.dicom_series import ORIENTATIONS, base, number, positions, uid, write_enhanced, write_file, write_series
from tests.test_dicom_seg import label_points, seg_points

pytestmark = pytest.mark.usefixtures("no_settings", "one_thread_only")
SIZE = (6, 9, 11)
SPACING = (3.0, 0.8, 0.7)
STORED = np.random.default_rng(1).integers(0, 3000, SIZE).astype(np.int16)
LABELS = np.random.default_rng(2).choice([0, 0, 1, 2, 4], SIZE).astype(np.uint8)
LABELS[:2] = 0
NAMES = {1: "liver", 2: "Left Kidney", 3: "ghost", 4: "liver tumor"}


def run(tmp_path, *arguments, name="7"):
    return command("importing", "-i", tmp_path / "in", "--name", name, "--workspace", tmp_path / "w", *arguments)


def imported(tmp_path, name="Dataset007_Imported"):
    folder = tmp_path / "w/raw" / name
    return folder, json.loads((folder / "dataset.json").read_text())


def world(array, orientation, spacing=SPACING, origin=(-30.0, -20.0, 5.5)):
    """The values (slice, row, column) that are not 0 by position in mm, from the tags of the series alone."""
    cosines = np.array(ORIENTATIONS[orientation], float)
    places = positions(len(array), cosines, spacing[0], origin)
    found = {}
    for k, j, i in np.argwhere(array != 0):
        at = places[k] + i * spacing[2] * cosines[:3] + j * spacing[1] * cosines[3:]
        found[tuple((np.round(at, 2) + 0.0).tolist())] = float(array[k, j, i])
    return found


def make_seg(path: Path, labels=LABELS, orientation="axial", *, names=None, refers_to="Abdomen", **more):
    """A BINARY SEG of pydicom alone: frames of all segments in random order, slices without labels left out."""
    cosines = ORIENTATIONS[orientation]
    spacing = more.pop("spacing", SPACING)
    places = positions(len(labels), cosines, spacing[0], more.pop("origin", (-30.0, -20.0, 5.5)))
    made = base("SEG", "Segmentation")
    made.SOPClassUID, made.SOPInstanceUID = seg_reader.CLASSES[0], uid("seg", str(path))
    made.SegmentationType, made.BitsAllocated, made.BitsStored, made.HighBit = "BINARY", 1, 1, 0
    made.PixelRepresentation = 0
    made.Rows, made.Columns = labels.shape[1:]
    names = names or NAMES
    segments = []
    for value, name in names.items():
        segment = Dataset()
        segment.SegmentNumber, segment.SegmentLabel, segment.SegmentAlgorithmType = value, name, "MANUAL"
        segments.append(segment)
    made.SegmentSequence = segments
    frames = [(value, k) for value in names for k in range(len(labels)) if (labels[k] == value).any()]
    frames = [frames[i] for i in np.random.default_rng(5).permutation(len(frames))]
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [number(v) for v in spacing[1:]], number(spacing[0])
    plane.ImageOrientationPatient = [number(v) for v in cosines]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    groups = []
    for value, k in frames:
        group, place, which = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [number(v) for v in places[k]]
        which.ReferencedSegmentNumber = value
        group.PlanePositionSequence, group.SegmentIdentificationSequence = [place], [which]
        groups.append(group)
    made.NumberOfFrames = len(frames)
    made.SharedFunctionalGroupsSequence, made.PerFrameFunctionalGroupsSequence = [shared], groups
    if refers_to:
        reference = Dataset()
        reference.SeriesInstanceUID, reference.ReferencedInstanceSequence = uid("study", refers_to), []
        made.ReferencedSeriesSequence = [reference]
    bits = np.packbits(np.stack([labels[k] == v for v, k in frames]).ravel(), bitorder="little").tobytes()
    made.PixelData = bits + b"\0" * (len(bits) % 2)
    made["PixelData"].VR = "OB"
    for key, value in more.items():
        setattr(made, key, value)
    return write_file(path, made)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_series_and_seg_keep_their_positions(tmp_path, orientation, capsys):
    write_series(tmp_path / "in/deep/er", STORED, orientation, intercept=0)
    make_seg(tmp_path / "in/seg", orientation=orientation)
    assert run(tmp_path) == 0
    out = capsys.readouterr().out
    assert "in/seg" not in out
    assert "seg (refers to the series)" in out
    assert "labels without any voxel are left out: ghost" in out
    assert "4 -> 3 liver tumor" in out
    folder, content = imported(tmp_path)
    assert content["channel_names"] == {"0": "CT"}
    assert content["labels"] == {"background": 0, "liver": 1, "Left Kidney": 2, "liver tumor": 3}
    image = points(sitk.ReadImage(str(folder / "imagesTr/Imported_001_0000.nii.gz")))
    labels = points(sitk.ReadImage(str(folder / "labelsTr/Imported_001.nii.gz")))
    assert near(image) == near(world(STORED, orientation))
    assert near(labels) == near(world(np.where(LABELS == 4, 3, LABELS), orientation))


def near(found):
    """Positions rounded to 0.1 mm: the smallest distance between voxels is 0.7 mm."""
    return {tuple(round(v * 5) for v in at): value for at, value in found.items()}


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize("source", ["CT", "enhanced MR"])
def test_our_own_seg_is_read_back(tmp_path, source, kind):
    if source == "CT":
        write_series(tmp_path / "in/ct", STORED, "oblique")
    else:
        write_enhanced(tmp_path / "in/scan", STORED, "sagittal", modality="MR")
    (series,) = find_series(tmp_path / "in")
    grid = read_series(series).geometry
    array = turn_array(LABELS, grid.axes)
    write_seg(tmp_path / "in/seg.dcm", Volume(array, grid), series, kind=kind, algorithm=("a", "1"),
              label_names={"background": 0, **{name: value for value, name in NAMES.items()}})  # fmt: skip
    seg = seg_reader.read_seg(tmp_path / "in/seg.dcm")
    assert (seg_reader.read_on(seg, grid, {n: n for n in NAMES}) == array).all()
    assert (inverse(grid.axes), seg.kind, seg.series) == (inverse(grid.axes), kind, {series.uid})
    assert run(tmp_path) == 0
    _, content = imported(tmp_path)
    assert content["channel_names"] == {"0": "CT" if source == "CT" else "MRI"}
    assert content["label_codes"]["liver"] == ["10200004", "SCT", "Liver"]


def test_the_series_that_a_seg_refers_to(tmp_path, capsys):
    """Two series of one patient on one grid; and one of them is not there."""
    write_series(tmp_path / "in/a", STORED)
    write_series(tmp_path / "in/b", STORED[::-1], series="Venous", seed=50)
    make_seg(tmp_path / "in/s", refers_to="Venous")
    assert run(tmp_path) == 0
    folder, _ = imported(tmp_path)
    got = points(sitk.ReadImage(str(folder / "imagesTr/Imported_001_0000.nii.gz")))
    assert near(got) == near(world(STORED[::-1].astype(float) - 1000, "axial"))
    make_seg(tmp_path / "in/s", refers_to="Arterial")
    assert run(tmp_path, name="8") == 2
    assert "s: the series that it refers to is not there" in capsys.readouterr().err
    make_seg(tmp_path / "in/s", refers_to="")
    assert run(tmp_path, name="8") == 2
    assert "s: 2 scans fit equally" in capsys.readouterr().err
    uids = {series.description: series.uid for series in find_series(tmp_path / "in") if series.frames}
    (tmp_path / "pairs.json").write_text(json.dumps([{"scan": uids["Venous"], "label": "s"}]))
    assert run(tmp_path, "--pairs", tmp_path / "pairs.json", name="8") == 0


def test_nothing_of_the_patient_is_in_names_and_images(tmp_path):
    write_series(tmp_path / "in/MUELLER", STORED, PatientID="4711-MUELLER", PatientName="Mueller^Anna")
    make_seg(tmp_path / "in/MUELLER/s", PatientID="4711-MUELLER")
    assert run(tmp_path) == 0
    folder, content = imported(tmp_path)
    assert "MUELLER" not in json.dumps(content).upper()
    assert not [name for name in files(folder) if "mueller" in name.lower()]
    assert b"mueller" not in (folder / "imagesTr/Imported_001_0000.nii.gz").read_bytes().lower()


def test_series_with_other_label_maps(tmp_path, capsys):
    """A NIfTI label map on the grid of a series, named by the patient's ID; series of another kind are left out."""
    write_series(tmp_path / "in/x", STORED, "coronal", PatientID="P12")
    write_series(tmp_path / "in/y", STORED, "coronal", series="Other", seed=60, PatientID="P3")
    write_series(tmp_path / "in/z", STORED[:1], "sagittal", series="Scout", seed=90, ImageType=["ORIGINAL", "PRIMARY",
                 "LOCALIZER"])  # fmt: skip
    series = next(s for s in find_series(tmp_path / "in") if s.patient_id == "P12")
    grid = read_series(series).geometry
    (tmp_path / "in/labels").mkdir()
    Volume(turn_array(LABELS, grid.axes), grid).save(tmp_path / "in/labels/P12.nii.gz")
    assert run(tmp_path, "--label_names", "1=a", "2=b", "4=c", "--test") == 0
    out = capsys.readouterr().out
    assert "labels/P12.nii.gz (same grid; same name)" in out
    assert "is a localizer (scout)" in out
    folder, _ = imported(tmp_path)
    assert files(folder / "imagesTs") == ["Imported_002_0000.nii.gz"]
    got = points(sitk.ReadImage(str(folder / "labelsTr/Imported_001.nii.gz")))
    assert near(got) == near(world(np.where(LABELS == 4, 3, LABELS), "coronal"))


def test_channels_by_series_description(tmp_path):
    for patient in ("A", "B"):
        for seed, text in enumerate(("AX FLAIR", "T1 MPRAGE SAG", "DWI b1000")):
            write_series(tmp_path / f"in/{patient}{seed}", STORED + seed, modality="MR", series=f"{patient} {text}",
                         PatientID=patient, seed=seed, intercept=0)  # fmt: skip
        make_seg(tmp_path / f"in/{patient}", refers_to=f"{patient} T1 MPRAGE SAG", PatientID=patient)
    assert run(tmp_path, "--channels", "FLAIR,T1") == 0
    folder, content = imported(tmp_path)
    assert content["channel_names"] == {"0": "FLAIR", "1": "T1"}
    assert len(files(folder / "imagesTr")) == 4
    got = points(sitk.ReadImage(str(folder / "imagesTr/Imported_002_0001.nii.gz")))
    assert near(got) == near(world(STORED + 1.0, "axial"))


def test_a_series_that_fits_two_channels_is_refused(tmp_path, capsys):
    write_series(tmp_path / "in/a", STORED, modality="MR", series="AX T2 FLAIR", intercept=0)
    make_seg(tmp_path / "in/seg", refers_to="AX T2 FLAIR")
    assert run(tmp_path, "--channels", "FLAIR,T2") == 2
    assert "fits channel FLAIR and channel T2; give patterns" in capsys.readouterr().err


def overlapping(path):
    """Segments 1 and 2 overlap in one slice: the bits of 2 are those of 1."""
    labels = np.zeros(SIZE, np.uint8)
    labels[3, 2:5, 2:5], labels[4, 2:5, 2:5] = 1, 2
    make_seg(path, labels, names={1: "liver", 2: "tumor"})
    made = pydicom.dcmread(path)
    for group in made.PerFrameFunctionalGroupsSequence:
        group.PlanePositionSequence = made.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence
    made.save_as(path)


def test_overlapping_segments(tmp_path, capsys):
    write_series(tmp_path / "in", STORED)
    overlapping(tmp_path / "in/seg")
    assert run(tmp_path) == 2
    assert "segments 1 (liver) and 2 (tumor) overlap in 9 voxel(s)" in capsys.readouterr().err
    assert run(tmp_path, "--overlap", "later_wins") == 0
    assert imported(tmp_path)[1]["labels"] == {"background": 0, "tumor": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"SegmentationType": "FRACTIONAL"}, "of type FRACTIONAL; only BINARY and LABELMAP"),
        ({"origin": (-30.0, -20.0, 6.5)}, "lies 0.33 voxels beside the voxels of the scan"),
        ({"origin": (-29.7, -20.0, 5.5)}, "voxels beside the voxels of the scan"),
        (
            {"spacing": (3.0, 0.9, 0.7)},
            "frame 1 has pixels of 0.9 x 0.7 mm or a direction that are not those of the scan",
        ),
        ({"spacing": (6.0, 0.8, 0.7), "refers_to": ""}, "its slices are at least 6 mm apart, those of the scan 3 mm"),
        ({"orientation": "oblique"}, "or a direction that are not those of the scan"),
        ({"origin": (30.0, -20.0, 5.5), "spacing": (3.0, 0.8, 0.7)}, "beside"),
        ({"names": {1: "liver", 2: "", 4: "x"}}, "segment 2 has no SegmentLabel"),
        ({"PixelData": b"\0\0"}, "its pixels cannot be read"),
        ({"SegmentSequence": []}, "describes no segments"),
        ({"NumberOfFrames": 3}, "states 3 frames"),
    ],
)
def test_segs_that_are_refused(tmp_path, capsys, options, message):
    write_series(tmp_path / "in", STORED)
    make_seg(tmp_path / "in/seg", **options)
    assert run(tmp_path) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "seg" in error
    assert not (tmp_path / "w").exists()


def test_a_seg_beside_the_scan_is_refused(tmp_path, capsys):
    """Whole voxels away: its frames lie on the grid's continuation, its labels outside the scan."""
    write_series(tmp_path / "in", STORED)
    make_seg(tmp_path / "in/seg", origin=(-30.0, -20.0, 14.5))
    assert run(tmp_path) == 2
    assert "has labels outside the scan (along z)" in capsys.readouterr().err


def test_every_second_slice_may_be_labelled(tmp_path):
    """In a file that refers to the series: in any other, the slices between would belong to a thicker slice."""
    labels = LABELS.copy()
    labels[1::2] = 0
    write_series(tmp_path / "in", STORED)
    make_seg(tmp_path / "in/seg", labels)
    assert run(tmp_path) == 0
    got = points(sitk.ReadImage(str(imported(tmp_path)[0] / "labelsTr/Imported_001.nii.gz")))
    assert near(got) == near(world(np.where(labels == 4, 3, labels), "axial"))
    make_seg(tmp_path / "in/seg", labels, refers_to="")
    assert run(tmp_path, name="8") == 2


def test_a_damaged_series_is_named(tmp_path, capsys):
    paths = write_series(tmp_path / "in", STORED)
    make_seg(tmp_path / "in/seg")
    paths[3].unlink()
    assert run(tmp_path) == 2
    output = capsys.readouterr()
    assert "lacks 1 slice(s)" in output.out
    assert "is not there, or cannot be read" in output.err


def test_the_reader_refuses_what_is_no_seg(tmp_path):
    (path, *_) = write_series(tmp_path / "in", STORED)
    with pytest.raises(UserError, match="is not a DICOM SEG"):
        seg_reader.read_seg(path)


@pytest.mark.slow
def test_from_dicom_to_predictions(tmp_path):
    """mre_import, plan, train and predict, from DICOM to a DICOM SEG that is read back by pydicom alone."""
    shape, space = (20, 36, 44), Space(tmp_path / "w")
    from mre_lowshot.data.synthetic import write_dataset

    write_dataset(tmp_path / "raw", subjects=3, shape=shape, spacing=(8.0, 8.0, 8.0))
    source = tmp_path / "raw/Dataset900_Synthetic"
    names = {v: k for k, v in json.loads((source / "dataset.json").read_text())["labels"].items() if v}
    for number_, path in enumerate(sorted((source / "imagesTr").iterdir())):
        read = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        study = {"PatientID": f"P{number_}", "StudyInstanceUID": uid(number_),
                 "SeriesInstanceUID": uid("study", f"scan {number_}")}  # fmt: skip
        write_series(tmp_path / f"in/p{number_}", np.rint(read).astype(np.int16), series=f"scan {number_}",
                     spacing=(8.0, 8.0, 8.0), intercept=0, seed=number_, **study)  # fmt: skip
        if number_ < 2:
            labels = sitk.GetArrayFromImage(sitk.ReadImage(str(source / "labelsTr" / path.name.replace("_0000", ""))))
            del study["SeriesInstanceUID"]
            make_seg(tmp_path / f"in/p{number_}/seg", labels, names=names, refers_to=f"scan {number_}",
                     spacing=(8.0, 8.0, 8.0), **study)  # fmt: skip
    assert run(tmp_path, "--test", name="Dataset900_Synthetic") == 0
    assert space.plan() == 0
    assert space.train() == 0
    assert space.predict(space.raw / "imagesTs", tmp_path / "nifti") == 0
    assert space.predict(tmp_path / "in/p2", tmp_path / "out") == 0
    (path,) = (tmp_path / "out").glob("*.seg.dcm")
    seg = pydicom.dcmread(path)
    labels = read_labels(tmp_path / "nifti/Synthetic_003.nii.gz")
    assert seg_points(seg) == label_points(labels)
    assert len(seg_points(seg)) == np.count_nonzero(labels.array) > 50
    assert {s.SegmentLabel: s.SegmentNumber for s in seg.SegmentSequence} == {n: v for v, n in names.items()}
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == uid("study", "scan 2")
