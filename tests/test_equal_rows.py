"""Rows of a table that would train the same network on a dataset are run once."""

from dataclasses import replace

import pytest
from test_experiments import FACTS, FINGERPRINT
from test_planners import CPU, numbered

from mre_lowshot.experiments.equal_plans import trains_the_same
from mre_lowshot.experiments.runner import Setting, plan_row
from mre_lowshot.experiments.tables import TABLES
from mre_lowshot.planners import hardware

pytestmark = pytest.mark.usefixtures("one_thread_only", "no_settings")
ROWS = [row for row in TABLES["parts"].rows_at("small") if not row.baseline]


def trained(labels, channel="MRI"):
    """Rows of `parts` that are not the plan over again, as training them one after the other would find."""
    facts = replace(FACTS, labels=labels, channel_names=(channel,))
    kept = {}
    for row in sorted(ROWS, key=lambda row: row.name != "default"):
        plan = plan_row(row, Setting("small"), facts, FINGERPRINT, hardware.Device(*CPU))
        if not any(trains_the_same(other, plan) for other in kept.values()):
            kept[row.name] = plan
    return set(kept)


def test_a_part_that_the_plan_has_or_lacks_anyway_is_not_trained_again():
    """MRI is planned without AMS, CT with it and with the prior as input, lesions without registration, prototypes, AMS
    and OHEM (docs/METHOD.md)."""
    each = {"default", "not_registered", "m1", "average", "one_hot", "no_dml", "no_ohem", "unet_prior", "unet_refined"}
    assert trained(FACTS.labels) == each | {"with_ams", "prior_input", "unet_input"}
    assert trained(FACTS.labels, "CT") == each | {"no_ams"}
    assert trained(numbered("tumor", "edema")) == {"default", "with_ams", "with_dml", "with_ohem", "with_all"}


def test_plans_of_other_length_or_preprocessing_are_not_equal():
    made = [
        plan_row(row, setting, FACTS, FINGERPRINT, hardware.Device(*CPU))
        for row in ROWS
        if row.name == "default"
        for setting in (Setting(), Setting(iterations=7), Setting(changes=(("preprocessing.spacing", "[3,3,3]"),)))
    ]
    assert [trains_the_same(made[0], other) for other in made] == [True, False, False]
    assert not trains_the_same(made[1], made[2])
