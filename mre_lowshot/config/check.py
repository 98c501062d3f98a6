"""How the records refuse a value."""

from mre_lowshot.errors import UserError


def need(condition: bool, rule: str) -> None:
    """Refuse what breaks ``rule``, which names field, value and what it must be."""
    if not condition:
        raise UserError(rule)
