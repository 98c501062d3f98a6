"""``mre_predict -i in/ -o out/``: label maps for new scans, on their own grids."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mre_lowshot.cli import common
from mre_lowshot.errors import UserError

EPILOG = """Input: case_0000.nii.gz (case_0001.nii.gz ... for more channels); for a one-channel model plain case.nii.gz
too. NIfTI, NRRD, MHA, MHD, PNG, TIFF; one RGB image case_0000.png may hold three channels. Output: one label map per
case, with the name and format of its input, on its grid. If no model is named, the newest trained one is used; the
choice is printed.

A folder without image files, and with DICOM in it or its subfolders, gives one case for each series that can be read,
whatever the names of the files (extra dicom). Series of another modality than the model's, and those that
cannot be read, are refused by name (exit code 1); localizers, reports and the like are left out. For a model of several
channels each study gives one case; its series are assigned by their descriptions, or by --series. --list shows what
would be taken. Output: DICOM SEG (CASE.seg.dcm), or what --output_format names. See docs/DICOM.md.

nnUNetv2_predict's -tr -npp -nps -chk --verbose are accepted (docs/SLICER.md).

quality.csv (with -num_parts quality_part0.csv ...) ranks the scans, those to check first on top, by a score between 0
and 1 for each scan and label: the agreement of the network with the labels warped by registration (where scans are
registered), or the expected Dice of the probabilities. It is not the Dice against a reference, and no threshold makes a
segmentation acceptable: check the scans in this order, and stop where the segmentations are correct.

label_descriptions.txt (for ITK-SNAP) and dseg.tsv (BIDS) give the labels' names and colours; NIfTI label maps hold them
too. docs/OUTPUTS.md describes every file.

run.json (run_part0.json ...) lists model, options, versions, and for each case its files with their SHA-256, seconds,
quality score, warnings and, where it failed, the reason. By it mre_predict recognises its own files: a corrected label
map, or any other file that it has not written, is replaced with --overwrite only. With --continue_prediction an empty
or damaged file is predicted again (what was in it is kept as NAME.damaged).

With --scheduler the scans are predicted on other machines, or in several processes of this one; files, run.json and
exit codes are the same. A scan whose worker is lost is done again on another one. A dask scheduler runs whatever its
clients send: use one in a network that you trust only (docs/CLUSTER.md, with a recipe for SLURM).

Exit code: 0 all predicted, 1 some scans failed (named; the others are done), 2 wrong use (nothing was done), 130 or 143
interrupted by Ctrl-C or SIGTERM (what is finished is kept; go on with --continue_prediction)."""


def _parser() -> argparse.ArgumentParser:
    made = common.parser("mre_predict", "Segment every scan in a folder with a trained model.", EPILOG)
    made.add_argument(
        "-i", required=True, type=common.path, metavar="DIR", help="folder with the scans or with DICOM (or one file)"
    )
    made.add_argument("-o", type=common.path, metavar="DIR", help="folder for the label maps")
    made.add_argument("-m", type=common.path, metavar="PATH",
                      help="model folder (.../MRETrainer__MREPlans__1shot), a zip file of mre_export_model, or one "
                      "checkpoint file")  # fmt: skip
    common.add_trained(made)
    made.add_argument("-chk", metavar="NAME",
                      help="checkpoint_final.pth or checkpoint_latest.pth of each fold (default: the final one, the "
                      "latest one where training has not ended)")  # fmt: skip
    made.add_argument("-tr", metavar="NAME", help="trainer of the model: MRETrainer, the only one")
    made.add_argument("--list", action="store_true",
                      help="list the scans or DICOM series found, which would be taken and why others would not, and "
                      "exit")  # fmt: skip
    made.add_argument("--series", nargs="+", default=[], metavar="SERIES",
                      help="of DICOM, take these series only: each by its UID, name (see --list), number, or a part of "
                      "its description; for a model of several channels one for each, in order")  # fmt: skip
    made.add_argument("--output_format", nargs="+", default=[], metavar="FORMAT",
                      help="formats of the label maps, one or several of nifti, nrrd, mha, seg.nrrd, dicom-seg, "
                      "dicom-labelmap (default: that of the scan; of DICOM: dicom-seg)")  # fmt: skip
    made.add_argument("-step_size", type=float, metavar="FRACTION",
                      help="distance of overlapping tiles, as fraction of the patch side (default: the plan's "
                      "tiling)")  # fmt: skip
    made.add_argument("--centre", action="store_true", help="the paper's tiling: each voxel predicted once")
    made.add_argument("--disable_tta", action="store_true", help="no test-time mirroring, even if the plan has it")
    made.add_argument("--precision", choices=("auto", "float32", "bf16"), default="float32",
                      help="bf16: faster, 3 significant digits; float32 is used if the first tile does not agree; "
                      "auto: bf16 if the device supports it natively (default: %(default)s)")  # fmt: skip
    made.add_argument(
        "--compile",
        action="store_true",
        help="run the network through torch.compile (on CUDA with CUDA graphs); compilation takes a minute or more; "
        "the uncompiled network is used if compilation fails or the output differs. Measured on a CPU: no faster. Not "
        "tried on a GPU",
    )
    made.add_argument("--overlays", action="store_true",
                      help="also draw overlays/CASE.png: slices with the labels' outlines")  # fmt: skip
    made.add_argument("--save_probabilities", action="store_true",
                      help="also write CASE.npz: probabilities (class, z, y, x) in LPS, whatever the file's "
                      "orientation")  # fmt: skip
    made.add_argument("--statistics", action="store_true",
                      help="also write statistics.csv and statistics.json: volume, mean, standard deviation and median "
                      "intensity, centroid and extent of each structure, and whether it touches the scan's "
                      "border")  # fmt: skip
    made.add_argument("--preview", action="store_true",
                      help="also draw previews/CASE.png: three planes, and the structures seen from three sides, with "
                      "names and volumes")  # fmt: skip
    made.add_argument("--report", action="store_true",
                      help="also write report.html: a page with scores, scans with their label maps, and warnings "
                      "(mre_report -h)")  # fmt: skip
    made.add_argument("--continue_prediction", action="store_true",
                      help="skip cases that are done: label map (and pictures, probabilities) exist, are whole, and "
                      "come from this scan, model and options; corrected label maps are kept, and measured with "
                      "--statistics")  # fmt: skip
    made.add_argument("--overwrite", action="store_true",
                      help="replace files that mre_predict has not written, or that have changed since (otherwise they "
                      "are refused before the work starts)")  # fmt: skip
    made.add_argument("-npp", type=int, default=1, metavar="COUNT",
                      help="process up to COUNT + 1 scans at the same time, as far as the memory allows (default: "
                      "%(default)s; 0: one scan after the other). The label maps do not depend on it")  # fmt: skip
    made.add_argument("-nps", type=int, default=1, metavar="COUNT",
                      help="accepted as by nnUNetv2_predict, without effect: label maps are written one at a "
                      "time")  # fmt: skip
    made.add_argument("--verbose", action="store_true", help="print the seconds of each case")
    made.add_argument("-num_parts", type=int, default=1, help="split the cases among this many runs")
    made.add_argument("-part_id", type=int, default=0, help="number of the part that this run predicts, from 0")
    made.add_argument("--scheduler", metavar="ADDRESS",
                      help="predict on the workers of a dask scheduler: its address (tcp://host:8786) or scheduler "
                      "file; extra cluster, see docs/CLUSTER.md")  # fmt: skip
    common.add_device(made)
    common.add_workspace(made)
    return made


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse options that cannot hold, before anything is loaded."""
    if options.o is None and not options.list:
        parser.error("the following arguments are required: -o")
    if options.tr not in (None, "MRETrainer"):
        raise UserError(
            f"-tr {options.tr!r}: models are trained by MRETrainer only; leave out -tr, or predict a model of nnU-Net "
            "with nnUNetv2_predict"
        )
    for name in ("npp", "nps"):
        count = getattr(options, name)
        if not 0 <= count <= 999:
            raise UserError(f"-{name} {count}: must lie in 0 to 999")
    if options.centre and options.step_size is not None:
        raise UserError("--centre and -step_size exclude each other; choose one tiling")


def _line(text: str) -> str:
    """Without control characters, which a header may hold."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _list(options: argparse.Namespace) -> int:
    from mre_lowshot.cli.console import Console
    from mre_lowshot.workflows.predict import list_scans

    found = list_scans(
        options.i,
        **common.trained(options),
        series=options.series,
        output=options.o,
        reporter=Console(),
    )
    for scan in found.scans:
        one, about = scan.series, [f"{len(scan.files)} file(s), {scan.files[0]}"]
        if one is not None:
            size, spacing = " x ".join(map(str, one.size)), " x ".join(f"{side:.4g}" for side in one.spacing)
            about = [one.modality, f"number {one.number}" if one.number else "", one.description, one.variant, *about]
            about += [f"{size} voxels of {spacing} mm (slice, row, column)" if one.size else "", one.uid]
        print(_line(f"{scan.name}: {'; '.join(filter(None, about))}"))
        taken = f"taken as channel {scan.channel}" if scan.channel else "taken"
        print(_line(f"  not taken: {scan.reason}" if scan.reason else f"  {taken}"))
        for note in one.notes if one is not None else ():
            print(_line(f"  note: {note}"))
    listed = {scan.reason for scan in found.scans}
    for problem in found.problems:
        if not any(reason and reason in problem for reason in listed):
            print(_line(problem))
    print(f"{sum(not scan.reason for scan in found.scans)} of {len(found.scans)} taken")
    return 0


def _main(arguments: Sequence[str] | None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    _check(parser, options)
    if options.list:
        return _list(options)

    from mre_lowshot.cli.console import Console
    from mre_lowshot.workflows.predict import predict

    if options.nps > 1:
        print("note: -nps above 1 has no effect: label maps are written one at a time")
    result = predict(
        options.i,
        options.o,
        **common.trained(options),
        folds=options.f,
        step_size=options.step_size,
        centre_tiles=options.centre,
        mirroring=not options.disable_tta,
        precision=options.precision,
        compile=options.compile,
        output_formats=options.output_format,
        series=options.series,
        checkpoint_name=options.chk,
        verbose=options.verbose,
        prefetch=options.npp,
        overlays=options.overlays,
        save_probabilities=options.save_probabilities,
        statistics=options.statistics,
        preview=options.preview,
        report=options.report,
        continue_prediction=options.continue_prediction,
        overwrite=options.overwrite,
        num_parts=options.num_parts,
        part_id=options.part_id,
        device=options.device,
        scheduler=options.scheduler,
        reporter=Console(),
    )
    return 1 if result.failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``mre_predict``."""
    return common.run(_main, arguments)


if __name__ == "__main__":  # python -m, where a program needs the interpreter's path
    raise SystemExit(main())
