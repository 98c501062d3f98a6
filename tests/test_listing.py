"""Everything that looks like an image and is not read is named, for prediction and for planning."""

import os
import socket

import pytest

from mre_lowshot.data.dataset import find_cases
from mre_lowshot.data.listing import list_images, name_problem, shown, twins
from mre_lowshot.errors import UserError


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    (folder / "a.nii.gz").write_bytes(b"")
    return folder


def broken_link(folder):
    (folder / "b.nii.gz").symlink_to("moved.nii.gz")


def link_to_itself(folder):
    (folder / "b.nii.gz").symlink_to("b.nii.gz")


def folder_named_like_a_scan(folder):
    (folder / "b.nii.gz").mkdir()


def subfolder(folder):
    (folder / "more/deeper").mkdir(parents=True)
    (folder / "more/deeper/b.nii.gz").write_bytes(b"")
    (folder / "more/b.dcm").write_bytes(b"")


def pipe(folder):
    os.mkfifo(folder / "b.nii.gz")


def listening_socket(folder):
    before = os.getcwd()
    os.chdir(folder)  # a socket's path may have 100 characters
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind("b.nii.gz")
    finally:
        os.chdir(before)


def file(name, content=b""):
    def make(folder):
        (folder / name).write_bytes(content)

    return make


DROPPED = {
    "broken link": (broken_link, "scans/b.nii.gz: is a symbolic link to moved.nii.gz, which cannot be read"),
    "link to itself": (link_to_itself, "scans/b.nii.gz: is a symbolic link to b.nii.gz, which cannot be read"),
    "folder": (folder_named_like_a_scan, "scans/b.nii.gz: is a folder, not an image; move the image out of it"),
    "subfolder": (subfolder, "scans/more: is a folder with 2 image file(s), which are not read; move them up"),
    "pipe": (pipe, "scans/b.nii.gz: is no regular file (a pipe, socket or device)"),
    "socket": (listening_socket, "scans/b.nii.gz: is no regular file"),
    "blank at the end": (file("b.nii.gz "), "scans/'b.nii.gz ': has an image ending inside its name; rename it"),
    "partial download": (file("b.nii.gz.part"), "b.nii.gz.part: has an image ending inside its name"),
    "backup": (file("b.nii.gz~"), "b.nii.gz~: has an image ending inside its name"),
    "zip": (file("b.nii.zip"), "b.nii.zip is not read"),
    "gzip alone": (file("b.gz"), "b.gz is not read"),
    "DICOM without an ending": (file("IM0001", bytes(128) + b"DICM"), "IM0001 is not read"),
    "DICOM with a number": (file("1.2.840.1", bytes(128) + b"DICM"), "1.2.840.1 is not read"),
    "newline": (file("b\nc.nii.gz"), "case 'b\\nc': its name contains a control character"),
    "escape sequence": (file("b\x1b[2J.nii.gz"), "case 'b\\x1b[2J': its name contains a control character"),
    "no UTF-8": (file(os.fsdecode(b"b\xff.nii.gz")), "case 'b\\udcff': its name contains"),
    "blank before the ending": (file("b .nii.gz"), "case 'b ': its name begins or ends with a blank"),
    "dot before the ending": (file("b..nii.gz"), "case b.: its name ends with a dot"),
    "upper case twin": (file("A.nii.gz"), "cases A and a in scans differ only in upper and lower case"),
    "ending twin": (file("a.NII.GZ"), "case a: more than one file (a.NII.GZ, a.nii.gz) in scans; keep one"),
    "long name": (file("b" * 250 + ".mha"), "has 250 bytes, at most 248 are allowed"),
}


@pytest.mark.parametrize("what", DROPPED)
def test_an_input_that_is_not_read_is_named_and_the_others_are_kept(what, scans):
    make, words = DROPPED[what]
    make(scans)
    cases, problems = find_cases(scans, 1, None)
    assert any(words in problem for problem in problems)
    assert len(problems) == 1
    assert problems[0].isprintable()
    assert [case.name for case in cases] == ([] if "twin" in what else ["a"])


def test_side_files_hidden_files_and_the_output_folder_are_no_input(scans):
    for name in ("a.json", "a.bval", "a.nii.gz.md5", "crops.json", ".b.nii.gz", "._a.nii.gz", "README", "notes.docx"):
        (scans / name).write_bytes(b"")
    output = scans / "out"
    output.mkdir()
    (output / "a.nii.gz").write_bytes(b"")
    (scans / "empty").mkdir()
    cases, problems = find_cases(scans, 1, None, ignore=(output,))
    assert ([case.name for case in cases], problems) == (["a"], [])
    assert len(find_cases(scans, 1, None)[1]) == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_named(scans):
    (scans / "b.nii.gz").write_bytes(b"")
    (scans / "b.nii.gz").chmod(0)
    assert "scans/b.nii.gz: permission denied; make it readable" in find_cases(scans, 1, None)[1][0]


def test_a_name_beside_its_numbered_twin_gets_advice_that_replaces_nothing(scans):
    (scans / "a_0000.nii.gz").write_bytes(b"")
    cases, [problem] = find_cases(scans, 1, None)
    assert [case.name for case in cases] == ["a"]
    assert "a.nii.gz in scans has no channel number; a_0000.nii.gz exists too, so renaming would replace it" in problem
    (scans / "a.nii.gz").rename(scans / "b_00000.nii.gz")
    assert "rename it b_0000.nii.gz" in find_cases(scans, 1, None)[1][0]
    (scans / "b_00000.nii.gz").rename(scans / "b.nii.gz")
    assert "rename it b_0000.nii.gz" in find_cases(scans, 1, None)[1][0]


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="the folder is missing"):
        list_images(tmp_path / "none", None)


def test_names_are_shown_in_printable_form():
    assert (shown("a"), shown("Ärzte"), shown(" a")) == ("a", "Ärzte", "' a'")
    assert shown("a\udcff\n") == "'a\\udcff\\n'"
    assert name_problem("Ärzte 1") is None
    assert twins(["a", "b", "A", "e\u0301", "\u00e9"]) == [("a", "A"), ("e\u0301", "\u00e9")]


def test_a_path_that_is_no_folder_is_named_for_what_it_is(tmp_path):
    (tmp_path / "text").write_text("x")
    (tmp_path / "broken").symlink_to(tmp_path / "gone")
    for name, words in (("text", "is a file"), ("broken", "broken symbolic link"), ("nothing", "folder is missing")):
        with pytest.raises(UserError, match=f"{name}: .*{words}"):
            list_images(tmp_path / name, ".nii.gz")
