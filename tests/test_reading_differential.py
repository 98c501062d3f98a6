"""What is read equals the data and world coordinates of nibabel, pynrrd and SimpleITK, or is refused: over several
hundred headers."""

import gzip
import itertools
from collections import Counter

import nibabel as nib
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk

from mre_lowshot.data.volume import geometry_of, read_image, read_labels, write_volume
from mre_lowshot.errors import UserError

FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])
SIZE = (4, 5, 6)


def rotation(x, y, z):
    (cx, sx), (cy, sy), (cz, sz) = ((np.cos(np.radians(a)), np.sin(np.radians(a))) for a in (x, y, z))
    turn = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]]) @ np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    return turn @ np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])


def affines():
    """Name -> affine (RAS): orders of axes, flips, tilts, ties, voxel sizes, far origins, shear."""
    for number, order in enumerate(itertools.permutations(range(3))):
        signs = [1 - 2 * (number >> bit & 1) for bit in range(3)]
        yield f"order {order} {signs}", np.eye(3)[:, order] * signs * [0.7, 1.3, 3.1]
    for angles in ((45, 20, 0), (45 - 1e-6, 20, 0), (45, 45, 45), (0, 0, 45), (10, 0, 0), (33, -48, 12), (90, 45, 0)):
        yield f"angles {angles}", rotation(*angles) * [-1.0, 1.0, 2.0]
    for scale in (0.05, 0.025, 0.01, 0.002, 20.0):
        yield f"scale {scale}", rotation(3, 4, 5) * scale
    for shear in (1e-8, 0.05, 0.5):
        yield f"shear {shear}", np.array([[1, shear, 0], [0, 1, 0], [0, 0, 1]])


def with_origin(columns, origin=(-123.4, 56.7, 8.9)):
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = columns, origin
    return affine


def same(volume, data, affine):
    """All voxels of ``volume`` have the value that ``data`` (i, j, k) has at their position; ``affine`` in LPS."""
    assert volume.geometry.shape == volume.array.shape[-3:]
    index = np.indices(volume.array.shape[-3:]).reshape(3, -1)[::-1]
    world = volume.geometry.affine() @ np.vstack([index, np.ones(index.shape[1])])
    there = (np.linalg.inv(affine) @ world)[:3]
    assert np.abs(there - np.rint(there)).max() < 0.02
    there = tuple(np.rint(there).astype(int))
    assert np.array_equal(sorted(map(tuple, np.transpose(there))), list(np.ndindex(*data.shape[:3])))
    found = volume.array.reshape(-1, index.shape[1])
    wanted = data[there].reshape(index.shape[1], -1).T.astype(np.float32)
    assert np.allclose(found, wanted, rtol=1e-6, atol=0), "values"
    # the axes of the array are those closest to left, posterior and superior, not mirrored
    cosines = np.reshape(volume.geometry.direction, (3, 3))
    assert np.linalg.det(cosines) * np.linalg.det(affine[:3, :3]) * sign(volume.geometry.axes) > 0
    assert (np.diag(cosines) > -1e-6).all()


def sign(axes):
    matrix = np.zeros((3, 3))
    for row, axis in enumerate(axes):
        matrix[row, 3 - abs(axis)] = np.sign(axis)
    return np.linalg.det(matrix)


def named(problem, path):
    """The message of an error, which begins with the file."""
    assert str(problem).startswith(str(path))
    return str(problem)


def nifti_headers():
    rng = np.random.default_rng(0)
    kinds = ("u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")
    slopes = ((1, 0), (0, 5), (np.nan, np.nan), (2, -1024), (0.5, 0.25), (-1, 7), (1, np.inf))
    codes = ((1, 1), (0, 1), (1, 0), (0, 0), (2, 4))
    shapes = (SIZE, (4, 5), (4, 5, 6, 1), (4, 5, 6, 2), (4, 5, 6, 1, 3), (4, 5, 1), (1, 5, 6))
    for name, columns in affines():
        for number in range(20):
            kind, order, version = kinds[number % 10], "<>"[number % 2], number // 2 % 2
            yield name, columns, {
                "kind": order + kind, "version": version + 1, "order": order, "codes": codes[rng.integers(5)],
                "slope": slopes[rng.integers(7)] if number % 3 == 0 else (1, 0),
                "shape": shapes[rng.integers(7)] if number % 2 else SIZE,
                "units": int(rng.choice([0, 2, 2, 2, 10, 1, 3])),
               
                "other": number % 5 == 4, "gzip": bool(number % 2),
            }  # fmt: skip


def write_nifti(path, columns, given, rng):
    kind = nib.Nifti1Header if given["version"] == 1 else nib.Nifti2Header
    header = kind(endianness=given["order"])
    header.set_data_dtype(np.dtype(given["kind"]))
    header.set_data_shape(given["shape"])
    affine = with_origin(columns)
    header.set_qform(affine, code=0)
    header.set_sform(affine @ (np.diag([1, 1, 1, 1]) if not given["other"] else with_origin(np.eye(3), (20, 0, 0))), 0)
    header["qform_code"], header["sform_code"] = given["codes"]
    header["scl_slope"], header["scl_inter"] = given["slope"]
    header["xyzt_units"] = given["units"]
    header["vox_offset"] = 352 if given["version"] == 1 else 544
    low, high = (0, 200) if "u" in given["kind"] else (-100, 100)
    data = rng.integers(low, high, given["shape"]).astype(given["kind"])
    content = header.binaryblock + b"\0\0\0\0" + data.tobytes(order="F")
    path.write_bytes(gzip.compress(content, 1) if given["gzip"] else content)


def test_nifti_headers_are_read_as_nibabel_reads_them(tmp_path, record_property):
    rng, counts = np.random.default_rng(1), Counter()
    for number, (name, columns, given) in enumerate(nifti_headers()):
        path = tmp_path / f"{number}.nii{'.gz' if given['gzip'] else ''}"
        write_nifti(path, columns, given, rng)
        try:
            volume = read_image(path)
        except UserError as problem:
            refusal = named(problem, path)
            counts["refused"] += 1
            usual = given["slope"][1] != np.inf and given["units"] not in (1, 3) and given["shape"] != (4, 5, 6, 2)
            assert not usual or "right angles" in refusal, (name, given, refusal)
            continue
        image = nib.load(path)
        data, affine = np.asarray(image.dataobj, np.float64), image.affine.copy()
        data = data[:, :, None] if data.ndim == 2 else data.reshape(*data.shape[:3], -1)[..., : len(volume.array)]
        if image.ndim == 2:
            affine[:3, 2] = np.cross(affine[:3, 0], affine[:3, 1])
            affine[:3, 2] /= np.linalg.norm(affine[:3, 2]) * np.sign(affine[:3, 2] @ image.affine[:3, 2])
        same(volume, data, FLIP @ affine)
        counts["equal"] += 1
        disagree = given["other"] and all(given["codes"])
        assert disagree == any("sform and qform disagree" in note for note in volume.notes), (name, given, volume.notes)
        assert (given["codes"] == (0, 0)) == any("orientation unknown" in note for note in volume.notes)
        # a label map on this grid: the scan's own header, and its voxel order
        out = tmp_path / f"{number}_out.nii.gz"
        labels = rng.integers(0, 9, volume.geometry.shape)
        write_volume(out, labels, volume.geometry)
        again = nib.load(out)
        assert again.shape == image.shape[:3]
        assert np.array_equal(again.affine, image.affine)
        for field in ("qform_code", "sform_code", "pixdim", "quatern_b", "srow_x", "qoffset_x", "xyzt_units"):
            assert np.array_equal(again.header[field], image.header[field], equal_nan=True), field
        assert np.array_equal(read_labels(out).array, labels)
        counts["written"] += 1
    print(counts)
    record_property("headers", dict(counts))
    assert counts["equal"] + counts["refused"] == 420
    assert counts["equal"] == counts["written"] > 200


def nrrd_headers():
    spaces = {"left-posterior-superior": (1, 1), "RAS": (-1, -1), "left-anterior-superior": (1, -1), None: (1, 1),
              "scanner-xyz": (1, 1), "3D-left-handed": None}  # fmt: skip
    kinds = itertools.cycle(
        ("uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float", "double")
    )
    encodings = itertools.cycle(("raw", "gzip", "bzip2", "ascii"))
    for (name, columns), (space, signs) in itertools.product(affines(), spaces.items()):
        yield name, columns, space, signs, next(kinds), next(encodings)


@pytest.mark.parametrize("endian", ["little", "big"])
def test_nrrd_headers_are_read_as_pynrrd_reads_them(endian, tmp_path, record_property):
    rng, counts = np.random.default_rng(2), Counter()
    for number, (name, columns, space, signs, kind, encoding) in enumerate(nrrd_headers()):
        path = tmp_path / f"{number}.nrrd"
        data = rng.integers(0, 100, SIZE).astype({"float": "float32", "double": "float64"}.get(kind, kind))
        units = ("mm", "um")[number % 7 == 6]
        header = {
            "encoding": encoding,
            "endian": endian,
            "space directions": columns.T,
            "space origin": [1.0, -2.0, 3.5],
        }
        header |= {"space": space} if space else {"space dimension": 3}
        nrrd.write(str(path), data if endian == "little" else data.astype(data.dtype.newbyteorder(">")), header)
        content = path.read_bytes()
        path.write_bytes(
            content.replace(b"\nspace origin", f'\nspace units: "{units}" "mm" "mm"\nspace origin'.encode(), 1)
        )
        try:
            volume = read_image(path)
        except UserError as problem:
            refusal = named(problem, path)
            counts["refused"] += 1
            usual = signs is not None and units == "mm"
            assert not usual or "right angles" in refusal, (name, space, kind, encoding, refusal)
            continue
        found, fields = nrrd.read(str(path))
        affine = with_origin(
            np.diag([*signs, 1]) @ fields["space directions"].T, np.array([*signs, 1]) * fields["space origin"]
        )
        same(volume, found.astype(np.float64), affine)
        assert (space in (None, "scanner-xyz")) == any("orientation unknown" in note for note in volume.notes)
        counts["equal"] += 1
        labels = rng.integers(0, 9, volume.geometry.shape)
        write_volume(tmp_path / "out.nrrd", labels, volume.geometry)
        again, kept = nrrd.read(str(tmp_path / "out.nrrd"))
        assert again.shape == found.shape
        assert kept.get("space") == fields.get("space")
        assert np.array_equal(kept["space directions"], fields["space directions"])
        assert np.array_equal(kept["space origin"], fields["space origin"])
        assert np.array_equal(read_labels(tmp_path / "out.nrrd").array, labels)
        counts["written"] += 1
    print(counts)
    record_property("headers", dict(counts))
    assert counts["equal"] + counts["refused"] == 126
    assert counts["equal"] == counts["written"] > 70


MET = {
    "u1": "UCHAR",
    "i1": "CHAR",
    "i2": "SHORT",
    "u2": "USHORT",
    "i4": "INT",
    "u4": "UINT",
    "f4": "FLOAT",
    "f8": "DOUBLE",
}


def test_metaimage_headers_are_read_as_simpleitk_reads_them(tmp_path, record_property):
    rng, counts = np.random.default_rng(3), Counter()
    names = itertools.cycle((("Offset", "TransformMatrix"), ("Position", "Orientation"), ("Origin", "Rotation")))
    for number, ((name, columns), msb, kind) in enumerate(itertools.product(affines(), (True, False), MET)):
        origin, matrix = next(names)
        spacing = np.linalg.norm(columns, axis=0)
        channels = 3 if number % 5 == 4 else 1
        shape = (4, 5) if number % 11 == 10 else SIZE
        n, data = len(shape), rng.integers(0, 100, (*shape[::-1], channels)).astype((">" if msb else "<") + kind)
        lines = [
            "ObjectType = Image", f"NDims = {n}", "BinaryData = True", f"BinaryDataByteOrderMSB = {msb}",
            "CompressedData = False", f"{matrix} = {' '.join(map(str, (columns / spacing)[:n, :n].T.ravel()))}",
            f"{origin} = {' '.join(map(str, (1.5, -20.25, 300.0)[:n]))}", f"DimSize = {' '.join(map(str, shape))}",
            f"{('ElementSpacing', 'ElementSize')[number % 2]} = {' '.join(map(str, spacing[:n]))}",
            f"ElementNumberOfChannels = {channels}", f"ElementType = MET_{MET[kind]}", "ElementDataFile = LOCAL",
        ]  # fmt: skip
        path = tmp_path / f"{number}.mha"
        path.write_bytes("\n".join([*lines, ""]).encode() + data.tobytes())
        try:
            volume = read_image(path)
        except UserError as problem:
            refusal = named(problem, path)
            assert "right angles" in refusal, (name, refusal)
            counts["refused"] += 1
            continue
        try:
            image = sitk.ReadImage(str(path))
        except RuntimeError:  # two dimensions of an oblique volume
            assert n == 2
            counts["2D that ITK refuses"] += 1
            continue
        if n == 3:
            affine = with_origin(np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing(), image.GetOrigin())
            same(volume, np.swapaxes(sitk.GetArrayFromImage(image), 0, 2).astype(np.float64), affine)
            counts["equal"] += 1
        if n == 3 and channels == 1:
            labels = rng.integers(0, 9, volume.geometry.shape)
            write_volume(tmp_path / "out.mha", labels, volume.geometry)
            again = sitk.ReadImage(str(tmp_path / "out.mha"))
            assert again.GetSize() == image.GetSize()
            for part in ("Origin", "Spacing", "Direction"):
                assert np.allclose(getattr(again, f"Get{part}")(), getattr(image, f"Get{part}")(), rtol=1e-6, atol=1e-6)
            assert np.array_equal(read_labels(tmp_path / "out.mha").array, labels)
            counts["written"] += 1
    print(counts)
    record_property("headers", dict(counts))
    assert sum(counts.values()) - counts["written"] <= 336
    assert counts["equal"] > 200
    assert counts["written"] > 150


def test_an_image_and_a_label_map_on_both_sides_of_a_tie_are_one_grid(tmp_path):
    """At 45 degrees rounding decides which axis is closest; the arrays are given one order all the same."""
    data = np.random.default_rng(0).integers(0, 9, SIZE).astype(np.int16)
    tie, turned_count = rotation(45, 20, 0) * [-1.0, 1.0, 1.0], 0
    for other in (
        rotation(45 - 1e-6, 20, 0),
        rotation(45 + 1e-6, 20, 0),
        rotation(45.01, 20, 0),
        rotation(44.99, 20, 0),
    ):
        for order in itertools.permutations(range(3)):
            nib.save(nib.Nifti1Image(data, with_origin(tie)), tmp_path / "image.nii.gz")
            turned = with_origin((other * [-1.0, 1.0, 1.0])[:, order])
            nib.save(nib.Nifti1Image(data.transpose(order), turned), tmp_path / "label.nii.gz")
            image, label = read_image(tmp_path / "image.nii.gz"), read_labels(tmp_path / "label.nii.gz")
            assert image.geometry.differences(label.geometry) == []
            assert label.geometry.differences(image.geometry) == []
            assert np.array_equal(label.on_axes_of(image.geometry).array, image.array[0])
            like = read_labels(tmp_path / "label.nii.gz", like=image.geometry)
            assert np.array_equal(like.array, image.array[0])
            assert geometry_of(tmp_path / "label.nii.gz") == label.geometry
            turned_count += label.array.shape != image.array[0].shape
            write_volume(tmp_path / "again.nii.gz", like.array, like.geometry)  # still in the order of its own file
            assert np.array_equal(np.asarray(nib.load(tmp_path / "again.nii.gz").dataobj), data.transpose(order))
    assert turned_count > 5
