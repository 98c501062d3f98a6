"""What is read, refused or noted: the file named and no other, contradictory headers, misnamed files, label values."""

import gzip
import os
import re
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import command

from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.readers import read_header
from mre_lowshot.data.volume import geometry_of, read_channels, read_image, read_labels, write_volume
from mre_lowshot.errors import UserError

AFFINE = np.array([[-0.8, 0, 0, 90], [0, 0.8, 0, -120], [0, 0, 2.5, 37], [0, 0, 0, 1.0]])


def array(high=9, kind=np.uint8, shape=(4, 5, 6), seed=0):
    return np.random.default_rng(seed).integers(0, high, shape).astype(kind)


def nifti(path, data=None, affine=AFFINE, version=nib.Nifti1Image, **fields):
    """Write a NIfTI file with these header fields, as they are."""
    image = version(array() if data is None else data, affine, dtype=(data if data is not None else array()).dtype)
    content = bytearray(image.to_bytes())
    size = 348 if version is nib.Nifti1Image else 540
    header = image.header_class(bytes(content[:size]), check=False)
    for name, value in fields.items():
        header[name] = value
    content[:size] = header.binaryblock
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def refusal(path, read=read_image):
    with pytest.raises(UserError) as problem:
        read(path)
    assert str(problem.value).startswith(str(path))
    return str(problem.value)


@pytest.mark.parametrize("endings", [(".nii.gz", ".nii"), (".nii", ".nii.gz"), (".mha", ".mhd"), (".nrrd", ".nii.gz")])
def test_the_file_named_is_read_whatever_lies_beside_it(endings, tmp_path):
    for seed, ending in enumerate(endings):
        write_volume(tmp_path / f"a{ending}", array(seed=seed).astype(int), Geometry((4, 5, 6), (3.0 + seed, 1, 1)))
    for seed, ending in enumerate(endings):
        volume = read_labels(tmp_path / f"a{ending}")
        assert np.array_equal(volume.array, array(seed=seed))
        assert volume.geometry.spacing == (3.0 + seed, 1.0, 1.0)


def moved(by):
    other = AFFINE.copy()
    other[2, 3] += by
    return other


NOTES = {
    "moved": ({"srow_z": [0, 0, 2.5, 57]}, r"sform and qform disagree \(origin .*57.* against .*37"),
    "mirrored": ({"srow_x": [0.8, 0, 0, -90]}, "sform and qform disagree"),
    "both codes 0": ({"qform_code": 0, "sform_code": 0}, "orientation unknown: qform_code and sform_code are 0"),
    "scale": ({"pixdim": [-1, 0.8, 0.8, 5, 0, 0, 0, 0]}, r"voxel size of the sform \(0\.8, 0\.8, 2\.5\) mm differs"),
    "negative pixdim": (
        {"pixdim": [-1, -0.8, 0.8, 2.5, 0, 0, 0, 0], "sform_code": 0},
        "negative values; their amounts",
    ),
    "zero pixdim": ({"pixdim": [-1, 0, 0, 0, 0, 0, 0, 0], "qform_code": 0}, "holds zeros or no numbers"),
    "qfac": ({"pixdim": [0, 0.8, 0.8, 2.5, 0, 0, 0, 0], "sform_code": 0}, r"qfac \(pixdim\[0\]\) is 0, not 1 or -1"),
    "unknown code": ({"sform_code": 99}, "sform_code 99 is unknown; it is taken as 0"),
    "quaternion": ({"quatern_b": 3.0}, "the qform is invalid"),
}


@pytest.mark.parametrize("name", NOTES)
@pytest.mark.parametrize("version", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_contradictory_header_is_noted_read_as_nibabel_does_and_kept(name, version, tmp_path):
    fields, words = NOTES[name]
    path = nifti(tmp_path / "a.nii.gz", version=version, **{"qform_code": 1, "sform_code": 1, **fields})
    volume, image = read_image(path), nib.load(path)
    assert re.search(words, " ".join(volume.notes))
    assert read_header(path).notes == volume.notes
    corner = volume.geometry.file_grid().affine()
    assert np.allclose(np.diag([-1, -1, 1, 1]) @ corner, image.affine, atol=1e-5)
    grid = Geometry.from_json(volume.geometry.to_json())  # as in a prepared case
    write_volume(tmp_path / "b.nii.gz", array().T.astype(int), grid)
    written, size = gzip.decompress((tmp_path / "b.nii.gz").read_bytes()), 348 if version is nib.Nifti1Image else 540
    own = gzip.decompress(path.read_bytes())
    for part in ((76, 108), (252, 328)) if size == 348 else ((104, 168), (344, 508)):  # pixdim; both forms
        assert written[slice(*part)] == own[slice(*part)]
    assert (tmp_path / "b.nii.gz").read_bytes()[4:8] == bytes(4)  # no time: equal maps make equal files


def test_notes_of_several_channels_name_the_file(tmp_path):
    paths = [nifti(tmp_path / f"a_000{n}.nii", qform_code=1, srow_z=[0, 0, 2.5, 57]) for n in (0, 1)]
    assert [note.split(":")[0] for note in read_channels(paths).notes] == ["a_0000.nii", "a_0001.nii"]
    assert read_channels([nifti(tmp_path / "b.nii")]).notes == ()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"srow_x": [-0.8, 0.4, 0, 90]}, "not at right angles .*this is its sform; to use the qform, set sform_code"),
        ({"srow_z": [0, 0, 2.5, np.nan]}, "position of the first voxel"),
        ({"srow_z": [0, 0, 2.5, 1e30]}, "position of the first voxel"),
        ({"srow_z": [0, 0, 1000, 37]}, "voxel size of .*1000"),
        ({"srow_z": [0, 0, 0, 37]}, "voxel size of .*0.0"),
        ({"xyzt_units": 1}, "positions in metres"),
        ({"xyzt_units": 3}, "positions in micrometres"),
        ({"scl_slope": 2, "scl_inter": np.inf}, "scl_slope 2, scl_inter inf"),
        ({"datatype": 32, "bitpix": 64}, "voxels of type complex.*magnitude"),
        ({"datatype": 1, "bitpix": 1}, "voxels of type 1 bit"),
        ({"datatype": 1536, "bitpix": 128}, "128-bit float"),
        ({"datatype": 999}, "unknown datatype 999"),
        ({"bitpix": 16}, "bitpix 16"),
        ({"dim": [3, -4, 5, 6, 1, 1, 1, 1]}, "1 voxel or more"),
        ({"dim": [3, 0, 5, 6, 1, 1, 1, 1]}, "1 voxel or more"),
        ({"dim": [9, 4, 5, 6, 1, 1, 1, 1]}, "1 to 7 dimensions"),
        ({"dim": [4, 4, 5, 3, 2, 1, 1, 1]}, "has 4 dimensions"),
        ({"dim": [3, 4, 5, 5, 1, 1, 1, 1]}, "holds 20 more"),
        ({"vox_offset": 0}, "vox_offset is 0"),
        ({"vox_offset": np.nan}, "vox_offset is nan"),
        ({"magic": b"ni1"}, r"\.hdr/\.img pair"),
        ({"magic": b""}, "Analyze 7.5"),
    ],
)
def test_headers_that_are_refused(fields, words, tmp_path):
    path = nifti(tmp_path / "a.nii", **{"qform_code": 1, "sform_code": 1, **fields})
    assert re.search(words, refusal(path))


CONTENTS = {
    "plain.nii.gz": (lambda good: good, "rename it to plain.nii"),
    "packed.nii": (gzip.compress, r"rename it to packed\.nii\.gz"),
    "page.nii.gz": (lambda _: b"<!DOCTYPE html><html>", "looks like a web page"),
    "text.nii": (lambda _: b"not found\n", "looks like a text file"),
    "zip.nii.gz": (lambda _: b"PK\x03\x04" + bytes(600), "looks like a zip archive"),
    "dicom.nii": (lambda _: bytes(128) + b"DICM" + b"\1" * 600, "looks like a DICOM file.*dcm2niix"),
    "lfs.nii.gz": (lambda _: b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "empty.nii.gz": (lambda _: b"", "the file is empty"),
    "zeros.nii": (lambda _: bytes(1000), "looks like a file of zeros"),
    "png.nrrd": (lambda _: b"\x89PNG\r\n\x1a\n" + bytes(99), "not an NRRD file but looks like a PNG image"),
    "nifti.mha": (lambda good: good, "not a MetaImage file but looks like a NIfTI-1 file"),
    "jpeg.png": (lambda _: b"\xff\xd8\xff\xe0" + bytes(99), "not a PNG file but looks like a JPEG image"),
    "nrrd.tif": (lambda _: b"NRRD0004\n" + bytes(99), "not a TIFF file but looks like an NRRD file"),
    "unknown.img": (lambda good: good, "unknown image ending; it looks like a NIfTI-1 file"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_a_misnamed_file_is_refused_with_what_it_looks_like(name, tmp_path):
    change, words = CONTENTS[name]
    good = nifti(tmp_path / "good.nii").read_bytes()
    (tmp_path / name).write_bytes(change(good))
    assert re.search(words, refusal(tmp_path / name))


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    good = nifti(tmp_path / "good.nii")
    (tmp_path / "link.nii").symlink_to(tmp_path / "away" / "gone.nii")
    (tmp_path / "folder.nii").mkdir()
    os.mkfifo(tmp_path / "pipe.nii")
    for name, words in (
        ("link.nii", "symbolic link to .*gone.nii, which does not exist"), ("folder.nii", "is a folder"),
        ("pipe.nii", "a device or a pipe"), ("absent.nii", "is missing"), ("good.nii/x.nii", "is missing"),
    ):  # fmt: skip
        assert re.search(words, refusal(tmp_path / name))
    (tmp_path / "works.nii").symlink_to(good)
    assert np.array_equal(read_labels(tmp_path / "works.nii").array, read_labels(good).array)
    if os.geteuid():
        good.chmod(0)
        assert "permission denied" in refusal(good)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha", ".mhd", ".png", ".tif"])
def test_names_that_are_not_utf8_or_very_long_are_read_and_written(ending, tmp_path):
    grid = Geometry((1, 5, 6), (1.0, 1.0, 1.0), dimensions=2)
    for stem in (os.fsdecode(b"caf\xe9"), "x" * (250 - len(ending) - 1), "two words", "ä日"):
        path = tmp_path / f"{stem}{ending}"
        write_volume(path, array()[:1, :, :6].astype(int).reshape(1, 5, 6), grid)
        assert np.array_equal(read_labels(path).array, array()[:1])
        assert geometry_of(path).shape == (1, 5, 6)


def test_label_values_are_kept_or_refused(tmp_path):
    big = array(kind=np.int64)
    big[0, 0, 0] = 2**32 + 1
    assert f"label value {2**32 + 1} is beyond 32 bits" in refusal(nifti(tmp_path / "a.nii", big), read_labels)
    for value in (70_000, -1):
        labels = np.zeros((4, 5, 6), np.int32)
        labels[0, 0, 0] = value
        with pytest.raises(UserError, match=f"label value {value}: a label map holds 0 to 65535"):
            write_volume(tmp_path / "b.nii.gz", labels, Geometry((4, 5, 6), (1.0, 1.0, 1.0)))
    scaled = nifti(tmp_path / "c.nii", scl_slope=2, scl_inter=1)
    assert set(np.unique(read_labels(scaled).array)) == {2 * v + 1 for v in np.unique(array())}
    assert "not whole numbers" in refusal(nifti(tmp_path / "d.nii", scl_slope=0.3, scl_inter=0), read_labels)
    for slope in (0, np.nan):
        plain = nifti(tmp_path / "e.nii", scl_slope=slope, scl_inter=5)
        assert set(np.unique(read_labels(plain).array)) == set(np.unique(array()))
    assert "values beyond 3.4e+38" in refusal(nifti(tmp_path / "f.nii", np.full((2, 3, 4), 1e300)))


def test_colours_and_vectors_of_nifti_are_channels(tmp_path):
    kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    colours = array(255, shape=(4, 5, 6, 3))
    path = nifti(tmp_path / "rgb.nii", colours.view(kind).reshape(4, 5, 6))
    read = read_image(path)
    assert read.array.shape == (3, 6, 5, 4)
    assert np.array_equal(read.array, colours.transpose(3, 2, 1, 0)[:, :, ::-1])  # the file's y axis runs anterior
    assert "colour image with 3 components" in refusal(path, read_labels)
    vectors = nifti(tmp_path / "vector.nii", array(99, np.int16, (4, 5, 6, 1, 2)))
    assert read_image(vectors).array.shape == (2, 6, 5, 4)
    assert (read_header(vectors).components, read_header(vectors).dtype) == (2, np.dtype("<i2"))


def test_a_2d_file_keeps_its_place(tmp_path):
    path = nifti(tmp_path / "a.nii.gz", array(shape=(7, 5)))
    volume = read_image(path)
    assert (volume.array.shape, volume.geometry.dimensions, volume.geometry.origin[2]) == ((1, 1, 5, 7), 2, 37.0)
    write_volume(tmp_path / "b.nii.gz", volume.array[0].astype(int), volume.geometry)
    assert nib.load(tmp_path / "b.nii.gz").shape == (7, 5)
    assert np.array_equal(nib.load(tmp_path / "b.nii.gz").affine, nib.load(path).affine)


def test_a_user_script_without_a_main_guard_reads_png(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(array(shape=(5, 6))), str(tmp_path / "a.png"))
    (tmp_path / "script.py").write_text(
        "from mre_lowshot import Volume\nprint(Volume.read('a.png').array.shape)\n", encoding="utf-8"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("(1, 1, 5, 6)\n", 0)


@pytest.mark.usefixtures("no_settings")
@pytest.mark.parametrize("lost", ["reference", "prediction"])
def test_a_label_map_without_a_header_needs_the_header_and_no_resampling(tmp_path, capsys, lost):
    for folder in ("reference", "prediction"):
        (tmp_path / folder).mkdir()
        nifti(tmp_path / folder / "a.nii.gz", affine=np.eye(4) if folder == lost else AFFINE)
    assert command("evaluate", tmp_path / "reference", tmp_path / "prediction") != 0
    shown = "".join(capsys.readouterr())
    assert f"the {lost} has lost its position, so resample neither; copy the header of the other" in shown
    assert f"s.WriteImage(m, '{lost}/a.nii.gz', True)" in shown
    assert "resample it onto" not in shown


def test_a_channel_without_a_header_needs_the_header_of_the_other(tmp_path):
    for number, affine in enumerate((AFFINE, np.eye(4))):
        nifti(tmp_path / f"a_000{number}.nii.gz", affine=affine)
    with pytest.raises(UserError, match=r"channel a_0001.nii.gz has lost its position.*copy the header of the other"):
        read_channels([tmp_path / "a_0000.nii.gz", tmp_path / "a_0001.nii.gz"])
