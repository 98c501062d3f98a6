"""Pictures of the rows of a table: the paper's figures, and panels of any rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mre_lowshot import devices
from mre_lowshot.data.dataset import Dataset
from mre_lowshot.experiments.figures import FigureOf
from mre_lowshot.experiments.panels import draw_panels, left_out, panels_of
from mre_lowshot.experiments.results import RowResult
from mre_lowshot.experiments.tsne import draw_embeddings
from mre_lowshot.workflows.experiment_tasks import Run


def draw(
    run: Run, dataset: Dataset, results: Sequence[RowResult], labels: Sequence[str] | None, *, figure: FigureOf | None
) -> Path:
    """Draw a figure, or the panels of the chosen rows, into the folder of the table; the path.

    Args:
        run: the experiment.
        dataset: the raw dataset.
        results: of its rows.
        labels: names of the labels to draw; None: all.
        figure: the paper's; None: panels of the chosen rows.

    Raises:
        UserError: there is nothing to draw, or scikit-learn is missing for a map of embeddings.
    """
    names = [row.name for row in run.rows]
    by_name = {result.row.name: result for result in results}
    rows = [by_name[name] for name in names if name in by_name]
    kind = figure.kind if figure else "panels"
    where = f"{dataset.name}, base {run.setting.base}" + (f". {run.remark}" if run.remark else "")
    path = run.folder_of(dataset.name) / f"{figure.name if figure else 'panels'}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "embeddings":
        title = f"{figure.title if figure else ''}. {where}"
        prepared = run.space.preprocessed / dataset.name
        draw_embeddings(path, rows, prepared, device=devices.resolve(run.device), title=title)
        return path
    title = f"{figure.title if figure else f'{run.table.name}: segmentations'}. {where}"
    chosen = labels or [name for name, value in dataset.labels.items() if value]
    found = panels_of(rows)
    draw_panels(path, found, dataset, reference=run.reference, title=title, labels=chosen)
    if missing := left_out(rows, found):
        run.reporter.warning(
            f"{path.name} lacks {', '.join(missing)}: the other rows tested other scans; run them on several folds "
            "(--folds 0 1 2), so that all rows have test scans in common"
        )
    return path
