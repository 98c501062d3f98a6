"""Errors that are reported without a traceback."""


class UserError(Exception):
    """A mistake that the user can correct. The message names the file or case, the rule, the value found and the fix.

    Commands print it on one line and exit with code 2 (wrong use).
    """


class NumericalError(RuntimeError):
    """A non-finite loss, gradient or prediction: the computation stops, and no label map is written."""
