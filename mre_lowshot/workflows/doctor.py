"""A report on the installation: versions, devices, memory, folders, and a tiny run of the whole pipeline."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from mre_lowshot import devices, limits
from mre_lowshot.data.workspace import Workspace
from mre_lowshot.errors import NumericalError, UserError
from mre_lowshot.inference.checkpoint import versions
from mre_lowshot.workflows.reporting import Reporter, Silent

PACKAGES = (
    "nibabel", "pynrrd", "psutil", "matplotlib", "tqdm", "acvl-utils", "pydicom", "highdicom", "python-gdcm",
    "pyjpegls", "tensorboard", "distributed", "scikit-learn", "ipyniivue", "nnunetv2", "antspyx",
)  # fmt: skip
PREFIXES = ("MRE_", "nnUNet_", "OMP_", "MKL_", "ITK_", "CUDA_VISIBLE_DEVICES", "PYTORCH_")
PARTIAL, LOCK = ".mre-partial.*", ".mre-lock*"
MIN_FREE = 1e9  # bytes on the disk of a folder that is written to
# A network and a training of seconds; its result is only checked for its form.
TINY = {
    "network.widths": [4, 8, 8],
    "network.convs": [1, 1, 1],
    "network.aspp_channels": 4,
    "network.embedding_dim": 16,
    "recipe.sampling.batch_size": 2,
    "recipe.optimizer.iterations": 2,
    "recipe.inference.tiling": "centre",
    "recipe.atlas.registration": "affine",
    "recipe.refinement.reregister_below": 0,
}


@dataclass(frozen=True)
class Check:
    """One check: its name, whether it passed, and what was found."""

    name: str
    passed: bool
    found: str


@dataclass(frozen=True)
class DoctorResult:
    """Result of `doctor`.

    Attributes:
        facts: sections of the report, each a table of texts.
        checks: what was checked.
    """

    facts: dict[str, dict[str, str]]
    checks: tuple[Check, ...] = field(default=())

    @property
    def failed(self) -> tuple[str, ...]:
        """The names of the checks that failed."""
        return tuple(check.name for check in self.checks if not check.passed)

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {"healthy": not self.failed, **self.facts, "checks": [asdict(check) for check in self.checks]}


def doctor(
    *,
    workspace: str | Path | None = None,
    device: str = "auto",
    run: bool = True,
    reporter: Reporter | None = None,
) -> DoctorResult:
    """Report on the installation, and check it.

    Args:
        workspace: folder with raw/, preprocessed/ and results/; None: see `data.workspace.Workspace`.
        device: to compute on in the tiny run.
        run: plan, train and predict on two synthetic scans, in a temporary folder.
        reporter: receives the report line by line.
    """
    reporter = reporter or Reporter()
    checks: list[Check] = []
    facts = {"versions": _versions(), "machine": _machine(), "devices": _devices()}
    facts["environment"] = {
        name: home_hidden(os.environ[name]) for name in sorted(os.environ) if name.startswith(PREFIXES)
    }
    facts["folders"] = _folders(workspace, checks)
    checks.append(_attempt("memory", _memory))
    checks.append(_attempt("device", lambda: str(devices.resolve(device))))
    if run:
        checks.append(_attempt("tiny run", lambda: _tiny_run(device)))
    result = DoctorResult(facts, tuple(checks))
    for line in report_lines(result):
        reporter.info(line)
    return result


def report_lines(result: DoctorResult) -> list[str]:
    """The report as text."""
    lines = []
    for section, table in result.facts.items():
        lines.append(f"{section}:")
        lines += [f"  {name}: {value}" for name, value in table.items()] or ["  none"]
    lines.append("checks:")
    lines += [f"  {'ok    ' if c.passed else 'FAILED'} {c.name}: {c.found}" for c in result.checks]
    return lines


def home_hidden(text: str) -> str:
    """``text`` with the user's home folder, which contains a name, written as ``~``."""
    home = os.path.expanduser("~")
    return text if home in ("~", "/", "") else text.replace(home, "~")


def _versions() -> dict[str, str]:
    found = versions()
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _machine() -> dict[str, str]:
    memory = psutil.virtual_memory()
    return {
        "system": f"{platform.system()} {platform.release()} ({platform.machine()})",
        "cores": f"{os.cpu_count()}, {devices.usable_cores()} usable",
        "threads of torch": str(torch.get_num_threads()),
        "memory": f"{limits.bytes_text(memory.total)}, {limits.bytes_text(memory.available)} free",
    }


def _devices() -> dict[str, str]:
    found = {"cpu": f"bfloat16 {'yes' if getattr(torch.cpu, '_is_avx512_bf16_supported', lambda: False)() else 'no'}"}
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(number)
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        found[f"cuda:{number}"] = (
            f"{properties.name}, {limits.bytes_text(properties.total_memory)}, bfloat16 {'yes' if bf16 else 'no'}"
        )
    found["cuda"] = f"available (CUDA {torch.version.cuda})" if torch.cuda.is_available() else "not available"
    found["mps"] = devices.mps_problem() or "available"
    return found


def _memory() -> str:
    available = limits.available_memory()
    if available < MIN_FREE:
        raise UserError(f"only {limits.bytes_text(available)} are available; close other programs")
    return f"{limits.bytes_text(available)} available to this process ({limits.OVERRIDE} sets another limit)"


def _folders(workspace: str | Path | None, checks: list[Check]) -> dict[str, str]:
    """The workspace's three folders: where they lie, and what is left in them."""
    try:
        space = Workspace.resolve(workspace)
    except UserError as problem:
        checks.append(Check("workspace", False, home_hidden(str(problem))))
        return {}
    found = {}
    for kind in ("raw", "preprocessed", "results"):
        folder: Path = getattr(space, kind)
        shown = home_hidden(str(folder))
        if not folder.is_dir():
            found[kind] = f"{shown} (does not exist; it is created when needed)"
            checks.append(_attempt(f"folder {kind}", partial(_writable, _existing(folder))))
            continue
        left = sum(1 for pattern in (PARTIAL, LOCK) for _ in folder.glob(f"**/{pattern}"))
        datasets = sum(1 for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        found[kind] = f"{shown}: {datasets} datasets, {left} locks and partial files"
        if kind == "raw":  # only read
            passed = os.access(folder, os.R_OK | os.X_OK)
            checks.append(Check("folder raw", passed, "readable" if passed else "may not be read"))
        else:
            checks.append(_attempt(f"folder {kind}", partial(_writable, folder)))
    return found


def _existing(folder: Path) -> Path:
    """The nearest folder above that exists: there it would be created."""
    return next((path for path in (folder.resolve(), *folder.resolve().parents) if path.is_dir()), Path.cwd())


def _writable(folder: Path) -> str:
    free = shutil.disk_usage(folder).free
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise UserError(
            f"{folder}: no file can be written there ({reason}); change its permissions, or choose another folder with "
            "--workspace"
        ) from None
    if free < MIN_FREE:
        raise UserError(f"only {limits.bytes_text(free)} are free on its disk; make space")
    return f"writable, {limits.bytes_text(free)} free"


def _attempt(name: str, action: Callable[[], str]) -> Check:
    try:
        return Check(name, True, action())
    except Exception as problem:  # a report names every failure, whatever it is
        kind = "" if isinstance(problem, UserError | NumericalError | OSError) else f"{type(problem).__name__}: "
        return Check(name, False, home_hidden(f"{kind}{problem}".splitlines()[0] if str(problem) else kind))


def _tiny_run(device: str) -> str:
    """Plan, train and predict on synthetic scans, and check the label map."""
    from mre_lowshot.data.synthetic import write_dataset
    from mre_lowshot.data.volume import read_labels
    from mre_lowshot.workflows.plan import plan
    from mre_lowshot.workflows.predict import predict
    from mre_lowshot.workflows.train import train

    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mre_doctor_") as folder:
        root, quiet = Path(folder), Silent()
        raw = write_dataset(root / "raw", subjects=2, shape=(20, 36, 44), spacing=(8.0, 8.0, 8.0))
        plan(raw, plans_name="Doctor", changes=TINY, device=device, workspace=root, reporter=quiet)
        trained = train(raw.name, plans_name="Doctor", score=False, device=device, workspace=root, reporter=quiet)
        scan = sorted((raw / "imagesTr").iterdir())[-1]
        result = predict(scan, root / "out", model=trained.folder, device=device, workspace=root, reporter=quiet)
        if result.failed:
            raise UserError("; ".join(result.failed))
        (path,) = result.files.values()
        labels, reference = (read_labels(p) for p in (path, raw / "labelsTr" / path.name))
        if labels.array.shape != reference.array.shape or not np.isin(labels.array, range(7)).all():
            raise UserError(f"the label map has the shape {labels.array.shape}, its scan {reference.array.shape}")
    return f"planned, trained and segmented a synthetic scan in {time.monotonic() - begun:.0f} s"
