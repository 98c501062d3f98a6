"""The registration baseline without ANTs: in its place a program that leaves labels where they are."""

import importlib
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import edit

from benchmarks import against_ants
from benchmarks import label_propagation as carrying
from mre_lowshot.data.dataset import Dataset
from mre_lowshot.data.volume import geometry_of, read_labels
from mre_lowshot.evaluation.metrics import dice
from mre_lowshot.evaluation.summary import evaluate_folder

FAKE = """#!{python}
import os, signal, sys
from pathlib import Path
here = Path(__file__).parent
assert sys.argv[1] == "-I" and Path(sys.argv[2]).is_file()
if sys.argv[3:] == ["version"]:
    print("{version}")
    raise SystemExit
fixed, moving, labels, out, *settings = sys.argv[3:]
assert settings == ["SyN", "genericLabel", "1"], settings
with (here / "calls").open("a") as calls:
    calls.write(" to ".join(Path(p).name[:-12] for p in (moving, fixed)) + "\\n")
trouble = (here / "trouble").read_text() if (here / "trouble").exists() else ""
if trouble == "stopped":
    os.kill(os.getpid(), signal.SIGTERM)
if trouble and trouble in fixed:
    raise SystemExit("all samples map outside the moving image")
import SimpleITK as sitk
target = sitk.ReadImage(fixed)
code = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(target.GetDirection())
target, source = (sitk.DICOMOrient(image, "LPS") for image in (target, sitk.ReadImage(labels)))
size = [min(pair) for pair in zip(target.GetSize(), source.GetSize())]
made = sitk.Paste(sitk.Cast(target, source.GetPixelID()) * 0, source, size)
sitk.WriteImage(sitk.DICOMOrient(made, code), out)
print(1.5)
"""


class Fake:
    """The program, what it was called for, and what goes wrong in it."""

    def __init__(self, folder: Path, version: str = "0.6.3") -> None:
        folder.mkdir(exist_ok=True)
        self.python, self.folder = folder / "python", folder
        self.python.write_text(FAKE.format(python=sys.executable, version=version))
        self.python.chmod(0o755)

    def calls(self) -> list[str]:
        """Since it was last asked."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.is_file() else []
        path.unlink(missing_ok=True)
        return lines

    def trouble(self, what: str) -> None:
        (self.folder / "trouble").write_text(what)


@pytest.fixture
def fake(tmp_path) -> Fake:
    return Fake(tmp_path / "ants-env")


@pytest.fixture
def run(trained, tmp_path, fake):
    """The command on the synthetic dataset (three scans)."""
    return lambda *more, raw=trained.raw, python=fake.python: against_ants.main(
        [str(raw), "--ants_python", str(python), "--out", str(tmp_path / "out"), *map(str, more)]
    )


@pytest.fixture
def place(trained, tmp_path) -> Path:
    return tmp_path / "out" / trained.raw.name


def label_of(raw: Path, name: str) -> np.ndarray:
    return read_labels(raw / "labelsTr" / f"{name}.nii.gz").array


def carried_by_hand(raw: Path, train: str, test: str) -> np.ndarray:
    """The label map that the stand-in makes: voxel for voxel, the scans' sizes differ."""
    made = np.zeros_like(label_of(raw, test))
    source = label_of(raw, train)[tuple(slice(n) for n in made.shape)]
    made[tuple(slice(n) for n in source.shape)] = source
    return made


def test_folds_are_those_of_mre_train(trained):
    raw = Dataset.load(trained.raw)
    made = json.loads((trained.prepared / "splits_1shot.json").read_text())
    assert list(against_ants.folds(raw, "1shot").values()) == made
    assert against_ants.folds(raw, "1shot", wanted=[2, 2]) == {2: made[2]}
    first, second, _ = (case.name for case in raw.labelled)
    assert against_ants.folds(raw, "1shot", [second, first]) == {
        0: {"train": [first], "val": [second]},
        1: {"train": [second], "val": [first]},
    }


def test_carried_labels_are_scored_on_the_test_scans_grid(trained, run, place, fake, capsys):
    assert run("--folds", 0) == 0
    first, *rest = sorted(p.name[:-7] for p in (trained.raw / "labelsTr").iterdir())
    assert fake.calls() == [f"{first} to {name}" for name in rest]
    fold = place / "1shot/fold_0"
    carried = {name: carried_by_hand(trained.raw, first, name) for name in rest}
    for name in rest:
        made = read_labels(fold / f"{name}.nii.gz")
        assert (made.array == carried[name]).all()
        assert not made.geometry.differences(geometry_of(trained.raw / f"imagesTr/{name}_0000.nii.gz"))
    summary = json.loads((fold / "summary.json").read_text())
    by_hand = [
        np.mean([dice(label_of(trained.raw, name) == value, carried[name] == value) for name in rest])
        for value in summary["labels"].values()
    ]
    assert summary["foreground_mean"]["Dice"] == pytest.approx(np.mean(by_hand))
    again = evaluate_folder(trained.raw / "labelsTr", fold, summary["labels"])
    assert summary["foreground_mean"] == pytest.approx(again["foreground_mean"])
    found = json.loads((place / "1shot/results.json").read_text())
    told = found["mean"][f"all {len(by_hand)} labels"]
    assert told == found["folds"]["0"][f"all {len(by_hand)} labels"]
    assert told["HD95"] == pytest.approx(summary["foreground_mean"]["HD95"])
    assert found["folds"]["0"]["seconds_a_scan"] == 1.5
    text = capsys.readouterr().out
    assert f"fold 0, all {len(by_hand)} labels: Dice {told['Dice']:.4f}, HD95 {told['HD95']:.2f} mm" in text


def test_some_labels_only_are_told_beside_all(trained, run, place):
    summary_labels = [name for name, value in Dataset.load(trained.raw).labels.items() if value]
    assert run("--folds", 0, "--labels", summary_labels[0]) == 0
    found = json.loads((place / "1shot/results.json").read_text())
    summary = json.loads((place / "1shot/fold_0/summary.json").read_text())
    assert found["labels"] == {f"all {len(summary_labels)} labels": summary_labels, "1 labels": summary_labels[:1]}
    assert found["mean"]["1 labels"]["Dice"] == pytest.approx(summary["mean"]["1"]["Dice"])


def test_a_pair_is_registered_once_for_all_folds_and_levels(trained, run, place, fake, capsys):
    assert run() == 0
    assert len(fake.calls()) == 6
    before = (place / "1shot/results.json").read_text()
    assert run() == 0
    assert fake.calls() == []
    assert "1.5 s (there already)" in capsys.readouterr().out
    assert (place / "1shot/results.json").read_text() == before
    assert run("--level", "2shot") == 0
    assert fake.calls() == []
    first, _, third = sorted(p.name[:-7] for p in (trained.raw / "labelsTr").iterdir())
    (place / f"carried/{first}/{third}.nii.gz").unlink()
    assert run() == 0
    assert fake.calls() == [f"{first} to {third}"]


def test_most_of_the_carried_labels_win_and_the_first_scans_where_they_are_level(trained, run, place):
    maps = [np.array(values) for values in ([1, 1, 0, 1, 3], [2, 1, 2, 2, 1], [2, 0, 0, 3, 1])]
    assert carrying.majority(maps).tolist() == [2, 1, 0, 1, 1]
    assert carrying.majority(maps[::-1]).tolist() == [2, 1, 0, 3, 1]
    assert carrying.majority([np.array([v]) for v in (0, 1, 2, 2, 1)]).tolist() == [1]
    assert run("--level", "2shot", "--folds", 0) == 0
    first, _, third = sorted(p.name[:-7] for p in (trained.raw / "labelsTr").iterdir())
    made = read_labels(place / f"2shot/fold_0/{third}.nii.gz").array
    assert (made == carried_by_hand(trained.raw, first, third)).all()


def test_a_registration_that_fails_counts_as_an_empty_label_map(trained, run, place, fake, capsys):
    first, second, third = sorted(p.name[:-7] for p in (trained.raw / "labelsTr").iterdir())
    fake.trouble(second)
    assert run("--folds", 0) == 0
    reason = f"from {first}: all samples map outside the moving image"
    assert f"{second}: registration failed {reason}; its label map counts as empty" in capsys.readouterr().out
    assert not read_labels(place / f"1shot/fold_0/{second}.nii.gz").array.any()
    summary = json.loads((place / "1shot/fold_0/summary.json").read_text())
    assert summary["failed_registrations"] == {second: [reason]}
    dices = {case["case"]: [row["Dice"] for row in case["metrics"].values()] for case in summary["metric_per_case"]}
    assert set(dices[second]) == {0}
    assert max(dices[third]) > 0
    fake.calls()
    assert run("--folds", 0) == 0
    assert fake.calls() == []  # told again, not tried again
    assert reason in capsys.readouterr().out


def test_a_program_that_is_stopped_leaves_nothing_and_goes_on_later(run, place, fake, capsys):
    fake.trouble("stopped")
    assert run("--folds", 0) == 2
    assert "was stopped by signal 15" in capsys.readouterr().err
    assert not list(place.rglob("*.nii.gz"))
    fake.trouble("")
    assert run("--folds", 0) == 0


def test_wrong_use(trained, space, run, tmp_path, fake, capsys):
    def refused(*more, **others):
        assert run(*more, **others) == 2
        return capsys.readouterr().err.strip()

    assert "missing: is no file; name the environment's bin/python" in refused(python="missing")
    assert "cannot import ants (ModuleNotFoundError" in (told := refused(python=sys.executable))
    assert "-m pip install antspyx==0.6.3" in told
    plain = tmp_path / "plain"
    plain.write_text("no program")
    assert f"--ants_python {plain}: cannot be run" in refused(python=plain)
    assert "--folds 3: level 1shot has folds 0 to 2 here" in refused("--folds", 3)
    assert "--folds -1: level 1shot has folds 0 to 2" in refused("--folds", -1)
    assert "trains on all 3 scans and leaves none" in refused("--level", "3shot")
    assert "say --level 1shot --cohort NAME" in refused("--level", "1shot_report")
    assert "'lung' is no label to score" in refused("--labels", "lung")
    assert "are not those of MRBrainS18 or BTCV" in refused("--labels", "paper")
    assert f"has no cohort 'report' for {trained.raw.name}" in refused("--cohort", "report")
    assert not fake.calls()
    assert "dataset.json" in refused(raw=tmp_path / "nowhere")
    edit(space.raw / "dataset.json", numTraining=5)
    assert "numTraining is 5" in refused(raw=space.raw)


def test_label_maps_of_another_antspyx_are_not_taken_for_these(run, tmp_path, capsys):
    assert run("--folds", 0) == 0
    other = Fake(tmp_path / "other", "0.5.0")
    assert run("--folds", 0, python=other.python) == 2
    assert "now it is {'antspyx': '0.5.0'" in capsys.readouterr().err


def test_one_thread_unless_the_caller_says_otherwise(monkeypatch):
    monkeypatch.delenv(carrying.THREADS, raising=False)
    assert carrying.environment()[carrying.THREADS] == "1"
    monkeypatch.setenv(carrying.THREADS, "3")
    assert carrying.environment()[carrying.THREADS] == "3"


def test_the_worker_asks_ants_for_what_it_was_told(monkeypatch, capsys):
    asked = {}
    stand_in = SimpleNamespace(
        image_read=lambda path: f"image {path}",
        config=SimpleNamespace(set_ants_deterministic=lambda **given: asked.update(seed=given)),
        registration=lambda **given: asked.update(registration=given) or {"fwdtransforms": ["warp", "affine"]},
        apply_transforms=lambda **given: asked.update(apply=given) or "carried",
        image_write=lambda *given: asked.update(written=given),
    )
    monkeypatch.setitem(sys.modules, "ants", stand_in)
    monkeypatch.delitem(sys.modules, "benchmarks.ants_worker", raising=False)
    importlib.import_module("benchmarks.ants_worker").main("f", "m", "l", "out", "SyN", "genericLabel", "1")
    monkeypatch.delitem(sys.modules, "benchmarks.ants_worker")
    assert asked["seed"] == {"on": False, "seed_value": 1}
    assert {**asked["registration"], "outprefix": ""} == {
        "fixed": "image f", "moving": "image m", "type_of_transform": "SyN", "outprefix": ""
    }  # fmt: skip
    assert asked["apply"] == {
        "fixed": "image f", "moving": "image l", "transformlist": ["warp", "affine"], "interpolator": "genericLabel"
    }  # fmt: skip
    assert asked["written"] == ("carried", "out")
    assert math.isfinite(float(capsys.readouterr().out))
