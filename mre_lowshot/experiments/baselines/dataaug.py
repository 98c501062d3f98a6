"""DataAug (Zhao et al., 2019) as a baseline for one labelled scan and unlabelled ones (paper, IV-K; Table XI).

SAS-aug: the labels, registered to the unlabelled scans, are supervision besides the labelled scan. IDS-aug: the
labelled scan with the spatial transform of one unlabelled scan and the appearance transform of another. Both train the
U-Net with the recipe's augmentation. docs/BASELINES.md compares this with its source.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np

from mre_lowshot.config import Plan
from mre_lowshot.config.presets import UNET_NETWORK
from mre_lowshot.errors import UserError
from mre_lowshot.experiments.baselines.base import Baseline, BaselineFold, Segmenter
from mre_lowshot.experiments.baselines.common import nearest_to_average
from mre_lowshot.experiments.baselines.learned_transforms import learn_transforms
from mre_lowshot.experiments.baselines.synthesis import Synthesis, SyntheticSampler
from mre_lowshot.inference.checkpoint import LATEST
from mre_lowshot.inference.sliding_window import SlidingWindow
from mre_lowshot.planners.fold import decide_fold
from mre_lowshot.preprocessing.store import PreparedCase
from mre_lowshot.sampling import TrainingCase
from mre_lowshot.trainers.trainer import MRETrainer

METHOD = "DataAug"
Mode = Literal["sas", "ids", "coupled"]


def unlabelled_scans(fold: BaselineFold, wanted: int) -> list[PreparedCase]:
    """The first ``wanted`` unlabelled scans, or as many as there are; the fold lists its test scans last.

    Raises:
        UserError: there is none.
    """
    test = set(fold.plan.fold.test) if fold.plan.fold else set()
    chosen = list(fold.unlabelled[:wanted])
    if not chosen:
        raise UserError(f"{METHOD}: the fold has no unlabelled scan; it needs one or more")
    own = [case.name for case in chosen if case.name in test]
    if not test:
        note = "the fold does not name its test scans, which may be among them"
    elif own:
        note = f"transductive: {len(own)} of them are test scans, whose images are used and whose labels are not"
    else:
        note = "none of them is a test scan"
    names = ", ".join(case.name for case in chosen)
    fold.log(f"{METHOD}: {len(chosen)} unlabelled scans ({wanted} wanted): {names}; {note}")
    return chosen


def unet_plan(plan: Plan, case: PreparedCase, seed: int, iterations: int | None) -> Plan:
    """The plan of a row with the U-Net in place of MRE-Net, trained for ``iterations`` (None: the recipe's)."""
    recipe = replace(plan.recipe, loss=replace(plan.recipe.loss, ohem=False))
    if iterations is not None:
        recipe = replace(recipe, optimizer=replace(recipe.optimizer, iterations=iterations))
    changed = replace(plan, network=replace(plan.network, **UNET_NETWORK), recipe=recipe)
    if plan.fold is not None:
        return replace(changed, fold=replace(plan.fold, seed=seed))
    decisions = decide_fold(
        changed, level="1shot", fold=0, train=[case.name], test=[], labels=[case.needed_label()], seed=seed
    )
    return replace(changed, fold=decisions)


def fit(fold: BaselineFold, *, mode: Mode, wanted: int) -> Segmenter:
    """Learn transforms to ``wanted`` unlabelled scans, or as many as there are, and train the U-Net.

    Raises:
        UserError: no unlabelled scan.
        NumericalError: a loss is not finite.
    """
    atlas = fold.train[nearest_to_average(fold.train)]
    scans = unlabelled_scans(fold, wanted)
    plan = unet_plan(fold.plan, atlas, fold.seed, fold.iterations)
    fold.log(f"{METHOD}: atlas {atlas.name}" + (", nearest to the average" if len(fold.train) > 1 else ""))
    transforms = learn_transforms(
        atlas, scans, plan=plan, iterations=plan.recipe.optimizer.iterations, device=fold.device, seed=fold.seed,
        log=fold.log, ask=fold.ask,
    )  # fmt: skip
    labelled = TrainingCase(
        np.ascontiguousarray(atlas.image, dtype=np.float32), atlas.needed_label(), atlas.transform.spacing
    )
    synthesis = Synthesis(labelled, transforms)
    cases = [labelled]
    if mode == "sas":
        cases += [
            TrainingCase(image, synthesis.warped_labels(n), labelled.spacing)
            for n, image in enumerate(transforms.aligned)
        ]
    inputs = {case.name: case.source for case in (atlas, *scans)}
    trainer = MRETrainer(plan, cases, folder=fold.folder / "unet", device=fold.device, inputs=inputs)
    if mode != "sas":
        trainer.sampler = SyntheticSampler(synthesis, plan, seed=fold.seed, coupled=mode == "coupled")
    if (trainer.folder / LATEST).is_file():  # of an interrupted fit
        try:
            trainer.resume()
        except UserError as problem:
            raise UserError(f"{problem} (of a baseline: delete {trainer.folder})") from None
    trainer.fit(on_step=lambda _: fold.ask())
    loss = trainer.training_log.history["loss"]
    fold.log(f"U-Net, iteration {trainer.iteration}: loss {np.mean(loss[-50:]):.4f}")
    window = SlidingWindow(
        [trainer.inference_network], plan.network, patch=plan.patch, inference=plan.recipe.inference,
        device=fold.device, log=fold.log,
    )  # fmt: skip
    return lambda case: window.posterior(case.image)


SOURCE = "Zhao et al., CVPR 2019, 8543-8553; paper, IV-K.2 and Table XI"
BASELINES: dict[str, Baseline] = {
    f"dataaug_{mode}_{wanted}": Baseline(
        f"dataaug_{mode}_{wanted}",
        f"DataAug, {mode.upper()}-aug with {wanted} unlabelled scans",
        SOURCE,
        partial(fit, mode=mode, wanted=wanted),
        recipe="paper_aug_small",
        paper_recipe="unet_aug",  # its segmenter is the U-Net, which the paper trains so (Table I)
        axes=(3,),
        extended=(0, 1, 2),
    )
    for wanted in (5, 10, 20)
    for mode in ("sas", "ids")
}
