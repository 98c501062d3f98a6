"""From fingerprint to plan: the decisions of `planners.decisions`, applied in order, each with its reason."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mre_lowshot.config import Plan, Recipe
from mre_lowshot.config.json import all_changed
from mre_lowshot.config.presets import preset
from mre_lowshot.errors import UserError
from mre_lowshot.planners import rules
from mre_lowshot.planners.decisions import DECISIONS
from mre_lowshot.planners.draft import Draft
from mre_lowshot.planners.facts import N4, DatasetFacts
from mre_lowshot.planners.fingerprint import training_ranges
from mre_lowshot.planners.hardware import Device

if TYPE_CHECKING:
    from mre_lowshot.data.dataset import Dataset


def facts_of(dataset: Dataset) -> DatasetFacts:
    """What a plan takes from a raw dataset."""
    return DatasetFacts(
        name=dataset.name,
        channel_names=dataset.channel_names,
        labels=dataset.labels,
        ignore_label=dataset.ignore_label,
        file_ending=dataset.file_ending,
        has_crops=(dataset.folder / "crops.json").is_file(),
        bias_field_corrected=dataset.bias_field_corrected,
    )


def make_plan(
    facts: DatasetFacts,
    fingerprint: dict[str, Any],
    *,
    device: Device,
    recipe: str | Recipe = "default",
    n4: N4 = "auto",
    plans_name: str = "MREPlans",
) -> Plan:
    """Decide everything that images and device determine. What labels determine is decided per fold (`planners.fold`).

    Args:
        facts: what the plan takes from dataset.json.
        fingerprint: of the images (`planners.fingerprint`).
        device: to plan for.
        recipe: a preset's name, or a recipe.
        n4: whether the bias field of MRI is corrected: ``auto`` (by the rule), ``on`` or ``off``.
        plans_name: name of the plan.

    Raises:
        UserError: no preset is called ``recipe``, or ``n4`` is on for scans that are no MRI volumes.
    """
    chosen = preset(recipe) if isinstance(recipe, str) else recipe
    draft = Draft(facts, fingerprint, device, chosen, n4)
    for decide in DECISIONS:
        draft = decide(draft)
    return Plan(
        dataset_name=facts.name,
        plans_name=plans_name,
        channel_names=facts.channel_names,
        labels=facts.labels,
        file_ending=facts.file_ending,
        preprocessing=draft.preprocessing,
        patch=draft.patch,
        network=draft.network,
        recipe=draft.recipe,
        reasons=draft.reasons,
        training_ranges=training_ranges(fingerprint),
        ignore_label=facts.ignore_label,
        lesions=draft.lesions,
    )


# Fields that the decisions depend on: they are changed before planning.
FIRST = ("recipe.planning", "recipe.size", "recipe.architecture")


FACTS = {
    **dict.fromkeys(("dataset_name", "training_ranges"), "the dataset"),
    **dict.fromkeys(("channel_names", "labels", "ignore_label", "file_ending"), "dataset.json"),
    **dict.fromkeys(("reasons", "fold"), "the planner"),
    "plans_name": "-p",
    "format_version": "the version of mre_lowshot",
}


def split_changes(changes: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Changes of fields that the decisions depend on, and the others."""
    first = {key: value for key, value in changes.items() if key in FIRST}
    return first, {key: value for key, value in changes.items() if key not in FIRST}


def preset_with(name: str, changes: dict[str, str]) -> Recipe:
    """The preset of that name with some of the fields `FIRST` changed.

    Raises:
        UserError: no such preset, or a value is not allowed.
    """
    return all_changed(preset(name), {key.removeprefix("recipe."): value for key, value in changes.items()}, "--set")


def with_changes(plan: Plan, changes: dict[str, str], where: str = "--set") -> Plan:
    """``plan`` with fields changed as ``--set KEY=VALUE`` does; ``network.dilations`` may also name a rule (`paper`,
    `patch`).

    Raises:
        UserError: a key names no field (the nearest is named), or a value breaks a rule.
    """
    if not changes:
        return plan
    if early := [key for key in changes if key in FIRST]:
        raise UserError(f"{where}: {early[0]} is decided before the rest of the plan; choose another --recipe")
    if facts := [key for key in changes if key.split(".")[0] in FACTS]:
        raise UserError(
            f"{where}: {facts[0]} is not decided but given by {FACTS[facts[0].split('.')[0]]}; change it there"
        )
    rule = rules.DILATION_RULES.get(changes.get("network.dilations", ""))
    changed = all_changed(plan, {k: v for k, v in changes.items() if not (rule and k == "network.dilations")}, where)
    if rule:
        rows, _ = rule(changed.patch.size)
        changed = replace(changed, network=replace(changed.network, dilations=rows))
    listed = ", ".join(f"{key}={value}" for key, value in changes.items())
    return replace(changed, reasons={**plan.reasons, "set": f"changed by {where}, overriding the above: {listed}"})
