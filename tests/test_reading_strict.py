"""Formats without a checksum: what a damaged header or text can still show is refused."""

import struct

import numpy as np
import pytest
import SimpleITK as sitk

from mre_lowshot.data.readers.nrrd_kinds import component_axis_of
from mre_lowshot.data.readers.tiff_tags import contradiction, is_known
from mre_lowshot.data.volume import read_image
from mre_lowshot.errors import UserError


@pytest.fixture(scope="module")
def tiff(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiff") / "a.tif"
    sitk.WriteImage(sitk.GetImageFromArray(np.arange(48, dtype=np.uint8).reshape(6, 8)), str(path), False)
    return path.read_bytes()


def entries(content):
    """Offset of each 12-byte entry of the first directory, by tag."""
    start = struct.unpack("<I", content[4:8])[0]
    number = struct.unpack("<H", content[start : start + 2])[0]
    places = [start + 2 + 12 * n for n in range(number)]
    return {struct.unpack("<H", content[p : p + 2])[0]: p for p in places}


CHANGES = {
    "an unknown tag": (258, lambda raw: struct.pack("<H", 267) + raw[2:]),
    "a tag out of order": (258, lambda raw: struct.pack("<H", 339) + raw[2:]),
    "an unknown type": (256, lambda raw: raw[:2] + struct.pack("<H", 99) + raw[4:]),
    "photometric interpretation 9": (262, lambda raw: raw[:8] + struct.pack("<HH", 9, 0)),
    "colours of one sample": (262, lambda raw: raw[:8] + struct.pack("<HH", 2, 0)),
    "16 bits": (258, lambda raw: raw[:8] + struct.pack("<HH", 16, 0)),
    "fewer rows": (257, lambda raw: raw[:8] + (5).to_bytes(4, "little")),
    "sample format 9": (339, lambda raw: raw[:8] + struct.pack("<HH", 9, 0)),
    "8-bit floating-point numbers": (339, lambda raw: raw[:8] + struct.pack("<HH", 3, 0)),
    "planar configuration 7": (284, lambda raw: raw[:8] + struct.pack("<HH", 7, 0)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_contradictory_tags_of_a_tiff_are_refused(name, tiff, tmp_path):
    tag, change = CHANGES[name]
    content = bytearray(tiff)
    place = entries(tiff)[tag]
    content[place : place + 12] = change(tiff[place : place + 12])
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        read_image(tmp_path / "a.tif")


def test_tags_of_common_writers_are_known_and_fit(tiff, tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff)
    assert read_image(tmp_path / "a.tif").array.shape == (1, 1, 6, 8)
    assert all(map(is_known, (254, 270, 305, 306, 315, 330, 700, 33550, 33723, 34665, 34675, 50838, 50839, 65000)))
    assert not any(map(is_known, (0, 253, 267, 268, 299, 400 + 32, 32767)))
    rgb = {256: [8], 257: [6], 258: [8, 8, 8], 259: [1], 262: [2], 277: [3], 339: [1, 1, 1]}
    assert contradiction(rgb) == ""
    assert contradiction(rgb | {277: [4], 258: [8] * 4, 338: [2], 339: [1] * 4}) == ""
    assert "beside the colours" in contradiction(rgb | {277: [4], 258: [8] * 4, 338: [2, 0], 339: [1] * 4})
    assert "palette" in contradiction({258: [8], 262: [3], 277: [1]})
    assert contradiction({258: [8], 262: [3], 277: [1], 320: [0] * 768}) == ""


def ascii_nrrd(path, words, kind="uint8"):
    head = f"NRRD0004\ntype: {kind}\ndimension: 3\nsizes: 2 2 2\nspace: left-posterior-superior\n"
    head += "space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\nencoding: ascii\n\n"
    path.write_text(head + " ".join(words) + "\n")
    return path


@pytest.mark.parametrize(
    ("kind", "word"),
    [("uint8", "1_0"), ("uint8", "300"), ("uint8", "-1"), ("uint8", "1.5"), ("uint8", "1e1"), ("uint8", "\u0661"),
     ("int16", "40000"), ("float", "1_0"), ("float", "1.2.3"), ("float", "0x10"), ("float", "1,5"), ("float", "e5")],
)  # fmt: skip
def test_text_that_is_no_number_of_the_type_is_refused(kind, word, tmp_path):
    words = [*"1234567", "8"]
    assert read_image(ascii_nrrd(tmp_path / "a.nrrd", words, kind)).array.ravel().tolist() == list(range(1, 9))
    with pytest.raises(UserError, match="damaged"):
        read_image(ascii_nrrd(tmp_path / "a.nrrd", [*words[:-1], word], kind))


@pytest.mark.parametrize(
    ("kinds", "sizes", "words"),
    [
        (["domaim", "domain", "domain", "domain"], [3, 4, 5, 6], "unknown kind 'domaim' of axis 0"),
        (["RGB-color", "domain", "domain", "domain"], [4, 4, 5, 6], "of kind rgb-color, but has size 4"),
        (["complex", "domain", "domain"], [3, 4, 5], "of kind complex, but has size 3"),
        (["vector", "list", "domain", "domain"], [3, 4, 5, 6], "more than one axis of components"),
    ],
)
def test_kinds_of_an_nrrd_file_must_be_known_and_fit_the_sizes(kinds, sizes, words):
    with pytest.raises(ValueError, match=words):
        component_axis_of({"kinds": kinds, "sizes": sizes})


def test_a_spatial_axis_needs_a_direction():
    directions = [None, np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), np.array([0, 0, 1.0])]
    fields = {"kinds": ["vector", "domain", "domain", "domain"], "sizes": [3, 4, 5, 6], "space directions": directions}
    assert component_axis_of(fields) == 0
    with pytest.raises(ValueError, match="axis 0 is of kind domain, but has no direction"):
        component_axis_of(fields | {"kinds": ["domain"] * 4})
