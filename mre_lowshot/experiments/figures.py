"""The figures of the paper by name: which rows of which table they show, and how they are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mre_lowshot.experiments.records import Base
from mre_lowshot.experiments.tables import TABLES


@dataclass(frozen=True)
class FigureOf:
    """A named figure.

    Attributes:
        name: of the command.
        title: one line.
        source: its number in the paper.
        table: of the rows.
        rows: in their order in the figure; at the paper's size those with ``_literal`` at the end where there are any.
        kind: segmentations beside each other, or a map of the embeddings of voxels.
    """

    name: str
    title: str
    source: str
    table: str
    rows: tuple[str, ...]
    kind: Literal["panels", "embeddings"]

    def rows_at(self, base: Base) -> list[str]:
        """The names of the rows that exist at the given base."""
        existing = {row.name for row in TABLES[self.table].rows_at(base)}
        return [name for row in self.rows for name in (row, f"{row}_literal") if name in existing]


FIGURES = {
    figure.name: figure
    for figure in (
        FigureOf("figure3", "segmentations of different methods, brain MRI", "Fig. 3", "table7",
                 ("ants_1", "unet_1_aug", "mre_1", "mre_3", "unet_6_aug"), "panels"),
        FigureOf("figure4", "segmentations of different methods, abdominal CT", "Fig. 4", "table8",
                 ("ants_1", "unet_1_aug", "mre_1", "unet_6_aug", "unet_20_aug"), "panels"),
        FigureOf("figure5", "t-SNE of the embeddings of a test scan's voxels, with prototypes", "Fig. 5", "table7",
                 ("mre_1", "unet_1_aug"), "embeddings"),
    )
}  # fmt: skip


def figure_listing() -> Sequence[str]:
    """A line for each figure."""
    return [
        f"{f.name}: {f.title} (paper: {f.source}); rows of {f.table}: {', '.join(f.rows)}" for f in FIGURES.values()
    ]
