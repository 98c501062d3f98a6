"""Synthetic CT-like abdomen phantoms: a freely available dataset for the demonstration and for tests.

A seed determines each anatomy: body size, position in the field of view, a smooth elastic deformation, and position,
size, orientation, outline and HU of each organ. Unlabelled neighbours (muscle, bowel, stomach, veins, heart) have the
same HU as the organs, so that a threshold is not sufficient and position and shape must be learned. Results on phantoms
do not predict performance on patients.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.volume import write_volume
from mre_lowshot.files import write_json

DATASET = "Dataset900_Synthetic"
LABELS = {
    "background": 0, "liver": 1, "spleen": 2, "right_kidney": 3, "left_kidney": 4, "aorta": 5, "gallbladder": 6,
}  # fmt: skip
ORIENTATIONS = ("LPS", "RAS", "LPS", "LAS", "RPI", "LPS", "PIR")  # of successive files
SMALLEST_FIELD = (140.0, 260.0, 320.0)  # smallest field of view, mm (z, y, x)
FAT, MUSCLE, LUNG, AIR = -100.0, 70.0, -840.0, -1000.0  # HU
CAVITY = (78.0, 118.0)  # half axes (y, x) of the abdominal cavity, mm
Triple = tuple[float, float, float]


@dataclass
class _Canvas:
    """A phantom under construction; all arrays are (D, H, W)."""

    rng: np.random.Generator
    z: np.ndarray  # coordinates in mm in the undeformed body; superior is positive
    y: np.ndarray  # posterior is positive
    x: np.ndarray  # left is positive
    hu: np.ndarray
    labels: np.ndarray

    def paint(self, mask: np.ndarray, hu: float | np.ndarray, label: str = "background") -> None:
        """Set HU and label inside ``mask``."""
        self.hu[mask] = hu[mask] if isinstance(hu, np.ndarray) else hu
        self.labels[mask] = LABELS[label]

    def blob(self, centre: Triple, radii: Triple) -> np.ndarray:
        """An irregular ellipsoid with random position, size and orientation: a field that is below 1 inside.

        ``centre`` and ``radii`` are (z, y, x) in mm.
        """
        from scipy.spatial.transform import Rotation

        rotation = Rotation.from_rotvec(_clipped(self.rng, 0.12, 3)).as_matrix()
        middle = np.add(centre, _clipped(self.rng, 5.0, 3))
        size = np.multiply(radii, np.exp(_clipped(self.rng, 0.07, 3)))
        offset = [axis - float(m) for axis, m in zip((self.z, self.y, self.x), middle, strict=True)]
        value = np.zeros_like(self.z)
        for row, radius in zip(rotation, size, strict=True):
            value += sum(float(w / radius) * o for w, o in zip(row, offset, strict=True)) ** 2
        irregular: np.ndarray = value + _smooth(self.rng, self.z.shape, (6, 8, 10), 0.10)
        return irregular

    def disc(self, y: float | np.ndarray, x: float | np.ndarray, ry: float, rx: float) -> np.ndarray:
        """An elliptic tube along z with centre (y, x) and half axes (ry, rx) in mm: a field that is below 1 inside."""
        tube: np.ndarray = ((self.y - y) / ry) ** 2 + ((self.x - x) / rx) ** 2
        return tube


def _clipped(rng: np.random.Generator, deviation: float, size: int) -> np.ndarray:
    return deviation * np.clip(rng.normal(size=size), -1.7, 1.7)


def _smooth(rng: np.random.Generator, shape: tuple[int, ...], knots: tuple[int, ...], deviation: float) -> np.ndarray:
    """A smooth random field on a grid of ``knots``, resampled to ``shape``: the same field for every ``shape``."""
    from scipy.ndimage import zoom

    field = deviation * np.clip(rng.normal(size=knots), -2, 2)
    # cubic splines, one axis at a time: tensordot consumes axis 0 and appends the new axis as the last
    for size, count in zip(shape, knots, strict=True):
        weights = zoom(np.eye(count), (size / count, 1), order=3) if size != count else np.eye(count)
        field = np.tensordot(field, weights.astype(np.float32), axes=(0, 1)).astype(np.float32)
    return field


def make_subject(
    seed: int, shape: tuple[int, int, int] = (40, 72, 88), spacing: Triple = (4.0, 4.0, 4.0)
) -> tuple[np.ndarray, np.ndarray]:
    """Make one phantom.

    The anatomy is defined in mm and depends on the seed only: 20x36x44 voxels of 8 mm give a coarse, fast version of
    the default. The noise is independent per voxel.

    Args:
        seed: of the anatomy and the noise.
        shape: voxels (D, H, W).
        spacing: voxel size (z, y, x) in mm.

    Returns:
        Image (D, H, W) float32 in HU and label map (D, H, W) uint8 with the values of `LABELS`, both in LPS.

    Raises:
        ValueError: the field of view is smaller than ``SMALLEST_FIELD``.
    """
    field = tuple(n * s for n, s in zip(shape, spacing, strict=True))
    if any(f < least for f, least in zip(field, SMALLEST_FIELD, strict=True)):
        raise ValueError(f"field of view {field} mm (z, y, x): must be at least {SMALLEST_FIELD}")
    rng = np.random.default_rng(seed)
    axes = [((np.arange(n) - (n - 1) / 2) * s).astype(np.float32) for n, s in zip(shape, spacing, strict=True)]
    scanner = np.meshgrid(*axes, indexing="ij")
    scale, shift = float(rng.uniform(0.94, 1.05)), rng.uniform(-1, 1, 3) * (8, 6, 7) + (0, -16, 0)
    z, y, x = (
        (p - float(s)) / scale + _smooth(rng, shape, (4, 5, 5), 4.5) for p, s in zip(scanner, shift, strict=True)
    )
    canvas = _Canvas(rng, z, y, x, np.full(shape, AIR, np.float32), np.zeros(shape, np.uint8))
    body = _paint_wall(canvas)
    _paint_bowel(canvas)
    _paint_organs(canvas)
    _paint_chest(canvas)
    _paint_vessels_and_spine(canvas)
    canvas.paint(~body, AIR)
    _drop_islands(canvas)
    canvas.hu[_table(rng, body, scanner[1], scanner[2], spacing)] = 150.0
    return _scan(rng, canvas.hu, body), canvas.labels


def _paint_wall(c: _Canvas) -> np.ndarray:
    """Paint skin, subcutaneous fat, muscle wall, ribs and a cavity filled with fat; return the mask of the body."""
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
    """Paint unlabelled structures: small bowel (some with contrast agent), colon with gas, stomach, pancreas."""
    from scipy.spatial.transform import Rotation

    allowed = c.disc(-8, 0, 66, 108) < 1
    for _ in range(13):
        middle = c.rng.uniform((-85, -58, -55), (-18, 12, 75))
        rotation = Rotation.random(random_state=int(c.rng.integers(2**31))).as_matrix()
        ring, tube = float(c.rng.uniform(16, 26)), float(c.rng.uniform(9, 13))
        offset = [axis - float(m) for axis, m in zip((c.z, c.y, c.x), middle, strict=True)]
        u, v, w = (sum(float(k) * o for k, o in zip(row, offset, strict=True)) for row in rotation)
        distance = np.sqrt((np.sqrt(u**2 + v**2) - ring) ** 2 + w**2)
        c.paint(allowed & (distance < tube), 75.0)
        c.paint(allowed & (distance < tube - 3), float(c.rng.choice([15, 45, 85, 110, 160])))
    for x, top in ((-98.0, -32.0), (98.0, -8.0)):  # ascending and descending colon
        colon = c.disc(22, x + 6 * np.sin(c.z / 17), 20, 17)
        for limit, hu in ((1.0, 70.0), (0.7, c.rng.uniform(30, 120))):
            c.paint((colon < limit) & (c.z < top), hu)
        c.paint((colon < 0.6) & (c.z < top) & (c.y < 16), -850.0)
    stomach = c.blob((28, -22, 58), (46, 40, 42))
    c.paint(stomach < 1, 75.0)
    c.paint(stomach < 0.8, c.rng.uniform(5, 40))
    c.paint((stomach < 0.8) & (c.y < -36 + c.rng.uniform(-8, 8)), -900.0)
    c.paint(c.blob((-2, 0, 18), (13, 12, 52)) < 1, 88.0)  # pancreas


def _paint_organs(c: _Canvas) -> None:
    """Paint liver, spleen, kidneys and gallbladder."""
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
    """Paint the lung bases above the diaphragm, and the heart."""
    from_axis = c.disc(0, 0, *CAVITY)
    dome = 70 + c.rng.uniform(-5, 5) - 36 * from_axis**3 - 0.12 * c.y - 5 * np.tanh(c.x / 40)
    c.paint((from_axis < 1) & (c.z > dome), LUNG)
    c.paint((from_axis < 1) & (c.z > dome) & (np.abs(c.x) < 34) & (c.y > 4), FAT)
    c.paint(c.blob((100, -26, 22), (38, 42, 52)) < 1, 140.0)


def _paint_vessels_and_spine(c: _Canvas) -> None:
    """Paint vena cava, aorta, vertebrae and spinal canal."""
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
    """Keep the largest component of organs that neighbouring structures divide; set the others to fat."""
    from scipy.ndimage import label

    for name in list(LABELS)[1:]:
        parts, _ = label(c.labels == LABELS[name])
        counts = np.bincount(parts.ravel())[1:]
        if len(counts) > 1:
            c.paint((parts > 0) & (parts != 1 + counts.argmax()), FAT)


def _table(rng: np.random.Generator, body: np.ndarray, y: np.ndarray, x: np.ndarray, spacing: Triple) -> np.ndarray:
    """Mask of the patient table: two curved sheets, one to two voxels of air below the body."""
    from scipy.ndimage import binary_dilation

    step = spacing[1]
    top = float(y[body].max()) + step * rng.uniform(1.6, 2.6) - 0.0009 * x**2
    thick = max(5.0, 1.2 * step)
    sheets = ((y > top) & (y < top + thick)) | ((y > top + 26) & (y < top + 26 + thick))
    table: np.ndarray = sheets & (np.abs(x) < 190) & ~binary_dilation(body, iterations=1)
    return table


def _scan(rng: np.random.Generator, hu: np.ndarray, body: np.ndarray) -> np.ndarray:
    """Simulate the acquisition: tissue texture, blurred edges, correlated and white noise, 12-bit range."""
    from scipy.ndimage import gaussian_filter

    image = hu + np.where(hu > -200, _smooth(rng, hu.shape, (14, 24, 28), 7.0), 0.0)
    image = gaussian_filter(image.astype(np.float32), 0.45)
    mottle = gaussian_filter(rng.standard_normal(hu.shape, np.float32), (0.5, 0.9, 0.9))
    image += mottle / mottle.std() * np.where(body, 18.0, 8.0) + 12.0 * rng.standard_normal(hu.shape, np.float32)
    scan: np.ndarray = np.clip(np.rint(image), -1024, 3071).astype(np.float32)
    return scan


def write_dataset(
    folder: str | Path,
    subjects: int = 7,
    seed: int = 0,
    shape: tuple[int, int, int] = (40, 72, 88),
    spacing: Triple = (4.0, 4.0, 4.0),
) -> Path:
    """Write a raw dataset of phantoms in nnU-Net's layout.

    Slice spacing and number of slices vary by up to 10 % between subjects, and files differ in orientation.

    Args:
        folder: root folder of raw datasets.
        subjects: number of phantoms.
        seed: of all phantoms.
        shape: mean number of voxels (D, H, W).
        spacing: mean voxel size (z, y, x) in mm.

    Returns:
        The folder of the dataset.
    """
    root = Path(folder) / DATASET
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
        "description": "CT-like abdomen phantoms (mre_lowshot.data.synthetic), for demonstration and tests only",
        "channel_names": {"0": "CT"},
        "labels": LABELS,
        "numTraining": subjects,
        "file_ending": ".nii.gz",
    }
    write_json(root / "dataset.json", about)
    return root
