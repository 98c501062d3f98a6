"""CT that is not in HU is refused; CT that is, however clipped, cropped or padded, is accepted."""

import re
from pathlib import Path

import numpy as np
import pytest

from mre_lowshot.data.synthetic import make_subject
from mre_lowshot.data.volume import read_image
from mre_lowshot.planners.hounsfield import hu_histogram, hu_rule

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def window(image, low=-160, high=240):
    return (np.clip(image, low, high) - low) / (high - low)


def abdomen():
    return np.round(make_subject(0, (40, 72, 88), (4.0, 4.0, 4.0))[0])


def radius():
    z, y, x = np.indices((40, 72, 88))
    return np.sqrt(((z - 20) / 18) ** 2 + ((y - 36) / 28) ** 2 + ((x - 44) / 24) ** 2)


def head():
    r, rng = radius(), np.random.default_rng(0)
    tissue = [(r < 0.85, 35, 6), (r < 0.95, 900, 200), (r < 1, 20, 30), (r >= 1, -1000, 10)]
    return np.round(
        np.maximum(np.select([t[0] for t in tissue], [rng.normal(m, s, r.shape) for _, m, s in tissue]), -1024)
    )


def chest():
    r, rng = radius(), np.random.default_rng(1)
    lungs = np.where(rng.random(r.shape) < 0.1, rng.normal(20, 40, r.shape), rng.normal(-850, 60, r.shape))
    tissue = [(r < 0.6, lungs), (r < 0.9, rng.normal(45, 15, r.shape)), (r < 1, rng.normal(-100, 15, r.shape))]
    return np.round(np.select([t[0] for t in tissue], [t[1] for t in tissue], rng.normal(-1000, 10, r.shape)))


def bone():
    rng, shape = np.random.default_rng(2), (12, 24, 24)
    dense = np.where(rng.random(shape) < 0.5, rng.normal(700, 250, shape), rng.normal(250, 150, shape))
    return np.where(rng.random(shape) < 0.15, rng.normal(40, 40, shape), dense)


def metal(image):
    image = image.copy()
    image[20:22, 30:33, 40:44] = 30000
    return image


ROUND_FIELD = ((np.indices((40, 72, 88))[1:] - np.array([36, 44]).reshape(2, 1, 1, 1)) ** 2).sum(axis=0) < 44**2
CLIPPED = [(-125, 225), (-160, 240), (-200, 250), (-1000, 1000), (-100, 100), (-1024, 3071), (0, 3071), (0, 400)]

IN_HU = {
    "abdomen": abdomen,
    "head": head,
    "chest": chest,
    "bone": bone,
    "noise": lambda: abdomen() + np.random.default_rng(3).normal(0, 60, (40, 72, 88)),
    "metal": lambda: metal(abdomen()),
    "inside the body": lambda: abdomen()[10:20, 30:42, 30:56],
    "inside the brain": lambda: head()[12:28, 25:47, 34:54],
    "inside the lungs": lambda: chest()[14:26, 28:44, 36:52],
    "lungs alone": lambda: np.where(radius() < 0.6, chest(), -2048),
    "brain alone, air 0": lambda: np.where(radius() < 0.85, head(), 0),
    "head, air 0": lambda: np.maximum(head(), 0),
    "brain window": lambda: np.clip(head(), 0, 80),
    "padded with 0": lambda: np.pad(abdomen(), 8),
    "clipped and padded with 0": lambda: np.pad(np.clip(abdomen(), -125, 275), 8),
    "constant air": lambda: np.where(abdomen() < -900, -1000, abdomen()),
    **{f"padding {v}": lambda v=v: np.where(ROUND_FIELD, abdomen(), v) for v in (-1024, -2000, -2048, -3024, -32768)},
    **{f"clipped to {c}": lambda c=c: np.clip(abdomen(), *c) for c in CLIPPED},
}
TRANSFORMS = {
    "HU - 1024": (lambda v: v - 1024, "add the offset that was subtracted (often 1024)"),
    "HU - 1000": (lambda v: v - 1000, "add the offset"),
    "HU + 1024": (lambda v: v + 1024, "subtract the offset that it is stored with (often 1024)"),
    "HU + 1000": (lambda v: v + 1000, "subtract the offset"),
    "HU + 8192": (lambda v: v + 8192, ""),
    "HU + 32768": (lambda v: v + 32768, ""),
    "HU x 10": (lambda v: 10 * v, ""),
    "HU / 10": (lambda v: v / 10, "undo its scaling"),
    "HU / 10 as integers": (lambda v: np.round(v / 10), "undo its scaling"),
    "HU / 1000": (lambda v: v / 1000, "undo its scaling"),
    "8 bit": (lambda v: np.round(255 * window(v)), "export the CT in HU"),
    "8 bit from 22": (lambda v: 22 + np.round(233 * window(v)), "export the CT in HU"),
    "8 bit, wide window": (lambda v: np.round(255 * window(v, -1000, 1000)), "export the CT in HU"),
    "0 to 1": (window, "undo its scaling"),
    "-1 to 1": (lambda v: 2 * window(v) - 1, "undo its scaling"),
    "0 to 4095": (lambda v: np.round(4095 * window(v)), ""),
    "z-score": (lambda v: (v - v.mean()) / v.std(), "undo its scaling"),
    "unsigned 16 bit": (lambda v: np.where(v < 0, v + 65536, v), "subtract 65536"),
    "unsigned 12 bit": (lambda v: np.where(v < 0, v + 4096, v), ""),
    "inverted": (lambda v: -v, "invert it"),
    "HU x 0.5 + 500": (lambda v: 0.5 * v + 500, ""),
    "HU x 0.5 - 500": (lambda v: 0.5 * v - 500, ""),
    "HU x 0.8 + 300": (lambda v: 0.8 * v + 300, ""),
    "HU x 2 + 1000": (lambda v: 2 * v + 1000, ""),
    "HU x 0.4 + 700": (lambda v: np.round(0.4 * v + 700), ""),
}  # fmt: skip


@pytest.mark.parametrize("name", IN_HU)
def test_a_ct_in_hu_is_accepted(name):
    assert hu_rule("CT", hu_histogram(IN_HU[name]().astype(np.float32))) is None


@pytest.mark.parametrize("body", ["abdomen", "head", "chest", "padding -2000", "clipped to (-160, 240)", "noise"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_ct_that_is_not_in_hu_is_refused_with_the_fix(name, body):
    change, words = TRANSFORMS[name]
    histogram = hu_histogram(change(IN_HU[body]()).astype(np.float32))
    problem = hu_rule("CT", histogram)
    assert problem is not None
    assert problem.certain
    assert words in problem.sentence or name in ("HU - 1000", "inverted")
    assert problem.sentence.endswith("or give the channel another name (it is then z-scored)")
    assert hu_rule("T1", histogram) is None


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the shared datasets are not at {DATA}")
@pytest.mark.slow
def test_real_abdomens_are_accepted_and_their_transforms_refused():
    missed = []
    for path in sorted((DATA / "Dataset018_BTCV256/imagesTr").iterdir())[::4]:
        image = read_image(path).array[0][:, ::2, ::2].astype(np.float64)
        assert hu_rule("CT", hu_histogram(image)) is None
        for name, (change, _) in TRANSFORMS.items():
            found = hu_rule("CT", hu_histogram(change(image)))
            missed += [] if found and found.certain else [f"{path.name}: {name}"]
    assert missed == []


@pytest.mark.parametrize(
    ("scaled", "fix"),
    [(lambda hu: hu * 1000, "undo its scaling"), (lambda hu: hu + 32768, r"subtract the offset that .* \(32768\)")],
)
def test_the_fix_fits_what_was_done_to_the_values(scaled, fix):
    values = np.random.default_rng(0).normal(40, 30, (20, 20, 20))
    values[:8] = np.random.default_rng(1).normal(-1000, 10, (8, 20, 20))
    problem = hu_rule("CT", hu_histogram(scaled(values).astype(np.float32)))
    assert problem.certain
    assert re.search(fix, problem.sentence)
