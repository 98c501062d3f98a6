"""One prediction run at a time in an output folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mre_lowshot.data.listing import PICTURE_FOLDERS
from mre_lowshot.files import remove_leftovers
from mre_lowshot.locks import locked, remove_stale


@contextmanager
def only_run(folder: Path, *, num_parts: int, part_id: int) -> Iterator[None]:
    """Hold ``folder`` for one prediction run, or for one of several parts; leftovers of killed runs are removed.

    Raises:
        UserError: another run writes into it, or it cannot be written to.
    """
    with ExitStack() as held:
        if num_parts == 1:
            held.enter_context(locked(folder, "predict", "predicts into it"))
        else:
            doing = f"predicts part {part_id} of {num_parts} into it"
            held.enter_context(locked(folder, "predict", doing, shared=True))
            held.enter_context(locked(folder, f"predict_part{part_id}", doing))
        remove_stale(folder)
        remove_leftovers(folder)
        for pictures in PICTURE_FOLDERS:
            remove_leftovers(folder / pictures)
        yield
