"""The tables of the paper by name: each row is data, a few changed fields of a base recipe.

The bases are the recipe `paper` at the size of the paper and `paper_small`, the same method at a size for CPUs. Both
are the full method, row (e) of Table II, and a row lists only the fields that it changes, or names a baseline. Figures
are those of the paper, in percent and mm. The rows are in `table_rows`.
"""

from __future__ import annotations

from collections.abc import Iterable

from mre_lowshot.config.json import suggest
from mre_lowshot.errors import UserError
from mre_lowshot.experiments.records import SMALL_OF, Base, Figure, Reference, Row, Table
from mre_lowshot.experiments.table_rows import ablations, comparisons, own, rivals, ultrasound
from mre_lowshot.experiments.table_rows.common import FULL

__all__ = ["FULL", "SMALL_OF", "TABLE2", "TABLES", "Base", "Figure", "Reference", "Row", "Table", "named", "plan_name"]
TABLE2 = ablations.TABLE2
# The first table with a training gives it its name: tables are added at the end.
TABLES = {
    table.name: table
    for table in (
        *ablations.TABLES, own.BASELINES, own.READINGS, own.CANDIDATES, own.PARTS, *comparisons.TABLES,
        *rivals.TABLES, ultrasound.TABLE12,
    )
}  # fmt: skip
_ROMAN = {roman: str(n + 2) for n, roman in enumerate("ii iii iv v vi vii viii ix x xi xii".split())}  # noqa: SIM905


def named(name: str, others: Iterable[str] = ()) -> Table:
    """The table named ``name``; ``II`` and ``2`` mean ``table2``.

    Raises:
        UserError: no such table; the message suggests a similar name, of ``others`` too, or lists all.
    """
    plain = name.strip().lower()
    number = plain.removeprefix("table").strip(" _-")
    for candidate in (plain, f"table{_ROMAN.get(number, number)}"):
        if candidate in TABLES:
            return TABLES[candidate]
    raise UserError(f"table {name!r} is unknown; {suggest(plain, [*TABLES, *others])} (--list shows all)")


def plan_name(
    row: Row, base: Base, iterations: int | None, *, seed: int = 0, quick: bool = False, code: str = ""
) -> str:
    """The name of a row's plan, for example ``table4_m1_paper_300``.

    It is named after the first row of all tables with the same training, so that tables share results (the full method
    is always ``table2_e``), or after its baseline, and followed by the size if it is not the recipe's own, by
    ``iterations`` if given, by ``quick``, by the ``code`` of fields that are changed in all rows, and by the seed if it
    is not 0.
    """
    if row.baseline and not row.changes:
        parts = ["baseline", row.baseline]
    else:
        table, first = next((t, r) for t in TABLES.values() for r in t.rows if r.same_as(row))
        parts = [table.name, first.name]
    if base == "paper" and (row.baseline or row.recipe in SMALL_OF):
        parts.append("paper")
    elif base == "small" and not row.baseline and row.recipe not in SMALL_OF:
        parts.append("small")
    if iterations is not None:
        parts.append(str(iterations))
    if quick:
        parts.append("quick")
    if code:
        parts.append(code)
    if seed:
        parts.append(f"seed{seed}")
    return "_".join(parts)
