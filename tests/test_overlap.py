"""Several scans in work at the same time: the same results in the same order, bounded memory, and an end at once."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import one_thread

from benchmarks.start import start
from mre_lowshot.data.dataset import Case
from mre_lowshot.data.volume import Volume
from mre_lowshot.errors import UserError
from mre_lowshot.inference import memory, overlap
from mre_lowshot.inference.memory import MemoryOfCases, prediction_bytes
from mre_lowshot.inference.overlap import Turns, in_order
from mre_lowshot.inference.predictor import Predictor
from mre_lowshot.limits import require_memory
from mre_lowshot.workflows.first_scan import FirstScan

NAMES = ["phantom_001", "phantom_002", "phantom_003"]


def run(items, work, *, threads=2, admit=lambda held: True, short=lambda result: False):
    return in_order(items, work, threads=threads, admit=admit, short=short)


def test_results_come_in_order_and_two_items_are_in_work_at_once():
    meeting = threading.Barrier(2, timeout=20)

    def work(item):
        if item < 2:
            meeting.wait()  # both must be in work
        time.sleep(0.02 * (item % 2))
        return item, threading.current_thread() is threading.main_thread()

    assert list(run(range(7), work)) == [(n, False) for n in range(7)]
    for threads, items in ((1, range(3, 6)), (4, [3])):  # nothing to gain: in this thread
        assert list(run(items, work, threads=threads)) == [(n, True) for n in items]


@pytest.mark.parametrize("problem", [UserError("damaged"), KeyboardInterrupt()])
def test_what_a_thread_raises_is_raised_where_its_result_is_taken(problem):
    def work(item):
        if item == 1:
            raise problem
        return item

    with closing(run(range(3), work)) as found:
        assert next(found) == 0
        with pytest.raises(type(problem)):
            next(found)


def test_items_that_need_too_much_memory_together_are_not_held_together():
    sizes, working, most, lock = [1, 6, 6, 1, 1, 9], set(), [], threading.Lock()

    def work(item):
        with lock:
            working.add(item)
            most.append(sum(sizes[n] for n in working))
        time.sleep(0.01)
        with lock:
            working.remove(item)
        return item

    def admit(held):
        return sum(sizes[n] for n in held) <= 7

    assert list(run(range(6), work, threads=3, admit=admit)) == list(range(6))
    assert 2 <= max(most) <= 9
    assert not [found for found in most if found > 7 and found != 9]  # a single item is always worked on


def test_an_item_that_memory_was_short_for_is_done_again_alone():
    working, alone = [], []

    def work(item):
        working.append(item)
        try:
            time.sleep(0.01)
            if item != 2:
                return item
            first = not alone
            alone.append(threading.current_thread() is threading.main_thread() and working == [2])
            return "short" if first else item
        finally:
            working.remove(item)

    assert list(run(range(4), work, threads=3, short=lambda result: result == "short")) == [0, 1, 2, 3]
    assert alone == [False, True]
    assert list(run([5, 6], lambda item: "short", threads=1, short=lambda result: True)) == ["short", "short"]


def test_results_that_were_taken_are_not_kept():
    class Result:
        pass

    alive, counts = weakref.WeakSet(), []

    def work(item):
        alive.add(made := Result())
        return made

    for one in run(range(8), work):
        del one
        counts.append(len(alive))
    assert max(counts) <= 2 + overlap.WAITING


def test_an_iteration_that_is_ended_early_stops_its_threads():
    begun = threading.Semaphore(0)

    def endless(item):
        begun.release()
        while item:
            time.sleep(0.01)
        return item

    found = run([0, 1, 2, 3], endless)
    assert next(found) == 0
    for _ in range(3):
        assert begun.acquire(timeout=20)
    found.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("scan ")]


def test_turns_let_items_pass_in_order_also_past_those_that_never_come():
    turns, passed = Turns(), []

    def work(item):
        time.sleep(0.02 * (3 - item))  # the last one comes first
        if item == 1:
            turns.end(item)
            return
        with turns.turn(item):
            passed.append(item)

    list(run(range(4), work, threads=4))
    assert passed == [0, 2, 3]
    with turns.turn(2):  # again, after its turn
        pass


@pytest.fixture(scope="module")
def cases(trained):
    return [Case(name, (trained.raw / f"imagesTr/{name}_0000.nii.gz",)) for name in NAMES]


def test_predictions_are_the_same_to_the_bit_whatever_is_in_work_meanwhile(trained, cases, tmp_path):
    predictor, found = Predictor.load(trained.model(), device="cpu"), []
    absent = Case("absent", (tmp_path / "absent_0000.nii.gz",))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for ahead in (0, 2):
            outcomes = list(predictor.predict_cases([*cases[:2], absent], ahead=ahead))
            assert [outcome.case.name for outcome in outcomes] == [*NAMES[:2], "absent"]
            assert outcomes[2].problem.startswith("case absent: ")
            assert list(outcomes[0].seconds) == ["read", "preprocess", "register", "network", "refine", "export"]
            found.append([outcome.prediction for outcome in outcomes[:2]])
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*found, strict=True):
        assert np.array_equal(one.refined.probabilities, other.refined.probabilities)
        assert np.array_equal(one.labels.array, other.labels.array)
        assert one.quality == other.quality


def test_scans_are_compared_with_the_memory_before_they_are_read(trained, cases, monkeypatch):
    """The estimate covers that of the prediction, and small scans are admitted together, large ones are not."""
    with one_thread():
        predictor = Predictor.load(trained.model(), device="cpu")
    prepared = predictor.preprocess(Volume.read(*cases[0].images), name="one")
    known = prediction_bytes(prepared.transform, channels=1, classes=predictor.plan.network.classes, atlases=1)
    needed = MemoryOfCases(predictor.model).bytes_of(cases[0])
    assert needed >= known
    for share, admitted in ((0.4, 1), (0.7, 2), (1.1, 3)):
        monkeypatch.setenv("MRE_MEMORY_GB", str(3 * share * needed / memory.SHARED_MEMORY / 1e9))
        counted, same = MemoryOfCases(predictor.model), [Case(name, cases[0].images) for name in NAMES]
        assert [n for n in (1, 2, 3) if counted.admit(same[:n])] == list(range(1, admitted + 1))
    assert MemoryOfCases(predictor.model).bytes_of(Case("absent", (Path("absent_0000.nii.gz"),))) == 0


def test_a_scan_refused_for_memory_is_marked_and_keeps_its_message(trained, cases, monkeypatch):
    predictor = Predictor.load(trained.model(), device="cpu")

    def refused(*arguments, **options):
        require_memory(1e30, "case phantom_001: this", "crop the scan")

    monkeypatch.setattr("mre_lowshot.preprocessing.pipeline.check_grid", refused)
    (outcome,) = predictor.predict_cases(cases[:1])
    assert outcome.memory_short
    assert "needs 1e+21 GB of memory" in outcome.problem


def test_the_first_scan_is_passed_on_once_and_only_while_its_file_is_the_same(trained, cases, tmp_path, monkeypatch):
    read, scans = [], trained.raw / "imagesTr"
    monkeypatch.setattr("mre_lowshot.workflows.first_scan.read_case", lambda case: read.append(case.name) or case.name)

    def first(**options):
        made = FirstScan()
        made.begin(scans, trained.model(), output=tmp_path, **options)
        return made

    found = first()
    assert [found.read(case) for case in (cases[1], cases[0], cases[0])] == [NAMES[1], NAMES[0], NAMES[0]]
    assert sorted(read) == [NAMES[0], NAMES[0], NAMES[1]]  # the second time it is read again
    read.clear()
    assert first(part_id=2).read(cases[2]) == NAMES[2]
    assert read == [NAMES[2]]
    found = first()
    found.expect(cases[1:])  # another case comes first: nothing is kept
    assert (found._found, found.read(cases[0])) == ([], NAMES[0])
    read.clear()
    found = first()
    found.expect(cases)
    found._states = ()  # the file has changed
    assert found.read(cases[0]) == NAMES[0]
    assert len(read) == 2
    assert FirstScan().read(cases[0]) == NAMES[0]
    for inputs in (tmp_path / "absent", tmp_path):  # whatever is wrong is found later
        made = FirstScan()
        made.begin(inputs, trained.model(), output=tmp_path)
        assert made.read(cases[0]) == NAMES[0]


def test_the_first_scan_is_read_before_anything_heavy_is_loaded(trained, cases):
    """Counted in a process of its own, when the scan's file is opened. torch is being imported meanwhile."""
    loaded = start(trained.model(), cases[0].images[0], last="read")["read"].loaded
    assert set(loaded) <= {"numpy", "pydicom", "torch"}


@pytest.mark.slow
def test_no_compiler_is_loaded_with_the_model(trained, cases):
    """torch loads torch._dynamo and sympy for some operations on its meta device, which takes seconds."""
    loaded = start(trained.model(), cases[0].images[0])["stages"].loaded
    assert "torch" in loaded
    assert not {"torch._dynamo", "sympy", "matplotlib", "batchgenerators", "distributed"} & set(loaded)


WAITS = f"""
import sys, time
from mre_lowshot.inference.predictor import Predictor
register = Predictor.register
def waits(self, prepared, **options):
    while prepared.name != {NAMES[0]!r}:
        time.sleep(0.01)
    return register(self, prepared, **options)
Predictor.register = waits
from mre_lowshot.cli.predict import main
raise SystemExit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_scans_in_work_and_keeps_what_is_finished(trained, tmp_path, number):
    scans, out = trained.raw / "imagesTr", tmp_path / "out"
    command = [sys.executable, "-c", WAITS, "--workspace", trained.root, "-device", "cpu", "-i", scans, "-o", out]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    running = subprocess.Popen(map(str, command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    while not (out / "quality.csv").is_file():
        assert running.poll() is None, running.stderr.read()
        time.sleep(0.05)
    begun = time.monotonic()
    running.send_signal(number)
    assert running.wait() == 128 + number
    assert time.monotonic() - begun < 20
    assert running.stderr.read().decode() == f"interrupted{'' if number == signal.SIGINT else ' by SIGTERM'}\n"
    found = json.loads((out / "run.json").read_text())
    assert [run["status"] for run in found["runs"].values()] == ["interrupted"]
    assert list(found["cases"]) == [NAMES[0]]
    assert not list(out.glob(".mre*"))
    with one_thread():
        assert trained.predict(scans, out, "--continue_prediction") == 0
    assert len(list(out.glob("*.nii.gz"))) == 3
