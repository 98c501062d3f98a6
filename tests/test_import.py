"""mre_import on image files: what is paired and why, what is refused, labels, and positions of voxels."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loose_files import blocks, files, image, points, volume, write, write_seg_nrrd

import mre_lowshot
from mre_lowshot.errors import UserError

pytestmark = pytest.mark.usefixtures("no_settings")
FLIPPED = (-1, 0, 0, 0, -1, 0, 0, 0, 1)
NAMES = ("--label_names", "1=liver", "2=spleen", "--modality", "CT")


def run(tmp_path, *arguments, name="7"):
    return command("importing", "-i", tmp_path / "in", "--name", name, "--workspace", tmp_path / "w", *arguments)


def dataset(tmp_path, name="Dataset007_Imported"):
    folder = tmp_path / "w/raw" / name
    return folder, json.loads((folder / "dataset.json").read_text())


def patient(folder, stem, seed=0, shape=(6, 12, 14), origin=(0.0, 0.0, 0.0), label="_seg"):
    write(folder / f"{stem}.nii.gz", image(volume(shape, seed), origin=origin))
    return write(folder / f"{stem}{label}.nii.gz", image(blocks(shape), origin=origin))


def test_names_grids_and_reasons(tmp_path, capsys):
    """Three scans on one grid differ by their names; the dataset passes its own verification."""
    for number in (1, 2, 3):
        patient(tmp_path / "in", f"case {number}", seed=number)
    write(tmp_path / "in/extra.nii.gz", image(volume(seed=9)))
    assert run(tmp_path, *NAMES) == 0
    out = capsys.readouterr().out
    assert "case 2_seg.nii.gz (same grid; same name)" in out
    assert "extra.nii.gz" in out
    assert "has no label map (--test takes it" in out
    assert out.endswith(f"next: mre_plan_and_preprocess -d 7 --workspace {tmp_path / 'w'}\n")
    folder, content = dataset(tmp_path)
    assert content == {
        "name": "Dataset007_Imported", "channel_names": {"0": "CT"}, "file_ending": ".nii.gz", "numTraining": 3,
        "labels": {"background": 0, "liver": 1, "spleen": 2},
    }  # fmt: skip
    assert files(folder) == [
        "dataset.json", *(f"imagesTr/Imported_00{n}_0000.nii.gz" for n in (1, 2, 3)), "import.json",
        *(f"labelsTr/Imported_00{n}.nii.gz" for n in (1, 2, 3)),
    ]  # fmt: skip
    record = json.loads((folder / "import.json").read_text())
    assert record["cases"]["Imported_002"]["label_map"]["name"] == "case 2_seg.nii.gz"
    assert len(record["cases"]["Imported_002"]["images"][0]["sha256"]) == 64
    for number in (1, 2, 3):
        got = sitk.ReadImage(str(folder / f"imagesTr/Imported_00{number}_0000.nii.gz"))
        assert (sitk.GetArrayFromImage(got) == volume(seed=number)).all()


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    patient(tmp_path / "in", "a")
    before = files(tmp_path)
    assert run(tmp_path, *NAMES, "--dry_run") == 0
    assert files(tmp_path) == before
    assert not (tmp_path / "w").exists()
    assert '"liver": 1' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--modality", "CT"), "give --label_names 1=NAME 2=NAME"),
        (("--label_names", "1=liver", "2=spleen"), "--modality CT"),
        (("--label_names", "1=liver", "--modality", "CT"), "give --label_names 2=NAME"),
        (("--label_names", "1=a", "1=b"), "gets the names 'a' and 'b'"),
        (("--label_names", "liver"), "write VALUE=NAME"),
        (("--label_names", "0=air"), "0 is the background"),
        (("--format", "png"), "must be one of"),
        (("--case_names", "{patient.x}"), "write a pattern"),
        (("--case_names", "same"), "write a pattern"),
        (("--channels", "A,A"), "occurs twice"),
        (("--channels", "A,B", "--modality", "CT"), "both name channels"),
        (("--leave_out", "*"), "there is no scan in the folders"),
    ],
)
def test_what_the_files_do_not_show(tmp_path, capsys, arguments, message):
    patient(tmp_path / "in", "a")
    assert run(tmp_path, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("name", ["BTCV", "Dataset7", "Dataset007_a/b", "Dataset007_", "-1", "Dataset007_ü"])
def test_names_of_datasets(tmp_path, capsys, name):
    patient(tmp_path / "in", "a")
    assert run(tmp_path, *NAMES, f"--name={name}", name="7") == 2
    assert "DatasetNNN_Name" in capsys.readouterr().err


def test_an_existing_dataset_is_refused(tmp_path, capsys):
    patient(tmp_path / "in", "a")
    assert run(tmp_path, *NAMES) == 0
    before = {name: (tmp_path / "w" / name).read_bytes() for name in files(tmp_path / "w")}
    assert run(tmp_path, *NAMES) == 2
    assert "exists; give another number" in capsys.readouterr().err
    assert run(tmp_path, *NAMES, name="Dataset007_Other") == 2
    assert "would name both" in capsys.readouterr().err
    assert {name: (tmp_path / "w" / name).read_bytes() for name in files(tmp_path / "w")} == before


def test_equal_candidates_are_refused_until_the_pair_is_stated(tmp_path, capsys):
    """Scans on one grid, and a label map without a name of theirs."""
    for stem in ("north", "south"):
        write(tmp_path / f"in/{stem}.nii.gz", image(volume(seed=len(stem))))
    write(tmp_path / "in/mask.nii.gz", image(blocks()))
    assert run(tmp_path, *NAMES) == 2
    assert "mask.nii.gz: 2 scans fit equally (north.nii.gz, south.nii.gz)" in capsys.readouterr().err
    (tmp_path / "pairs.csv").write_text("scan,label,case\nsouth.nii.gz,mask.nii.gz,anna\n")
    assert run(tmp_path, *NAMES, "--pairs", tmp_path / "pairs.csv", "--test") == 0
    folder, content = dataset(tmp_path)
    assert files(folder / "labelsTr") == ["anna.nii.gz"]
    assert files(folder / "imagesTs") == ["Imported_001_0000.nii.gz"]
    assert content["numTraining"] == 1


def test_a_second_label_map_of_a_scan_whose_pair_is_stated_is_named_as_such(tmp_path, capsys):
    for number, stem in enumerate(("north", "south")):
        write(tmp_path / f"in/{stem}.nii.gz", image(volume((6 + number, 12, 14), number)))
        write(tmp_path / f"in/{stem}_seg.nii.gz", image(blocks((6 + number, 12, 14))))
    write(tmp_path / "in/south_old_seg.nii.gz", image(blocks((7, 12, 14))))
    (tmp_path / "pairs.csv").write_text("scan,label\nsouth.nii.gz,south_old_seg.nii.gz\n")
    assert run(tmp_path, *NAMES, "--pairs", tmp_path / "pairs.csv") == 2
    assert (
        "south_seg.nii.gz: is on the grid of south.nii.gz, for which --pairs states south_old_seg.nii.gz; leave it out"
    ) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scan,label\nnorth.nii.gz,nothing\n", "there is no label map nothing"),
        ("scan,label\nwest,mask.nii.gz\n", "there is no scan west"),
        ("a,b\nnorth.nii.gz,mask.nii.gz\n", "has a, b"),
        ("scan,label\nnorth.nii.gz,\n", "lacks the scan or the label map"),
        ("scan,label\nnorth.nii.gz,mask.nii.gz\nnorth.nii.gz,mask.nii.gz\n", "occurs twice"),
        (f"scan,label,case\nnorth.nii.gz,mask.nii.gz,{'x' * 244}\n", "is too long: with _0000.nii.gz more than 255"),
    ],
)
def test_wrong_pairs(tmp_path, capsys, text, message):
    write(tmp_path / "in/north.nii.gz", image(volume()))
    write(tmp_path / "in/mask.nii.gz", image(blocks()))
    (tmp_path / "pairs.csv").write_text(text)
    assert run(tmp_path, *NAMES, "--pairs", tmp_path / "pairs.csv") == 2
    assert message in capsys.readouterr().err


def test_two_label_maps_of_one_scan_are_refused(tmp_path, capsys):
    patient(tmp_path / "in", "a")
    patient(tmp_path / "in", "a", label="_mask")
    assert run(tmp_path, *NAMES) == 2
    assert "2 label maps fit it equally (a_mask.nii.gz and a_seg.nii.gz)" in capsys.readouterr().err
    assert run(tmp_path, *NAMES, "--leave_out", "*_mask*") == 0


def test_another_grid_is_refused_with_the_fix(tmp_path, capsys):
    """The scan of the same name has another grid; another scan that has the grid by chance is not taken."""
    patient(tmp_path / "in", "p1")
    write(tmp_path / "in/p2.nii.gz", image(volume((7, 12, 14), seed=2)))
    write(tmp_path / "in/p2_seg.nii.gz", image(blocks(), origin=(0, 0, 0)))
    assert run(tmp_path, *NAMES) == 2
    error = capsys.readouterr().err
    assert "p2_seg.nii.gz: is not on the grid of its scan p2.nii.gz: size (7, 12, 14) against (6, 12, 14)" in error
    assert "resample the label map onto the image (nearest neighbour)" in error


def test_a_scan_alone_on_its_grid(tmp_path, capsys):
    write(tmp_path / "in/x/brain.nii.gz", image(volume()))
    write(tmp_path / "in/y/tissue_seg.nii.gz", image(blocks()))
    write(tmp_path / "in/x/other.nii.gz", image(volume((5, 5, 5))))
    assert run(tmp_path, *NAMES) == 0
    assert "no other scan and label map have it" in capsys.readouterr().out


def test_folders_of_patients(tmp_path, capsys):
    """All files of all patients have the same names, on one grid."""
    for number in (1, 2):
        write(tmp_path / f"in/p{number}/scan.nii.gz", image(volume(seed=number)))
        write(tmp_path / f"in/p{number}/annotation.nii.gz", image(blocks()))
    assert run(tmp_path, *NAMES, "--case_names", "{folder}") == 0
    folder, _ = dataset(tmp_path)
    assert files(folder / "labelsTr") == ["p1.nii.gz", "p2.nii.gz"]
    got = sitk.ReadImage(str(folder / "imagesTr/p2_0000.nii.gz"))
    assert (sitk.GetArrayFromImage(got) == volume(seed=2)).all()


def test_label_maps_by_their_voxels_and_by_folder(tmp_path):
    write(tmp_path / "in/first.mha", image(volume()))
    write(tmp_path / "in/second.mha", image(blocks()))
    assert run(tmp_path, *NAMES) == 0
    write(tmp_path / "b/img/x1.nrrd", image(volume()))
    write(tmp_path / "b/lab/x1.nrrd", image(blocks()))
    result = mre_lowshot.import_dataset(
        images=tmp_path / "b/img", labels=[tmp_path / "b/lab"], name=8, modality="US", label_names={1: "a", 2: "b"},
        workspace=tmp_path / "w", file_ending=".nrrd",
    )  # fmt: skip
    assert files(result.folder / "labelsTr") == ["Imported_001.nrrd"]


def test_values_are_numbered_anew_and_recorded(tmp_path, capsys):
    """Names by value and by ITK-SNAP's list; blanks and case of names do not matter."""
    write(tmp_path / "in/a.nii.gz", image(volume()))
    write(tmp_path / "in/a_seg.nii.gz", image(blocks(values=(5, 205))))
    (tmp_path / "in/a_seg.txt").write_text(
        '# ITK-SnAP Label Description File\n    0     0    0    0        0  0  0    "Clear Label"\n'
        '    5   255    0    0        1  1  1    "Liver"\n  205     0  255    0        1  1  1    "left kidney"\n'
    )
    shape = (4, 12, 14)
    write(tmp_path / "in/b.nii.gz", image(volume(shape, 1)))
    segments = [{"Name": "Left_Kidney", "LabelValue": 3, "Layer": 0}, {"Name": "liver", "LabelValue": 7, "Layer": 0}]
    write_seg_nrrd(tmp_path / "in/b.seg.nrrd", [blocks(shape, values=(3, 7))], segments, image(volume(shape)))
    assert run(tmp_path, "--modality", "CT", "--label_names", "Liver=hepar") == 0
    out = capsys.readouterr().out
    assert "5 -> 1 hepar, 205 -> 2 left kidney" in out
    assert "3 -> 2 left kidney, 7 -> 1 hepar" in out
    folder, content = dataset(tmp_path)
    assert content["labels"] == {"background": 0, "hepar": 1, "left kidney": 2}
    expected = blocks(shape, values=(2, 1))
    assert (sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "labelsTr/Imported_002.nii.gz"))) == expected).all()
    record = json.loads((folder / "import.json").read_text())["cases"]
    assert record["Imported_001"]["labels"] == [
        {"value": 5, "layer": 0, "name": "Liver", "to": 1, "label": "hepar"},
        {"value": 205, "layer": 0, "name": "left kidney", "to": 2, "label": "left kidney"},
    ]


def layered(tmp_path, names=("liver", "tumor")):
    write(tmp_path / "in/a.nii.gz", image(volume()))
    one, other = blocks(values=(1,)), np.zeros((6, 12, 14), np.uint8)
    other[1:4, 3:6, 2:6] = 1
    segments = [{"Name": name, "LabelValue": 1, "Layer": layer} for layer, name in enumerate(names)]
    write_seg_nrrd(tmp_path / "in/a.seg.nrrd", [one, other], segments, image(volume()))
    return one, other


def test_overlapping_segments(tmp_path, capsys):
    one, other = layered(tmp_path)
    count = int(((one > 0) & (other > 0)).sum())
    assert run(tmp_path, "--modality", "CT") == 2
    assert f"segments 1 (liver) and 2 (tumor) overlap in {count} voxel(s)" in capsys.readouterr().err
    assert run(tmp_path, "--modality", "CT", "--overlap", "later_wins") == 0
    folder, content = dataset(tmp_path)
    assert content["labels"] == {"background": 0, "liver": 1, "tumor": 2}
    got = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "labelsTr/Imported_001.nii.gz")))
    assert (got == np.where(other > 0, 2, one)).all()
    assert json.loads((folder / "import.json").read_text())["overlap"] == "later_wins"


def test_segments_of_one_name_are_one_label_and_may_overlap(tmp_path):
    one, other = layered(tmp_path, names=("lesion", "Lesion"))
    assert run(tmp_path, "--modality", "CT") == 0
    folder, content = dataset(tmp_path)
    assert content["labels"] == {"background": 0, "lesion": 1}
    got = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "labelsTr/Imported_001.nii.gz")))
    assert (got == ((one > 0) | (other > 0))).all()


def test_a_segmentation_that_slicer_cropped(tmp_path, capsys):
    """The file holds a box of the scan's voxels; half a voxel beside them it is refused."""
    whole = image(volume(), direction=FLIPPED)
    write(tmp_path / "in/a.nii.gz", whole)
    labels = image(blocks(), direction=FLIPPED)
    part = labels[1:10, 2:8, 1:5]
    segments = [{"Name": "liver", "LabelValue": 1}, {"Name": "spleen", "LabelValue": 2}]
    write_seg_nrrd(tmp_path / "in/a.seg.nrrd", [sitk.GetArrayFromImage(part)], segments, part)
    assert run(tmp_path, "--modality", "CT") == 0
    assert "same voxels, cropped" in capsys.readouterr().out
    folder, _ = dataset(tmp_path)
    assert points(sitk.ReadImage(str(folder / "labelsTr/Imported_001.nii.gz"))) == points(labels)
    part.SetOrigin([v + 0.4 for v in part.GetOrigin()])
    write_seg_nrrd(tmp_path / "in/a.seg.nrrd", [sitk.GetArrayFromImage(part)], segments, part)
    assert run(tmp_path, "--modality", "CT", name="8") == 2
    assert "is not on the grid of its scan a.nii.gz" in capsys.readouterr().err


def test_channels(tmp_path, capsys):
    for number in (1, 2):
        for seed, kind in enumerate(("FLAIR", "T1w", "t1ce")):
            write(tmp_path / f"in/p{number}_{kind}.nii.gz", image(volume(seed=10 * number + seed)))
        write(tmp_path / f"in/p{number}_seg.nii.gz", image(blocks()))
    labels = ("--label_names", "1=a", "2=b")
    assert run(tmp_path, *labels, "--channels", "FLAIR,T1") == 2
    assert "channel T1: p1_T1w.nii.gz and p1_t1ce.nii.gz both fit" in capsys.readouterr().err
    assert run(tmp_path, *labels, "--channels", "FLAIR", "T1=*t1w*") == 0
    folder, content = dataset(tmp_path)
    assert content["channel_names"] == {"0": "FLAIR", "1": "T1"}
    for case, number in (("Imported_001", 1), ("Imported_002", 2)):
        for channel in (0, 1):
            got = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"imagesTr/{case}_{channel:04d}.nii.gz")))
            assert (got == volume(seed=10 * number + channel)).all()


def rotated(seed):
    """Direction cosines of a rotation and perhaps a flip."""
    found, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return found.ravel()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), scan=st.sampled_from([".nii.gz", ".nrrd", ".mha"]),
       label=st.sampled_from([".nii", ".nrrd", ".mha", ".seg.nrrd"]), out=st.sampled_from([".nii.gz", ".nrrd", ".mha"]),
       straight=st.booleans())  # fmt: skip
def test_no_voxel_changes_its_position(tmp_path_factory, seed, scan, label, out, straight):
    """Scan and label map in any two formats and any orientation, stored in different orders of axes."""
    tmp_path = tmp_path_factory.mktemp("import")
    random = np.random.default_rng(seed)
    direction = rotated(seed)
    if straight:
        direction = (np.eye(3)[random.permutation(3)] * random.choice([-1, 1], 3)).ravel()
    grid = {"spacing": random.uniform(0.5, 3, 3), "origin": random.uniform(-90, 90, 3), "direction": direction}
    image_made, label_made = image(volume(), **grid), image(blocks(), **grid)
    if label != ".seg.nrrd":
        label_made = sitk.Flip(sitk.PermuteAxes(label_made, [2, 0, 1]), [True, False, True])
    write(tmp_path / f"in/a{scan}", image_made)
    if label == ".seg.nrrd":
        segments = [{"Name": "x", "LabelValue": 1}, {"Name": "y", "LabelValue": 2}]
        write_seg_nrrd(tmp_path / "in/a.seg.nrrd", [sitk.GetArrayFromImage(label_made)], segments, label_made)
    else:
        write(tmp_path / f"in/a_seg{label}", label_made)
    mre_lowshot.import_dataset(
        tmp_path / "in", name=3, modality="CT", workspace=tmp_path, file_ending=out, label_names=["1=x", "2=y"]
    )
    folder = tmp_path / "raw/Dataset003_Imported"
    for name, wanted in ((f"imagesTr/Imported_001_0000{out}", image_made), (f"labelsTr/Imported_001{out}", label_made)):
        close(points(sitk.ReadImage(str(folder / name))), points(wanted))


def close(one, other):
    """The same values at positions that agree to 0.02 mm."""
    from scipy.spatial import cKDTree

    assert len(one) == len(other)
    distance, index = cKDTree(list(one)).query(list(other))
    assert distance.max() < 0.02
    assert np.array_equal(np.array(list(one.values()))[index], list(other.values()))


def test_files_that_are_no_images(tmp_path, capsys):
    patient(tmp_path / "in", "a")
    (tmp_path / "in/broken.nii.gz").write_bytes(b"nothing")
    (tmp_path / "in/notes.docx").write_bytes(b"")
    (tmp_path / "in/old.mgz").write_bytes(b"x")
    assert run(tmp_path, *NAMES) == 0
    out = capsys.readouterr().out
    assert "broken.nii.gz  cannot be read as an image" in out
    assert "old.mgz" in out
    (tmp_path / "in/b_seg.nii.gz").write_bytes(b"nothing")
    assert run(tmp_path, *NAMES, name="8") == 2
    assert "b_seg.nii.gz: cannot be read as an image" in capsys.readouterr().err


def test_from_python_all_problems_are_listed(tmp_path):
    patient(tmp_path / "in", "a")
    write(tmp_path / "in/c_seg.nii.gz", image(blocks((3, 9, 9))))
    with pytest.raises(UserError, match=r"3 problems found; nothing was written") as refusal:
        mre_lowshot.import_dataset(tmp_path / "in", name=1, workspace=tmp_path / "w")
    assert "c_seg.nii.gz" in str(refusal.value)
