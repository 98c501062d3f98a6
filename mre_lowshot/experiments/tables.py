"""The tables of the paper by name: each row is data, a few changed fields of a base recipe.

The bases are the recipe `paper` at the size of the paper and `paper_small`, the same method at a size for CPUs. Both
are the full method, row (e) of Table II, and a row lists only the fields that it changes. Figures are those of the
paper, in percent and mm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mre_lowshot.config.json import suggest
from mre_lowshot.errors import UserError

Base = Literal["small", "paper"]
SMALL_OF = {"paper": "paper_small", "paper_aug": "paper_aug_small"}  # recipes with a small variant


@dataclass(frozen=True)
class Figure:
    """Figures of the paper: means and standard deviations of Dice (%) and HD95 (mm) as printed."""

    dataset: str
    dice: float
    dice_sd: float
    hd95: float
    hd95_sd: float
    level: str = "1shot"


@dataclass(frozen=True)
class Row:
    """One row of a table: a training that differs from the base recipe in a few fields."""

    name: str
    label: str  # printed description
    changes: Mapping[str, str] = field(default_factory=dict)  # plan fields and values, as for --set
    scaled: Mapping[str, float] = field(default_factory=dict)  # factors of planned numbers, as N_e in the small network
    recipe: str = "paper"
    paper: tuple[Figure, ...] = ()  # the paper's results of the row
    base: Base | None = None  # the only base with this row; None: both

    def recipe_at(self, base: Base) -> str:
        """The recipe of the row at the given base."""
        return SMALL_OF.get(self.recipe, self.recipe) if base == "small" else self.recipe

    def same_as(self, other: Row) -> bool:
        """Whether the two rows define the same training, regardless of their names."""
        one, two = ((r.recipe, dict(r.changes), dict(r.scaled)) for r in (self, other))
        return one == two


@dataclass(frozen=True)
class Table:
    """A named table."""

    name: str
    title: str
    source: str  # number of the table in the paper, or empty
    reference: str  # name of the row with which the others are compared
    rows: tuple[Row, ...]

    def row(self, name: str) -> Row:
        """The row named ``name``.

        Raises:
            UserError: the table has no such row; the message suggests a similar name.
        """
        found = {row.name: row for row in self.rows}
        if name not in found:
            raise UserError(f"--rows: table {self.name} has no row {name!r}; {suggest(name, found)}")
        return found[name]

    def rows_at(self, base: Base) -> tuple[Row, ...]:
        """The rows that exist at the given base."""
        return tuple(row for row in self.rows if row.base in (None, base))


def _mr(dice: float, dice_sd: float, hd95: float, hd95_sd: float, level: str = "1shot") -> Figure:
    return Figure("MRBrainS18", dice, dice_sd, hd95, hd95_sd, level)


def _ct(dice: float, dice_sd: float, hd95: float, hd95_sd: float) -> Figure:
    return Figure("BTCV", dice, dice_sd, hd95, hd95_sd)


FULL = (_mr(78.39, 1.07, 6.30, 1.73), _ct(69.13, 1.43, 19.02, 8.63))
NO_COORDINATES, NO_AMS, NO_OHEM, NO_DML = (
    {"network.coordinates": "none"},
    {"network.multiscale": "false"},
    {"recipe.loss.ohem": "false"},
    {"network.prototype_head": "false"},
)  # fmt: skip
# Without embedding, prototypes and coordinates the network is a U-Net. (A linear embedding followed by a linear
# classifier is the same function; the paper prints the figures of its U-Net-1 in this row.)
UNET = {**NO_DML, **NO_COORDINATES, **NO_AMS, **NO_OHEM, "network.embedding_dim": "0"}

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
    "table3", "dimension N_e of the embedding", "Table III", "ne2048",
    (
        Row("ne512", "N_e 512 (small: 16)", scaled={"network.embedding_dim": 0.25},
            paper=(_mr(75.77, 1.93, 6.59, 1.98),)),
        Row("ne1024", "N_e 1024 (small: 32)", scaled={"network.embedding_dim": 0.5},
            paper=(_mr(77.56, 0.95, 6.62, 1.62),)),
        Row("ne2048", "N_e 2048 (small: 64)", paper=FULL[:1]),
        Row("ne4096", "N_e 4096 (small: 128)", scaled={"network.embedding_dim": 2.0},
            paper=(_mr(76.99, 1.26, 6.47, 1.86),)),
    ),
)  # fmt: skip

_PROTOTYPES = {
    1: (_mr(74.91, 1.98, 7.08, 1.81), _mr(79.21, 1.25, 5.88, 1.83, "3shot")),
    2: (_mr(78.42, 1.13, 6.21, 1.55), _mr(81.39, 1.43, 5.25, 1.79, "3shot")),
    3: (_mr(78.39, 1.07, 6.30, 1.73), _mr(81.98, 1.11, 5.26, 1.69, "3shot")),
    4: (_mr(78.05, 1.30, 6.54, 1.83), _mr(80.99, 1.39, 5.44, 1.76, "3shot")),
    5: (_mr(77.68, 1.62, 6.93, 1.40), _mr(81.23, 1.91, 5.50, 1.75, "3shot")),
}
TABLE4 = Table(
    "table4", "number M of prototypes per class", "Table IV", "m3",
    tuple(
        Row(f"m{m}", f"M = {m}", {} if m == 3 else {"network.prototypes_per_class": str(m)}, paper=figures)
        for m, figures in _PROTOTYPES.items()
    ),
)  # fmt: skip

TABLE5 = Table(
    "table5", "mixing coefficients of the prototypes", "Table V", "adaptive",
    (
        Row("one_hot", "one-hot: the nearest prototype", {"network.mixing": "one_hot"},
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
    "readings", "other readings of points that the paper leaves open", "", "read",
    (
        Row("read", "our reading (docs/METHOD.md)"),
        Row("patch_coordinates", "coordinates over the patch", {"network.coordinates": "patch"}),
        Row("bottleneck", "bottleneck level in the embedding", {"network.bottleneck_level": "true"}),
        Row("no_se", "without SE", {"network.se": "false"}),
        Row("no_aspp", "without ASPP", {"network.aspp": "false"}),
        Row("no_image_level", "without the image-level branch", {"network.image_level": "false"}),
        Row("instance_norm", "instance norm", {"network.norm": "instance", "network.image_level_norm": "false"}),
        Row("paper_dilations", "dilations 6, 12, 18 on every axis", {"network.dilations": "paper"}, base="small"),
        Row("patch_dilations", "dilations proportional to the patch size", {"network.dilations": "patch"},
            base="paper"),
        Row("no_sigmoid", "no sigmoid before the mixing softmax", {"network.mixing_sigmoid": "false"}),
        Row("fixed_scale", "scale xi fixed at 10", {"network.logit_scale_learned": "false"}),
    ),
)  # fmt: skip

# The recipe `default` with one part removed per row, and candidate extensions.
_NO_ATLAS_LABELS = {"recipe.refinement.atlas_weight": "0", "network.atlas_prior": "false"}
_NO_AUGMENTATION = {
    f"recipe.augmentation.{name}_probability": "0"
    for name in ("spatial", "brightness", "contrast", "gamma", "noise", "blur", "low_resolution")
}
CANDIDATES = Table(
    "candidates", "the recipe default, and candidates against it", "", "default",
    (
        Row("default", "recipe default", recipe="default"),
        Row("unet_default", "the same with the U-Net", recipe="unet_default"),
        Row("no_fusion", "warped labels as prior, not fused", {"recipe.refinement.atlas_weight": "0"},
            recipe="default"),
        Row("no_prior", "registered, labels neither prior nor fused", _NO_ATLAS_LABELS, recipe="default"),
        Row("not_registered", "not registered, coordinates over each scan", 
            {**_NO_ATLAS_LABELS, "recipe.atlas.registration": "none"}, recipe="default"),
        Row("no_augmentation", "neither spatial nor intensity augmentation", _NO_AUGMENTATION, recipe="default"),
        Row("no_ohem", "without OHEM", {"recipe.loss.ohem": "false"}, recipe="default"),
        Row("no_dice", "cross-entropy alone", {"recipe.loss.dice_weight": "0"}, recipe="default"),
        Row("no_average", "last weights, not their moving average", {"recipe.optimizer.ema": "0"}, recipe="default"),
        Row("uniform", "patches drawn uniformly", {"recipe.sampling.foreground_fraction": "0"}, recipe="default"),
        Row("all_components", "all components of a class kept", {"recipe.refinement.largest_component": "false"},
            recipe="default"),
        Row("no_min_hu", "no lower HU limits (CT)", {"recipe.refinement.min_hu": "false"}, recipe="default"),
        Row("no_em", "without EM step", {"recipe.refinement.em_weight": "0"},
            recipe="default"),
        Row("no_crf", "without CRF", {"recipe.refinement.crf_weight": "0"},
            recipe="default"),
        Row("twice_as_long", "twice as many iterations", scaled={"recipe.optimizer.iterations": 2.0}, recipe="default"),
    ),
)  # fmt: skip

TABLES = {table.name: table for table in (TABLE2, TABLE3, TABLE4, TABLE5, TABLE6, BASELINES, READINGS, CANDIDATES)}
_ROMAN = {"ii": "2", "iii": "3", "iv": "4", "v": "5", "vi": "6"}


def named(name: str) -> Table:
    """The table named ``name``; ``II`` and ``2`` mean ``table2``.

    Raises:
        UserError: no such table; the message suggests a similar name or lists all.
    """
    plain = name.strip().lower()
    number = plain.removeprefix("table").strip(" _-")
    for candidate in (plain, f"table{_ROMAN.get(number, number)}"):
        if candidate in TABLES:
            return TABLES[candidate]
    raise UserError(f"table {name!r} is unknown; {suggest(plain, TABLES)}")


def plan_name(row: Row, base: Base, iterations: int | None) -> str:
    """The name of a row's plan, for example ``table4_m1_paper_300``.

    It is named after the first row of all tables with the same training, so that tables share results (the full method
    is always ``table2_e``), and followed by the size if it is not the recipe's own and by ``iterations`` if given.
    """
    table, first = next((t, r) for t in TABLES.values() for r in t.rows if r.same_as(row))
    parts = [table.name, first.name]
    if base == "paper" and row.recipe in SMALL_OF:
        parts.append("paper")
    elif base == "small" and row.recipe not in SMALL_OF:
        parts.append("small")
    if iterations is not None:
        parts.append(str(iterations))
    return "_".join(parts)
