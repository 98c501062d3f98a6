"""Every command: consoles that cannot show a name, closed pipes, signals, and unexpected errors."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from mre_lowshot.cli import common
from mre_lowshot.errors import NumericalError, UserError, describe_failure
from mre_lowshot.signals import Terminated, terminate_as_interrupt


def python(code, **options):
    environment = {**os.environ, **options.pop("env", {})}
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, **options
    )


@pytest.mark.parametrize("name", ["Kopf_é_頭", os.fsdecode(b"scan_\xff")])
def test_a_console_that_cannot_show_a_name_escapes_it(name):
    code = f"""
from mre_lowshot.cli import common
from mre_lowshot.cli.console import Console
def main(_):
    Console().info("case " + {name!a})
    Console().warning("warning: " + {name!a})
    raise common.UserError("case " + {name!a})
raise SystemExit(common.run(main, None))
"""
    running = python(code, env={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
    out, err = running.communicate()
    escaped = name.encode("ascii", "backslashreplace")
    assert (running.returncode, out) == (2, b"case " + escaped + b"\n")
    assert err == b"warning: " + escaped + b"\nerror: case " + escaped + b"\n"


def test_the_work_goes_on_when_the_reader_of_the_output_has_gone(tmp_path):
    code = f"""
import time
from pathlib import Path
from mre_lowshot.cli import common
from mre_lowshot.cli.console import Console
def main(_):
    for number in range(20000):
        Console().info(f"line {{number}}")
    Path({str(tmp_path / "done")!r}).touch()
    return 0
raise SystemExit(common.run(main, None))
"""
    running = python(code)
    assert running.stdout.readline() == b"line 0\n"
    running.stdout.close()
    assert running.wait() == 0
    assert running.stderr.read() == b""
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize("redirect", ["| head -c 5 >/dev/null", ">&-", "2>&-", ">/dev/full"])
def test_help_ends_quietly_whatever_stdout_is(redirect):
    code = "from mre_lowshot.cli.predict import main; main(['-h'])"
    line = f'"{sys.executable}" -c "{code}" {redirect}'
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_signals_that_end_a_job_let_it_save_what_it_has(name, code, tmp_path):
    script = f"""
import time
from pathlib import Path
from mre_lowshot.cli import common
def main(_):
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        time.sleep(0.5)
        Path({str(tmp_path / "saved")!r}).touch()
raise SystemExit(common.run(main, None))
"""
    running = python(script)
    assert running.stdout.readline() == b"ready\n"
    running.send_signal(getattr(signal, name))
    if name != "SIGINT":
        time.sleep(0.1)
        running.send_signal(getattr(signal, name))  # again, while it saves
    assert running.wait() == code
    assert (tmp_path / "saved").exists()
    assert running.stderr.read() == (b"interrupted\n" if name == "SIGINT" else f"interrupted by {name}\n".encode())


def test_handlers_are_put_back_and_threads_and_ignored_signals_left_alone():
    before = signal.getsignal(signal.SIGTERM)
    with terminate_as_interrupt():
        with pytest.raises(KeyboardInterrupt) as found:
            signal.raise_signal(signal.SIGTERM)
        assert isinstance(found.value, Terminated)
    assert signal.getsignal(signal.SIGTERM) is before
    old = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with terminate_as_interrupt():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, old)
    seen = []

    def work():
        with terminate_as_interrupt():
            seen.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [1]


def test_a_child_process_that_inherits_the_handler_ends_without_a_message():
    script = """
import os, signal, time
from mre_lowshot.signals import terminate_as_interrupt
with terminate_as_interrupt():
    child = os.fork()
    if not child:
        time.sleep(60)
    time.sleep(0.3)
    os.kill(child, signal.SIGTERM)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    running = python(script)
    out, err = running.communicate()
    assert (out, err) == (b"-15\n", b"")


@pytest.mark.parametrize(
    ("problem", "code", "message"),
    [
        (UserError("a.nii: broken; replace it"), 2, "error: a.nii: broken; replace it"),
        (NumericalError("loss is nan"), 1, "error: loss is nan"),
        (OSError(28, "No space left on device", "x/y"), 2, "error: x/y: No space left on device"),
        (MemoryError(), 1, "error: out of memory (no message); close other programs"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried\n1"), 1, "error: out of memory (CUDA out of memory. Tr"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes"), 1, "error: out of memory (DefaultCPU"),
        (RecursionError("maximum recursion\ndepth"), 3, "error: internal: RecursionError: maximum recursion depth; "),
        (ZeroDivisionError(), 3, "error: internal: ZeroDivisionError: no message; run mre_doctor and report it"),
        (BrokenPipeError(32, "Broken pipe"), 1, ""),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)  # fmt: skip
def test_every_error_is_one_line_and_an_exit_code(problem, code, message, capsys, monkeypatch):
    monkeypatch.delenv("MRE_TRACEBACK", raising=False)

    def main(_):
        raise problem

    assert common.run(main, None) == code
    err = capsys.readouterr().err
    assert err.startswith(message)
    assert err.count("\n") == (1 if message else 0)


def test_a_traceback_is_shown_beside_the_message_and_leaves_the_exit_code(monkeypatch, capsys):
    monkeypatch.setenv("MRE_TRACEBACK", "1")

    def main(_):
        raise UserError("case a: bad")

    assert common.run(main, None) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("error: case a: bad\n")


def test_a_failure_names_its_case_once_in_one_line():
    assert describe_failure(UserError("case a: bad"), "a") == "case a: bad"
    assert describe_failure(UserError("bad\nworse"), "a") == "case a: bad worse"
    assert (
        describe_failure(PermissionError(13, "Permission denied", "a.nii"), "a") == "case a: a.nii: Permission denied"
    )
    text = describe_failure(IndexError("list index\nout of range"), "b")
    assert text.startswith("case b: unexpected error (IndexError: list index); MRE_TRACEBACK=1 shows where")
