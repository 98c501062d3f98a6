"""The commands from end to end on three tiny phantoms: files, refusals, exit codes, what is said."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from conftest import SETTINGS, command, edit, interrupt_after, iterations, one_thread
from scipy import ndimage

from mre_lowshot.errors import UserError
from mre_lowshot.inference.models import find_folder
from mre_lowshot.recipes import DEFAULT
from mre_lowshot.volume import geometry_of, read_image, read_labels, write_volume

NAMES = ["phantom_001", "phantom_002", "phantom_003"]
NNUNET_METRICS = {"Dice", "IoU", "TP", "FP", "FN", "TN", "n_pred", "n_ref"}


@pytest.fixture(autouse=True, scope="module")
def threads():
    with one_thread():
        yield


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    """No variable of the person running the tests has a say, and stray files land in the temporary folder."""
    for name in list(os.environ):
        if name.startswith(("MRE_", "nnUNet_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_planning_and_training_leave_the_files_that_are_promised(trained):
    folder, fold = trained.prepared, trained.model() / "fold_0"
    assert {p.name for p in folder.iterdir()} == {
        "dataset_fingerprint.json", "Tiny.json", "Tiny", "gt_segmentations", "splits_1shot.json", "dataset.json",
    }  # fmt: skip
    assert {p.name for p in (folder / "Tiny").iterdir()} == {f"{n}.npz" for n in NAMES} | {"preprocessing.json"}
    splits = json.loads((folder / "splits_1shot.json").read_text())
    assert splits == [{"train": [n], "val": [m for m in NAMES if m != n]} for n in NAMES]
    assert {p.name for p in trained.model().iterdir()} == {"fold_0", "plans.json", "dataset.json"}
    logs = [p.name for p in fold.glob("training_log_*.txt")]
    assert len(logs) == 1
    assert {p.name for p in fold.iterdir()} - set(logs) == {
        "checkpoint_latest.pth", "checkpoint_final.pth", "plans.json", "progress.png", "debug.json", "validation",
    }  # fmt: skip
    assert (fold / "progress.png").read_bytes().startswith(b"\x89PNG")
    assert iterations(fold) == iterations(fold, "checkpoint_final.pth") == [1, 2, 3]


def test_the_validation_summary_is_nnunets(trained):
    summary = json.loads((trained.model() / "fold_0/validation/summary.json").read_text())
    assert {"foreground_mean", "mean", "metric_per_case"} <= set(summary)
    assert list(summary["mean"]) == ["1", "2", "3", "4", "5", "6"]
    assert set(summary["foreground_mean"]) >= NNUNET_METRICS
    assert len(summary["metric_per_case"]) == 2
    for case in summary["metric_per_case"]:
        assert {"metrics", "prediction_file", "reference_file"} <= set(case)
        assert all(set(row) >= NNUNET_METRICS for row in case["metrics"].values())
        name = case["prediction_file"].rsplit("/", 1)[1]
        reference = trained.raw / "labelsTr" / name
        assert not geometry_of(trained.model() / "fold_0/validation" / name).differences(geometry_of(reference))


def test_the_folds_decisions_come_from_its_training_scan_alone(space):
    """A seventh label, in a test scan only, must leave no trace in what the fold derived from labels."""
    path = space.raw / "labelsTr/phantom_002.nii.gz"
    volume = read_labels(path)
    write_volume(path, np.where(volume.array == 1, 7, volume.array), volume.geometry)
    edit(space.raw / "dataset.json", labels={"tumour": 7})
    assert space.plan(name="More") == 0
    assert space.train("--no_val", name="More") == 0
    fold = json.loads((space.model("More") / "fold_0/plans.json").read_text())["fold"]
    assert (fold["train"], fold["test"]) == (NAMES[:1], NAMES[1:])
    assert fold["voxel_shares"]["tumour"] == 0
    assert "tumour" in fold["reasons"]["missing"]
    before = json.loads((space.model() / "fold_0/plans.json").read_text())["fold"]["voxel_shares"]
    assert {name: share for name, share in fold["voxel_shares"].items() if name != "tumour"} == before
    assert json.loads((space.model("More") / "plans.json").read_text())["fold"] is None


def test_a_trained_fold_is_not_trained_again_by_accident(space, capsys):
    before = (space.model() / "fold_0/checkpoint_final.pth").read_bytes()
    assert space.train() == 2
    assert "--c goes on, --val only validates, --overwrite starts anew" in capsys.readouterr().err
    assert (space.model() / "fold_0/checkpoint_final.pth").read_bytes() == before
    shutil.rmtree(space.model() / "fold_0/validation")
    assert space.train("--val") == 0
    assert (space.model() / "fold_0/validation/summary.json").is_file()
    assert (space.model() / "fold_0/checkpoint_final.pth").read_bytes() == before
    assert space.train("--overwrite", "--no_val") == 0
    assert not (space.model() / "fold_0/validation").exists()


def test_an_interrupted_training_can_be_used_and_goes_on(space, monkeypatch, capsys):
    fold = space.model() / "fold_1"
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        assert space.train(fold="1") == 130
    assert iterations(fold) == [1, 2]
    assert not (fold / "checkpoint_final.pth").exists()
    assert space.predict(space.raw / "imagesTr", space.root / "out", "-f", "1") == 0
    assert "fold 1 is not trained to the end" in capsys.readouterr().out
    assert len(list((space.root / "out").iterdir())) == 3
    assert space.train("--c", "--no_val", fold="1") == 0
    assert iterations(fold, "checkpoint_final.pth") == [1, 2, 3]


def test_going_on_gives_what_an_uninterrupted_training_gives(space, monkeypatch):
    final = space.model() / "fold_0/checkpoint_final.pth"
    whole = torch.load(final, weights_only=True)["weights"]
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        assert space.train("--overwrite") == 130
    assert space.train("--c", "--no_val") == 0
    again = torch.load(final, weights_only=True)["weights"]
    assert all(torch.equal(whole[key], again[key]) for key in whole)


def test_what_was_trained_with_a_flag_is_validated_without_it(space):
    assert space.train("--no_val", "--iterations", 2, level="2shot") == 0
    assert space.train("--val", level="2shot") == 0


@pytest.mark.parametrize("flag", ["--c", "--val"])
def test_there_is_nothing_to_go_on_from_where_nothing_was_trained(space, flag, capsys):
    assert space.train(flag, fold="2") == 2
    assert "checkpoint is missing; train the fold first" in capsys.readouterr().err


def test_a_changed_plan_does_not_mix_with_older_results(space, capsys):
    edit(space.prepared / "Tiny.json", recipe={"learning_rate": 0.5})
    before = (space.model() / "fold_0/checkpoint_final.pth").read_bytes()
    shutil.copytree(space.model() / "fold_0", space.model() / "fold_1")
    for arguments in (["--overwrite"], ["--c"], ["--val"]):  # the other fold's results are of the old plan
        assert space.train(*arguments) == 2
        assert f"recipe.learning_rate: {DEFAULT.learning_rate} there, 0.5 now" in capsys.readouterr().err
        assert (space.model() / "fold_0/checkpoint_final.pth").read_bytes() == before
    shutil.rmtree(space.model() / "fold_1")
    assert space.train(fold="1") == 2
    assert not (space.model() / "fold_1/checkpoint_latest.pth").exists()
    assert space.train("--overwrite", "--no_val") == 0  # nothing of the old plan is left then
    assert json.loads((space.model() / "plans.json").read_text())["recipe"]["learning_rate"] == 0.5


def test_all_folds_go_on_where_they_were_interrupted(space, monkeypatch, capsys):
    assert space.train("--no_val", "--seed", "3", fold="1") == 0
    assert space.train("--c", "--no_val", fold="1") == 0  # remembers the seed
    shutil.rmtree(space.model())
    interrupt_after(monkeypatch, 2)
    assert space.train("--no_val", fold="all") == 130
    monkeypatch.undo()
    assert space.train("--no_val", fold="all") == 2
    assert "was trained already, or begun; --c goes on" in capsys.readouterr().err
    assert space.train("--c", "--no_val", fold="all") == 0
    assert len(list(space.model().glob("fold_*/checkpoint_final.pth"))) > 1


def test_a_folder_that_cannot_be_made_is_an_error_in_one_line(space, capsys):
    wall = space.root / "wall"
    wall.write_text("a file where a folder is wanted")
    assert space.predict(space.raw / "imagesTr", wall / "out") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {wall}")
    assert "Traceback" not in said


def test_references_kept_in_two_files_are_copied_whole(space):
    """A .mhd is a header; its voxels lie in a .raw beside it."""
    for folder in ("imagesTr", "labelsTr"):
        for path in list((space.raw / folder).iterdir()):
            volume = read_image(path)
            kind = np.uint8 if folder == "labelsTr" else np.int16
            write_volume(path.with_name(path.name.replace(".nii.gz", ".mhd")), volume.array[0].astype(kind),
                         volume.geometry)  # fmt: skip
            path.unlink()
    edit(space.raw / "dataset.json", file_ending=".mhd")
    assert space.plan(name="Heads") == 0
    for path in (space.raw / "labelsTr").glob("*.mhd"):
        copied = read_labels(space.prepared / "gt_segmentations" / path.name)
        assert np.array_equal(copied.array, read_labels(path).array)


def test_a_kept_plan_must_be_of_this_dataset(space, capsys):
    edit(space.raw / "dataset.json", channel_names={"0": "MRI"})
    assert space.plan("--keep_plan", settings=()) == 2
    assert "channel_names is ('CT',), the dataset's ('MRI',)" in capsys.readouterr().err


def test_cases_annotated_later_are_spoken_of(space, capsys):
    path = space.prepared / "splits_1shot.json"
    splits = json.loads(path.read_text())
    gone = splits.pop()["train"][0]
    path.write_text(json.dumps([{**s, "val": [n for n in s["val"] if n != gone]} for s in splits]))
    assert space.train("--val") in (0, 2)
    assert f"leaves out {gone}" in capsys.readouterr().out


def test_a_scan_that_cannot_be_registered_is_named_and_the_rest_done(space, tmp_path, capsys):
    scans = tmp_path / "scans"
    shutil.copytree(space.raw / "imagesTr", scans)
    names = sorted(path.name for path in scans.iterdir())
    image = read_image(scans / names[0])
    write_volume(scans / names[0], np.zeros(image.geometry.shape, dtype=np.int16), image.geometry)
    assert space.predict(scans, tmp_path / "out") == 1
    said = capsys.readouterr()
    case = names[0].removesuffix("_0000.nii.gz")
    assert f"case {case}: " in said.err
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == len(names) - 1


def test_cases_preprocessed_by_another_plan_are_refused(space, capsys):
    edit(space.prepared / "Tiny.json", preprocessing={"spacing": [9.0, 9.0, 9.0]})
    assert space.train(fold="1") == 2
    assert "preprocessed otherwise than the plan says now; run mre_plan_and_preprocess" in capsys.readouterr().err
    assert space.plan("--keep_plan", settings=()) == 0
    assert space.train(fold="1") == 2  # results of the plan before the change are there ...
    assert "holds results of another plan" in capsys.readouterr().err
    assert space.train("--no_val", level="2shot") == 0  # ... but none of this level


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["Synthetic", "1shot", "fold3"], "fold 3: level 1shot has folds 0 to 2 here"),
        (["Synthetic", "9shot", "0"], "level 9shot: needs 9 labelled cases, there are 3"),
        (["Synthetic", "oneshot", "0"], "level 'oneshot'"),
        (["Nothing", "1shot", "0"], "there: Dataset900_Synthetic"),
        (["Synthetic", "1shot", "1", "-p", "Absent"], "Absent.json is missing; run mre_plan_and_preprocess"),
        (["Synthetic", "1shot", "1", "--iterations", "0"], "--iterations 0"),
        (["Synthetic", "1shot", "1", "-device", "toaster"], "-device toaster"),
    ],
)
def test_wrong_use_of_training_is_told(trained, arguments, words, capsys):
    assert command("train", "-p", "Tiny", "--workspace", trained.root, *arguments) == 2
    captured = capsys.readouterr().err
    assert words in captured
    assert captured.startswith("error: ")
    assert captured.count("\n") == 1


def test_one_annotated_case_trains_and_has_nothing_to_validate_on(space, capsys):
    space.labelled_only("phantom_003")
    shutil.rmtree(space.prepared)
    assert space.plan() == 0
    shutil.rmtree(space.model())
    assert space.train() == 0
    said = capsys.readouterr().out
    assert "1 labelled scans, 2 without labels" in said
    assert "trains on phantom_003" in said
    assert "nothing to validate on" in said
    assert not (space.model() / "fold_0/validation").exists()
    assert space.train(level="loo") == 2
    assert "phantom_003 is the only labelled case" in capsys.readouterr().err


def test_a_plan_edited_by_hand_is_kept_or_refused_never_lost(space, capsys):
    path = space.prepared / "Tiny.json"
    edit(path, recipe={"iterations": 5})
    mine = path.read_bytes()
    assert space.plan() == 2
    assert "--keep_plan uses it, --overwrite replaces it, -p NAME makes another" in capsys.readouterr().err
    assert space.plan("--keep_plan", settings=()) == 0
    assert path.read_bytes() == mine
    assert space.plan("--overwrite", "--no_pp") == 0
    assert json.loads(path.read_text())["recipe"]["iterations"] == 3
    assert space.plan("--no_pp") == 0  # the same again is no difference


def test_a_slip_in_a_plan_is_named_by_every_command_that_reads_it(space, capsys):
    edit(space.prepared / "Tiny.json", recipe={"iteratons": 5})
    for attempt in (lambda: space.train(fold="1"), lambda: space.plan("--keep_plan", settings=()), space.plan):
        assert attempt() == 2
        assert "Tiny.json.recipe: unknown key 'iteratons'; did you mean 'iterations'?" in capsys.readouterr().err
    assert space.plan("--overwrite", "--no_pp") == 0


def test_a_plan_copied_to_another_name_does_not_touch_the_first_ones_cases(space):
    edit(space.prepared / "Tiny.json", preprocessing={"spacing": [12.0, 12.0, 12.0]})
    (space.prepared / "Tiny.json").rename(space.prepared / "Mine.json")
    before = (space.prepared / "Tiny/phantom_001.npz").read_bytes()
    code = space.plan("--keep_plan", name="Mine", settings=())
    assert (space.prepared / "Tiny/phantom_001.npz").read_bytes() == before
    assert code == 2 or (space.prepared / "Mine/phantom_001.npz").is_file()


def planned(space, name="New"):
    return json.loads((space.prepared / f"{name}.json").read_text())


def test_fields_that_must_agree_are_set_together(space):
    pair = ("patch.size=[8, 16, 16]", "patch.centre=[4, 12, 12]")
    for number, settings in enumerate((pair, pair[::-1])):
        assert space.plan("--no_pp", name=f"New{number}", settings=settings) == 0
        assert planned(space, f"New{number}")["patch"] == {"size": [8, 16, 16], "centre": [4, 12, 12]}
    shallow = ("network.widths=[4, 8]", "network.convs=[1, 1]", "network.strides=[[2, 2, 2]]")
    assert space.plan("--no_pp", name="Shallow", settings=shallow) == 0


def test_a_second_set_does_not_undo_the_first(space):
    assert space.plan("--no_pp", "--set", "network.modes=1", name="New", settings=("recipe.iterations=7",)) == 0
    assert (planned(space)["network"]["modes"], planned(space)["recipe"]["iterations"]) == (1, 7)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "network.modes=1"], "--set changes the plan, so it needs a name of its own"),
        (["-p", "New", "--set", "network.mode=1"], "did you mean 'modes'?"),
        (["-p", "New", "--set", "network.modes"], "write KEY=VALUE"),
        (["-p", "New", "--set", "network.modes=many"], "must be an int"),
        (["-p", "../New"], "letters, digits, - and _ only"),
        (["-p", "New__er"], "-p 'New__er'"),
        (["--recipe", "papper"], "did you mean 'paper'?"),
        (["--keep_plan", "--overwrite"], "leave out --set and --overwrite"),
        (["--keep_plan", "-p", "Absent"], "Absent.json is missing"),
        (["--memory", "-1"], "--memory -1.0"),
        (["-d", "Nothing"], "dataset 'Nothing' is not in"),
    ],
)
def test_wrong_use_of_planning_is_told(space, arguments, words, capsys):
    before = sorted(space.prepared.rglob("*"))
    assert command("plan", "-d", "900", "--workspace", space.root, *arguments) == 2
    assert words in capsys.readouterr().err
    assert sorted(space.prepared.rglob("*")) == before


def test_a_broken_dataset_is_refused_with_every_problem(space, capsys):
    (space.raw / "imagesTr/phantom_002_0000.nii.gz").write_bytes(b"none")
    (space.raw / "labelsTr/phantom_003.nii.gz").write_bytes(b"none")
    assert space.plan("--overwrite") == 2
    told = capsys.readouterr().err
    assert "2 problems to mend" in told
    assert "case phantom_002: imagesTr/phantom_002_0000.nii.gz" in told
    assert "case phantom_003: labelsTr/phantom_003.nii.gz" in told


def test_predictions_lie_on_the_inputs_grid_and_agree_with_validation(trained, tmp_path, capsys):
    scans, out = trained.raw / "imagesTr", tmp_path / "out"
    assert trained.predict(scans, out, "--save_probabilities") == 0
    said = capsys.readouterr().out
    assert "the only trained model" in said
    assert "3 of 3 scans segmented" in said
    single = json.loads((trained.model() / "fold_0/plans.json").read_text())["fold"]["single_component"]
    for name in NAMES:
        volume = read_labels(out / f"{name}.nii.gz")
        assert not volume.geometry.differences(geometry_of(scans / f"{name}_0000.nii.gz"))
        probabilities = np.load(out / f"{name}.npz")["probabilities"]
        assert probabilities.shape == (7, *volume.array.shape)
        wanted = probabilities.argmax(axis=0)
        for label in single:  # of these only the largest piece stays
            parts, _ = ndimage.label(wanted == label, np.ones((3, 3, 3)))
            wanted[(parts > 0) & (parts != np.bincount(parts.ravel(), minlength=2)[1:].argmax() + 1)] = 0
        assert np.array_equal(wanted, volume.array)
        if name != NAMES[0]:
            validated = read_labels(trained.model() / f"fold_0/validation/{name}.nii.gz")
            assert np.array_equal(validated.array, volume.array)
    assert command("evaluate", trained.raw / "labelsTr", out, "-djfile", trained.raw / "dataset.json") == 0
    assert json.loads((out / "summary.json").read_text())["number_of_cases"] == 3


def test_one_corrupt_scan_is_named_and_the_others_are_done(trained, tmp_path, capsys):
    scans = shutil.copytree(trained.raw / "imagesTr", tmp_path / "in")
    path = scans / "phantom_002_0000.nii.gz"
    path.write_bytes(path.read_bytes()[:-5000])  # as after a broken download
    assert trained.predict(scans, tmp_path / "out") == 1
    captured = capsys.readouterr()
    assert "failed: case phantom_002: " in captured.err
    assert "2 of 3 scans segmented" in captured.out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["phantom_001.nii.gz", "phantom_003.nii.gz"]


def test_scans_that_do_not_fit_the_model_are_named(trained, tmp_path, capsys):
    scans, source = tmp_path / "in", trained.raw / "imagesTr/phantom_001_0000.nii.gz"
    scans.mkdir()
    for name in ("two_0000", "two_0001", "coarse_0000"):
        shutil.copyfile(source, scans / f"{name}.nii.gz")
    import SimpleITK as sitk

    image = sitk.ReadImage(str(source))
    image.SetSpacing([3 * s for s in image.GetSpacing()])
    sitk.WriteImage(image, str(scans / "coarse_0000.nii.gz"))
    assert trained.predict(scans, tmp_path / "out") == 1
    told = capsys.readouterr().err
    assert "failed: case two: two_0001.nii.gz" in told
    assert "warning: case coarse: spacing along z is" in told
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["coarse.nii.gz"]


def test_the_newest_model_is_taken_and_named_unless_another_is_asked_for(space, tmp_path, capsys):
    assert space.plan(name="Other", settings=(*SETTINGS, "network.modes=1")) == 0
    assert space.train("--no_val", name="Other") == 0
    for path in space.model("Other").glob("fold_0/*.pth"):
        os.utime(path, (2e9, 2e9))
    scan = space.raw / "imagesTr/phantom_001_0000.nii.gz"
    for arguments, words in (
        ([], ("MRETrainer__Other__1shot", "the one of 2 trained last")),
        (["-p", "Tiny"], ("MRETrainer__Tiny__1shot", "the only trained model")),
        (["-m", space.model()], ("MRETrainer__Tiny__1shot", "-m")),
        (["-d", "900", "-c", "1shot", "-f", "fold0"], ("MRETrainer__Other__1shot", "fold 0")),
    ):
        assert space.predict(scan, tmp_path / "out", *arguments) == 0
        said = capsys.readouterr().out
        assert [word for word in words if word not in said] == []
    for arguments, words in (
        (["-p", "Tiny", "-f", "1"], "fold [1] is not trained (there: [0])"),
        (["-d", "901"], "Dataset900_Synthetic/MRETrainer__Tiny__1shot"),
        (["-c", "3shot"], "train one with mre_train"),
        (["-m", space.root / "absent"], "is not a folder"),
    ):
        assert space.predict(scan, tmp_path / "out2", *arguments) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out2").exists()


def test_a_model_is_found_whatever_its_dataset_folder_is_called(tmp_path):
    with pytest.raises(UserError, match=r"there: nothing"):
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


def test_parts_make_the_whole_and_what_is_there_is_not_done_again(trained, tmp_path, capsys):
    scans, out = trained.raw / "imagesTr", tmp_path / "out"
    for part, names in ((0, ["phantom_001.nii.gz", "phantom_003.nii.gz"]), (1, [f"{n}.nii.gz" for n in NAMES])):
        assert trained.predict(scans, out, "-num_parts", 2, "-part_id", part) == 0
        assert sorted(p.name for p in out.iterdir()) == names
    (out / "phantom_002.nii.gz").write_bytes(b"kept")
    assert trained.predict(scans, out, "--continue_prediction") == 0
    assert (out / "phantom_002.nii.gz").read_bytes() == b"kept"
    assert trained.predict(scans, out, "-num_parts", 2, "-part_id", 2) == 2
    assert trained.predict(scans, out, "--centre", "-step_size", 0.5) == 2
    assert trained.predict(scans / "absent", out) == 2
    assert capsys.readouterr().err.count("error: ") == 3


def test_a_damaged_or_foreign_checkpoint_is_refused(space, tmp_path, capsys):
    path = space.model() / "fold_0/checkpoint_final.pth"
    whole = path.read_bytes()
    torch.save({"weights": {}}, tmp_path / "foreign.pth")
    foreign = (tmp_path / "foreign.pth").read_bytes()
    for content, words in ((whole[:5000], "damaged"), (foreign, "format_version is None")):
        path.write_bytes(content)
        assert space.predict(space.raw / "imagesTr", tmp_path / "out") == 2
        assert words in capsys.readouterr().err


def test_the_demo_replaces_nothing_but_a_demo(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    assert command("demo", "-o", tmp_path / "mine") == 2
    assert command("demo", "-o", tmp_path / "mine", "--overwrite") == 2
    assert (tmp_path / "mine/thesis.txt").read_text() == "years of work"
    assert "is no earlier demo, so it is not replaced" in capsys.readouterr().err
