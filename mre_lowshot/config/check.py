"""How the configuration records refuse a value."""

from __future__ import annotations

from mre_lowshot.errors import UserError


def require(condition: bool, rule: str) -> None:
    """Raise `UserError` with ``rule``, which names the field, the value found and what it must be."""
    if not condition:
        raise UserError(rule)


def require_range(name: str, value: float, low: float, high: float, *, open_end: bool = False) -> None:
    """Require ``low <= value <= high`` (``< high`` with ``open_end``)."""
    inside = low <= value < high if open_end else low <= value <= high
    require(inside, f"{name} is {value}; must lie in [{low:g}, {high:g}{')' if open_end else ']'}")


def require_mirror_axes(axes: tuple[int, ...]) -> None:
    """Require spatial axis numbers."""
    require(set(axes) <= {0, 1, 2}, f"mirror_axes is {axes}; axes are 0 (z), 1 (y), 2 (x)")
