"""Command lines and arguments without sense: one sentence and exit code 2, whatever the option; nothing is written."""

import contextlib
import io
import math

import pytest
from conftest import command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mre_lowshot
from mre_lowshot import devices
from mre_lowshot.errors import UserError
from mre_lowshot.inference.predictor import Predictor
from mre_lowshot.inference.tiles import centre_tiles, count_tiles, overlap_tiles

pytestmark = pytest.mark.usefixtures("one_thread_only")


def refused(name, *arguments):
    """Run a command that must end with exit code 2: its last line on stderr."""
    text = io.StringIO()
    with contextlib.redirect_stderr(text), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = command(name, *arguments)
        except SystemExit as left:
            code = left.code
    assert code == 2, (arguments, text.getvalue())
    assert "Traceback" not in text.getvalue()
    assert len(text.getvalue()) < 20_000
    return text.getvalue().strip().splitlines()[-1]


LONG, DIGITS = "x" * 5000, "9" * 400


@pytest.mark.parametrize(
    ("name", "arguments", "part"),
    [
        ("plan", ["--memory", "inf"], "--memory inf: must lie in [0.1, 100000]"),
        ("plan", ["--memory", "nan"], "--memory nan"),
        ("plan", ["--memory", "1e30"], "--memory 1e+30"),
        ("plan", ["--memory", "-1"], "--memory -1"),
        ("plan", ["--memory", "0"], "--memory 0"),
        ("plan", ["--recipe", ""], "--recipe ''"),
        ("plan", ["--recipe", LONG], "is unknown"),
        ("plan", ["-p", "../x"], "-p '../x'"),
        ("plan", ["-p", "a" * 200], "bytes"),
        ("plan", ["-p", ""], "-p ''"),
        ("plan", ["-p", "a\nb"], "-p"),
        ("plan", ["-device", "meta"], "-device meta: not a device"),
        ("plan", ["-device", "xla"], "-device xla"),
        ("plan", ["-device", "hpu"], "-device hpu"),
        ("plan", ["-device", "cpu:5"], "-device cpu:5"),
        ("plan", ["-device", ""], "-device "),
        ("plan", ["--gpus", "0"], "--gpus 0: must be at least 1"),
        ("plan", ["-device", "cuda:-1"], "-device cuda:-1"),
        ("plan", ["-device", "cuda:99"], "-device cuda:99: not available"),
        ("plan", ["-device", "cuda:" + DIGITS], "not a device"),
        ("plan", ["--over"], "unrecognized arguments: --over"),
        ("train", ["--iterations", "0"], "--iterations 0: must be at least 1"),
        ("train", ["--iterations", "1" + "0" * 30], "--iterations a whole number beyond 64 bits"),
        ("train", ["--iterations", "-5"], "--iterations -5"),
        ("train", ["--iterations", "9" * 5000], "invalid int value"),
        ("train", ["--workers", "-1"], "--workers -1: must be at least 0"),
        ("train", ["--workers", "1000000"], "--workers 1000000"),
        ("train", ["-p", "../Tiny"], "-p '../Tiny'"),
        ("train", ["--cohort", "../x"], "--cohort '../x'"),
        ("train", ["--cohort", ""], "--cohort"),
        ("train", ["--cohorts", ""], "the path is empty"),
        ("train", ["-device", "meta"], "-device meta"),
        ("predict", ["-step_size", "nan"], "-step_size nan: must lie in [0.05, 1]"),
        ("predict", ["-step_size", "inf"], "-step_size inf"),
        ("predict", ["-step_size", "1e-9"], "-step_size 1e-09"),
        ("predict", ["-step_size", "2"], "-step_size 2"),
        ("predict", ["-step_size", "0"], "-step_size 0"),
        ("predict", ["-num_parts", "0"], "-num_parts 0"),
        ("predict", ["-num_parts", "1000000000"], "-num_parts 1000000000"),
        ("predict", ["-part_id", "-1"], "-part_id -1"),
        ("predict", ["-part_id", "1"], "-part_id 1"),
        ("predict", ["-f", "99999999999999999999"], "fold '99999999999999999999'"),
        ("predict", ["-f", "999999999"], "not trained"),
        ("predict", ["-f", "-1"], ""),
        ("predict", ["-f", "x"], "fold 'x'"),
        ("predict", ["-c", "99999shot"], "no trained model"),
        ("predict", ["-c", "-5shot"], ""),
        ("predict", ["-c", "nan pct"], "level 'nan pct'"),
        ("predict", ["-c", ""], "level ''"),
        ("predict", ["-d", "\u00b2"], "no trained model"),
        ("predict", ["-d", DIGITS], "no trained model"),
        ("predict", ["-p", "a/b"], "-p 'a/b'"),
        ("predict", ["-m", ""], "the path is empty"),
        ("predict", ["-m", "a\0b"], "NUL"),
        ("predict", ["-i", ""], "the path is empty"),
        ("predict", ["-i", "/dev/null/x"], "does not exist"),
        ("predict", ["-o", ""], "the path is empty"),
        ("predict", ["--cont"], "unrecognized arguments: --cont"),
        ("predict", ["--precision", "fp8"], "invalid choice"),
        ("predict", ["--workspace", ""], "--workspace is empty"),
        ("predict", ["--workspace", "a\0b"], "NUL"),
        ("predict", ["--workspace", "~nosuchuser/x"], ""),
        ("evaluate", ["--ignore", "-1"], "--ignore -1"),
        ("evaluate", ["--ignore", "9" * 30], "--ignore"),
        ("evaluate", ["-djfile", ""], "the path is empty"),
        ("evaluate", ["-o", ""], "the path is empty"),
        ("experiment", ["--iterations", "0"], "--iterations 0: must be at least 1"),
        ("experiment", ["--workers", "-1"], "--workers -1"),
        ("experiment", ["--folds", "-1"], ""),
        ("experiment", ["--folds", "9" * 30], "--folds"),
        ("experiment", ["--level", "x"], "level 'x'"),
        ("experiment", ["--base", ""], "invalid choice"),
        ("demo", ["--iterations", "0"], "--iterations 0: must be at least 1"),
        ("demo", ["-o", ""], "the path is empty"),
        ("doctor", ["--js"], "unrecognized arguments: --js"),
    ],
)  # fmt: skip
def test_an_option_without_sense(trained, tmp_path, name, arguments, part):
    (tmp_path / "in").mkdir()
    before = sorted(trained.root.rglob("*"))
    assert part in refused(name, *BASE[name](trained, tmp_path), *arguments)
    assert sorted(trained.root.rglob("*")) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


BASE = {
    "plan": lambda space, tmp: ["-d", "900", "--workspace", space.root],
    "train": lambda space, tmp: ["Synthetic", "1shot", "fold0", "-p", "Tiny", "--workspace", space.root],
    "predict": lambda space, tmp: ["-i", tmp / "in", "-o", tmp / "out", "--workspace", space.root, "-device", "cpu"],
    "evaluate": lambda space, tmp: [space.raw / "labelsTr", space.raw / "labelsTr"],
    "experiment": lambda space, tmp: ["table2", "-d", "900", "--workspace", space.root],
    "demo": lambda space, tmp: ["-o", tmp / "demo"],
    "doctor": lambda space, tmp: ["--no_run"],
}


@pytest.mark.parametrize("dataset", ["..", ".", "/", "", "a\0b", "\u00b2", DIGITS, LONG, "~", "900\n", "-", "*"])
def test_datasets_that_are_none(trained, dataset):
    refused("plan", f"-d={dataset}", "--workspace", trained.root)
    with pytest.raises(UserError):
        mre_lowshot.train(dataset, workspace=trained.root, plans_name="Tiny")


def test_a_workspace_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    assert "is a file" in refused("plan", "-d", "900", "--workspace", tmp_path / "file")


@pytest.mark.parametrize("fault", [
    lambda s: mre_lowshot.plan("900", workspace=s.root, memory_gb="8"),
    lambda s: mre_lowshot.plan("900", workspace=s.root, memory_gb=True),
    lambda s: mre_lowshot.plan("900", workspace=s.root, plans_name=3),
    lambda s: mre_lowshot.plan("900", workspace=s.root, recipe=["default"]),
    lambda s: mre_lowshot.plan("900", workspace=s.root, plans_name="X", changes={"recipe.name": object()}),
    lambda s: mre_lowshot.plan("900", workspace=s.root, plans_name="X", changes={3: 4}),
    lambda s: mre_lowshot.plan("900", workspace=s.root, plans_name="X", changes={"network.classes": 10**5000}),
    lambda s: mre_lowshot.plan("900", workspace=s.root, plans_name="X", changes={"network.classes": math.nan}),
    lambda s: mre_lowshot.plan("900", workspace=3),
    lambda s: mre_lowshot.train("900", workspace=s.root, plans_name="Tiny", iterations=1.5),
    lambda s: mre_lowshot.train("900", workspace=s.root, plans_name="Tiny", iterations=True),
    lambda s: mre_lowshot.train("900", workspace=s.root, plans_name="Tiny", workers="2"),
    lambda s: mre_lowshot.train("900", 1, workspace=s.root, plans_name="Tiny"),
    lambda s: mre_lowshot.train("900", workspace=s.root, plans_name="Tiny", mode=["new"]),
    lambda s: mre_lowshot.train("900", workspace=s.root, plans_name="Tiny", device=None),
    lambda s: mre_lowshot.predict(3, s.root / "out", workspace=s.root),
    lambda s: mre_lowshot.predict("", s.root / "out", workspace=s.root),
    lambda s: mre_lowshot.predict(s.raw / "imagesTr", "", workspace=s.root),
    lambda s: mre_lowshot.predict(s.raw / "imagesTr", s.root / "out", workspace=s.root, num_parts="2"),
    lambda s: mre_lowshot.predict(s.raw / "imagesTr", s.root / "out", workspace=s.root, num_parts=1.0),
    lambda s: mre_lowshot.evaluate("", s.raw / "labelsTr"),
    lambda s: mre_lowshot.evaluate(s.raw / "labelsTr", s.raw / "labelsTr", ignore="1"),
    lambda s: Predictor.load(s.model(), step_size="0.5"),
    lambda s: Predictor.load(s.model(), folds="all"),
    lambda s: Predictor.load(s.model(), folds=[10**30]),
    lambda s: Predictor.load(s.model(), folds=[0.5]),
    lambda s: Predictor.load(s.model(), precision="fp8"),
    lambda s: Predictor.load("", device="cpu"),
])  # fmt: skip
def test_arguments_of_a_wrong_type_in_python(trained, fault):
    with pytest.raises(UserError) as problem:
        fault(trained)
    assert len(str(problem.value)) < 1000


def test_devices():
    assert str(devices.resolve("cpu")) == "cpu"
    for name in ("meta", "CPU", " cpu", "cpu\n", "cuda:", "mps:0", "lazy", "privateuseone", "ipu", None, 3):
        with pytest.raises(UserError, match="-device"):
            devices.resolve(name)


@given(
    size=st.tuples(*[st.integers(4, 40)] * 3), patch=st.tuples(*[st.integers(2, 4)] * 3), step=st.floats(0.05, 1),
    centre=st.integers(1, 2),
)  # fmt: skip
@settings(max_examples=40, derandomize=True)
def test_tiles_are_counted_without_making_them(size, patch, step, centre):
    made = len(list(overlap_tiles(size, patch, step)))
    assert made <= count_tiles(size, patch, step=step) <= 2 * made + 8
    made = len(list(centre_tiles(size, patch, (centre,) * 3)))
    assert made <= count_tiles(size, patch, centre=(centre,) * 3)


OPTIONS = {
    "plan": ["-d", "-p", "--recipe", "--set", "-device", "--memory", "--keep_plan", "--overwrite", "--no_pp"],
    "train": ["-p", "--iterations", "--seed", "--workers", "--cohort", "--cohorts", "--c", "--val", "nope",
              "1shot", "fold0"],
    "predict": ["-i", "-o", "-m", "-d", "-c", "-p", "-f", "-step_size", "--centre", "-num_parts", "-part_id"],
    "evaluate": ["-djfile", "-o", "--profile", "--ignore", "gt", "pred"],
    "experiment": ["table2", "-d", "--rows", "--folds", "--level", "--iterations", "--workers"],
}  # fmt: skip
WORDS = st.one_of(
    st.sampled_from(["", "nan", "inf", "-1", "0", "1e-9", "1e999", "9" * 30, "..", "/", "a\0b", "x=1", "recipe=", "=",
                     "all", "\u00b2", "\u202e", "fold0", "1shot", "-", "--", "absent"]),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6),
)  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
@settings(max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_command_line_on_a_dataset_that_does_not_exist(no_settings, tmp_path, name, data):
    words = data.draw(st.lists(st.one_of(st.sampled_from(OPTIONS[name]), WORDS), max_size=7))
    if any(word.startswith(("-h", "--help", "--version", "--li")) for word in words):
        return
    refused(name, *words)
    assert list(tmp_path.iterdir()) == []
