"""Figure 5 of the paper: the embeddings of a test scan's voxels, mapped to the plane by t-SNE, with the prototypes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
import torch

from mre_lowshot.data.colours import label_colours
from mre_lowshot.errors import UserError, install_extra
from mre_lowshot.experiments.results import RowResult
from mre_lowshot.files import printable
from mre_lowshot.inference.embeddings import embeddings_at, prototypes_of
from mre_lowshot.inference.models import load_model
from mre_lowshot.inference.predictor import Predictor
from mre_lowshot.plotting import new_figure, save_figure
from mre_lowshot.preprocessing.store import load_case

VOXELS = 150  # of each class, at most
PERPLEXITY = 30.0


@dataclass(frozen=True)
class Cloud:
    """The embeddings of one row.

    Attributes:
        title: of the row.
        points: voxels on the plane, (n, 2).
        classes: of the voxels in the reference, (n).
        prototypes: on the plane, (K, M, 2); None where the row has none.
    """

    title: str
    points: np.ndarray
    classes: np.ndarray
    prototypes: np.ndarray | None


def draw_embeddings(path: Path, rows: Sequence[RowResult], prepared: Path, *, device: torch.device, title: str) -> str:
    """Draw the embeddings of the first test scan of each row's first run to ``path`` (PNG); the same voxels where the
    rows share fold and grid.

    Args:
        path: the file.
        rows: results of the rows; those without a network are left out.
        prepared: preprocessed/DatasetXXX_Name.
        device: to compute on.
        title: heading.

    Returns:
        The name of the scan.

    Raises:
        UserError: scikit-learn is missing, or no row has a trained network.
    """
    require_sklearn()
    shown = [r for r in rows if r.runs and not r.row.baseline]
    if not shown:
        raise UserError(f"{title}: no row with a network has a run yet; run them first")
    clouds: list[Cloud] = []
    labels: Mapping[str, int] = {}
    names: list[str] = []
    for row in shown:
        run = next(iter(row.runs.values()))
        predictor = Predictor(load_model(run.folder, None, device), device=device)
        labels, name = predictor.plan.labels, sorted(run.cases)[0]
        names.append(name)
        clouds.append(_cloud(row.row.label, predictor, prepared, name))
    draw_clouds(path, clouds, labels, f"{title}. Scan {', '.join(dict.fromkeys(names))}")
    return names[0]


def draw_clouds(path: Path, clouds: Sequence[Cloud], labels: Mapping[str, int], title: str) -> None:
    """Draw maps beside each other to ``path`` (PNG), the classes in their colours, prototypes as stars."""
    width = 4.6 * len(clouds)
    lines = wrap(printable(title), int(12 * width))
    top = 0.18 * len(lines) + 0.4  # inches, for the heading and the panels' titles
    height = 4.7 + top
    figure = new_figure(width, height)
    colours = {0: "#9a9a9a", **label_colours(labels)}
    for number, cloud in enumerate(clouds):
        axes = figure.add_subplot(1, len(clouds), number + 1)
        for value in labels.values():
            part = cloud.points[cloud.classes == value]
            axes.scatter(part[:, 0], part[:, 1], s=6, color=colours[value], alpha=0.7, linewidths=0)
            if cloud.prototypes is not None:
                stars = cloud.prototypes[value]
                axes.scatter(stars[:, 0], stars[:, 1], s=130, marker="*", color=colours[value], edgecolors="black")
        axes.set(xticks=[], yticks=[])
        axes.set_title(f"({'abcdefgh'[number]}) {cloud.title}", fontsize=9)
    figure.suptitle("\n".join(lines), parse_math=False, fontsize=10, y=1 - 0.06 / height, va="top")
    _legend(figure, labels, colours)
    figure.subplots_adjust(left=0.02, right=0.98, top=1 - top / height, bottom=0.14, wspace=0.05)
    save_figure(figure, path)


def require_sklearn() -> None:
    """Refuse where scikit-learn is missing.

    Raises:
        UserError: it is; the message has the command that installs it.
    """
    from importlib.util import find_spec

    if find_spec("sklearn") is None:
        raise UserError(f"figure5: the package scikit-learn is not installed; {install_extra('baselines')}")


def _cloud(title: str, predictor: Predictor, prepared: Path, name: str) -> Cloud:
    case = load_case(prepared / predictor.plan.plans_name, name, predictor.plan)
    label = case.needed_label()
    voxels, classes = chosen_voxels(label[0] if predictor.plan.network.axes == 2 else label)
    found = embeddings_at(predictor, predictor.register(case), voxels)
    prototypes = prototypes_of(predictor)
    together = found if prototypes is None else np.concatenate([found, prototypes.reshape(-1, found.shape[1])])
    plane = to_plane(together)
    stars = None if prototypes is None else plane[len(found) :].reshape(*prototypes.shape[:2], 2)
    return Cloud(title, plane[: len(found)], classes, stars)


def chosen_voxels(label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `VOXELS` voxels of each class of a label map, drawn at random: (n, axes), and their classes (n)."""
    random = np.random.default_rng(0)
    parts, classes = [], []
    for value in np.unique(label[label >= 0]):
        places = np.argwhere(label == value)
        parts.append(random.permutation(places)[:VOXELS])
        classes += [int(value)] * len(parts[-1])
    return np.concatenate(parts), np.array(classes)


def to_plane(embeddings: np.ndarray) -> np.ndarray:
    """t-SNE of embeddings (n, N_e) by cosine distance, as the head compares them: (n, 2)."""
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(embeddings) - 1) / 3)
    made = TSNE(metric="cosine", init="random", perplexity=perplexity, random_state=0, n_jobs=1)
    return np.asarray(made.fit_transform(embeddings))


def _legend(figure: Any, labels: Mapping[str, int], colours: Mapping[int, str]) -> None:
    from matplotlib.lines import Line2D

    marks = [
        Line2D([], [], color=colours[value], marker="o", linestyle="", markersize=5, label=printable(name))
        for name, value in labels.items()
    ]
    marks.append(Line2D([], [], color="white", marker="*", markeredgecolor="black", markersize=11, label="prototypes"))
    made = figure.legend(handles=marks, loc="lower center", ncols=min(len(marks), 6), fontsize=8, frameon=False)
    for entry in made.get_texts():
        entry.set_parse_math(False)
