"""What the paper fixed for its two datasets: OHEM's groups and N_Lg (IV-C, Table I), and which labels it scores (IV-A).

A dataset is taken for one of the two by its labels' names. Everywhere else the groups are derived from each fold's
training labels.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class PaperGroups:
    """One of the paper's datasets. Each structure is written as the names it is known by.

    ``listed`` are the structures of the named group: OHEM's majority (``listed_are_majority``; background joins it) or
    its minority. ``scored`` are those that the paper evaluates; all of them must occur for the dataset to be known.
    """

    dataset: str
    n_lg: int
    listed_are_majority: bool
    listed: tuple[tuple[str, ...], ...]
    scored: tuple[tuple[str, ...], ...]
    reason: str

    def majority(self, labels: Iterable[str]) -> list[str]:
        """The labels of OHEM's majority group, background among them."""
        listed = {name for names in self.listed for name in names}
        return [n for n in labels if n == "background" or (plain(n) in listed) == self.listed_are_majority]

    def scored_labels(self, labels: Iterable[str]) -> list[str]:
        """The labels that the paper evaluates, in the dataset's order."""
        wanted = {name for names in self.scored for name in names}
        return [name for name in labels if plain(name) in wanted]


def plain(name: str) -> str:
    """A label's name in lower case, words joined by one blank: "Right_Kidney" and "right kidney" are the same."""
    return re.sub(r"[^a-z0-9]+", " ", name.lower()).strip()


_GM = ("gm", "gray matter", "grey matter", "cortical gray matter", "cortical grey matter")
_WM = ("wm", "white matter")
_VT = ("vt", "ventricles", "ventricle")

MRBRAINS18 = PaperGroups(
    dataset="MRBrainS18",
    n_lg=6,
    listed_are_majority=True,
    listed=(_GM, _WM, _VT),
    scored=(
        _GM, ("bg", "basal ganglia"), _WM,
        ("wmh", "white matter hyperintensities", "white matter hyper intensities", "white matter lesions"),
        ("csf", "cerebrospinal fluid", "cerebrospinal fluid in the extracerebral space"), _VT, ("cb", "cerebellum"),
        ("bs", "brain stem", "brainstem"),
    ),
    reason="majority background, GM, WM, VT",
)  # fmt: skip

BTCV = PaperGroups(
    dataset="BTCV",
    n_lg=4,
    listed_are_majority=False,
    listed=(("gallbladder",), ("esophagus", "oesophagus")),
    scored=(
        ("spleen",), ("right kidney", "kidney right", "r kid", "r kidney"),
        ("left kidney", "kidney left", "l kid", "l kidney"), ("gallbladder",), ("esophagus", "oesophagus"), ("liver",),
        ("stomach",), ("pancreas",),
    ),
    reason="minority gallbladder and esophagus",
)  # fmt: skip

KNOWN = (MRBRAINS18, BTCV)


def groups_of(labels: Iterable[str]) -> PaperGroups | None:
    """The dataset of the paper whose evaluated structures all occur among ``labels``, if one does."""
    there = {plain(name) for name in labels}
    return next((known for known in KNOWN if all(there & set(names) for names in known.scored)), None)
