"""``mre_predict`` when something fails: each scan is on its own, earlier results stay, and memory stays flat."""

import csv
import gc
import os
import signal
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import psutil
import pytest
import torch
from predicted import content, record

import mre_lowshot.workflows.case_files as case_files
import mre_lowshot.workflows.prediction_run as prediction_run
from mre_lowshot.data.volume import Volume, read_labels
from mre_lowshot.inference.export import Prediction
from mre_lowshot.inference.predictor import NetworkOutput, Predictor, RegisteredScan
from mre_lowshot.inference.quality import Quality, estimate_quality, read_rows, write_qualities
from mre_lowshot.inference.record import FileState, RunRecord
from mre_lowshot.report.figures import overlay

pytestmark = pytest.mark.usefixtures("one_thread_only", "no_settings")
NAMES = ["phantom_001", "phantom_002", "phantom_003"]
TEXTS = ("dseg.tsv", "label_descriptions.txt")


@pytest.fixture
def quick(monkeypatch):
    """No registration and no network: the posterior is a function of the image."""

    def run_network(self, scan, *, progress=None):
        image = torch.from_numpy(scan.prepared.image)
        posterior = torch.full((self.plan.network.classes, *image.shape[1:]), 0.01)
        posterior[0], posterior[1] = image[0] < image[0].mean(), image[0] >= image[0].mean()
        return NetworkOutput(scan, image, posterior, None, estimate_quality(posterior, None))

    monkeypatch.setattr(Predictor, "register", lambda self, scan, previous=None: RegisteredScan(scan, [None]))
    monkeypatch.setattr(Predictor, "run_network", run_network)


def only_for(name, method, problem):
    """``method`` of a stage that raises ``problem`` for one case; the case is found in its arguments."""

    def fails(*arguments, **options):
        if any(name in str(getattr(getattr(a, "prepared", a), "name", a)) for a in arguments):
            raise problem
        return method(*arguments, **options)

    return fails


STAGES = [
    (Volume, "read"), (Predictor, "preprocess"), (Predictor, "register"), (Predictor, "run_network"),
    (Predictor, "refine"), (Predictor, "export"), (Prediction, "save"),
]  # fmt: skip
PROBLEMS = [RuntimeError("ITK\nfailed"), MemoryError(), OverflowError("too large"), OSError(5, "I/O error", "x"),
            ValueError("shapes"), torch.OutOfMemoryError("CUDA out of memory"), RecursionError("deep"), KeyError("k"),
            np.linalg.LinAlgError("singular"), ZeroDivisionError()]  # fmt: skip


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: type(p).__name__)
def test_any_failure_of_a_scan_is_named_and_the_others_are_predicted(
    problem, trained, tmp_path, quick, monkeypatch, capsys
):
    owner, stage = STAGES[PROBLEMS.index(problem) % len(STAGES)]
    wraps = staticmethod if stage == "read" else (lambda method: method)
    monkeypatch.setattr(owner, stage, wraps(only_for(NAMES[1], getattr(owner, stage), problem)))
    assert trained.predict(trained.raw / "imagesTr", tmp_path / "out") == 1
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("failed: ")]
    assert line.startswith(f"failed: case {NAMES[1]}: ")
    assert "Traceback" not in captured.err
    assert "2 of 3 scans segmented" in captured.out
    found = record(tmp_path / "out")
    assert [found["cases"][name]["status"] for name in NAMES] == ["done", "failed", "done"]
    assert f"failed: {found['cases'][NAMES[1]]['reason']}" == line
    assert [run["status"] for run in found["runs"].values()] == ["failed"]
    assert sorted(p.name for p in (tmp_path / "out").glob("*.nii.gz")) == [f"{n}.nii.gz" for n in (NAMES[0], NAMES[2])]
    assert not list((tmp_path / "out").glob(".mre*"))


def test_a_traceback_of_a_failed_scan_is_shown_on_request(trained, tmp_path, quick, monkeypatch, capsys):
    monkeypatch.setattr(Predictor, "refine", only_for(NAMES[1], Predictor.refine, IndexError("far")))
    monkeypatch.setenv("MRE_TRACEBACK", "1")
    assert trained.predict(trained.raw / "imagesTr", tmp_path / "out") == 1
    assert "IndexError: far" in capsys.readouterr().err


def test_an_overlay_that_cannot_be_drawn_costs_no_label_map(trained, tmp_path, quick, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(case_files, "draw_case", only_for(NAMES[1], case_files.draw_case, OSError(28, "No space")))
        assert trained.predict(trained.raw / "imagesTr", tmp_path / "out", "--overlays") == 1
    captured = capsys.readouterr()
    assert "3 of 3 scans segmented" in captured.out
    assert f"failed: case {NAMES[1]}: " in captured.err
    assert (tmp_path / f"out/{NAMES[1]}.nii.gz").exists()
    assert record(tmp_path / "out")["cases"][NAMES[1]]["status"] == "failed"
    assert trained.predict(trained.raw / "imagesTr", tmp_path / "out", "--overlays", "--continue_prediction") == 0
    assert len(list((tmp_path / "out/overlays").iterdir())) == 3


def test_a_disk_that_is_full_for_a_while_costs_the_scans_of_that_while(trained, tmp_path, quick, monkeypatch, capsys):
    """Earlier label maps stay, and no file is cut off; the run goes on."""
    scans, out = trained.raw / "imagesTr", tmp_path / "out"
    assert trained.predict(scans, out) == 0
    before, fsync, full = content(out), os.fsync, []
    preprocess = Predictor.preprocess

    def noted(self, volume, *, name, crop=None):
        full[:] = [name] if name == NAMES[1] else []
        return preprocess(self, volume, name=name, crop=crop)

    def refuses(number):
        if full:
            raise OSError(28, "No space left on device")
        fsync(number)

    monkeypatch.setattr(Predictor, "preprocess", noted)
    monkeypatch.setattr(os, "fsync", refuses)
    capsys.readouterr()
    assert trained.predict(scans, out, "--save_probabilities") == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed: ")]
    path = out / f"{NAMES[1]}.nii.gz"
    assert line.startswith(f"failed: case {NAMES[1]}: {path}: cannot be written (No space left on device, ")
    assert "GB free); make space or give a folder on another disk" in line
    assert line.endswith(f"({path.name} is of an earlier run)")
    assert content(out)[path.name] == before[path.name]
    assert sorted(p.name for p in out.glob("*.npz")) == [f"{n}.npz" for n in (NAMES[0], NAMES[2])]
    full.clear()
    monkeypatch.setattr(Predictor, "preprocess", preprocess)
    assert trained.predict(scans, out, "--save_probabilities", "--continue_prediction") == 0
    assert len(list(out.glob("*.npz"))) == 3


def python(space, code, *arguments, limit=""):
    """Run mre_predict in a process of its own, after ``code``."""
    script = f"""
import resource, signal, sys
from mre_lowshot.atlas.registration import affine
affine.STARTS = (0.0,)
{code}
from mre_lowshot.cli.predict import main
{limit}
raise SystemExit(main(sys.argv[1:]))
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, "--workspace", str(space.root), "-device", "cpu", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_a_true_write_error_leaves_the_earlier_label_map(trained, tmp_path):
    """The system refuses to write more than 16 kB to a file; an uncompressed label map takes 31 kB."""
    (tmp_path / "in").mkdir()
    image = nibabel.load(trained.raw / f"imagesTr/{NAMES[1]}_0000.nii.gz")
    nibabel.save(nibabel.Nifti1Image(image.get_fdata(dtype=np.float32), image.affine), tmp_path / "in/a.nii")
    arguments = ["-i", tmp_path / "in", "-o", tmp_path / "out"]
    assert trained.predict(*(tmp_path / name for name in ("in", "out"))) == 0
    before = (tmp_path / "out/a.nii").read_bytes()
    assert len(before) > 20_000
    limit = "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (16000, 16000))"
    running = python(trained, "", *arguments, limit=limit)
    out, err = running.communicate()
    assert running.returncode == 1
    assert "0 of 1 scans segmented" in out
    assert [line for line in err.splitlines() if line.startswith("failed: ")] == err.splitlines()[-1:]
    assert f"case a: {tmp_path / 'out/a.nii'}: cannot be written" in err
    assert (tmp_path / "out/a.nii").read_bytes() == before
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.nii", *TEXTS, "quality.csv", "run.json"]


SLEEPS = f"""
import time
from mre_lowshot.inference.predictor import Predictor
register = Predictor.register
def waits(self, prepared, **options):
    if prepared.name == {NAMES[1]!r}:
        print("ready", flush=True)
        time.sleep(60)
    return register(self, prepared, **options)
Predictor.register = waits
"""


def test_sigterm_leaves_what_is_finished_and_nothing_else(trained, tmp_path):
    scans, out = trained.raw / "imagesTr", tmp_path / "out"
    running = python(trained, SLEEPS, "-i", scans, "-o", out)
    while running.stdout.readline() != "ready\n":
        assert running.poll() is None, running.stderr.read()
    running.send_signal(signal.SIGTERM)
    assert running.wait() == 143
    assert running.stderr.read() == "interrupted by SIGTERM\n"
    assert {p.name for p in out.iterdir()} == {f"{NAMES[0]}.nii.gz", *TEXTS, "quality.csv", "run.json"}
    found = record(out)
    assert list(found["cases"]) == [NAMES[0]]
    assert [run["status"] for run in found["runs"].values()] == ["interrupted"]
    assert trained.predict(scans, out, "--continue_prediction") == 0
    assert len(record(out)["cases"]) == 3


@pytest.mark.parametrize("moment", ["before the first file", "after the first file"])
def test_a_run_killed_while_files_get_their_names_may_be_repeated(moment, trained, tmp_path, quick, monkeypatch):
    """run.json lists the files before they have their names: neither the old nor the new ones count as the user's."""

    class Killed(BaseException):
        pass

    scans, out, replace_file, done = trained.raw / "imagesTr", tmp_path / "out", os.replace, []
    assert trained.predict(scans, out) == 0

    def killed(source, target):
        if Path(target).name == f"{NAMES[1]}.nii.gz" and Path(target).parent == out:
            if moment == "after the first file":
                replace_file(source, target)
            raise Killed
        replace_file(source, target)

    wanted = {name: read_labels(out / f"{name}.nii.gz").array for name in NAMES}
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        patch.setattr(prediction_run.PredictionRun, "_finish", lambda self, status: done.append(status))
        with pytest.raises(Killed):
            trained.predict(scans, out, "--overlays")
    assert done == ["interrupted"]
    assert trained.predict(scans, out, "--overlays", "--continue_prediction") == 0
    assert trained.predict(scans, out, "--overlays") == 0
    for name in NAMES:
        assert np.array_equal(read_labels(out / f"{name}.nii.gz").array, wanted[name])


def test_notes_of_the_reader_are_warnings_of_the_case(trained, tmp_path, quick, monkeypatch, capsys):
    read = Volume.read
    monkeypatch.setattr(Volume, "read", staticmethod(lambda *p: replace(read(*p), notes=(f"header of {p[0].name}",))))
    assert trained.predict(trained.raw / "imagesTr", tmp_path / "out") == 0
    assert f"warning: case {NAMES[1]}: header of {NAMES[1]}_0000.nii.gz" in capsys.readouterr().err
    assert f"header of {NAMES[1]}_0000.nii.gz" in record(tmp_path / "out")["cases"][NAMES[1]]["warnings"]
    rows = {row["case"]: row["warnings"] for row in csv.DictReader((tmp_path / "out/quality.csv").open())}
    assert f"header of {NAMES[2]}_0000.nii.gz" in rows[NAMES[2]]


def test_an_empty_label_map_is_a_warning_everywhere(trained, tmp_path, quick, monkeypatch, capsys):
    network = Predictor.run_network

    def empty(self, scan, *, progress=None):
        output = network(self, scan)
        if scan.prepared.name != NAMES[1]:
            return output
        posterior = torch.zeros_like(output.posterior)
        posterior[0] = 1
        return replace(output, posterior=posterior)

    monkeypatch.setattr(Predictor, "run_network", empty)
    text = "the label map is empty: no structure was found in the scan"
    assert trained.predict(trained.raw / "imagesTr", tmp_path / "out") == 0
    assert f"warning: case {NAMES[1]}: {text}" in capsys.readouterr().err
    assert [text in record(tmp_path / "out")["cases"][name]["warnings"] for name in NAMES] == [False, True, False]
    rows = {row["case"]: row["warnings"] for row in csv.DictReader((tmp_path / "out/quality.csv").open())}
    assert [text in rows[name] for name in NAMES] == [False, True, False]


def test_names_of_every_kind(trained, tmp_path, quick, capfd):
    """As long as the file system allows, with signs that fonts, formulas and encodings do not have."""
    names = ["x" * 248, "é頭 $a_{b$", "$x^$", "-o", "a;b'\"&"]
    (tmp_path / "in").mkdir()
    for name in names:
        ending = ".nii" if name.startswith("x") else ".nii.gz"
        image = nibabel.load(trained.raw / f"imagesTr/{NAMES[1]}_0000.nii.gz")
        target = tmp_path / f"in/{name}{ending}"
        nibabel.save(image, tmp_path / f"in/a{ending}")
        os.replace(tmp_path / f"in/a{ending}", target)
    options = ("--overlays", "--save_probabilities")
    assert trained.predict(tmp_path / "in", tmp_path / "out", *options) == 0
    assert "Glyph" not in capfd.readouterr().err
    assert set(record(tmp_path / "out")["cases"]) == set(names)
    for name in names:
        assert (tmp_path / f"out/overlays/{name}.png").stat().st_size > 1000
        assert (tmp_path / f"out/{name}.npz").exists()
    rows = [row["case"] for row in csv.DictReader((tmp_path / "out/quality.csv").open(encoding="utf-8"))]
    assert sorted(rows) == sorted(name.encode("utf-8", "backslashreplace").decode() for name in names)
    assert trained.predict(tmp_path / "in", tmp_path / "out", *options, "--continue_prediction") == 0
    assert len(list(csv.DictReader((tmp_path / "out/quality.csv").open(encoding="utf-8")))) == len(rows)


def test_a_name_that_is_no_utf8_is_escaped_in_tables_and_kept_in_the_record(tmp_path):
    name, quality = os.fsdecode(b"byte_\xff"), Quality("agreement", 0.5, {1: 0.5})
    for _ in range(2):
        found = RunRecord(tmp_path, "run.json", {"input": name})
        found.add(name, {"status": "done"}, [FileState(f"{name}.nii", 3, "00")])
        write_qualities(tmp_path, {name: quality}, {"background": 0, name: 1}, warnings={name: (name,)})
    assert name in RunRecord(tmp_path, "run.json", {})
    assert list(read_rows(tmp_path / "quality.csv")) == ["byte_\\udcff"]
    overlay(tmp_path / f"{name}.png", np.zeros((1, 8, 8)), None, np.ones((1, 8, 8), int), {name: 1}, (1, 1, 1), name)
    assert (tmp_path / f"{name}.png").exists()


@pytest.mark.slow
def test_many_scans_take_no_more_memory_than_few(trained, tmp_path, quick, monkeypatch):
    """500 scans in one call: no prediction outlives its scan, and the process does not grow."""
    (tmp_path / "in").mkdir()
    image = nibabel.Nifti1Image(
        np.random.default_rng(0).normal(size=(64, 64, 32), scale=300).astype(np.float32), np.diag([2, 2, 2, 1])
    )
    nibabel.save(image, tmp_path / "in/s000.nii")
    for number in range(1, 500):
        os.link(tmp_path / "in/s000.nii", tmp_path / f"in/s{number:03d}.nii")
    alive, most, sizes = weakref.WeakSet(), [0], []
    export = Predictor.export

    def counted(self, refined):
        gc.collect(0)
        prediction = export(self, refined)
        alive.add(refined)
        most[0] = max(most[0], len(alive))
        sizes.append(psutil.Process().memory_info().rss)
        return prediction

    monkeypatch.setattr(Predictor, "export", counted)
    monkeypatch.setattr("mre_lowshot.inference.export.RefinedScan.__hash__", object.__hash__)
    assert trained.predict(tmp_path / "in", tmp_path / "out") == 0
    assert len(record(tmp_path / "out")["cases"]) == len(sizes) == 500
    assert most[0] <= 2
    early, most_after = sizes[50] / 1e6, max(sizes[50:]) / 1e6
    print(f"resident memory after 50 of 500 scans: {early:.0f} MB, most after that {most_after:.0f} MB")
    assert most_after - early < 30  # what one scan leaves behind would be 500 KB and more, 225 MB in all
