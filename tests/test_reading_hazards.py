"""Small files that would take much time or memory: each is read, or refused by name, at once."""

import struct
import time
import zlib
from contextlib import contextmanager

import nibabel as nib
import numpy as np
import pytest

from mre_lowshot.data.importing.label_names import names_inside, read_names
from mre_lowshot.data.readers import nrrd, read_header
from mre_lowshot.data.volume import read_image
from mre_lowshot.errors import UserError

NRRD = "NRRD0004\ntype: {kind}\ndimension: 3\nsizes: 2 2 2\nencoding: {encoding}\n{more}\n\n"


@contextmanager
def within(seconds):
    start = time.process_time()
    yield
    assert time.process_time() - start < seconds


def test_a_long_field_of_an_nrrd_header(tmp_path):
    path = tmp_path / "a.nrrd"
    more = "content: x" + " " * 200_000 + "x"
    path.write_bytes(NRRD.format(kind="uint8", encoding="raw", more=more).encode() + bytes(8))
    with within(2):
        assert read_header(path).geometry.shape == (2, 2, 2)


def test_fields_of_an_nrrd_file_are_kept_as_written_and_keys_are_none(tmp_path):
    more = "space:   left-posterior-superior  \r\nspace directions: (1,0,0) (0,2,0) (0,0,3)\nspace origin: (1,2,3)\n"
    path = tmp_path / "a.nrrd"
    path.write_bytes(NRRD.format(kind="uint8", encoding="raw", more=more + "axis mins:=4").encode() + bytes(8))
    header = read_header(path).geometry.header
    assert '"space": "left-posterior-superior"' in header
    assert '"space directions": "(1,0,0) (0,2,0) (0,0,3)"' in header
    assert "axis mins" not in header
    with within(2):
        assert nrrd._strings("a: " + "(" * 1_000_000) == {"a": "(" * 1_000_000}


@pytest.mark.parametrize("word", ["1" * 300_000 + "x", "1" * 100_000 + "." + "1" * 100_000 + "e" + "1" * 100_000 + "x"])
def test_a_long_number_in_text(tmp_path, word):
    path = tmp_path / "a.nrrd"
    path.write_bytes((NRRD.format(kind="float", encoding="ascii", more="") + "1 2 3 4 5 6 7 " + word).encode())
    with within(2), pytest.raises(UserError, match="number of its voxels"):
        read_image(path)


def labelled(path, text):
    image = nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension(0, text.encode()))
    nib.save(image, path)
    return path


@pytest.mark.parametrize("start", ["<Label>", "<Label ", "<Labels>", '<Label Key="1">x</Label><![CDATA[',
                                   '<Label Key="1"><![CDATA['])  # fmt: skip
@pytest.mark.parametrize("end", ["", "</Label>"])
def test_a_label_table_of_tags_that_are_not_closed(tmp_path, start, end):
    path = labelled(tmp_path / "a.nii.gz", start * (900_000 // len(start)) + end)
    with within(2):
        assert set(names_inside(path).values()) <= {"x"}


def test_names_of_a_label_table(tmp_path):
    text = (
        '<Labels><Label Key="1" Red="1"><![CDATA[liver & <co>]]></Label><Label Key="2">left&amp;right</Label>'
        f'<Label Key="3">&#{"1" * 5000};</Label><Label Key="4"><![CDATA[open</Label></Labels>'
    )
    assert names_inside(labelled(tmp_path / "a.nii.gz", text)) == {1: "liver & <co>", 2: "left&right", 4: "open"}


@pytest.mark.parametrize("index", ["\u00b2", "1" * 5000, "1\t" + "a" * 200_000, "x"])
def test_a_list_of_names_whose_numbers_are_none(tmp_path, index):
    path = tmp_path / "a.tsv"
    path.write_text(f"index\tname\n{index}\tliver\n", encoding="utf-8")
    assert read_names(path) == {}
    path.write_text(f'{index} 1 1 1 1 1 1 "liver"\n', encoding="utf-8")
    assert read_names(path) == {}


def element(group: int, number: int, kind: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", group, number, kind, len(value)) + value


def deflated(path, *, preamble: bool, length: int | None, more: bytes = b""):
    """A file that inflates to 40 MB."""
    meta = element(2, 2, b"UI", b"1.2.840.10008.5.1.4.1.1.2\0") + element(2, 0x10, b"UI", b"1.2.840.10008.1.2.1.99")
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = element(8, 0x16, b"UI", b"1.2.840.10008.5.1.4.1.1.2\0") + struct.pack("<HH4sI", 32, 1, b"UN\0\0", 40 << 20)
    body = packer.compress(start) + packer.compress(bytes(40 << 20)) + packer.flush()
    size = len(meta) if length is None else len(meta) + len(body) + length
    first = (bytes(128) + b"DICM" if preamble else b"") + element(2, 0, b"UL", struct.pack("<I", size))
    path.write_bytes(first + meta + body + more)
    return path


EMPTY = zlib.compressobj(9, zlib.DEFLATED, -15).flush()


@pytest.mark.parametrize(
    ("preamble", "length", "more"),
    [(True, None, b""), (False, None, b""), (True, 0, EMPTY), (False, 0, EMPTY), (True, 1000, b""), (True, -20, b"")],
)
def test_no_header_hides_how_large_a_deflated_file_is(tmp_path, monkeypatch, preamble, length, more):
    pydicom = pytest.importorskip("pydicom")
    from mre_lowshot.data.dicom.files import is_dicom
    from mre_lowshot.data.dicom.files import read_header as read_dicom

    path = deflated(tmp_path / "a", preamble=preamble, length=length, more=more)
    assert is_dicom(path)
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(pydicom, "dcmread", lambda *a, **k: pytest.fail("was inflated"))
    monkeypatch.setenv("MRE_MEMORY_GB", "0.1")
    with pytest.raises(UserError, match="a deflated file of over"):
        read_dicom(path)
    path.write_bytes(path.read_bytes()[:-2000])
    monkeypatch.setenv("MRE_MEMORY_GB", "8")
    if not more and length is None:
        with pytest.raises(UserError, match="its deflated part is cut off"):
            read_dicom(path)
