"""``mre_predict`` with the model of three tiny phantoms: grids, refusals, exit codes, messages."""

import json
import os
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import SETTINGS, command
from matplotlib.image import imread
from scipy import ndimage

from mre_lowshot.data.volume import geometry_of, read_image, read_labels
from mre_lowshot.errors import UserError
from mre_lowshot.inference.model_folders import find_folder
from mre_lowshot.inference.predictor import Predictor

pytestmark = pytest.mark.usefixtures("one_thread_only", "no_settings")
NAMES = ["phantom_001", "phantom_002", "phantom_003"]


def test_predictions_lie_on_the_inputs_grid_and_agree_with_validation(trained, tmp_path, capsys):
    scans, out = trained.raw / "imagesTr", tmp_path / "out"
    assert trained.predict(scans, out, "--save_probabilities", "--overlays") == 0
    output = capsys.readouterr().out
    assert "the only trained model" in output
    assert "3 of 3 scans segmented" in output
    single = json.loads((trained.model() / "fold_0/plans.json").read_text())["fold"]["single_component"]
    for name in NAMES:
        volume = read_labels(out / f"{name}.nii.gz")
        assert not volume.geometry.differences(geometry_of(scans / f"{name}_0000.nii.gz"))
        probabilities = np.load(out / f"{name}.npz")["probabilities"]
        assert probabilities.shape == (7, *volume.array.shape)
        wanted = probabilities.argmax(axis=0)
        for label in single:  # of these only the largest component is kept, and others at least half as large
            parts, _ = ndimage.label(wanted == label, np.ones((3, 3, 3)))
            sizes = np.bincount(parts.ravel(), minlength=2)[1:]
            wanted[(parts > 0) & (np.append(0, sizes)[parts] < 0.5 * sizes.max())] = 0
        assert np.array_equal(wanted, volume.array)
        if name != NAMES[0]:
            validated = read_labels(trained.model() / f"fold_0/validation/{name}.nii.gz")
            assert np.array_equal(validated.array, volume.array)
    assert command("evaluate", trained.raw / "labelsTr", out, "-djfile", trained.raw / "dataset.json") == 0
    assert json.loads((out / "summary.json").read_text())["number_of_cases"] == 3

    assert {path.name for path in (out / "overlays").iterdir()} == {f"{name}.png" for name in NAMES}
    picture = imread(out / "overlays" / f"{NAMES[1]}.png")
    coloured = np.ptp(picture[..., :3], axis=-1) > 0.2  # outlines; the scan itself is grey
    assert coloured.mean() > 0.002
    left, right = np.array_split(coloured, 2, axis=1)  # the scan, the label map
    assert left.sum() < right.sum()


def test_inputs_that_are_not_read_or_not_in_hu_are_named_and_the_others_are_predicted(trained, tmp_path, capsys):
    scans = shutil.copytree(trained.raw / "imagesTr", tmp_path / "in")
    (scans / "phantom_003_0000.nii.gz").unlink()
    (scans / "phantom_003_0000.nii.gz").symlink_to("elsewhere.nii.gz")
    (scans / "more").mkdir()
    shutil.copy(scans / "phantom_001_0000.nii.gz", scans / "more")
    image = sitk.ReadImage(str(scans / "phantom_002_0000.nii.gz"))
    sitk.WriteImage(image - 1024, str(scans / "phantom_002_0000.nii.gz"))
    assert trained.predict(scans, tmp_path / "out") == 1
    output = "".join(capsys.readouterr())
    assert "in/phantom_003_0000.nii.gz: is a symbolic link to elsewhere.nii.gz, which cannot be read" in output
    assert "in/more: is a folder with 1 image file(s), which are not read" in output
    assert "case phantom_002: channel 'CT' is not in HU" in output
    assert "add the offset that was subtracted" in output
    assert "1 of 4 scans segmented" in output
    assert [p.name for p in (tmp_path / "out").glob("*.nii.gz")] == ["phantom_001.nii.gz"]


def test_one_corrupt_scan_is_named_and_the_others_are_predicted(trained, tmp_path, capsys):
    scans = shutil.copytree(trained.raw / "imagesTr", tmp_path / "in")
    path = scans / "phantom_002_0000.nii.gz"
    path.write_bytes(path.read_bytes()[:-5000])  # as after a broken download
    assert trained.predict(scans, tmp_path / "out") == 1
    captured = capsys.readouterr()
    assert "failed: case phantom_002: " in captured.err
    assert "2 of 3 scans segmented" in captured.out
    assert sorted(p.name for p in (tmp_path / "out").glob("*.nii.gz")) == ["phantom_001.nii.gz", "phantom_003.nii.gz"]


def test_scans_that_do_not_fit_the_model_are_named(trained, tmp_path, capsys):
    scans, source = tmp_path / "in", trained.raw / "imagesTr/phantom_001_0000.nii.gz"
    scans.mkdir()
    for name in ("two_0000", "two_0001", "coarse_0000"):
        shutil.copyfile(source, scans / f"{name}.nii.gz")
    image = sitk.ReadImage(str(source))
    image.SetSpacing([1.8 * s for s in image.GetSpacing()])
    sitk.WriteImage(image, str(scans / "coarse_0000.nii.gz"))
    assert trained.predict(scans, tmp_path / "out") == 1
    messages = capsys.readouterr().err
    assert "failed: case two: two_0001.nii.gz" in messages
    assert "warning: case coarse: spacing along z is" in messages
    found = json.loads((tmp_path / "out/run.json").read_text())["cases"]["coarse"]["differences_from_training"]
    (spacing,) = (item for item in found if item["name"] == "spacing_z")
    assert spacing["value"] == pytest.approx(1.8 * image.GetSpacing()[2] / 1.8)
    assert spacing["training_range"][1] < spacing["value"] / 1.5
    assert [p.name for p in (tmp_path / "out").glob("*.nii.gz")] == ["coarse.nii.gz"]


def test_the_newest_model_is_used_and_named_unless_another_is_chosen(space, tmp_path, capsys):
    assert space.plan(name="Other", settings=(*SETTINGS, "network.prototypes_per_class=1")) == 0
    assert space.train("--no_val", name="Other") == 0
    for path in space.model("Other").glob("fold_0/*.pth"):
        os.utime(path, (2e9, 2e9))
    scan = space.raw / "imagesTr/phantom_001_0000.nii.gz"
    for arguments, words in (
        ([], ("MRETrainer__Other__1shot", "the one of 2 trained last")),
        (["-p", "Tiny"], ("MRETrainer__Tiny__1shot", "the only one of 2 that fits")),
        (["-m", space.model()], ("MRETrainer__Tiny__1shot", "-m")),
        (["-d", "900", "-c", "1shot", "-f", "fold0"], ("MRETrainer__Other__1shot", "fold 0")),
    ):
        assert space.predict(scan, tmp_path / "out", *arguments) == 0
        output = capsys.readouterr().out
        assert [word for word in words if word not in output] == []
    for arguments, words in (
        (["-p", "Tiny", "-f", "1"], "fold [1] is not trained (trained: [0])"),
        (["-d", "901"], "Dataset900_Synthetic/MRETrainer__Tiny__1shot"),
        (["-c", "3shot"], "train one with mre_train"),
        (["-m", space.root / "absent"], "does not exist; give"),
    ):
        assert space.predict(scan, tmp_path / "out2", *arguments) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out2").exists()


def test_a_model_is_found_in_a_dataset_folder_of_any_name(tmp_path):
    with pytest.raises(UserError, match=r"\(trained: nothing\)"):
        find_folder(tmp_path)
    path = tmp_path / "liver scans/MRETrainer__My_Plan__2shot/fold_0/checkpoint_latest.pth"
    path.parent.mkdir(parents=True)
    path.touch()
    assert find_folder(tmp_path, "liver scans", "2shot", "My_Plan")[0] == path.parent.parent


def test_a_scan_is_never_overwritten(trained, tmp_path):
    scan = tmp_path / "scans/case.nii.gz"
    scan.parent.mkdir()
    shutil.copyfile(trained.raw / "imagesTr/phantom_001_0000.nii.gz", scan)
    before = scan.read_bytes()
    assert trained.predict(scan.parent, scan.parent) == 2
    assert trained.predict(scan, scan.parent) == 2
    assert scan.read_bytes() == before


def test_parts_make_the_whole_and_existing_label_maps_are_skipped(trained, tmp_path, capsys):
    scans, out = trained.raw / "imagesTr", tmp_path / "out"
    for part, names in ((0, ["phantom_001.nii.gz", "phantom_003.nii.gz"]), (1, [f"{n}.nii.gz" for n in NAMES])):
        assert trained.predict(scans, out, "-num_parts", 2, "-part_id", part) == 0
        assert sorted(p.name for p in out.glob("*.nii.gz")) == names
    whole, before = (out / "phantom_002.nii.gz").read_bytes(), (out / "phantom_001.nii.gz").stat()
    (out / "phantom_002.nii.gz").write_bytes(b"cut off")
    assert trained.predict(scans, out, "--continue_prediction") == 0
    assert (out / "phantom_002.nii.gz").read_bytes() == whole
    assert (out / "phantom_002.nii.gz.damaged").read_bytes() == b"cut off"
    assert (out / "phantom_001.nii.gz").stat().st_mtime_ns == before.st_mtime_ns
    assert trained.predict(scans, out, "-num_parts", 2, "-part_id", 2) == 2
    assert trained.predict(scans, out, "--centre", "-step_size", 0.5) == 2
    assert trained.predict(scans / "absent", out) == 2
    assert capsys.readouterr().err.count("error: ") == 3


def test_a_checkpoint_alone_is_enough(space, tmp_path, capsys):
    """Without dataset, preprocessed cases and plans, the file alone gives the same label maps."""
    (tmp_path / "scans").mkdir()
    shutil.copy(space.raw / f"imagesTr/{NAMES[1]}_0000.nii.gz", tmp_path / "scans")
    assert space.predict(tmp_path / "scans", tmp_path / "wanted", "--save_probabilities") == 0
    alone = tmp_path / "elsewhere/fold_0/checkpoint_final.pth"
    alone.parent.mkdir(parents=True)
    shutil.copyfile(space.model() / "fold_0/checkpoint_final.pth", alone)
    described = json.loads((space.raw / "dataset.json").read_text())
    shutil.rmtree(space.root)
    for n, path in enumerate((alone.parent.parent, alone.parent, alone)):
        out = tmp_path / str(n)
        arguments = ["-i", tmp_path / "scans", "-o", out, "-m", path, "-device", "cpu", "--save_probabilities"]
        assert command("predict", *arguments) == 0
        name = NAMES[1]
        wanted, found = (read_labels(folder / f"{name}.nii.gz").array for folder in (tmp_path / "wanted", out))
        assert np.array_equal(wanted, found)
        with np.load(tmp_path / f"wanted/{name}.npz") as one, np.load(out / f"{name}.npz") as other:
            assert np.array_equal(one["probabilities"], other["probabilities"])
    content = torch.load(alone, weights_only=True)
    assert content["dataset"] == described
    assert content["plan"]["labels"] == described["labels"]
    assert content["plan"]["network"]["widths"] == [4, 8, 8]
    assert set(content["versions"]) >= {"mre_lowshot", "torch", "numpy", "python", "SimpleITK"}
    assert content["training"]["iteration"] == 3
    capsys.readouterr()
    assert command("predict", "-i", tmp_path / "scans", "-o", tmp_path / "no", "-m", alone, "-f", "0") == 2
    assert "is a single fold; leave out the choice of folds (-f)" in capsys.readouterr().err


def test_a_damaged_or_foreign_checkpoint_is_refused(space, tmp_path, capsys):
    path = space.model() / "fold_0/checkpoint_final.pth"
    whole = path.read_bytes()
    torch.save({"weights": {}}, tmp_path / "foreign.pth")
    foreign = (tmp_path / "foreign.pth").read_bytes()
    for content, words in ((whole[:5000], "damaged"), (foreign, "format_version is None")):
        path.write_bytes(content)
        assert space.predict(space.raw / "imagesTr", tmp_path / "out") == 2
        assert words in capsys.readouterr().err


def test_an_interrupted_run_rates_what_it_wrote_and_unrated_cases_are_named(space, tmp_path, monkeypatch, capsys):
    scans, out, register = space.raw / "imagesTr", tmp_path / "out", Predictor.register

    def interrupted(self, prepared, **options):
        if prepared.name == "phantom_002":
            raise KeyboardInterrupt
        return register(self, prepared, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "register", interrupted)
        assert space.predict(scans, out) == 130
    assert [line.split(",")[0] for line in (out / "quality.csv").read_text().splitlines()] == ["case", "phantom_001"]
    (out / "quality.csv").unlink()
    assert space.predict(scans, out, "--continue_prediction") == 0
    assert "note: quality.csv has no quality score for phantom_001; to get one, delete" in capsys.readouterr().out
    assert len((out / "quality.csv").read_text().splitlines()) == 3


def test_a_label_map_that_its_format_cannot_hold_is_named_and_the_others_are_written(trained, tmp_path, capsys):
    """A stack of slices can be read from a TIFF, but its label map not be written to one."""
    scans = tmp_path / "in"
    scans.mkdir()
    array = read_image(trained.raw / "imagesTr/phantom_001_0000.nii.gz").array[0]
    for axis in range(3):
        array = array.repeat(4, axis)  # the file holds no spacing: its voxels are taken for 1 mm
    sitk.WriteImage(sitk.GetImageFromArray(array), str(scans / "a_0000.tif"))
    shutil.copyfile(trained.raw / "imagesTr/phantom_002_0000.nii.gz", scans / "b_0000.nii.gz")
    assert trained.predict(scans, tmp_path / "out") == 1
    captured = capsys.readouterr()
    words = f"failed: case a: a volume of {len(array)} slices; label maps of volumes cannot be written to .tif: convert"
    assert words in captured.err
    assert "1 of 2 scans segmented" in captured.out
    texts = ["dseg.tsv", "label_descriptions.txt"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["b.nii.gz", *texts, "quality.csv", "run.json"]
    assert [line.split(",")[0] for line in (tmp_path / "out/quality.csv").read_text().splitlines()] == ["case", "b"]


def test_a_folder_without_scans_is_wrong_use(trained, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/notes.txt").write_text("nothing")
    assert trained.predict(tmp_path / "in", tmp_path / "out") == 2
    assert "in: contains no image ending in .nii.gz" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_single_file_of_an_unknown_format_is_refused(trained, tmp_path, capsys):
    (tmp_path / "one.dcm").write_bytes(b"DICM")
    assert trained.predict(tmp_path / "one.dcm", tmp_path / "out") == 2
    assert "one.dcm: is none of .nii.gz" in capsys.readouterr().err
