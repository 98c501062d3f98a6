"""A tiny workspace, planned and trained once a session through the commands, and copies of it that tests may change."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import hypothesis
import pytest

# No time limit for an example: on a busy machine a test would fail by chance.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")

SETTINGS = (
    "network.widths=[4, 8, 8]",
    "network.convs=[1, 1, 1]",
    "network.aspp_channels=4",
    "network.embedding_dim=16",
    "recipe.sampling.batch_size=2",
    "recipe.optimizer.iterations=3",
    "recipe.inference.tiling=centre",
    "recipe.atlas.registration=affine",  # a third of the time
    "recipe.refinement.reregister_below=0",  # after 3 iterations every scan would be registered three times
)


def command(name: str, *arguments: object) -> int:
    """Run a command (plan, train, predict, evaluate, demo) in this process: its exit code."""
    return import_module(f"mre_lowshot.cli.{name}").main([str(a) for a in arguments])


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread: tiny networks gain nothing from more, and lose much where the cores are busy."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def edit(path: Path, **changes: object) -> None:
    """Change fields of a JSON file; a dict is merged into the existing one, at any depth."""

    def merge(section: dict, changes: dict) -> None:
        for key, value in changes.items():
            if isinstance(value, dict):
                merge(section[key], value)
            else:
                section[key] = value

    data = json.loads(path.read_text())
    merge(data, changes)
    path.write_text(json.dumps(data))


def iterations(folder: Path, name: str = "checkpoint_latest.pth") -> list[float]:
    """The iterations in the training history of a fold's checkpoint."""
    import torch

    return torch.load(folder / name, weights_only=True)["training"]["history"]["iteration"]


def interrupt_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Send SIGINT (Ctrl-C) to training after so many steps."""
    from mre_lowshot.trainers.trainer import MRETrainer

    step = MRETrainer.step

    def limited(self, *batch):
        step(self, *batch)
        if self.iteration == steps:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(MRETrainer, "step", limited)


def pytest_configure() -> None:
    """Signals as in a terminal: a shell that starts a job in the background, and nohup, ignore them for it and for all
    processes that it starts."""
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for name in ("SIGTERM", "SIGHUP"):
            signal.signal(getattr(signal, name), signal.SIG_DFL)


def pytest_terminal_summary(terminalreporter) -> None:
    """Print the counts that tests recorded with ``record_property``: inputs tried, kills survived, wrong results."""
    counts: dict[str, int] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()) if getattr(report, "when", "") == "call" else ():
                if isinstance(value, int):
                    counts[name] = counts.get(name, 0) + value
    if counts:
        terminalreporter.write_line("counts: " + ", ".join(f"{name}: {value}" for name, value in counts.items()))


@pytest.fixture(scope="session", autouse=True)
def quick_parts() -> Iterator[tuple[float, ...]]:
    """Two parts that take most of the time of tiny scans: of the ten starts of an affine registration two are tried
    (`all_starts` tries all), and progress.png is drawn once in a session and copied afterwards."""
    from mre_lowshot.atlas.registration import affine
    from mre_lowshot.trainers import training_log

    drawn: list[bytes] = []
    starts = affine.STARTS
    draw = training_log.draw_progress

    def copied(path: Path, history: Mapping[str, Sequence[float]]) -> None:
        if not drawn:
            draw(path, history)
            drawn.append(path.read_bytes())
        path.write_bytes(drawn[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(affine, "STARTS", (0.0,))
        patch.setattr(training_log, "draw_progress", copied)
        yield starts


@pytest.fixture
def all_starts(quick_parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every start of an affine registration is tried, as for users."""
    from mre_lowshot.atlas.registration import affine

    monkeypatch.setattr(affine, "STARTS", quick_parts)


@dataclass(frozen=True)
class Space:
    """A workspace with the dataset Dataset900_Synthetic, and the commands run in it."""

    root: Path

    @property
    def raw(self) -> Path:
        return self.root / "raw/Dataset900_Synthetic"

    @property
    def prepared(self) -> Path:
        return self.root / "preprocessed/Dataset900_Synthetic"

    def model(self, plan: str = "Tiny", level: str = "1shot") -> Path:
        return self.root / f"results/Dataset900_Synthetic/MRETrainer__{plan}__{level}"

    def plan(self, *arguments: object, name: str = "Tiny", settings: tuple[str, ...] = SETTINGS) -> int:
        changes = ("--set", *settings) if settings else ()
        return command("plan", "-d", "900", "-p", name, "--workspace", self.root, "-device", "cpu",
                       *arguments, *changes)  # fmt: skip

    def train(self, *arguments: object, name: str = "Tiny", level: str = "1shot", fold: str = "fold0") -> int:
        return command("train", "Synthetic", level, fold, "-p", name, "--workspace", self.root, "-device", "cpu",
                       *arguments)  # fmt: skip

    def predict(self, scans: Path, out: Path, *arguments: object) -> int:
        return command("predict", "-i", scans, "-o", out, "--workspace", self.root, "-device", "cpu", *arguments)

    def labelled_only(self, name: str) -> None:
        """Delete the label maps of all other cases."""
        for path in (self.raw / "labelsTr").iterdir():
            if path.name != f"{name}.nii.gz":
                path.unlink()


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Space:
    """A planned workspace with fold 0 of 1shot trained and validated. Tests must not change it: `space` is a copy."""
    from mre_lowshot.data.synthetic import write_dataset

    space = Space(tmp_path_factory.mktemp("workspace"))
    write_dataset(space.root / "raw", subjects=3, shape=(20, 36, 44), spacing=(8.0, 8.0, 8.0))
    with one_thread():
        assert space.plan() == 0
        assert space.train() == 0
    return space


@pytest.fixture
def space(trained, tmp_path) -> Space:
    """A copy of the trained workspace."""
    shutil.copytree(trained.root, tmp_path / "space")
    return Space(tmp_path / "space")


@pytest.fixture(scope="module")
def one_thread_only() -> Iterator[None]:
    """All tests of a module in one thread."""
    with one_thread():
        yield


@pytest.fixture
def no_settings(monkeypatch, tmp_path) -> None:
    """Remove this package's and nnU-Net's environment variables; relative paths lie in the temporary folder."""
    for name in list(os.environ):
        if name.startswith(("MRE_", "nnUNet_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def counted(monkeypatch) -> list[str]:
    """The names of the cases that are registered, in the order in which that happens."""
    from mre_lowshot.inference.predictor import Predictor

    found, register = [], Predictor.register

    def noted(self, prepared, **options):
        found.append(prepared.name)
        return register(self, prepared, **options)

    monkeypatch.setattr(Predictor, "register", noted)
    return found


@pytest.fixture
def done(predicted, tmp_path) -> Path:
    """A copy of the folder that the module's fixture ``predicted`` returns, which the test may change."""
    return shutil.copytree(predicted, tmp_path / "copy")
