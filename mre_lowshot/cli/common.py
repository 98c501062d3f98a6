"""What every command shares: common options, errors on one line, exit codes.

Exit codes: 0 done, 1 some cases failed, a training diverged or memory was short, 2 wrong use, 3 an internal error, 130
interrupted (Ctrl-C), 143 ended by SIGTERM (129 by SIGHUP). Only the standard library is imported here, so that ``-h``
answers at once; commands import torch, SimpleITK and other heavy libraries inside functions.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from mre_lowshot import __version__
from mre_lowshot.errors import TRACEBACK, NumericalError, UserError, describe_failure, is_out_of_memory
from mre_lowshot.signals import Terminated, terminate_as_interrupt

DISCLAIMER = "For research only: not a medical device. Check every result before anyone relies on it."


def parser(prog: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    """An argument parser with the common footer and ``--version``."""
    made = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=(epilog + "\n\n" if epilog else "") + DISCLAIMER,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # --over must not mean --overwrite
    )
    made.add_argument("--version", action="version", version=f"mre_lowshot {__version__}")
    return made


def path(text: str) -> Path:
    """The type of options that take a path: an empty text (an unset variable of the shell) would mean the current
    folder."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError("the path is empty" if not text else "a path has no NUL character")
    return Path(text)


def add_workspace(made: argparse.ArgumentParser) -> None:
    """Add ``--workspace``, the folder that holds raw/, preprocessed/ and results/."""
    made.add_argument(
        "--workspace",
        metavar="DIR",
        help="folder with raw/, preprocessed/, results/ (default: MRE_RAW, MRE_PREPROCESSED, MRE_RESULTS, then "
        "nnUNet_raw, nnUNet_preprocessed, nnUNet_results, then MRE_WORKSPACE, then ./mre_data)",
    )


def add_device(made: argparse.ArgumentParser) -> None:
    """Add ``-device``, nnU-Net's flag."""
    made.add_argument(
        "-device",
        default="auto",
        help="cuda, cuda:1, mps, cpu or auto (default: CUDA where available, else MPS if it computes what the CPU "
        "computes, else the CPU)",
    )


def add_trained(made: argparse.ArgumentParser) -> None:
    """Add ``-d``, ``-c``, ``-p``, which name a trained model, and ``-f``, its folds."""
    made.add_argument("-d", metavar="DATASET", help="dataset the model was trained on: id, name or full name")
    made.add_argument("-c", metavar="LEVEL", help="level it was trained at: 1shot, 2shot, ...")
    made.add_argument("-p", metavar="NAME", help="name of its plan")
    made.add_argument("-f", nargs="+", metavar="FOLD", help="folds to take (default: all trained ones)")


def trained(options: argparse.Namespace) -> dict[str, Any]:
    """The model that ``-m`` and the options of `add_trained` name, as keyword arguments."""
    named = {"model": options.m, "dataset": options.d, "level": options.c, "plans_name": options.p}
    return {**named, "workspace": options.workspace}


def add_cohort(made: argparse.ArgumentParser) -> None:
    """Add ``--cohort`` and ``--cohorts``: which of the labelled cases take part."""
    made.add_argument(
        "--cohort",
        metavar="NAME",
        help="name of a list of cases; train and test on these only (the paper uses seven); the level is then called "
        "LEVEL_NAME",
    )
    made.add_argument(
        "--cohorts",
        type=path,
        metavar="FILE",
        help='JSON, {"NAME": [cases]}; for level split {"NAME": [{"train": [cases], "val": [cases]}]} (default: '
        "cohorts.json beside the plan)",
    )


def run(main: Callable[[Sequence[str] | None], int], arguments: Sequence[str] | None) -> int:
    """Call ``main``; any error becomes one line on stderr and an exit code (above).

    With MRE_TRACEBACK=1 in the environment the whole traceback is shown before it. Characters that the console cannot
    show are escaped, and a closed pipe or full disk behind stdout does not end the run.
    """
    # Read when torch is loaded. By default waiting threads spin, and slow each other down as soon as other programs
    # run; sleeping ones cost little (docs/LOG.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    prepare_streams()
    try:
        with terminate_as_interrupt():
            return main(arguments)
    except KeyboardInterrupt as stopped:
        number = stopped.number if isinstance(stopped, Terminated) else signal.SIGINT
        print_error("interrupted" if number == signal.SIGINT else f"interrupted by {signal.Signals(number).name}")
        return 128 + number
    except BrokenPipeError as problem:  # the reader of stdout has gone (| head), which is no mistake
        if problem.filename:
            return _failure(problem)
        return 1
    except Exception as problem:
        return _failure(problem)
    finally:
        for stream in (sys.stdout, sys.stderr):
            flush(stream)


def _failure(problem: Exception) -> int:
    """Print an error on one line; its exit code."""
    if os.environ.get(TRACEBACK):
        traceback.print_exception(problem)
    if isinstance(problem, (UserError, NumericalError)):
        print_error(f"error: {problem}")
        return 2 if isinstance(problem, UserError) else 1
    if is_out_of_memory(problem):
        print_error(f"error: {describe_failure(problem)}")
        return 1
    if isinstance(problem, OSError):  # a full disk, a folder that may not be written to
        reason = problem.strerror or " ".join(str(problem).split())
        print_error(f"error: {problem.filename or 'the system'}: {reason}")
        return 2
    message = " ".join(str(problem).split())[:300] or "no message"
    print_error(
        f"error: internal: {type(problem).__name__}: {message}; run mre_doctor and report it "
        f"({TRACEBACK}=1 shows where)"
    )
    return 3


def prepare_streams() -> None:
    """Make stdout and stderr accept every character, and exist even where the caller closed them."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # closed (>&-): a file opened later would take its number, and its output
            mode = "r" if number == 0 else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with suppress(ValueError, io.UnsupportedOperation):
                stream.reconfigure(errors="backslashreplace")


def print_error(line: str) -> None:
    """Print a line on stderr; nothing where it is closed."""
    with suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def flush(stream: TextIO) -> None:
    """Flush a stream; one that cannot be written to any more (closed pipe, full disk) goes to nowhere instead, so that
    Python does not complain about it at its exit."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
