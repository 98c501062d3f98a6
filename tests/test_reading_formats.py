"""NRRD and MetaImage: fields that their libraries read in silence, files of voxels beside a header, and SimpleITK."""

import gzip
import re
import zlib

import nrrd
import numpy as np
import pytest
import SimpleITK as sitk

from mre_lowshot.data.readers import read_header
from mre_lowshot.data.volume import Volume, read_image, read_labels, write_volume
from mre_lowshot.errors import UserError

ARRAY = np.random.default_rng(0).integers(0, 90, (4, 5, 6)).astype(np.int16)  # (k, j, i)
NRRD = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "6 5 4",
    "space directions": "(1,0,0) (0,1,0) (0,0,2)",
    "space origin": "(1,2,3)",
    "endian": "little",
    "encoding": "raw",
}
MHA = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "DimSize": "6 5 4",
    "ElementSpacing": "1 1 2",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "1 2 3",
    "ElementType": "MET_SHORT",
    "ElementDataFile": "LOCAL",
}


def changed(fields, changes):
    return {name: value for name, value in {**fields, **changes}.items() if value is not None}


def write_nrrd(path, data=None, **changes):
    fields = changed(NRRD, {name.replace("_", " "): value for name, value in changes.items()})
    text = "NRRD0005\n" + "".join(f"{name}: {value}\n" for name, value in fields.items()) + "\n"
    path.write_bytes(text.encode() + (ARRAY.tobytes() if data is None else data))
    return path


def write_mha(path, data=None, **changes):
    fields = changed(MHA, changes)
    end = {"ElementDataFile": fields.pop("ElementDataFile")}  # the last field, always
    text = "".join(f"{name} = {value}\n" for name, value in {**fields, **end}.items())
    path.write_bytes(text.encode() + (ARRAY.tobytes() if data is None else data))
    return path


def refusal(path, read=read_image):
    with pytest.raises(UserError) as problem:
        read(path)
    assert str(problem.value).startswith(str(path))
    return str(problem.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"space_units": '"um" "um" "um"'}, "positions in um"),
        ({"space_units": '"mm" "mm" "cm"'}, "positions in cm"),
        ({"space": "3D-left-handed"}, "its space is '3d-left-handed'"),
        ({"space": "right-anterior-superior-time", "dimension": "4", "sizes": "6 5 2 2"}, "4 dimensions|space"),
        ({"space_directions": "(1,0.3,0) (0,1,0) (0,0,2)"}, "not at right angles"),
        ({"space_directions": "(1,0,0) (0,1,0) (0,0,nan)"}, "voxel size"),
        ({"space_directions": "(1,0,0) (0,1,0) (0,0,1e9)"}, "voxel size"),
        ({"space_directions": "(1,0,0) (0,1,0)"}, "fewer than its axes|header"),
        ({"space_origin": "(nan,2,3)"}, "position of the first voxel"),
        ({"space_origin": "(1,2,3,4)"}, "space origin"),
        ({"sizes": "6 5 5"}, "specifies 300 bytes of voxels"),
        ({"sizes": "6 5 3"}, "60 more"),
        ({"sizes": "6 5 0"}, "must be 1 or more"),
        ({"sizes": "-6 -5 4"}, "must be 1 or more"),
        ({"sizes": "6 5"}, "dimension 3, but 2 sizes"),
        ({"type": "block"}, "NRRD type block"),
        ({"type": None}, "field 'type' is missing"),
        ({"endian": None}, "endian"),
        ({"encoding": "zstd"}, "encoding zstd"),
        ({"byte_skip": "-5"}, "byte skip -5"),
        ({"line_skip": "-1"}, "line skip -1"),
        ({"data_file": "../voxels.raw"}, "in another folder"),
        ({"data_file": "/etc/passwd"}, "in another folder"),
        ({"data_file": "LIST"}, "several files"),
        ({"data_file": "a%02d.raw 1 4 1"}, "several files"),
        ({"data_file": "absent.raw"}, "absent.raw, is missing"),
        ({"kinds": "domain vector domain"}, "first or the last axis"),
    ],
)
def test_nrrd_headers_that_are_refused(changes, words, tmp_path):
    path = write_nrrd(tmp_path / "a.nrrd", **changes)
    assert re.search(words, refusal(path))
    if not re.search("specifies|more|skip|missing$|folder|several|absent", words):
        assert re.search(words, refusal(path, read_header))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"DistanceUnits": "um"}, "positions in um"),
        ({"ElementToIntensityFunctionSlope": "2"}, "scales intensities"),
        ({"TransformMatrix": "1 0.3 0 0 1 0 0 0 1"}, "not at right angles"),
        ({"TransformMatrix": "1 0 0 0 1 0 0 0"}, "9 numbers are needed"),
        ({"ElementSpacing": "1 1 0"}, "voxel size"),
        ({"ElementSpacing": "1 1 inf"}, "voxel size"),
        ({"Offset": "1 2 inf"}, "position of the first voxel"),
        ({"Position": "1 2 4"}, "Offset and Position disagree"),
        ({"DimSize": "6 5 5"}, "specifies 300 bytes of voxels"),
        ({"DimSize": "6 5 3"}, "60 more"),
        ({"DimSize": "6 5 -4"}, "1 voxel or more"),
        ({"DimSize": "6 5"}, "for NDims 3"),
        ({"NDims": "4", "DimSize": "6 5 2 2"}, "has 4 dimensions"),
        ({"NDims": "x"}, "MetaImage header"),
        ({"ElementType": "MET_STRING"}, "ElementType MET_STRING"),
        ({"ElementNumberOfChannels": "0"}, "ElementNumberOfChannels 0"),
        ({"CompressedData": "True"}, "truncated or damaged|specifies"),
        ({"HeaderSize": "-7"}, "HeaderSize -7"),
        ({"ElementDataFile": "../a.raw"}, "in another folder"),
        ({"ElementDataFile": "LIST"}, "several files"),
        ({"ElementDataFile": "slice%03d.raw 1 4 1"}, "several files"),
        ({"ElementDataFile": "absent.raw"}, "absent.raw, is missing"),
    ],
)
def test_metaimage_headers_that_are_refused(changes, words, tmp_path):
    assert re.search(words, refusal(write_mha(tmp_path / "a.mha", **changes)))


def test_encodings_skips_and_files_of_voxels_beside_the_header(tmp_path):
    text = "\n".join(" ".join(map(str, row)) for row in ARRAY.reshape(-1, 6)).encode()
    (tmp_path / "voxels.raw").write_bytes(b"two\nlines\n" + ARRAY.tobytes())
    (tmp_path / "plain.raw").write_bytes(ARRAY.tobytes())
    (tmp_path / "packed.zraw").write_bytes(zlib.compress(ARRAY.tobytes()))
    files = [
        write_nrrd(tmp_path / "ascii.nrrd", text, encoding="ascii"),
        write_nrrd(tmp_path / "hex.nrrd", ARRAY.tobytes().hex().encode(), encoding="hex"),
        write_nrrd(tmp_path / "skipped.nrrd", b"x" * 40 + ARRAY.tobytes(), byte_skip="-1"),
        write_nrrd(tmp_path / "bytes.nrrd", gzip.compress(b"xxx" + ARRAY.tobytes()), encoding="gzip", byte_skip="3"),
        write_nrrd(tmp_path / "lines.nrrd", b"", data_file="voxels.raw", line_skip="2"),
        write_nrrd(tmp_path / "big.nrrd", ARRAY.astype(">i2").tobytes(), endian="big"),
        write_mha(tmp_path / "ascii.mha", text, BinaryData="False"),
        write_mha(tmp_path / "msb.mha", ARRAY.astype(">i2").tobytes(), BinaryDataByteOrderMSB="True"),
        write_mha(tmp_path / "beside.mhd", b"", ElementDataFile="plain.raw"),
        write_mha(tmp_path / "header.mhd", b"", ElementDataFile="voxels.raw", HeaderSize="-1"),
        write_mha(tmp_path / "packed.mhd", b"", ElementDataFile="packed.zraw", CompressedData="True"),
    ]
    for path in files:
        volume = read_labels(path)
        assert np.array_equal(volume.array, ARRAY), path
        assert (volume.geometry.spacing, volume.geometry.origin) == ((2.0, 1.0, 1.0), (1.0, 2.0, 3.0))
        assert volume.notes == ()


@pytest.mark.parametrize("first", [True, False])
def test_components_of_an_nrrd_voxel_are_channels(first, tmp_path):
    sizes, kinds, vectors = ["6", "5", "4"], ["domain"] * 3, ["(1,0,0)", "(0,1,0)", "(0,0,2)"]
    place = 0 if first else 3
    for values, new in ((sizes, "2"), (kinds, "vector"), (vectors, "none")):
        values.insert(place, new)
    both = np.stack([ARRAY, ARRAY + 1])
    data = np.moveaxis(both, 0, -1) if first else both
    path = write_nrrd(
        tmp_path / "a.nrrd", data.tobytes(), dimension="4", sizes=" ".join(sizes), kinds=" ".join(kinds),
        space_directions=" ".join(vectors),
    )  # fmt: skip
    assert np.array_equal(read_image(path).array, both)
    assert "colour image with 2 components" in refusal(path, read_labels)


def test_overlapping_segments_are_named(tmp_path):
    path = write_nrrd(
        tmp_path / "a.seg.nrrd", np.stack([ARRAY, ARRAY]).tobytes(), dimension="4", sizes="2 6 5 4",
        kinds="list domain domain domain", space_directions="none (1,0,0) (0,1,0) (0,0,2)", Segment0_ID="x",
    )  # fmt: skip
    text = path.read_bytes().replace(b"Segment0 ID: x", b"Segment0_ID:=x")
    path.write_bytes(text)
    assert "segments overlap" in refusal(path, read_labels)
    flat = write_nrrd(tmp_path / "b.seg.nrrd")
    assert np.array_equal(read_labels(flat).array, ARRAY)


def test_an_nrrd_without_a_patient_space_is_noted_and_written_as_it_was(tmp_path):
    plain = write_nrrd(tmp_path / "a.nrrd", space=None, space_directions=None, space_origin=None, spacings="1 1 2")
    volume = read_image(plain)
    assert volume.geometry.spacing == (2.0, 1.0, 1.0)
    assert "orientation unknown: the space is not given" in volume.notes[0]
    write_volume(tmp_path / "b.nrrd", ARRAY.astype(int), volume.geometry)
    _, fields = nrrd.read(str(tmp_path / "b.nrrd"))
    assert "space" not in fields
    assert list(fields["spacings"]) == [1, 1, 2]
    units = write_nrrd(tmp_path / "c.nrrd", space="RAS", space_units='"mm" "mm" "mm"')
    write_volume(tmp_path / "d.nrrd", ARRAY.astype(int), read_image(units).geometry)
    assert b"space: RAS\nspace directions: (1,0,0) (0,1,0) (0,0,2)\nspace origin: (1,2,3)\n" in (
        (tmp_path / "d.nrrd").read_bytes().replace(b'space units: "mm" "mm" "mm"\n', b"")
    )
    other = write_volume(tmp_path / "d.nii.gz", ARRAY.astype(int), read_image(units).geometry)  # another format
    assert other is None
    assert not read_image(tmp_path / "d.nii.gz").geometry.differences(read_image(units).geometry)


def test_a_2d_nrrd_in_space_keeps_its_place(tmp_path):
    path = write_nrrd(
        tmp_path / "a.nrrd", ARRAY[0].tobytes(), dimension="2", sizes="6 5", space_directions="(1,0,0) (0,1,0)",
        space_origin="(1,2,37)",
    )  # fmt: skip
    volume = read_image(path)
    assert (volume.array.shape, volume.geometry.origin, volume.geometry.dimensions) == ((1, 1, 5, 6), (1, 2, 37), 2)
    write_volume(tmp_path / "b.nrrd", volume.array[0].astype(int), volume.geometry)
    data, fields = nrrd.read(str(tmp_path / "b.nrrd"))
    assert data.shape == (6, 5)
    assert list(fields["space origin"]) == [1, 2, 37]


def test_simpleitk_images_go_there_and_back_in_any_direction():
    rng = np.random.default_rng(3)
    for number in range(40):
        turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        image = sitk.GetImageFromArray(ARRAY.astype(np.float32))
        image.SetDirection(turn.ravel().tolist())
        image.SetSpacing((0.7, 1.1, 2.0))
        image.SetOrigin((5.0, -6.0, 7.0 + number))
        again = Volume.from_sitk(image).to_sitk()
        assert np.array_equal(sitk.GetArrayFromImage(again), ARRAY)
        for part in ("Direction", "Spacing", "Origin"):
            assert np.allclose(getattr(again, f"Get{part}")(), getattr(image, f"Get{part}")(), atol=1e-9)
    with pytest.raises(UserError, match="voxels of type complex"):
        Volume.from_sitk(sitk.Image([3, 3, 3], sitk.sitkComplexFloat32))


def test_fields_of_other_programs_in_a_metaimage_are_ignored(tmp_path):
    """SimpleITK writes the fields of a converted NIfTI or DICOM file into the header."""
    image = sitk.GetImageFromArray(ARRAY)
    for name in ("dim[0]", "pixdim[1]", "0008|0060", "ITK_FileNotes", "a-b.c (x)"):
        image.SetMetaData(name, "3")
    sitk.WriteImage(image, str(tmp_path / "a.mha"))
    assert b"dim[0] = 3" in (tmp_path / "a.mha").read_bytes()
    assert (read_image(tmp_path / "a.mha").array[0] == ARRAY).all()


@pytest.mark.parametrize("name", ["ElementSpacinf", "TransformMatrhx", "BinaryDataByteOrderMSC", "Offseu"])
def test_a_field_that_is_misspelt_in_one_letter_is_damage(tmp_path, name):
    path = write_mha(tmp_path / "a.mha", **{name: "1 1 1"})
    assert f"its header has the line '{name} = 1 1 1'; it is truncated or damaged" in refusal(path)


def test_a_flag_is_true_or_false(tmp_path):
    path = write_mha(tmp_path / "a.mha", BinaryDataByteOrderMSB="Galse")
    assert "BinaryDataByteOrderMSB is 'Galse', neither True nor False" in refusal(path)
