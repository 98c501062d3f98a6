"""Commands used wrongly: ``BAD_OPTIONS`` lists (command, arguments, pattern of the message). ``{in}``, ``{out}`` and
``{space}`` stand for a folder of scans, an empty folder and the workspace."""

from __future__ import annotations

PREDICT = ("-i", "{in}", "-o", "{out}", "--workspace", "{space}", "-device", "cpu")
TRAIN = ("Synthetic", "1shot", "fold1", "-p", "Tiny", "--workspace", "{space}", "-device", "cpu")
PLAN = ("-d", "900", "-p", "New", "--workspace", "{space}", "-device", "cpu")


def _swapped(base: tuple[str, ...], old: str, new: str) -> tuple[str, ...]:
    return tuple(new if word == old else word for word in base)


BAD_OPTIONS: list[tuple[str, tuple[str, ...], str]] = [
    ("predict", (*PREDICT, "-step_size", "1e-9"), "step_size"),
    ("predict", (*PREDICT, "-step_size", "nan"), "step_size"),
    ("predict", (*PREDICT, "-step_size", "2"), "step_size"),
    ("predict", (*PREDICT, "-step_size", "0.5", "--centre"), "exclude each other"),
    ("predict", (*PREDICT, "-num_parts", "2", "-part_id", "2"), "part_id 2"),
    ("predict", (*PREDICT, "-num_parts", "0"), "num_parts|part_id"),
    ("predict", (*PREDICT, "-num_parts", "1000000000"), "num_parts"),
    ("predict", (*PREDICT, "-f", "99999999999999999999"), "fold"),
    ("predict", (*PREDICT, "-f", "-1"), "fold|-f"),
    ("predict", (*PREDICT, "-f", "7"), r"fold \[7\] is not trained"),
    ("predict", (*PREDICT, "-m", "/nowhere"), "does not exist"),
    ("predict", (*PREDICT, "-m", "{in}"), "no trained fold"),
    ("predict", (*PREDICT, "-d", "Nothing"), "no trained model"),
    ("predict", _swapped(PREDICT, "cpu", "meta"), "meta"),
    ("predict", _swapped(PREDICT, "cpu", "cuda:99"), "cuda"),
    ("predict", _swapped(PREDICT, "cpu", "toaster"), "toaster"),
    ("predict", _swapped(PREDICT, "cpu", ""), "device"),
    ("predict", _swapped(PREDICT, "{in}", "/nowhere"), "does not exist"),
    ("predict", _swapped(PREDICT, "{out}", "{in}"), "folder of the scans too"),
    ("predict", _swapped(PREDICT, "{out}", "{in}/phantom_001_0000.nii.gz"), "is a file"),
    ("predict", ("-i", "{in}"), "-o"),
    ("train", (*TRAIN, "--seed", "-1"), "seed"),
    ("train", (*TRAIN, "--seed", "99999999999999999999999"), "seed"),
    ("train", (*TRAIN, "--iterations", "0"), "iterations"),
    ("train", (*TRAIN, "--iterations", "1000000000000000000000"), "iterations"),
    ("train", (*TRAIN, "--workers", "-1"), "workers"),
    ("train", (*TRAIN, "--workers", "1000000"), "workers"),
    ("train", (*TRAIN, "--c"), "missing; train|no checkpoint|checkpoint is missing"),
    ("train", (*TRAIN, "--val"), "missing; train|no checkpoint|checkpoint is missing"),
    ("train", (*TRAIN, "--c", "--overwrite"), "not allowed"),
    ("train", _swapped(TRAIN, "fold1", "fold99"), "fold 99"),
    ("train", _swapped(TRAIN, "fold1", "first"), "first"),
    ("train", _swapped(TRAIN, "1shot", "99999shot"), "99999"),
    ("train", _swapped(TRAIN, "1shot", "0shot"), "0shot"),
    ("train", _swapped(TRAIN, "1shot", "nan"), "nan"),
    ("train", _swapped(TRAIN, "Synthetic", "Nothing"), "not in"),
    ("train", _swapped(TRAIN, "Tiny", "Nothing"), "missing"),
    ("train", (*TRAIN, "--cohort", "paper"), "cohort"),
    ("plan", (*PLAN, "--set", "recipe.optimizer.learning_rate=Infinity"), "learning_rate|finite|Infinity"),
    ("plan", (*PLAN, "--set", "recipe.optimizer.learning_rate=1e999"), "learning_rate|finite"),
    ("plan", (*PLAN, "--set", "recipe.optimizer.learning_rate=NaN"), "learning_rate|finite|NaN"),
    ("plan", (*PLAN, "--set", "recipe.optimizer.learning_rte=1"), "did you mean"),
    ("plan", (*PLAN, "--set", "iterations"), "KEY=VALUE"),
    ("plan", (*PLAN, "--set", "network.widths=[1000000, 1000000, 1000000]"), "widths|memory|parameters"),
    ("plan", (*PLAN, "--memory", "-3"), "memory"),
    ("plan", (*PLAN, "--memory", "nan"), "memory"),
    ("plan", (*PLAN, "--memory", "inf"), "memory"),
    ("plan", (*PLAN, "--recipe", "secret"), "recipe|preset"),
    ("plan", (*PLAN, "--keep_plan"), "missing"),
    ("plan", (*PLAN, "--keep_plan", "--overwrite"), "keep_plan"),
    ("plan", _swapped(PLAN, "New", "../outside"), "-p"),
    ("plan", _swapped(PLAN, "New", "a__b"), "-p"),
    ("plan", _swapped(PLAN, "New", "x" * 300), "-p"),
    ("plan", _swapped(PLAN, "900", "901"), "not in"),
    ("plan", _swapped(PLAN, "900", ".."), "not in|dataset.json"),
    ("plan", _swapped(PLAN, "{space}", "{in}/phantom_001_0000.nii.gz"), "not in|is a file|not a folder"),
    ("evaluate", ("/nowhere", "{out}"), "is not a folder"),
    ("evaluate", ("{in}", "{out}"), "no label|contains no|holds no|empty"),
    ("evaluate", ("{in}", "{in}", "-o", "{out}/summary.json"), "folder"),
    ("evaluate", ("{in}", "{in}", "-djfile", "/nowhere.json"), "missing"),
    ("evaluate", ("{in}", "{in}", "--profile", "strict"), "profile"),
    ("demo", ("-o", "{in}", "--overwrite"), "not a demo folder|not replaced"),
    ("demo", ("-o", "{in}"), "not empty"),
    ("experiment", ("table99", "-d", "900", "--workspace", "{space}"), "table99"),
    ("experiment", ("table2",), "name a table and a dataset"),
]
