"""``mre_plan_and_preprocess -d X``: verify a dataset, decide how to treat it, and preprocess it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mre_lowshot.cli import common
from mre_lowshot.errors import UserError

if TYPE_CHECKING:
    from mre_lowshot.dataset import Case, RawDataset
    from mre_lowshot.specs import Plan
    from mre_lowshot.volume import Volume

EPILOG = """Writes, into preprocessed/DatasetXXX_Name/:
  dataset_fingerprint.json   what the images are like (labels are not looked at); mre_fingerprint.json where
                             nnU-Net's own is there
  MREPlans.json              what is done with them, each decision with its reason; edit it by hand if you like,
                             then run this command again with --keep_plan
  MREPlans/CASE.npz          the preprocessed cases
  gt_segmentations/          the label maps, for scoring on the scans' own grid

Examples:
  mre_plan_and_preprocess -d BTCV
  mre_plan_and_preprocess -d path/to/Dataset017_BTCV 4
  mre_plan_and_preprocess -d BTCV -p Modes1 --set network.modes=1

Exit code: 0 done, 2 wrong use or data (each problem is named)."""


def _parser() -> argparse.ArgumentParser:
    made = common.parser(
        "mre_plan_and_preprocess", "Verify datasets, plan how to segment them, and preprocess them.", EPILOG
    )
    made.add_argument(
        "-d",
        nargs="+",
        required=True,
        metavar="DATASET",
        help="id (17), name (BTCV), full name or path; several allowed",
    )
    made.add_argument("-p", default="MREPlans", metavar="NAME", help="name of the plan (default: %(default)s)")
    made.add_argument(
        "--recipe",
        default="default",
        help="default; paper, paper_aug (with its augmentation), both at the paper's size, paper_small, "
        "paper_aug_small at a CPU's; or the U-Net baseline unet, unet_spread, unet_default (default: %(default)s)",
    )
    made.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", dest="changes",
        help="change fields of the plan, as recipe.iterations=1000, network.modes=1 or network.dilations=paper "
        "(6, 12, 18; or patch: shares of the patch's sides); needs a -p of its own",
    )  # fmt: skip
    common.add_device(made)
    made.add_argument(
        "--memory",
        type=float,
        metavar="GB",
        help="GPU memory to plan for (default: what it has; without a GPU it changes nothing)",
    )
    made.add_argument("--keep_plan", action="store_true", help="use the plan that is there (perhaps edited by hand)")
    made.add_argument("--overwrite", action="store_true", help="replace a plan that is there and differs")
    made.add_argument("--no_pp", action="store_true", help="plan only, do not preprocess")
    common.add_workspace(made)
    return made


def _check(options: argparse.Namespace) -> None:
    if options.changes and options.p == "MREPlans":
        raise UserError("--set changes the plan, so it needs a name of its own: add -p NAME (not MREPlans)")
    if options.keep_plan and (options.changes or options.overwrite):
        raise UserError("--keep_plan takes the plan as it is; leave out --set and --overwrite")
    if options.memory is not None and options.memory <= 0:
        raise UserError(f"--memory {options.memory}: must be above 0 (GB)")
    if not options.p.replace("_", "").replace("-", "").isalnum() or "__" in f"_{options.p}_":
        raise UserError(
            f"-p {options.p!r}: use letters, digits, - and _ only, no _ first, last or doubled (it names folders)"
        )
    for change in options.changes:
        if "=" not in change:
            raise UserError(f"--set {change!r}: write KEY=VALUE, as network.modes=1")


def verified(raw: Path) -> tuple[RawDataset, dict[str, Any]]:
    """The dataset and its fingerprint; every problem is told at once."""
    from functools import partial

    from tqdm import tqdm

    from mre_lowshot.dataset import RawDataset
    from mre_lowshot.planners.fingerprint import case_fingerprint, dataset_fingerprint
    from mre_lowshot.planners.rules import hu_rule
    from mre_lowshot.verification import refuse, verify

    dataset = RawDataset.load(raw)
    measured: dict[str, dict[str, Any]] = {}

    def measure(case: Case, image: Volume, label: Volume | None) -> None:
        geometry = image.geometry
        measured[case.name] = case_fingerprint(image.array, geometry.spacing, geometry.orientation)

    problems = verify(dataset, measure, partial(tqdm, desc="verify", unit="scan", disable=None, delay=2))
    for case, found in measured.items():
        for channel, its in zip(dataset.channel_names, found["channels"], strict=True):
            if against := hu_rule(channel, its["percentile_00_5"], its["percentile_99_5"]):
                problems.append(f"case {case}: {against}")
    refuse(dataset, problems)
    return dataset, dataset_fingerprint(dataset.name, measured)


def _planned(options: argparse.Namespace, dataset: RawDataset, fingerprint: dict[str, Any]) -> Plan:
    from mre_lowshot import devices
    from mre_lowshot.planners.planner import DatasetFacts, make_plan, with_changes
    from mre_lowshot.planners.rules import Device

    device = devices.resolve(options.device)
    memory = options.memory or devices.memory_gb(device)
    planned_for = Device(device.type, memory)
    plan = make_plan(DatasetFacts.of(dataset), fingerprint, planned_for, options.recipe, options.p)
    pairs = (change.partition("=") for change in options.changes)
    return with_changes(plan, {key.strip(): value.strip() for key, _, value in pairs})


def _check_plan(plan: Plan, path: Path, dataset: RawDataset) -> None:
    """Refuse a kept plan that was made for another dataset.json."""
    pairs = {
        "dataset_name": dataset.name,
        "channel_names": dataset.channel_names,
        "labels": dataset.labels,
        "ignore_label": dataset.ignore_label,
        "file_ending": dataset.file_ending,
    }
    for key, now in pairs.items():
        if getattr(plan, key) != now:
            raise UserError(
                f"{path}: {key} is {getattr(plan, key)!r}, the dataset's {now!r}; edit it, or plan anew (--overwrite)"
            )


def _one(options: argparse.Namespace, name: str) -> None:
    from functools import partial

    from tqdm import tqdm

    from mre_lowshot.codec import to_json
    from mre_lowshot.files import write_json
    from mre_lowshot.planners.fingerprint import write_fingerprint
    from mre_lowshot.plans import first_difference, load_plan
    from mre_lowshot.preprocessing.prepare import prepare_dataset
    from mre_lowshot.workspace import Workspace

    workspace = Workspace.resolve(options.workspace)
    raw = workspace.find(name, "raw")
    folder = workspace.preprocessed / raw.name
    print(f"{raw.name}: from {raw} to {folder}")
    dataset, fingerprint = verified(raw)
    write_fingerprint(folder, fingerprint)
    path = folder / f"{options.p}.json"
    if options.keep_plan:
        plan = load_plan(path)
        _check_plan(plan, path, dataset)
    else:
        plan = _planned(options, dataset, fingerprint)
        there = load_plan(path) if path.is_file() and not options.overwrite else plan
        if there != plan:
            why = first_difference(there, plan)
            raise UserError(
                f"{path}: is there and differs from what would be planned now ({why}: edited by hand, other options, "
                "or other scans); --keep_plan uses it, --overwrite replaces it, -p NAME makes another"
            )
        write_json(path, to_json(plan))
    unlabelled = len(dataset.cases) - len(dataset.labelled)
    print(f"  {len(dataset.labelled)} labelled scans" + (f", {unlabelled} without labels" if unlabelled else ""))
    for decision, reason in plan.reasons.items():
        print(f"  {decision}: {reason}")
    print(f"  patch {plan.patch.size}, centre {plan.patch.centre} (z, y, x); plan written to {path}")
    if not options.no_pp:
        bar = partial(tqdm, desc="preprocess", unit="scan", disable=None, delay=2)
        for note in prepare_dataset(dataset, plan, folder, bar):
            print(f"  NOTE {note}")
        labelled = len(dataset.labelled)
        more = f"; or on all of them: mre_train {raw.name} all fold0" if labelled in (2, 3) else ""
        print(f"  {labelled} cases preprocessed; next: mre_train {raw.name} 1shot fold0{more}")


def _main(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    _check(options)
    for name in options.d:
        _one(options, name)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``mre_plan_and_preprocess``."""
    return common.run(_main, arguments)
