"""What ``mre_predict`` writes: run.json, whose files are whose, which cases are done, and two runs into one folder."""

import json
import os
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from predicted import FIRST, SECOND, content, correct, predict_into, record

from mre_lowshot import __version__, locks
from mre_lowshot.data.volume import read_labels
from mre_lowshot.errors import UserError
from mre_lowshot.files import sha256
from mre_lowshot.inference.predictor import Predictor

pytestmark = pytest.mark.usefixtures("one_thread_only", "no_settings")


@pytest.fixture(scope="module")
def predicted(trained, tmp_path_factory):
    """Two scans, and a folder into which they were predicted with overlays and probabilities."""
    return predict_into(tmp_path_factory.mktemp("predicted"), trained, "--overlays", "--save_probabilities")


def test_run_json_lists_model_options_and_each_cases_files(predicted, trained):
    found = record(predicted / "out")
    ((run_id, run),) = found["runs"].items()
    checkpoint = trained.model() / "fold_0/checkpoint_final.pth"
    assert (found["format"], found["format_version"]) == ("mre_lowshot prediction", 1)
    assert (run["status"], run["device"], run["problems"]) == ("complete", "cpu", [])
    assert run["started"] <= run["ended"]
    assert run["versions"]["mre_lowshot"] == __version__
    assert set(run["versions"]) >= {"torch", "numpy", "python", "SimpleITK"}
    assert run["model"]["folds"] == [0]
    assert run["model"]["checkpoints"] == [{"file": str(checkpoint), "sha256": sha256(checkpoint)}]
    assert run["options"]["overlays"] is True
    assert run["options"]["precision"] == "float32"
    assert list(found["cases"]) == [FIRST, SECOND]
    case = found["cases"][FIRST]
    assert (case["run"], case["status"], case["reason"]) == (run_id, "done", None)
    scan = predicted / f"in/{FIRST}_0000.nii.gz"
    assert case["inputs"] == [
        {"file": str(scan), "size": scan.stat().st_size, "sha256": sha256(scan), "mtime": scan.stat().st_mtime}
    ]
    assert [item["file"] for item in case["outputs"]] == [f"overlays/{FIRST}.png", f"{FIRST}.nii.gz", f"{FIRST}.npz"]
    for item in case["outputs"]:
        path = predicted / "out" / item["file"]
        assert (item["size"], item["sha256"]) == (path.stat().st_size, sha256(path))
    assert set(case["seconds"]) == {"read", "preprocess", "register", "network", "refine", "export", "write", "total"}
    assert case["seconds"]["total"] == pytest.approx(sum(case["seconds"].values()) / 2, abs=0.01)
    assert case["quality"]["basis"] == "agreement"
    assert case["warnings"] == []
    assert not [p.name for p in (predicted / "out").iterdir() if p.name.startswith(".mre")]


def test_a_rerun_replaces_its_own_files_and_adds_to_the_record(done, trained, tmp_path, capsys):
    before = record(done / "out")
    (done / f"in/{SECOND}_0000.nii.gz").unlink()
    found = json.loads((done / "out/run.json").read_text())
    found["note"] = "mine"
    (done / "out/run.json").write_text(json.dumps(found))
    assert trained.predict(done / "in", done / "out", "--centre") == 0
    after = record(done / "out")
    assert after["cases"][SECOND] == before["cases"][SECOND]
    assert len(after["runs"]) == 2
    assert after["cases"][FIRST]["run"] != before["cases"][FIRST]["run"]
    assert after["note"] == "mine"


def test_a_corrected_label_map_is_refused_before_the_work_and_replaced_only_on_request(done, trained, counted, capsys):
    mine = correct(done / f"out/{SECOND}.nii.gz")
    before = content(done)
    assert trained.predict(done / "in", done / "out") == 2
    message = capsys.readouterr().err
    assert f"{SECOND}.nii.gz: mre_predict has not written this, or it has changed since" in message
    assert "--overwrite" in message
    assert FIRST not in message
    assert counted == []
    assert content(done) == before
    assert trained.predict(done / "in", done / "out", "--continue_prediction") == 0
    assert counted == []
    assert content(done)[f"out/{SECOND}.nii.gz"] == mine
    assert trained.predict(done / "in", done / "out", "--overwrite") == 0
    assert counted == [FIRST, SECOND]
    assert (done / f"out/{SECOND}.nii.gz").read_bytes() != mine


@pytest.mark.parametrize("file", [f"{FIRST}.nii.gz", f"{FIRST}.npz", f"overlays/{FIRST}.png", "run.json"])
def test_files_that_lie_there_are_not_replaced(file, trained, predicted, tmp_path, counted, capsys):
    path = tmp_path / "out" / file
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    both = ("--overlays", "--save_probabilities")
    assert trained.predict(predicted / "in", tmp_path / "out", *both) == 2
    assert path.read_text() == "{}"
    assert counted == []
    assert Path(file).name in capsys.readouterr().err
    assert [p for p in (tmp_path / "out").rglob("*") if p.is_file()] == [path]


def test_a_link_to_the_scan_in_the_output_folder_does_not_lead_to_the_scan(trained, predicted, tmp_path):
    scan = shutil.copyfile(predicted / f"in/{FIRST}_0000.nii.gz", tmp_path / f"{FIRST}.nii.gz")
    before = scan.read_bytes()
    for number, link in enumerate((os.symlink, os.link)):
        out = tmp_path / f"out{number}"
        out.mkdir()
        link(scan, out / scan.name)
        assert trained.predict(predicted / f"in/{FIRST}_0000.nii.gz", out) == 2
        assert trained.predict(predicted / f"in/{FIRST}_0000.nii.gz", out, "--overwrite") == 0
        assert scan.read_bytes() == before
        assert not (out / scan.name).is_symlink()


def test_folders_that_must_not_hold_predictions_are_refused(space, tmp_path, capsys):
    (tmp_path / "link").symlink_to(space.raw / "imagesTr")
    space.labelled_only(FIRST)
    before = content(space.raw)
    for out, words in (
        (space.raw / "labelsTr", "holds the reference labels of a dataset"),
        (tmp_path / "link", "is the folder of the scans too"),
        (space.raw / "imagesTr/../imagesTr", "is the folder of the scans too"),
    ):
        assert space.predict(space.raw / "imagesTr", out) == 2
        assert words in capsys.readouterr().err
    scan = shutil.copyfile(space.raw / f"imagesTr/{FIRST}_0000.nii.gz", tmp_path / "a.nii.gz")
    assert space.predict(scan, space.raw / "imagesTr") == 2
    assert "holds the scans of a dataset" in capsys.readouterr().err
    assert content(space.raw) == before


def test_a_label_map_in_another_format_is_removed_if_it_is_ours_and_refused_if_not(done, trained, capsys):
    read = nibabel.load(done / f"in/{FIRST}_0000.nii.gz")
    image = nibabel.Nifti1Image(read.get_fdata(dtype=np.float32), read.affine)
    (done / f"in/{FIRST}_0000.nii.gz").unlink()
    nibabel.save(image, done / f"in/{FIRST}_0000.nii")
    shutil.copyfile(done / f"out/{SECOND}.nii.gz", done / "out/other.nii.gz")  # of no case: stays
    assert trained.predict(done / "in", done / "out") == 0
    assert sorted(p.name for p in (done / "out").glob("*.n*")) == [
        "other.nii.gz", f"{FIRST}.nii", f"{SECOND}.nii.gz", f"{SECOND}.npz"
    ]  # fmt: skip
    (done / f"in/{FIRST}_0000.nii").unlink()
    nibabel.save(image, done / f"in/{FIRST}_0000.nii.gz")
    mine = correct(done / f"out/{FIRST}.nii")
    assert trained.predict(done / "in", done / "out", "--overwrite") == 2
    assert f"{FIRST}.nii: would be a second label map of a case" in capsys.readouterr().err
    assert (done / f"out/{FIRST}.nii").read_bytes() == mine
    assert not (done / f"out/{FIRST}.nii.gz").exists()


def test_overlay_and_probabilities_go_with_the_label_map_that_they_belong_to(done, trained):
    assert trained.predict(done / "in", done / "out") == 0  # the same label maps: they stay
    assert (done / f"out/overlays/{FIRST}.png").exists()
    assert (done / f"out/{FIRST}.npz").exists()
    assert trained.predict(done / "in", done / "out", "--continue_prediction", "--overlays") == 0
    for name in (FIRST, SECOND):  # other scans under these names
        image = nibabel.load(done / f"in/{name}_0000.nii.gz")
        nibabel.save(image.slicer[:, 4:-4], done / f"in/{name}_0000.nii.gz")
    assert trained.predict(done / "in", done / "out") == 0
    assert not list((done / "out/overlays").iterdir())
    assert not list((done / "out").glob("*.npz"))


def damage(done, how):
    out, label = done / "out", done / f"out/{FIRST}.nii.gz"
    if how == "nothing":
        return
    if how == "empty map":
        label.write_bytes(b"")
    elif how == "cut-off map":
        label.write_bytes(label.read_bytes()[:-40])
    elif how == "no map":
        label.unlink()
    elif how == "no overlay":
        (out / f"overlays/{FIRST}.png").unlink()
    elif how == "cut-off overlay":
        (out / f"overlays/{FIRST}.png").write_bytes((out / f"overlays/{FIRST}.png").read_bytes()[:-5])
    elif how == "no probabilities":
        (out / f"{FIRST}.npz").unlink()
    elif how == "cut-off probabilities":
        (out / f"{FIRST}.npz").write_bytes((out / f"{FIRST}.npz").read_bytes()[:-5])
    elif how == "other scan":
        image = nibabel.load(done / f"in/{FIRST}_0000.nii.gz")
        nibabel.save(nibabel.Nifti1Image(image.get_fdata() * 1.01, image.affine), done / f"in/{FIRST}_0000.nii.gz")
    elif how == "touched scan":
        os.utime(done / f"in/{FIRST}_0000.nii.gz")
    elif how == "failed":
        content = record(out)
        content["cases"][FIRST]["status"] = "failed"
        (out / "run.json").write_text(json.dumps(content))
    else:
        raise ValueError(how)


@pytest.mark.parametrize(
    ("how", "again"),
    [("nothing", False), ("touched scan", False), ("empty map", True), ("cut-off map", True), ("no map", True),
     ("no overlay", True), ("cut-off overlay", True), ("no probabilities", True), ("cut-off probabilities", True),
     ("other scan", True), ("failed", True)],
)  # fmt: skip
def test_done_means_all_that_is_asked_for_is_there_and_whole(how, again, done, trained, counted):
    wanted = {name: read_labels(done / f"out/{name}.nii.gz").array for name in (FIRST, SECOND)}
    damage(done, how)
    continued = ("--continue_prediction", "--overlays", "--save_probabilities")
    assert trained.predict(done / "in", done / "out", *continued) == 0
    assert counted == ([FIRST] if again else [])
    if how != "other scan":
        for name in (FIRST, SECOND):
            assert np.array_equal(read_labels(done / f"out/{name}.nii.gz").array, wanted[name])
    assert (done / f"out/overlays/{FIRST}.png").stat().st_size > 1000
    with np.load(done / f"out/{FIRST}.npz") as stored:
        assert stored["probabilities"].shape[1:] == wanted[FIRST].shape
    assert trained.predict(done / "in", done / "out", *continued) == 0  # and now it is done
    assert counted == ([FIRST] if again else [])


def test_what_another_model_or_other_options_gave_is_predicted_again(done, trained, counted, space):
    assert trained.predict(done / "in", done / "out", "--continue_prediction", "--centre") == 0
    assert counted == [FIRST, SECOND]
    counted.clear()
    path = space.model() / "fold_0/checkpoint_final.pth"
    torch.save({**torch.load(path, weights_only=True), "more": 1}, path)
    assert space.predict(done / "in", done / "out", "--continue_prediction", "--centre") == 0
    assert counted == [FIRST, SECOND]


def test_without_a_record_label_maps_count_if_they_fit_the_scan(done, trained, counted, capsys):
    out, continued = done / "out", "--continue_prediction"
    (out / "run.json").unlink()
    before = content(out)
    assert trained.predict(done / "in", out, continued) == 0
    assert counted == []
    assert {k: v for k, v in content(out).items() if k != "run.json"} == {
        k: v for k, v in before.items() if k != "run.json"
    }
    image = nibabel.load(out / f"{SECOND}.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.full(image.shape, 99, np.uint8), image.affine), out / f"{SECOND}.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), image.affine), out / f"{FIRST}.nii.gz")
    (out / "run.json").unlink()
    before = content(out)
    assert trained.predict(done / "in", out, continued) == 2
    message = capsys.readouterr().err
    assert f"{FIRST}.nii.gz (is not on the grid of the scan: size (4, 4, 4) against" in message
    assert f"{SECOND}.nii.gz (holds the labels [99], which the model does not have" in message
    assert content(out) == before


def test_a_hostile_record_leads_to_no_file_elsewhere(done, trained, tmp_path):
    victim = tmp_path / "victim.txt"
    victim.write_text("precious")
    content = record(done / "out")
    state = {"file": "../../victim.txt", "size": 8, "sha256": sha256(victim)}
    content["cases"][FIRST]["outputs"] = [state, {"file": 3}, "x", {"file": "/etc/passwd", "size": 1, "sha256": ""}]
    content["cases"][FIRST]["earlier_outputs"] = [{**state, "file": str(victim)}]
    content["cases"][SECOND] |= {"inputs": 3, "crop": "x", "outputs": None}
    (done / "out/run.json").write_text(json.dumps(content))
    assert trained.predict(done / "in", done / "out", "--overwrite") == 0
    assert victim.read_text() == "precious"
    for text in (
        "[" * 100000,
        '{"format": "mre_lowshot prediction", "format_version": 1, "cases": {"a": {"run": []}}}',
    ):
        (done / "out/run.json").write_text(text)
        assert trained.predict(done / "in", done / "out") == 2


def test_two_runs_into_one_folder(trained, predicted, tmp_path, monkeypatch, capsys):
    """While a run predicts: another one, and a whole run beside parts, are refused; another part is not."""
    scans, register, codes = predicted / "in", Predictor.register, []
    tried = []
    monkeypatch.setattr(locks, "PAUSE", 0.01)

    def meanwhile(self, prepared, **options):
        monkeypatch.setattr(Predictor, "register", register)
        codes.append([trained.predict(scans, tmp_path / "out", *options) for options in tried])
        return register(self, prepared, **options)

    halves = [("-num_parts", 2, "-part_id", part) for part in (0, 1)]
    for own, others, expected in (
        ((), [(), halves[1]], [2, 2]),
        (halves[0], [(), halves[0], halves[1]], [2, 2, 0]),
    ):
        codes.clear()
        tried[:] = others
        monkeypatch.setattr(Predictor, "register", meanwhile)
        assert trained.predict(scans, tmp_path / "out", *own, "--overwrite") == 0
        assert codes == [expected]
        assert "in use by another run, which predicts" in capsys.readouterr().err
        assert not list((tmp_path / "out").glob(".mre*"))


def test_what_a_killed_run_left_is_removed(done, trained):
    from mre_lowshot import processes

    gone = f".mre-partial.{processes.host_tag()}.999999999.0123abcd"
    (done / "out" / gone).mkdir()
    (done / f"out/{gone}/x.nii.gz").write_bytes(b"half")
    (done / f"out/overlays/{gone}.png").write_bytes(b"half")
    lock = {"host": processes.host(), "pid": 999999999, "started": 0.0, "time": 0.0, "doing": "", "shared": False}
    (done / f"out/.mre-lock.predict_part3.{processes.host_tag()}.999999999.0123abcd.json").write_text(json.dumps(lock))
    assert trained.predict(done / "in", done / "out") == 0
    assert not list((done / "out").rglob(".mre*"))


def test_an_output_folder_that_cannot_be_written_to_is_refused_before_the_work(
    trained, predicted, tmp_path, counted, monkeypatch, capsys
):
    (tmp_path / "file").write_text("")
    assert trained.predict(predicted / "in", tmp_path / "file/out") == 2
    assert "file/out: cannot be written (Not a directory)" in capsys.readouterr().err
    write_bytes = Path.write_bytes

    def refuses(self, data):
        if "overlays" in self.parts:
            raise PermissionError(13, "Permission denied", str(self))
        return write_bytes(self, data)

    monkeypatch.setattr(Path, "write_bytes", refuses)
    assert trained.predict(predicted / "in", tmp_path / "out", "--overlays") == 2
    assert "overlays: cannot be written (Permission denied)" in capsys.readouterr().err
    assert counted == []


def test_python_has_the_same_rules(done, trained, counted):
    import mre_lowshot

    def predict(**options):
        return mre_lowshot.predict(done / "in", done / "out", model=trained.model(), device="cpu", **options)

    correct(done / f"out/{FIRST}.nii.gz")
    with pytest.raises(UserError, match=f"{FIRST}.nii.gz: mre_predict has not written this"):
        predict()
    result = predict(overwrite=True)
    assert (result.failed, list(result.files), result.record) == ((), [FIRST, SECOND], done / "out/run.json")


def test_file_names_that_would_be_too_long_are_refused_before_the_work(trained, tmp_path, counted, capsys):
    name = "x" * 247
    (tmp_path / "in").mkdir()
    shutil.copyfile(trained.raw / f"imagesTr/{FIRST}_0000.nii.gz", tmp_path / f"in/{name}.nii.gz")
    for more in ((), ("--continue_prediction",)):
        assert trained.predict(tmp_path / "in", tmp_path / "out", "--output_format", "nifti", "seg.nrrd", *more) == 2
        message = f"case {name}: its file name with .seg.nrrd has 256 bytes, file systems allow 255; rename"
        assert message in capsys.readouterr().err
    assert counted == []
    assert not list(tmp_path.glob("out/*.gz"))
