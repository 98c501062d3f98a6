"""What goes wrong in a user's hands, told without a traceback."""


class UserError(Exception):
    """A mistake the user can mend. The message names the file or case, the rule, the value found and the mend.

    Commands print it on one line and leave with exit code 2 (wrong use).
    """


class NumericalError(RuntimeError):
    """A non-finite loss, gradient or prediction: the computation is stopped, never turned into a label map."""
