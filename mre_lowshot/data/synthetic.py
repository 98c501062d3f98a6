"""A CT-like abdomen phantom: a data set that anyone may have, for the demonstration and for tests.

Every anatomy is drawn from a seed: body size, position in the field of view, a smooth elastic deformation, and each
organ's place, size, tilt, outline and HU. Organs share their HU with unlabelled neighbours (muscle, bowel, stomach,
veins, heart), so that position and shape must be learnt and no threshold will do. It stands for no patient and says
nothing about performance on patients.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mre_lowshot.files import write_json
from mre_lowshot.volume import Geometry, write_volume

DATASET = "Dataset900_Synthetic"
LABELS = {
    "background": 0, "liver": 1, "spleen": 2, "right_kidney": 3, "left_kidney": 4, "aorta": 5, "gallbladder": 6,
}  # fmt: skip
ORIENTATIONS = ("LPS", "RAS", "LPS", "LAS", "RPI", "LPS", "PIR")  # of the files written, in turn
SMALLEST_FIELD = (140.0, 260.0, 320.0)  # mm (z, y, x) that the phantom needs
FAT, MUSCLE, LUNG, AIR = -100.0, 70.0, -840.0, -1000.0
CAVITY = (78.0, 118.0)  # mm half axes (y, x) of the abdominal cavity
Triple = tuple[float, float, float]


@dataclass
class _Canvas:
    """A body being painted. ``z, y, x`` are mm in the undeformed body: left, posterior and superior are positive."""

    rng: np.random.Generator
    z: np.ndarray
    y: np.ndarray
    x: np.ndarray
    hu: np.ndarray
    labels: np.ndarray

    def paint(self, mask: np.ndarray, hu: float | np.ndarray, label: str = "background") -> None:
        self.hu[mask] = hu[mask] if isinstance(hu, np.ndarray) else hu
        self.labels[mask] = LABELS[label]

    def blob(self, centre: Triple, radii: Triple) -> np.ndarray:
        """An irregular ellipsoid, jittered in place, size and tilt: below 1 inside. Centre and radii (z, y, x) mm."""
        from scipy.spatial.transform import Rotation

        turn = Rotation.from_rotvec(_clipped(self.rng, 0.12, 3)).as_matrix()
        middle = np.add(centre, _clipped(self.rng, 5.0, 3))
        size = np.multiply(radii, np.exp(_clipped(self.rng, 0.07, 3)))
        offset = [axis - float(m) for axis, m in zip((self.z, self.y, self.x), middle, strict=True)]
        value = np.zeros_like(self.z)
        for row, radius in zip(turn, size, strict=True):
            value += sum(float(w / radius) * o for w, o in zip(row, offset, strict=True)) ** 2
        return value + _smooth(self.rng, self.z.shape, (6, 8, 10), 0.10)

    def disc(self, y: float | np.ndarray, x: float | np.ndarray, ry: float, rx: float) -> np.ndarray:
        """A tube along z: below 1 inside."""
        return ((self.y - y) / ry) ** 2 + ((self.x - x) / rx) ** 2


def _clipped(rng: np.random.Generator, deviation: float, size: int) -> np.ndarray:
    return deviation * np.clip(rng.normal(size=size), -1.7, 1.7)


def _smooth(rng: np.random.Generator, shape: tuple[int, ...], knots: tuple[int, ...], deviation: float) -> np.ndarray:
    """A random field that varies smoothly between ``knots``: the same field at any ``shape``."""
    from scipy.ndimage import zoom

    field = deviation * np.clip(rng.normal(size=knots), -2, 2)
    for size, count in zip(
        shape, knots, strict=True
    ):  # cubic splines, an axis at a time: axis 0 in, and out as the last
        weights = zoom(np.eye(count), (size / count, 1), order=3) if size != count else np.eye(count)
        field = np.tensordot(field, weights.astype(np.float32), axes=(0, 1)).astype(np.float32)
    return field


def make_subject(
    seed: int, shape: tuple[int, int, int] = (40, 72, 88), spacing: Triple = (4.0, 4.0, 4.0)
) -> tuple[np.ndarray, np.ndarray]:
    """Make one subject: image (D, H, W) float32 in HU and labels (D, H, W) uint8 (``LABELS``), both in LPS.

    ``spacing`` is (z, y, x) in mm. The anatomy depends on the seed and lies in mm, so that (20, 36, 44) at 8 mm is
    the coarse, fast form of the default; the noise is drawn per voxel.

    Raises:
        ValueError: the field of view is smaller than ``SMALLEST_FIELD``.
    """
    field = tuple(n * s for n, s in zip(shape, spacing, strict=True))
    if any(f < least for f, least in zip(field, SMALLEST_FIELD, strict=True)):
        raise ValueError(f"field of view {field} mm (z, y, x): the phantom needs at least {SMALLEST_FIELD}")
    rng = np.random.default_rng(seed)
    axes = [((np.arange(n) - (n - 1) / 2) * s).astype(np.float32) for n, s in zip(shape, spacing, strict=True)]
    plain = np.meshgrid(*axes, indexing="ij")
    scale, shift = float(rng.uniform(0.94, 1.05)), rng.uniform(-1, 1, 3) * (8, 6, 7) + (0, -16, 0)
    bent = [(p - float(s)) / scale + _smooth(rng, shape, (4, 5, 5), 4.5) for p, s in zip(plain, shift, strict=True)]
    canvas = _Canvas(rng, bent[0], bent[1], bent[2], np.full(shape, AIR, np.float32), np.zeros(shape, np.uint8))
    body = _paint_wall(canvas)
    _paint_bowel(canvas)
    _paint_organs(canvas)
    _paint_chest(canvas)
    _paint_vessels_and_spine(canvas)
    canvas.paint(~body, AIR)
    _drop_islands(canvas)
    canvas.hu[_table(rng, body, plain[1], plain[2], spacing)] = 150.0
    return _scan(rng, canvas.hu, body), canvas.labels


def _paint_wall(c: _Canvas) -> np.ndarray:
    """Skin, fat ring, muscle wall, ribs, and a cavity full of fat. Gives the body's mask."""
    fat = c.rng.uniform(8, 24)
    y, x = CAVITY
    body = c.disc(0, 0, y + 14 + fat, x + 14 + fat) < 1
    c.paint(body, 10.0)
    c.paint(c.disc(0, 0, y + 11 + fat, x + 11 + fat) < 1, FAT)
    wall = c.disc(0, 0, y + 14, x + 14) < 1
    c.paint(wall, MUSCLE)
    inner = c.disc(0, 0, y, x) < 1
    ring = wall & ~inner & (c.disc(0, 0, y + 11, x + 11) < 1)
    rib = np.cos(2 * np.pi * (c.z - 0.55 * c.y) / 32 + c.rng.uniform(0, 6)) > 0.35
    c.paint(ring & rib & (c.z > -45 - 0.5 * c.y) & (np.abs(c.x) > 28), np.where(c.y < -40, 115.0, 260.0))
    c.paint(inner, FAT)
    for side in (-1, 1):
        c.paint(c.disc(78, side * 34, 19, 32) < 1, MUSCLE)  # erector spinae
        c.paint((c.disc(54, side * (36 - 0.12 * c.z), 15, 15) < 1) & (c.z < 25), MUSCLE)  # psoas
    return body


def _paint_bowel(c: _Canvas) -> None:
    """Unlabelled look-alikes: small bowel (some with oral contrast), colon with gas, stomach with an air level."""
    from scipy.spatial.transform import Rotation

    allowed = c.disc(-8, 0, 66, 108) < 1
    for _ in range(13):
        middle = c.rng.uniform((-85, -58, -55), (-18, 12, 75))
        turn = Rotation.random(random_state=int(c.rng.integers(2**31))).as_matrix()
        ring, tube = float(c.rng.uniform(16, 26)), float(c.rng.uniform(9, 13))
        offset = [axis - float(m) for axis, m in zip((c.z, c.y, c.x), middle, strict=True)]
        u, v, w = (sum(float(k) * o for k, o in zip(row, offset, strict=True)) for row in turn)
        distance = np.sqrt((np.sqrt(u**2 + v**2) - ring) ** 2 + w**2)
        c.paint(allowed & (distance < tube), 75.0)
        c.paint(allowed & (distance < tube - 3), float(c.rng.choice([15, 45, 85, 110, 160])))
    for x, top in ((-98.0, -32.0), (98.0, -8.0)):  # ascending and descending colon
        place = c.disc(22, x + 6 * np.sin(c.z / 17), 20, 17)
        for limit, hu in ((1.0, 70.0), (0.7, c.rng.uniform(30, 120))):
            c.paint((place < limit) & (c.z < top), hu)
        c.paint((place < 0.6) & (c.z < top) & (c.y < 16), -850.0)
    stomach = c.blob((28, -22, 58), (46, 40, 42))
    c.paint(stomach < 1, 75.0)
    c.paint(stomach < 0.8, c.rng.uniform(5, 40))
    c.paint((stomach < 0.8) & (c.y < -36 + c.rng.uniform(-8, 8)), -900.0)
    c.paint(c.blob((-2, 0, 18), (13, 12, 52)) < 1, 88.0)  # pancreas


def _paint_organs(c: _Canvas) -> None:
    cavity = c.disc(0, 0, *CAVITY) < 1
    means = {"liver": 90.0, "spleen": 104.0, "right_kidney": 165.0, "left_kidney": 165.0, "gallbladder": 16.0}
    hu = {name: mean + _clipped(c.rng, 9.0, 1)[0] for name, mean in means.items()}
    hu["left_kidney"] = hu["right_kidney"] + _clipped(c.rng, 3.0, 1)[0]
    liver = np.minimum(c.blob((16, -10, -78), (62, 76, 62)), c.blob((34, -46, -6), (34, 32, 66)))
    c.paint(cavity & (liver < 1), hu["liver"], "liver")
    spleen = np.maximum(c.blob((26, 34, 88), (50, 50, 34)), 1.8 - c.blob((24, -2, 58), (60, 46, 30)))
    c.paint(cavity & (spleen < 1), hu["spleen"], "spleen")
    kidneys = (("right_kidney", (-32.0, 47.0, -64.0), -1), ("left_kidney", (-24.0, 46.0, 62.0), 1))
    for name, middle, side in kidneys:
        kidney = c.blob(middle, (50, 27, 26))
        sinus = c.disc(middle[1] - 5, middle[2] - side * 20, 9, 17) + ((c.z - middle[0]) / 20) ** 2
        room = cavity | (c.disc(70, side * 60, 22, 40) < 1)
        muscle = c.disc(78, side * 34, 19, 32) < 1
        c.paint((kidney < 1.45) & room & ~muscle & (c.labels != LABELS["spleen"]), FAT)
        c.paint((kidney < 1) & room, np.where(kidney > 0.6, hu[name] + 15, hu[name] - 18), name)
        c.paint((sinus < 1) & (kidney < 1.45) & (c.labels != LABELS["spleen"]), -40.0)
    c.paint(c.blob((-34, -42, -50), (25, 16, 16)) < 1, hu["gallbladder"], "gallbladder")


def _paint_chest(c: _Canvas) -> None:
    """Lung bases above the diaphragm, and the heart."""
    from_axis = c.disc(0, 0, *CAVITY)
    dome = 70 + c.rng.uniform(-5, 5) - 36 * from_axis**3 - 0.12 * c.y - 5 * np.tanh(c.x / 40)
    c.paint((from_axis < 1) & (c.z > dome), LUNG)
    c.paint((from_axis < 1) & (c.z > dome) & (np.abs(c.x) < 34) & (c.y > 4), FAT)
    c.paint(c.blob((100, -26, 22), (38, 42, 52)) < 1, 140.0)


def _paint_vessels_and_spine(c: _Canvas) -> None:
    c.paint(c.disc(18, -24 - 0.05 * c.z, 11, 13) < 1, 105.0 + c.rng.uniform(-12, 12))  # inferior vena cava
    radius, phase = 12.0 * np.exp(_clipped(c.rng, 0.12, 1)[0]), c.rng.uniform(0, 6)
    aorta = c.disc(20, 12 + 5 * np.sin(c.z / 45 + phase), radius, radius)
    c.paint(aorta < 1, 152.0 + _clipped(c.rng, 10.0, 1)[0], "aorta")
    level = np.mod(c.z + c.rng.uniform(0, 34), 34)  # one vertebra and its disc
    vertebra = c.disc(54, 0, 17, 23)
    c.paint(vertebra < 1, np.where(level < 7, 80.0, np.where(vertebra > 0.72, 330.0, 165.0)))
    c.paint((c.disc(80, 0, 15, 17) < 1) & (vertebra > 1), 280.0)
    c.paint((np.abs(c.y - 76) < 5) & (np.abs(c.x) < 40) & (np.abs(level - 20) < 6) & (vertebra > 1), 260.0)
    c.paint((np.abs(c.x) < 4) & (c.y > 80) & (c.y < 101) & (level > 12), 280.0)
    c.paint(c.disc(78, 0, 8, 10) < 1, 30.0)  # spinal canal


def _drop_islands(c: _Canvas) -> None:
    """Organs that neighbours cut to pieces keep their largest one; the rest becomes fat."""
    from scipy.ndimage import label

    for name in list(LABELS)[1:]:
        parts, _ = label(c.labels == LABELS[name])
        counts = np.bincount(parts.ravel())[1:]
        if len(counts) > 1:
            c.paint((parts > 0) & (parts != 1 + counts.argmax()), FAT)


def _table(rng: np.random.Generator, body: np.ndarray, y: np.ndarray, x: np.ndarray, spacing: Triple) -> np.ndarray:
    """The scanner's couch, two curved sheets under the patient: one to two voxels of air between."""
    from scipy.ndimage import binary_dilation

    step = spacing[1]
    top = float(y[body].max()) + step * rng.uniform(1.6, 2.6) - 0.0009 * x**2
    thick = max(5.0, 1.2 * step)
    sheets = ((y > top) & (y < top + thick)) | ((y > top + 26) & (y < top + 26 + thick))
    return sheets & (np.abs(x) < 190) & ~binary_dilation(body, iterations=1)


def _scan(rng: np.random.Generator, hu: np.ndarray, body: np.ndarray) -> np.ndarray:
    """What a scanner makes of it: tissue texture, blurred edges, correlated and white noise, the 12-bit floor."""
    from scipy.ndimage import gaussian_filter

    image = hu + np.where(hu > -200, _smooth(rng, hu.shape, (14, 24, 28), 7.0), 0.0)
    image = gaussian_filter(image.astype(np.float32), 0.45)
    mottle = gaussian_filter(rng.standard_normal(hu.shape, np.float32), (0.5, 0.9, 0.9))
    image += mottle / mottle.std() * np.where(body, 18.0, 8.0) + 12.0 * rng.standard_normal(hu.shape, np.float32)
    return np.clip(np.rint(image), -1024, 3071).astype(np.float32)


def write_dataset(
    folder: Path,
    subjects: int = 7,
    seed: int = 0,
    shape: tuple[int, int, int] = (40, 72, 88),
    spacing: Triple = (4.0, 4.0, 4.0),
) -> Path:
    """Write a raw data set in nnU-Net's layout below ``folder`` (the folder of raw data sets) and give its folder.

    Subjects differ in slice spacing and number of slices by up to a tenth, and their files in orientation.
    """
    root = folder / DATASET
    for number in range(subjects):
        rng = np.random.default_rng([seed, number])
        pixel = rng.uniform(0.97, 1.03)
        own = (spacing[0] * rng.uniform(0.97, 1.1), spacing[1] * pixel, spacing[2] * pixel)
        slices = max(round(shape[0] * rng.uniform(0.92, 1.08)), int(np.ceil(SMALLEST_FIELD[0] / own[0])))
        grid = (slices, shape[1], shape[2])
        image, labels = make_subject(int(rng.integers(2**31)), grid, own)
        origin = tuple(float(v) for v in rng.uniform(-200, 200, 3))
        code = ORIENTATIONS[number % len(ORIENTATIONS)]
        geometry = Geometry(grid, own, origin, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0), code)
        name = f"phantom_{number + 1:03d}"
        write_volume(root / "imagesTr" / f"{name}_0000.nii.gz", image, geometry)
        write_volume(root / "labelsTr" / f"{name}.nii.gz", labels, geometry)
    about = {
        "name": "Synthetic",
        "description": "CT-like abdomen phantoms drawn by mre_lowshot.synthetic: for demonstration and tests only",
        "channel_names": {"0": "CT"},
        "labels": LABELS,
        "numTraining": subjects,
        "file_ending": ".nii.gz",
    }
    write_json(root / "dataset.json", about)
    return root
