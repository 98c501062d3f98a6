"""Rules of the code base: direction of imports, content of the wheel, light imports, file length."""

import ast
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mre_lowshot"
LINKED = ("planners", "preprocessing", "trainers")
COMMANDS = dict(re.findall(r'^(mre_\w+) = "(mre_lowshot\.cli\.\w+):main"', (ROOT / "pyproject.toml").read_text(), re.M))

# Each line may import from itself and the lines above.
LAYERS = [
    {
        "",
        "errors",
        "processes",
        "limits",
        "plain",
        "quiet",
        "files",
        "locks",
        "signed",
        "signals",
        "transaction",
        "config",
        "plotting",
        "devices",
        "transfers",
        "heap",
    },
    {"data"},
    {"grid", "filters", "resampling"},
    {"losses", "sampling", "augmentation", "network"},
    {"preprocessing"},
    {"planners"},
    {"evaluation"},
    {"atlas"},
    {"refinement"},
    {"inference"},
    {"trainers"},
    {"report"},
    {"viewer"},
    {"experiments"},
    {"workflows"},
    {"cli"},
]
# The paper's method can be read alone: it uses nothing that goes beyond the paper.
PAPER_ONLY = ("mre_lowshot.network", "mre_lowshot.losses", "mre_lowshot.sampling", "mre_lowshot.augmentation")
BEYOND_PAPER = ("mre_lowshot.atlas", "mre_lowshot.refinement")
# The lazy names of the package import from everywhere, for type checkers only.
FACE = "mre_lowshot"


def modules():
    """Dotted name -> file of every module, through the links."""
    found = {}
    for folder, _, names in os.walk(PACKAGE, followlinks=True):
        for name in names:
            if name.endswith(".py"):
                path = Path(folder, name)
                parts = path.relative_to(ROOT).with_suffix("").parts
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(path):
    """Every module that a file imports, also inside functions, absolute."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else str(node.module)


def layer(module):
    part = module.partition(".")[2].split(".")[0]
    found = [number for number, names in enumerate(LAYERS) if part in names]
    assert found, f"{module}: give its part of the package a place in LAYERS"
    return found[0]


def test_imports_point_one_way():
    assert len(MODULES) > 80
    backward = [
        f"{name} imports {wanted}"
        for name, path in MODULES.items()
        for wanted in imports(path)
        if name != FACE and wanted.split(".")[0] == "mre_lowshot" and layer(wanted) > layer(name)
    ]
    assert backward == []


def test_the_papers_method_uses_nothing_beyond_the_paper():
    users = [
        f"{name} imports {wanted}"
        for name, path in MODULES.items()
        if name.startswith(PAPER_ONLY)
        for wanted in imports(path)
        if wanted.startswith(BEYOND_PAPER)
    ]
    assert users == []


def test_no_part_of_the_package_imports_the_commands():
    users = [
        f"{name} imports {wanted}"
        for name, path in MODULES.items()
        if not name.startswith("mre_lowshot.cli")
        for wanted in imports(path)
        if wanted.startswith("mre_lowshot.cli")
    ]
    assert users == []


def test_there_is_no_import_cycle():
    arrows = {name: {w for w in imports(path) if w in MODULES} for name, path in MODULES.items() if name != FACE}
    arrows = {name: wanted - {FACE} for name, wanted in arrows.items()}
    done = set()
    while free := {name for name, wanted in arrows.items() if name not in done and wanted - {name} <= done}:
        done |= free
    assert set(arrows) - done == set()


def test_simpleitk_reads_files_registers_and_corrects_bias_fields_only():
    users = {name for name, path in MODULES.items() if any(w.split(".")[0] == "SimpleITK" for w in imports(path))}
    typed = {"mre_lowshot.data.volume", "mre_lowshot.data.scan_input"}  # names its image type in signatures
    assert users == {
        "mre_lowshot.data.readers.simpleitk",
        "mre_lowshot.preprocessing.bias_field",
        "mre_lowshot.atlas.registration.images",
        *typed,
    }


@pytest.mark.parametrize("name", LINKED)
def test_the_links_lead_to_the_folders_at_the_top(name):
    assert os.readlink(PACKAGE / name) == f"../{name}"
    assert (PACKAGE / name).resolve() == ROOT / name
    assert (ROOT / name / "__init__.py").is_file()


def test_no_file_is_longer_than_400_lines():
    paths = {*MODULES.values(), *ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/**/*.py")}
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in paths}
    assert {path: n for path, n in lengths.items() if n > 400} == {}


@pytest.mark.parametrize("links", ["links", "no links"])
def test_the_wheel_holds_the_whole_package_and_nothing_else(links, tmp_path):
    """A checkout without links, as on Windows, holds small text files in their places."""
    pytest.importorskip("build")
    setuptools = pytest.importorskip("setuptools", minversion="69")
    source = tmp_path / "source"
    leave = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("mre_lowshot", *LINKED):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=leave)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source)
    if links == "no links":
        for name in LINKED:
            (source / "mre_lowshot" / name).unlink()
            (source / "mre_lowshot" / name).write_text(f"../{name}")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "out", source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, (setuptools.__version__, done.stdout[-2000:], done.stderr[-2000:])
    (wheel,) = (tmp_path / "out").glob("*.whl")
    files = set(zipfile.ZipFile(wheel).namelist())
    metadata = {name for name in files if ".dist-info/" in name}
    assert {name.split("/")[0] for name in metadata} == {wheel.name.split("-py3")[0] + ".dist-info"}
    wanted = {path.relative_to(ROOT).as_posix() for path in MODULES.values()} | {"mre_lowshot/py.typed"}
    wanted |= {path.relative_to(ROOT).as_posix() for path in (PACKAGE / "viewer/web").rglob("*") if path.is_file()}
    page = {path.relative_to(ROOT).as_posix() for path in (PACKAGE / "report").glob("page*") if path.suffix != ".py"}
    assert len(page) == 4
    wanted |= page
    assert files - metadata == wanted


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)


def test_array_code_works_without_simpleitk():
    parts = (
        "network",
        "losses",
        "sampling",
        "augmentation",
        "grid",
        "trainers",
        "inference",
        "refinement",
        "evaluation.metrics",
        "preprocessing",
        "planners",
    )
    light = [m for m in MODULES if m.split(".", 1)[-1].startswith(parts)]
    assert len(light) > 40
    done = python(f"""
import sys
sys.modules["SimpleITK"] = None
import importlib
for name in {light}:
    importlib.import_module(name)
import numpy as np
from mre_lowshot.preprocessing.pipeline import forward, forward_labels, inverse_labels
from mre_lowshot.config import ChannelNormalization, PreprocessingConfig
config = PreprocessingConfig("nonzero", (ChannelNormalization(),), "size", size=(6, 6, 6))
image, transform = forward(np.random.default_rng(0).random((1, 8, 9, 9), np.float32), (1.0, 1.0, 1.0), config)
print(image.shape, forward_labels(np.ones((8, 9, 9), int), transform).min())
""")
    assert done.stdout.strip() == "(1, 6, 6, 6) 1", done.stderr[-2000:]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_fast_and_loads_nothing_heavy(command):
    code = f"""
import runpy, sys
sys.argv = ["{command}", "-h"]
try:
    runpy.run_module("{COMMANDS[command]}", run_name="__main__")  # as python -m starts it
except SystemExit as left:
    heavy = sorted({{"torch", "SimpleITK", "scipy", "skimage", "matplotlib", "numpy"}} & set(sys.modules))
    print("exit", left.code, heavy)
"""
    seconds = []
    while len(seconds) < 5 and (not seconds or min(seconds) >= 1):
        begun = time.perf_counter()
        done = python(code)
        seconds.append(time.perf_counter() - begun)
    assert done.stdout.startswith(f"usage: {command} ")
    assert "not a medical device" in done.stdout
    assert done.stdout.endswith("exit 0 []\n"), done.stderr[-2000:]
    assert min(seconds) < 1


def test_every_command_module_is_a_command():
    shared = {"mre_lowshot.cli.common", "mre_lowshot.cli.console"}
    assert {m for m in MODULES if m.startswith("mre_lowshot.cli.")} - shared == set(COMMANDS.values())


def test_only_the_commands_print():
    """From Python, messages go to the logger or to the `log` that is given."""
    found = []
    for name, path in MODULES.items():
        if ".cli." in name:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            prints = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
            if prints and not any(keyword.arg == "file" for keyword in node.keywords):
                found.append(f"{path}:{node.lineno}")
    assert found == []
