"""More bad scans: NRRD, MetaImage, PNG and TIFF (see `corpus.scans`)."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import nrrd
import numpy as np
import SimpleITK as sitk

from corpus.scans import DAMAGED, bad, flipped, itk, itk_bytes, voxels


def nrrd_bytes(path: Path, **header) -> bytes:
    """The bytes of an NRRD file with these header fields."""
    directions = np.diag([2.0, 2.0, 2.0])
    fields = {"space": "left-posterior-superior", "space directions": directions, "space origin": [0, 0, 0], **header}
    nrrd.write(str(path), voxels(), fields)
    return path.read_bytes()


def changed_header(path: Path, old: bytes, new: bytes, **header) -> None:
    """An NRRD file with one line of its header replaced."""
    content = nrrd_bytes(path, **header)
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


@bad(".nrrd", DAMAGED + "|bytes|size")
def truncated_nrrd(path):
    path.write_bytes(nrrd_bytes(path)[:-2000])


@bad(".nrrd", DAMAGED + "|decompress")
def nrrd_with_a_flipped_byte(path):
    content = nrrd_bytes(path)
    path.write_bytes(flipped(content, len(content) - 3000))


@bad(".nrrd", "30000|memory|bytes|size")
def nrrd_claiming_terabytes(path):
    changed_header(path, b"sizes: 20 24 20", b"sizes: 30000 30000 30000")


@bad(".nrrd", "encoding")
def nrrd_with_an_unknown_encoding(path):
    changed_header(path, b"encoding: gzip", b"encoding: lzma")


@bad(".nrrd", "data ?file|nowhere|missing")
def nrrd_without_its_data_file(path):
    changed_header(path, b"encoding: gzip", b"data file: nowhere.raw\nencoding: raw")


@bad(".nrrd", "data ?file|folder|outside")
def nrrd_with_a_data_file_elsewhere(path):
    changed_header(path, b"encoding: gzip", b"data file: ../../../../etc/passwd\nencoding: raw")


@bad(".nrrd", "right angles|shear|orthogonal")
def a_sheared_nrrd(path):
    directions = np.diag([2.0, 2.0, 2.0])
    directions[0, 1] = 0.9
    path.write_bytes(nrrd_bytes(path, **{"space directions": directions}))


@bad(".nrrd", "space")
def nrrd_of_an_unknown_space(path):
    changed_header(path, b"space: left-posterior-superior", b"space: over-the-rainbow")


@bad(".nrrd", "type")
def nrrd_of_an_unknown_type(path):
    changed_header(path, b"type: int16", b"type: block")


@bad(".nrrd", "NRRD|magic|not|cannot be read")
def nrrd_without_its_magic(path):
    path.write_bytes(nrrd_bytes(path).replace(b"NRRD000", b"XXXX000", 1))


@bad(".mha", DAMAGED + "|bytes")
def truncated_mha(path):
    path.write_bytes(itk_bytes(path, compressed=False)[:-10])


@bad(".mha", DAMAGED + "|decompress")
def mha_with_a_flipped_byte(path):
    content = itk_bytes(path)
    path.write_bytes(flipped(content, len(content) - 3000))


def changed_mha(path: Path, old: bytes, new: bytes) -> None:
    """An uncompressed MetaImage with one line of its header replaced."""
    content = itk_bytes(path, compressed=False)
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


@bad(".mha", "30000|memory|bytes|size")
def mha_claiming_terabytes(path):
    changed_mha(path, b"DimSize = 20 24 20", b"DimSize = 30000 30000 30000")


@bad(".mha", "ElementType|type")
def mha_of_an_unknown_type(path):
    changed_mha(path, b"MET_SHORT", b"MET_OTHER")


@bad(".mha", "voxel size of")
def mha_without_spacing(path):
    changed_mha(path, b"ElementSpacing = 2 2 2", b"ElementSpacing = 2 0 2")


@bad(".mha", "Offset|origin|finite|position")
def mha_at_infinity(path):
    changed_mha(path, b"Offset = 0 0 0", b"Offset = 0 inf 0")


@bad(".mha", "ElementDataFile|data ?file|folder|outside")
def mha_with_a_data_file_elsewhere(path):
    changed_mha(path, b"ElementDataFile = LOCAL", b"ElementDataFile = ../../secret.raw")


@bad(".mhd", "missing|data ?file")
def mhd_without_its_data(path):
    sitk.WriteImage(itk(), str(path))
    for other in path.parent.glob(f"{path.stem}.*raw"):
        other.unlink()


def png(width: int, height: int, data: bytes) -> bytes:
    """A grey 8-bit PNG with any claim about its size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@bad(".png", "60000|memory|bytes|size|damaged")
def png_that_claims_gigabytes(path):
    path.write_bytes(png(60000, 60000, b"\0" * 10_000_000))


@bad(".png", DAMAGED)
def png_with_a_flipped_byte(path):
    content = itk_bytes(path, voxels(np.uint8, (64, 64)))
    path.write_bytes(flipped(content, len(content) // 2))


@bad(".png", "2D|slice|single")
def a_2d_image_for_a_3d_model(path):
    itk_bytes(path, voxels(np.uint8, (64, 64)))


@bad(".tif", DAMAGED + "|cannot be read")
def truncated_tiff(path):
    content = itk_bytes(path, voxels(np.uint8, (64, 64)))
    path.write_bytes(content[: len(content) // 2])


@bad(".tif", "one slice|2D|slices|\\.nii")
def a_tiff_volume(path):
    itk_bytes(path, voxels(np.uint8, (8, 64, 64)))
