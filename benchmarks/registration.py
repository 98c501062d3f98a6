"""Registration alone: labels carried from one scan to others, by each part of what `mre_train` registers with.

    mre_plan_and_preprocess -d Hippocampus
    python -m benchmarks.registration mre_data/preprocessed/Dataset004_Hippocampus --cohort develop

From each scan of --train (default: the first of the cohort) to the cohort's others, on the plan's grid: affine; affine
and demons; affine, blocks moved to where they fit, demons (recipe `default`). Dice, mean over the labels that the other
scan has there, and over scans; seconds a scan, of the affine part and of what follows it. --mirrored: also from the
scan's mirror image, as `mre_train` does where left and right are alike, and from both.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mre_lowshot.alignment import Atlas, align, coordinates_in, make_atlases, make_prior
from mre_lowshot.cli import common
from mre_lowshot.errors import UserError
from mre_lowshot.inference.quality import label_agreement
from mre_lowshot.losses import IGNORE
from mre_lowshot.plans import load_plan
from mre_lowshot.preprocessing.store import PreparedCase, load_case
from mre_lowshot.registration.affine import affine
from mre_lowshot.registration.deformable import deformable, demons
from mre_lowshot.registration.images import to_image
from mre_lowshot.sampling import Prior, TrainingCase
from mre_lowshot.specs import Plan
from mre_lowshot.splits import read_cohort
from mre_lowshot.trainers import mirroring
from mre_lowshot.trainers.fold import training_case

KINDS = ("affine", "affine, demons", "affine, blocks, demons")
MIRRORED = ("from the mirror image, affine, blocks, demons", "from both")


def carried_dice(atlas: Atlas, case: PreparedCase, classes: int) -> tuple[list[float], list[float]]:
    """Dice of the atlas's labels on the scan, and seconds, for each of `KINDS`."""
    import SimpleITK as sitk

    truth = case.needed_label()
    fixed, moving = to_image(case.image, case.transform.spacing), to_image(atlas.image, atlas.spacing)
    marks, found = [time.perf_counter()], []
    found.append(affine(fixed, moving))
    marks.append(time.perf_counter())
    found.append(sitk.CompositeTransform([found[0], demons(fixed, moving, found[0])]))
    marks.append(time.perf_counter())
    found.append(deformable(fixed, moving, found[0]))
    marks.append(time.perf_counter())
    scores = []
    for transform in found:
        coordinates = coordinates_in(atlas, transform, fixed, truth.shape)
        carried = Prior((atlas.label,), classes).posterior(coordinates).argmax(axis=0)
        scores.append(mean_dice(carried, truth, classes))
    return scores, np.diff(marks).tolist()


def mirrored_dice(train: TrainingCase, case: PreparedCase, plan: Plan) -> tuple[list[float], list[float]]:
    """Dice on the scan of the labels of the training scan's mirror image, and of both's as the prior weighs them, and
    seconds, for each of `MIRRORED`."""
    start = time.perf_counter()
    atlases = make_atlases([train, mirroring.image_of(train, plan.labels)], plan)
    prior, place = make_prior(atlases, plan), align(atlases, case.image, case.transform.spacing, plan)
    if prior is None or place is None:
        raise UserError(f"plan {plan.plans_name}: --mirrored needs recipe.alignment and network.atlas_prior")
    seconds = time.perf_counter() - start
    alone = Prior(prior.labels[1:], prior.classes).posterior(place[3:])
    carried = [shares.argmax(axis=0) for shares in (alone, prior.posterior(place))]
    return [mean_dice(one, case.needed_label(), prior.classes) for one in carried], [seconds / 2, seconds]


def mean_dice(one: np.ndarray, truth: np.ndarray, classes: int) -> float:
    """Over the foreground classes that ``truth`` has; its ignored voxels do not count."""
    known = truth != IGNORE
    dice = label_agreement(one[known], truth[known], classes)
    return float(np.mean([dice[k] for k in np.unique(truth[truth > 0])]))


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser("python -m benchmarks.registration", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    made.add_argument("prepared", type=Path, help="preprocessed/DatasetXXX_Name")
    made.add_argument("-p", dest="plans", default="MREPlans", metavar="NAME", help="plan (default: %(default)s)")
    made.add_argument("--cohort", default="develop", metavar="NAME", help="these cases only (default: %(default)s)")
    made.add_argument("--cohorts", type=Path, metavar="FILE", default=Path(__file__).with_name("halves.json"),
                      help="JSON with the cohorts (default: benchmarks/halves.json)")  # fmt: skip
    made.add_argument("--train", nargs="+", metavar="CASE", help="scans whose labels are carried over")
    made.add_argument("--mirrored", action="store_true", help="also from the scan's mirror image, and from both")
    made.add_argument("--most", type=int, metavar="N", help="to the first N other scans only")
    return made


def _main(arguments: Sequence[str] | None) -> int:
    options: Any = _parser().parse_args(arguments)
    if options.most is not None and options.most < 1:
        raise UserError(f"--most {options.most}: must be 1 or more")
    plan = load_plan(options.prepared / f"{options.plans}.json")
    cases = read_cohort(options.cohorts, plan.dataset_name, options.cohort)
    folder, classes = options.prepared / options.plans, plan.network.classes
    for train in options.train or cases[:1]:
        if train not in cases:
            raise UserError(f"--train {train}: not in cohort {options.cohort!r}; choose among {', '.join(cases)}")
        others = [case for case in cases if case != train][: options.most]
        if not others:
            raise UserError(f"cohort {options.cohort!r} has no scan beside {train} to carry its labels to")
        atlas_case = load_case(folder, train)
        if atlas_case.image.shape[1] == 1:
            raise UserError(f"case {train}: is a 2D image; volumes only are registered here")
        atlas = Atlas(atlas_case.image, atlas_case.needed_label(), atlas_case.transform.spacing)
        kinds, rows = KINDS + MIRRORED * options.mirrored, []
        for name in others:
            case = load_case(folder, name)
            scores, seconds = carried_dice(atlas, case, classes)
            if options.mirrored:
                more, longer = mirrored_dice(training_case(atlas_case, 3), case, plan)
                scores, seconds = scores + more, seconds + longer
            rows.append((scores, seconds))
            print(f"  {name} from {train}: Dice {', '.join(f'{score:.3f}' for score in scores)}", flush=True)
        scores, seconds = np.mean(rows, axis=0)
        for kind, score, spent in zip(kinds, scores, seconds, strict=True):
            print(f"from {train} to {len(rows)} scans, {kind}: Dice {score:.4f}, {spent:.1f} s")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; 2 for wrong use, told on one line."""
    return common.run(_main, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
