"""Locks: the second run is refused with the owner; a lock whose owner is gone is removed."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager

import psutil
import pytest

from mre_lowshot import locks, processes
from mre_lowshot.errors import UserError
from mre_lowshot.files import remove_leftovers
from mre_lowshot.locks import holders, locked


@contextmanager
def held_elsewhere(folder, key, shared=False):
    """Another process holds the lock; yields it."""
    code = (
        "import sys, pathlib\nfrom mre_lowshot.locks import locked\n"
        f"with locked(pathlib.Path({str(folder)!r}), {key!r}, 'trains fold 7', shared={shared}):\n"
        "    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    pipe = subprocess.PIPE
    owner = subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True)
    try:
        assert owner.stdout.readline() == "held\n"
        yield owner
    finally:
        owner.stdin.close()
        owner.wait(30)


def test_a_second_run_is_refused_with_the_owner(tmp_path):
    with held_elsewhere(tmp_path, "fold_0") as owner:
        with pytest.raises(UserError) as refused, locked(tmp_path, "fold_0", "trains fold 0"):
            pass
        assert re.fullmatch(
            rf"{re.escape(str(tmp_path))}: in use by another run, which trains fold 7 \(process {owner.pid} on "
            rf"{re.escape(processes.host())}, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\); wait until it has ended",
            str(refused.value),
        )
        assert holders(tmp_path, "fold_") == ["fold_0"]
        assert holders(tmp_path, "plan_") == []
        with locked(tmp_path, "fold_1", "trains fold 1"):
            assert holders(tmp_path, "fold_") == ["fold_0"]  # one's own do not count
    with locked(tmp_path, "fold_0", "trains fold 0"):
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []


def test_readers_share_a_lock_and_exclude_a_writer(tmp_path):
    with held_elsewhere(tmp_path, "plan_A", shared=True):
        with locked(tmp_path, "plan_A", "trains", shared=True):
            pass
        with pytest.raises(UserError, match="in use by another run"), locked(tmp_path, "plan_A", "plans"):
            pass
        with locked(tmp_path, "plan_AB", "plans"), locked(tmp_path, "plan_", "plans"):
            pass
    with (
        held_elsewhere(tmp_path, "plan_A"),
        pytest.raises(UserError, match="in use by another run"),
        locked(tmp_path, "plan_A", "trains", shared=True),
    ):
        pass


def test_the_lock_of_a_killed_owner_is_removed(tmp_path):
    with held_elsewhere(tmp_path, "fold_3") as owner:
        owner.send_signal(signal.SIGKILL)
        owner.wait(30)
        assert len(list(tmp_path.iterdir())) == 1
        with locked(tmp_path, "fold_0", "trains fold 0"):  # whatever key the next run locks
            assert [p.name.split(".")[2] for p in tmp_path.iterdir()] == ["fold_0"]
        with locked(tmp_path, "fold_3", "trains fold 3"):
            pass
    assert list(tmp_path.iterdir()) == []


def entry_of(path, **changes):
    (own,) = path.glob(".mre-lock.*")
    entry = {**json.loads(own.read_text()), **changes}
    own.write_text(json.dumps(entry))
    return own


def test_a_number_used_again_by_another_process_is_no_owner(tmp_path):
    with locked(tmp_path, "a", "plans"):
        entry_of(tmp_path, started=processes.started() - 60)
        with locked(tmp_path, "a", "plans"):
            pass


def test_a_lock_from_before_the_machine_was_started_again_is_removed(tmp_path):
    with locked(tmp_path, "a", "plans"):
        entry_of(tmp_path, boot="another")
        with locked(tmp_path, "a", "plans"):
            pass


def test_a_corrected_clock_does_not_end_a_lock(tmp_path, monkeypatch):
    """Linux counts a process's start from that of the machine, whose time on the calendar moves with the clock."""
    with held_elsewhere(tmp_path, "a") as owner:
        create, boot = psutil.Process.create_time, psutil.boot_time
        monkeypatch.setattr(psutil.Process, "create_time", lambda self: create(self) + 3600)
        monkeypatch.setattr(psutil, "boot_time", lambda: boot() + 3600)
        with pytest.raises(UserError, match=f"process {owner.pid} "), locked(tmp_path, "a", "plans"):
            pass


def test_the_owner_on_another_machine_is_named_with_the_file_to_delete(tmp_path):
    with locked(tmp_path, "a", "plans"):
        path = entry_of(tmp_path, host="elsewhere", pid=1)
        with (
            pytest.raises(UserError, match=f"process 1 on elsewhere, .* or delete {path} if it no longer runs there"),
            locked(tmp_path, "a", "plans"),
        ):
            pass
        assert path.exists()


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", '{"host": 3, "pid": "x"}'])
def test_a_lock_file_with_other_content_does_not_lock(tmp_path, content):
    (tmp_path / f".mre-lock.a.{processes.host_tag()}.1.00000000.json").write_text(content)
    with locked(tmp_path, "a", "plans"):
        assert len(list(tmp_path.iterdir())) == 1


def test_folders_made_for_a_lock_are_removed_where_nothing_was_written(tmp_path):
    with pytest.raises(UserError, match="wrong"), locked(tmp_path / "results/D/model", "fold_0", "trains"):
        raise UserError("wrong")
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "results/D/model", "fold_0", "trains"):
        (tmp_path / "results/D/model/plans.json").write_text("{}")
    assert [p.name for p in (tmp_path / "results/D/model").iterdir()] == ["plans.json"]


def test_a_short_lock_is_waited_for(tmp_path, monkeypatch):
    with held_elsewhere(tmp_path, "model") as owner:
        monkeypatch.setattr(locks.time, "sleep", lambda _: owner.stdin.close() if not owner.stdin.closed else None)
        with locked(tmp_path, "model", "takes fold_0", wait=60):
            assert owner.wait(30) == 0


def test_two_of_many_that_begin_together_never_hold_the_same_lock(tmp_path):
    """Eight processes increase a counter in a file, without any other protection."""
    (tmp_path / "count").write_text("0")
    code = (
        "import pathlib, time\nfrom mre_lowshot.locks import locked\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "for _ in range(5):\n"
        "    with locked(folder, 'count', 'counts', wait=120):\n"
        "        n = int((folder / 'count').read_text())\n"
        "        time.sleep(0.005)\n"
        "        (folder / 'count').write_text(str(n + 1))\n"
    )
    started = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(4)]
    assert [process.wait(120) for process in started] == [0] * 4
    assert (tmp_path / "count").read_text() == "20"


def test_a_write_of_a_lock_that_was_killed_is_removed_by_the_next_run(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(locks.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt), locked(tmp_path, "a", "plans"):
            pass
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(processes, "is_running", lambda *_, **__: False)
    assert remove_leftovers(tmp_path) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_can_be_read(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with locked(tmp_path, "a", "trains", shared=True):
            pass
        with pytest.raises(UserError, match="cannot be written"), locked(tmp_path, "a", "plans"):
            pass
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("change", [{"time": 1e30}, {"time": -1e20}, {"time": float("nan")}, {"time": "x"}])
def test_a_lock_with_a_time_that_cannot_be_is_removed(tmp_path, change):
    entry = {"host": "elsewhere", "pid": 1, "started": 1.0, "time": 1.0, "doing": "predicts", "shared": False}
    path = tmp_path / f"{locks.PREFIX}.fold_0.0.1.0.json"
    path.write_text(json.dumps({**entry, **change}))
    with locked(tmp_path, "fold_0", "trains fold 0"):
        assert not path.exists()


def test_a_lock_of_hostile_content_is_removed_and_a_folder_of_its_name_ignored(tmp_path):
    path = tmp_path / f"{locks.PREFIX}.fold_0.0.1.0.json"
    path.write_text("[" * 100_000)
    (tmp_path / f"{locks.PREFIX}.fold_0.0.1.1.json").mkdir()
    with locked(tmp_path, "fold_0", "trains fold 0"):
        assert not path.exists()


def test_a_lock_that_cannot_be_written_leaves_no_file(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(locks.os, "replace", fail)
    message = r"cannot be written \(No space left on device, .* free\); make space"
    with pytest.raises(UserError, match=message), locked(tmp_path, "fold_0", "trains fold 0"):
        pass
    assert list(tmp_path.iterdir()) == []
