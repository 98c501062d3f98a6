"""Errors that are reported without a traceback, and the text for unexpected ones."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable

# In the text of torch's errors, lower case. cuDNN reports a workspace that it cannot allocate as an internal error.
_SHORT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "cudnn_status_internal_error",
    "cusolver_status_alloc_failed",
)
TRACEBACK = "MRE_TRACEBACK"  # environment variable: show where an error arose


class UserError(Exception):
    """A mistake that the user can correct. The message names the file or case, the rule, the value found and the fix.

    Commands print it on one line and exit with code 2 (wrong use).
    """


class MemoryLimitError(UserError):
    """More memory is needed than there is: refused before it is allocated."""


class NumericalError(RuntimeError):
    """A non-finite loss, gradient or prediction: the computation stops, and no label map is written."""


def install_extra(extra: str) -> str:
    """The command that installs an extra. The package is on no index, so it is installed from its source code."""
    return f'pip install -c constraints.txt -e ".[{extra}]" in the checkout of mre_lowshot'


def describe_failure(problem: BaseException, case: str = "") -> str:
    """One line for any exception: what happened, and the fix where one is known. ``case`` is the name of the case in
    which it arose; the line begins with it."""
    if isinstance(problem, (UserError, NumericalError)):
        text = str(problem)
    elif is_out_of_memory(problem):
        text = f"out of memory ({_first_line(problem)}); close other programs, or use a machine with more memory"
    elif isinstance(problem, OSError) and problem.strerror:
        text = f"{problem.filename or 'the system'}: {problem.strerror}"
    else:
        text = (
            f"unexpected error ({type(problem).__name__}: {_first_line(problem)}); {TRACEBACK}=1 shows where it arose, "
            "please report it"
        )
    text = " ".join(text.splitlines())
    return text if not case or text.startswith("case ") else f"case {case}: {text}"


def log_unexpected(problem: BaseException, log: Callable[[str], None]) -> None:
    """With ``MRE_TRACEBACK=1`` in the environment, log the traceback of a failure that is no mistake of the user."""
    if os.environ.get(TRACEBACK) and not isinstance(problem, (UserError, NumericalError)):
        log("".join(traceback.format_exception(problem)).rstrip())


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether memory was short: Python's and numpy's MemoryError, torch's errors on the CPU and on a GPU, and those of
    cuBLAS, cuDNN and cuSOLVER, which torch passes on as RuntimeError with the library's status."""
    if isinstance(problem, (MemoryError, MemoryLimitError)) or type(problem).__name__ == "OutOfMemoryError":
        return True
    text = str(problem).lower()
    return isinstance(problem, RuntimeError) and any(sign in text for sign in _SHORT_OF_MEMORY)


def _first_line(problem: BaseException) -> str:
    lines = str(problem).strip().splitlines()
    return lines[0][:300] if lines else "no message"
