"""Tables II to VI: the components of the method, one changed at a time."""

from __future__ import annotations

from mre_lowshot.experiments.records import Row, Table
from mre_lowshot.experiments.table_rows.common import (
    BOTH,
    FULL,
    NO_AMS,
    NO_COORDINATES,
    NO_DML,
    NO_OHEM,
    UNET,
)
from mre_lowshot.experiments.table_rows.common import ct as _ct
from mre_lowshot.experiments.table_rows.common import mr as _mr

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
    layout="rows", datasets=BOTH,
    marks=(("DML", NO_DML), ("Cartesian coordinate", NO_COORDINATES), ("AMS embedding", NO_AMS), ("OHEM", NO_OHEM)),
)  # fmt: skip

TABLE3 = Table(
    "table3", "dimension N_e of the embedding", "Table III", "ne2048",
    (
        Row("ne512", "N_e 512 (small: 16)", scaled={"network.embedding_dim": 0.25},
            paper=(_mr(75.77, 1.93, 6.59, 1.98, memory="~4x5.90 GB"),)),
        Row("ne1024", "N_e 1024 (small: 32)", scaled={"network.embedding_dim": 0.5},
            paper=(_mr(77.56, 0.95, 6.62, 1.62, memory="~4x7.68 GB"),)),
        Row("ne2048", "N_e 2048 (small: 64)", paper=FULL[:1]),
        Row("ne4096", "N_e 4096 (small: 128)", scaled={"network.embedding_dim": 2.0},
            paper=(_mr(76.99, 1.26, 6.47, 1.86, memory="~4x14.44 GB"),)),
    ),
    layout="columns", datasets=BOTH[:1], costs=True,
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
    layout="columns", datasets=BOTH[:1],
)  # fmt: skip

TABLE5 = Table(
    "table5", "mixing coefficients of the prototypes", "Table V", "adaptive",
    (
        Row("one_hot", "one-hot: the nearest prototype", {"network.mixing": "one_hot"},
            paper=(_mr(77.04, 1.28, 7.59, 1.96),)),
        Row("average", "average: 1/M", {"network.mixing": "average"}, paper=(_mr(76.08, 1.38, 6.54, 1.78),)),
        Row("adaptive", "adaptive", paper=FULL[:1]),
    ),
    layout="columns", datasets=BOTH[:1],
)  # fmt: skip

TABLE6 = Table(
    "table6", "distance (euclidean equals cosine with twice the scale)", "Table VI", "cosine",
    (
        Row("cosine", "cosine", paper=FULL),
        Row("euclidean", "euclidean", {"network.distance": "euclidean"},
            paper=(_mr(77.57, 1.01, 6.52, 1.91, memory="~8x11.30 GB", time="~260 min"),
                   _ct(67.68, 1.48, 18.95, 9.17, memory="~8x10.95 GB", time="~250 min"))),
    ),
    layout="rows", datasets=BOTH, costs=True,
)  # fmt: skip

TABLES = (TABLE2, TABLE3, TABLE4, TABLE5, TABLE6)
