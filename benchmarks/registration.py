"""Registration alone: labels carried from one scan to others, by each part of what `mre_train` registers with.

    mre_plan_and_preprocess -d Hippocampus
    python -m benchmarks.registration mre_data/preprocessed/Dataset004_Hippocampus --cohort develop

From each scan of --train (default: the first of the cohort) to the cohort's others, on the plan's grid: affine; affine
and demons; affine, blocks moved to where they fit, demons (recipe `default`). Dice, mean over the labels that the other
scan has there, and over scans; seconds a scan, of the affine part and of what follows it. --mirrored: also from the
scan's mirror image, from both together as prediction weighs them, and how well scan and image agree, by which
`mre_train` decides whether the image is used. --together: also from all scans of --train at once, to what is none of
them, counted equally and as prediction does, by how much each looks like the scan at a place.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mre_lowshot import mirroring
from mre_lowshot.alignment import Atlas, coordinates_in, together
from mre_lowshot.cli import common
from mre_lowshot.errors import UserError
from mre_lowshot.inference.quality import label_agreement
from mre_lowshot.losses import IGNORE
from mre_lowshot.planners.fold import mirror_images_rule
from mre_lowshot.plans import load_plan
from mre_lowshot.preprocessing.store import PreparedCase, load_case
from mre_lowshot.registration.affine import affine
from mre_lowshot.registration.deformable import deformable, demons
from mre_lowshot.registration.images import to_image
from mre_lowshot.sampling import Prior
from mre_lowshot.specs import Plan
from mre_lowshot.splits import read_cohort
from mre_lowshot.trainers.fold import training_case
from mre_lowshot.trainers.symmetry import measured

KINDS: tuple[str, ...] = ("affine", "affine, demons", "affine, blocks, demons")
MIRRORED = ("from the mirror image, all of it", "from both, all of it")


def carried_dice(atlas: Atlas, case: PreparedCase, classes: int) -> tuple[list[float], list[float], np.ndarray]:
    """Dice of the atlas's labels on the scan, and seconds, for each of `KINDS`; the coordinates of the last."""
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
    places = [coordinates_in(atlas, transform, fixed, truth.shape) for transform in found]
    scores = [mean_dice(brought(Prior((atlas.label,), classes), place), truth, classes) for place in places]
    return scores, np.diff(marks).tolist(), places[-1]


def brought(prior: Prior, coordinates: np.ndarray) -> np.ndarray:
    return prior.posterior(coordinates).argmax(axis=0)


def mirrored_dice(
    atlas: Atlas, image: Atlas, case: PreparedCase, coordinates: np.ndarray, classes: int
) -> tuple[list[float], float]:
    """Dice on the scan, whose ``coordinates`` in the atlas are known, for each of `MIRRORED`, and seconds of the
    image's registration."""
    start = time.perf_counter()
    fixed, moving = to_image(case.image, case.transform.spacing), to_image(image.image, image.spacing)
    place = coordinates_in(image, deformable(fixed, moving, affine(fixed, moving)), fixed, case.image.shape[1:])
    seconds = time.perf_counter() - start
    joined = together((atlas, image), classes).posterior(np.concatenate([coordinates, place]), case.image)
    carried = brought(Prior((image.label,), classes), place), joined.argmax(axis=0)
    return [mean_dice(one, case.needed_label(), classes) for one in carried], seconds


def joint_dice(atlases: Sequence[Atlas], case: PreparedCase, places: Sequence[np.ndarray], classes: int) -> list[float]:
    """Dice on the scan, whose ``places`` in each of the atlases are known, of their labels together: each counted
    alike, and by likeness."""
    prior = together(atlases, classes)
    posteriors = [prior.posterior(np.concatenate(places), image) for image in (None, case.image)]
    return [mean_dice(posterior.argmax(axis=0), case.needed_label(), classes) for posterior in posteriors]


def mean_dice(one: np.ndarray, truth: np.ndarray, classes: int) -> float:
    """Over the foreground classes that ``truth`` has; its ignored voxels do not count."""
    known = truth != IGNORE
    dice = label_agreement(one[known], truth[known], classes)
    return float(np.mean([dice[k] for k in np.unique(truth[truth > 0])]))


def _tell_likeness(name: str, case: PreparedCase, plan: Plan) -> None:
    """How well a scan agrees with its mirror image."""
    (dice,) = measured([training_case(case, 3)], plan) or [{}]
    if not dice:
        raise UserError(
            f"plan {plan.plans_name}: uses no mirror images (recipe.mirror_images, recipe.alignment and "
            f"network.atlas_prior must be on), or {name} cannot be registered to its own; leave --mirrored out"
        )
    least = min(dice, key=dice.__getitem__)
    told = f"Dice {np.mean([*dice.values()]):.3f}, least of {least} {dice[least]:.3f}"
    print(f"{name} and its mirror image, affine: {told}: {mirror_images_rule([dice])[1]}", flush=True)


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
    made.add_argument("--together", action="store_true", help="also from all scans of --train together")
    made.add_argument("--most", type=int, metavar="N", help="to the first N other scans only")
    return made


def _main(arguments: Sequence[str] | None) -> int:
    options: Any = _parser().parse_args(arguments)
    if options.most is not None and options.most < 1:
        raise UserError(f"--most {options.most}: must be 1 or more")
    plan = load_plan(options.prepared / f"{options.plans}.json")
    cases = read_cohort(options.cohorts, plan.dataset_name, options.cohort)
    folder, classes = options.prepared / options.plans, plan.network.classes
    trains = options.train or cases[:1]
    if options.together and len(trains) < 2:
        raise UserError("--together: needs two scans or more; name them with --train")
    known: dict[str, list[tuple[Atlas, np.ndarray]]] = {}
    for train in trains:
        if train not in cases:
            raise UserError(f"--train {train}: not in cohort {options.cohort!r}; choose among {', '.join(cases)}")
        apart = set(trains) if options.together else {train}
        others = [case for case in cases if case not in apart][: options.most]
        if not others:
            raise UserError(f"cohort {options.cohort!r} has no scan beside {', '.join(apart)} to carry labels to")
        atlas_case = load_case(folder, train)
        if atlas_case.image.shape[1] == 1:
            raise UserError(f"case {train}: is a 2D image; volumes only are registered here")
        atlas = Atlas(atlas_case.image, atlas_case.needed_label(), atlas_case.transform.spacing)
        image, kinds = None, KINDS
        if options.mirrored:
            _tell_likeness(train, atlas_case, plan)
            image, kinds = mirroring.image_of(atlas, plan.labels), KINDS + MIRRORED
        rows = []
        for name in others:
            case = load_case(folder, name)
            scores, seconds, place = carried_dice(atlas, case, classes)
            if options.together:
                known.setdefault(name, []).append((atlas, place))
            if image is not None:
                more, spent = mirrored_dice(atlas, image, case, place, classes)
                scores, seconds = scores + more, [*seconds, spent, spent + seconds[0] + seconds[-1]]
            rows.append((scores, seconds))
            print(f"  {name} from {train}: Dice {', '.join(f'{score:.3f}' for score in scores)}", flush=True)
        scores, seconds = np.mean(rows, axis=0)
        for kind, score, spent in zip(kinds, scores, seconds, strict=True):
            print(f"from {train} to {len(rows)} scans, {kind}: Dice {score:.4f}, {spent:.1f} s")
    if options.together:
        _tell_together(known, folder, classes)
    return 0


def _tell_together(known: dict[str, list[tuple[Atlas, np.ndarray]]], folder: Path, classes: int) -> None:
    """What all atlases bring together to each scan, whose places in each of them are ``known``."""
    rows = []
    for name, found in known.items():
        atlases, places = zip(*found, strict=True)
        rows.append(joint_dice(atlases, load_case(folder, name), places, classes))
        print(f"  {name}, from all: counted alike {rows[-1][0]:.3f}, by likeness {rows[-1][1]:.3f}", flush=True)
    alike, weighted = np.mean(rows, axis=0)
    print(f"from all to {len(rows)} scans: counted alike Dice {alike:.4f}, by likeness {weighted:.4f}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; 2 for wrong use, told on one line."""
    return common.run(_main, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
