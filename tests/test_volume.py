"""Reading and writing: on the file's own grid, bit for bit, in every orientation and format."""

import gzip
import itertools
import os
import stat
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.readers import READABLE_ENDINGS, file_ending
from mre_lowshot.data.volume import Volume, geometry_of, read_channels, read_image, read_labels, write_volume
from mre_lowshot.errors import UserError

CODES = [
    "".join(letters[turn >> position & 1] for position, letters in enumerate(order))
    for order in itertools.permutations(("RL", "AP", "IS"))
    for turn in range(8)
]
VOLUMES = (".nii.gz", ".nii", ".nrrd", ".mha")
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
OBLIQUE = (0.9, -0.3, 0.31622777, 0.1, 0.9, 0.42426407, -0.41231056, -0.35, 0.84)


def labels(shape=(4, 5, 6), high=7, seed=0):
    return np.random.default_rng(seed).integers(0, high, shape)


def sitk_image(array, code="LPS", spacing=(0.7, 1.3, 3.1), direction=IDENTITY):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin((10.5, -20.25, 7.0))
    image.SetDirection(direction)
    return sitk.DICOMOrient(image, code)


def same_grid(one, other, tolerance=1e-4):
    return one.GetSize() == other.GetSize() and all(
        np.allclose(getattr(one, f"Get{part}")(), getattr(other, f"Get{part}")(), atol=tolerance)
        for part in ("Spacing", "Origin", "Direction")
    )


def read_and_rewrite(path, image):
    """Write ``image`` with SimpleITK, read it with ours, write it with ours: (what was read, the second file)."""
    sitk.WriteImage(image, str(path))
    volume = read_labels(path)
    out = path.with_name(f"again_{path.name}")
    write_volume(out, volume.array, volume.geometry)
    return volume, sitk.ReadImage(str(out))


@pytest.mark.parametrize("code", CODES)
def test_every_orientation_is_lps_inside_and_written_as_it_was_read(code, tmp_path):
    lps = labels()
    image = sitk_image(lps.astype(np.uint8), code)
    volume, again = read_and_rewrite(tmp_path / "a.nrrd", image)
    assert np.array_equal(volume.array, lps)
    assert volume.geometry.orientation == code
    assert volume.geometry.spacing == pytest.approx((3.1, 1.3, 0.7))
    assert same_grid(image, again)
    assert np.array_equal(sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(again))


@pytest.mark.parametrize("ending", VOLUMES)
@pytest.mark.parametrize("code", ["LPS", "RAS", "PIR", "SAL"])
def test_every_volume_format_is_written_as_it_was_read(ending, code, tmp_path):
    image = sitk_image(labels(high=300).astype(np.uint16), code)
    volume, again = read_and_rewrite(tmp_path / f"a{ending}", image)
    assert same_grid(image, again)
    assert np.array_equal(sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(again))
    assert not volume.geometry.differences(geometry_of(tmp_path / f"again_a{ending}"))


def test_an_oblique_scan_keeps_its_direction(tmp_path):
    turn, _ = np.linalg.qr(np.reshape(OBLIQUE, (3, 3)))
    for number, flip in enumerate(((1, 1, 1), (-1, 1, -1), (1, -1, 1))):
        image = sitk_image(labels().astype(np.uint8))
        image.SetDirection((turn * flip).ravel().tolist())
        _, again = read_and_rewrite(tmp_path / f"{number}.nii.gz", image)
        assert same_grid(image, again)
        assert np.array_equal(sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(again))


@pytest.mark.parametrize("ending", [".png", ".tif", ".tiff"])
def test_a_2d_label_map_is_written_as_2d(ending, tmp_path):
    array = labels((1, 5, 6))
    write_volume(tmp_path / f"a{ending}", array, Geometry((1, 5, 6), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), IDENTITY))
    assert sitk.ReadImage(str(tmp_path / f"a{ending}")).GetDimension() == 2
    assert np.array_equal(read_labels(tmp_path / f"a{ending}").array, array)


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_a_volume_is_never_written_to_a_2d_format_with_slices_missing(ending, tmp_path):
    path, array = tmp_path / f"a{ending}", labels()
    try:
        write_volume(path, array, Geometry((4, 5, 6), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), IDENTITY))
    except UserError:
        assert not path.exists()
    else:
        assert np.array_equal(read_labels(path).array, array)


def test_a_detached_header_is_written_with_its_data(tmp_path):
    write_volume(tmp_path / "a.mhd", labels(), Geometry((4, 5, 6), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), IDENTITY))
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []
    assert np.array_equal(read_labels(tmp_path / "a.mhd").array, labels())


def test_a_colour_image_is_three_channels_and_no_label_map(tmp_path):
    colour = labels((5, 6, 3), 255).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(colour, isVector=True), str(tmp_path / "a.png"))
    volume = read_image(tmp_path / "a.png")
    assert volume.array.dtype == np.float32
    assert np.array_equal(volume.array, np.moveaxis(colour, -1, 0)[:, None])
    with pytest.raises(UserError, match="colour image with 3 components"):
        read_labels(tmp_path / "a.png")


def test_types_are_the_smallest_that_hold_the_labels_and_files_are_compressed(tmp_path):
    grid = Geometry((4, 50, 60), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), IDENTITY)
    for high, kind in ((255, sitk.sitkUInt8), (256, sitk.sitkUInt16)):
        array = np.zeros(grid.shape, np.int32)
        array[0, 0, 0] = high
        for ending in (".nii.gz", ".nrrd", ".mha"):
            path = tmp_path / f"{high}{ending}"
            write_volume(path, array, grid)
            assert sitk.ReadImage(str(path)).GetPixelID() == kind
            assert path.stat().st_size < 1500
    write_volume(tmp_path / "image.nrrd", np.full(grid.shape, 0.5), grid)
    assert sitk.ReadImage(str(tmp_path / "image.nrrd")).GetPixelID() == sitk.sitkFloat32


def test_geometry_is_kept_in_json_and_differences_are_named():
    one = Geometry((4, 5, 6), (3.0, 1.0, 1.0), (0.0, 0.0, 0.0), IDENTITY, "RAS")
    assert Geometry.from_json(one.to_json()) == one
    shifted = Geometry((4, 5, 6), (2.5, 1.0, 1.0), (0.0, 7.0, 0.0), IDENTITY, "LPS")
    assert one.differences(shifted) == [
        "spacing (3.0, 1.0, 1.0) against (2.5, 1.0, 1.0)",
        "origin (0.0, 0.0, 0.0) against (0.0, 7.0, 0.0)",
    ]
    nearly = Geometry((4, 5, 6), (3.00004, 1.0, 1.0), (0.0004, 0.0, 0.0), IDENTITY, "RAS")
    assert one.differences(nearly) == []
    assert one.differences(Geometry((4, 5, 7), *list(one.__dict__.values())[1:])) == [
        "size (4, 5, 6) against (4, 5, 7) (z, y, x)"
    ]


def test_a_grid_stored_in_two_orders_of_axes_is_the_same_grid(tmp_path):
    image = sitk.DICOMOrient(sitk_image(labels()), "LPS")
    sitk.WriteImage(image, str(tmp_path / "lps.nii.gz"))
    sitk.WriteImage(sitk.DICOMOrient(image, "RAS"), str(tmp_path / "ras.nii.gz"))
    one, other = (read_labels(tmp_path / f"{code}.nii.gz") for code in ("lps", "ras"))
    assert one.geometry.orientation != other.geometry.orientation
    assert one.geometry.differences(other.geometry) == []
    assert np.array_equal(one.array, other.array)


def test_channels_of_one_case_must_lie_on_one_grid(tmp_path):
    for name, spacing in (("a_0000", (1, 1, 3)), ("a_0001", (1, 1, 3)), ("b_0001", (1, 1, 2.5))):
        sitk.WriteImage(sitk_image(labels().astype(np.float32), spacing=spacing), f"{tmp_path}/{name}.mha")
    stacked = read_channels([tmp_path / "a_0000.mha", tmp_path / "a_0001.mha"])
    assert stacked.array.shape == (2, 4, 5, 6)
    with pytest.raises(UserError, match=r"b_0001\.mha: is not on the grid of a_0000\.mha: spacing \(3\.0"):
        read_channels([tmp_path / "a_0000.mha", tmp_path / "b_0001.mha"])


def test_unreadable_files_are_reported_by_name(tmp_path):
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4, 5), np.uint8), isVector=False), f"{tmp_path}/film.nii.gz")
    sitk.WriteImage(sitk.GetImageFromArray(np.full((2, 3, 4), 1.5, np.float32)), str(tmp_path / "half.nii.gz"))
    for name, words in (("absent", "is missing"), ("broken", "(cannot be read|damaged)"), ("film", "4 dimensions")):
        with pytest.raises(UserError, match=rf"{name}\.nii\.gz: .*{words}"):
            read_image(tmp_path / f"{name}.nii.gz")
    with pytest.raises(UserError, match=r"half.*24 label voxels are not whole numbers.*1\.5.*nearest neighbour"):
        read_labels(tmp_path / "half.nii.gz")
    for ending in (".jpg", ".bmp"):  # BMP would be read as colour, JPEG as other labels
        with pytest.raises(UserError, match="unknown image ending"):
            write_volume(tmp_path / f"a{ending}", labels(), Geometry((4, 5, 6), (1.0,) * 3, (0.0,) * 3, IDENTITY))


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".png", ".tif"])
@pytest.mark.parametrize("share", [0.95, 0.5])
def test_a_truncated_file_is_never_read_as_if_it_were_complete(ending, share, tmp_path):
    """As after a broken download: ITK fills the missing part of a NIfTI file with zeros, without a message."""
    is_2d = ending in (".png", ".tif")
    image = sitk.GetImageFromArray(labels((40, 50) if is_2d else (9, 40, 50), 200).astype(np.uint8))
    path = tmp_path / f"a{ending}"
    sitk.WriteImage(image, str(path))
    assert np.array_equal(read_image(path).array.squeeze(), sitk.GetArrayFromImage(image))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match=rf"a{ending}"):
        read_image(path)


@pytest.mark.parametrize("name", ["members", "longer"])
def test_unusual_but_complete_nifti_files_are_read(name, tmp_path):
    array, path = labels((9, 40, 50), 200), tmp_path / "a.nii"
    sitk.WriteImage(sitk.GetImageFromArray(array.astype(np.uint8)), str(path))
    data = path.read_bytes()
    if name == "members":  # bgzip and pigz write gzip files of several members
        path = tmp_path / "a.nii.gz"
        path.write_bytes(gzip.compress(data[:5000]) + gzip.compress(data[5000:]) + gzip.compress(b""))
    else:
        sitk.WriteImage(sitk.GetImageFromArray(array.astype(np.float32)), str(path))
        path.write_bytes(path.read_bytes() + b"\xff" * 300)  # read as floats, these bytes would be NaN
    assert np.array_equal(read_image(path).array[0], array)


def test_axes_that_are_not_at_right_angles_are_reported_as_such(tmp_path):
    path = tmp_path / "a.nii"
    sitk.WriteImage(sitk.GetImageFromArray(labels().astype(np.uint8)), str(path))
    data = bytearray(path.read_bytes())
    struct.pack_into("<hh", data, 252, 0, 1)  # qform_code, sform_code
    struct.pack_into("<12f", data, 280, 1, 0.2, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0)  # srow_x, srow_y, srow_z
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.nii: its axes are not at right angles .*resample it"):
        read_image(path)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_nan_and_infinities_are_refused(kind, ending, tmp_path):
    array = labels().astype(kind)
    array[0, 0, :2] = np.nan, np.inf
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / f"a{ending}"))
    with pytest.raises(UserError, match=rf"a{ending} has 2 voxel\(s\) that are NaN or infinite"):
        read_image(tmp_path / f"a{ending}")


@pytest.mark.parametrize("ending", READABLE_ENDINGS)
def test_the_ending_is_found_whatever_the_name(ending):
    assert file_ending(Path(f"in.nii/case.v1.2{ending}")) == ending
    assert file_ending(Path(f"CASE{ending.upper()}")) == ending
    assert file_ending(Path(f"case{ending}.json")) == ""


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    grid, path = Geometry((4, 5, 6), (1.0,) * 3, (0.0,) * 3, IDENTITY), tmp_path / "deep" / "a.nii.gz"

    class Interrupted:
        def compress(self, data):
            raise KeyboardInterrupt

    for old in (None, labels()):
        if old is not None:
            write_volume(path, old, grid)
        with monkeypatch.context() as patch:
            patch.setattr("zlib.compressobj", lambda *_: Interrupted())
            with pytest.raises(KeyboardInterrupt):
                write_volume(path, labels(seed=1), grid)
        assert [p.name for p in path.parent.iterdir()] == ([] if old is None else ["a.nii.gz"])
    assert np.array_equal(read_labels(path).array, labels())


def test_files_are_readable_by_others(tmp_path):
    old = os.umask(0o022)
    try:
        write_volume(tmp_path / "a.nii.gz", labels(), Geometry((4, 5, 6), (1.0,) * 3, (0.0,) * 3, IDENTITY))
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a.nii.gz").stat().st_mode) == 0o644


def test_a_volume_is_made_of_an_array_or_a_simpleitk_image_and_given_back(tmp_path):
    lps = labels().astype(np.float32)
    image = sitk_image(lps, "RAS")
    read, given = Volume.from_sitk(image), Volume.from_array(lps, (3.1, 1.3, 0.7))
    assert np.array_equal(read.array, lps[None])
    assert np.array_equal(given.array, lps[None])
    assert (read.geometry.orientation, given.geometry.orientation) == ("RAS", "LPS")
    assert read.geometry.spacing == pytest.approx(given.geometry.spacing)
    assert same_grid(read.to_sitk(), image)
    assert np.array_equal(sitk.GetArrayFromImage(read.to_sitk()), sitk.GetArrayFromImage(image))
    read.save(tmp_path / "a.nii.gz")
    assert same_grid(sitk.ReadImage(str(tmp_path / "a.nii.gz")), image)
    assert np.array_equal(Volume.read(tmp_path / "a.nii.gz", tmp_path / "a.nii.gz").array, np.stack([lps, lps]))
    colour = Volume.from_array(np.stack([lps, lps]), (1, 1, 1))
    with pytest.raises(UserError, match="2 channels; save each channel to its own file"):
        colour.save(tmp_path / "b.nii.gz")
    with pytest.raises(UserError, match="2 channels has no single SimpleITK image"):
        colour.to_sitk()
    with pytest.raises(UserError, match=r"array of shape \(5, 6\): an image is"):
        Volume.from_array(lps[0], (1, 1, 1))
    with pytest.raises(UserError, match=r"spacing \(1\.0, 0\.0, 1\.0\): give three numbers from 1e-06"):
        Volume.from_array(lps, (1, 0, 1))
