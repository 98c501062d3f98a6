"""Scans of several channels: which scan of a patient is which channel."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.importing.sources import Scan
from mre_lowshot.data.importing.words import assigned, core, tokens
from mre_lowshot.errors import UserError


@dataclass(frozen=True)
class Unit:
    """What becomes one case: a scan for each channel, all on one grid."""

    scans: tuple[Scan, ...]

    @property
    def name(self) -> str:
        """The name of the first scan."""
        return self.scans[0].name

    @property
    def geometry(self) -> Geometry:
        """The grid of all scans."""
        return self.scans[0].geometry


def parse_channels(texts: Sequence[str]) -> dict[str, str]:
    """``--channels``: name of each channel to its pattern; empty: the name itself as a word.

    Raises:
        UserError: a name is empty or occurs twice.
    """
    found: dict[str, str] = {}
    for text in (part.strip() for given in texts for part in given.split(",")):
        name, equals, pattern = text.partition("=")
        if not name.strip() or (equals and not pattern.strip()):
            raise UserError(f"--channels {text!r}: write NAME or NAME=PATTERN, as in FLAIR,T1=*t1*mprage*")
        if name.strip() in found:
            raise UserError(f"--channels: {name.strip()!r} occurs twice; name each channel once")
        found[name.strip()] = pattern.strip()
    return found


def group_channels(scans: Sequence[Scan], channels: Mapping[str, str]) -> tuple[list[Unit], list[tuple[str, str]],
                                                                               list[str]]:  # fmt: skip
    """Cases of several channels.

    Args:
        scans: all that were found.
        channels: name to pattern (`parse_channels`), at least two.

    Returns:
        The cases; (name, reason) of the scans that are left out; and the problems: channels that several scans of a
        patient fit, scans that fit several channels, or that are not on one grid.
    """
    groups: dict[tuple[str, ...], list[Scan]] = {}
    for scan in scans:
        groups.setdefault(_group(scan, channels), []).append(scan)
    units, left_out, problems = [], [], []
    for members in groups.values():
        fitting = assigned(members, channels, _texts)
        used = {id(scan) for found in fitting.values() for scan in found}
        left_out += [(s.name, f"is none of the channels {', '.join(channels)}") for s in members if id(s) not in used]
        if not used:
            continue
        several = {name: found for name, found in fitting.items() if len(found) > 1}
        missing = [name for name, found in fitting.items() if not found]
        fits_of = {id(s): [name for name, found in fitting.items() if any(s is f for f in found)] for s in members}
        if twice := next((s for s in members if len(fits_of[id(s)]) > 1), None):
            one, other = fits_of[id(twice)][:2]
            problems.append(
                f"{twice.name}: fits channel {one} and channel {other}; give patterns, as in --channels "
                f'"{one}=*PATTERN*", or --leave_out it'
            )
        elif several:
            name, found = next(iter(several.items()))
            both = " and ".join(scan.name for scan in found[:2])
            problems.append(
                f"channel {name}: {both} both fit; give a pattern that one of them matches, as in --channels "
                f'"{name}=*PATTERN*", or --leave_out the other'
            )
        elif missing:
            left_out += [(found[0].name, f"its patient has no channel {missing[0]}") for found in fitting.values()
                         if found]  # fmt: skip
        else:
            unit = Unit(tuple(fitting[name][0] for name in channels))
            off = [(scan, d) for scan in unit.scans[1:] if (d := unit.geometry.differences(scan.geometry))]
            if off:
                problems.append(
                    f"{off[0][0].name}: is not on the grid of {unit.name}: {'; '.join(off[0][1])}; register and "
                    "resample one onto the other first"
                )
            else:
                units.append(unit)
    return units, left_out, problems


def _texts(scan: Scan) -> tuple[str, ...]:
    return (scan.series.description,) if scan.series else scan.stems


def _group(scan: Scan, channels: Mapping[str, str]) -> tuple[str, ...]:
    """Equal for the scans of one patient and examination: of files, folder and the words apart from the channel's."""
    if scan.series:
        return ("dicom", scan.patient, scan.study)
    words = [w for w in core(re.sub(r"_\d{4}$", "", scan.stems[0])) if not _is_channel(w, channels)]
    return ("file", str(scan.path.parent), *words)


def _is_channel(word: str, channels: Mapping[str, str]) -> bool:
    for name, pattern in channels.items():
        parts = tokens(pattern) or tokens(name)
        if any(word == part or (len(part) > 1 and word.startswith(part) and not pattern) for part in parts):
            return True
    return False
