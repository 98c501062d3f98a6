"""The baselines by name. A baseline's module is imported when the baseline is used, as it may need packages beyond the
core."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from mre_lowshot.config.json import suggest
from mre_lowshot.errors import UserError
from mre_lowshot.experiments.baselines.base import Baseline
from mre_lowshot.experiments.baselines.requirements import missing_package, require_programs

_HERE = "mre_lowshot.experiments.baselines"
PLACES: dict[str, str] = {
    "ants": f"{_HERE}.ants:ANTS",
    "registration": f"{_HERE}.registration:REGISTRATION",
    "registration_refined": f"{_HERE}.registration:REGISTRATION_REFINED",
    "sse_10": f"{_HERE}.sse:BASELINES.sse_10",
    "sse_all": f"{_HERE}.sse:BASELINES.sse_all",
    "sse_10_aug": f"{_HERE}.sse:BASELINES.sse_10_aug",
    "sse_all_aug": f"{_HERE}.sse:BASELINES.sse_all_aug",
    **{
        f"dataaug_{mode}_{count}": f"{_HERE}.dataaug:BASELINES.dataaug_{mode}_{count}"
        for mode in ("sas", "ids")
        for count in (5, 10, 20)
    },
    "fcn": f"{_HERE}.fcn:FCN",
    "scs": f"{_HERE}.scs:SCS",
}
"""Name of a baseline -> ``module:ATTRIBUTE`` or ``module:DICT.key``, a `Baseline`."""


def baseline(name: str) -> Baseline:
    """The baseline named ``name``.

    Raises:
        UserError: there is none of that name, or a package that it needs is missing; the message has the command that
            installs it.
    """
    if name not in PLACES:
        raise UserError(f"baseline {name!r} is unknown; {suggest(name, PLACES)}")
    module, _, attribute = PLACES[name].partition(":")
    attribute, _, key = attribute.partition(".")
    try:
        found = getattr(import_module(module), attribute, None)
    except ModuleNotFoundError as problem:
        missing = (problem.name or "").split(".")[0]
        if missing == "mre_lowshot":
            raise UserError(f"baseline {name}: this version has no {problem.name}") from None
        raise UserError(missing_package(name, missing)) from None
    found = found.get(key) if key and isinstance(found, Mapping) else found
    if not isinstance(found, Baseline):
        raise UserError(f"baseline {name}: this version has no {PLACES[name]}")
    require_programs(found)
    return found
