"""``mre_predict -i in/ -o out/``: label maps for new scans, on their own grids."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mre_lowshot.cli import common
from mre_lowshot.errors import NumericalError, UserError

if TYPE_CHECKING:
    from mre_lowshot.dataset import Case
    from mre_lowshot.inference.export import Ready
    from mre_lowshot.inference.models import Model
    from mre_lowshot.inference.predictor import Predictor

EPILOG = """Input: case_0000.nii.gz (case_0001.nii.gz ... for more channels); with a one-channel model plain case.nii.gz
too. NIfTI, NRRD, MHA, MHD, PNG, TIFF; one RGB image case_0000.png may hold three channels. Output: one label map a
case, named and formatted like its input, on its grid.
quality.csv ranks the scans, those to check first on top: a score between 0 and 1 a scan and label, the agreement of
the network with the registered labels (where scans are registered) or the Dice that the probabilities expect. It is no
Dice itself and has no pass mark: look at scans from the top until they are right. (-num_parts: quality_part0.csv ...)
With no model named, the only trained one is used, else the one trained last; which one is said.

Exit code: 0 all predicted, 1 some scans failed (named; the others are done), 2 wrong use."""


def _parser() -> argparse.ArgumentParser:
    made = common.parser("mre_predict", "Segment every scan in a folder with a trained model.", EPILOG)
    made.add_argument("-i", required=True, type=Path, metavar="DIR", help="folder with the scans (or one scan file)")
    made.add_argument("-o", required=True, type=Path, metavar="DIR", help="folder for the label maps")
    made.add_argument("-m", type=Path, metavar="PATH",
                      help="model folder (.../MRETrainer__MREPlans__1shot), or a checkpoint file alone")  # fmt: skip
    made.add_argument("-d", metavar="DATASET", help="dataset the model was trained on: id, name or full name")
    made.add_argument("-c", metavar="LEVEL", help="level it was trained at: 1shot, 2shot, ...")
    made.add_argument("-p", metavar="NAME", help="name of its plan")
    made.add_argument("-f", nargs="+", metavar="FOLD", help="folds to average (default: all trained ones)")
    made.add_argument("-step_size", type=float, metavar="SHARE",
                      help="overlap tiles: step as a share of the patch (default: the plan's tiling)")  # fmt: skip
    made.add_argument("--centre", action="store_true", help="the paper's tiling: each voxel predicted once")
    made.add_argument("--disable_tta", action="store_true", help="no mirrored views, even if the plan has them")
    made.add_argument("--precision", choices=("auto", "float32", "bf16"), default="float32",
                      help="bf16: faster, rounded to 3 digits, used only if one tile comes out as in float32; auto: "
                      "where the device is made for it (default: %(default)s)")  # fmt: skip
    made.add_argument(
        "--compile",
        action="store_true",
        help="run the network through torch.compile (on CUDA with CUDA graphs), where that works and "
        "gives the same; takes a minute or more first. Measured on a CPU: no faster. Not tried on a GPU",
    )
    made.add_argument("--overlays", action="store_true",
                      help="also draw overlays/CASE.png: slices with the labels' outlines, to check by")  # fmt: skip
    made.add_argument("--save_probabilities", action="store_true",
                      help="also write CASE.npz: probabilities (class, z, y, x) turned to LPS, whatever the file's "
                      "orientation")  # fmt: skip
    made.add_argument("--continue_prediction", action="store_true", help="skip cases whose label map is there")
    made.add_argument("-num_parts", type=int, default=1, help="share the cases among this many runs")
    made.add_argument("-part_id", type=int, default=0, help="which part this run does, from 0")
    common.add_device(made)
    common.add_workspace(made)
    return made


def _check(options: argparse.Namespace) -> None:
    if not 0 <= options.part_id < options.num_parts:
        raise UserError(f"-part_id {options.part_id}: must lie in 0 to {options.num_parts - 1} (-num_parts)")
    if options.centre and options.step_size is not None:
        raise UserError("--centre and -step_size exclude each other; choose one tiling")
    if options.step_size is not None and not 0 < options.step_size <= 1:
        raise UserError(f"-step_size {options.step_size}: must lie in (0, 1]")
    if options.m and (options.d or options.c or options.p):
        raise UserError("-m names the model folder itself; leave out -d, -c and -p")
    if options.o.exists() and not options.o.is_dir():
        raise UserError(f"-o {options.o}: is a file; name a folder")
    if options.i.is_dir() and options.i.resolve() == options.o.resolve():
        raise UserError(f"-o {options.o}: is the input folder too; name another, so that no scan is overwritten")


def _model(options: argparse.Namespace) -> Model:
    from mre_lowshot import devices
    from mre_lowshot.inference.models import find_folder, load_model
    from mre_lowshot.splits import parse_fold, parse_level
    from mre_lowshot.workspace import Workspace

    device = devices.resolve(options.device)
    if options.m:
        folder, how = options.m, "-m"
        if not folder.exists():
            raise UserError(f"-m {folder}: is not a folder or checkpoint file; give .../MRETrainer__MREPlans__1shot")
    else:
        results = Workspace.resolve(options.workspace).results
        level = parse_level(options.c) if options.c else None
        folder, how = find_folder(results, options.d, level, options.p)
    folds = [parse_fold(f) for f in options.f] if options.f else ["all"]
    model = load_model(folder, None if "all" in folds else [f for f in folds if isinstance(f, int)], device)
    print(f"model: {folder} ({how}), fold{'s' if len(model.folds) > 1 else ''} {', '.join(map(str, model.folds))}")
    if model.unfinished:
        those = ", ".join(map(str, model.unfinished))
        print(f"note: fold {those} is not trained to the end (mre_train --c goes on); its newest checkpoint is used")
    return model


def _predictor(options: argparse.Namespace, model: Model) -> Predictor:
    from dataclasses import replace

    from tqdm import tqdm

    from mre_lowshot import devices
    from mre_lowshot.alignment import make_prior
    from mre_lowshot.inference.floors import joint_floors
    from mre_lowshot.inference.pooling import joint_rule
    from mre_lowshot.inference.predictor import Predictor

    rule = joint_rule(model.plans)
    if options.centre:
        rule = replace(rule, tiling="centre")
    if options.step_size is not None:
        rule = replace(rule, tiling="overlap", step=options.step_size)
    if options.disable_tta:
        rule = replace(rule, mirror_axes=())
    plan = model.plan
    priors = [make_prior(of_fold, plan) for of_fold in model.atlases]
    device = devices.resolve(options.device)
    return Predictor(
        model.networks,
        plan.network,
        plan.patch,
        rule,
        device,
        priors=priors,
        floors=joint_floors(model.plans),
        precision=options.precision,
        compile=options.compile,
        say=lambda line: tqdm.write(f"note: {line}", file=sys.stderr),
    )


def _cases(options: argparse.Namespace, channels: int) -> tuple[list[Case], list[str]]:
    from mre_lowshot.dataset import COLOUR_ENDINGS, CONVERT, Case, find_cases
    from mre_lowshot.volume import READABLE_ENDINGS, file_ending

    if options.i.is_file():
        if not file_ending(options.i):
            raise UserError(f"-i {options.i}: is none of {', '.join(READABLE_ENDINGS)}; {CONVERT}")
        if channels != 1 and file_ending(options.i) not in COLOUR_ENDINGS:  # one colour image holds all channels
            raise UserError(f"-i {options.i}: the model takes {channels} channels; give a folder with case_0000, ...")
        name = options.i.name[: -len(file_ending(options.i)) or None].removesuffix("_0000")
        if (options.o / f"{name}{file_ending(options.i)}").resolve() == options.i.resolve():
            raise UserError(f"-o {options.o}: the label map would overwrite {options.i}; name another folder")
        return [Case(name, (options.i,))], []
    cases, problems = find_cases(options.i, channels, None)
    return cases[options.part_id :: options.num_parts], problems


def _main(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    _check(options)
    if not options.i.exists():
        raise UserError(f"-i {options.i}: is not there; give a folder with scans")

    from tqdm import tqdm

    from mre_lowshot.evaluation.overlays import draw_case
    from mre_lowshot.inference.export import each_ready, kept_single, make_ready, predict_ready
    from mre_lowshot.inference.quality import first_to_check, read_rows, write_qualities
    from mre_lowshot.preprocessing.prepare import read_crops
    from mre_lowshot.volume import file_ending

    model = _model(options)
    cases, problems = _cases(options, len(model.plan.channel_names))
    crops = read_crops(options.i) if options.i.is_dir() else {}
    predictor = _predictor(options, model)
    single = kept_single(model.plans)
    quality_file = f"quality_part{options.part_id}.csv" if options.num_parts > 1 else "quality.csv"
    rated = read_rows(options.o / quality_file)  # a foreign file of that name is told before hours of work
    qualities = {}
    there = {c.name for c in cases if (options.o / f"{c.name}{file_ending(c.images[0])}").is_file()}
    todo = [case for case in cases if not (options.continue_prediction and case.name in there)]
    unrated = sorted(there - set(rated)) if options.continue_prediction else []
    if unrated:
        print(f"note: {quality_file} has no line of {', '.join(unrated)}: to rate them, remove their label maps first")
    done = len(cases) - len(todo)

    def make(case: Case) -> Ready:
        return make_ready(case, model.plan, model.atlases, crops.get(case.name))

    with tqdm(total=len(todo), desc="predict", unit="scan", disable=None, delay=2) as bar:
        for case, get in each_ready(todo, make, ahead=predictor.device.type != "cpu"):
            try:
                ready = get()
                qualities[case.name] = predict_ready(
                    case, ready, predictor, options.o, single, options.save_probabilities
                )
            except (UserError, NumericalError) as problem:
                text = str(problem)
                problems.append(text if text.startswith("case ") else f"case {case.name}: {text}")
            else:
                done += 1  # listed at once, so that an interrupted run has a line of all that it wrote
                write_qualities(options.o, {case.name: qualities[case.name]}, model.plan.labels, quality_file)
                if options.overlays:
                    title = f"{case.name}: quality score {qualities[case.name].score:.2f}"
                    written = options.o / f"{case.name}{file_ending(case.images[0])}"
                    draw_case(
                        options.o / "overlays" / f"{case.name}.png", case.images, written, model.plan.labels, title
                    )
                for warning in ready.warnings:
                    tqdm.write(f"warning: case {case.name}: {warning}", file=sys.stderr)
            bar.update()
    if qualities:
        print(f"least trusted, look at these first: {first_to_check(qualities)}; all in {options.o / quality_file}")
    for text in problems:
        print(f"failed: {text}", file=sys.stderr)
    print(f"{done} of {done + len(problems)} scans segmented, label maps in {options.o}")
    return 1 if problems else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``mre_predict``."""
    return common.run(_main, arguments)
