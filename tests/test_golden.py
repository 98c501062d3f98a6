"""What each stage computes on a small synthetic CT is what it computed before (`tests/golden/make.py`)."""

import json

import numpy as np
import pytest
from golden.make import STAGES, VALUES


@pytest.mark.usefixtures("one_thread_only", "all_starts")
@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_gives_its_golden_values(stage):
    compute, absolute, relative = STAGES[stage]
    wanted = json.loads(VALUES.read_text())[stage]
    found = compute()
    assert len(found) == len(wanted)
    np.testing.assert_allclose(found, wanted, atol=absolute, rtol=relative, err_msg=stage)


def test_every_stored_value_belongs_to_a_stage():
    assert set(json.loads(VALUES.read_text())) == set(STAGES)
