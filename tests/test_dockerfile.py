"""The Dockerfile, read instruction by instruction, without docker: what it copies, installs and starts."""

import fnmatch
import json
import re
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib")  # of Python 3.11

ROOT = Path(__file__).resolve().parents[1]
KNOWN = {"ARG", "FROM", "ENV", "WORKDIR", "COPY", "RUN", "USER", "ENTRYPOINT", "CMD"}


def instructions():
    """(instruction, arguments) in order, with continued lines joined."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    lines = [line.strip() for line in text.splitlines()]
    return [tuple(line.split(None, 1)) for line in lines if line and not line.startswith("#")]


FOUND = instructions()


def all_of(name):
    return [rest for instruction, rest in FOUND if instruction == name]


def ignored(path):
    """Whether .dockerignore leaves a path out: the last pattern that fits decides, as in docker."""
    out = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        pattern, keep = line.lstrip("!"), line.startswith("!")
        parts = Path(path).parts
        starts = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        plain = pattern.removeprefix("**/")
        fits = any(fnmatch.fnmatch(start, plain) for start in starts)
        if pattern.startswith("**/"):
            fits = fits or any(fnmatch.fnmatch(part, plain) for part in parts)
        if fits:
            out = not keep
    return out


def test_only_known_instructions_and_the_base_is_an_argument_with_a_default():
    assert {instruction for instruction, _ in FOUND} <= KNOWN
    assert FOUND[0] == ("ARG", "BASE=python:3.12-slim")
    assert FOUND[1] == ("FROM", "${BASE}")
    assert len(all_of("FROM")) == 1
    for name in re.findall(r"\$\{(\w+)\}", " ".join(rest for _, rest in FOUND)):
        assert any(rest.startswith(f"{name}=") and rest != f"{name}=" for rest in all_of("ARG")), name


def test_the_base_is_a_python_that_the_package_supports():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    minor = int(re.fullmatch(r"BASE=python:3\.(\d+)-slim", all_of("ARG")[0])[1])
    low, high = (int(n) for n in re.fullmatch(r">=3\.(\d+),<3\.(\d+)", project["requires-python"]).groups())
    assert low <= minor < high


def test_no_host_but_docker_hub_pypi_and_pytorch():
    hosts = set(re.findall(r"https?://([^/\s]+)", " ".join(rest for _, rest in FOUND)))
    assert hosts == {"pypi.org", "download.pytorch.org"}
    assert "/" not in all_of("ARG")[0].split("=")[1]  # no registry before the image's name


def test_what_is_copied_exists_and_is_not_ignored():
    sources = [source for rest in all_of("COPY") for source in rest.split()[:-1]]
    assert {"constraints.txt", "pyproject.toml", "mre_lowshot/", "planners/", "preprocessing/", "trainers/"} <= set(
        sources
    )
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not ignored(source.rstrip("/")), source
    assert not ignored("mre_lowshot/cli/predict.py")


@pytest.mark.parametrize(
    "path", [".git", "tests", "docs", "mre_data", "mre_demo", ".venv", "model.zip", "mre_lowshot/__pycache__/a.pyc",
             "mre_lowshot/cli/__pycache__/a.pyc", "trainers/__pycache__", "secrets.txt"],
)  # fmt: skip
def test_data_caches_and_history_stay_out(path):
    assert ignored(path)


def test_the_package_finds_all_its_files_in_the_image():
    """Files that pyproject.toml names and folders of packages are copied before the package is installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    copied = [source.rstrip("/") for rest in all_of("COPY") for source in rest.split()[:-1]]
    assert project["project"]["readme"] in copied
    assert set(project["tool"]["setuptools"]["package-dir"].values()) <= set(copied)
    order = [index for index, (name, rest) in enumerate(FOUND) if name == "COPY" or ".[" in rest]
    assert ".[" in FOUND[order[-1]][1]


def test_pip_uses_the_pinned_versions():
    installs = [rest for rest in all_of("RUN") if "pip install" in rest]
    assert len(installs) == 2
    assert all("-c constraints.txt" in rest for rest in installs)
    assert FOUND.index(("COPY", "constraints.txt ./")) < FOUND.index(("RUN", installs[0]))
    extras = next(rest for rest in all_of("ARG") if rest.startswith("EXTRAS=")).split("=")[1]
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(extras.split(",")) <= known.keys()
    assert '".[${EXTRAS}]"' in installs[1]


def test_it_starts_predict_as_another_user_than_root():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert json.loads(all_of("ENTRYPOINT")[0]) == ["mre_predict"]
    assert "mre_predict" in project["scripts"]
    assert json.loads(all_of("CMD")[0]) == ["--help"]
    (user,) = all_of("USER")
    assert user == "mre"
    created = next(rest for rest in all_of("RUN") if rest.startswith("useradd"))
    assert re.search(r"--uid [1-9]\d{3,} mre$", created)
    after = [name for name, _ in FOUND[FOUND.index(("USER", user)) :]]
    assert after == ["USER", "WORKDIR", "ENTRYPOINT", "CMD"]


def test_the_pins_hold_every_package_that_the_image_installs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = {re.split(r"[=\s;]", line)[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dicom"]]
    wanted += [*project["optional-dependencies"]["tensorboard"], *project["optional-dependencies"]["cluster"]]
    assert {re.split(r"[<>=\s;]", line)[0].lower() for line in wanted} <= pinned
