"""The paper's tables by name: each row is data, a few changed fields of one base recipe.

The bases are the recipe `paper` at the paper's size and `paper_small`, the same method at the size of a CPU; both are
the full method, row (e) of Table II, and a row names only what it changes. Figures are the paper's, in percent and mm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mre_lowshot.codec import nearest
from mre_lowshot.errors import UserError

Base = Literal["small", "paper"]
SMALL_OF = {"paper": "paper_small", "paper_aug": "paper_aug_small"}  # the recipes that have a size to choose


@dataclass(frozen=True)
class Figure:
    """What the paper reports: Dice (%) and HD95 (mm), means and standard deviations as printed there."""

    dataset: str
    dice: float
    dice_sd: float
    hd95: float
    hd95_sd: float
    level: str = "1shot"


@dataclass(frozen=True)
class Row:
    """One line of a table. ``changes`` are those of ``--set``; ``scaled`` multiplies a planned number (so that the
    paper's N_e keep their ratios in the small network); ``base`` names the only base that has the row, if not both."""

    name: str
    label: str
    changes: Mapping[str, str] = field(default_factory=dict)
    scaled: Mapping[str, float] = field(default_factory=dict)
    recipe: str = "paper"
    paper: tuple[Figure, ...] = ()
    base: Base | None = None

    def recipe_at(self, base: Base) -> str:
        return SMALL_OF.get(self.recipe, self.recipe) if base == "small" else self.recipe

    def same_as(self, other: Row) -> bool:
        """Whether the two rows are one and the same training, whatever they are called."""
        one, two = ((r.recipe, dict(r.changes), dict(r.scaled)) for r in (self, other))
        return one == two


@dataclass(frozen=True)
class Table:
    """A named table; ``reference`` is the row that the others are compared with, ``source`` its place in the paper or
    nothing."""

    name: str
    title: str
    source: str
    reference: str
    rows: tuple[Row, ...]

    def row(self, name: str) -> Row:
        """The row of that name.

        Raises:
            UserError: there is none; the nearest is named.
        """
        found = {row.name: row for row in self.rows}
        if name not in found:
            raise UserError(f"--rows: table {self.name} has no row {name!r}; {nearest(name, found)}")
        return found[name]

    def rows_at(self, base: Base) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.base in (None, base))


def _mr(dice: float, dice_sd: float, hd95: float, hd95_sd: float, level: str = "1shot") -> Figure:
    return Figure("MRBrainS18", dice, dice_sd, hd95, hd95_sd, level)


def _ct(dice: float, dice_sd: float, hd95: float, hd95_sd: float) -> Figure:
    return Figure("BTCV", dice, dice_sd, hd95, hd95_sd)


FULL = (_mr(78.39, 1.07, 6.30, 1.73), _ct(69.13, 1.43, 19.02, 8.63))
NO_COORDINATES, NO_AMS, NO_OHEM, NO_DML = (
    {"network.coordinates": "none"}, {"network.ams": "false"}, {"recipe.ohem": "false"}, {"network.dml": "false"},
)  # fmt: skip
# Without embedding, prototypes and coordinates, a U-Net is left. (A linear embedding under a linear classifier would
# be no other function, and the paper prints its U-Net-1's figures in this row.)
UNET = {**NO_DML, **NO_COORDINATES, **NO_AMS, **NO_OHEM, "network.embedding": "0"}

TABLE2 = Table(
    "table2", "ablation of the components", "Table II", "e",
    (
        Row("a", "neither DML, coordinates, AMS nor OHEM (U-Net)", UNET,
            paper=(_mr(14.86, 19.11, 59.30, 18.21), _ct(25.91, 5.53, 58.29, 16.08))),
        Row("b", "DML", {**NO_COORDINATES, **NO_AMS, **NO_OHEM},
            paper=(_mr(65.38, 2.27, 14.47, 2.08), _ct(53.36, 2.75, 35.47, 9.26))),
        Row("c", "DML, coordinates", {**NO_AMS, **NO_OHEM},
            paper=(_mr(69.41, 2.72, 9.36, 1.34), _ct(59.08, 2.47, 26.59, 8.70))),
        Row("d", "DML, coordinates, AMS", NO_OHEM,
            paper=(_mr(74.47, 1.65, 6.95, 1.77), _ct(67.86, 1.90, 21.18, 8.99))),
        Row("e", "DML, coordinates, AMS, OHEM (MRE-Net)", paper=FULL),
        Row("f", "coordinates, AMS, OHEM, without DML", NO_DML,
            paper=(_mr(38.17, 4.18, 24.56, 3.54), _ct(31.23, 4.82, 42.63, 12.69))),
        Row("g", "DML, AMS, OHEM, without coordinates", NO_COORDINATES,
            paper=(_mr(70.67, 2.34, 12.76, 2.18), _ct(56.96, 2.67, 22.69, 10.22))),
    ),
)  # fmt: skip

TABLE3 = Table(
    "table3", "width N_e of the embedding", "Table III", "ne2048",
    (
        Row("ne512", "N_e 512 (small: 16)", scaled={"network.embedding": 0.25}, paper=(_mr(75.77, 1.93, 6.59, 1.98),)),
        Row("ne1024", "N_e 1024 (small: 32)", scaled={"network.embedding": 0.5}, paper=(_mr(77.56, 0.95, 6.62, 1.62),)),
        Row("ne2048", "N_e 2048 (small: 64)", paper=FULL[:1]),
        Row("ne4096", "N_e 4096 (small: 128)", scaled={"network.embedding": 2.0},
            paper=(_mr(76.99, 1.26, 6.47, 1.86),)),
    ),
)  # fmt: skip

_MODES = {
    1: (_mr(74.91, 1.98, 7.08, 1.81), _mr(79.21, 1.25, 5.88, 1.83, "3shot")),
    2: (_mr(78.42, 1.13, 6.21, 1.55), _mr(81.39, 1.43, 5.25, 1.79, "3shot")),
    3: (_mr(78.39, 1.07, 6.30, 1.73), _mr(81.98, 1.11, 5.26, 1.69, "3shot")),
    4: (_mr(78.05, 1.30, 6.54, 1.83), _mr(80.99, 1.39, 5.44, 1.76, "3shot")),
    5: (_mr(77.68, 1.62, 6.93, 1.40), _mr(81.23, 1.91, 5.50, 1.75, "3shot")),
}
TABLE4 = Table(
    "table4", "number M of modes a class", "Table IV", "m3",
    tuple(Row(f"m{m}", f"M = {m}", {} if m == 3 else {"network.modes": str(m)}, paper=_MODES[m]) for m in _MODES),
)  # fmt: skip

TABLE5 = Table(
    "table5", "mixing coefficients of the modes", "Table V", "adaptive",
    (
        Row("one_hot", "one-hot: the nearest mode", {"network.mixing": "one_hot"},
            paper=(_mr(77.04, 1.28, 7.59, 1.96),)),
        Row("average", "average: 1/M", {"network.mixing": "average"}, paper=(_mr(76.08, 1.38, 6.54, 1.78),)),
        Row("adaptive", "adaptive", paper=FULL[:1]),
    ),
)  # fmt: skip

TABLE6 = Table(
    "table6", "distance (euclidean equals cosine with twice the scale)", "Table VI", "cosine",
    (
        Row("cosine", "cosine", paper=FULL),
        Row("euclidean", "euclidean", {"network.distance": "euclidean"},
            paper=(_mr(77.57, 1.01, 6.52, 1.91), _ct(67.68, 1.48, 18.95, 9.17))),
    ),
)  # fmt: skip

BASELINES = Table(
    "baselines", "MRE-Net, U-Net and the recipe default", "Tables VII and VIII", "mre",
    (
        Row("mre", "MRE-Net, the paper's recipe",
            paper=(*FULL, _mr(80.55, 1.31, 5.61, 1.06, "2shot"), _mr(81.98, 1.11, 5.26, 1.69, "3shot"))),
        Row("mre_aug", "Aug. + MRE-Net", recipe="paper_aug",
            paper=(_mr(78.32, 0.93, 6.34, 1.87), _mr(80.43, 1.78, 5.58, 1.62, "2shot"),
                   _mr(81.84, 1.28, 5.20, 1.72, "3shot"))),
        Row("unet", "U-Net, trained as long as MRE-Net", UNET, paper=(_mr(14.86, 19.11, 59.30, 18.21),)),
        Row("unet_aug", "Aug. + U-Net, trained as long", UNET, recipe="paper_aug",
            paper=(_mr(49.15, 11.91, 30.74, 12.71), _ct(30.84, 5.22, 43.77, 13.18))),
        Row("unet_literal", "U-Net, the paper's schedule", recipe="unet", base="paper",
            paper=(_mr(14.86, 19.11, 59.30, 18.21),)),
        Row("unet_spread", "U-Net, drops spread out", recipe="unet_spread", base="paper"),
        Row("default", "recipe default", recipe="default"),
        Row("unet_default", "recipe default with the U-Net", recipe="unet_default"),
    ),
)  # fmt: skip

READINGS = Table(
    "readings", "what the paper leaves open, read otherwise", "", "read",
    (
        Row("read", "as read (docs/METHOD.md)"),
        Row("patch_coordinates", "coordinates over the patch", {"network.coordinates": "patch"}),
        Row("bottleneck", "bottleneck level in the embedding", {"network.bottleneck_level": "true"}),
        Row("no_se", "without SE", {"network.se": "false"}),
        Row("no_aspp", "without ASPP", {"network.aspp": "false"}),
        Row("no_image_level", "without the image-level branch", {"network.image_level": "false"}),
        Row("instance_norm", "instance norm", {"network.norm": "instance", "network.image_level_norm": "false"}),
        Row("paper_dilations", "dilations 6, 12, 18 on every axis", {"network.dilations": "paper"}, base="small"),
        Row("patch_dilations", "dilations by the patch's sides", {"network.dilations": "patch"}, base="paper"),
        Row("no_sigmoid", "no sigmoid before the mixing softmax", {"network.mixing_sigmoid": "false"}),
        Row("fixed_scale", "scale xi fixed at 10", {"network.scale_learned": "false"}),
    ),
)  # fmt: skip

# What is kept of the recipe `default` is kept on evidence: the parts of it taken away, and what was tried beyond it.
_UNTOLD = {"recipe.inference.prior_weight": "0", "network.atlas_prior": "false"}
_PLAIN = {
    f"recipe.augmentation.{name}_probability": "0"
    for name in ("spatial", "brightness", "contrast", "gamma", "noise", "blur", "low_resolution")
}
CANDIDATES = Table(
    "candidates", "the recipe default, and candidates against it", "", "default",
    (
        Row("default", "recipe default", recipe="default"),
        Row("unet_default", "the same with the U-Net", recipe="unet_default"),
        Row("no_pooling", "registered labels told, not pooled", {"recipe.inference.prior_weight": "0"},
            recipe="default"),
        Row("no_prior", "registered, labels neither told nor pooled", _UNTOLD, recipe="default"),
        Row("not_registered", "coordinates over each scan", {**_UNTOLD, "recipe.alignment": "none"}, recipe="default"),
        Row("no_augmentation", "neither spatial nor intensity augmentation", _PLAIN, recipe="default"),
        Row("no_ohem", "every voxel, hard ones not chosen", {"recipe.ohem": "false"}, recipe="default"),
        Row("no_dice", "cross-entropy alone", {"recipe.dice_weight": "0"}, recipe="default"),
        Row("no_average", "last weights, not their moving average", {"recipe.ema": "0"}, recipe="default"),
        Row("uniform", "patches drawn uniformly", {"recipe.balanced_share": "0"}, recipe="default"),
        Row("all_pieces", "all pieces of a class kept", {"recipe.largest_component": "false"}, recipe="default"),
        Row("no_floors", "no HU too dark for a class (CT)", {"recipe.hu_floors": "false"}, recipe="default"),
        Row("no_intensities", "not mended by the scan's own intensities", {"recipe.inference.intensity_weight": "0"},
            recipe="default"),
        Row("no_neighbours", "like neighbours need not agree", {"recipe.inference.neighbour_weight": "0"},
            recipe="default"),
        Row("twice_as_long", "twice as many iterations", scaled={"recipe.iterations": 2.0}, recipe="default"),
    ),
)  # fmt: skip

TABLES = {table.name: table for table in (TABLE2, TABLE3, TABLE4, TABLE5, TABLE6, BASELINES, READINGS, CANDIDATES)}
_ROMAN = {"ii": "2", "iii": "3", "iv": "4", "v": "5", "vi": "6"}


def named(name: str) -> Table:
    """The table of that name; ``II`` and ``2`` mean ``table2``.

    Raises:
        UserError: there is none; the message names those there are.
    """
    plain = name.strip().lower()
    number = plain.removeprefix("table").strip(" _-")
    for candidate in (plain, f"table{_ROMAN.get(number, number)}"):
        if candidate in TABLES:
            return TABLES[candidate]
    raise UserError(f"table {name!r} is unknown; {nearest(plain, TABLES)}")


def plan_name(row: Row, base: Base, iterations: int | None) -> str:
    """The plan of a row: named after the first row of all tables that is the same training (the full method is always
    ``table2_e``), so that tables share it; the paper's size and a length of one's own are told in the name."""
    table, first = next((t, r) for t in TABLES.values() for r in t.rows if r.same_as(row))
    parts = [table.name, first.name]
    if base == "paper" and row.recipe in SMALL_OF:
        parts.append("paper")
    elif base == "small" and row.recipe not in SMALL_OF:
        parts.append("small")
    if iterations is not None:
        parts.append(str(iterations))
    return "_".join(parts)
