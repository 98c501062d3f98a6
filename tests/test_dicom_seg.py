"""Label maps as DICOM SEG, read back by a reader of its own on pydicom alone: the same label at every voxel."""

import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

pytest.importorskip("pydicom")

import highdicom
import pydicom
from pydicom.sr._concepts_dict import concepts

from mre_lowshot.data.axes import inverse, turn_array
from mre_lowshot.data.dicom import codes
from mre_lowshot.data.dicom import seg as seg_module
from mre_lowshot.data.dicom.seg import write_seg
from mre_lowshot.data.dicom.series import Series, find_series
from mre_lowshot.data.dicom.volume import read_series
from mre_lowshot.data.volume import Volume
from mre_lowshot.errors import UserError
from tests.dicom_series import ORIENTATIONS, uid, write_enhanced, write_series

STORED = np.random.default_rng(1).integers(-1000, 3000, (6, 5, 7)).astype(np.int16)
NAMES = {"background": 0, "liver": 1, "Left Kidney": 2, "ghost": 3, "liver_tumor": 4}
ALGORITHM = ("Dataset900_Synthetic 1shot", "0.2.0 a1b2")


def only(folder: Path) -> Series:
    (series,) = find_series(folder)
    return series


def some_labels(series: Series, seed: int = 0) -> Volume:
    """Labels 0, 1, 2, 4 (none is 3), without any in the lowest two slices of the file."""
    grid = read_series(series).geometry
    array = np.random.default_rng(seed).choice([0, 0, 1, 2, 4], grid.shape)
    turn_array(array, inverse(grid.axes))[:2] = 0
    return Volume(array, grid)


def write(path: Path, labels: Volume, series: Series, **options) -> pydicom.Dataset:
    write_seg(path, labels, series, **{"label_names": NAMES, "algorithm": ALGORITHM, **options})
    return pydicom.dcmread(path)


def rounded(points: np.ndarray) -> list[tuple[float, ...]]:
    return [tuple(v) for v in (np.round(points, 3) + 0.0).tolist()]


def seg_points(seg: pydicom.Dataset) -> dict[tuple[float, ...], int]:
    """The label at each world position (mm in LPS) that has one, from pixels and headers alone."""
    size = (int(seg.NumberOfFrames), seg.Rows, seg.Columns)
    binary = seg.SegmentationType == "BINARY"
    values = np.frombuffer(seg.PixelData, np.uint8)
    if binary:
        values = np.unpackbits(values, bitorder="little")
    frames = values[: np.prod(size)].reshape(size)
    shared = seg.SharedFunctionalGroupsSequence[0]
    cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    down, across = (float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing)
    found: dict[tuple[float, ...], int] = {}
    for frame, group in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        start = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        rows, columns = np.nonzero(frame)
        at = start + columns[:, None] * across * cosines[:3] + rows[:, None] * down * cosines[3:]
        number = int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber) if binary else None
        for key, value in zip(rounded(at), frame[rows, columns].tolist(), strict=True):
            assert key not in found  # no voxel has two labels
            found[key] = number or value
    return found


def label_points(labels: Volume) -> dict[tuple[float, ...], int]:
    z, y, x = np.nonzero(labels.array)
    world = labels.geometry.affine() @ np.stack([x, y, z, np.ones(len(x))])
    return dict(zip(rounded(world[:3].T), labels.array[z, y, x].tolist(), strict=True))


def check_references(seg: pydicom.Dataset, folder: Path) -> None:
    """Each frame refers to the image of the series that lies at its position."""
    headers = {h.SOPInstanceUID: h for h in (pydicom.dcmread(p) for p in folder.iterdir())}
    for group in seg.PerFrameFunctionalGroupsSequence:
        (item,) = group.DerivationImageSequence[0].SourceImageSequence
        source = headers[item.ReferencedSOPInstanceUID]
        assert item.ReferencedSOPClassUID == source.SOPClassUID
        assert item.SpatialLocationsPreserved == "YES"
        place = source
        if "NumberOfFrames" in source:
            frame = source.PerFrameFunctionalGroupsSequence[item.ReferencedFrameNumber - 1]
            place = frame.PlanePositionSequence[0]
        assert np.allclose(
            np.array(place.ImagePositionPatient, float),
            np.array(group.PlanePositionSequence[0].ImagePositionPatient, float),
            atol=1e-6,
        )
    (referred,) = seg.ReferencedSeriesSequence
    assert {item.ReferencedSOPInstanceUID for item in referred.ReferencedInstanceSequence} == set(headers)
    assert {item.ReferencedSOPInstanceUID for item in seg.SourceImageSequence} == set(headers)
    assert referred.SeriesInstanceUID == next(iter(headers.values())).SeriesInstanceUID


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("source", ["CT", "MR", "enhanced CT", "enhanced MR"])
def test_every_voxel_has_its_label(tmp_path, orientation, source, kind):
    if source.startswith("enhanced"):
        write_enhanced(tmp_path / "in/scan", STORED, orientation, modality=source[-2:])
    else:
        write_series(tmp_path / "in", STORED, orientation, modality=source)
    series = only(tmp_path / "in")
    labels = some_labels(series)
    seg = write(tmp_path / "out/seg.dcm", labels, series, kind=kind)
    assert seg_points(seg) == label_points(labels)
    assert len(label_points(labels)) > 40
    check_references(seg, tmp_path / "in")
    planes = 4  # two slices have no label
    assert seg.NumberOfFrames == (3 * planes if kind == "BINARY" else planes)
    assert seg.FrameOfReferenceUID == uid("study", "frame")


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_what_a_viewer_shows(tmp_path, kind):
    write_series(tmp_path / "in", STORED, PatientName="Müller^Jörg", SpecificCharacterSet="ISO_IR 100")
    series = only(tmp_path / "in")
    seg = write(
        tmp_path / "seg.dcm",
        some_labels(series),
        series,
        kind=kind,
        colours={1: "#e69f00", 2: "#0000ff", 3: "#00ff00", 4: "#ff0000"},
        codes={"ghost": ("12738006", "SCT", "Brain")},
    )
    assert (seg.PatientID, str(seg.PatientName), seg.StudyInstanceUID) == ("P1", "Müller^Jörg", uid("study"))
    assert (seg.Modality, seg.SeriesNumber, seg.Manufacturer) == ("SEG", 390, "mre_lowshot")
    assert seg.SeriesDescription == "For research only: Abdomen"
    assert seg.ContentDescription == "For research only"
    segments = [s for s in seg.SegmentSequence if s.SegmentNumber > 0]
    assert [(s.SegmentNumber, s.SegmentLabel) for s in segments] == [
        (1, "liver"), (2, "Left Kidney"), (3, "ghost"), (4, "liver_tumor"),
    ]  # fmt: skip
    assert [s.SegmentedPropertyTypeCodeSequence[0].CodeMeaning for s in segments] == [
        "Liver", "Kidney", "Brain", "Neoplasm",
    ]  # fmt: skip
    assert [s.SegmentedPropertyCategoryCodeSequence[0].CodeValue for s in segments] == [
        "91723000", "91723000", "91723000", "49755003",
    ]  # fmt: skip
    side = segments[1].SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0]
    assert (side.CodeValue, side.CodeMeaning) == ("7771000", "Left")
    assert {s.SegmentAlgorithmType for s in segments} == {"AUTOMATIC"}
    algorithm = segments[0].SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ALGORITHM
    shown = [highdicom.color.CIELabColor.from_dicom_value(s.RecommendedDisplayCIELabValue).to_rgb() for s in segments]
    assert np.abs(np.array(shown) - [(230, 159, 0), (0, 0, 255), (0, 255, 0), (255, 0, 0)]).max() <= 2


def test_highdicom_reads_the_same(tmp_path):
    write_series(tmp_path / "in", STORED, "oblique")
    series = only(tmp_path / "in")
    labels = some_labels(series)
    write(tmp_path / "seg.dcm", labels, series)
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    sources = [uid for _, uid in (frame.sop for frame in series.frames)]
    read = seg.get_pixels_by_source_instance(sources, combine_segments=True, ignore_spatial_locations=False,
                                             assert_missing_frames_are_empty=True)  # fmt: skip
    assert np.array_equal(read, turn_array(labels.array, inverse(labels.geometry.axes)))


def test_the_same_result_is_the_same_instance_and_another_is_not(tmp_path):
    write_series(tmp_path / "in", STORED)
    series = only(tmp_path / "in")
    labels = some_labels(series)
    first, again, other, model, labelmap, named = (
        write(tmp_path / "seg.dcm", chosen, series, **options)
        for chosen, options in [
            (labels, {}),
            (labels, {}),
            (some_labels(series, seed=1), {}),
            (labels, {"algorithm": ("another", "1")}),
            (labels, {"kind": "LABELMAP"}),
            (labels, {"colours": {1: "#000000", 2: "#0000ff", 3: "#00ff00", 4: "#ff0000"}}),
        ]
    )
    assert first.SOPInstanceUID == again.SOPInstanceUID
    assert first.SeriesInstanceUID == again.SeriesInstanceUID == other.SeriesInstanceUID == named.SeriesInstanceUID
    instances = {seg.SOPInstanceUID for seg in (first, other, model, labelmap, named)}
    assert len(instances) == 5
    assert len({seg.SeriesInstanceUID for seg in (first, model, labelmap)}) == 3
    assert first.SeriesInstanceUID != series.uid
    assert all(re.fullmatch(r"[0-9.]{1,64}", value) for value in instances)


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_a_scan_without_any_label_has_a_seg_without_any(tmp_path, kind):
    write_series(tmp_path / "in", STORED)
    series = only(tmp_path / "in")
    grid = read_series(series).geometry
    seg = write(tmp_path / "seg.dcm", Volume(np.zeros(grid.shape, int), grid), series, kind=kind)
    assert seg_points(seg) == {}
    assert seg.NumberOfFrames == (4 if kind == "BINARY" else 1)
    assert next(s.SegmentLabel for s in seg.SegmentSequence if s.SegmentNumber > 0) == "liver"
    check_references(seg, tmp_path / "in")


def test_one_of_several_volumes_in_a_multi_frame_file(tmp_path):
    """Frames of two diffusion directions at the same positions: each SEG refers to those of its own."""
    path = write_enhanced(tmp_path / "in/scan", np.concatenate([STORED, STORED + 1]), modality="MR")
    data = pydicom.dcmread(path)
    groups = sorted(
        data.PerFrameFunctionalGroupsSequence, key=lambda g: g.FrameContentSequence[0].InStackPositionNumber
    )
    for number, group in enumerate(groups):
        diffusion, gradient = pydicom.Dataset(), pydicom.Dataset()
        gradient.DiffusionGradientOrientation = [0.0, number // 6, 1.0]
        diffusion.DiffusionGradientDirectionSequence = [gradient]
        group.MRDiffusionSequence = [diffusion]
        group.PlanePositionSequence[0].ImagePositionPatient = [0, 0, 3 * (number % 6)]
    data.save_as(path)
    first, second = find_series(tmp_path / "in")
    assert [s.variant for s in (first, second)] == [
        "volume 1 of 2: DiffusionGradientOrientation 0.0\\0.0\\1.0",
        "volume 2 of 2: DiffusionGradientOrientation 0.0\\1.0\\1.0",
    ]  # fmt: skip
    assert np.array_equal(read_series(second).array[0], STORED + 1.0 - 1000)
    labels = some_labels(second)
    seg = write(tmp_path / "seg.dcm", labels, second)
    assert seg_points(seg) == label_points(labels)
    check_references(seg, tmp_path / "in")
    for group in seg.PerFrameFunctionalGroupsSequence:
        number = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
        diffusion = data.PerFrameFunctionalGroupsSequence[number - 1].MRDiffusionSequence[0]
        assert diffusion.DiffusionGradientDirectionSequence[0].DiffusionGradientOrientation == [0.0, 1.0, 1.0]


def test_sources_without_what_the_standard_asks_for(tmp_path):
    """As after removal of the patient's data: attributes are missing, or hold what they may not."""
    write_series(tmp_path / "in", STORED, PatientName=None, PatientBirthDate=None, StudyID=None, AccessionNumber=None,
                 ReferringPhysicianName=None, PatientSex="U", StudyTime=None, Manufacturer=None)  # fmt: skip
    series = only(tmp_path / "in")
    labels = some_labels(series)
    seg = write(tmp_path / "seg.dcm", labels, series)
    assert seg_points(seg) == label_points(labels)
    assert (seg.PatientName, seg.PatientSex, seg.StudyDate) == ("", "", "20240102")
    write_series(tmp_path / "other", STORED, FrameOfReferenceUID=None)
    with pytest.raises(UserError, match="has no Frame of Reference UID"):
        write(tmp_path / "seg2.dcm", some_labels(only(tmp_path / "other")), only(tmp_path / "other"))
    assert not (tmp_path / "seg2.dcm").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "FRACTIONAL"}, "is not one of BINARY, LABELMAP"),
        ({"label_names": {"background": 0, "a": 2}}, "numbers its segments 1, 2"),
        ({"label_names": {"background": 0, "a": 1}}, "label 4 is not in the labels"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, change, message):
    write_series(tmp_path / "in", STORED)
    series = only(tmp_path / "in")
    with pytest.raises(UserError, match=message):
        write(tmp_path / "seg.dcm", some_labels(series), series, **change)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_labels_of_another_grid_are_refused(tmp_path):
    write_series(tmp_path / "in", STORED)
    series = only(tmp_path / "in")
    shifted = Volume(np.zeros((6, 5, 7), int), Volume.from_array(np.zeros((6, 5, 7)), (3.0, 0.8, 0.7)).geometry)
    with pytest.raises(UserError, match="is not on the grid of series P1_3_Abdomen: origin"):
        write(tmp_path / "seg.dcm", shifted, series)


def test_a_failed_write_leaves_the_earlier_file(tmp_path, monkeypatch):
    write_series(tmp_path / "in", STORED)
    series = only(tmp_path / "in")
    write(tmp_path / "seg.dcm", some_labels(series), series)
    before = (tmp_path / "seg.dcm").read_bytes()
    monkeypatch.setattr(pydicom.Dataset, "save_as", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(UserError, match="cannot be written"):
        write(tmp_path / "seg.dcm", some_labels(series, 1), series)
    assert (tmp_path / "seg.dcm").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "seg.dcm"]


def test_only_errors_of_the_dicom_packages_count_as_errors_of_the_source(tmp_path, monkeypatch):
    write_series(tmp_path / "in", STORED)
    series = only(tmp_path / "in")
    write_seg(str(tmp_path / "seg.dcm"), some_labels(series), series, label_names=NAMES, algorithm=ALGORITHM)
    assert (tmp_path / "seg.dcm").is_file()  # a text is a path too
    other = tmp_path / "other.dcm"
    with monkeypatch.context() as patch:
        patch.setattr(seg_module, "_refer", lambda *_: None.missing)
        with pytest.raises(AttributeError, match="missing"):
            write(other, some_labels(series), series)
    with monkeypatch.context() as patch:
        patch.setattr(highdicom.seg, "Segmentation", lambda **_: {}["StudyDate"])
        with pytest.raises(UserError, match=r"cannot refer to series P1_3_Abdomen \('StudyDate'\); write another"):
            write(other, some_labels(series), series)
    assert not other.exists()


def test_the_listed_codes_are_those_of_the_standard():
    """With their meanings, as pydicom lists the context groups of DICOM PS3.16."""
    known = {
        (value, meaning.lower()) for by_value in concepts["SCT"].values() for value, (meaning, _) in by_value.items()
    }
    listed = [(value, meaning.lower()) for meaning, value, _ in (*codes._STRUCTURES, *codes._LESIONS)]
    assert [code for code in listed if code not in known] == []
    assert len({value for value, _ in listed}) == len(listed)


@pytest.mark.parametrize(
    ("name", "meaning", "side"),
    [
        ("liver", "Liver", None),
        ("RightKidney", "Kidney", "Right"),
        ("kidney_l", "Kidney", "Left"),
        ("left_ventricle", "Left ventricle", None),
        ("left adrenal gland", "Adrenal gland", "Left"),
        ("Inferior-Vena-Cava", "Inferior vena cava", None),
        ("lung tumour right", "Neoplasm", "Right"),
        ("whole_tumor", "Neoplasm", None),
        ("edema", "Edema", None),
        ("plaque", "Lesion", None),
        ("class 7", "Tissue", None),
        ("oesophagus", "Esophagus", None),
    ],
)
def test_terms_follow_the_label_names(name, meaning, side):
    terms = codes.terms_of(name)
    assert terms.type[2] == meaning
    assert (terms.side[2] if terms.side else None) == side


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lever": ["1", "SCT", "Liver"]}, "names 'lever', which is not in labels"),
        ({"liver": "10200004"}, "gives 'liver' the code '10200004'; write value, scheme"),
        ({"liver": ["1", "SCT"]}, "write value, scheme"),
        ({"liver": [10200004, "SCT", "Liver"]}, "write value, scheme"),
        ({"liver": ["1", "S" * 17, "Liver"]}, "write value, scheme"),
        (["liver"], "must map names to codes"),
    ],
)
def test_what_is_no_code_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        codes.label_codes(NAMES, given, "Dataset001/dataset.json")
    assert codes.label_codes(NAMES, {"liver": ["1", "SCT", "Liver"]}) == {"liver": ("1", "SCT", "Liver")}


@pytest.mark.parametrize(("dataset", "modality"), [("Dataset017_BTCV", "CT"), ("Dataset004_Hippocampus", "MR")])
@pytest.mark.parametrize(("orientation", "enhanced"), [("axial", False), ("sagittal", True), ("oblique", False)])
@pytest.mark.slow
def test_real_scans(tmp_path, dataset, modality, orientation, enhanced):
    folder = Path(__file__).resolve().parents[2] / "shared/data" / dataset
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    path = sorted((folder / "labelsTr").iterdir())[0]
    scan = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "imagesTr" / path.name.replace(".nii", "_0000.nii"))))
    truth = sitk.GetArrayFromImage(sitk.ReadImage(str(path))).astype(int)[:, ::4, ::4]
    scan = np.clip(scan, -1024, 30000).astype(np.int16)[:, ::4, ::4]
    if enhanced:
        write_enhanced(tmp_path / "in/scan", scan, orientation, modality=modality)
    else:
        write_series(tmp_path / "in", scan, orientation, modality=modality)
    series = only(tmp_path / "in")
    grid = read_series(series).geometry
    labels = Volume(np.ascontiguousarray(turn_array(truth, grid.axes)), grid)
    names = {f"label {value}": value for value in range(truth.max() + 1)}
    seg = write(tmp_path / "seg.dcm", labels, series, label_names=names)
    assert seg_points(seg) == label_points(labels)
    assert len(label_points(labels)) == (truth > 0).sum() > 50
    check_references(seg, tmp_path / "in")
