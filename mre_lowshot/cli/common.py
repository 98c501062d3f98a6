"""What every command shares: common options, errors on one line, exit codes.

Exit codes: 0 done, 1 some cases failed or a training diverged, 2 wrong use, 130 interrupted, 143 ended by SIGTERM. Only
the standard library is imported here, so that ``-h`` answers at once; commands import torch, SimpleITK and other heavy
libraries inside functions.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mre_lowshot import __version__, signals
from mre_lowshot.errors import NumericalError, UserError

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
        help="cuda, cuda:1, mps, cpu or auto (default: CUDA where available, else the CPU)",
    )


def add_cohort(made: argparse.ArgumentParser) -> None:
    """Add ``--cohort`` and ``--cohorts``: which of the labelled cases take part."""
    made.add_argument(
        "--cohort",
        metavar="NAME",
        help="name of a list of cases; train and test on these only (the paper uses seven); the level is then called "
        "LEVEL_NAME",
    )
    made.add_argument(
        "--cohorts", type=path, metavar="FILE", help='JSON, {"NAME": [cases]} (default: cohorts.json beside the plan)'
    )


def run(main: Callable[[Sequence[str] | None], int], arguments: Sequence[str] | None) -> int:
    """Call ``main``; a user's mistake becomes one line on stderr and exit code 2 (1 for a failed computation).

    With MRE_TRACEBACK=1 in the environment the whole traceback is shown instead.
    """
    # Read when torch is loaded. By default waiting threads spin, and slow each other down as soon as other programs
    # run; sleeping ones cost little (docs/LOG.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signals.forget()
    try:
        return main(arguments)
    except (UserError, NumericalError) as problem:
        if os.environ.get("MRE_TRACEBACK"):
            raise
        print(f"error: {problem}", file=sys.stderr)
        return 2 if isinstance(problem, UserError) else 1
    except OSError as problem:  # a full disk, a folder that may not be written to
        if os.environ.get("MRE_TRACEBACK"):
            raise
        print(f"error: {problem.filename or 'the system'}: {problem.strerror or problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + (signals.received() or signal.SIGINT)
