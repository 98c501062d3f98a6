"""DICOM in and out: series of a folder, their volumes, and DICOM SEG. Needs the extra ``dicom``."""
