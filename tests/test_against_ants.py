"""The registration baseline, with a stand-in for ANTs that copies labels voxel by voxel."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import edit

from benchmarks import against_ants
from mre_lowshot.data.dataset import Dataset
from mre_lowshot.data.volume import geometry_of, read_labels
from mre_lowshot.evaluation.metrics import dice
from mre_lowshot.evaluation.summary import evaluate_folder
from mre_lowshot.experiments.baselines import ants_process, ants_worker

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
failure = (here / "failure").read_text() if (here / "failure").exists() else ""
if failure == "stopped":
    os.kill(os.getpid(), signal.SIGTERM)
if failure and failure in fixed:
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
    """The stand-in, the pairs that it was called for, and the failure that it simulates."""

    def __init__(self, folder: Path, version: str = "0.6.3") -> None:
        folder.mkdir(exist_ok=True)
        self.python, self.folder = folder / "python", folder
        self.python.write_text(FAKE.format(python=sys.executable, version=version))
        self.python.chmod(0o755)

    def calls(self) -> list[str]:
        """Pairs since the last call of this method."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.is_file() else []
        path.unlink(missing_ok=True)
        return lines

    def fail(self, what: str) -> None:
        (self.folder / "failure").write_text(what)


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
def out(trained, tmp_path) -> Path:
    return tmp_path / "out" / trained.raw.name


def label_of(raw: Path, name: str) -> np.ndarray:
    return read_labels(raw / "labelsTr" / f"{name}.nii.gz").array


def copied(raw: Path, train: str, test: str) -> np.ndarray:
    """The label map that the stand-in writes: copied voxel by voxel; the scans' sizes differ."""
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


def test_propagated_labels_are_scored_on_the_test_scans_grid(trained, run, out, fake, capsys):
    assert run("--folds", 0) == 0
    first, *rest = sorted(p.name[:-7] for p in (trained.raw / "labelsTr").iterdir())
    assert fake.calls() == [f"{first} to {name}" for name in rest]
    fold = out / "1shot/fold_0"
    wanted = {name: copied(trained.raw, first, name) for name in rest}
    for name in rest:
        made = read_labels(fold / f"{name}.nii.gz")
        assert (made.array == wanted[name]).all()
        assert not made.geometry.differences(geometry_of(trained.raw / f"imagesTr/{name}_0000.nii.gz"))
    summary = json.loads((fold / "summary.json").read_text())
    by_hand = [
        np.mean([dice(label_of(trained.raw, name) == value, wanted[name] == value) for name in rest])
        for value in summary["labels"].values()
    ]
    assert summary["foreground_mean"]["Dice"] == pytest.approx(np.mean(by_hand))
    again = evaluate_folder(trained.raw / "labelsTr", fold, summary["labels"])
    assert summary["foreground_mean"] == pytest.approx(again["foreground_mean"])
    found = json.loads((out / "1shot/results.json").read_text())
    means = found["mean"][f"all {len(by_hand)} labels"]
    assert means == found["folds"]["0"][f"all {len(by_hand)} labels"]
    assert means["HD95"] == pytest.approx(summary["foreground_mean"]["HD95"])
    assert found["folds"]["0"]["seconds_a_scan"] == 1.5
    text = capsys.readouterr().out
    assert f"fold 0, all {len(by_hand)} labels: Dice {means['Dice']:.4f}, HD95 {means['HD95']:.2f} mm" in text


def test_means_over_some_labels_are_written_beside_those_over_all(trained, run, out):
    summary_labels = [name for name, value in Dataset.load(trained.raw).labels.items() if value]
    assert run("--folds", 0, "--labels", summary_labels[0]) == 0
    found = json.loads((out / "1shot/results.json").read_text())
    summary = json.loads((out / "1shot/fold_0/summary.json").read_text())
    assert found["labels"] == {f"all {len(summary_labels)} labels": summary_labels, "1 labels": summary_labels[:1]}
    assert found["mean"]["1 labels"]["Dice"] == pytest.approx(summary["mean"]["1"]["Dice"])


def test_a_pair_is_registered_once_for_all_folds_and_levels(trained, run, out, fake, capsys):
    assert run() == 0
    assert len(fake.calls()) == 6
    before = (out / "1shot/results.json").read_text()
    assert run() == 0
    assert fake.calls() == []
    assert "1.5 s (registered before)" in capsys.readouterr().out
    assert (out / "1shot/results.json").read_text() == before
    assert run("--level", "2shot") == 0
    assert fake.calls() == []
    first, _, third = sorted(p.name[:-7] for p in (trained.raw / "labelsTr").iterdir())
    (out / f"propagated/{first}/{third}.nii.gz").unlink()
    assert run() == 0
    assert fake.calls() == [f"{first} to {third}"]


def test_majority_vote_takes_the_first_scans_label_in_a_tie(trained, run, out):
    maps = [np.array(values) for values in ([1, 1, 0, 1, 3], [2, 1, 2, 2, 1], [2, 0, 0, 3, 1])]
    assert ants_process.majority_vote(maps).tolist() == [2, 1, 0, 1, 1]
    assert ants_process.majority_vote(maps[::-1]).tolist() == [2, 1, 0, 3, 1]
    assert ants_process.majority_vote([np.array([v]) for v in (0, 1, 2, 2, 1)]).tolist() == [1]
    assert run("--level", "2shot", "--folds", 0) == 0
    first, _, third = sorted(p.name[:-7] for p in (trained.raw / "labelsTr").iterdir())
    made = read_labels(out / f"2shot/fold_0/{third}.nii.gz").array
    assert (made == copied(trained.raw, first, third)).all()


def test_a_registration_that_fails_counts_as_an_empty_label_map(trained, run, out, fake, capsys):
    first, second, third = sorted(p.name[:-7] for p in (trained.raw / "labelsTr").iterdir())
    fake.fail(second)
    assert run("--folds", 0) == 0
    reason = f"from {first}: all samples map outside the moving image"
    assert f"{second}: registration failed {reason}; its label map counts as empty" in capsys.readouterr().out
    assert not read_labels(out / f"1shot/fold_0/{second}.nii.gz").array.any()
    summary = json.loads((out / "1shot/fold_0/summary.json").read_text())
    assert summary["failed_registrations"] == {second: [reason]}
    dices = {case["case"]: [row["Dice"] for row in case["metrics"].values()] for case in summary["metric_per_case"]}
    assert set(dices[second]) == {0}
    assert max(dices[third]) > 0
    fake.calls()
    assert run("--folds", 0) == 0
    assert fake.calls() == []  # reported again, not run again
    assert reason in capsys.readouterr().out


def test_a_stopped_program_writes_nothing_and_can_be_continued(run, out, fake, capsys):
    fake.fail("stopped")
    assert run("--folds", 0) == 2
    assert "was stopped by signal 15" in capsys.readouterr().err
    assert not list(out.rglob("*.nii.gz"))
    fake.fail("")
    assert run("--folds", 0) == 0


def test_wrong_use_is_reported(trained, space, run, tmp_path, fake, capsys):
    def error_of(*more, **others):
        assert run(*more, **others) == 2
        return capsys.readouterr().err.strip()

    assert "--ants_python missing: is not a file; give the environment's bin/python" in error_of(python="missing")
    assert "cannot import ants (ModuleNotFoundError" in (message := error_of(python=sys.executable))
    assert "-m pip install antspyx==0.6.3" in message
    plain = tmp_path / "plain"
    plain.write_text("no program")
    assert f"--ants_python {plain}: cannot be run" in error_of(python=plain)
    assert "--folds 3: level 1shot has folds 0 to 2 here" in error_of("--folds", 3)
    assert "--folds -1: level 1shot has folds 0 to 2" in error_of("--folds", -1)
    assert "trains on all 3 scans and leaves none" in error_of("--level", "3shot")
    assert "use --level 1shot --cohort NAME" in error_of("--level", "1shot_report")
    assert "'lung' is not a label to score" in error_of("--labels", "lung")
    assert "are not those of MRBrainS18 or BTCV" in error_of("--labels", "paper")
    assert f"has no cohort 'report' for {trained.raw.name}" in error_of("--cohort", "report")
    assert not fake.calls()
    assert "dataset.json" in error_of(raw=tmp_path / "nowhere")
    edit(space.raw / "dataset.json", numTraining=5)
    assert "numTraining is 5" in error_of(raw=space.raw)


def test_label_maps_of_another_antspyx_are_rejected(run, tmp_path, capsys):
    assert run("--folds", 0) == 0
    other = Fake(tmp_path / "other", "0.5.0")
    assert run("--folds", 0, python=other.python) == 2
    assert "not with {'antspyx': '0.5.0'" in capsys.readouterr().err


def test_one_thread_unless_the_environment_sets_a_number(monkeypatch):
    monkeypatch.delenv(ants_process.THREADS, raising=False)
    assert ants_process.environment()[ants_process.THREADS] == "1"
    monkeypatch.setenv(ants_process.THREADS, "3")
    assert ants_process.environment()[ants_process.THREADS] == "3"


def test_the_worker_passes_its_arguments_to_ants(monkeypatch, capsys):
    given = {}
    stand_in = SimpleNamespace(
        image_read=lambda path: f"image {path}",
        config=SimpleNamespace(set_ants_deterministic=lambda **options: given.update(seed=options)),
        registration=lambda **options: given.update(registration=options) or {"fwdtransforms": ["warp", "affine"]},
        apply_transforms=lambda **options: given.update(apply=options) or "warped",
        image_write=lambda *options: given.update(written=options),
    )
    monkeypatch.setitem(sys.modules, "ants", stand_in)
    ants_worker.main(["f", "m", "l", "out", "SyN", "genericLabel", "1"])
    assert given["seed"] == {"on": False, "seed_value": 1}
    assert {**given["registration"], "outprefix": ""} == {
        "fixed": "image f", "moving": "image m", "type_of_transform": "SyN", "outprefix": ""
    }  # fmt: skip
    assert given["apply"] == {
        "fixed": "image f", "moving": "image l", "transformlist": ["warp", "affine"], "interpolator": "genericLabel"
    }  # fmt: skip
    assert given["written"] == ("warped", "out")
    assert math.isfinite(float(capsys.readouterr().out))
