"""From fingerprint to plan: the decisions of `planners.decisions`, applied in order, each with its reason."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mre_lowshot.config import Plan
from mre_lowshot.config.json import all_changed
from mre_lowshot.config.presets import preset
from mre_lowshot.planners import rules
from mre_lowshot.planners.decisions import DECISIONS, DatasetFacts, Draft
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
    )


def make_plan(
    facts: DatasetFacts,
    fingerprint: dict[str, Any],
    *,
    device: Device,
    recipe: str = "default",
    plans_name: str = "MREPlans",
) -> Plan:
    """Decide everything that images and device determine. What labels determine is decided per fold (`planners.fold`).

    Raises:
        UserError: no preset is called ``recipe``.
    """
    draft = Draft(facts, fingerprint, device, preset(recipe))
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
    )


def with_changes(plan: Plan, changes: dict[str, str], where: str = "--set") -> Plan:
    """``plan`` with fields changed as ``--set KEY=VALUE`` does; ``network.dilations`` may also name a rule (`paper`,
    `patch`).

    Raises:
        UserError: a key names no field (the nearest is named), or a value breaks a rule.
    """
    if not changes:
        return plan
    rule = rules.DILATION_RULES.get(changes.get("network.dilations", ""))
    changed = all_changed(plan, {k: v for k, v in changes.items() if not (rule and k == "network.dilations")}, where)
    if rule:
        rows, _ = rule(changed.patch.size)
        changed = replace(changed, network=replace(changed.network, dilations=rows))
    listed = ", ".join(f"{key}={value}" for key, value in changes.items())
    return replace(changed, reasons={**plan.reasons, "set": f"changed by {where}, overriding the above: {listed}"})
