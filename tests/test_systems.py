"""Windows and macOS, as far as they can be emulated here: spawned workers, names, open files, signals, line ends."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import mre_lowshot
from mre_lowshot import files, signals
from mre_lowshot.config.check import require_file_name, require_plans_name
from mre_lowshot.data.listing import list_images, name_problem
from mre_lowshot.data.workspace import Workspace
from mre_lowshot.errors import UserError
from tests.conftest import Space, command
from tests.test_house import MODULES, ROOT
from tests.windows_files import emulate

pytestmark = pytest.mark.usefixtures("one_thread_only")

# What Python lacks on Windows.
POSIX_MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix", "crypt", "readline"}
POSIX_ATTRIBUTES = {
    "os": {
        "fork", "forkpty", "getuid", "geteuid", "getgid", "getegid", "getpgid", "getpgrp", "setsid", "setpgid",
        "killpg", "sysconf", "uname", "mkfifo", "mknod", "statvfs", "fstatvfs", "chown", "lchown", "fchown", "fchmod",
        "getloadavg", "nice", "sched_getaffinity", "sched_setaffinity", "wait", "waitid", "pipe2", "sync", "ttyname",
        "getgroups", "O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK", "posix_fallocate", "posix_fadvise",
        "setpriority", "register_at_fork", "chroot", "getpriority", "sendfile", "WIFEXITED", "WEXITSTATUS", "WNOHANG",
    },
    "signal": {"SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCHLD", "SIGPIPE", "SIGQUIT", "SIGSTOP",
               "SIGTSTP", "SIGCONT", "alarm", "pause", "setitimer", "sigwait", "pthread_kill", "pthread_sigmask"},
}  # fmt: skip
GUARDED = {  # beside hasattr
    ("mre_lowshot.devices", "sched_getaffinity"),
    ("mre_lowshot.inference.tile_threads", "register_at_fork"),
}


def trees():
    for name, path in MODULES.items():
        yield name, ast.parse(path.read_text(encoding="utf-8"))


def test_nothing_that_windows_lacks_is_used_unguarded():
    found = set()
    for name, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else [str(node.module)]
                found |= {(name, n) for n in names if n.split(".")[0] in POSIX_MODULES}
            owner = node.value if isinstance(node, ast.Attribute) else None
            if isinstance(owner, ast.Name) and node.attr in POSIX_ATTRIBUTES.get(owner.id, ()):
                found.add((name, node.attr))
    assert found == GUARDED


def test_texts_are_read_and_written_as_utf8_with_the_same_line_ends_everywhere():
    """On Windows the default would be another encoding, and line ends that digests of reports do not have."""
    wrong = []
    for name, tree in trees():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            given = {keyword.arg for keyword in node.keywords}
            values = (*node.args, *(k.value for k in node.keywords if k.arg == "mode"))
            texts = [a.value for a in values if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            mode = next((text for text in texts if set(text) <= set("rwxab+t")), "r")
            text = called in ("read_text", "write_text") or (called in ("open", "fdopen") and "b" not in mode)
            owner = node.func.value if isinstance(node.func, ast.Attribute) else None
            if isinstance(owner, ast.Name) and owner.id in ("os", "archive", "Image", "webbrowser"):
                text = text and called not in ("open",)
            if called == "write_text" and isinstance(node.func, ast.Name):
                continue  # files.write_text
            writes = called == "write_text" or (called == "open" and set(mode) & set("wax"))
            if text and ("encoding" not in given or (writes and "newline" not in given)):
                wrong.append(f"{name}:{node.lineno} {called}")
    assert [w for w in wrong if not w.startswith("mre_lowshot.cli.common")] == []  # devnull


def test_line_ends_of_reports_are_not_converted(tmp_path):
    files.write_text(tmp_path / "a.csv", "a,b\r\n1,2\r\nü\n")
    assert (tmp_path / "a.csv").read_bytes() == b"a,b\r\n1,2\r\n\xc3\xbc\n"


@pytest.mark.slow
def test_training_with_spawned_workers_gives_the_same_weights(trained, tmp_path):
    """Windows and macOS start workers anew, with what can be pickled."""
    import shutil

    import torch

    space = Space(tmp_path / "space")
    shutil.copytree(trained.root, space.root)
    code = (
        "import multiprocessing, sys; multiprocessing.set_start_method('spawn'); "
        "from mre_lowshot.atlas.registration import affine; affine.STARTS = (0.0,); "  # as in this process
        "from mre_lowshot.cli.train import main; raise SystemExit(main(sys.argv[1:]))"
    )
    arguments = ["Synthetic", "1shot", "fold0", "-p", "Tiny", "--workspace", str(space.root), "-device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--overwrite", "--no_val", "--workers", "2"],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    one, other = (
        torch.load(s.model() / "fold_0/checkpoint_final.pth", weights_only=True)["weights"] for s in (trained, space)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_the_whole_pipeline_under_windows_rules_for_open_files(space, tmp_path, monkeypatch):
    """Plan, train, continue, predict, evaluate, export and install: nothing is replaced or deleted while it is open."""
    from tests import windows_files

    emulate(monkeypatch, tmp_path)
    (tmp_path / "held").write_text("x")
    with open(tmp_path / "held") as held, pytest.raises(PermissionError, match="emulated"):
        os.replace(tmp_path / "held", tmp_path / "moved")
    assert held.closed
    assert windows_files.open_paths()
    scans, out, again = space.raw / "imagesTr", tmp_path / "out", tmp_path / "again"
    assert space.plan("--overwrite") == 0
    assert space.train("--overwrite") == 0
    assert space.train("--val") == 0
    for arguments in (("--overlays", "--save_probabilities"), ("--continue_prediction",), ()):
        assert space.predict(scans, out, *arguments) == 0
    for more in ((), ("--overwrite",)):
        assert command("evaluate", space.raw / "labelsTr", out, "-djfile", space.raw / "dataset.json", *more) == 0
    for more in ((), ("--overwrite",)):
        assert command("export_model", "-m", space.model(), "-o", tmp_path / "m.zip", *more) == 0
    assert command("install_model", tmp_path / "m.zip", "--workspace", again) == 0
    (Space(again).model() / "plans.json").write_text("{}")
    assert command("install_model", tmp_path / "m.zip", "--workspace", again, "--overwrite") == 0
    assert command("predict", "-i", scans, "-o", out, "-m", tmp_path / "m.zip", "-device", "cpu") == 0


@pytest.mark.parametrize("fails", [1, 3])
def test_a_file_that_another_program_has_open_for_a_moment_is_replaced(tmp_path, monkeypatch, fails):
    real, calls = os.replace, []

    def replace(source, target):
        calls.append(target)
        if len(calls) <= fails:
            raise PermissionError(13, "in use")
        real(source, target)

    monkeypatch.setattr(files.os, "replace", replace)
    monkeypatch.setattr(files.time, "sleep", lambda _: None)
    monkeypatch.setattr(files, "_WINDOWS", True)
    files.write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"
    calls.clear()
    monkeypatch.setattr(files, "PAUSES", (0.0,))
    if fails > 1:
        with pytest.raises(UserError, match=r"a\.txt: cannot be written \(in use\)"):
            files.write_text(tmp_path / "a.txt", "newer")
        assert (tmp_path / "a.txt").read_text() == "new"
    calls.clear()
    monkeypatch.setattr(files, "_WINDOWS", False)
    with pytest.raises(UserError, match="in use"):  # elsewhere it does not pass by itself
        files.write_text(tmp_path / "a.txt", "newer")
    assert len(calls) == 1


RESERVED = ["CON", "nul", "Aux", "prn", "COM1", "lpt9", "con.v2", "NUL .x", "COM²", "CONIN$"]


@pytest.mark.parametrize("name", RESERVED)
def test_names_of_devices_are_refused_where_they_are_reserved(name, tmp_path, monkeypatch):
    monkeypatch.setattr("mre_lowshot.data.listing.WINDOWS", True)
    assert "device on Windows" in name_problem(name)
    with pytest.raises(UserError, match="CON, NUL"):
        require_file_name("dataset_name", name)
    (tmp_path / f"{name}.nii.gz").write_bytes(b"x")
    from mre_lowshot.data.dataset import find_cases

    cases, problems = find_cases(tmp_path, 1, None)
    assert cases == []
    assert "device on Windows" in problems[0]


@pytest.mark.parametrize("name", ["console", "nullify", "auxiliary", "com10", "lpt", "com", "scan_con", "a.con"])
def test_names_that_only_resemble_devices_are_taken(name):
    assert name_problem(name) is None
    require_file_name("dataset_name", name)


@pytest.mark.parametrize("name", ["a:b", "a.", "a ", "a\\b", "a/b", 'a"b', "a|b", "a?b", "a*b", "a<b"])
def test_names_that_windows_changes_or_refuses_are_refused(name, monkeypatch):
    monkeypatch.setattr("mre_lowshot.data.listing.WINDOWS", True)
    assert name_problem(name)
    with pytest.raises(UserError):
        require_file_name("level", name)


def test_plans_are_not_named_like_devices():
    require_plans_name("-p", "Console")
    with pytest.raises(UserError, match="is a device on Windows"):
        require_plans_name("-p", "NUL")


def test_twins_in_upper_and_lower_case_are_refused_where_they_would_be_one_file(space, tmp_path, monkeypatch, capsys):
    """In the input folder on every system, because the outputs may be copied to another disk."""
    import shutil

    scans = tmp_path / "scans"
    scans.mkdir()
    for name in ("Scan", "scan", "other"):
        shutil.copy(space.raw / "imagesTr/phantom_001_0000.nii.gz", scans / f"{name}_0000.nii.gz")
    assert space.predict(scans, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "Scan and scan" in error
    assert [p.name for p in (tmp_path / "out").glob("*.nii.gz")] == ["other.nii.gz"]


def test_backslashes_in_file_names_are_not_taken_for_folders(tmp_path, monkeypatch):
    monkeypatch.setattr("mre_lowshot.data.listing.WINDOWS", True)
    (tmp_path / "a\\b.nii.gz").write_bytes(b"x")
    (name,) = list_images(tmp_path, None).files
    assert name_problem(name) == "contains a character that file systems reserve"


def test_a_dataset_is_given_by_a_path_with_either_separator(trained, tmp_path, monkeypatch):
    """On Windows os.sep is a backslash, and a slash works too."""
    from mre_lowshot.data import workspace as module

    class Windows:
        sep, altsep = "\\", "/"

        def __getattr__(self, name):
            return getattr(os, name)

    space = Workspace(tmp_path, trained.root / "preprocessed", tmp_path)
    monkeypatch.setattr(module, "os", Windows())
    given = f"{trained.root.as_posix()}/raw/Dataset900_Synthetic"
    assert space.find(given, "preprocessed") == trained.prepared


def test_signals_that_windows_lacks_or_adds(monkeypatch):
    monkeypatch.delattr(signal, "SIGHUP", raising=False)
    monkeypatch.setattr(signal, "SIGBREAK", signal.SIGUSR2, raising=False)
    ended = []
    try:
        with signals.terminate_as_interrupt():
            signal.raise_signal(signal.SIGUSR2)
    except signals.Terminated as stopped:
        ended.append(stopped.number)
    assert ended == [signal.SIGUSR2]
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL


def test_the_number_of_cores_is_found_without_affinity(monkeypatch):
    from mre_lowshot import devices

    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert devices.usable_cores() == 7


def test_memory_and_boot_are_found_without_proc_and_cgroups(monkeypatch, tmp_path):
    from mre_lowshot import limits, processes

    monkeypatch.setattr(limits, "_CGROUP", tmp_path / "none")
    monkeypatch.setattr(processes, "Path", lambda _: tmp_path / "none")
    monkeypatch.delenv(limits.OVERRIDE, raising=False)
    processes.boot.cache_clear()
    try:
        assert processes.boot() == ""
        assert limits.available_memory() > 0
    finally:
        monkeypatch.undo()
        processes.boot.cache_clear()


def test_a_file_whose_name_is_no_utf8_is_decoded_without_links(tmp_path, monkeypatch):
    """SimpleITK takes UTF-8 names only; where links are not allowed the file is copied."""
    import numpy as np
    import SimpleITK as sitk

    from mre_lowshot.data.readers import itk_process

    sitk.WriteImage(sitk.GetImageFromArray(np.arange(6, dtype=np.uint8).reshape(2, 3)), str(tmp_path / "a.png"))
    strange = Path(os.fsdecode(bytes(tmp_path) + b"/\xff.png"))
    os.rename(tmp_path / "a.png", strange)

    def denied(*_, **__):
        raise OSError(1, "a required privilege is not held")

    monkeypatch.setattr(os, "symlink", denied)
    assert bytes(itk_process.request(strange, "read").data) == bytes(range(6))


def test_the_package_is_complete_without_symbolic_links():
    """A checkout on Windows may hold text files in their places: pyproject.toml maps the folders."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for name in ("planners", "preprocessing", "trainers"):
        assert f'"mre_lowshot.{name}" = "{name}"' in text
    assert mre_lowshot.__version__
