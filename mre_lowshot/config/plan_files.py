"""Reading plans and naming what belongs to them: result folders, folds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mre_lowshot.codec import from_json, to_json
from mre_lowshot.errors import UserError
from mre_lowshot.files import read_json, write_json
from mre_lowshot.specs import Plan

TRAINER = "MRETrainer"


def load_plan(path: Path) -> Plan:
    """Read and check a plan, perhaps edited by hand.

    Raises:
        UserError: missing, no JSON, an unknown key, a wrong type or value; each named.
    """
    if not path.is_file():
        raise UserError(f"plan {path} is missing; run mre_plan_and_preprocess first (-p names another plan)")
    plan = from_json(Plan, read_json(path, "plan"), path.name)
    if path.name != "plans.json" and plan.plans_name != path.stem:
        raise UserError(
            f"{path.name}: plans_name is {plan.plans_name!r}, whose preprocessed cases and results it would use; "
            f"set it to {path.stem!r}, the file's name"
        )
    return plan


def results_folder(results: Path, dataset_name: str, plans_name: str, level: str) -> Path:
    """nnU-Net's folder name: results/DatasetXXX_Name/MRETrainer__MREPlans__1shot."""
    return results / dataset_name / f"{TRAINER}__{plans_name}__{level}"


def claim(path: Path, plan: Plan) -> None:
    """Write ``plan`` to a results folder's plans.json, or check that the one there is the same.

    Raises:
        UserError: the folder holds results of another plan (they are never mixed).
    """
    if path.is_file():
        there = load_plan(path)
        if not same_plan(there, plan):
            why = first_difference(_before_training(there), _before_training(plan))
            raise UserError(
                f"{path.parent}: holds results of another plan ({why}); "
                "give this plan another name (-p), or move the folder away"
            )
        return
    write_json(path, to_json(plan))


def same_plan(one: Plan, other: Plan) -> bool:
    """Whether two plans say the same, whatever their reasons' wording, before training and after it."""
    return _before_training(one) == _before_training(other)


def _before_training(plan: Plan) -> Plan:
    """Reasons are prose: another wording is no other plan. Nor is what is found when training has ended."""
    return replace(
        plan, reasons={}, fold=plan.fold and replace(plan.fold, reasons={}, prior_weight=None, neighbour_weight=None)
    )


def first_difference(one: Plan, other: Plan) -> str:
    """The first field in which two plans differ, with both values."""
    return _first_difference(to_json(one), to_json(other))


def _first_difference(one: object, other: object, where: str = "") -> str:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in {**one, **other}:
            if one.get(key) != other.get(key):
                return _first_difference(one.get(key), other.get(key), f"{where}.{key}".lstrip("."))
    return f"{where}: {one!r} there, {other!r} now"
