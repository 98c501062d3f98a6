"""One scan from its files to a label map on its own grid."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mre_lowshot.alignment import Atlases, Former, align
from mre_lowshot.dataset import Case
from mre_lowshot.files import whole_file
from mre_lowshot.inference.checks import unlike_training
from mre_lowshot.inference.confidence import soften, temperature
from mre_lowshot.inference.predictor import Fields, Predictor, Progress, Realign
from mre_lowshot.inference.quality import Quality
from mre_lowshot.preprocessing.cropping import Box
from mre_lowshot.preprocessing.pipeline import GridTransform, inverse_labels, inverse_probabilities
from mre_lowshot.preprocessing.prepare import prepare_case
from mre_lowshot.preprocessing.store import PreparedCase
from mre_lowshot.specs import Plan
from mre_lowshot.volume import Geometry, file_ending, read_channels, write_volume

LIKE_THE_LARGEST = 0.5  # so large a piece is no stray: halves that touch on the plan's grid may part on the scan's own


def native_labels(
    probabilities: np.ndarray, transform: GridTransform, single_component: Sequence[int] = ()
) -> np.ndarray:
    """Class probabilities (K, *size) to the label map on the scan's grid, (D, H, W); of the classes in
    ``single_component`` only the largest connected piece is kept (and any `LIKE_THE_LARGEST`), the rest becomes
    background."""
    labels = inverse_labels(probabilities, transform)
    if single_component:
        from acvl_utils.morphology.morphology_helper import label_with_component_sizes

        for label in single_component:
            pieces, sizes = label_with_component_sizes(labels == label)
            strays = [n for n, size in sizes.items() if size < LIKE_THE_LARGEST * max(sizes.values())]
            if strays:
                labels[np.isin(pieces, strays)] = 0
    return labels


def kept_single(plans: Sequence[Plan]) -> tuple[int, ...]:
    """The classes filtered to their largest piece: those that every fold's training labels show as one piece."""
    sets = [set(p.fold.single_component) if p.fold and p.recipe.largest_component else set() for p in plans]
    return tuple(sorted(set.intersection(*sets))) if sets else ()


@dataclass(frozen=True)
class Ready:
    """A scan before the network sees it: preprocessed, with its places in each model's atlases and what finds them
    anew, what is unusual about it in words, and the geometry of its file."""

    prepared: PreparedCase
    fields: Fields
    realign: Realign | None
    warnings: list[str]
    geometry: Geometry


def make_ready(case: Case, plan: Plan, atlases: Sequence[Atlases], crop: Box | None = None) -> Ready:
    """Read, preprocess and register one scan; all of it on the CPU.

    Raises:
        UserError: the scan is unreadable or does not fit the model.
    """
    image = read_channels(list(case.images))
    warnings, geometry = unlike_training(image, plan), image.geometry
    prepared = prepare_case(case.name, image, None, plan, crop)
    del image  # the largest array there is, and not needed any more
    fields, realign = located(atlases, prepared, plan)
    return Ready(prepared, fields, realign, warnings, geometry)


def located(atlases: Sequence[Atlases], prepared: PreparedCase, plan: Plan) -> tuple[Fields, Realign | None]:
    """Each model's coordinates of a preprocessed scan (`alignment.align`), and what finds them anew (deformable
    registration only).

    Raises:
        UserError: it cannot be registered.
    """
    image, spacing = prepared.image, prepared.transform.spacing

    def realign(fields: Fields, probabilities: np.ndarray) -> Fields:
        formers = Former.each(fields, probabilities, spacing)
        return [align(a, image, spacing, plan, former) for a, former in zip(atlases, formers, strict=True)]

    fields = [align(of_fold, image, spacing, plan) for of_fold in atlases]
    return fields, realign if plan.recipe.alignment == "deformable" else None


def each_ready(
    cases: Iterable[Case], make: Callable[[Case], Ready], ahead: bool
) -> Iterator[tuple[Case, Callable[[], Ready]]]:
    """Each scan with the call that gives it ready (or raises). With ``ahead`` the next one is made ready in a thread
    meanwhile, so that a GPU need not wait; on the CPU the two would only take the cores from each other."""
    if not ahead:
        for case in cases:
            yield case, partial(make, case)
        return
    with ThreadPoolExecutor(max_workers=1) as thread:
        waiting: deque[tuple[Case, Callable[[], Ready]]] = deque()
        for case in cases:
            waiting.append((case, thread.submit(make, case).result))
            if len(waiting) > 1:
                yield waiting.popleft()
        yield from waiting


def predict_ready(
    case: Case,
    ready: Ready,
    predictor: Predictor,
    folder: Path,
    single_component: Sequence[int] = (),
    save_probabilities: bool = False,
    progress: Progress | None = None,
) -> Quality:
    """Predict one scan and write ``folder/<case><its own ending>``; gives how far to trust it.

    With ``save_probabilities`` also ``<case>.npz``: ``probabilities`` (K, D, H, W) float32 on the scan's grid, LPS.

    Raises:
        NumericalError: the prediction is not finite. UserError: several slices for a 2D network.
    """
    transform = ready.prepared.transform
    probabilities, quality = predictor.predict_and_rate(ready.prepared.image, progress, ready.fields, ready.realign)
    write_volume(
        folder / f"{case.name}{file_ending(case.images[0])}",
        native_labels(probabilities, transform, single_component),
        ready.geometry,
    )
    if save_probabilities:
        own_grid = inverse_probabilities(probabilities, transform)
        if predictor.inference.calibrate:  # voxel by voxel on the scan's grid, so that labels stay as written
            soften(own_grid, temperature(probabilities, quality))
        with whole_file(folder / f"{case.name}.npz") as npz:
            np.savez_compressed(npz, probabilities=own_grid)
    return quality
