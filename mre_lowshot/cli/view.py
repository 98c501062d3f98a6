"""``mre_view FOLDER``: look at the label maps of a folder in the browser, the worst first."""

from __future__ import annotations

import argparse
import os
import sys
import webbrowser
from collections.abc import Sequence

from mre_lowshot.cli import common

EPILOG = """The page lists the cases by quality score, the lowest first, and shows each scan with its label map in three
planes and in 3D; with --reference, the reference label map beside it. Keys are listed on the page.

Nothing is written or sent. Only this machine can reach the page, and only with the token in its address. It ends with
Ctrl-C.

Exit code: 130 ended by Ctrl-C, 2 wrong use."""


def _parser() -> argparse.ArgumentParser:
    made = common.parser("mre_view", "Look at the label maps of a folder in the browser, the worst first.", EPILOG)
    made.add_argument("folder", metavar="FOLDER", type=common.path, help="folder that mre_predict -o names")
    made.add_argument(
        "--reference", metavar="FOLDER", type=common.path, help="reference label maps, to compare with (by case name)"
    )
    made.add_argument(
        "--scans", metavar="FOLDER", type=common.path, help="the scans (default: those that run.json in FOLDER lists)"
    )
    made.add_argument("--port", metavar="N", type=int, default=0, help="port of the page (default: a free one)")
    made.add_argument("--no_browser", action="store_true", help="print the address, and open no browser")
    return made


def _main(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)

    from mre_lowshot.workflows.view import view

    with view(options.folder, reference=options.reference, scans=options.scans, port=options.port) as running:
        print(f"{len(running.cases)} cases of {options.folder}; end with Ctrl-C")
        print(running.url, flush=True)
        if not options.no_browser and _has_screen():
            webbrowser.open(running.ticket_url)
        running.wait()
    return 0


def _has_screen() -> bool:
    """Whether a browser can have a window; in a terminal alone, a browser for text would take it over."""
    if sys.platform.startswith("linux"):
        return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "WSL_DISTRO_NAME"))
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``mre_view``."""
    return common.run(_main, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
