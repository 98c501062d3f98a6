"""A page to look at: of a trained model, of label maps, or of an experiment."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mre_lowshot.config.check import require_path, require_whole
from mre_lowshot.errors import UserError
from mre_lowshot.evaluation.label_files import label_files
from mre_lowshot.inference.record import read_records
from mre_lowshot.limits import bytes_text
from mre_lowshot.report.content import Report
from mre_lowshot.report.experiment_content import experiment_report, is_experiment
from mre_lowshot.report.model_content import Sources, folds_of, model_report
from mre_lowshot.report.page import is_own_page, write_page
from mre_lowshot.report.prediction_content import prediction_report
from mre_lowshot.workflows.reporting import Reporter

NAME = "report.html"
DEFAULT_SIZE, LARGEST = 160, 512  # voxels along an axis


@dataclass(frozen=True)
class ReportResult:
    """Result of `write_report`.

    Attributes:
        path: the page.
        size: bytes.
        cases: number of scans on it.
        missing: what is not shown of a case, by case, with the reason.
        content: what the page shows.
    """

    path: Path
    size: int
    cases: int
    missing: dict[str, tuple[str, ...]]
    content: Report


def write_report(
    folder: str | Path,
    output: str | Path | None = None,
    *,
    reference: str | Path | None = None,
    images: str | Path | None = None,
    max_size: int = DEFAULT_SIZE,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> ReportResult:
    """Write one self-contained HTML page on a folder of results.

    Args:
        folder: of a trained model or one of its folds, of label maps that `predict` wrote, or of an experiment's table.
        output: the page; None: report.html in ``folder``.
        reference: folder with reference label maps; None: those that summary.json names. A model's scores stay those of
            its summary.
        images: folder with the scans; None: where they were when they were predicted.
        max_size: voxels along each axis to which scans are reduced for the page; 0: no images.
        overwrite: replace a file that is no page of this function, or that has changed since.
        reporter: receives progress and messages.

    Raises:
        UserError: the folder is none of these, or the page cannot be written. A scan that is not there is named on the
            page and in the result instead.
    """
    reporter = reporter or Reporter()
    for name, path in (("the folder", folder), ("-o", output), ("-ref", reference), ("--images", images)):
        if path is not None:
            require_path(name, path)
    if max_size:
        require_whole("--max_size", max_size, 16, LARGEST)
    folder = Path(folder)
    target = Path(output) if output is not None else folder / NAME
    make = _kind(folder)
    if reference is not None:
        label_files(Path(reference))
    if images is not None and not Path(images).is_dir():
        raise UserError(f"--images {images}: is not a folder; give the folder with the scans")
    require_replaceable(target, overwrite=overwrite)
    sources = Sources(
        Path(reference) if reference is not None else None,
        Path(images) if images is not None else None,
        max_size,
        partial(reporter.iterate, description="report", unit="scan"),
    )
    content = make(folder, sources)
    size = write_page(content, target)
    for line in content.warnings[:10]:
        reporter.warning(f"note: {line}")
    if len(content.warnings) > 10:
        reporter.warning(f"note: and {len(content.warnings) - 10} more, on the page")
    missing = {f"{case.name} {case.group}".strip(): case.missing for case in content.cases if case.missing}
    for name, lines in list(missing.items())[:10]:
        reporter.warning(f"note: case {name}: not shown: {'; '.join(lines)}")
    if len(missing) > 10:
        reporter.warning(f"note: and {len(missing) - 10} more cases, named on the page")
    reporter.info(f"report of {len(content.cases)} scans, {bytes_text(size)} ({size} bytes): {target}")
    return ReportResult(target, size, len(content.cases), missing, content)


def require_replaceable(path: Path, *, overwrite: bool) -> None:
    """Refuse to write a page in place of a file that is none, or that has changed since.

    Raises:
        UserError: names it.
    """
    if path.is_dir():
        raise UserError(f"-o {path}: is a folder; give the name of an HTML file")
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"-o {path}: give a file name that ends in .html")
    if os.path.lexists(path) and not overwrite and not is_own_page(path):
        raise UserError(
            f"{path}: mre_report has not written this, or it has changed since, so it is not replaced; move it "
            "away, or give mre_report another -o or --overwrite"
        )


def _kind(folder: Path) -> Callable[[Path, Sources], Report]:
    """The function that makes the content for a folder."""
    if folder.is_file() and folder.suffix.lower() == ".zip":
        raise UserError(f"{folder}: is a file; install the model with mre_install_model, and give its folder")
    if not folder.is_dir():
        raise UserError(f"{folder}: is not a folder; give the folder of a model, of label maps, or of an experiment")
    if is_experiment(folder):
        return experiment_report
    if folds_of(folder) or (folder.name.startswith("fold_") and (folder / "plans.json").is_file()):
        return model_report
    if read_records(folder) or any(folder.glob("quality*.csv")):
        return prediction_report
    raise UserError(
        f"{folder}: is neither a trained model (fold_N/plans.json), nor label maps of mre_predict (run.json, "
        "quality.csv), nor a table of mre_experiment (results.json); give one of them"
    )
