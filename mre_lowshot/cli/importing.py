"""``mre_import -i FOLDER --name 17``: DICOM series, image files and label maps become a raw dataset."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mre_lowshot.cli import common

EPILOG = """Begin with --dry_run: it prints the scans, the label maps, the pairs with their reasons, what is left out
and why, and dataset.json. A DICOM SEG belongs to the series that it refers to; any other label map to the scan on its
grid whose name or folder agrees best. Where several fit equally, the label map is refused: state the pair in a CSV file
with the columns scan,label (and case, for a case name) and give it with --pairs.

No voxel changes its position: a label map on another grid than its scan is refused. Labels are numbered 1, 2, ...;
changes of values are printed, and recorded in import.json with the name, series UID and SHA-256 of each file.

Exit code: 0 done, 2 wrong use, or files that are refused."""


def _parser() -> argparse.ArgumentParser:
    made = common.parser("mre_import", "Turn DICOM series, image files and label maps into a raw dataset.", EPILOG)
    made.add_argument(
        "-i", nargs="+", default=[], type=common.path, metavar="DIR",
        help="folders with scans and label maps: DICOM series, DICOM SEG, NIfTI, NRRD, seg.nrrd, MHA; any names",
    )  # fmt: skip
    made.add_argument(
        "--name", required=True, metavar="NAME", help="number (17) or full name (Dataset017_BTCV) of the new dataset"
    )
    made.add_argument("--dry_run", action="store_true", help="print what would be written, and write nothing")
    made.add_argument("--images", nargs="+", default=[], type=common.path, metavar="DIR", help="folders of scans only")
    made.add_argument(
        "--labels", nargs="+", default=[], type=common.path, metavar="DIR", help="folders of label maps only"
    )
    made.add_argument(
        "--pairs", type=common.path, metavar="FILE", help="CSV or JSON with the pairs that are not found: scan,label"
    )
    made.add_argument(
        "--leave_out", nargs="+", action="extend", default=[], metavar="PATTERN",
        help='files that are not looked at, as in "*old*" or "p3/*"',
    )  # fmt: skip
    made.add_argument(
        "--modality",
        default="",
        metavar="NAME",
        help="CT, MRI, T1, US, ...: where the files do not show it (DICOM does)",
    )
    made.add_argument(
        "--channels", nargs="+", default=[], metavar="NAME",
        help="scans of several channels: FLAIR,T1 by words of series descriptions or file names, or NAME=PATTERN",
    )  # fmt: skip
    made.add_argument(
        "--label_names", nargs="+", action="extend", default=[], metavar="N=NAME",
        help="names of values where the files have none: 1=liver 2=spleen; other names: Leber=liver, cyst=background; "
        "or a file with ITK-SNAP's label descriptions",
    )  # fmt: skip
    made.add_argument(
        "--overlap", choices=("later_wins",), default="",
        help="where segments of one file overlap, the later one counts (default: they are refused)",
    )  # fmt: skip
    made.add_argument(
        "--masks", action="store_true",
        help="a scan's label maps are masks of one label each, named by their files (liver.nii.gz, p1_spleen.nii.gz)",
    )  # fmt: skip
    made.add_argument(
        "--test", nargs="?", const="imagesTs", default="", choices=("imagesTs", "imagesTr"),
        help="take scans without a label map too, as test cases or as unlabelled training cases (default: leave them "
        "out; without a value: imagesTs)",
    )  # fmt: skip
    made.add_argument(
        "--case_names", default="{name}_{number}", metavar="PATTERN",
        help="of {name}, {number}, {patient}, {file}, {folder}, {series} (default: %(default)s, which contains no "
        "patient data)",
    )  # fmt: skip
    made.add_argument(
        "--format", default=".nii.gz", metavar="ENDING", help=".nii.gz, .nii, .nrrd or .mha (%(default)s)"
    )
    common.add_workspace(made)
    return made


def _main(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)

    from mre_lowshot.cli.console import Console
    from mre_lowshot.workflows.importing import import_dataset

    import_dataset(
        options.i,
        name=options.name,
        images=options.images,
        labels=options.labels,
        modality=options.modality,
        label_names=options.label_names,
        channels=options.channels,
        pairs=options.pairs,
        leave_out=options.leave_out,
        test=options.test,
        case_names=options.case_names,
        overlap=options.overlap,
        masks=options.masks,
        file_ending=options.format,
        dry_run=options.dry_run,
        workspace=options.workspace,
        reporter=Console(),
    )
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``mre_import``."""
    return common.run(_main, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
