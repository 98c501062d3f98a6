"""Names and colours of the labels, written once beside the label maps of a folder, for viewers."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from mre_lowshot.data.label_table import DESCRIPTIONS, DSEG, LabelTable
from mre_lowshot.files import atomic_write
from mre_lowshot.inference.record import FileState, RunRecord
from mre_lowshot.workflows.reporting import Reporter


def write_label_files(
    root: Path, record: RunRecord, table: LabelTable, *, overwrite: bool, reporter: Reporter
) -> list[Path]:
    """Write label_descriptions.txt (ITK-SNAP) and dseg.tsv (BIDS) into ``root``, and list them in ``record``; returns
    those that are there and current. A file of such a name that no run has written, or that has changed since, stays as
    it is, with a note, unless ``overwrite``.

    Raises:
        UserError: a file cannot be written.
    """
    texts = {DESCRIPTIONS: table.itksnap().encode(), DSEG: table.dseg().encode()}
    current, changed = [], []
    for name, content in texts.items():
        path, state = root / name, FileState(name, len(content), hashlib.sha256(content).hexdigest())
        free = not os.path.lexists(path) or record.is_own_file(path) or (overwrite and not path.is_dir())
        if not free and not state.matches(path):
            reporter.info(
                f"note: {path} was not written by mre_predict, or has changed since, and is kept; it may list other "
                "labels or colours than the model's (--overwrite replaces it)"
            )
            continue
        record.note_file(state)
        current.append(path)
        if not state.matches(path):
            changed.append((path, content))
    if changed:
        record.write()  # lists the files before they get their names
    for path, content in changed:
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
    return current
