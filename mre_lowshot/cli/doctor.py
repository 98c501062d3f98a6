"""``mre_doctor``: versions, devices, memory, folders and a tiny run, for a look at the installation or a bug report."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from mre_lowshot.cli import common

EPILOG = """The report names versions, devices, memory, the workspace's folders and the environment variables that have
an effect. It contains no patient data and no path but those of the workspace; the home folder is written as ~. The tiny
run plans, trains and predicts on synthetic scans in a temporary folder, in less than a minute.

Exit code: 0 all checks passed, 1 a check failed (named), 2 wrong use."""


def _parser() -> argparse.ArgumentParser:
    made = common.parser("mre_doctor", "Check the installation, and print what a bug report needs.", EPILOG)
    made.add_argument("--no_run", action="store_true", help="leave out the tiny run of the pipeline")
    made.add_argument("--json", action="store_true", help="print the report as JSON")
    common.add_device(made)
    common.add_workspace(made)
    return made


def _main(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)

    from mre_lowshot.cli.console import Console
    from mre_lowshot.workflows.doctor import doctor
    from mre_lowshot.workflows.reporting import Silent

    result = doctor(
        workspace=options.workspace,
        device=options.device,
        run=not options.no_run,
        reporter=Silent() if options.json else Console(),
    )
    if options.json:
        print(json.dumps(result.to_json(), indent=2))
    elif result.failed:
        print(f"failed: {', '.join(result.failed)}")
    return 1 if result.failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``mre_doctor``."""
    return common.run(_main, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
