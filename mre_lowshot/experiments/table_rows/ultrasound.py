"""Table XII: breast ultrasound, with the metrics of its reference 46."""

from __future__ import annotations

from mre_lowshot.evaluation.bus import BUS_METRICS
from mre_lowshot.experiments.records import Figure, Reference, Row, Table, printed

NAMES = dict(zip(BUS_METRICS, ("F1-score", "ARE", "TP", "FP"), strict=True))


def _bus(level: str, line: str) -> tuple[Figure]:
    values = printed(BUS_METRICS, line)
    return (Figure("BUS", *values["F1"], float("nan"), float("nan"), level=level, dice_by=values),)


def _pair(level: str, group: str, mre: str, fcn: str) -> tuple[Row, Row]:
    shot = level.removesuffix("pct")
    return (
        Row(f"mre_{shot}", "MRE-Net", level=level, group=group, paper=_bus(level, mre)),
        Row(f"fcn_{shot}", "FCN", baseline="fcn", level=level, group=group, paper=_bus(level, fcn)),
    )


TABLE12 = Table(
    "table12", "breast ultrasound (2D) with few images", "Table XII", "mre_1",
    (
        *_pair("1pct", "1 %", "89.69 (3.55) 15.95 (14.32) 87.52 (5.58) 7.81 (9.49)",
               "*79.89 (4.53) *21.60 (11.45) *73.07 (6.34) *9.81 (8.13)"),
        *_pair("5pct", "5 %", "90.97 (5.45) 13.87 (15.18) 93.45 (4.73) 12.73 (14.93)",
               "*87.69 (4.82) *19.59 (15.16) *92.36 (4.51) *19.00 (14.58)"),
        *_pair("10pct", "10 %", "91.88 (3.97) 10.49 (9.36) 94.17 (4.69) 11.13 (10.43)",
               "*88.24 (3.70) *18.24 (10.70) *90.97 (4.41) *15.49 (9.75)"),
        Row("fcn_all", "FCN", baseline="fcn", level="70pct", group="70 % (the paper: all 220)",
            paper=_bus("70pct", "90.49 (2.80) 12.78 (8.64) 91.93 (4.75) 11.36 (7.71)")),
        Row("scs_all", "SCS expt.", baseline="scs", level="70pct", group="70 % (the paper: all 220)",
            paper=_bus("70pct", "91.17 (2.88) 9.81 (6.28) 93.75 (4.68) 12.06 (8.10)")),
    ),
    layout="ultrasound", datasets=("BUS",),
    references=(
        Reference("SCS rept. [46]", printed(BUS_METRICS, "89.97 (4.05) 9.95 (4.42) 91.41 (5.04) 12.22 (9.42)"),
                  note="trained on all 220 images"),
    ),
    note="Mean (SD over test images), %. The paper tests on 100 images of its own; here a fold tests on the labelled "
         "images that it does not train on.",
)  # fmt: skip
