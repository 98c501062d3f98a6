"""mre_import on the file names of public datasets, on names of one's own, and on damaged files."""

import dataclasses
import json
import re
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import command
from loose_files import blocks, image, volume, write, write_seg_nrrd

import mre_lowshot
from mre_lowshot.data.importing.slicer import read_segments, read_slicer
from mre_lowshot.data.importing.words import agreement, core, marks_label
from mre_lowshot.errors import UserError

pytestmark = pytest.mark.usefixtures("no_settings")
# Name of the layout: scans, each with its label map (None: unlabelled). All lie on one grid.
LAYOUTS = {
    "nnU-Net": {"imagesTr/c_001_0000": "labelsTr/c_001", "imagesTr/c_002_0000": "labelsTr/c_002",
                "imagesTs/c_003_0000": None},
    "decathlon": {"imagesTr/liver_1": "labelsTr/liver_1", "imagesTr/liver_10": "labelsTr/liver_10"},
    "BIDS": {f"sub-0{n}/anat/sub-0{n}_T1w": f"derivatives/sub-0{n}/anat/sub-0{n}_dseg" for n in (1, 2)},
    "KiTS": {f"case_0000{n}/imaging": f"case_0000{n}/segmentation" for n in (0, 1)},
    "ACDC": {f"patient001/patient001_frame{f}": f"patient001/patient001_frame{f}_gt" for f in ("01", "12")},
    "BTCV": {"img/img0001": "label/label0001", "img/img0002": "label/label0002"},
    "Slicer": {"anna/5 Body": "anna/5 Body-label", "otto/5 Body": "otto/5 Body-label"},
    "camel case": {"Patient1": "Patient1Seg", "Patient2": "Patient2Seg"},
    "first word": {"scan_1": "mask_1", "scan_2": "mask_2"},
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout):
    pairs = LAYOUTS[layout]
    for seed, (scan, label) in enumerate(pairs.items()):
        write(tmp_path / f"in/{scan}.nii.gz", image(volume(seed=seed)))
        if label:
            write(tmp_path / f"in/{label}.nii.gz", image(blocks()))
    result = mre_lowshot.import_dataset(
        tmp_path / "in", name=1, modality="MRI", label_names=["1=a", "2=b"], test="imagesTs", workspace=tmp_path / "w",
        dry_run=True,
    )  # fmt: skip
    made = {
        entry.unit.name.removesuffix(".nii.gz"): entry.pair and entry.pair.label.name.removesuffix(".nii.gz")
        for entry in result.proposal.entries
    }
    assert made == pairs


def test_channels_of_brats(tmp_path):
    for patient in ("BraTS_001", "BraTS_002"):
        for seed, kind in enumerate(("flair", "t1", "t1ce", "t2")):
            write(tmp_path / f"in/{patient}/{patient}_{kind}.nii.gz", image(volume(seed=seed)))
        write(tmp_path / f"in/{patient}/{patient}_seg.nii.gz", image(blocks()))
    result = mre_lowshot.import_dataset(
        tmp_path / "in", name=1, channels=["T1ce", "T1"], label_names=["1=a", "2=b"], workspace=tmp_path, dry_run=True
    )
    names = [[scan.path.name for scan in entry.unit.scans] for entry in result.proposal.entries]
    assert names == [[f"BraTS_00{n}_t1ce.nii.gz", f"BraTS_00{n}_t1.nii.gz"] for n in (1, 2)]
    assert result.proposal.dataset_json()["channel_names"] == {"0": "T1ce", "1": "T1"}


def test_channels_on_two_grids_and_missing_ones(tmp_path, capsys):
    write(tmp_path / "in/a_flair.nii.gz", image(volume()))
    write(tmp_path / "in/a_t1.nii.gz", image(volume((5, 12, 14))))
    write(tmp_path / "in/a_seg.nii.gz", image(blocks()))
    write(tmp_path / "in/b_flair.nii.gz", image(volume()))
    arguments = ("-i", tmp_path / "in", "--name", "1", "--workspace", tmp_path / "w", "--channels", "flair,t1")
    assert command("importing", *arguments, "--label_names", "1=a", "2=b") == 2
    output = capsys.readouterr()
    assert "a_t1.nii.gz: is not on the grid of a_flair.nii.gz: size (6, 12, 14) against (5, 12, 14)" in output.err
    assert "its patient has no channel t1" in output.out


@pytest.mark.parametrize("pattern", ["p{}/segmentations/{}", "p{}/p{}_{}", "p{}_{}_mask"])
def test_masks_of_one_label_each(tmp_path, capsys, pattern):
    scan = "p{}/ct" if pattern.startswith("p{}/s") else "p{}/p{}" if pattern.count("{}") == 3 else "p{}"
    for patient in (1, 2):
        write(tmp_path / f"in/{scan.format(patient, patient)}.nii.gz", image(volume(seed=patient)))
        for name, value in (("liver", 1), ("left_kidney", 2)):
            made = (blocks() == value).astype(np.uint8) * 255
            words = [patient] * (pattern.count("{}") - 1)
            write(tmp_path / f"in/{pattern.format(*words, name)}.nii.gz", image(made))
    arguments = ("-i", tmp_path / "in", "--name", "1", "--workspace", tmp_path / "w", "--modality", "CT")
    assert command("importing", *arguments, "--label_names", "255=x") == 2
    assert "--masks" in capsys.readouterr().err
    assert command("importing", *arguments, "--masks") == 0
    folder = tmp_path / "w/raw/Dataset001_Imported"
    content = json.loads((folder / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "left_kidney": 1, "liver": 2}
    for patient in (1, 2):
        got = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"labelsTr/Imported_00{patient}.nii.gz")))
        assert np.array_equal(got, blocks(values=(2, 1)))
    record = json.loads((folder / "import.json").read_text())["cases"]["Imported_001"]
    assert len(record["label_map"]) == 2


def test_masks_that_overlap_or_hold_several_values(tmp_path, capsys):
    write(tmp_path / "in/ct.nii.gz", image(volume()))
    for name in ("liver", "tumor"):
        write(tmp_path / f"in/masks/{name}.nii.gz", image(blocks(values=(1,))))
    arguments = ("-i", tmp_path / "in", "--name", "1", "--workspace", tmp_path / "w", "--modality", "CT", "--masks")
    assert command("importing", *arguments) == 2
    assert "segments 1 (liver) and 2 (tumor) overlap in 18 voxel(s)" in capsys.readouterr().err
    write(tmp_path / "in/masks/tumor.nii.gz", image(blocks()))
    assert command("importing", *arguments) == 2
    assert "tumor.nii.gz: has several values; a mask has 0 and one other" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_names": 3}, "--label_names 3: must be a list"),
        ({"file_ending": 5}, "--format is 5"),
        ({"modality": "a\nb"}, "--modality"),
        ({"inputs": 7}, "-i 7: must be a folder"),
        ({"inputs": "missing"}, "-i missing: the folder is missing"),
        ({"inputs": ()}, "no folder with scans is given"),
        ({"name": ""}, "--name ''"),
        ({"test": "x"}, "--test 'x'"),
        ({"overlap": "x"}, "--overlap 'x'"),
        ({"pairs": "nowhere.csv"}, "--pairs nowhere.csv: cannot be read"),
    ],
)
def test_options_from_python(tmp_path, options, message):
    write(tmp_path / "in/a.nii.gz", image(volume()))
    write(tmp_path / "in/a_seg.nii.gz", image(blocks()))
    given = {"inputs": tmp_path / "in", "name": 1, "workspace": tmp_path / "w", "leave_out": "*b*"}
    with pytest.raises(UserError) as refusal:
        mre_lowshot.import_dataset(**{**given, **options})
    assert message in str(refusal.value)
    assert not (tmp_path / "w").exists()


def test_words():
    assert core("img0001") == core("label_0001") == ("0001",)
    assert core("Patient1Seg") == core("patient1") == ("patient1",)
    assert (agreement(["case_1"], ["case_10"]), agreement(["case_1_venous"], ["case_1"])) == (0, 1)
    assert [name for name in ("liver_seg", "segment", "a-label", "MASK 3", "gtv", "scan") if marks_label(name)] == [
        "liver_seg", "a-label", "MASK 3",
    ]  # fmt: skip


def test_a_link_to_nothing_is_named(tmp_path):
    write(tmp_path / "in/a.nii.gz", image(volume()))
    write(tmp_path / "in/a_seg.nii.gz", image(blocks()))
    (tmp_path / "in/b_seg.nii.gz").symlink_to("/nowhere")
    with pytest.raises(UserError, match=r"b_seg\.nii\.gz: is a symbolic link to nothing"):
        mre_lowshot.import_dataset(tmp_path / "in", name=1, modality="CT", label_names=["1=a", "2=b"],
                                   workspace=tmp_path)  # fmt: skip


def test_a_series_in_the_folder_of_label_maps(tmp_path):
    pytest.importorskip("pydicom")
    from tests.dicom_series import write_series

    write_series(tmp_path / "ct", volume())
    write_series(tmp_path / "masks", blocks().astype(np.int16), series="mask", seed=40)
    with pytest.raises(UserError, match="is a DICOM series in a folder of label maps; export it as DICOM SEG"):
        mre_lowshot.import_dataset(name=1, images=tmp_path / "ct", labels=tmp_path / "masks", workspace=tmp_path)


def test_damaged_dicom_seg(tmp_path, record_property):
    """Any changed bytes: it is refused, or read with labels of the file's segments."""
    pytest.importorskip("pydicom")
    from mre_lowshot.data.dicom import seg_reader
    from mre_lowshot.data.dicom.series import find_series
    from tests.dicom_series import write_series
    from tests.test_import_dicom import STORED, make_seg

    write_series(tmp_path / "in", STORED)
    (series,) = find_series(tmp_path / "in")
    good = make_seg(tmp_path / "seg").read_bytes()
    random, refused = np.random.default_rng(0), 0
    for _ in range(150):
        made = bytearray(good[: random.integers(200, len(good) + 1)] if random.random() < 0.3 else good)
        for place in random.integers(132, len(made), random.integers(1, 6)):
            made[place] = random.integers(0, 256)
        (tmp_path / "bad").write_bytes(bytes(made))
        try:
            seg = seg_reader.read_seg(tmp_path / "bad")
            array = seg_reader.read_on(seg, series.geometry, dict.fromkeys(seg.segments, 1))
        except UserError:
            refused += 1
        else:
            assert set(np.unique(array)) <= {0, 1}
    assert refused > 20
    record_property("damaged DICOM SEG tried", 150)


def test_dicom_seg_whose_types_of_values_are_damaged(tmp_path, record_property):
    """pydicom converts a value when it is asked for: no access to a header may raise anything but the refusal."""
    pytest.importorskip("pydicom")
    from mre_lowshot.data.dicom import seg_check, seg_reader
    from mre_lowshot.data.dicom.series import find_series
    from tests.dicom_series import write_series
    from tests.test_import_dicom import STORED, make_seg

    write_series(tmp_path / "in", STORED)
    (series,) = find_series(tmp_path / "in")
    good = make_seg(tmp_path / "seg").read_bytes()

    def read_all(path: Path) -> None:
        seg = seg_reader.read_seg(path)
        seg_reader.read_on(seg, series.geometry, dict.fromkeys(seg.segments, 1))

    kinds = rb"(?:AS|CS|DA|DS|IS|LO|OB|OW|PN|SH|SQ|TM|UI|UL|US|UT)"
    places = [match.start() + 4 for match in re.finditer(rb"[\x02-\x7f]\0..(?=" + kinds + rb")", good[132:], re.DOTALL)]
    refusals: list[str] = []
    for place in places:
        made = bytearray(good)
        made[132 + place : 132 + place + 2] = b"U\xaf"
        (tmp_path / "bad").write_bytes(bytes(made))
        for reads in (read_all, seg_check.check_seg, seg_check.referred_series):
            try:
                reads(tmp_path / "bad")
            except UserError as problem:
                refusals.append(str(problem))
    assert len(places) > 60
    assert len(refusals) > 20
    assert all(str(tmp_path / "bad") in text for text in refusals)
    record_property("damaged DICOM SEG tried", len(places))


def test_damaged_segmentations_of_slicer(tmp_path):
    segments = [{"Name": "a", "LabelValue": 1, "Layer": 0}, {"Name": "b", "LabelValue": 2, "Layer": 1}]
    good = write_seg_nrrd(tmp_path / "good.seg.nrrd", [blocks(), blocks()], segments, image(blocks())).read_bytes()
    random = np.random.default_rng(0)
    for _ in range(150):
        made = bytearray(good)
        for place in random.integers(0, len(made), random.integers(1, 6)):
            made[place] = random.integers(0, 256)
        (tmp_path / "bad.seg.nrrd").write_bytes(bytes(made))
        shutil.rmtree(tmp_path / "w", ignore_errors=True)
        write(tmp_path / "in/a.nii.gz", image(volume()))
        shutil.copy(tmp_path / "bad.seg.nrrd", tmp_path / "in/a.seg.nrrd")
        with suppress(UserError):
            mre_lowshot.import_dataset(tmp_path / "in", name=1, modality="CT", workspace=tmp_path / "w", dry_run=True)


def test_segments_are_read_in_the_order_of_the_file(tmp_path):
    segments = [{"Name": "a", "LabelValue": 1, "Layer": 0}, {"Name": "b", "LabelValue": 2, "Layer": 1}]
    path = write_seg_nrrd(tmp_path / "a.seg.nrrd", [blocks(values=(1,)), blocks(values=(2,))], segments,
                          image(blocks()))  # fmt: skip
    _, found = read_segments(path)
    assert [dataclasses.astuple(s) for s in found] == [(1, "a", 0, 1), (2, "b", 1, 2)]
    assert set(np.unique(read_slicer(path, found, {1: 5, 2: 6}, overlap="later_wins").array)) == {0, 6}
