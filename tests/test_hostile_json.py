"""JSON files from strangers: dataset.json, plans, splits, crops and cohorts end in one sentence, or are read."""

import json
import os
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mre_lowshot.config import Plan
from mre_lowshot.config.json import all_changed, from_json, to_json
from mre_lowshot.config.plan_files import load_plan
from mre_lowshot.data.dataset import Dataset
from mre_lowshot.data.splits import load_or_make, parse_fold, parse_level, read_cohort
from mre_lowshot.errors import UserError
from mre_lowshot.files import MAX_JSON, read_json, write_json
from mre_lowshot.plain import parse_json, require_plain, shown
from mre_lowshot.preprocessing.prepare import read_crops

FUZZ = settings(max_examples=150, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])

HOSTILE = {
    "deep lists": (b"[" * 100_000, "nested deeper"),
    "deep objects": (b'{"a":' * 50_000, "nested deeper"),
    "deeper than any file": (b"[" * 40 + b"]" * 40, "nested deeper"),
    "5,000 digits": (b'{"a": ' + b"1" * 5_000 + b"}", "64 bits"),
    "20 digits": (b"[12345678901234567890]", "64 bits"),
    "a long fraction": (b"[0." + b"1" * 5_000 + b"]", "too large or too long"),
    "beyond float64": (b"[1e999]", "too large"),
    "minus beyond float64": (b"[-1e999]", "too large"),
    "NaN": (b"[NaN]", "NaN is not a number"),
    "Infinity": (b'{"a": Infinity}', "Infinity is not a number"),
    "-Infinity": (b'{"a": -Infinity}', "-Infinity is not a number"),
    "a key twice": (b'{"labels": 1, "labels": 2}', "'labels' occurs twice"),
    "an inner key twice": (b'{"x": {"a": 1, "b": 2, "a": 1}}', "'a' occurs twice"),
    "lone surrogate": (rb'{"a": "\ud800"}', "lone surrogate"),
    "lone surrogate in a key": (rb'{"\udfff": 1}', "lone surrogate"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "save it as UTF-8"),
    "UTF-16 without mark": ('{"a": 1}'.encode("utf-16-le"), "save it as UTF-8"),
    "Latin-1": ('{"a": "Schädel"}'.encode("latin-1"), "save it as UTF-8"),
    "zeros": (bytes(1000), "save it as UTF-8"),
    "NUL inside": (b'{"a": "' + b"x" * 99 + b'\0"}', "not valid JSON"),
    "empty": (b"", "not valid JSON"),
    "cut off": (b'{"a": [1, 2', "not valid JSON"),
    "comments": (b'{"a": 1} // x', "not valid JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_has_no_single_reading_is_refused_with_the_file(tmp_path, name):
    content, part = HOSTILE[name]
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as problem:
        read_json(path, "plan")
    assert str(problem.value).startswith(f"plan: {path}")
    assert part in str(problem.value)
    assert len(str(problem.value)) < 500


def test_a_byte_order_mark_is_accepted(tmp_path):
    (tmp_path / "x.json").write_bytes(b"\xef\xbb\xbf" + b'{"a": 1}')
    assert read_json(tmp_path / "x.json", "plan") == {"a": 1}


def test_what_is_no_file(tmp_path):
    with pytest.raises(UserError, match="is missing"):
        read_json(tmp_path / "none.json", "plan")
    with pytest.raises(UserError, match="is not a file"):
        read_json(tmp_path, "plan")
    os.mkfifo(tmp_path / "pipe.json")  # opening it would wait for ever
    with pytest.raises(UserError, match="is not a file"):
        read_json(tmp_path / "pipe.json", "plan")
    with pytest.raises(UserError, match=r"is not a file|is missing|cannot be read"):
        read_json(Path("a\0b"), "plan")
    (tmp_path / "link.json").symlink_to(tmp_path / "link.json")
    with pytest.raises(UserError, match=r"is missing|cannot be read"):
        read_json(tmp_path / "link.json", "plan")


def test_permission_denied_is_not_missing(tmp_path, monkeypatch):
    (tmp_path / "x.json").write_text("{}")

    def denied(self, *arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)"):
        read_json(tmp_path / "x.json", "plan")


def test_a_file_that_is_too_large_is_not_read_to_its_end(tmp_path):
    with (tmp_path / "x.json").open("wb") as file:
        file.truncate(10**12)  # sparse
    with pytest.raises(UserError, match=f"larger than {MAX_JSON >> 20} MB"):
        read_json(tmp_path / "x.json", "plan")


@pytest.mark.parametrize("value", ["Infinity", "1e999", "NaN", "-Infinity", "9" * 5000, "true", "[1]", "{}", '"a"',
                                   "null", "[" * 5000, '{"a": 1, "a": 2}', "1e300", "-1", "0"])  # fmt: skip
def test_a_changed_number_is_refused_before_the_plan_is_written(plan, value):
    with pytest.raises(UserError, match="learning_rate"):
        all_changed(plan, {"recipe.optimizer.learning_rate": value}, "--set")


def test_set_on_the_command_line_writes_nothing(space, capsys):
    before = sorted(space.prepared.iterdir())
    for value in ("Infinity", "NaN", "1e999", "9" * 5000, "\udcff"):
        assert space.plan(name="Other", settings=(f"recipe.optimizer.learning_rate={value}",)) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert sorted(space.prepared.iterdir()) == before


@pytest.fixture(scope="module")
def plan(trained):
    return load_plan(trained.prepared / "Tiny.json")


def leaves(data, above=()):
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield (*above, key)
        yield from leaves(value, (*above, key))


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-3, 9), st.floats(), st.text(max_size=8), st.sampled_from(
        [10**12, 2**63, 10**400, 1e300, 1e-300, -0.0, "../x", "a/b", "\ud800", "\n", "", "x" * 10**4, [], {}, [[]],
         [0] * 9, [1e-9] * 3, [10**6] * 3, [1] * 20_000, {"a": 1}, {"": None}]
    ), st.lists(st.integers(-2, 99), max_size=4), st.lists(st.floats(), max_size=3),
)  # fmt: skip


@FUZZ
@given(data=st.data())
def test_any_field_of_a_plan_with_any_value_is_refused_or_read_again(plan, tmp_path, data):
    content = to_json(plan)
    for _ in range(data.draw(st.integers(1, 2))):
        *above, last = data.draw(st.sampled_from(list(leaves(content))))
        section = content
        for key in above:
            section = section[key]
        section[last] = data.draw(VALUES)
    try:
        made = from_json(Plan, content, "P.json")
    except UserError as problem:
        beginning, length = str(problem)[:6], len(str(problem))
        made = None
    if made is None:
        assert (beginning, length < 3000) == ("P.json", True)
        return
    write_json(tmp_path / "plans.json", to_json(made))
    assert load_plan(tmp_path / "plans.json") == made


@FUZZ
@given(data=st.data())
def test_any_set_of_a_field_is_refused_or_read_again(plan, tmp_path, data):
    paths = [".".join(map(str, path)) for path in leaves(to_json(plan)) if all(isinstance(k, str) for k in path)]
    field = data.draw(st.sampled_from(paths))
    value = data.draw(VALUES)
    try:
        text = value if isinstance(value, str) else json.dumps(value)
    except ValueError:
        return
    try:
        made = all_changed(plan, {field: text}, "--set")
    except UserError:
        return
    write_json(tmp_path / "plans.json", to_json(made))
    assert load_plan(tmp_path / "plans.json") == made


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 99), st.floats(allow_nan=False, allow_infinity=False),
              st.sampled_from(["a", "phantom_000", "background", "liver", "../x", ".nii.gz", "CT", ""])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(
            ["0", "1", "a", "train", "val", "labels", "channel_names", "background", "liver", "ignore", "file_ending",
             "numTraining", "modality", "Dataset900_Synthetic"]), inner, max_size=5),
    ), max_leaves=12,
)  # fmt: skip


@FUZZ
@given(value=JSON)
def test_any_json_in_any_file_is_refused_or_read(tmp_path, value):
    for name in ("dataset.json", "splits_1shot.json", "crops.json", "cohorts.json", "plans.json"):
        (tmp_path / name).write_text(json.dumps(value))
    (tmp_path / "imagesTr").mkdir(exist_ok=True)
    before = sorted(tmp_path.rglob("*"))
    readers = (
        lambda: Dataset.load(tmp_path),
        lambda: load_or_make(tmp_path, "1shot", ["phantom_000", "a"]),
        lambda: read_crops(tmp_path),
        lambda: read_cohort(tmp_path / "cohorts.json", "Dataset900_Synthetic", "a"),
        lambda: load_plan(tmp_path / "plans.json"),
    )
    for read in readers:
        with suppress(UserError):
            read()
    assert sorted(tmp_path.rglob("*")) == before


@FUZZ
@given(text=st.text(max_size=12))
def test_any_text_as_level_fold_or_json(text):
    for parse in (parse_level, parse_fold, lambda t: parse_json(t, "x")):
        try:
            parse(text)
        except UserError:
            continue


@pytest.mark.parametrize("level", ["99999shot", "-5shot", "0shot", "nan pct", "101pct", "9" * 5000 + "shot",
                                   "1shot_a/b", "1shot_a\n", "1shot_" + "a" * 300, "", "1.5shot", "\u0661shot",
                                   None, 1])  # fmt: skip
def test_levels_that_are_none(trained, level):
    with pytest.raises(UserError):
        load_or_make(trained.prepared, level, ["a", "b"])


@pytest.mark.parametrize("fold", ["99999999999999999999", "-1", "1.5", "fold", "\u0662", "nan", "fold0\0", ""])
def test_folds_that_are_none(fold):
    with pytest.raises(UserError, match="must be fold0"):
        parse_fold(fold)


def test_values_that_no_message_can_show_are_named_by_kind():
    loop: list = []
    loop.append(loop)
    with pytest.raises(UserError, match="nested deeper"):
        require_plain(loop, "x")
    assert shown(10**5000) == "a whole number beyond 64 bits"
    assert "cannot be shown" in shown([10**5000])
    assert shown("\ud800").encode("utf-8")
    assert len(shown("x" * 10**6)) < 100


def test_hostile_splits_end_the_command(space, capsys):
    for content in (HOSTILE["deep lists"][0], HOSTILE["a key twice"][0], b"[]", b'{"train": 1}', b'[{"train": [1]}]'):
        (space.prepared / "splits_1shot.json").write_bytes(content)
        assert space.train("--overwrite") == 2
        assert capsys.readouterr().err.startswith("error: ")
    assert command("plan", "-d", space.root, "--workspace", space.root) == 2
