"""Training and test scans of every level and fold: protocol, files edited by hand, cohorts."""

import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mre_lowshot.data.splits import load_or_make, make_splits, parse_fold, parse_level, read_cohort
from mre_lowshot.errors import UserError

SEVEN = [f"case_{i}" for i in range(7)]
case_lists = st.integers(1, 25).map(lambda n: [f"c{i:02d}" for i in range(n)])
seeds = st.integers(0, 2**32)


def as_sets(splits):
    return [frozenset(fold["train"]) for fold in splits]


@given(case_lists, st.integers(2, 5), seeds)
def test_draws_are_distinct_and_seeded_and_test_on_no_training_case(names, shots, seed):
    level = f"{shots}shot"
    if len(names) < shots:
        with pytest.raises(UserError, match=rf"{level}: needs {shots} labelled cases, found {len(names)}; use"):
            make_splits(level, names, seed)
        return
    splits = make_splits(level, names, seed)
    assert len(splits) == min(7, math.comb(len(names), shots)) == len(set(as_sets(splits)))
    for fold in splits:
        assert len(fold["train"]) == shots
        assert not set(fold["train"]) & set(fold["val"])
        assert sorted(fold["train"] + fold["val"]) == names
    assert splits == make_splits(level, names[::-1], seed)  # reproducible, whatever the order of the listing


@given(case_lists, st.integers(1, 100), seeds)
def test_percentages_are_rounded_to_at_least_one(names, percent, seed):
    splits = make_splits(f"{percent}pct", names, seed)
    count = max(1, math.floor(percent * len(names) / 100 + 0.5 + 1e-9))
    assert {len(fold["train"]) for fold in splits} == {count}
    assert len(splits) == min(7, math.comb(len(names), count)) == len(set(as_sets(splits)))
    assert all(sorted(fold["train"] + fold["val"]) == names for fold in splits)


@pytest.mark.parametrize(("level", "count"), [("1pct", 2), ("5pct", 11), ("10pct", 22), ("100pct", 220)])
def test_percentages_of_220_images_are_the_papers(level, count):
    folds = make_splits(level, [f"c{i:03d}" for i in range(220)])
    assert {len(fold["train"]) for fold in folds} == {count}
    assert len(folds) == (1 if count == 220 else 7)


@given(case_lists)
def test_one_shot_trains_on_each_case_in_turn(names):
    splits = make_splits("1shot", names)
    assert [fold["train"] for fold in splits] == [[name] for name in names]
    assert all(sorted(fold["train"] + fold["val"]) == names for fold in splits)


@given(case_lists.filter(lambda names: len(names) > 1))
def test_leave_one_out_holds_out_each_case_in_turn(names):
    splits = make_splits("loo", names)
    assert [fold["val"] for fold in splits] == [[name] for name in names]
    assert all(sorted(fold["train"] + fold["val"]) == names for fold in splits)


def test_another_seed_gives_other_draws():
    names = [f"c{i}" for i in range(20)]
    assert make_splits("3shot", names, 0) != make_splits("3shot", names, 1)


def test_single_case_and_all():
    assert make_splits("1shot", ["a"]) == [{"train": ["a"], "val": []}]
    assert make_splits("2shot", ["b", "a"]) == [{"train": ["a", "b"], "val": []}]
    assert make_splits("all", ["b", "a"]) == [{"train": ["a", "b"], "val": []}]
    with pytest.raises(UserError, match=r"a is the only labelled case.*use 1shot or all"):
        make_splits("loo", ["a"])
    with pytest.raises(UserError, match="no labelled case; annotate"):
        make_splits("1shot", [])


def test_a_cohort_limits_training_and_testing():
    names = [f"c{i:02d}" for i in range(17)]
    cohort = names[3:10]
    splits = make_splits("2shot", names, cohort=cohort)
    assert len(splits) == 7
    assert all(sorted(fold["train"] + fold["val"]) == cohort for fold in splits)
    with pytest.raises(UserError, match=r"cohort: 'c0' is not a labelled case of the dataset; did you mean 'c\d\d'"):
        make_splits("1shot", names, cohort=["c01", "c0"])
    with pytest.raises(UserError, match="cohort: c01 named more than once"):
        make_splits("1shot", names, cohort=["c01", "c01"])


@pytest.mark.parametrize(
    ("text", "level"),
    [("1shot", "1shot"), (" 3SHOT", "3shot"), ("2-shot", "2shot"), ("5pct", "5pct"), ("LOO", "loo"), ("all", "all")],
)
def test_levels(text, level):
    assert parse_level(text) == level


@pytest.mark.parametrize("text", ["0shot", "shot", "one", "101pct", "-1shot", "1.5shot", "", "1shot/../x"])
def test_unknown_levels(text):
    with pytest.raises(UserError, match="must be 1shot, 2shot, 3shot"):
        parse_level(text)


def test_folds():
    assert [parse_fold(text) for text in ("fold0", "fold_12", "3", "all")] == [0, 12, 3, "all"]
    for text in ("fold", "-1", "1.0", "every"):
        with pytest.raises(UserError, match="must be fold0"):
            parse_fold(text)


def test_splits_are_saved_once_then_read_with_the_users_edits(tmp_path: Path):
    made = load_or_make(tmp_path / "new", "2shot", SEVEN, seed=3)
    path = tmp_path / "new" / "splits_2shot.json"
    assert json.loads(path.read_text()) == made == make_splits("2shot", SEVEN, 3)
    assert load_or_make(tmp_path / "new", "2shot", SEVEN, seed=4) == made
    edited = [{"train": ["case_0", "case_1"], "val": ["case_6"]}]
    path.write_text(json.dumps(edited))
    assert load_or_make(tmp_path / "new", "2shot", SEVEN) == edited


GOOD = {"train": ["case_0", "case_1"], "val": ["case_2"]}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"train": ["case_0", "cose_1"], "val": []}, "train: 'cose_1' is not a labelled case.*did you mean 'case_1'"),
        (
            {"train": ["case_0", "case_1"], "val": ["zzz"]},
            "val: 'zzz' is not a labelled case.*the 7 labelled cases are case_0, case_1",
        ),
        ({"train": ["case_0", "case_1"], "val": ["case_1"]}, "case_1 in train and in val"),
        ({"train": ["case_0", "case_0"], "val": []}, "train: case_0 named more than once"),
        ({"train": [], "val": ["case_1"]}, "train is empty; name at least one"),
        (
            {"train": ["case_0"], "val": []},
            r"train contains 1 cases \(case_0\), level 2shot requires 2; correct it, or delete",
        ),
        ({"train": ["case_0", "case_1"]}, 'must be {"train"'),
        ({"train": "case_0", "val": []}, 'must be {"train"'),
        (["case_0"], 'must be {"train"'),
    ],
)
def test_edited_splits_are_checked(tmp_path: Path, bad, message):
    (tmp_path / "splits_2shot.json").write_text(json.dumps([GOOD, bad]))
    with pytest.raises(UserError, match=rf"splits_2shot.json: fold 1: {message}"):
        load_or_make(tmp_path, "2shot", SEVEN)


@pytest.mark.parametrize("text", ["[]", "{}", "3"])
def test_a_file_without_folds_is_refused(tmp_path: Path, text):
    (tmp_path / "splits_1shot.json").write_text(text)
    with pytest.raises(UserError, match=r"splits_1shot\.json: must be a list of folds"):
        load_or_make(tmp_path, "1shot", SEVEN)


def test_a_level_of_a_cohort_keeps_its_name_and_its_cases(tmp_path):
    assert parse_level("1shot_develop") == "1shot_develop"
    assert parse_level(" 5PCT_Report2 ") == "5pct_Report2"
    assert parse_level("1_shot") == "1shot"
    names = [f"case_{n}" for n in range(6)]
    seven = names[1:4]
    splits = load_or_make(tmp_path, "1shot_seven", names, cohort=seven)
    assert splits == make_splits("1shot", names, cohort=seven)
    assert load_or_make(tmp_path, "1shot_seven", names) == splits  # saved: the cohort need not be given again
    assert {part for fold in splits for cases in fold.values() for part in cases} == set(seven)
    with pytest.raises(UserError, match="name the cohort once"):
        load_or_make(tmp_path, "1shot_other", names)


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        ('{"a": ["x"]}', "b", "has no cohort 'b' for Dataset001_X (found: a)"),
        ('{"Dataset001_X": {"c": ["x"]}, "a": ["y"]}', "a", "has no cohort 'a'"),
        ('["x"]', "a", "has no cohort"),
        ('{"a": "x"}', "a", "must be a list of case names"),
        ('{"a": ["x"]}', "../a", "it names folders"),
        (None, "a", "is missing"),
    ],
)
def test_a_cohort_that_cannot_be_read_is_reported(tmp_path, content, name, words):
    path = tmp_path / "cohorts.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=re.escape(words)):
        read_cohort(path, "Dataset001_X", name)


def test_a_cohorts_file_is_for_one_dataset_or_for_several(tmp_path):
    path = tmp_path / "cohorts.json"
    path.write_text('{"a": ["x", "y"]}')
    assert read_cohort(path, "Dataset001_X", "a") == ["x", "y"]
    path.write_text('{"Dataset001_X": {"a": ["x"]}}')
    assert read_cohort(path, "Dataset001_X", "a") == ["x"]


def test_another_cohort_of_the_same_name_is_refused(tmp_path):
    names = [f"case_{n}" for n in range(6)]
    load_or_make(tmp_path, "1shot_dev", names, cohort=names[:2])
    load_or_make(tmp_path, "1shot_dev", names, cohort=names[:2][::-1])
    with pytest.raises(UserError, match=r"contains other cases than the given cohort \(case_1, case_3"):
        load_or_make(tmp_path, "1shot_dev", names, cohort=[names[0], names[3]])
