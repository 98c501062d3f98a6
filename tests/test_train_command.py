"""``mre_train`` on three tiny phantoms: files, continuing, refusals, exit codes, messages."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import command, edit, interrupt_after, iterations

from mre_lowshot import Predictor
from mre_lowshot.config.presets import DEFAULT
from mre_lowshot.data.volume import geometry_of, read_image, read_labels, write_volume
from mre_lowshot.preprocessing.pipeline import inverse_probabilities

pytestmark = pytest.mark.usefixtures("one_thread_only", "no_settings")
NAMES = ["phantom_001", "phantom_002", "phantom_003"]
NNUNET_METRICS = {"Dice", "IoU", "TP", "FP", "FN", "TN", "n_pred", "n_ref"}


def test_planning_and_training_write_the_documented_files(trained):
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
        "training_log.jsonl", "run.json",
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


def test_the_calibration_counts_the_test_scans_and_is_reported(space, capsys):
    made = json.loads((space.model() / "fold_0/validation/summary.json").read_text())["calibration"]
    assert made["voxels"] == sum(row["voxels"] for row in made["bins"]) > 1000
    assert 0 < made["accuracy"] < 1
    assert 1 / 7 < made["confidence"] < 1
    assert space.train("--val") == 0
    assert f"expected calibration error {made['ece']:.3f}" in capsys.readouterr().out


def test_the_summary_has_the_dice_of_the_warped_labels(space, capsys):
    """Computed here by the predictor's first stages, on the scan's own grid, with a Dice of its own."""
    assert space.train("--val") == 0
    summary = json.loads((space.model() / "fold_0/validation/summary.json").read_text())
    predictor, expected = Predictor.load(space.model()), {str(value): [] for value in range(1, 7)}
    for row in summary["metric_per_case"]:
        scan = space.raw / f"imagesTr/{row['case']}_0000.nii.gz"
        prepared = predictor.preprocess(read_image(scan), name=row["case"])
        output = predictor.run_network(predictor.register(prepared))
        warped = inverse_probabilities(output.warped.numpy(), prepared.transform).argmax(0)
        truth = read_labels(space.raw / f"labelsTr/{row['case']}.nii.gz").array
        for value, found in row["registration_alone"].items():
            one, other = truth == int(value), warped == int(value)
            assert found == pytest.approx(2 * (one & other).sum() / (one.sum() + other.sum()), abs=1e-6)
            expected[value].append(found)
    means = {value: sum(dices) / len(dices) for value, dices in expected.items()}
    made = summary["registration_alone"]
    assert {value: row["Dice"] for value, row in made["mean"].items()} == pytest.approx(means)
    alone = made["foreground_mean"]["Dice"]
    assert alone == pytest.approx(sum(means.values()) / 6)
    added = summary["foreground_mean"]["Dice"] - alone
    printed = capsys.readouterr().out
    assert f"registration alone: Dice {alone:.4f}; network and refinement add {added:+.4f}" in printed
    assert ("train with more iterations" in printed) == (added < 0)


def test_the_folds_decisions_come_from_its_training_scan_alone(space):
    """A seventh label, in a test scan only, must not change what the fold derived from labels."""
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
    assert (
        "was trained already, or begun; --c continues, --val only validates, --overwrite trains it again"
        in capsys.readouterr().err
    )
    assert (space.model() / "fold_0/checkpoint_final.pth").read_bytes() == before
    shutil.rmtree(space.model() / "fold_0/validation")
    assert space.train("--val") == 0
    assert (space.model() / "fold_0/validation/summary.json").is_file()
    assert (space.model() / "fold_0/checkpoint_final.pth").read_bytes() == before
    assert space.train("--overwrite", "--no_val") == 0
    assert not (space.model() / "fold_0/validation").exists()


def test_an_interrupted_training_can_predict_and_continue(space, monkeypatch, capsys):
    fold = space.model() / "fold_1"
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        assert space.train(fold="1") == 130
    assert iterations(fold) == [1, 2]
    assert not (fold / "checkpoint_final.pth").exists()
    assert space.predict(space.raw / "imagesTr", space.root / "out", "-f", "1") == 0
    assert "training of fold 1 is not complete (mre_train --c continues)" in capsys.readouterr().out
    assert len(list((space.root / "out").glob("*.nii.gz"))) == 3
    assert space.train("--c", "--no_val", fold="1") == 0
    assert iterations(fold, "checkpoint_final.pth") == [1, 2, 3]


def test_continuing_gives_the_weights_of_an_uninterrupted_training(space, monkeypatch):
    final = space.model() / "fold_0/checkpoint_final.pth"
    whole = torch.load(final, weights_only=True)["weights"]
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        assert space.train("--overwrite") == 130
    assert space.train("--c", "--no_val") == 0
    again = torch.load(final, weights_only=True)["weights"]
    assert all(torch.equal(whole[key], again[key]) for key in whole)


def test_continuing_a_complete_training_says_that_it_was_complete(space, capsys):
    assert space.train("--c", "--no_val") == 0
    assert "its training was complete already: 3 iterations" in capsys.readouterr().out


def test_a_training_with_other_iterations_is_validated_without_the_flag(space):
    assert space.train("--no_val", "--iterations", 2, level="2shot") == 0
    assert space.train("--val", level="2shot") == 0


@pytest.mark.parametrize("flag", ["--c", "--val"])
def test_a_fold_that_was_not_trained_cannot_be_continued_or_validated(space, flag, capsys):
    assert space.train(flag, fold="2") == 2
    assert "checkpoint is missing; train the fold first" in capsys.readouterr().err


def learning_rate(plan):
    return json.loads(plan.read_text())["recipe"]["optimizer"]["learning_rate"]


def test_a_changed_plan_does_not_mix_with_older_results(space, capsys):
    edit(space.prepared / "Tiny.json", recipe={"optimizer": {"learning_rate": 0.5}})
    before = (space.model() / "fold_0/checkpoint_final.pth").read_bytes()
    shutil.copytree(space.model() / "fold_0", space.model() / "fold_1")
    for arguments in (["--overwrite"], ["--c"], ["--val"]):  # the other fold's results are of the old plan
        assert space.train(*arguments) == 2
        rates = f"recipe.optimizer.learning_rate: existing {DEFAULT.optimizer.learning_rate}, new 0.5"
        assert rates in capsys.readouterr().err
        assert (space.model() / "fold_0/checkpoint_final.pth").read_bytes() == before
    assert space.train("--overwrite", "--no_val", fold="all") == 0  # no fold of the old plan is left then
    for fold in range(3):
        assert learning_rate(space.model() / f"fold_{fold}/plans.json") == 0.5
    edit(space.prepared / "Tiny.json", recipe={"optimizer": {"learning_rate": 0.25}})
    for fold in (1, 2):
        shutil.rmtree(space.model() / f"fold_{fold}")
    assert space.train(fold="1") == 2
    assert not (space.model() / "fold_1/checkpoint_latest.pth").exists()
    assert space.train("--overwrite", "--no_val") == 0  # nothing of the old plan is left then
    assert learning_rate(space.model() / "plans.json") == 0.25


@pytest.mark.slow
def test_all_folds_continue_where_they_were_interrupted(space, monkeypatch, capsys):
    assert space.train("--no_val", "--seed", "3", fold="1") == 0
    assert space.train("--c", "--no_val", fold="1") == 0  # uses the seed of the training
    shutil.rmtree(space.model())
    interrupt_after(monkeypatch, 2)
    assert space.train("--no_val", fold="all") == 130
    monkeypatch.undo()
    assert space.train("--no_val", fold="all") == 2
    assert "was trained already, or begun; --c continues" in capsys.readouterr().err
    assert space.train("--c", "--no_val", fold="all") == 0
    assert len(list(space.model().glob("fold_*/checkpoint_final.pth"))) > 1


def test_a_folder_that_cannot_be_created_is_a_one_line_error(space, capsys):
    wall = space.root / "wall"
    wall.write_text("a file where a folder is needed")
    assert space.predict(space.raw / "imagesTr", wall / "out") == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {wall}")
    assert "Traceback" not in message


def test_a_scan_that_cannot_be_registered_is_named_and_the_others_are_predicted(space, tmp_path, capsys):
    scans = tmp_path / "scans"
    shutil.copytree(space.raw / "imagesTr", scans)
    names = sorted(path.name for path in scans.iterdir())
    image = read_image(scans / names[0])
    write_volume(scans / names[0], np.zeros(image.geometry.shape, dtype=np.int16), image.geometry)
    assert space.predict(scans, tmp_path / "out") == 1
    case = names[0].removesuffix("_0000.nii.gz")
    assert f"failed: case {case}: " in capsys.readouterr().err
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == len(names) - 1


def test_cases_preprocessed_by_another_plan_are_refused(space, capsys):
    edit(space.prepared / "Tiny.json", preprocessing={"spacing": [9.0, 9.0, 9.0]})
    assert space.train(fold="1") == 2
    assert "preprocessed with other settings than the plan's; run mre_plan_and_preprocess" in capsys.readouterr().err
    assert space.plan("--keep_plan", settings=()) == 0
    assert space.train(fold="1") == 2  # the folder holds results of the plan before the change ...
    assert "holds results of another plan" in capsys.readouterr().err
    assert space.train("--no_val", level="2shot") == 0  # ... but none of this level


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["Synthetic", "1shot", "fold3"], "fold 3: level 1shot has folds 0 to 2 here"),
        (["Synthetic", "9shot", "0"], "level 9shot: needs 9 labelled cases, found 3"),
        (["Synthetic", "oneshot", "0"], "level 'oneshot'"),
        (["Nothing", "1shot", "0"], "found: Dataset900_Synthetic"),
        (["Synthetic", "1shot", "1", "-p", "Absent"], "Absent.json is missing; run mre_plan_and_preprocess"),
        (["Synthetic", "1shot", "1", "--iterations", "0"], "--iterations 0"),
        (["Synthetic", "1shot", "1", "-device", "toaster"], "-device toaster"),
    ],
)
def test_wrong_use_of_training_is_refused(trained, arguments, words, capsys):
    assert command("train", "-p", "Tiny", "--workspace", trained.root, *arguments) == 2
    captured = capsys.readouterr().err
    assert words in captured
    assert captured.startswith("error: ")
    assert captured.count("\n") == 1


def test_one_annotated_case_can_be_trained_and_leaves_none_to_score(space, capsys):
    space.labelled_only("phantom_003")
    shutil.rmtree(space.prepared)
    assert space.plan() == 0
    shutil.rmtree(space.model())
    assert space.train() == 0
    output = capsys.readouterr().out
    assert "1 labelled scans, 2 without labels" in output
    assert "training on phantom_003" in output
    assert "the fold has no test scan to score" in output
    assert not (space.model() / "fold_0/validation").exists()
    assert space.train(level="loo") == 2
    assert "phantom_003 is the only labelled case" in capsys.readouterr().err


@pytest.mark.slow
def test_a_cohort_is_trained_and_tested_alone(space, tmp_path, capsys):
    listed = tmp_path / "mine.json"
    listed.write_text(json.dumps({"two": NAMES[:2]}))
    assert space.train("--cohort", "two", "--cohorts", listed) == 0
    assert f"training on {NAMES[0]} " in capsys.readouterr().out
    summary = json.loads((space.model(level="1shot_two") / "fold_0/validation/summary.json").read_text())
    assert [case["case"] for case in summary["metric_per_case"]] == [NAMES[1]]
    assert space.train(level="1shot_two", fold="fold1") == 0  # its splits are saved
    assert space.train("--cohort", "two", level="1shot_two") == 2
    assert "names a cohort already" in capsys.readouterr().err
    assert space.train("--cohort", "other", "--cohorts", listed) == 2
    assert "has no cohort 'other'" in capsys.readouterr().err
