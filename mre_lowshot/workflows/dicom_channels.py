"""DICOM for a model of several channels: which series of a study is which channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mre_lowshot.data.dataset import Case
from mre_lowshot.data.dicom.choice import modality_of, names_of, selected
from mre_lowshot.data.dicom.series import Series
from mre_lowshot.data.importing.words import assigned, tokens
from mre_lowshot.errors import UserError

_MODALITY_NAMES = ("ct", "mr", "mri", "us", "ultrasound", "pet")  # channels that a modality alone identifies
NOT_SELECTED = "is not selected by --series"


@dataclass
class Assignment:
    """The series of a folder as channels.

    Attributes:
        cases: one for each study that has a series for each channel; named as the series of the first channel.
        problems: of studies that form no case, one line each.
        channels: of each series that is taken: the name of its channel.
        reasons: why each of the others is not taken.
    """

    cases: list[Case] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    channels: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


def assign_channels(found: Sequence[Series], channels: Sequence[str], wanted: Sequence[str] = ()) -> Assignment:
    """The channels of each study: the series that ``wanted`` names, or those whose descriptions contain the channels'
    names as words (a channel named after a modality: the series of that modality). Nothing is guessed: a channel that
    no series or several series fit is a problem of its study.

    Args:
        found: all series; their names are distinct.
        channels: names of the model's channels, in order.
        wanted: one text for each channel (`data.dicom.choice.selected`); empty: by the channels' names.

    Raises:
        UserError: ``wanted`` has another length or names nothing, or is needed because two channels have one name.
    """
    order = ", ".join(channels)
    if wanted and len(wanted) != len(channels):
        raise UserError(
            f"--series: the model takes {len(channels)} channels; name one series for each, in the order {order} "
            f"(found: {len(wanted)})"
        )
    if not wanted and len(set(channels)) < len(channels):
        raise UserError(f"channels {order}: two have one name; name a series for each, in this order, with --series")
    chosen = [{one.name for one in selected(found, [text])} for text in wanted]
    made = Assignment()
    studies: dict[tuple[str, str], list[Series]] = {}
    for one in found:
        if one.uid:
            studies.setdefault((one.patient_id, one.study_uid), []).append(one)
        else:
            made.reasons[one.name] = NOT_SELECTED if wanted else one.problem
    for members in studies.values():
        scans = [one for one in members if not one.is_no_scan or any(one.name in names for names in chosen)]
        fitting = _named(scans, chosen) if wanted else _by_words(scans, channels)
        if wanted and not any(fitting):
            made.reasons |= {one.name: NOT_SELECTED for one in members}
            continue
        made.reasons |= {one.name: one.problem or f"is none of the channels {order}" for one in members}
        if not scans:
            continue
        if problem := _problem(scans, fitting, channels):
            made.problems.append(problem)
            made.reasons |= {one.name: one.problem or problem for one in scans}
            continue
        series = tuple(fits[0] for fits in fitting)
        files = tuple(dict.fromkeys(path for one in series for path in one.files))
        made.cases.append(Case(series[0].name, files, series=series))
        for one, channel in zip(series, channels, strict=True):
            made.channels[one.name] = channel
            made.reasons[one.name] = ""
    return made


def _named(scans: Sequence[Series], chosen: Sequence[set[str]]) -> list[list[Series]]:
    return [[one for one in scans if one.name in names] for names in chosen]


def _by_words(scans: Sequence[Series], channels: Sequence[str]) -> list[list[Series]]:
    found = assigned(scans, dict.fromkeys(channels, ""), lambda one: (one.description,))
    return [_of_modality(scans, found, channel) for channel in channels]


def _of_modality(scans: Sequence[Series], found: Mapping[str, Sequence[Series]], channel: str) -> list[Series]:
    """The series that fit a channel by their descriptions and have its modality; where none does and the channel is
    named after a modality, all of that modality."""
    modality = modality_of(channel)
    fitting = [one for one in found[channel] if not modality or one.modality == modality]
    if fitting or " ".join(tokens(channel)) not in _MODALITY_NAMES:
        return fitting
    return [one for one in scans if one.modality == modality]


def _problem(scans: Sequence[Series], fitting: Sequence[Sequence[Series]], channels: Sequence[str]) -> str:
    """Why a study forms no case, with its series and the fix; empty where it does."""
    why = _why(fitting, channels)
    if not why:
        for channel, (one, *_) in zip(channels, fitting, strict=True):
            if one.problem:
                return f"series {one.name} (channel {channel}) {one.problem}"
        first, *others = (fits[0] for fits in fitting)
        off = next((one for one in others if _differences(first, one)), None)
        if off is None:
            return ""
        return (
            f"series {off.name}: is not on the grid of {first.name}: {'; '.join(_differences(first, off))}; resample "
            "it onto that grid first, for example in 3D Slicer, and give both as files case_0000, case_0001, ..."
        )
    return (
        f"study of patient {scans[0].patient_id or '(no ID)'}: {why}; its series: {names_of(scans)}; name one for each "
        f"channel, in the order {', '.join(channels)}, with --series"
    )


def _why(fitting: Sequence[Sequence[Series]], channels: Sequence[str]) -> str:
    for channel, fits in zip(channels, fitting, strict=True):
        if len(fits) > 1:
            return f"several series fit channel {channel} ({names_of(fits)})"
    for channel, fits in zip(channels, fitting, strict=True):
        if not fits:
            return f"no series fits channel {channel}"
    names = [fits[0].name for fits in fitting]
    twice = next((name for name in names if names.count(name) > 1), "")
    return f"series {twice} fits several channels" if twice else ""


def _differences(one: Series, other: Series) -> list[str]:
    return one.geometry.differences(other.geometry) if one.geometry and other.geometry else []
