"""Prediction on the workers of a dask scheduler: here one in this process, on loopback."""

from __future__ import annotations

import importlib.util
import logging
import pickle
import pkgutil
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from predicted import FIRST, SECOND, predict_into, record

import mre_lowshot
from mre_lowshot.data.dataset import Case
from mre_lowshot.errors import UserError
from mre_lowshot.inference.input_checks import Difference
from mre_lowshot.inference.predictor import Predictor
from mre_lowshot.workflows import cluster, cluster_client, cluster_worker
from mre_lowshot.workflows.case_writer import CaseWriter
from mre_lowshot.workflows.outputs import Request
from mre_lowshot.workflows.reporting import Reporter

distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.usefixtures("one_thread_only")


@pytest.fixture(scope="module")
def scheduler():
    """Address of a scheduler with one worker; what is sent is pickled as between machines."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    settings = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": ":0"}
    with distributed.LocalCluster(protocol="tcp", host="127.0.0.1", **settings) as made:
        yield made.scheduler_address


@pytest.fixture(scope="module")
def predicted(trained, tmp_path_factory) -> Path:
    """in/ with two scans, and out/, as a local run predicts them."""
    return predict_into(tmp_path_factory.mktemp("local"), trained)


@pytest.fixture(autouse=True)
def forget():
    cluster_worker._loaded.clear()


def predict(trained, predicted, out, scheduler, *options):
    return trained.predict(predicted / "in", out, "--scheduler", scheduler, *options)


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_files_and_record_are_those_of_a_local_run(trained, predicted, scheduler, tmp_path, monkeypatch, capsys):
    loads = []
    load = Predictor.load.__func__
    monkeypatch.setattr(
        Predictor, "load", classmethod(lambda c, *a, **k: loads.append(k["device"]) or load(c, *a, **k))
    )
    out = tmp_path / "out"
    assert predict(trained, predicted, out, scheduler, "--statistics", "--verbose") == 0
    assert loads == ["cpu", "cpu"]  # here for the plan, and once on the worker for both scans
    for name in (FIRST, SECOND):
        file = f"{name}.nii.gz"
        assert (out / file).read_bytes() == (predicted / "out" / file).read_bytes()
    assert set(names(out)) == {*names(predicted / "out"), "statistics.csv", "statistics.json"}
    assert (out / "quality.csv").read_text() == (predicted / "out/quality.csv").read_text()
    ours, local = record(out), record(predicted / "out")
    for name, entry in local["cases"].items():
        same = ("status", "outputs", "quality", "warnings", "crop", "reason")
        assert {key: ours["cases"][name][key] for key in same} == {key: entry[key] for key in same}
        assert ours["cases"][name]["worker"].startswith("tcp://127.0.0.1:")
    (run,) = ours["runs"].values()
    assert (run["status"], run["options"]["scheduler"]) == ("complete", scheduler)
    shown = capsys.readouterr().out
    assert f"scheduler: {scheduler}, 1 worker(s)" in shown
    assert f"2 of 2 scans segmented, label maps in {out}" in shown
    before = {file: (out / file).stat().st_mtime_ns for file in names(out)}
    assert predict(trained, predicted, out, scheduler, "--continue_prediction") == 0  # nothing is left
    assert all((out / f"{n}.nii.gz").stat().st_mtime_ns == before[f"{n}.nii.gz"] for n in (FIRST, SECOND))


def test_a_bad_scan_is_named_and_the_others_are_done(trained, predicted, scheduler, tmp_path, capsys):
    shutil.copytree(predicted / "in", tmp_path / "in")
    (tmp_path / "in/bad_0000.nii.gz").write_bytes(b"no image")
    assert trained.predict(tmp_path / "in", tmp_path / "out", "--scheduler", scheduler) == 1
    assert "failed: case bad: " in capsys.readouterr().err
    cases = record(tmp_path / "out")["cases"]
    assert {name: entry["status"] for name, entry in cases.items()} == {FIRST: "done", SECOND: "done", "bad": "failed"}
    assert not [name for name in names(tmp_path / "out") if name.startswith(".")]


def test_ctrl_c_cancels_and_the_next_run_goes_on(trained, predicted, scheduler, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def interrupted(self, future, case, writer, result=cluster.ClusterPredictor._result):
        if done:
            raise KeyboardInterrupt
        done.append(case.name)
        return result(self, future, case, writer)

    done = []
    with monkeypatch.context() as patch:
        patch.setattr(cluster.ClusterPredictor, "_result", interrupted)
        assert predict(trained, predicted, out, scheduler) == 130
    assert list(record(out)["cases"]) == done
    assert [run["status"] for run in record(out)["runs"].values()] == ["interrupted"]
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    assert predict(trained, predicted, out, scheduler, "--continue_prediction") == 0
    assert set(record(out)["cases"]) == {FIRST, SECOND}


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ("version", (), "has mre_lowshot 0.0.1, this is"),
        ("missing", (), "mre_lowshot is not installed in its environment"),
        ("folder", (), "does not see .*; all files must lie in folders that all machines see"),
        ("model", (), "are not those that the run began with"),
        ("", ("-device", "cuda"), "no worker of .* has the resource GPU"),
    ],
)
def test_unfit_workers_are_refused(
    change, options, message, trained, predicted, scheduler, tmp_path, monkeypatch, capsys
):
    def version(name):
        if change == "missing":
            raise ModuleNotFoundError(name=name.split(":")[0])
        return "0.0.1"

    if change in ("version", "missing"):
        monkeypatch.setattr(pkgutil, "resolve_name", version)
    if change == "folder":
        real = cluster_worker.examine

        def elsewhere(files, marker, content, *, dask_worker):
            return real(files, marker.with_name("elsewhere"), content, dask_worker=dask_worker)

        monkeypatch.setattr(cluster_client, "SHARED_SECONDS", 0)
        monkeypatch.setattr(cluster_client, "examine", elsewhere)
    if change == "model":
        monkeypatch.setattr(cluster, "hashes_of", lambda model: ("0" * 64,))
    assert predict(trained, predicted, tmp_path / "out", scheduler, *options) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.rglob("*.nii.gz"))


def test_a_worker_sees_the_same_files_or_says_so(tmp_path):
    worker = SimpleNamespace(state=SimpleNamespace(nthreads=2, total_resources={"GPU": 1}))
    scan, marker = tmp_path / "scan.nii", tmp_path / "marker"
    scan.write_bytes(b"scan")
    marker.write_text("content")
    assert cluster_worker.examine([(scan, 4)], marker, "content", dask_worker=worker) == ("", 2, {"GPU": 1})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["marker", "scan.nii"]
    for files, content, place in (([(scan, 5)], "content", scan), ([(scan, 4)], "other", tmp_path)):
        problem, _, _ = cluster_worker.examine(files, marker, content, dask_worker=worker)
        assert problem.startswith(cluster_worker.UNSEEN)
        assert str(place) in problem


class Future:
    """A `distributed.Future` that is done."""

    def __init__(self, status, failure=None):
        self.status, self.exception = status, lambda: failure


def test_lost_workers_fail_a_scan_and_a_lost_scheduler_ends_the_run(trained, tmp_path):
    model = trained.model()
    ours = cluster.ClusterPredictor("tcp://there:1", model, device="cpu", options={}, reporter=Reporter())
    writer = CaseWriter(tmp_path, Request(False, False, {}), None, ("CT",), {})
    case = Case("a", (tmp_path / "a.nii",))
    killed = distributed.scheduler.KilledWorker("key", None, 4)
    written = ours._result(Future("error", killed), case, writer)
    assert written.problem.startswith("case a: the workers that predicted it were lost")
    assert (written.folder, written.entry["status"]) == (None, "failed")
    assert "unexpected error (KeyError" in ours._result(Future("error", KeyError("x")), case, writer).problem
    with pytest.raises(UserError, match="is no longer reachable; what is finished is kept"):
        ours._result(Future("cancelled"), case, writer)


def test_an_unreachable_scheduler_and_a_missing_extra_are_refused(trained, predicted, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cluster_client, "CONNECT_SECONDS", 0.2)
    assert predict(trained, predicted, tmp_path / "out", "tcp://127.0.0.1:1") == 2
    assert "no dask scheduler answers within 0.2 s" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    for wrong in ("", 7, "a\0"):
        with pytest.raises(UserError, match=r"--scheduler .*: give the address"):
            mre_lowshot.predict(predicted / "in", tmp_path / "out", scheduler=wrong)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "distributed" else real(n, *a))
    assert predict(trained, predicted, tmp_path / "out", "tcp://127.0.0.1:1") == 2
    assert 'pip install -c constraints.txt -e ".[cluster]"' in capsys.readouterr().err


def test_warnings_keep_their_values_on_the_way():
    sent = pickle.loads(pickle.dumps(Difference("thick slices", name="spacing_z", value=5, training_range=(1, 2))))
    assert sent.to_json() == {
        "name": "spacing_z",
        "value": 5.0,
        "training_range": [1.0, 2.0],
        "warning": "thick slices",
    }
