"""Damaged, mislabelled and unusual scans: ``BAD_SCANS`` maps a name to (ending, writer, pattern of the message)."""

from __future__ import annotations

import gzip
import io
import os
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

SHAPE = (20, 24, 20)
Writer = Callable[[Path], None]
BAD_SCANS: dict[str, tuple[str, Writer, str]] = {}


def bad(ending: str, pattern: str):
    """Register a writer as the bad scan ``<its name><ending>``."""

    def register(writer: Writer) -> Writer:
        BAD_SCANS[writer.__name__] = (ending, writer, pattern)
        return writer

    return register


def voxels(dtype=np.int16, shape=SHAPE) -> np.ndarray:
    """CT-like noise."""
    return np.random.default_rng(0).normal(40, 60, shape).astype(dtype)


def nifti(array=None, affine=None, kind=nib.Nifti1Image):
    """A NIfTI image; (x, y, z) order."""
    return kind(voxels() if array is None else array, np.eye(4) * [2, 2, 2, 1] if affine is None else affine)


def raw_nifti(array=None, affine=None, kind=nib.Nifti1Image) -> bytearray:
    """The bytes of an uncompressed NIfTI file, to be changed."""
    return bytearray(nifti(array, affine, kind).to_bytes())


def patched(offset: int, code: str, *values) -> bytes:
    """A gzipped NIfTI file with other header values at ``offset``."""
    content = raw_nifti()
    struct.pack_into("<" + code, content, offset, *values)
    return gzip.compress(bytes(content))


def itk(array=None) -> sitk.Image:
    """A SimpleITK image, 2 mm."""
    image = sitk.GetImageFromArray(voxels() if array is None else array)
    image.SetSpacing([2.0] * image.GetDimension())
    return image


def itk_bytes(path: Path, array=None, compressed=True) -> bytes:
    """The bytes of an image in the format of ``path``."""
    sitk.WriteImage(itk(array), str(path), useCompression=compressed)
    return path.read_bytes()


def flipped(content: bytes, position: int) -> bytes:
    """One byte changed."""
    changed = bytearray(content)
    changed[position] ^= 0x10
    return bytes(changed)


DAMAGED = "truncated|damaged|checksum|CRC|incomplete|shorter|too short"


@bad(".nii.gz", "empty")
def empty_file(path):
    path.write_bytes(b"")


@bad(".nii.gz", "not|cannot be read")
def a_text_file(path):
    path.write_text("this is not a scan\n" * 100)


@bad(".nii.gz", "HTML|web page|not")
def an_html_page(path):
    path.write_text("<!DOCTYPE html><html><body>404 not found</body></html>" * 20)


@bad(".nii.gz", "zip|ZIP|archive")
def a_zip_archive(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("scan.nii", b"0" * 1000)


@bad(".nii.gz", "DICOM")
def a_dicom_file(path):
    path.write_bytes(b"\0" * 128 + b"DICM" + b"\2\0\0\0UL\4\0" * 50)


@bad(".nii.gz", "rename")
def plain_nifti_named_gz(path):
    path.write_bytes(bytes(raw_nifti()))


@bad(".nii", "rename")
def gzip_named_nii(path):
    path.write_bytes(gzip.compress(bytes(raw_nifti())))


@bad(".nii.gz", DAMAGED)
def truncated_gzip(path):
    path.write_bytes(gzip.compress(bytes(raw_nifti()))[:-3000])


@bad(".nii.gz", DAMAGED)
def gzip_without_its_trailer(path):
    path.write_bytes(gzip.compress(bytes(raw_nifti()))[:-8])


@bad(".nii.gz", DAMAGED)
def gzip_with_a_wrong_checksum(path):
    path.write_bytes(flipped(gzip.compress(bytes(raw_nifti())), -7))


@bad(".nii.gz", DAMAGED)
def truncated_voxels_in_a_whole_gzip(path):
    path.write_bytes(gzip.compress(bytes(raw_nifti())[:-500]))


@bad(".nii", DAMAGED + "|needs|bytes")
def truncated_nifti(path):
    path.write_bytes(bytes(raw_nifti())[:-1])


@bad(".nii.gz", DAMAGED)
def half_a_header(path):
    path.write_bytes(gzip.compress(bytes(raw_nifti())[:200]))


@bad(".nii.gz", r"30000|memory|shorter|truncated|bytes")
def a_claim_of_terabytes(path):
    path.write_bytes(patched(40, "4h", 3, 30000, 30000, 30000))


@bad(".nii.gz", "size|dimension|0")
def a_side_of_zero_voxels(path):
    path.write_bytes(patched(40, "4h", 3, 0, 24, 20))


@bad(".nii.gz", "size|dimension|-")
def a_negative_side(path):
    path.write_bytes(patched(40, "4h", 3, -20, 24, 20))


@bad(".nii.gz", "dimension|header|9")
def nine_dimensions(path):
    path.write_bytes(patched(40, "1h", 9))


@bad(".nii.gz", "dimensions")
def a_time_series(path):
    nib.save(nifti(voxels(shape=(*SHAPE, 3))), path)


@bad(".nii.gz", "dimensions|components|channel")
def a_displacement_field(path):
    nib.save(nifti(voxels(np.float32, shape=(*SHAPE, 1, 3))), path)


@bad(".nii.gz", "complex")
def complex_voxels(path):
    nib.save(nifti(voxels(np.complex64)), path)


@bad(".nii.gz", "complex")
def double_complex_voxels(path):
    nib.save(nifti(voxels(np.complex128)), path)


@bad(".nii.gz", "NaN")
def not_a_number(path):
    array = voxels(np.float32)
    array[3, 3, 3] = np.nan
    nib.save(nifti(array), path)


@bad(".nii.gz", "infinite")
def an_infinite_voxel(path):
    array = voxels(np.float64)
    array[3, 3, 3] = -np.inf
    nib.save(nifti(array), path)


@bad(".nii.gz", "beyond 3.4e.38")
def values_beyond_float32(path):
    array = voxels(np.float64)
    array[3, 3, 3] = 1e300
    nib.save(nifti(array), path)


@bad(".nii.gz", "constant|a range that no CT has")
def the_same_value_everywhere(path):
    nib.save(nifti(np.full(SHAPE, 7, np.int16)), path)


@bad(".nii.gz", "origin|offset|position|affine|finite|NaN")
def a_position_that_is_not_finite(path):
    content = raw_nifti()
    struct.pack_into("<f", content, 268 + 12 + 8 - 8 + 4, float("inf"))  # qoffset_x
    struct.pack_into("<f", content, 280 + 12, float("inf"))  # last value of srow_x
    path.write_bytes(gzip.compress(bytes(content)))


@bad(".nii.gz", "NaN|finite|affine|sform|spacing")
def a_direction_that_is_not_a_number(path):
    path.write_bytes(patched(280, "f", float("nan")))


@bad(".nii.gz", "spacing|singular|pixdim|affine|0")
def a_singular_affine(path):
    path.write_bytes(patched(280, "4f", 0, 0, 0, 0))


@bad(".nii.gz", "right angles|shear|orthogonal")
def a_sheared_affine(path):
    affine = np.eye(4) * [2, 2, 2, 1]
    affine[0, 1] = 0.7
    image = nifti(affine=affine)
    image.set_qform(np.eye(4), 0)
    nib.save(image, path)


@bad(".nii.gz", "spacing|mm")
def voxels_of_a_kilometre(path):
    nib.save(nifti(affine=np.eye(4) * [1e6, 1e6, 1e6, 1]), path)


@bad(".nii.gz", "spacing|mm")
def voxels_of_a_picometre(path):
    nib.save(nifti(affine=np.eye(4) * [1e-9, 1e-9, 1e-9, 1]), path)


@bad(".nii.gz", "data ?type|code|supported")
def an_unknown_data_type(path):
    path.write_bytes(patched(70, "2h", 9999, 16))


@bad(".nii.gz", "bitpix|data ?type|bits|header")
def bits_that_contradict_the_data_type(path):
    path.write_bytes(patched(72, "h", 64))


@bad(".nii.gz", DAMAGED + "|offset|bytes")
def voxels_that_begin_beyond_the_end(path):
    path.write_bytes(patched(108, "f", 1e8))


@bad(".nii.gz", "not|NIfTI|magic|header")
def a_wrong_magic_number(path):
    path.write_bytes(patched(344, "4s", b"xxxx"))


@bad(".nii.gz", "channel")
def a_colour_volume(path):
    rgb = np.zeros(SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    rgb["R"] = voxels(np.uint8)
    nib.save(nifti(rgb), path)


@bad(".nii.gz", "link|missing")
def a_broken_link(path):
    path.symlink_to("/nowhere/at/all.nii.gz")


@bad(".nii.gz", "folder|directory|not a file|regular")
def a_folder_named_like_a_scan(path):
    path.mkdir()


@bad(".nii.gz", "not a regular file|regular|pipe|not a file")
def a_named_pipe(path):
    os.mkfifo(path)


@bad(".nii.gz", "NIfTI-2|header|not")
def nifti_2_with_a_damaged_header(path):
    buffer = io.BytesIO()
    content = bytearray(nifti(kind=nib.Nifti2Image).to_bytes())
    struct.pack_into("<8q", content, 16, 3, 1 << 40, 1 << 40, 1 << 40, 1, 1, 1, 1)
    with gzip.GzipFile(fileobj=buffer, mode="wb") as file:
        file.write(bytes(content))
    path.write_bytes(buffer.getvalue())


def write_all(folder: Path) -> None:
    """One file ``<name>_0000<ending>`` for each of `BAD_SCANS`."""
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, (ending, writer, _) in BAD_SCANS.items():
            writer(folder / f"{name}_0000{ending}")
