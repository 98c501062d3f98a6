"""Registration alone: labels propagated from one scan to others by each part of the registration of `mre_train`.

    mre_plan_and_preprocess -d Hippocampus
    python -m benchmarks.registration mre_data/preprocessed/Dataset004_Hippocampus --cohort develop

Labels of each scan of --train (default: the first of the cohort) are warped to the cohort's others, on the plan's grid,
by: affine registration; affine, then discrete registration of blocks, then demons (recipe `default`). Printed are
Dice, mean over the labels that the other scan has and over scans, and seconds per scan of the affine part and of the
parts after it.

--reference: also by the reference in SimpleITK (benchmarks/simpleitk_registration.py), with the mean difference of Dice
and its standard error, and the seconds of the same pairs. --threads N: of torch and SimpleITK (default: all cores).

--mirrored: also from the mirrored atlas, from scan and mirrored atlas fused as in prediction, and the left-right
symmetry by which `mre_train` decides whether mirrored atlases are used. --fused: also from all scans of --train, to the
scans that are none of them, fused with equal weights and, as in prediction, weighted by local similarity to the scan.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks import simpleitk_registration
from benchmarks.arguments import add_prepared
from mre_lowshot.atlas.alignment import atlas_coordinates
from mre_lowshot.atlas.atlas import Atlas
from mre_lowshot.atlas.label_fusion import build_prior
from mre_lowshot.atlas.mirrored import mirrored
from mre_lowshot.atlas.registration.affine import affine
from mre_lowshot.atlas.registration.deformable import deformable
from mre_lowshot.atlas.registration.images import to_image
from mre_lowshot.cli import common
from mre_lowshot.config import Plan
from mre_lowshot.config.plan_files import load_plan
from mre_lowshot.data.splits import read_cohort
from mre_lowshot.errors import UserError
from mre_lowshot.evaluation.agreement import label_agreement
from mre_lowshot.grid import IGNORE
from mre_lowshot.planners.fold import mirrored_atlases_rule
from mre_lowshot.preprocessing.store import PreparedCase, load_case
from mre_lowshot.trainers.fold import training_case
from mre_lowshot.trainers.symmetry import left_right_dice

KINDS: tuple[str, ...] = ("affine", "affine, blocks, demons")
REFERENCE = ("SimpleITK: affine", "SimpleITK: affine, blocks, demons")
MIRRORED = ("from the mirrored atlas, all parts", "from both, all parts")


@dataclass(frozen=True)
class Comparison:
    """What is compared: the preprocessed cases in ``folder``, and which of them labels come from and go to."""

    folder: Path
    plan: Plan
    cohort: str
    cases: Sequence[str]
    trains: Sequence[str]
    mirrored: bool
    fused: bool
    most: int | None
    reference: bool = False

    @property
    def classes(self) -> int:
        return self.plan.network.classes

    def others(self, train: str) -> list[str]:
        """The scans to which labels of ``train`` are propagated.

        Raises:
            UserError: ``train`` is not in the cohort, or no other scan is.
        """
        if train not in self.cases:
            raise UserError(f"--train {train}: not in cohort {self.cohort!r}; choose among {', '.join(self.cases)}")
        excluded = set(self.trains) if self.fused else {train}
        others = [case for case in self.cases if case not in excluded][: self.most]
        if not others:
            raise UserError(
                f"cohort {self.cohort!r} has no scan besides {', '.join(sorted(excluded))} to propagate labels to"
            )
        return others

    def atlas(self, train: str) -> Atlas:
        """A scan of --train as atlas.

        Raises:
            UserError: it is a 2D image, or has no labels.
        """
        case = load_case(self.folder, train)
        if case.image.shape[1] == 1:
            raise UserError(f"case {train}: is a 2D image; only volumes are registered here")
        return Atlas(case.image, case.needed_label(), case.transform.spacing)


def propagation_dice(atlas: Atlas, case: PreparedCase, classes: int) -> tuple[list[float], list[float], np.ndarray]:
    """Dice of the atlas's labels on the scan, and seconds, for each of `KINDS`; the coordinates found by the last."""
    truth = case.needed_label()
    fixed, moving = to_image(case.image, case.transform.spacing), to_image(atlas.image, atlas.spacing)
    marks = [time.perf_counter()]
    start = affine(fixed, moving)
    marks.append(time.perf_counter())
    found = [start, deformable(fixed, moving, start)]
    marks.append(time.perf_counter())
    coordinates = [atlas_coordinates(atlas, transform, fixed, truth.shape) for transform in found]
    scores = [mean_dice(warp_labels([atlas], maps, classes), truth, classes) for maps in coordinates]
    return scores, np.diff(marks).tolist(), coordinates[-1]


def reference_dice(atlas: Atlas, case: PreparedCase, classes: int) -> tuple[list[float], list[float]]:
    """Dice of the atlas's labels on the scan, and seconds, for each of `REFERENCE`."""
    truth = case.needed_label()
    fixed, moving = to_image(case.image, case.transform.spacing), to_image(atlas.image, atlas.spacing)
    found, seconds = simpleitk_registration.register(fixed, moving)
    maps = [atlas_coordinates(atlas, transform, fixed, truth.shape) for transform in found]
    return [mean_dice(warp_labels([atlas], each, classes), truth, classes) for each in maps], seconds


def mirrored_dice(
    atlas: Atlas, image: Atlas, case: PreparedCase, coordinates: np.ndarray, classes: int
) -> tuple[list[float], float]:
    """Dice on the scan for each of `MIRRORED`, and seconds of the mirrored atlas's registration.

    Args:
        atlas: the labelled scan.
        image: its mirrored atlas.
        case: the scan.
        coordinates: of its voxels in ``atlas``, (3, *size).
        classes: K.
    """
    start = time.perf_counter()
    fixed, moving = to_image(case.image, case.transform.spacing), to_image(image.image, image.spacing)
    transform = deformable(fixed, moving, affine(fixed, moving))
    own = atlas_coordinates(image, transform, fixed, case.image.shape[1:])
    seconds = time.perf_counter() - start
    both = warp_labels([atlas, image], np.concatenate([coordinates, own]), classes, case.image)
    labels = warp_labels([image], own, classes), both
    return [mean_dice(one, case.needed_label(), classes) for one in labels], seconds


def fused_dice(
    atlases: Sequence[Atlas], case: PreparedCase, coordinates: Sequence[np.ndarray], classes: int
) -> list[float]:
    """Dice on the scan, with known ``coordinates`` in each atlas, of the atlases' labels fused with equal weights, and
    with weights by similarity."""
    maps = np.concatenate(coordinates)
    fused = [warp_labels(atlases, maps, classes, image) for image in (None, case.image)]
    return [mean_dice(labels, case.needed_label(), classes) for labels in fused]


def warp_labels(
    atlases: Sequence[Atlas], coordinates: np.ndarray, classes: int, image: np.ndarray | None = None
) -> np.ndarray:
    """Label map (*size) of the atlases' labels at ``coordinates`` (atlases * 3, *size)."""
    labels: np.ndarray = build_prior(atlases, classes).fuse_labels(coordinates, image).argmax(dim=0).numpy()
    return labels


def mean_dice(one: np.ndarray, truth: np.ndarray, classes: int) -> float:
    """Mean over the foreground classes that ``truth`` has; its ignored voxels are excluded."""
    known = truth != IGNORE
    dice = label_agreement(one[known], truth[known], classes)
    return float(np.mean([dice[k] for k in np.unique(truth[truth > 0])]))


def _print_symmetry(name: str, case: PreparedCase, plan: Plan) -> None:
    """How well a scan's labels agree with those of its mirror image."""
    (dice,) = left_right_dice([training_case(case, 3)], plan) or [{}]
    if not dice:
        raise UserError(
            f"--mirrored: plan {plan.plans_name} uses no mirrored atlases (recipe.atlas.mirrored_atlases, "
            f"recipe.atlas.registration and network.atlas_prior must be on), or {name} cannot be registered to its "
            "mirror image; leave out --mirrored"
        )
    least = min(dice, key=dice.__getitem__)
    text = f"Dice {np.mean([*dice.values()]):.3f}, least {dice[least]:.3f} ({least})"
    print(f"{name} and its mirror image, affine: {text}: {mirrored_atlases_rule([dice])[1]}", flush=True)


def _compare_from(job: Comparison, train: str, known: dict[str, list[tuple[Atlas, np.ndarray]]]) -> None:
    """Print the figures of one atlas. With --fused, add it to ``known``, with each scan's coordinates in it."""
    others, atlas = job.others(train), job.atlas(train)
    image, kinds = None, KINDS
    if job.mirrored:
        _print_symmetry(train, load_case(job.folder, train), job.plan)
        image, kinds = mirrored(atlas, job.plan.labels), kinds + MIRRORED
    if job.reference:
        kinds += REFERENCE
    rows, pairs = [], []
    for name in others:
        case = load_case(job.folder, name)
        scores, seconds, coordinates = propagation_dice(atlas, case, job.classes)
        if job.fused:
            known.setdefault(name, []).append((atlas, coordinates))
        if image is not None:
            more, spent = mirrored_dice(atlas, image, case, coordinates, job.classes)
            scores, seconds = scores + more, [*seconds, spent, spent + seconds[0] + seconds[-1]]
        if job.reference:
            theirs, spent_there = reference_dice(atlas, case, job.classes)
            pairs.append((scores[:2], theirs))
            scores, seconds = scores + theirs, seconds + spent_there
        rows.append((scores, seconds))
        print(f"  {name} from {train}: Dice {', '.join(f'{score:.3f}' for score in scores)}", flush=True)
    mean_scores, mean_seconds = np.mean(rows, axis=0)
    for kind, score, spent in zip(kinds, mean_scores, mean_seconds, strict=True):
        print(f"from {train} to {len(rows)} scans, {kind}: Dice {score:.4f}, {spent:.1f} s")
    if pairs:
        differences = np.array([np.subtract(*pair) for pair in pairs])
        error = differences.std(axis=0, ddof=1) / len(pairs) ** 0.5 if len(pairs) > 1 else [np.nan] * 2
        for kind, mean, its in zip(KINDS, differences.mean(axis=0), error, strict=True):
            text = f"Dice minus SimpleITK's {mean:+.4f} (standard error {its:.4f})"
            print(f"from {train} to {len(rows)} scans, {kind}: {text}")


def _compare_fused(job: Comparison, known: dict[str, list[tuple[Atlas, np.ndarray]]]) -> None:
    """Print the figures of all atlases fused, from the scans' ``known`` coordinates in each."""
    rows = []
    for name, found in known.items():
        atlases, coordinates = zip(*found, strict=True)
        rows.append(fused_dice(atlases, load_case(job.folder, name), coordinates, job.classes))
        equal, similar = rows[-1]
        print(f"  {name} from all, fused: Dice {equal:.3f} equal weights, {similar:.3f} by similarity", flush=True)
    equal, similar = np.mean(rows, axis=0)
    print(f"from all to {len(rows)} scans, fused: Dice {equal:.4f} equal weights, {similar:.4f} by similarity")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.registration", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add_prepared(parser, cohort="develop")
    parser.add_argument("--train", nargs="+", metavar="CASE", help="scans whose labels are propagated")
    parser.add_argument("--mirrored", action="store_true", help="also from the scan's mirrored atlas, and from both")
    parser.add_argument("--fused", action="store_true", help="also from all scans of --train, fused")
    parser.add_argument("--reference", action="store_true", help="also by the reference in SimpleITK")
    parser.add_argument("--threads", type=int, metavar="N", help="of torch and SimpleITK (default: all cores)")
    parser.add_argument("--most", type=int, metavar="N", help="only to the first N other scans")
    return parser


def _main(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    if options.most is not None and options.most < 1:
        raise UserError(f"--most {options.most}: must be 1 or more")
    if options.threads is not None:
        if options.threads < 1:
            raise UserError(f"--threads {options.threads}: must be 1 or more")
        simpleitk_registration.use_threads(options.threads)
        torch.set_num_threads(options.threads)
    plan = load_plan(options.prepared / f"{options.plans}.json")
    cases = read_cohort(options.cohorts, plan.dataset_name, options.cohort)
    trains = options.train or cases[:1]
    if options.fused and len(trains) < 2:
        raise UserError("--fused: needs two scans or more; name them with --train")
    folder = options.prepared / options.plans
    job = Comparison(
        folder, plan, options.cohort, cases, trains, options.mirrored, options.fused, options.most, options.reference
    )
    known: dict[str, list[tuple[Atlas, np.ndarray]]] = {}
    for train in trains:
        _compare_from(job, train, known)
    if job.fused:
        _compare_fused(job, known)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; exit code 2 for wrong use, with one line on stderr."""
    return common.run(_main, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
