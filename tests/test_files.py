"""Files appear whole or not at all; what killed runs left is removed; nothing of another's is."""

import errno
import json
import os
import resource
import subprocess
import sys

import numpy as np
import pytest

from mre_lowshot import files, processes
from mre_lowshot.errors import NumericalError, UserError, describe_failure
from mre_lowshot.files import atomic_write, copy, partial_name, remove_folder, remove_leftovers, verify_zip


def test_a_file_that_fails_half_way_leaves_the_earlier_one(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("earlier")

    def write_half(failure):
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise failure

    for failure in (KeyboardInterrupt, ValueError, UserError):
        with pytest.raises(failure):
            write_half(failure)
    assert path.read_text() == "earlier"
    with atomic_write(path) as temporary:
        temporary.write_text("later")
    assert path.read_text() == "later"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, r"cannot be written \(No space left on device, .* GB free\); make space or give a folder on"),
        (errno.EACCES, r"cannot be written \(Permission denied\); give a folder that can be written to"),
        (errno.ENAMETOOLONG, r"\(File name too long\); shorten the name"),
    ],
)
def test_a_failing_system_is_one_sentence_with_the_file(tmp_path, number, words):
    with pytest.raises(UserError, match=f"^{tmp_path / 'a.txt'}: .*{words}"), atomic_write(tmp_path / "a.txt"):
        raise OSError(number, os.strerror(number))


def test_what_does_not_pass_the_check_gets_no_name(tmp_path):
    def refuse(path):
        assert path.read_text() == "new"
        raise OSError(errno.EIO, "read back, it differs")

    with pytest.raises(UserError, match="read back, it differs"), atomic_write(tmp_path / "a", refuse) as temporary:
        temporary.write_text("new")
    assert list(tmp_path.iterdir()) == []


def test_a_name_as_long_as_the_file_system_allows_is_written(tmp_path):
    path = tmp_path / ("x" * 248 + ".nii.gz")
    files.write_text(path, "whole")
    assert path.read_text() == "whole"
    with pytest.raises(UserError, match="shorten the name"):
        files.write_text(tmp_path / ("x" * 256), "")


def test_only_leftovers_of_processes_that_are_gone_are_removed(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    own, tag = partial_name(tmp_path / "a.npz"), processes.host_tag()
    assert own.endswith(".npz")
    dead = [f".mre-partial.{tag}.{gone.pid}.0123abcd{ending}" for ending in ("", ".nii.gz", ".pth")]
    others = [".mre-partial.00000000.1.0123abcd", ".partial.x", "mine.npz", ".mre-partial.txt", own]
    for name in (*dead[:2], *others):
        (tmp_path / name).write_text("")
    (tmp_path / dead[2]).mkdir()
    (tmp_path / dead[2] / "checkpoint_latest.pth").write_text("")
    assert remove_leftovers(tmp_path) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(others)
    assert remove_leftovers(tmp_path / "absent") == 0


def test_a_folder_is_renamed_before_it_is_deleted(tmp_path, monkeypatch):
    folder = tmp_path / "fold_0"
    (folder / "validation").mkdir(parents=True)
    (folder / "checkpoint_final.pth").write_text("")
    with monkeypatch.context() as patch:
        patch.setattr(files.shutil, "rmtree", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
        with pytest.raises(UserError, match=r"fold_0: cannot be deleted \(broken\)"):
            remove_folder(folder)
    assert not folder.exists()  # no half of it counts
    monkeypatch.setattr(processes, "is_running", lambda *_, **__: False)
    assert remove_leftovers(tmp_path) == 1
    assert list(tmp_path.iterdir()) == []
    remove_folder(folder)  # absent: nothing to do


def test_copies_are_whole_and_unreadable_sources_are_named(tmp_path):
    (tmp_path / "a").write_bytes(os.urandom(3 << 20))
    copy(tmp_path / "a", tmp_path / "sub/b")
    assert files.sha256(tmp_path / "sub/b") == files.sha256(tmp_path / "a")
    with pytest.raises(UserError, match="absent: cannot be read"):
        copy(tmp_path / "absent", tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_zip_file_is_verified_to_its_end(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, a=np.arange(999), b=np.ones(9))
    verify_zip(path)
    whole = path.read_bytes()
    for at in (140, len(whole) // 2, len(whole) - 260):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(OSError, match="read back"):
            verify_zip(path)
    path.write_bytes(whole[:-5])
    with pytest.raises(OSError, match="read back"):
        verify_zip(path)


def limited(code, size):
    """Run Python code in a process whose files cannot exceed ``size`` bytes, like a full disk."""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )


def test_a_checkpoint_that_does_not_fit_on_the_disk_leaves_the_earlier_one(tmp_path):
    """torch reports a full disk as RuntimeError, without the file."""
    code = f"""
import sys, torch
from pathlib import Path
sys.path.insert(0, "tests")
from references import tiny_plan
from mre_lowshot.errors import UserError
from mre_lowshot.inference import checkpoint
for size in (10, 10**6):
    weights = {{"w": torch.ones(size)}}
    try:
        checkpoint.save(Path({str(tmp_path)!r}) / "c.pth", tiny_plan(), weights=weights, training={{}})
    except UserError as problem:
        print(problem)
content = torch.load(Path({str(tmp_path)!r}) / "c.pth", weights_only=True)
print(content["weights"]["w"].numel())
"""
    done = limited(code, 1_000_000)
    first, second = done.stdout.splitlines() or [done.stderr, ""]
    assert first.startswith(f"{tmp_path / 'c.pth'}: cannot be written (File too large, "), done
    assert first.endswith("GB free); make space or give a folder on another disk; an earlier file of this name is "
                          "unchanged")  # fmt: skip
    assert second == "10"
    assert [p.name for p in tmp_path.iterdir()] == ["c.pth"]


def test_what_json_cannot_hold_is_null(tmp_path):
    files.write_json(tmp_path / "a.json", {"a": [float("nan"), (1, float("inf"))], 2: "x"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [None, [1, None]], "2": "x"}
    assert files.read_json(tmp_path / "a.json", "test") == {"a": [None, [1, None]], "2": "x"}


def test_every_failure_is_one_line():
    assert describe_failure(UserError("case a: wrong")) == "case a: wrong"
    assert describe_failure(NumericalError("not finite")) == "not finite"
    assert "(RuntimeError: first)" in describe_failure(RuntimeError("first\nsecond"))
    assert describe_failure(KeyError(), "a").startswith("case a: unexpected error (KeyError: no message)")
    assert describe_failure(MemoryError()).startswith("out of memory")
