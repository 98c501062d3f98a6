"""Tables X and XI: few-shot methods for other settings, adapted to one labelled scan."""

from __future__ import annotations

from mre_lowshot.experiments.records import Figure, Row, Table, figure_of
from mre_lowshot.experiments.table_rows.common import BOTH, FULL, UNET, UNET_AUG, ct, mr
from mre_lowshot.experiments.table_rows.comparisons import ORGANS

TABLE10 = Table(
    "table10", "sSE-guided few-shot segmentation", "Table X", "mre",
    (
        Row("mre", "MRE-Net", paper=FULL),
        Row("unet_aug", "Aug. + U-Net", UNET, recipe="paper_aug", base="small", paper=UNET_AUG),
        Row("unet_aug_literal", "Aug. + U-Net", recipe="unet_aug", base="paper", paper=UNET_AUG),
        Row("sse_10_aug", "Aug. + sSE (k = 10)", baseline="sse_10_aug",
            paper=(mr(28.20, 2.26, 31.58, 0.74), ct(23.04, 4.05, 61.53, 13.14))),
        Row("sse_all_aug", "Aug. + sSE (k = max.)", baseline="sse_all_aug",
            paper=(mr(22.66, 1.33, 36.54, 0.90), ct(25.37, 1.75, 63.87, 3.31))),
        Row("sse_10", "sSE (k = 10)", baseline="sse_10"),
        Row("sse_all", "sSE (k = max.)", baseline="sse_all"),
    ),
    layout="rows", datasets=BOTH,
)  # fmt: skip


def _organs(dice: str, hd95: str) -> tuple[Figure]:
    return (figure_of("BTCV", ORGANS, dice, hd95),)


_UNET = _organs(
    "32.32 (6.38) 47.13 (18.40) 32.40 (8.54) 14.81 (4.14) 19.43 (3.69) 57.61 (11.90) 54.25 (12.08) 19.55 (5.88) "
    "*34.69 (3.84)",
    "42.32 (15.49) 51.76 (14.31) 47.37 (24.62) 46.31 (6.96) 33.73 (11.83) 34.15 (11.78) 34.02 (9.10) 39.26 (18.33) "
    "*41.12 (7.43)",
)
_DATAAUG = {
    ("sas", 5): (
        "29.51 (3.44) 8.10 (4.57) 12.58 (4.91) 6.85 (1.98) 4.93 (3.08) 60.78 (7.51) 14.46 (9.68) 18.28 (9.19) "
        "*19.44 (3.15)",
        "43.08 (10.20) 54.97 (7.92) 57.66 (12.72) 47.30 (13.55) 37.58 (7.73) 35.79 (7.21) 39.78 (8.01) "
        "55.27 (13.45) *46.43 (4.68)",
    ),
    ("ids", 5): (
        "36.26 (6.51) 11.66 (6.33) 15.58 (11.16) 2.93 (4.49) 13.59 (5.01) 64.02 (9.29) 23.49 (10.17) 20.23 (8.23) "
        "*23.47 (2.33)",
        "43.12 (7.36) 45.40 (12.10) 51.68 (5.49) 47.19 (6.57) 44.86 (7.08) 31.65 (7.25) 34.96 (12.72) "
        "43.20 (13.37) *42.76 (3.74)",
    ),
    ("sas", 10): (
        "38.76 (6.20) 13.40 (3.93) 13.30 (4.08) 6.12 (3.72) 9.51 (4.29) 74.74 (3.12) 24.08 (3.15) 18.16 (8.87) "
        "*24.76 (2.46)",
        "36.98 (9.83) 49.37 (7.20) 51.09 (12.16) 42.15 (13.24) 31.21 (7.94) 30.34 (5.95) 32.95 (7.75) "
        "47.98 (18.94) *40.26 (3.67)",
    ),
    ("ids", 10): (
        "37.10 (8.11) 12.85 (6.78) 15.58 (11.94) 3.46 (4.17) 14.10 (5.65) 64.61 (9.23) 23.90 (9.83) 21.84 (9.29) "
        "*24.18 (2.61)",
        "42.40 (6.60) 44.51 (12.52) 49.07 (5.96) 46.36 (9.74) 44.03 (7.86) 29.71 (6.56) 33.04 (12.69) "
        "42.98 (13.82) *41.51 (3.86)",
    ),
    ("sas", 20): (
        "42.89 (8.13) 16.51 (13.79) 16.74 (8.27) 6.68 (5.56) 13.06 (2.98) 79.53 (3.79) 30.92 (3.88) 22.34 (8.33) "
        "*28.58 (3.74)",
        "34.86 (15.31) 45.52 (13.15) 47.00 (17.51) 43.96 (6.13) 29.15 (12.97) 30.05 (14.22) 27.32 (10.09) "
        "45.57 (24.33) *37.93 (10.41)",
    ),
    ("ids", 20): (
        "38.85 (8.18) 15.41 (6.86) 16.97 (11.80) 3.55 (2.86) 17.63 (5.05) 68.77 (7.59) 28.98 (10.25) "
        "22.92 (10.20) *26.64 (2.11)",
        "40.13 (6.12) 47.96 (7.93) 46.52 (6.71) 43.71 (12.65) 41.38 (8.77) 29.06 (7.63) 30.88 (11.74) "
        "42.63 (13.63) *40.28 (3.08)",
    ),
}
TABLE11 = Table(
    "table11", "DataAug: learned transforms from unlabelled scans (-n: n of them)", "Table XI", "mre",
    (
        Row("unet_aug", "Aug. + U-Net", UNET, recipe="paper_aug", base="small", paper=_UNET),
        Row("unet_aug_literal", "Aug. + U-Net", recipe="unet_aug", base="paper", paper=_UNET),
        Row("mre", "MRE-Net", paper=_organs(
            "78.76 (3.46) 73.54 (4.42) 78.36 (3.26) 60.43 (9.77) 55.44 (14.27) 89.79 (3.08) 62.43 (13.21) "
            "59.71 (15.94) 69.81 (4.58)",
            "19.89 (9.73) 16.57 (4.36) 18.49 (5.63) 21.02 (5.75) 13.42 (6.11) 12.31 (7.87) 9.30 (5.05) 15.37 (5.28) "
            "15.80 (3.46)")),
        *(
            Row(f"dataaug_{mode}_{count}", f"{mode.upper()}-aug-{count}", baseline=f"dataaug_{mode}_{count}",
                group="semi-supervised [11]", paper=_organs(*lines))
            for (mode, count), lines in _DATAAUG.items()
        ),
    ),
    layout="labels", datasets=BOTH[1:],
    note="The paper trains on the scan nearest to the average of seven and tests on the other six; here each fold has "
         "its own training scan (--folds). Unlabelled scans: those outside the fold first, then its test scans.",
)  # fmt: skip

TABLES = (TABLE10, TABLE11)
