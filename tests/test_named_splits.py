"""Level rest, which trains outside a cohort, and folds that the user names."""

import json
import re

import pytest

from mre_lowshot.data.named_splits import level_splits
from mre_lowshot.data.splits import make_splits, parse_level
from mre_lowshot.errors import UserError

NAMES = [f"case_{n}" for n in range(6)]
FOLDS = [{"train": NAMES[3:5], "val": NAMES[:2]}, {"train": NAMES[:1], "val": NAMES[5:]}]
COHORTS = {"low": NAMES[:2], "every": NAMES, "mine": FOLDS, "one": FOLDS[0]}


@pytest.fixture
def space(tmp_path):
    (tmp_path / "cohorts.json").write_text(json.dumps({"Dataset001_X": COHORTS}))
    return tmp_path


def splits(folder, level, cohort=None, **more):
    return level_splits(folder, level, NAMES, dataset="Dataset001_X", cohort=cohort, **more)


def test_rest_trains_outside_the_cohort_and_tests_on_it(space):
    level, folds = splits(space, "rest", "low")
    assert level == parse_level("REST_low".lower()) == "rest_low"
    assert folds == [{"train": NAMES[2:], "val": NAMES[:2]}]
    assert splits(space, "rest", "low") == (level, folds)  # saved, and the cohort is still that of the file
    assert splits(space, "rest_low") == (level, folds)
    with pytest.raises(UserError, match=r"level rest: trains on the cases outside a cohort.*name one \(--cohort\)"):
        splits(space, "rest")
    with pytest.raises(UserError, match="the cohort holds all labelled cases"):
        splits(space, "rest", "every")
    (space / "cohorts.json").write_text(json.dumps({"low": NAMES[1:3]}))
    with pytest.raises(UserError, match=r"contains other cases than the given cohort \(case_0, case_2"):
        splits(space, "rest", "low")


def test_named_folds_are_those_of_the_file(space):
    assert splits(space, "split", "mine") == ("split_mine", FOLDS)
    assert json.loads((space / "splits_split_mine.json").read_text()) == FOLDS
    assert splits(space, "split_mine") == ("split_mine", FOLDS)
    assert splits(space, "split", "one", save=False) == ("split_one", FOLDS[:1])
    assert not (space / "splits_split_one.json").exists()
    changed = space / "other.json"
    changed.write_text(json.dumps({"mine": FOLDS[:1]}))
    with pytest.raises(UserError, match=re.escape(f"contains other folds than 'mine' in {changed}; delete it")):
        splits(space, "split", "mine", cohorts_file=changed)


@pytest.mark.parametrize(
    ("folds", "words"),
    [
        ([], "mine: must be a list of folds"),
        ("case_0", "mine: must be a list of folds"),
        (["case_0"], "fold 0: must be {"),
        ([{"train": ["case_0"], "val": ["case_9"]}], "val: 'case_9' is not a labelled case"),
        ([{"train": ["case_0"], "val": ["case_0"]}], "case_0 in train and in val"),
        ([{"train": [], "val": ["case_0"]}], "train is empty"),
    ],
)
def test_wrong_folds_are_refused(space, folds, words):
    (space / "cohorts.json").write_text(json.dumps({"mine": folds}))
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        splits(space, "split", "mine")
    assert "cohorts.json" in str(caught.value)
    assert not (space / "splits_split_mine.json").exists()


def test_folds_are_no_cohort_and_a_cohort_is_no_fold(space):
    with pytest.raises(UserError, match="must be a list of case names; folds are used with level split"):
        splits(space, "1shot", "mine")
    with pytest.raises(UserError, match="low: fold 0: must be"):
        splits(space, "split", "low")
    with pytest.raises(UserError, match="level split: has no folds of its own"):
        splits(space, "split")


def test_other_levels_are_as_ever(space):
    assert splits(space, "2shot") == ("2shot", make_splits("2shot", NAMES))
    assert splits(space, "1shot", "low") == ("1shot_low", make_splits("1shot", NAMES, cohort=NAMES[:2]))
    with pytest.raises(UserError, match="names a cohort already"):
        splits(space, "1shot_low", "low")
