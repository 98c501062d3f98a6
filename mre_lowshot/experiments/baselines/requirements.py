"""What a baseline needs, as its record states it (`base.Baseline`): programs, checked when it is named, and data of the
right kind, checked when its row is planned and again with the fold's scans."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from mre_lowshot.config import Plan
from mre_lowshot.errors import UserError, install_extra
from mre_lowshot.experiments.baselines.ants_process import VERSION
from mre_lowshot.experiments.baselines.base import Baseline
from mre_lowshot.preprocessing.store import PreparedCase

# Importable package -> the command that installs it.
_INSTALL = {
    "sklearn": install_extra("baselines"),
    # antspyx 0.6.3 needs numpy below 2.4 and scipy below 1.16, so it cannot join the versions of constraints.txt.
    "ants": "install it in an environment of its own, python3 -m venv ants-env; ants-env/bin/pip install "
    f"antspyx=={VERSION}, and set MRE_ANTS_PYTHON=ants-env/bin/python",
}
_KINDS = {2: "2D images", 3: "volumes"}


def require_programs(baseline: Baseline) -> None:
    """Require the package and whatever else a baseline runs.

    Raises:
        UserError: it is missing; the message has the command that installs it.
    """
    if baseline.package:
        require_package(baseline.name, baseline.package)
    if baseline.check:
        baseline.check()


def require_package(name: str, package: str) -> None:
    """Require a package beyond the core for the baseline ``name``.

    Raises:
        UserError: it is not installed; the message has the command that installs it.
    """
    if find_spec(package) is None:
        raise UserError(missing_package(name, package))


def missing_package(name: str, package: str) -> str:
    """The message for a package that the baseline ``name`` needs."""
    install = _INSTALL.get(package, f"pip install {package}")
    return f"baseline {name}: the package {package} is not installed; {install}"


def require_data(baseline: Baseline, plan: Plan, train: Sequence[PreparedCase] = ()) -> None:
    """Require data of the kind that a baseline works on.

    Args:
        baseline: the method.
        plan: of its row.
        train: labelled scans of the fold; empty: only the plan is compared.

    Raises:
        UserError: the plan is for data with another number of axes, or a labelled scan is too small.
    """
    found = plan.network.axes
    if found not in baseline.axes:
        raise UserError(
            f"baseline {baseline.name}: works on {' and '.join(_KINDS[n] for n in baseline.axes)} only, "
            f"{plan.dataset_name} holds {_KINDS[found]}; leave its row out (--rows)"
        )
    for case in train:
        size = case.image.shape[1:]
        if any(size[axis] < 2 for axis in baseline.extended):
            raise UserError(
                f"baseline {baseline.name}: case {case.name} has {' x '.join(map(str, size))} voxels, and the method "
                f"needs two or more along axis {' and '.join('zyx'[axis] for axis in baseline.extended)}; leave its "
                "row out (--rows)"
            )
