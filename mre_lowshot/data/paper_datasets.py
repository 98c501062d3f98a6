"""Settings of the paper for its two datasets: OHEM groups and N_Lg (IV-C, Table I), and the labels evaluated (IV-A).

A dataset is recognised by the names of its labels. For other datasets the groups are derived from the training labels
of each fold.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class PaperGroups:
    """OHEM groups and evaluated labels of a dataset. A structure is a tuple of its accepted names."""

    dataset: str
    ohem_ratio: int  # N_Lg, majority voxels kept per minority voxel
    listed_are_majority: bool  # whether `listed` is the majority group (without background) or the minority group
    listed: tuple[tuple[str, ...], ...]
    scored: tuple[tuple[str, ...], ...]  # structures that the paper evaluates; a known dataset has all of them
    reason: str  # for the plan
    bias_field_corrected: bool = False  # the published scans were corrected with N4 (IV-A)

    def majority(self, labels: Iterable[str]) -> list[str]:
        """The labels of OHEM's majority group, including background."""
        listed = {name for names in self.listed for name in names}
        return [n for n in labels if n == "background" or (plain(n) in listed) == self.listed_are_majority]

    def scored_labels(self, labels: Iterable[str]) -> list[str]:
        """The labels that the paper evaluates, in the order of ``labels``."""
        wanted = {name for names in self.scored for name in names}
        return [name for name in labels if plain(name) in wanted]


def plain(name: str) -> str:
    """Normalise a label name: lower case, words separated by one space ("Right_Kidney" becomes "right kidney")."""
    return re.sub(r"[^a-z0-9]+", " ", name.lower()).strip()


_GM = ("gm", "gray matter", "grey matter", "cortical gray matter", "cortical grey matter")
_WM = ("wm", "white matter")
_VT = ("vt", "ventricles", "ventricle")

MRBRAINS18 = PaperGroups(
    dataset="MRBrainS18",
    ohem_ratio=6,
    listed_are_majority=True,
    listed=(_GM, _WM, _VT),
    scored=(
        _GM, ("bg", "basal ganglia"), _WM,
        ("wmh", "white matter hyperintensities", "white matter hyper intensities", "white matter lesions"),
        ("csf", "cerebrospinal fluid", "cerebrospinal fluid in the extracerebral space"), _VT, ("cb", "cerebellum"),
        ("bs", "brain stem", "brainstem"),
    ),
    reason="majority GM, WM, VT (paper, IV-C) and background",
    bias_field_corrected=True,
)  # fmt: skip

BTCV = PaperGroups(
    dataset="BTCV",
    ohem_ratio=4,
    listed_are_majority=False,
    listed=(("gallbladder",), ("esophagus", "oesophagus")),
    scored=(
        ("spleen",), ("right kidney", "kidney right", "r kid", "r kidney"),
        ("left kidney", "kidney left", "l kid", "l kidney"), ("gallbladder",), ("esophagus", "oesophagus"), ("liver",),
        ("stomach",), ("pancreas",),
    ),
    reason="minority gallbladder and esophagus (paper, IV-C)",
)  # fmt: skip

KNOWN = (MRBRAINS18, BTCV)


def groups_of(labels: Iterable[str]) -> PaperGroups | None:
    """The dataset of the paper of which ``labels`` contains all evaluated structures; None if there is none."""
    present = {plain(name) for name in labels}
    return next((known for known in KNOWN if all(present & set(names) for names in known.scored)), None)
