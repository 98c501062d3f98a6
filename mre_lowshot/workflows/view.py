"""Show a folder of predictions in the browser."""

from __future__ import annotations

from pathlib import Path

from mre_lowshot.config.check import require_path, require_whole
from mre_lowshot.viewer.server import Viewer


def view(
    folder: str | Path,
    *,
    reference: str | Path | None = None,
    scans: str | Path | None = None,
    port: int = 0,
) -> Viewer:
    """Start a web server on this machine that shows the label maps of a folder on their scans. Nothing is written, and
    only this machine can reach it, with the token in its address.

    Args:
        folder: that `predict` wrote into, or another folder of label maps.
        reference: folder of reference label maps, to compare with.
        scans: folder of the scans; None: the scans that run.json in ``folder`` lists.
        port: of the server; 0: a free one.

    Returns:
        The running server: open its ``url`` in a browser; ``close()``, or the end of a ``with`` block, ends it.

    Raises:
        UserError: a folder is none, or holds nothing to show; the port is taken.
    """
    require_path("folder", folder)
    for name, path in (("--reference", reference), ("--scans", scans)):
        if path is not None:
            require_path(name, path)
    require_whole("--port", port, 0, 65535)
    return Viewer(
        Path(folder),
        reference=Path(reference) if reference is not None else None,
        scans=Path(scans) if scans is not None else None,
        port=port,
    )
