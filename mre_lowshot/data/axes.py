"""Order and direction of axes, as exact permutations and flips.

A turn names, for each axis (z, y, x) of the array that is made, the axis of the source that it is taken from: 1, 2, 3
for x, y, z (of a file: its first, second, third axis), negative where it is reversed. An axis code such as ``RAS``
names the closest directions in the patient, and is ambiguous at 45 degrees.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np

Turn = tuple[int, ...]
IDENTITY: Turn = (3, 2, 1)
_ORDERS = tuple(permutations(range(3)))  # the identity first
_LETTERS = ("LR", "PA", "SI")  # of x, y, z: in and against the direction of an LPS axis
_SUM_TOLERANCE, _SIGN_TOLERANCE = 1e-3, 1e-6  # of direction cosines


def closest_turn(cosines: np.ndarray, in_plane: bool = False) -> Turn:
    """The turn that lays the source's axes closest to the target's.

    Args:
        cosines: (3, 3), row: axis x, y, z of the target; column: axis 1, 2, 3 of the source.
        in_plane: the third axis stays the third.

    Of orders that fit equally well (at 45 degrees) the first of a fixed list is taken, within a tolerance, so that
    rounding does not decide.
    """
    orders = [order for order in _ORDERS if not in_plane or order[2] == 2]
    sums = [sum(abs(cosines[row, column]) for row, column in enumerate(order)) for order in orders]
    order = orders[next(i for i, value in enumerate(sums) if value >= max(sums) - _SUM_TOLERANCE)]
    signs = [-1 if cosines[row, column] < -_SIGN_TOLERANCE else 1 for row, column in enumerate(order)]
    return tuple(signs[row] * (order[row] + 1) for row in (2, 1, 0))


def turn_array(array: np.ndarray, turn: Turn, first: int = 0) -> np.ndarray:
    """A view of ``array`` (..., z, y, x, ...) with its three axes from number ``first`` on turned."""
    order = [first + 3 - abs(axis) for axis in turn]
    turned = array.transpose(*range(first), *order, *range(first + 3, array.ndim))
    flips = [slice(None, None, -1 if axis < 0 else None) for axis in turn]
    return turned[(*[slice(None)] * first, *flips)]


def inverse(turn: Turn) -> Turn:
    """The turn back to the source."""
    found = [0, 0, 0]
    for position, axis in enumerate(turn):
        found[3 - abs(axis)] = (3 - position) * (1 if axis > 0 else -1)
    return tuple(found)


def compose(first: Turn, second: Turn) -> Turn:
    """The turn that has the effect of ``first``, then ``second``."""
    return tuple(first[3 - abs(axis)] * (1 if axis > 0 else -1) for axis in second)


def axis_code(turn: Turn) -> str:
    """The axis code, for example ``"RAS"``, of a source that ``turn`` makes an LPS array of."""
    letters = {abs(axis): _LETTERS[2 - position][axis < 0] for position, axis in enumerate(turn)}
    return "".join(letters[axis] for axis in (1, 2, 3))


def turn_of_code(code: str) -> Turn:
    """The turn from a source with this axis code to LPS."""
    found = [0, 0, 0]
    for axis, letter in enumerate(code, start=1):
        row = next(i for i, pair in enumerate(_LETTERS) if letter in pair)
        found[2 - row] = axis if _LETTERS[row][0] == letter else -axis
    return tuple(found)
