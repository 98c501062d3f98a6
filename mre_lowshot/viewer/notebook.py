"""A case of a folder of predictions in a notebook, drawn by ipyniivue (extra ``view``)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mre_lowshot.config.check import require_number
from mre_lowshot.data.colours import rgb
from mre_lowshot.errors import UserError, install_extra
from mre_lowshot.viewer.cases import ViewerCase, find_cases, label_maps
from mre_lowshot.viewer.labels import find_labels
from mre_lowshot.viewer.volumes import load_case

if TYPE_CHECKING:
    from ipyniivue import NiiVue

LAYERS = ("prediction", "reference")


def show_case(
    folder: str | Path,
    name: str | None = None,
    *,
    reference: str | Path | None = None,
    scans: str | Path | None = None,
    layer: str = "prediction",
    opacity: float = 0.5,
    height: int = 420,
) -> NiiVue:
    """A widget with a scan and its label map in three planes and in 3D: the last line of a cell shows it.

    Args:
        folder: that `predict` wrote into, or another folder of label maps.
        name: of the case; None: the one with the lowest quality score.
        reference: folder of reference label maps.
        scans: folder of the scans; None: the scans that run.json in ``folder`` lists.
        layer: ``prediction`` or ``reference``.
        opacity: of the labels, 0 to 1.
        height: of the widget, in pixels.

    Raises:
        UserError: ipyniivue is missing, there is no such case or label map, or a file cannot be read.
    """
    if layer not in LAYERS:
        raise UserError(f"layer {layer!r}: must be {' or '.join(LAYERS)}")
    opacity = require_number("opacity", opacity, 0, 1)
    try:
        from ipyniivue import NiiVue, Volume
    except ImportError:
        raise UserError(f"ipyniivue is not installed; {install_extra('view')}") from None
    folder = Path(folder)
    beside = Path(reference) if reference is not None else None
    cases = find_cases(folder, beside, Path(scans) if scans is not None else None)
    case = _chosen(cases, name, folder)
    table = find_labels(folder, list(label_maps(folder).values())[:1])
    loaded = load_case(case, table, {"prediction": folder, "reference": beside or folder})
    for kind in ("scan", layer):
        if kind in loaded.info["problems"]:
            raise UserError(f"case {case.name}: {loaded.info['problems'][kind]}")
    if layer not in loaded.files:
        raise UserError(f"case {case.name}: has no {layer}; give the folder of the label maps")
    made = NiiVue(height=height, is_radiological_convention=True, sagittal_nose_left=True)
    black, white = loaded.info["windows"][0]
    scan = Volume(data=loaded.files["scan-0"], name="scan.nii", colormap="gray", cal_min=black, cal_max=white)
    labels = Volume(data=loaded.files[layer], name=f"{layer}.nii", opacity=opacity)
    rows = loaded.info["labels"]
    colours = [(0, 0, 0), *(rgb(row["colour"]) for row in rows)]
    labels.set_colormap_label(
        {
            **{letter: [colour[i] for colour in colours] for i, letter in enumerate("RGB")},
            "A": [0] + [255] * len(rows),
            "I": [0, *(row["value"] for row in rows)],
            "labels": ["", *(row["name"] for row in rows)],
        }
    )
    made.load_volumes([scan, labels])
    return made


def _chosen(cases: list[ViewerCase], name: str | None, folder: Path) -> ViewerCase:
    if name is None:
        return next((case for case in cases if not case.failed), cases[0])
    found = next((case for case in cases if case.name == name), None)
    if found is None:
        listed = ", ".join(case.name for case in cases[:10])
        raise UserError(f"case {name!r}: is not in {folder}; the cases are {listed}{', ...' if cases[10:] else ''}")
    return found
