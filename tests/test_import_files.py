"""mre_import: an interrupted or killed import leaves no dataset; names of labels in files; odd files; headers."""

import json
import multiprocessing
import os
import struct
import time

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import command
from loose_files import blocks, files, image, points, volume, write, write_seg_nrrd

import mre_lowshot
from mre_lowshot.data.importing import writing
from mre_lowshot.errors import UserError
from mre_lowshot.locks import locked

pytestmark = pytest.mark.usefixtures("no_settings")
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["mre_lowshot.workflows.importing", "mre_lowshot.cli.console"])
NAMES = ("--label_names", "1=liver", "2=spleen", "--modality", "CT")


def run(tmp_path, *arguments, name="7"):
    return command("importing", "-i", tmp_path / "in", "--name", name, "--workspace", tmp_path / "w", *arguments)


def content(tmp_path):
    return json.loads((tmp_path / "w/raw/Dataset007_Imported/dataset.json").read_text())


def patients(tmp_path, count=3):
    for number in range(count):
        write(tmp_path / f"in/a{number}.nii.gz", image(volume(seed=number)))
        write(tmp_path / f"in/a{number}_seg.nii.gz", image(blocks()))


def in_process(tmp_path):
    os.dup2(os.open(tmp_path / "output", os.O_WRONLY | os.O_CREAT), 1)
    os._exit(run(tmp_path, *NAMES))


@pytest.mark.slow
def test_killed_while_it_writes(tmp_path):
    """A part of the dataset is not taken for it, and the next run removes it."""
    patients(tmp_path, 12)
    raw, met = tmp_path / "w/raw", 0
    for wanted in (1, 9):
        process = CONTEXT.Process(target=in_process, args=(tmp_path,))
        process.start()
        while process.is_alive() and not parts_with(raw, wanted):
            time.sleep(0.005)
        process.kill()
        process.join()
        if (raw / "Dataset007_Imported").exists():  # it ended before the kill
            (raw / "Dataset007_Imported").rename(tmp_path / f"kept{wanted}")
            continue
        met += 1
        assert any(path.name.startswith(".mre-partial") for path in raw.iterdir())
    assert met
    assert run(tmp_path, *NAMES) == 0
    whole = files(raw)
    assert len(whole) == 12 * 2 + 2
    assert all(name.startswith("Dataset007_Imported/") for name in whole)


def parts_with(raw, count):
    try:
        parts = [path for path in raw.iterdir() if path.name.startswith(".mre-partial") and path.is_dir()]
        return any(len(files(path)) >= count for path in parts)
    except FileNotFoundError:  # not made yet, or already renamed
        return False


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device"), UserError("x: bad")])
def test_an_import_that_ends_early_leaves_nothing(tmp_path, monkeypatch, stop):
    patients(tmp_path)
    write_label = writing._write_label

    def limited(path, entry, proposal, image):
        if entry.case.endswith("002"):
            raise stop
        write_label(path, entry, proposal, image)

    monkeypatch.setattr(writing, "_write_label", limited)
    assert run(tmp_path, *NAMES) == (130 if stop is KeyboardInterrupt else 2)
    assert not (tmp_path / "w/raw").exists() or files(tmp_path / "w/raw") == []
    monkeypatch.undo()


def test_a_second_import_is_refused_while_the_first_runs(tmp_path, capsys):
    patients(tmp_path, 1)
    with locked(tmp_path / "w/raw", "import_7", "imports Dataset007_Imported"):
        assert run(tmp_path, *NAMES) == 2
    assert "in use by another run, which imports Dataset007_Imported" in capsys.readouterr().err


def with_extension(path, text):
    """Put a text as an extension (of Caret, 30) into a NIfTI file that is not compressed."""
    raw = path.read_bytes()
    body = text.encode() + b"\0" * (-(len(text.encode()) + 8) % 16)
    header = bytearray(raw[:348])
    header[108:112] = struct.pack("<f", 352 + 8 + len(body))
    path.write_bytes(bytes(header) + b"\1\0\0\0" + struct.pack("<ii", 8 + len(body), 30) + body + raw[352:])


def test_the_label_table_of_a_nifti_file(tmp_path):
    write(tmp_path / "in/a.nii", image(volume()))
    path = write(tmp_path / "in/a_seg.nii", image(blocks()))
    with_extension(path, '<LabelTable><Label Key="0">?</Label><Label Key="1" Red="1">Liver &amp; bile</Label>'
                         '<Label Key="2"><![CDATA[spleen]]></Label></LabelTable>')  # fmt: skip
    assert run(tmp_path, "--modality", "CT") == 0
    assert content(tmp_path)["labels"] == {"background": 0, "Liver & bile": 1, "spleen": 2}


def test_tables_of_names(tmp_path, capsys):
    """A BIDS table above the label maps; two that differ are refused."""
    write(tmp_path / "in/p/a.nii.gz", image(volume()))
    write(tmp_path / "in/p/a_dseg.nii.gz", image(blocks()))
    (tmp_path / "in/dseg.tsv").write_text("index\tname\n1\tliver\n2\tignore\n")
    assert run(tmp_path, "--modality", "CT") == 0
    assert content(tmp_path)["labels"] == {"background": 0, "liver": 1, "ignore": 2}
    (tmp_path / "in/other.tsv").write_text("index\tname\n1\tkidney\n2\tx\n")
    assert run(tmp_path, "--modality", "CT", name="8") == 2
    assert "dseg.tsv, other.tsv in in give different names" in capsys.readouterr().err


def test_label_names_from_a_file_and_dropped_labels(tmp_path):
    patients(tmp_path, 1)
    (tmp_path / "list.txt").write_text('1 255 0 0 1 1 1 "liver"\n2 0 255 0 1 1 1 "cyst"\n')
    assert run(tmp_path, "--modality", "CT", "--label_names", tmp_path / "list.txt") == 0
    assert content(tmp_path)["labels"] == {"background": 0, "liver": 1, "cyst": 2}
    segments = [{"Name": "liver", "LabelValue": 1}, {"Name": "cyst", "LabelValue": 2}]
    (tmp_path / "in/a0_seg.nii.gz").unlink()
    write_seg_nrrd(tmp_path / "in/a0.seg.nrrd", [blocks()], segments, image(blocks()))
    result = mre_lowshot.import_dataset(
        tmp_path / "in", name=9, modality="CT", label_names={"cyst": "background"}, workspace=tmp_path / "w"
    )
    assert result.proposal.labels.values == {"background": 0, "liver": 1}
    got = sitk.GetArrayFromImage(sitk.ReadImage(str(result.folder / "labelsTr/Imported_001.nii.gz")))
    assert np.array_equal(got, blocks(values=(1, 0)))


def test_old_segmentations_without_layers(tmp_path):
    """3D Slicer before 2020: a layer for each segment, without numbers."""
    write(tmp_path / "in/a.nii.gz", image(volume()))
    layers = [(blocks() == value).astype(np.uint8) for value in (1, 2)]
    write_seg_nrrd(tmp_path / "in/a.seg.nrrd", layers, [{"Name": "liver"}, {"Name": "spleen"}], image(blocks()))
    assert run(tmp_path, "--modality", "CT") == 0
    folder = tmp_path / "w/raw/Dataset007_Imported"
    assert points(sitk.ReadImage(str(folder / "labelsTr/Imported_001.nii.gz"))) == points(image(blocks()))


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([{"Name": "a", "LabelValue": 1, "Layer": 3}], "is value 1 of layer 3, of 1"),
        ([{"Name": "a", "LabelValue": "x"}], "no number"),
        ([{"Name": "a", "LabelValue": 1}, {"Name": "b", "LabelValue": 1}], "two segments have one value"),
        ([{"Name": "a", "LabelValue": 1}], "value 2 of layer 0 belongs to no segment"),
    ],
)
def test_segmentations_that_are_refused(tmp_path, capsys, segments, message):
    write(tmp_path / "in/a.nii.gz", image(volume()))
    write_seg_nrrd(tmp_path / "in/a.seg.nrrd", [blocks()], segments, image(blocks()))
    assert run(tmp_path, "--modality", "CT") == 2
    assert message in capsys.readouterr().err


def test_label_maps_that_are_refused(tmp_path, capsys):
    write(tmp_path / "in/a.nii.gz", image(volume()))
    for made, message in (
        (blocks(values=(0,)), "has no labelled voxel"),
        (blocks().astype(np.float32) / 3, "are not whole numbers"),
        (-blocks().astype(np.int16), "has the label value -2"),
        (volume(seed=3) + 1001, "label values; is it an image?"),
    ):
        write(tmp_path / "in/a_seg.nii.gz", image(made))
        assert run(tmp_path, *NAMES) == 2
        assert message in capsys.readouterr().err


def test_values_of_images_stay_as_they_are(tmp_path):
    """Whole numbers are stored as such, others as float32; scale factors are applied."""
    array = volume().astype(np.float32)
    array[0, 0, 0] = 0.5
    write(tmp_path / "in/a.nii.gz", image(array))
    write(tmp_path / "in/a_seg.nii.gz", image(blocks()))
    assert run(tmp_path, *NAMES) == 0
    got = sitk.ReadImage(str(tmp_path / "w/raw/Dataset007_Imported/imagesTr/Imported_001_0000.nii.gz"))
    assert got.GetPixelID() == sitk.sitkFloat32
    assert np.array_equal(sitk.GetArrayFromImage(got), array)


def test_folders_are_looked_at_once(tmp_path):
    """The folder of label maps lies in the one of scans; names with blanks and other letters."""
    write(tmp_path / "in/Größe 1 scan.nii.gz", image(volume()))
    write(tmp_path / "in/by hand/Größe 1.nii.gz", image(volume()[::-1] * 0 + blocks()))
    assert run(tmp_path, *NAMES, "--labels", tmp_path / "in/by hand", "--case_names", "{file}") == 0
    assert files(tmp_path / "w/raw/Dataset007_Imported/labelsTr") == ["Groe-1-scan.nii.gz"]


def test_what_a_header_leaves_open_is_a_note(tmp_path, capsys):
    made = image(volume())
    write(tmp_path / "in/a.nrrd", made)
    text = (tmp_path / "in/a.nrrd").read_bytes().replace(b"space: left-posterior-superior\n", b"space dimension: 3\n")
    (tmp_path / "in/a.nrrd").write_bytes(text)
    write(tmp_path / "in/a_seg.nii.gz", image(blocks()))
    assert run(tmp_path, *NAMES, "--dry_run") == 0
    assert "note: a.nrrd: orientation unknown" in capsys.readouterr().out
