"""What a baseline needs to be used at all, checked before any work."""

from __future__ import annotations

from importlib.util import find_spec

from mre_lowshot.errors import UserError
from mre_lowshot.experiments.baselines.base import BaselineFold


def require_axes(name: str, fold: BaselineFold, *axes: int) -> None:
    """Require data of the right kind.

    Args:
        name: of the baseline.
        fold: what it shall learn from.
        axes: numbers of spatial axes that it works on.

    Raises:
        UserError: the plan is for data with another number of axes.
    """
    found = fold.plan.network.axes
    if found not in axes:
        kinds = {2: "2D images", 3: "volumes"}
        raise UserError(
            f"baseline {name}: works on {' and '.join(kinds[n] for n in axes)} only, {fold.plan.dataset_name} holds "
            f"{kinds[found]}; leave its row out (--rows)"
        )


def require_package(name: str, package: str, extra: str) -> None:
    """Require a package beyond the core.

    Args:
        name: of the baseline.
        package: as it is imported.
        extra: the extra of mre-lowshot that installs it.

    Raises:
        UserError: it is not installed; the message has the command that installs it.
    """
    if find_spec(package) is None:
        raise UserError(
            f'baseline {name}: the package {package} is not installed; pip install -c constraints.txt "mre-lowshot'
            f'[{extra}]"'
        )
