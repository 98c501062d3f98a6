"""What an import would write: cases with their names, labels and channels, and everything that stands against it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mre_lowshot.data.dicom.names import case_name
from mre_lowshot.data.importing.channels import Unit, group_channels
from mre_lowshot.data.importing.labels import LabelOptions, Labels, survey
from mre_lowshot.data.importing.pairing import Pair, propose
from mre_lowshot.data.importing.sources import Found
from mre_lowshot.data.importing.stated import matched, read_pairs
from mre_lowshot.data.listing import MAX_FILE_NAME, name_problem, twins
from mre_lowshot.data.vocabulary import is_ct
from mre_lowshot.errors import UserError

PARTS = ("imagesTs", "imagesTr")
CASE_NAMES = "{name}_{number}"
_FIELDS = ("name", "number", "patient", "file", "folder", "series")


@dataclass(frozen=True)
class Options:
    """What the user states; see `workflows.importing.import_dataset`."""

    name: str
    modality: str = ""
    channels: Mapping[str, str] = field(default_factory=dict)
    labels: LabelOptions = field(default_factory=LabelOptions)
    pairs: Path | None = None
    test: str = ""
    case_names: str = CASE_NAMES
    file_ending: str = ".nii.gz"
    masks: bool = False


@dataclass(frozen=True)
class Entry:
    """A case: its name, folder (imagesTr or imagesTs), scans, and pair (None: unlabelled).

    ``values`` and ``voxels`` are those of `Labels` for its label map.
    """

    case: str
    part: str
    unit: Unit
    pair: Pair | None = None
    values: Mapping[int, int] = field(default_factory=dict)
    voxels: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Proposal:
    """What is written, and why something is not.

    Attributes:
        options: what the user stated.
        found: all scans and label maps.
        entries: the cases.
        channel_names: of the dataset.
        labels: of the dataset.
        left_out: (name, reason) of scans and other files.
        notes: one sentence each.
        problems: what stands against the import, with the fix, one sentence each.
    """

    options: Options
    found: Found
    entries: list[Entry] = field(default_factory=list)
    channel_names: tuple[str, ...] = ()
    labels: Labels = field(default_factory=Labels)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def dataset_json(self) -> dict[str, Any]:
        """The content of dataset.json."""
        training = sum(entry.part == "imagesTr" for entry in self.entries)
        made: dict[str, Any] = {
            "name": self.options.name,
            "channel_names": {str(i): name for i, name in enumerate(self.channel_names)},
            "labels": self.labels.values,
            "numTraining": training,
            "file_ending": self.options.file_ending,
        }
        if self.labels.codes:
            made["label_codes"] = {name: list(code) for name, code in self.labels.codes.items()}
        return made


def make_proposal(found: Found, options: Options) -> Proposal:
    """Pair, name and number what was found. Every label map is read.

    Raises:
        UserError: ``options.pairs`` cannot be read, or does not name what was found.
    """
    made = Proposal(options, found, left_out=list(found.left_out), problems=list(found.problems))
    if options.channels:
        units, out, problems = group_channels(found.scans, options.channels)
        made.left_out += out
        made.problems += problems
    else:
        units = [Unit((scan,)) for scan in found.scans]
    given, cases = ([], {}) if options.pairs is None else matched(
        read_pairs(options.pairs), units, found.labels, options.pairs
    )  # fmt: skip
    pairing = propose(units, found.labels, given, masks=options.masks)
    made.problems += pairing.problems
    if not pairing.pairs and not made.problems:
        if found.scans:
            made.problems.append(
                f"none of the {len(found.scans)} scans has a label map; add one (NIfTI, NRRD, seg.nrrd, MHA, DICOM "
                "SEG), or give the folder of label maps with --labels where they are taken for scans"
            )
        else:
            made.problems.append("there is no scan in the folders (see what is left out); give other folders")
    made.labels = survey(pairing.pairs, options.labels)
    made.problems += made.labels.problems
    made.notes += made.labels.notes
    made.channel_names = _channel_names(made, pairing.pairs)
    unlabelled = _unlabelled(made, pairing.unlabelled)
    _name_cases(made, units, pairing.pairs, unlabelled=unlabelled, stated=cases)
    for entry in made.entries:
        sources = [*entry.unit.scans, *([entry.pair.label] if entry.pair else [])]
        made.notes += [f"{source.name}: {note}" for source in sources for note in source.notes]
    return made


def _channel_names(made: Proposal, pairs: Sequence[Pair]) -> tuple[str, ...]:
    options = made.options
    if options.channels:
        return tuple(options.channels)
    found = {scan.modality for pair in pairs for scan in pair.unit.scans}
    if options.modality:
        others = found - {"", options.modality}
        if others and (is_ct(options.modality) or "CT" in others):
            made.problems.append(
                f"--modality {options.modality}: DICOM states {', '.join(sorted(others))}; leave --modality out, or "
                "those scans (--leave_out)"
            )
        return (options.modality,)
    if found == {""} or (not found and pairs):
        made.problems.append("the files do not show the modality; give it, as in --modality CT (MRI, US, PET, T1, ...)")
        return ()
    if len(found) > 1:
        names = ", ".join(sorted(name or "unknown" for name in found))
        made.problems.append(
            f"the labelled scans are of several modalities ({names}), and a model takes one; leave the others out "
            "(--leave_out), or import them as another dataset"
        )
        return ()
    return tuple(found)


def _unlabelled(made: Proposal, units: Sequence[Unit]) -> list[Unit]:
    """The unlabelled scans that are taken; the others are left out."""
    taken = []
    for unit in units:
        modalities = {scan.modality for scan in unit.scans} - {""}
        other = not made.options.channels and modalities - set(made.channel_names)
        if not made.options.test:
            made.left_out.append((unit.name, "has no label map (--test takes it as an unlabelled case)"))
        elif other and not made.options.modality:
            made.left_out.append((unit.name, f"is {', '.join(sorted(modalities))}, unlike the labelled scans"))
        else:
            taken.append(unit)
    return taken


def _name_cases(
    made: Proposal,
    units: Sequence[Unit],
    pairs: Sequence[Pair],
    *,
    unlabelled: Sequence[Unit],
    stated: Mapping[int, str],
) -> None:
    paired = {id(pair.unit): (number, pair) for number, pair in enumerate(pairs)}
    taken = [unit for unit in units if id(unit) in paired or any(unit is other for other in unlabelled)]
    digits = 3 if len(taken) < 1000 else 5  # four digits at the end of a name would be a channel number
    short = made.options.name.split("_", 1)[1]
    for number, unit in enumerate(taken, start=1):
        scan = unit.scans[0]
        words = {
            "name": short, "number": f"{number:0{digits}d}", "patient": scan.patient, "file": scan.stems[0],
            "folder": scan.path.name if scan.series else scan.path.parent.name,
            "series": scan.series.name if scan.series else scan.stems[0],
        }  # fmt: skip
        name = stated.get(id(unit)) or case_name(*made.options.case_names.format_map(words).split("_"))
        problem = name_problem(name) or ("begins with a dot" if name.startswith(".") else None)
        if not problem and len(os.fsencode(f"{name}_0000{made.options.file_ending}")) > MAX_FILE_NAME:
            problem = f"is too long: with _0000{made.options.file_ending} more than {MAX_FILE_NAME} bytes"
        if problem:
            made.problems.append(f"case {name!r}: its name {problem}; give another one")
        place, pair = paired.get(id(unit), (-1, None))
        if pair is None:
            made.entries.append(Entry(name, made.options.test, unit))
        else:
            made.entries.append(Entry(name, "imagesTr", unit, pair, made.labels.maps[place], made.labels.voxels[place]))
    names = [entry.case for entry in made.entries]
    same = sorted({name for name in names if names.count(name) > 1}) or [" and ".join(t) for t in twins(names)]
    if same:
        made.problems.append(
            f"{same[0]}: several cases get this name; give --case_names a pattern with {{number}}, or other names in "
            "--pairs"
        )


def require_case_names(pattern: str) -> None:
    """Require a pattern of `CASE_NAMES`' kind.

    Raises:
        UserError: it is none.
    """
    try:
        pattern.format_map(dict.fromkeys(_FIELDS, "a"))
        fine = any(f"{{{name}}}" in pattern for name in _FIELDS)
    except (KeyError, ValueError, IndexError, AttributeError, TypeError):
        fine = False
    if not fine or len(pattern) > 100:
        fields = ", ".join(f"{{{name}}}" for name in _FIELDS)
        raise UserError(f"--case_names {pattern[:100]!r}: write a pattern of {fields}, as in {CASE_NAMES}")
