"""Errors that are reported without a traceback."""


class UserError(Exception):
    """A mistake that the user can correct. The message names the file or case, the rule, the value found and the fix.

    Commands print it on one line and exit with code 2 (wrong use).
    """


class NumericalError(RuntimeError):
    """A non-finite loss, gradient or prediction: the computation stops, and no label map is written."""


def describe_failure(exception: BaseException) -> str:
    """One line about any exception: the message of a `UserError`, else the exception's kind and first line."""
    text = str(exception).strip()
    if isinstance(exception, (UserError, NumericalError)):
        return text
    if isinstance(exception, MemoryError):
        return "not enough memory"
    kind = type(exception).__name__
    return f"unexpected {kind}: {text.splitlines()[0]}" if text else f"unexpected {kind}"
