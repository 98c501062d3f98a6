"""One case of a report: its label maps and scan are read, scored and reduced."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mre_lowshot.data.dataset import Case
from mre_lowshot.data.dicom.choice import only_series
from mre_lowshot.data.readers import READABLE_ENDINGS, file_ending
from mre_lowshot.data.scan_input import read_case
from mre_lowshot.data.volume import Volume, read_labels
from mre_lowshot.errors import UserError, describe_failure
from mre_lowshot.evaluation.metrics import case_metrics
from mre_lowshot.evaluation.summary import unit_of_volume
from mre_lowshot.inference.formats import FORMATS, Format, read_for_display
from mre_lowshot.report import stored
from mre_lowshot.report.content import METRICS, TOLERANCE, CaseContent, Label, LabelScore
from mre_lowshot.report.samples import make_images


@dataclass(frozen=True)
class CaseFiles:
    """Where the files of a case are, and what is known of it without reading them.

    Attributes:
        content: name, quality, warnings, seconds; scores as far as they are known already.
        scan: channel files, or the files of a DICOM series; empty where none is known.
        prediction, reference: label maps, None where there is none.
        scored: whether ``content`` has the metrics, so that they are not computed again.
    """

    content: CaseContent
    scan: tuple[Path, ...] = ()
    prediction: Path | None = None
    reference: Path | None = None
    scored: bool = False


@dataclass(frozen=True)
class Reading:
    """How cases are read.

    Attributes:
        labels: structures of the report.
        ignore_label: of the references.
        images: folder to look for scans in that are not where they were.
        max_size: voxels along each axis that a page holds; 0: no images.
        is_ct: whether the first channel is a CT in HU; None: unknown.
    """

    labels: tuple[Label, ...]
    ignore_label: int | None = None
    images: Path | None = None
    max_size: int = 0
    is_ct: bool | None = None

    def read(self, files: CaseFiles) -> CaseContent:
        """The case. What cannot be read is named in ``missing``; nothing is raised for it."""
        if files.content.failed:
            return files.content
        missing: list[str] = []
        scan, case = self._scan(files, missing)
        prediction = self._label_map(files.prediction, scan, case, "label map", missing)
        if files.prediction is None:
            missing.append("the label map is not there")
        reference = self._label_map(files.reference, scan or prediction, case, "reference", missing)
        unnamed = [
            *self._unlisted(prediction, f"label map {files.prediction and files.prediction.name}"),
            *self._unlisted(reference, f"reference {files.reference and files.reference.name}"),
        ]
        content = replace(
            files.content,
            missing=(*files.content.missing, *missing),
            warnings=(*files.content.warnings, *unnamed),
        )
        volume = prediction or reference
        try:
            content = replace(
                content,
                labels=self._scores(files, prediction, reference),
                unit="mm" if volume is None else unit_of_volume(volume),
            )
            if self.max_size and (prediction is not None or reference is not None or scan is not None):
                values = [label.value for label in self.labels]
                images = make_images(
                    scan, prediction, reference, values=values, max_size=self.max_size, is_ct=self.is_ct
                )
                content = replace(content, images=images)
        except Exception as problem:  # whatever one case fails with, the others are shown
            content = replace(content, missing=(*content.missing, describe_failure(problem)))
        return content

    def _scan(self, files: CaseFiles, missing: list[str]) -> tuple[Volume | None, Case | None]:
        paths = files.scan
        if not paths or not all(path.exists() for path in paths):
            found = find_image(self.images, files.content.name) if self.images else None
            if found is None:
                where = f"{paths[0]} is not there any more" if paths else "its file is not known"
                missing.append(f"scan: {where}; --images FOLDER names the folder with the scans")
                return None, None
            paths = (found,)
        try:
            series = () if file_ending(paths[0]) else (only_series(list(paths)),)
            case = Case(files.content.name, paths, series=series)
            return (read_case(case) if self.max_size else None), case
        except Exception as problem:
            missing.append(f"scan: {describe_failure(problem)}")
            return None, None

    def _label_map(
        self, path: Path | None, like: Volume | None, case: Case | None, what: str, missing: list[str]
    ) -> Volume | None:
        if path is None:
            return None
        try:
            made = _format_of(path)
            if made and case:
                volume = read_for_display(made, path, case, {label.name: label.value for label in self.labels})
            else:
                volume = read_labels(path, like.geometry if like else None)
            if like is not None and (different := like.geometry.differences(volume.geometry)):
                raise UserError(f"{path}: is not on the grid of the scan: {different[0]}")
            return volume.on_axes_of(like.geometry) if like is not None else volume
        except Exception as problem:
            missing.append(f"{what}: {describe_failure(problem)}")
            return None

    def _unlisted(self, volume: Volume | None, what: str) -> list[str]:
        """Label values that are not in the list of labels."""
        if volume is None:
            return []
        listed = {0, self.ignore_label, *(label.value for label in self.labels)}
        others = [int(value) for value in np.unique(volume.array) if value not in listed]
        if not others:
            return []
        some = ", ".join(map(str, others[:5])) + (", ..." if len(others) > 5 else "")
        return [f"{what}: {len(others)} label value(s) without a name ({some}), drawn in white"]

    def _scores(self, files: CaseFiles, prediction: Volume | None, reference: Volume | None) -> tuple[LabelScore, ...]:
        """Volumes of each label, and metrics where there is a reference."""
        known = {score.value: score for score in files.content.labels}
        found = {label.value: known.get(label.value, LabelScore(label.value)) for label in self.labels}
        if prediction is None:
            return tuple(found.values())
        values, counts = np.unique(prediction.array, return_counts=True)
        volume = math.prod(prediction.geometry.spacing) / 1000
        numbers = dict(zip(values.tolist(), counts.tolist(), strict=True))
        found = {v: replace(score, volume_ml=numbers.get(v, 0) * volume) for v, score in found.items()}
        if reference is None or files.scored:
            return tuple(found.values())
        names = {label.name: label.value for label in self.labels}
        rows = case_metrics(
            reference.array, prediction.array, names, prediction.geometry.spacing, ignore_label=self.ignore_label
        )
        return tuple(with_metrics(score, rows[value]) for value, score in found.items())


def with_metrics(score: LabelScore, row: Mapping[str, float | None]) -> LabelScore:
    """A score with the metrics of a row of a summary."""
    metrics = {name: stored.number(row[name]) for name in (*METRICS, TOLERANCE) if name in row}
    volume = stored.number(row.get("volume_pred_ml"))
    return replace(
        score,
        metrics=metrics,
        reference_ml=stored.number(row.get("volume_ref_ml")),
        volume_ml=score.volume_ml if math.isnan(volume) else volume,
    )


def find_image(folder: Path, name: str) -> Path | None:
    """The first channel of a case in a folder."""
    for stem in (f"{name}_0000", name):
        for ending in READABLE_ENDINGS:
            if (path := folder / f"{stem}{ending}").is_file():
                return path
    return None


def labels_of(table: Sequence[tuple[int, str, str]]) -> tuple[Label, ...]:
    """Labels of rows (value, name, colour), in the order of their values."""
    return tuple(Label(*row) for row in sorted(table) if row[0] > 0)


def _format_of(path: Path) -> Format | None:
    """The format of a file, among those that need the scan's grid."""
    special = (made for name, made in FORMATS.items() if name in ("seg.nrrd", "dicom-seg", "dicom-labelmap"))
    return next((made for made in special if path.name.lower().endswith(made.ending)), None)
