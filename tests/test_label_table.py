"""Names and colours in NIfTI label maps and beside them, read by nibabel, SimpleITK and parsers of the tests."""

import csv
import re
import shlex
import xml.etree.ElementTree as ET

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from mre_lowshot.data.label_table import LabelTable
from mre_lowshot.data.volume import Volume, read_image, read_labels

LABELS = {"background": 0, "liver": 1, "left kidney": 2, "Milz (ü) <&\"'>": 3}
COLOURS = {1: "#ff8000", 2: "#0000ff", 3: "#804020"}
TABLE = LabelTable.of(LABELS, COLOURS)


def scan(path, affine, kind=nib.Nifti1Image, shape=(5, 6, 7)):
    """A NIfTI scan with a header whose fields differ from the usual ones; returns the path."""
    image = kind(np.arange(np.prod(shape), dtype=np.int16).reshape(shape), affine)
    image.set_qform(affine, code=2)
    image.set_sform(affine, code=3)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, path)
    return path


OBLIQUE = np.array([[-1.9, 0.3, 0.1, 11], [0.3, 1.9, -0.2, -40], [0.12, 0.17, 2.99, 700], [0, 0, 0, 1.0]])
OBLIQUE[:3, :3] = np.linalg.qr(OBLIQUE[:3, :3])[0] * [2.0, 1.5, 3.0]
AFFINES = {"RAS": np.diag([1, 2, 3, 1.0]), "LPI": np.diag([-1, -2, -3, 1.0]), "oblique": OBLIQUE}


def itksnap(text):
    """Index -> (colour, visible, name) of a label description file, read as ITK-SNAP reads it."""
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            numbers, _, rest = line.partition('"')
            index, red, green, blue, alpha, visible, mesh = numbers.split()
            assert rest.count('"') == 1
            found[int(index)] = ((int(red), int(green), int(blue)), (float(alpha), visible, mesh), rest[:-1])
    return found


def extension_of(path):
    """The codes of the extensions of a NIfTI file, which hold the same, and the names and colours."""
    extensions = nib.load(path).header.extensions
    assert len({extension.content for extension in extensions}) == 1
    root = ET.fromstring(extensions[0].get_content())  # as TotalSegmentator reads it
    assert root.tag == "CaretExtension"
    assert root.findtext("VolumeInformation/VolumeType") == "Label"
    rows = root.findall("VolumeInformation/LabelTable/Label")
    return extensions.get_codes(), {
        int(row.get("Key")): (row.text, [float(row.get(c)) for c in ("Red", "Green", "Blue", "Alpha")]) for row in rows
    }


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("orientation", AFFINES)
def test_a_label_map_holds_names_and_colours_and_the_scans_own_grid(tmp_path, orientation, kind, ending):
    source = scan(tmp_path / f"scan{ending}", AFFINES[orientation], kind)
    volume = read_image(source)
    labels = Volume(np.random.default_rng(1).integers(0, 4, volume.geometry.shape).astype(np.uint8), volume.geometry)
    labels.save(tmp_path / f"plain{ending}")
    labels.save(tmp_path / f"named{ending}", TABLE)
    labels.save(tmp_path / f"again{ending}", TABLE)
    assert (tmp_path / f"named{ending}").read_bytes() == (tmp_path / f"again{ending}").read_bytes()
    named, plain, own = (nib.load(tmp_path / f"{name}{ending}") for name in ("named", "plain", "scan"))
    codes, table = extension_of(tmp_path / f"named{ending}")
    assert codes == [0, 30]
    assert {value: name for value, (name, _) in table.items()} == {v: n for n, v in LABELS.items() if v}
    assert table[1][1] == pytest.approx([1, 128 / 255, 0, 1], abs=1e-5)
    assert int(named.header["intent_code"]) == 1002
    for field in set(plain.header.keys()) - {"intent_code", "vox_offset"}:
        assert named.header[field].tobytes() == plain.header[field].tobytes(), field
    for field in ("qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "qoffset_x", "xyzt_units"):
        assert named.header[field].tobytes() == own.header[field].tobytes(), field
    assert int(named.header["vox_offset"]) % 16 == 0
    np.testing.assert_array_equal(named.get_fdata(), plain.get_fdata())
    if kind is nib.Nifti1Image:  # SimpleITK reads no other
        itk, itk_scan = (sitk.ReadImage(str(tmp_path / f"{name}{ending}")) for name in ("named", "scan"))
        assert sitk.GetArrayFromImage(itk).tolist() == plain.get_fdata().T.tolist()
        assert (itk.GetOrigin(), itk.GetDirection()) == (itk_scan.GetOrigin(), itk_scan.GetDirection())
    back = read_labels(tmp_path / f"named{ending}", like=volume.geometry)
    np.testing.assert_array_equal(back.array, labels.array)
    assert back.geometry.differences(volume.geometry) == []
    assert back.notes == volume.notes


def test_a_table_longer_than_the_first_bytes_that_are_read(tmp_path):
    labels = {"background": 0, **{f"structure number {n} of many": n for n in range(1, 300)}}
    volume = Volume(np.arange(300, dtype=np.uint16).reshape(5, 6, 10), Volume.from_array(
        np.zeros((5, 6, 10)), (1, 1, 1)).geometry)  # fmt: skip
    for ending in (".nii", ".nii.gz"):
        volume.save(tmp_path / f"a{ending}", LabelTable.of(labels))
        assert len(extension_of(tmp_path / f"a{ending}")[1]) == 299
        np.testing.assert_array_equal(read_labels(tmp_path / f"a{ending}").array, volume.array)
        np.testing.assert_array_equal(nib.load(tmp_path / f"a{ending}").get_fdata().T, volume.array)


NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30)


@given(names=st.lists(NAMES, min_size=1, max_size=5, unique=True))
def test_every_name_makes_valid_files(names):
    """Names with quotes, markup, line breaks and letters of any script."""
    table = LabelTable.of({name: number for number, name in enumerate(names, 1)})
    content = table.nifti_extensions()
    assert content[:4] == b"\1\0\0\0"
    size, code = np.frombuffer(content[4:12], "<i4")
    assert (2 * size, code, size % 16) == (len(content) - 4, 0, 0)
    assert np.frombuffer(content[4 + size :][:8], "<i4").tolist() == [size, 30]
    rows = ET.fromstring(content[12 : 4 + size]).findall("VolumeInformation/LabelTable/Label")
    assert [int(row.get("Key")) for row in rows] == list(range(1, len(names) + 1))
    assert [len(row.text) for row in rows] == [len(n.replace("]]>", "]] >")) for n in names]
    assert list(itksnap(table.itksnap())) == list(range(len(names) + 1))
    lines = table.dseg().split("\n")
    assert [line.count("\t") for line in lines] == [2] * (len(names) + 1) + [0]


def test_the_label_descriptions_of_itksnap():
    assert itksnap(TABLE.itksnap()) == {
        0: ((0, 0, 0), (0, "0", "0"), "Clear Label"),
        1: ((255, 128, 0), (1, "1", "1"), "liver"),
        2: ((0, 0, 255), (1, "1", "1"), "left kidney"),
        3: ((128, 64, 32), (1, "1", "1"), "Milz (ü) <&''>"),
    }
    assert TABLE.itksnap().splitlines()[1] == "# ITK-SnAP Label Description File"
    assert [shlex.split(line)[7] for line in TABLE.itksnap().splitlines()[-4:-1]] == ["Clear Label", "liver",
                                                                                       "left kidney"]  # fmt: skip


def test_the_table_of_bids():
    rows = list(csv.reader(TABLE.dseg().splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))
    assert rows[:3] == [["index", "name", "color"], ["1", "liver", "#ff8000"], ["2", "left kidney", "#0000ff"]]
    assert all(re.fullmatch("#[0-9a-f]{6}", row[2]) for row in rows[1:])


def test_colours_that_nobody_gives_are_those_of_the_palette():
    assert LabelTable.of({"b": 2, "background": 0, "a": 1}) == LabelTable(
        {1: "a", 2: "b"}, {1: "#e69f00", 2: "#56b4e9"}
    )
