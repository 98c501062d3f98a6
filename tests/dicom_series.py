"""Volumes written as DICOM series with pydicom alone, for the tests of DICOM in and out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
)

# Direction cosines of a row, then of a column, in LPS; slices follow row x column.
_C, _S = float(np.cos(0.3)), float(np.sin(0.3))
ORIENTATIONS = {
    "axial": (1, 0, 0, 0, 1, 0),
    "axial from below": (1, 0, 0, 0, -1, 0),
    "prone": (-1, 0, 0, 0, -1, 0),
    "coronal": (1, 0, 0, 0, 0, -1),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "oblique": (_C, _S, 0, -_S * _C, _C * _C, _S),
}
CLASSES = {"CT": CTImageStorage, "MR": MRImageStorage, "PT": PositronEmissionTomographyImageStorage}
ENHANCED = {"CT": EnhancedCTImageStorage, "MR": EnhancedMRImageStorage}


def uid(*parts: object) -> str:
    """A valid UID that depends on ``parts`` only."""
    return "2.25." + str(int(hashlib.sha256(repr(parts).encode()).hexdigest()[:30], 16))


def number(value: float) -> str:
    """As a decimal string of at most 16 characters."""
    return f"{value:.10f}"[:16]


def base(modality: str, series: str, patient: str = "P1", study: str = "study", **more: object) -> Dataset:
    """The attributes that all images of a series have in common."""
    made = Dataset()
    made.PatientID, made.PatientName = patient, "Test^Patient"
    made.PatientBirthDate, made.PatientSex = "19700101", "O"
    made.StudyInstanceUID, made.SeriesInstanceUID = uid(study), uid(study, series)
    made.FrameOfReferenceUID, made.PositionReferenceIndicator = uid(study, "frame"), ""
    made.StudyDate, made.StudyTime, made.StudyID, made.AccessionNumber = "20240102", "101010", "1", ""
    made.ReferringPhysicianName, made.Manufacturer = "", "Test"
    made.Modality, made.SeriesNumber, made.SeriesDescription = modality, 3, series
    made.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 16, 15, 1
    for name, value in more.items():
        setattr(made, name, value)
    return made


def positions(
    count: int, orientation: Sequence[float], step: float, origin: Sequence[float] = (-30.0, -20.0, 5.5)
) -> np.ndarray:
    """(count, 3): the first pixel of each slice, mm."""
    normal = np.cross(orientation[:3], orientation[3:])
    return np.array(origin) + np.arange(count)[:, None] * step * normal


def write_file(path: Path, dataset: Dataset, syntax: str = ExplicitVRLittleEndian) -> Path:
    """Write a dataset with its file meta information; compressed where the transfer syntax is."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    path.parent.mkdir(parents=True, exist_ok=True)
    if syntax != ExplicitVRLittleEndian:
        dataset.compress(syntax, generate_instance_uid=False)
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_series(
    folder: Path,
    stored: np.ndarray,
    orientation: str | Sequence[float] = "axial",
    *,
    spacing: Sequence[float] = (3.0, 0.8, 0.7),
    modality: str = "CT",
    series: str = "Abdomen",
    slopes: Sequence[float] | None = None,
    intercept: float = -1000.0,
    syntax: str = ExplicitVRLittleEndian,
    at: np.ndarray | None = None,
    seed: int = 0,
    **more: object,
) -> list[Path]:
    """Write ``stored`` (slices, rows, columns) as a series, one file a slice, under names and instance numbers in
    random order that begin at ``seed``; returns the files in the order of the slices.

    ``spacing`` is that of slices, rows, columns; ``at`` gives other positions than equal steps; ``more`` are further
    attributes, callables of the number of the slice where they differ.
    """
    cosines = ORIENTATIONS[orientation] if isinstance(orientation, str) else orientation
    count = len(stored)
    places = positions(count, cosines, spacing[0]) if at is None else at
    order = np.random.default_rng(seed).permutation(count)
    paths = []
    for index, values in enumerate(stored):
        made = base(modality, series)
        made.SOPClassUID = CLASSES[modality]
        made.SOPInstanceUID = uid(series, index, seed)
        made.InstanceNumber = int(order[index]) + 1
        made.Rows, made.Columns = values.shape
        made.ImageOrientationPatient = [number(v) for v in cosines]
        made.ImagePositionPatient = [number(v) for v in places[index]]
        made.PixelSpacing, made.SliceThickness = [number(v) for v in spacing[1:]], number(spacing[0])
        made.RescaleSlope = number(1.0 if slopes is None else slopes[index])
        made.RescaleIntercept = number(intercept)
        made.PixelRepresentation = int(values.dtype.kind == "i")
        made.PixelData = np.ascontiguousarray(values).astype(f"<{values.dtype.kind}2").tobytes()
        made["PixelData"].VR = "OW"
        for name, value in more.items():
            value = value(index) if callable(value) else value
            if value is None:
                del made[name]
            else:
                setattr(made, name, value)
        paths.append(write_file(folder / f"IM{seed + order[index]:03d}", made, syntax))
    return paths


def write_enhanced(
    path: Path,
    stored: np.ndarray,
    orientation: str = "axial",
    *,
    spacing: Sequence[float] = (3.0, 0.8, 0.7),
    modality: str = "CT",
    slopes: Sequence[float] | None = None,
    intercept: float = -1000.0,
    shuffle: bool = True,
    **more: object,
) -> Path:
    """Write ``stored`` as one multi-frame file whose frames are in random order."""
    cosines = ORIENTATIONS[orientation]
    order = np.random.default_rng(3).permutation(len(stored)) if shuffle else np.arange(len(stored))
    places = positions(len(stored), cosines, spacing[0])
    made = base(modality, "Enhanced")
    made.SOPClassUID, made.SOPInstanceUID = ENHANCED[modality], uid("enhanced", orientation, modality)
    made.InstanceNumber, made.NumberOfFrames = 1, len(stored)
    made.Rows, made.Columns = stored.shape[1:]
    shared, groups = Dataset(), []
    measures, plane = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [number(v) for v in spacing[1:]], number(spacing[0])
    plane.ImageOrientationPatient = [number(v) for v in cosines]
    shared.PixelMeasuresSequence = [measures]
    for index in order:
        group, place, content, scale = Dataset(), Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [number(v) for v in places[index]]
        content.StackID, content.InStackPositionNumber = "1", int(index) + 1
        scale.RescaleSlope = number(1.0 if slopes is None else slopes[index])
        scale.RescaleIntercept, scale.RescaleType = number(intercept), "HU"
        group.PlanePositionSequence, group.FrameContentSequence = [place], [content]
        group.PixelValueTransformationSequence, group.PlaneOrientationSequence = [scale], [plane]
        groups.append(group)
    made.SharedFunctionalGroupsSequence, made.PerFrameFunctionalGroupsSequence = [shared], groups
    made.PixelData = np.ascontiguousarray(stored[order]).astype("<i2").tobytes()
    made["PixelData"].VR = "OW"
    for name, value in more.items():
        setattr(made, name, value)
    return write_file(path, made)


def world(path: Path) -> dict[tuple[float, ...], Dataset]:
    """For each image of a folder its position, rounded: an index of the test's own."""
    import pydicom

    headers = [pydicom.dcmread(p) for p in sorted(path.iterdir())]
    return {tuple(np.round([float(v) for v in h.ImagePositionPatient], 3)): h for h in headers}
