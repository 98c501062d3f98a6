"""Golden values: numbers that summarise what each stage computes on a small synthetic CT.

``python -m tests.golden.make`` rewrites ``values.json`` after an intended change of results. ``tests/test_golden.py``
compares with tolerances that allow for other CPUs and library versions, but not for another method.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

from mre_lowshot.atlas.atlas import make_atlases
from mre_lowshot.config import Plan, RefinementConfig
from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.synthetic import LABELS, make_subject
from mre_lowshot.data.volume import Volume
from mre_lowshot.evaluation.metrics import case_metrics
from mre_lowshot.inference.models import Model
from mre_lowshot.inference.predictor import Predictor, RegisteredScan
from mre_lowshot.losses import MRELoss
from mre_lowshot.network.build import build
from mre_lowshot.planners.fingerprint import case_fingerprint, dataset_fingerprint
from mre_lowshot.planners.fold import decide_fold
from mre_lowshot.planners.hardware import Device
from mre_lowshot.planners.planner import DatasetFacts, make_plan, with_changes
from mre_lowshot.preprocessing.prepare import prepare_case
from mre_lowshot.preprocessing.store import PreparedCase
from mre_lowshot.refinement.crf import crf_mean_field
from mre_lowshot.refinement.em import em_step
from mre_lowshot.refinement.fusion import fuse_posteriors
from mre_lowshot.refinement.hu_limits import apply_min_hu
from mre_lowshot.refinement.pipeline import refine
from mre_lowshot.sampling import BatchSampler
from mre_lowshot.trainers.fold import training_case

VALUES = Path(__file__).parent / "values.json"
SHAPE, SPACING = (20, 36, 44), (8.0, 8.0, 8.0)
SMALL = {
    "network.widths": "[4, 8, 8]",
    "network.convs": "[1, 1, 1]",
    "network.aspp_channels": "4",
    "network.embedding_dim": "16",
    "recipe.sampling.batch_size": "2",
}
Numbers = list[float]


def summary(array: np.ndarray) -> Numbers:
    """Mean, standard deviation, quartiles, and the mean of each eighth of the flattened array."""
    flat = np.asarray(array, dtype=np.float64).ravel()
    eighths = [float(part.mean()) for part in np.array_split(flat, 8)]
    return [float(flat.mean()), float(flat.std()), *np.percentile(flat, [25, 50, 75]).tolist(), *eighths]


@cache
def subject(seed: int) -> tuple[Volume, np.ndarray]:
    """A synthetic scan and its label map (D, H, W)."""
    image, label = make_subject(seed, SHAPE, SPACING)
    return Volume(image[None], Geometry(SHAPE, SPACING)), label.astype(np.int32)


@cache
def plan() -> Plan:
    """The plan of two synthetic scans for a CPU, with a tiny network; the fold trains on the first scan."""
    cases = {f"s{n}": case_fingerprint(subject(n)[0].array, SPACING, "LPS") for n in (0, 1)}
    facts = DatasetFacts("Dataset900_Synthetic", ("CT",), LABELS, None, ".nii.gz")
    made = make_plan(facts, dataset_fingerprint(facts.name, cases), device=Device("cpu", 8.0))
    made = with_changes(made, SMALL)
    case = training_case(prepared(0, made), 3)
    fold = decide_fold(
        made, level="1shot", fold=0, train=["s0"], test=["s1"], labels=[case.label], seed=0, images=[case.image]
    )
    return replace(made, fold=fold)


def prepared(seed: int, of_plan: Plan) -> PreparedCase:
    """A preprocessed synthetic scan with its labels."""
    image, label = subject(seed)
    return prepare_case(f"s{seed}", image, Volume(label, image.geometry), plan=of_plan)


@cache
def predictor() -> Predictor:
    """A predictor with an untrained network (seed 0), whose atlas is the first scan."""
    torch.manual_seed(0)
    atlases = make_atlases([training_case(prepared(0, plan()), 3)], plan())
    return Predictor(Model.of_fold(plan(), build(plan().network), atlases), device=torch.device("cpu"))


@cache
def registered() -> RegisteredScan:
    """The second scan, registered to the first."""
    return predictor().register(prepared(1, plan()))


@cache
def exact_coordinates() -> np.ndarray:
    """The second scan's own coordinates, so that later stages do not depend on the registration's last digits."""
    from mre_lowshot.grid import coordinate_maps, voxel_positions

    size = prepared(1, plan()).image.shape[1:]
    return coordinate_maps(voxel_positions([0, 0, 0], size), size)


@cache
def posteriors() -> tuple[np.ndarray, np.ndarray]:
    """The network's posterior and the warped labels of the second scan, at its own coordinates."""
    posterior, warped = predictor().raw_posteriors(prepared(1, plan()).image, [exact_coordinates()])
    assert warped is not None
    return posterior.numpy(), warped.numpy()


def planning() -> Numbers:
    """Sizes, weights and limits that the plan and the fold decided."""
    made = plan()
    fold = made.fold
    assert fold is not None
    numbers = [*made.patch.size, *made.patch.centre, *made.preprocessing.spacing, *np.ravel(made.network.dilations)]
    numbers += [made.recipe.optimizer.iterations, made.recipe.refinement.em_weight, *fold.majority]
    numbers += [*fold.single_component, *(limit.value for limit in fold.min_hu)]
    return [float(v) for v in numbers]


def preprocessing() -> Numbers:
    """The preprocessed image and label shares."""
    case = prepared(1, plan())
    return [*summary(case.image), *np.bincount(case.needed_label().ravel(), minlength=7) / case.image.size]


def registration() -> Numbers:
    """Coordinates of the second scan in the first."""
    (coordinates,) = registered().coordinates
    assert coordinates is not None
    return [value for axis in coordinates for value in summary(axis)]


def sampling() -> Numbers:
    """A mini-batch: image, location maps, targets."""
    case = training_case(prepared(0, plan()), 3)
    images, location, targets = BatchSampler([case], plan().patch.size, plan().recipe, 7, seed=0)[3]
    return [*summary(images.numpy()), *summary(location.numpy()), *summary(targets.numpy())]


def loss() -> Numbers:
    """Loss of fixed logits on the second scan's labels, with the default and the paper's settings."""
    target = torch.from_numpy(prepared(1, plan()).needed_label().astype(np.int64))[None]
    random = np.random.default_rng(0).normal(size=(1, 7, *target.shape[1:]))
    logits = torch.from_numpy(random.astype(np.float32))
    config = plan().recipe.loss
    settings = (config, replace(config, class_balance=1.0, dice_weight=0.0, ohem_ratio=6))
    return [float(MRELoss(7, (0, 1, 2), which)(logits, target)) for which in settings]


def network() -> Numbers:
    """The untrained network's posterior."""
    return [value for channel in posteriors()[0] for value in summary(channel)[:5]]


def label_fusion() -> Numbers:
    """The warped labels, and the posterior fused with them."""
    fused = fuse_posteriors(*posteriors(), 0.4).numpy()
    return [value for array in (posteriors()[1], fused) for channel in array for value in summary(channel)[:2]]


def _step(change: Callable[[np.ndarray, np.ndarray], None]) -> Numbers:
    probabilities = fuse_posteriors(*posteriors(), 0.4).numpy()
    change(probabilities, prepared(1, plan()).image)
    return [value for channel in probabilities for value in (*summary(channel)[:2], *summary(channel)[5:])]


def hu_limits() -> Numbers:
    """After the lower HU limits."""
    return _step(lambda p, image: apply_min_hu(p, image, predictor().settings.min_hu))


def em() -> Numbers:
    """After the EM step."""
    return _step(lambda p, image: em_step(p, image, 0.5))


def crf() -> Numbers:
    """After the CRF."""
    return _step(lambda p, image: crf_mean_field(p, image, 2.0))


def refinement() -> Numbers:
    """After the whole refinement; labels, quality and temperature on export."""
    posterior, warped = posteriors()
    image, settings = prepared(1, plan()).image, predictor().settings
    refined = refine(posterior, warped, image, settings)
    plain = refine(posterior, warped, image, replace(settings, config=RefinementConfig()))
    return [value for array in (refined, plain) for channel in array.numpy() for value in summary(channel)[:2]]


def export() -> Numbers:
    """Label shares, quality, temperature and calibrated probabilities of the second scan at its own coordinates."""
    scan = RegisteredScan(prepared(1, plan()), [exact_coordinates()])
    one = predictor()
    output = one.run_network(scan)
    settings = replace(one.settings, config=replace(one.settings.config, reregister_below=0.0))
    one = Predictor(one.model, device=torch.device("cpu"))
    one.settings = settings
    prediction = one.export(one.refine(output))
    assert prediction.refined is not None
    shares = np.bincount(prediction.labels.array.ravel(), minlength=7) / prediction.labels.array.size
    probabilities = [v for channel in prediction.probabilities for v in summary(channel)[:2]]
    return [*shares, output.quality.score, prediction.refined.temperature, *probabilities]


def metrics() -> Numbers:
    """Scores of the first scan's label map as a prediction of the second's, with anisotropic voxels."""
    truth, other = subject(1)[1], subject(0)[1]
    rows = case_metrics(truth, other, {name: v for name, v in LABELS.items() if v}, (8.0, 4.0, 5.0)).values()
    return [row[name] for row in rows for name in ("Dice", "HD95", "NSD")]


# Stage -> (computation, absolute tolerance, relative tolerance).
STAGES: dict[str, tuple[Callable[[], Numbers], float, float]] = {
    "planning": (planning, 1e-6, 1e-6),
    "preprocessing": (preprocessing, 1e-4, 1e-4),
    "registration": (registration, 0.02, 0.02),
    "sampling": (sampling, 1e-4, 1e-3),
    "loss": (loss, 1e-4, 1e-4),
    "network": (network, 1e-4, 1e-3),
    "label_fusion": (label_fusion, 1e-4, 1e-3),
    "hu_limits": (hu_limits, 1e-4, 1e-3),
    "em": (em, 1e-4, 1e-3),
    "crf": (crf, 1e-4, 1e-3),
    "refinement": (refinement, 1e-4, 1e-3),
    "export": (export, 1e-3, 5e-3),
    "metrics": (metrics, 1e-6, 1e-6),
}


def main() -> None:
    """Write values.json."""
    torch.set_num_threads(1)
    values = {name: [float(f"{v:.9g}") for v in compute()] for name, (compute, _, _) in STAGES.items()}
    VALUES.write_text(json.dumps(values, indent=1) + "\n")
    print(f"{sum(map(len, values.values()))} values of {len(values)} stages written to {VALUES}")


if __name__ == "__main__":
    main()
