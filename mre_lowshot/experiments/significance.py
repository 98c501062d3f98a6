"""The asterisks of the tables: which rows differ significantly from the row that they are compared with."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from mre_lowshot.evaluation.bus import BUS_METRICS
from mre_lowshot.evaluation.statistics import Method, bonferroni, holm, paired_t, sign_flip
from mre_lowshot.experiments.report import common_runs, comparisons
from mre_lowshot.experiments.results import RowResult, bus_of, mean

SIGNIFICANT = 0.05
Images = Mapping[str, Mapping[str, float]]  # test image -> metric -> value


def stars(rows: Sequence[RowResult], reference: str, metric: str, method: Method) -> dict[str, str]:
    """An asterisk for each row whose ``metric`` differs significantly from that of the row ``reference``. None for
    distances where one of the two missed a structure: it has no distance, so that the means are of other structures."""
    compared = comparisons(rows, reference, metric, method)
    significant = {name for name, c in compared.items() if c.p_corrected < SIGNIFICANT}
    if metric == "HD95":
        missed = {r.row.name for r in rows if any(run.missed for run in r.runs.values())}
        significant = set() if reference in missed else significant - missed
    return {r.row.name: "*" if r.row.name in significant else "" for r in rows}


def image_stars(rows: Sequence[RowResult], method: Method) -> dict[tuple[str, str], str]:
    """Table XII: an asterisk for each row and metric that differs significantly, over the test images, from MRE-Net
    in its group, if both were trained on the same images. A test image of several runs counts once, with its mean. All
    comparisons of a metric are one family."""
    found: dict[tuple[str, str], str] = {}
    images = {r.row.name: {key: bus_of(run) for key, run in r.runs.items()} for r in rows}
    for metric in BUS_METRICS:
        names, p = [], []
        for r in rows:
            reference = next((one for one in rows if one.row.group == r.row.group and not one.row.baseline), None)
            if reference is None or r is reference:
                continue
            pairs = [
                (images[r.row.name][key], images[reference.row.name][key])
                for keys in common_runs(r, reference).values()
                for key in keys
            ]
            if differences := _image_differences(pairs, metric):
                names.append(r.row.name)
                p.append(sign_flip(differences) if method == "default" else paired_t(differences))
        corrected = holm(p) if method == "default" else bonferroni(p)
        found |= {(name, metric): "*" for name, value in zip(names, corrected, strict=True) if value < SIGNIFICANT}
    return found


def _image_differences(pairs: Sequence[tuple[Images, Images]], metric: str) -> list[float]:
    """Of each image that both runs of a pair tested: the difference, the mean over the pairs."""
    by_image: dict[str, list[float]] = defaultdict(list)
    for ours, theirs in pairs:
        for name in ours.keys() & theirs.keys():
            by_image[name].append(ours[name][metric] - theirs[name][metric])
    means = (mean(values) for _, values in sorted(by_image.items()))
    return [value for value in means if not math.isnan(value)]
