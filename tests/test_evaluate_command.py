"""``mre_evaluate`` and the summaries: pairing, means without NaN, refusals, files, exit codes."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from mre_lowshot.cli.evaluate import main
from mre_lowshot.errors import UserError
from mre_lowshot.evaluation.metrics import case_metrics
from mre_lowshot.evaluation.summary import CaseResult, evaluate_folder, format_table, summarise
from mre_lowshot.workflows.evaluate import labels_from_dataset_json

LABELS = {"liver": 1, "spleen": 2}
SPACING = (2.0, 1.0, 0.5)  # z, y, x


def organs(liver=(2, 6), spleen=(6, 8)):
    """(6, 10, 10): liver and spleen are slabs over the given ranges of y; None leaves one out."""
    array = np.zeros((6, 10, 10), np.uint8)
    for value, rows in ((1, liver), (2, spleen)):
        if rows:
            array[1:5, slice(*rows), 2:8] = value
    return array


def save(path: Path, array, spacing=SPACING, origin=(0.0, 0.0, 0.0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing[::-1])
    image.SetOrigin(origin)
    sitk.WriteImage(image, str(path))


def describe(folder: Path, labels):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    return folder / "dataset.json"


@pytest.fixture
def folders(tmp_path):
    """Cases a (perfect), b (half the liver, no spleen found), c (no spleen in either); two file formats."""
    gt, pred = tmp_path / "data/labelsTr", tmp_path / "run/validation"
    for name, reference, prediction in (
        ("a", organs(), organs()),
        ("b", organs(), organs((2, 4), None)),
        ("c", organs(spleen=None), organs(spleen=None)),
    ):
        save(gt / f"{name}.nii.gz", reference)
        save(pred / f"{name}.nrrd", prediction)
    describe(tmp_path / "data", {"background": 0, **LABELS})
    return gt, pred


def test_command_end_to_end(folders, capsys):
    gt, pred = folders
    assert main([str(gt), str(pred)]) == 0
    out = capsys.readouterr().out
    assert "labels from" in out
    assert "data/dataset.json: 1 liver, 2 spleen" in out

    summary = json.loads((pred / "summary.json").read_text())
    assert summary["mean"]["1"]["Dice"] == pytest.approx((1 + 2 / 3 + 1) / 3)
    assert summary["mean"]["2"]["Dice"] == pytest.approx((1 + 0) / 2)  # c is left out, b counts 0
    assert summary["foreground_mean"]["Dice"] == pytest.approx((8 / 9 + 1 / 2) / 2)
    # b's liver: reference rows 2-5, prediction 2-3, 1 mm apart: the missed half lies up to 2 mm from the prediction
    assert summary["mean"]["1"]["HD95"] == pytest.approx(2 / 3)
    assert summary["mean"]["2"]["HD95"] == 0
    assert summary["mean"]["2"]["HD95_diagonal"] == pytest.approx(math.sqrt(12**2 + 10**2 + 5**2) / 2)
    assert summary["missed_structures"] == {"1": 0, "2": 1}
    assert summary["spurious_structures"] == {"1": 0, "2": 0}
    assert summary["nan_left_out"]["2"] == {"Dice": 1, "IoU": 1, "HD95": 2, "HD95_diagonal": 1, "NSD": 1}
    assert summary["mean"]["2"]["NSD"] == 0.5  # as Dice: c is left out, b counts 0
    assert summary["nsd_tolerance"] == {"1": None, "2": None}
    assert {row["NSD_tolerance"] for c in summary["metric_per_case"] for row in c["metrics"].values()} == {2.0}
    assert "tolerance: the longest voxel side of each reference, 2 mm" in out
    assert [c["case"] for c in summary["metric_per_case"]] == ["a", "b", "c"]
    last = summary["metric_per_case"][2]
    assert last["metrics"]["2"]["Dice"] is None
    assert Path(last["prediction_file"]) == pred / "c.nrrd"
    assert Path(last["reference_file"]) == gt / "c.nii.gz"

    rows = list(csv.DictReader((pred / "summary.csv").open()))
    assert [(r["case"], r["label"], r["name"]) for r in rows][2:4] == [("b", "1", "liver"), ("b", "2", "spleen")]
    assert float(rows[2]["volume_ref_ml"]) == pytest.approx(4 * 4 * 6 * 1.0 / 1000)  # voxels of 2 x 1 x 0.5 mm
    assert (rows[3]["Dice"], rows[3]["HD95"], rows[3]["NSD"]) == ("0.0", "", "0.0")
    assert rows[5]["Dice"] == ""

    table = [line.split() for line in out.splitlines() if line.startswith(("1 ", "2 ", "mean"))]
    assert table[0][:5] == ["1", "liver", "0.8889", "3", "0.67"]
    assert table[1] == ["2", "spleen", "0.5000", "2", "0.00", "1", "8.20", "0.5000", "1", "0"]
    assert table[2][:3] == ["mean", "0.6944", "2"]
    assert format_table(summary) in out  # a summary read back gives the same table


def test_problem_cases_are_all_named_and_the_others_evaluated(folders, tmp_path, capsys):
    gt, pred = folders
    for name in "defg":
        save(gt / f"{name}.nii.gz", organs())
    save(pred / "d.nrrd", organs(), spacing=(2.0, 1.0, 0.6))
    save(pred / "e.nrrd", organs(), origin=(0.0, 0.0, 7.0))
    (pred / "f.nrrd").write_text("no image")
    save(pred / "h.nrrd", organs())
    save(pred / "a.mha", organs())
    assert main([str(gt), str(pred), "-o", str(tmp_path / "out")]) == 1
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert not (pred / "summary.json").exists()
    assert [c["case"] for c in summary["metric_per_case"]] == ["b", "c"]
    assert summary["missing_predictions"] == ["g"]
    assert summary["extra_predictions"] == ["h"]
    failed = summary["failed_cases"]
    assert list(failed) == ["a", "d", "e", "f"]
    assert "case a: 2 files" in failed["a"]
    assert "a.mha, a.nrrd" in failed["a"]
    assert "case d: " in failed["d"]
    assert "spacing (2.0, 1.0, 0.5) against (2.0, 1.0, 0.6)" in failed["d"]
    assert "origin (0.0, 0.0, 0.0) against (0.0, 0.0, 7.0)" in failed["e"]
    assert "f.nrrd: cannot be read" in failed["f"]
    out = capsys.readouterr().out
    assert "1 without a prediction (not in the means): g" in out
    assert "1 predicted without a reference (not evaluated): h" in out
    assert out.count("not evaluated: ") == 4


def test_missing_prediction_alone_is_exit_code_1_and_extra_alone_is_0(folders):
    gt, pred = folders
    (gt / "a.nii.gz").unlink()
    assert main([str(gt), str(pred)]) == 0
    (pred / "b.nrrd").unlink()
    assert main([str(gt), str(pred)]) == 1


def test_a_summary_is_written_even_with_no_case_to_average(folders, capsys):
    gt, pred = folders
    for path in pred.iterdir():
        save(path, organs(), spacing=(9.0, 1.0, 1.0))
    assert main([str(gt), str(pred)]) == 1
    assert json.loads((pred / "summary.json").read_text())["foreground_mean"]["Dice"] is None
    assert "0 cases" in capsys.readouterr().out


def test_labels_from_the_files_when_there_is_no_dataset_json(folders, capsys):
    gt, pred = folders
    (gt.parent / "dataset.json").unlink()
    save(pred / "c.nrrd", np.where(organs(spleen=None) == 1, 5, 0).astype(np.uint8))
    assert main([str(gt), str(pred)]) == 0
    assert "values found: 1 label_1, 2 label_2, 5 label_5" in capsys.readouterr().out
    assert json.loads((pred / "summary.json").read_text())["spurious_structures"] == {"1": 0, "2": 0, "5": 1}


def test_the_nearest_dataset_json_is_used_unless_one_is_given(folders, tmp_path, capsys):
    gt, pred = folders
    describe(pred.parent, {"background": 0, "from_run": 1})
    assert main([str(gt), str(pred)]) == 0
    assert "1 from_run\n" in capsys.readouterr().out
    given = describe(tmp_path / "elsewhere", {"background": 0, "given": 2})
    assert main([str(gt), str(pred), "-djfile", str(given)]) == 0
    out = capsys.readouterr().out
    assert "2 given\n" in out
    assert "case a: contains label values 1, which are not listed" in out


def test_ignore_label_from_dataset_json_and_flag(folders, capsys):
    gt, pred = folders
    save(gt / "a.nii.gz", np.where(organs() == 2, 14, organs()).astype(np.uint8))  # the spleen is not annotated
    given = describe(gt.parent, {"background": 0, **LABELS, "ignore": 14})
    assert main([str(gt), str(pred)]) == 0
    assert "voxels with these reference labels are excluded: 14" in capsys.readouterr().out
    case = json.loads((pred / "summary.json").read_text())["metric_per_case"][0]["metrics"]
    assert (case["2"]["FP"], case["2"]["Dice"]) == (0, None)
    given.unlink()
    assert main([str(gt), str(pred), "--ignore", "14"]) == 0
    flagged = json.loads((pred / "summary.json").read_text())
    assert flagged["metric_per_case"][0]["metrics"] == case
    assert (flagged["ignore_label"], list(flagged["mean"])) == (14, ["1", "2"])
    describe(gt.parent, {"background": 0, **LABELS})
    assert main([str(gt), str(pred)]) == 0
    assert json.loads((pred / "summary.json").read_text())["metric_per_case"][0]["metrics"]["2"]["FP"] > 0


def test_profiles_reach_the_metrics(folders):
    gt, pred = folders
    found = {}
    for profile in ("default", "medpy", "mrbrains18"):
        assert main([str(gt), str(pred), "--profile", profile]) == 0
        summary = json.loads((pred / "summary.json").read_text())
        assert summary["profile"] == profile
        found[profile] = summary["metric_per_case"][1]["metrics"]["1"]["HD95"]
        expected = case_metrics(organs(), organs((2, 4), None), {"liver": 1}, SPACING, profile=profile)[1]["HD95"]
        assert found[profile] == pytest.approx(expected)
    describe(gt.parent, {"background": 0, "liver": 1, "infarct": 9})
    assert main([str(gt), str(pred), "--profile", "mrbrains18"]) == 0
    assert list(json.loads((pred / "summary.json").read_text())["mean"]) == ["1"]


def test_tolerances_of_nsd(folders, capsys):
    gt, pred = folders
    found = []
    for words in (["0.5"], ["liver=0.5"], ["liver=0.5", "spleen=3"]):
        assert main([str(gt), str(pred), "--nsd_tolerance", *words]) == 0
        summary = json.loads((pred / "summary.json").read_text())
        case = summary["metric_per_case"][1]["metrics"]
        found.append([case[v]["NSD_tolerance"] for v in "12"])
        expected = case_metrics(organs(), organs((2, 4), None), LABELS, SPACING, tolerances={1: 0.5})
        assert case["1"]["NSD"] == pytest.approx(expected[1]["NSD"])
        assert 0.2 < case["1"]["NSD"] < 0.9
    assert found == [[0.5, 0.5], [0.5, 2.0], [0.5, 3.0]]
    assert "tolerance: liver 0.5 mm, spleen 3 mm." in capsys.readouterr().out
    for words, message in (
        (["2", "liver=3"], "give one number for all labels, or LABEL=MM for each, not both"),
        (["liver"], "--nsd_tolerance 'liver': is neither a number in mm nor LABEL=MM"),
        (["kidney=1"], "'kidney': is no evaluated label; known are liver, spleen"),
        (["liver=-1"], "must lie in [0, 1e+06]"),
    ):
        assert main([str(gt), str(pred), "--nsd_tolerance", *words]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            {"background": 0, "whole": [1, 2]},
            "label 'whole' is the region [1, 2]; region-based labels are not supported",
        ),
        ({"0": "background", "1": "liver"}, "label '0' is 'background'; swap name and value"),
        ({"background": 0, "liver": 1, "spleen": 1}, "two labels share a value"),
        ({}, "labels is {}; must map names to integers"),
        ({"background": 0}, "no label to evaluate in"),
    ],
)
def test_unusable_labels_are_wrong_use(folders, capsys, labels, message):
    gt, pred = folders
    given = describe(gt.parent, labels)
    assert main([str(gt), str(pred), "-djfile", str(given)]) == 2
    assert message in capsys.readouterr().err
    assert not (pred / "summary.json").exists()


def test_wrong_use_is_reported_in_one_line(folders, tmp_path, capsys):
    gt, pred = folders
    (tmp_path / "empty").mkdir()
    save(tmp_path / "other/z.nii.gz", organs())
    (tmp_path / "file").write_text("")
    for arguments, message in (
        ([gt, tmp_path / "nowhere"], "nowhere: is not a folder"),
        ([gt, tmp_path / "empty"], "empty: holds no label maps"),
        ([gt, tmp_path / "other"], "none of its 1 label maps has the name of a reference"),
        ([gt, pred, "-djfile", tmp_path / "no.json"], "no.json is missing"),
        ([gt, pred, "-o", tmp_path / "summary.json"], "give a folder, not a file"),
        ([gt, pred, "-o", tmp_path / "file"], "file: cannot be written"),
    ):
        assert main([str(a) for a in arguments]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
    with pytest.raises(SystemExit) as stopped:
        main([str(gt), str(pred), "--profile", "hausdorff"])
    assert stopped.value.code == 2


def test_dataset_json_labels(tmp_path):
    given = describe(tmp_path, {"background": 0, "a": 1, "b": 3, "ignore": 14})
    assert labels_from_dataset_json(given) == ({"a": 1, "b": 3}, 14)
    given.write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        labels_from_dataset_json(given)


def test_summarise_in_memory_as_the_trainer_does(folders):
    gt, pred = folders
    cases = [
        CaseResult("a", case_metrics(organs(), organs(), LABELS, SPACING)),
        CaseResult("b", case_metrics(organs(), organs((2, 4), None), LABELS, SPACING)),
        CaseResult("c", case_metrics(organs(spleen=None), organs(spleen=None), LABELS, SPACING)),
    ]
    summary, from_files = summarise(cases, LABELS), evaluate_folder(gt, pred, LABELS)
    for key in ("mean", "foreground_mean", "missed_structures", "nan_left_out"):
        assert summary[key] == from_files[key]
    assert format_table(summary) == format_table(from_files)
    never = summarise(cases[2:], LABELS)  # spleen in no case: it does not spoil the mean of the others
    assert math.isnan(never["mean"]["2"]["Dice"])
    assert never["foreground_mean"]["Dice"] == 1
    assert never["nan_left_out_of_foreground_mean"]["Dice"] == 1


def test_files_that_are_no_label_maps_are_named_and_the_others_are_scored(folders, capsys):
    gt, pred = folders
    (gt / "d.mgz").write_bytes(b"x")
    (gt / "e.nii.gz.part").write_bytes(b"x")
    (gt / "f.nii.gz").symlink_to("gone.nii.gz")
    (gt / "more").mkdir()
    (gt / "more/g.nii.gz").write_bytes(b"x")
    (gt / "notes.txt").write_text("mine")
    for own in ("a.npz", "overlays/a.png", "previews/a.png", "quality.csv", "run.json"):  # of a prediction
        (pred / own).parent.mkdir(exist_ok=True)
        (pred / own).write_text("")
    (pred / "h.nii.gz.part").write_bytes(b"x")
    assert main([str(gt), str(pred)]) == 1
    shown = "".join(capsys.readouterr())
    summary = json.loads((pred / "summary.json").read_text())
    assert [c["case"] for c in summary["metric_per_case"]] == ["a", "b", "c"]
    assert summary["missing_predictions"] == ["f"]
    for words in (
        "d.mgz is not read",
        "labelsTr/e.nii.gz.part: has an image ending inside its name",
        "labelsTr/more: is a folder with 1 image",
        "validation/h.nii.gz.part: has an image ending",
    ):
        assert words in shown
        assert any(words in line for line in summary["unread_files"])
    assert len(summary["unread_files"]) == 4
    assert "not evaluated: labelsTr/more" in shown


def test_a_folder_with_files_of_another_format_only_names_them(tmp_path, folders, capsys):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/a.mgz").write_bytes(b"x")
    assert main([str(tmp_path / "other"), str(folders[1])]) == 2
    assert "holds no label maps (.nii.gz, .nrrd, .mha, .png, ...); " in (error := capsys.readouterr().err)
    assert "a.mgz is not read" in error
