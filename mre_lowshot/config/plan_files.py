"""Plan files: reading, comparison, and the results folders of plans."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mre_lowshot.config import Plan
from mre_lowshot.config.json import from_json, to_json
from mre_lowshot.errors import UserError
from mre_lowshot.files import read_json, write_json

TRAINER = "MRETrainer"


def load_plan(path: Path) -> Plan:
    """Read and check a plan.

    Raises:
        UserError: the file is missing or not valid JSON, or has an unknown key or a wrong type or value.
    """
    if not path.is_file():
        raise UserError(f"plan {path} is missing; run mre_plan_and_preprocess first (-p names another plan)")
    plan = from_json(Plan, read_json(path, "plan"), str(path))
    if path.name != "plans.json" and plan.plans_name != path.stem:
        raise UserError(
            f"{path.name}: plans_name is {plan.plans_name!r}, whose preprocessed cases and results it would use; "
            f"set it to {path.stem!r}, the name of the file"
        )
    return plan


def results_folder(results: Path, dataset_name: str, plans_name: str, level: str) -> Path:
    """The model folder, named as in nnU-Net: results/DatasetXXX_Name/MRETrainer__MREPlans__1shot.

    Args:
        results: root folder of results.
        dataset_name: DatasetXXX_Name.
        plans_name: name of the plan.
        level: for example ``1shot``.
    """
    return results / dataset_name / f"{TRAINER}__{plans_name}__{level}"


def write_or_verify(path: Path, plan: Plan) -> None:
    """Write ``plan`` to the plans.json of a results folder, or verify that the existing file is the same plan.

    Raises:
        UserError: the folder contains results of another plan; results of different plans are never mixed.
    """
    if path.is_file():
        require_same(path, load_plan(path), plan)
    else:
        write_json(path, to_json(plan))


def require_same(path: Path, existing: Plan, plan: Plan) -> None:
    """Refuse ``existing``, the plan of the results in the folder of ``path``, where it is not ``plan``.

    Raises:
        UserError: they differ; names the first field.
    """
    if not same_plan(existing, plan):
        why = first_difference(_before_training(existing), _before_training(plan))
        raise UserError(
            f"{path.parent}: holds results of another plan ({why}); "
            "give this plan another name (-p), or move the folder away"
        )


def same_plan(one: Plan, other: Plan) -> bool:
    """Whether two plans are equal, except for reasons and the fusion weights tuned at the end of training."""
    return _before_training(one) == _before_training(other)


def _before_training(plan: Plan) -> Plan:
    fold = plan.fold and replace(plan.fold, reasons={}, atlas_weight=None, crf_weight=None)
    return replace(plan, reasons={}, fold=fold)


def first_difference(one: Plan, other: Plan) -> str:
    """The first field in which two plans differ, with both values."""
    return _first_difference(to_json(one), to_json(other))


def _first_difference(one: object, other: object, where: str = "") -> str:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in {**one, **other}:
            if one.get(key) != other.get(key):
                return _first_difference(one.get(key), other.get(key), f"{where}.{key}".lstrip("."))
    return f"{where}: existing {one!r}, new {other!r}"
