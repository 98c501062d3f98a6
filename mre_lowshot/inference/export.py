"""The export stage: class probabilities on the plan's grid to a label map on the scan's own."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from mre_lowshot.data.colours import label_colours
from mre_lowshot.data.dicom.codes import Code
from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.label_table import LabelTable
from mre_lowshot.data.readers import file_ending
from mre_lowshot.data.seg_nrrd import ENDING as SEG_NRRD
from mre_lowshot.data.seg_nrrd import write_seg_nrrd
from mre_lowshot.data.volume import Volume
from mre_lowshot.errors import UserError
from mre_lowshot.files import atomic_write
from mre_lowshot.inference.probabilities import scaled_classes, write_probabilities
from mre_lowshot.inference.quality import Quality
from mre_lowshot.preprocessing.pipeline import GridTransform, inverse_labels, inverse_probabilities
from mre_lowshot.refinement.calibration import find_temperature, scale_temperature
from mre_lowshot.refinement.components import keep_largest_component
from mre_lowshot.transfers import Array, as_tensor, to_host

EMPTY = "the label map is empty: no structure was found in the scan"


@dataclass(frozen=True)
class RefinedScan:
    """Output of the refine stage.

    Attributes:
        name: of the case.
        probabilities: (K, *size) float32 on the plan's grid; a tensor on the device, from `export_scan` on an array.
        quality: estimate from the network and the first registration.
        transform: from the scan's own grid to the plan's.
        geometry: of the scan's file.
        scales_temperature: whether probabilities are scaled by a temperature (`calibrate`).
        warnings: differences between the scan and the training scans, one sentence each.
    """

    name: str
    probabilities: Array
    quality: Quality
    transform: GridTransform
    geometry: Geometry
    scales_temperature: bool = False
    warnings: tuple[str, ...] = ()

    @cached_property
    def temperature(self) -> float:
        """Of the scan, 1 where the recipe scales nothing (`refinement.calibration`)."""
        if not self.scales_temperature:
            return 1.0
        return find_temperature(self.probabilities, self.quality.score if self.quality.is_defined else float("nan"))

    @property
    def array(self) -> np.ndarray:
        """`probabilities` as an array."""
        found: np.ndarray = to_host(as_tensor(self.probabilities))[0].numpy()
        return found

    def calibrate(self, probabilities: np.ndarray) -> np.ndarray:
        """Scale class probabilities (K, *size) of this scan, on any grid, by its temperature: in place, and
        returned."""
        scale_temperature(probabilities, self.temperature)
        return probabilities


@dataclass(frozen=True)
class Prediction:
    """A segmented scan.

    Attributes:
        name: of the case.
        labels: label map (D, H, W) on the scan's own grid.
        quality: how far to trust it; ``quality.score`` ranks scans.
        label_names: name to value, background included.
        warnings: differences between the scan and the training scans, one sentence each, and whether the label map is
            empty.
        colours: ``#rrggbb`` of each label value.
        codes: coded terms (value, scheme, meaning) of the labels that dataset.json gives some for, by name.
    """

    name: str
    labels: Volume
    quality: Quality
    label_names: Mapping[str, int]
    warnings: tuple[str, ...] = ()
    refined: RefinedScan | None = field(default=None, repr=False, compare=False)
    colours: Mapping[int, str] = field(default_factory=dict)
    codes: Mapping[str, Code] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.colours:
            object.__setattr__(self, "colours", label_colours(self.label_names))

    @property
    def table(self) -> LabelTable:
        """Names and colours of the labels."""
        return LabelTable.of(self.label_names, self.colours)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Class probabilities (K, D, H, W) float32 on the scan's own grid, in LPS; computed when first used."""
        return self._native_probabilities()

    def _native_probabilities(self) -> np.ndarray:
        """As `probabilities`, without keeping them."""
        if self.refined is None:
            raise ValueError("this prediction was made without its probabilities")
        own, transform = self.refined.array, self.refined.transform
        return inverse_probabilities(own, transform, scaled_classes(own, transform.box_shape, self.refined.temperature))

    def save(self, path: str | Path, *, probabilities: bool = False) -> None:
        """Write the label map to ``path``, in the format of its ending (NIfTI and ``.seg.nrrd`` with the labels' names
        and colours); with ``probabilities`` also ``<name>.npz`` beside it (the name of ``path`` without its ending),
        key ``probabilities``.

        Raises:
            UserError: the ending is not a format written here. DICOM SEG is not: it needs the scan's series
                (`inference.formats.FORMATS`).
        """
        path = Path(path)
        ending = file_ending(path)
        if path.name.casefold().endswith(SEG_NRRD):
            ending = SEG_NRRD
            write_seg_nrrd(path, self.labels, label_names=self.label_names, colours=self.colours, codes=self.codes)
        else:
            self.labels.save(path, self.table)
        if probabilities:
            self.save_probabilities(path.parent / f"{path.name[: -len(ending)]}.npz")

    def save_probabilities(self, path: str | Path) -> None:
        """Write the probabilities to ``path`` (.npz), key ``probabilities``: (K, D, H, W) float32 in LPS. One class at
        a time is in memory: K of a large CT take more than the whole prediction.

        Raises:
            UserError: it cannot be written.
        """
        if (refined := self.refined) is None:
            raise ValueError("this prediction was made without its probabilities")
        with atomic_write(Path(path), check=check_probabilities) as npz:
            write_probabilities(npz, refined.array, transform=refined.transform, temperature=refined.temperature)


def check_probabilities(path: Path) -> None:
    """Refuse a file of `Prediction.save_probabilities` that is not whole. Its directory lies at its end, so that this
    is quick.

    Raises:
        UserError: it is damaged, cut off or another file.
    """
    try:
        with zipfile.ZipFile(path) as content:
            whole = "probabilities.npy" in content.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        whole = False
    if not whole:
        raise UserError(f"{path}: holds no probabilities, or was cut off; predict the scan again")


def export_scan(
    refined: RefinedScan,
    label_names: Mapping[str, int],
    single_component: tuple[int, ...] = (),
    *,
    lesions: tuple[int, ...] = (),
    colours: Mapping[int, str] | None = None,
    codes: Mapping[str, Code] | None = None,
) -> Prediction:
    """The scan's label map on its own grid: argmax of the resampled probabilities, and the largest component only of
    the classes in ``single_component``, which ``lesions`` connect. An empty one adds a warning. ``colours`` and
    ``codes`` are as in `Prediction`. Resampled on the device of the probabilities, which leave it."""
    labels = native_labels(refined.probabilities, refined.transform, single_component, lesions)
    refined = replace(refined, probabilities=refined.array)
    warnings = refined.warnings if labels.any() else (*refined.warnings, EMPTY)
    return Prediction(
        refined.name,
        Volume(labels, refined.geometry),
        refined.quality,
        label_names,
        warnings,
        refined,
        colours=colours or {},
        codes=codes or {},
    )


def native_labels(
    probabilities: Array,
    transform: GridTransform,
    single_component: tuple[int, ...] = (),
    lesions: tuple[int, ...] = (),
) -> np.ndarray:
    """Class probabilities (K, *size) to the label map (D, H, W) on the scan's own grid."""
    labels = inverse_labels(probabilities, transform)
    keep_largest_component(labels, single_component, lesions)
    return labels
