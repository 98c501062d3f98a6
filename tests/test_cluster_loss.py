"""A scheduler and three workers as processes on loopback, one of them killed in the middle of a run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from predicted import record

from benchmarks.cluster import processes

pytest.importorskip("distributed")
COUNT = 60


def cases_in(out: Path) -> dict:
    try:
        return json.loads((out / "run.json").read_text())["cases"]
    except (OSError, ValueError):
        return {}


@pytest.mark.slow
@pytest.mark.usefixtures("all_starts")  # as in the workers
def test_sixty_scans_survive_the_loss_of_a_worker(trained, tmp_path, capsys):
    """None is lost, none is done twice in the record, and the label maps are those of a local run."""
    scans, out = tmp_path / "in", tmp_path / "out"
    scans.mkdir()
    for number in range(COUNT):
        source = trained.raw / f"imagesTr/phantom_00{1 + number % 3}_0000.nii.gz"
        shutil.copy(source, scans / f"scan_{number:02}_0000.nii.gz")
    for number in range(3):
        local = tmp_path / "local_in"
        local.mkdir(exist_ok=True)
        shutil.copy(scans / f"scan_{number:02}_0000.nii.gz", local)
    assert trained.predict(local, tmp_path / "local") == 0
    killed: list[int] = []
    with processes(tmp_path, workers=3) as (scheduler, workers):

        def kill() -> None:
            while len(cases_in(out)) < COUNT // 4:
                time.sleep(0.1)
            os.kill(workers[0].pid, signal.SIGKILL)
            killed.append(len(cases_in(out)))

        thread = threading.Thread(target=kill, daemon=True)
        thread.start()
        assert trained.predict(scans, out, "--scheduler", scheduler) == 0
        assert killed
        assert killed[0] < COUNT
    assert f"{COUNT} of {COUNT} scans segmented" in capsys.readouterr().out
    found = record(out)
    names = [f"scan_{number:02}" for number in range(COUNT)]
    assert sorted(found["cases"]) == names
    assert {entry["status"] for entry in found["cases"].values()} == {"done"}
    assert len({entry["worker"] for entry in found["cases"].values()}) == 3
    rows = (out / "quality.csv").read_text().splitlines()[1:]
    assert sorted(row.split(",")[0] for row in rows) == names
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]
    for number, name in enumerate(names):
        local_map = tmp_path / f"local/scan_{number % 3:02}.nii.gz"
        assert (out / f"{name}.nii.gz").read_bytes() == local_map.read_bytes(), name
        assert found["cases"][name]["earlier_outputs"] == []
