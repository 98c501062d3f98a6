"""The description of a shared model: what it was trained on, its scores, its use and its limits."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mre_lowshot import __version__
from mre_lowshot.config import Plan
from mre_lowshot.data.pixel_size import UNIT_KEY, common_unit, unit_of
from mre_lowshot.errors import UserError
from mre_lowshot.files import read_json
from mre_lowshot.inference.ensemble import needs_tuning
from mre_lowshot.inference.model_archive import CARD

INTENDED_USE = (
    "Research: segmentation of scans of the same kind as the training scans (modality, region, field of view, "
    "resolution), each result checked by a person."
)
RESEARCH_ONLY = "For research only: not a medical device. Check every result before anyone relies on it."
LIMITS = (
    "Trained on very few annotated scans: anatomy, disease, age groups and scanners that these do not show may fail "
    "without any sign of it.",
    "Scans outside the training ranges below are predicted with a warning.",
    "The quality score ranks scans; no threshold makes a segmentation acceptable.",
)
OTHER_WEIGHTS = "the last validation scored other weights, or does not state which; no scores are given"
_SCORES = ("Dice", "HD95", "NSD")


def scores_of(fold: Path, labels: Mapping[str, int], weights: str) -> tuple[dict[str, Any] | None, str]:
    """Means of a fold's validation/summary.json, or of the model.json of an installed model, and why there are none.

    Args:
        fold: its folder.
        labels: name to value.
        weights: `checkpoint.weights_digest` of the fold; scores of other weights are not taken.

    Returns:
        None without scores; and the reason where there are scores of other weights, otherwise an empty text.

    Raises:
        UserError: the file has another form.
    """
    path = fold / "validation" / "summary.json"
    names = {name: str(value) for name, value in labels.items() if value}
    try:
        if path.is_file():
            data = read_json(path, "summary of the validation")
            scores: dict[str, Any] | None = _means(
                data["number_of_cases"],
                data["foreground_mean"],
                {n: data["mean"][v] for n, v in names.items()},
                data.get(UNIT_KEY),
            )
        else:
            path, data = fold.parent / CARD, _installed_row(fold)
            found = data.get("scores")
            scores = None
            if found:
                labelled = {n: found["labels"][n] for n in names}
                scores = _means(found["cases"], found, labelled, found.get(UNIT_KEY))
            if scores is None:
                return None, OTHER_WEIGHTS if data.get("scores_note") else ""
        return (None, OTHER_WEIGHTS) if scores and data.get("weights_sha256") != weights else (scores, "")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as problem:
        raise UserError(
            f"{path}: is no summary of this model's validation ({type(problem).__name__}: {problem}); move it away, or "
            "score the fold again with mre_train --val"
        ) from None


def day_trained(fold: Path, checkpoint: Path) -> str:
    """The day on which a fold was trained: of its run.json, else of the installed model, else of the checkpoint's
    file (YYYY-MM-DD)."""
    dates: list[Any] = [_installed_row(fold).get("trained")]
    with suppress(UserError, KeyError, TypeError, AttributeError):
        runs = read_json(fold / "run.json", "record of the training")["runs"]
        dates = [*(run["ended"] for run in reversed(runs) if run.get("mode") != "validate"), *dates]
    for text in dates:
        with suppress(ValueError, TypeError):
            return datetime.datetime.fromisoformat(text).date().isoformat()
    return datetime.datetime.fromtimestamp(checkpoint.stat().st_mtime, datetime.timezone.utc).date().isoformat()


def _installed_row(fold: Path) -> dict[str, Any]:
    """The entry of a fold in the model.json of an installed model; empty where it was trained here."""
    path = fold.parent / CARD
    if not path.is_file():
        return {}
    card = read_json(path, "model card")
    rows = card.get("folds") if isinstance(card, dict) else None
    listed = rows if isinstance(rows, list) else []
    return next((row for row in listed if isinstance(row, dict) and f"fold_{row.get('fold')}" == fold.name), {})


def _means(cases: Any, whole: Mapping[str, Any], labels: Mapping[str, Mapping[str, Any]], unit: Any) -> dict[str, Any]:
    return {
        "cases": int(cases),
        **({UNIT_KEY: "px"} if unit_of(unit) == "px" else {}),
        **_scores(whole),
        "labels": {name: _scores(of) for name, of in labels.items()},
    }


def _scores(means: Mapping[str, Any]) -> dict[str, float | None]:
    """The scores of a card; NSD may be absent (a model exported before it was computed)."""
    return {score: _number(means.get(score) if score == "NSD" else means[score]) for score in _SCORES}


def _number(value: Any) -> float | None:
    return None if value is None else round(float(value), 4)


def fold_entry(
    plan: Plan, content: Mapping[str, Any], *, scores: tuple[Mapping[str, Any] | None, str], weights: str, trained: str
) -> dict[str, Any]:
    """What a card holds of one fold.

    Args:
        plan: the fold's.
        content: of its checkpoint.
        scores: of `scores_of`.
        weights: `checkpoint.weights_digest`.
        trained: the day.
    """
    decisions = plan.fold
    iteration, total = content["training"]["iteration"], plan.recipe.optimizer.iterations
    return {
        "fold": decisions.fold if decisions else 0,
        "training_scans": len(decisions.train) if decisions else 0,
        "labelled_scans_inside": len(content["atlases"]),
        "iterations": iteration,
        "complete": iteration >= total and not needs_tuning(plan),
        "trained": trained,
        "versions": dict(content.get("versions") or {}),
        "weights_sha256": weights,
        "scores": dict(scores[0]) if scores[0] else None,
        "scores_note": scores[1],
    }


def make_card(
    plan: Plan, level: str, folds: Sequence[Mapping[str, Any]], *, names_replaced: bool, intended_use: str | None
) -> dict[str, Any]:
    """The content of model.json, without the list of members."""
    inside = max(fold["labelled_scans_inside"] for fold in folds)
    return {
        "dataset": plan.dataset_name,
        "plans_name": plan.plans_name,
        "level": level,
        "modality": list(plan.channel_names),
        "labels": plan.labels,
        "training_ranges": plan.training_ranges,
        "recipe": plan.recipe.name,
        "architecture": plan.recipe.architecture,
        "intended_use": intended_use or INTENDED_USE,
        "limits": list(LIMITS),
        "notice": RESEARCH_ONLY,
        "privacy": privacy(inside),
        "case_names_replaced": names_replaced,
        "exported_with": f"mre_lowshot {__version__}",
        "folds": list(folds),
    }


def privacy(inside: int) -> str:
    """What a model reveals of patients; ``inside`` is the number of labelled scans in a checkpoint."""
    weights = "Weights trained on few scans may still reveal something of them."
    if not inside:
        return f"No scan is in this model. {weights}"
    return (
        f"Patient data: each fold holds the preprocessed images and label maps of up to {inside} labelled training "
        f"scan{'s' if inside > 1 else ''}, because new scans are registered to them. Share it only as you would share "
        f"the scans. {weights}"
    )


def card_text(card: Mapping[str, Any]) -> str:
    """The content of MODEL_CARD.md."""
    labels = ", ".join(f"{value} {_plain(name)}" for name, value in card["labels"].items())
    ranges = card["training_ranges"]
    unit = common_unit(unit_of(fold["scores"].get(UNIT_KEY)) for fold in card["folds"] if fold["scores"])
    lines = [
        f"# {_plain(card['dataset'])}, {_plain(card['plans_name'])}, {_plain(card['level'])}",
        "",
        f"**{card['notice']}**",
        "",
        "A model of mre_lowshot. Install it with `mre_install_model`, or use it directly: `mre_predict -m FILE.zip`.",
        "",
        "## Trained on",
        "",
        f"- Dataset: {_plain(card['dataset'])}, level {_plain(card['level'])}",
        f"- Modality: {', '.join(map(_plain, card['modality']))}",
        f"- Labels: {labels}",
        *_range_lines(ranges),
        f"- Recipe: {_plain(card['recipe'])} ({card['architecture']})",
        "",
        "## Folds and scores",
        "",
        "Scores are means over the fold's test scans, which it was not trained on.",
        "",
        f"| fold | training scans | scans inside | iterations | trained | test scans | Dice | HD95 ({unit}) | NSD |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_row(fold) for fold in card["folds"]),
        "",
        *_score_notes(card["folds"]),
        *_label_table(card),
        "## Intended use",
        "",
        _plain(card["intended_use"]),
        "",
        "## Limits",
        "",
        *(f"- {text}" for text in card["limits"]),
        "",
        "## Patient data",
        "",
        card["privacy"],
        "",
        "Names of cases are replaced by case_1, case_2 ..."
        if card["case_names_replaced"]
        else "Names of cases are kept.",
        "",
        "## Software",
        "",
        f"Exported with {card['exported_with']}. "
        + "; ".join(f"fold {f['fold']}: {_versions(f['versions'])}" for f in card["folds"]),
    ]
    return "\n".join(lines) + "\n"


def _range_lines(ranges: Mapping[str, Any]) -> list[str]:
    found = []
    if "scans" in ranges:
        found.append(f"- Scans that were measured: {ranges['scans']}")
    for key, text in (("spacing", "Spacing (z, y, x), mm"), ("extent_mm", "Extent (z, y, x), mm")):
        if key in ranges:
            low, high = ranges[key]
            found.append(f"- {text}: " + ", ".join(f"{a:.4g} to {b:.4g}" for a, b in zip(low, high, strict=True)))
    return found


def _row(fold: Mapping[str, Any]) -> str:
    scores = fold["scores"] or {}
    state = "" if fold["complete"] else " (not complete)"
    cells = [fold[key] for key in ("fold", "training_scans", "labelled_scans_inside")]
    cells += [f"{fold['iterations']}{state}", fold["trained"], scores.get("cases", 0)]
    cells += [_score(scores.get(name)) for name in _SCORES]
    return "| " + " | ".join(map(str, cells)) + " |"


def _score_notes(folds: Sequence[Mapping[str, Any]]) -> list[str]:
    noted = [f"- Fold {fold['fold']}: {fold['scores_note']}." for fold in folds if fold["scores_note"]]
    return [*noted, ""] if noted else []


def _label_table(card: Mapping[str, Any]) -> list[str]:
    scored = [fold for fold in card["folds"] if fold["scores"]]
    if not scored:
        return []
    names = [name for name, value in card["labels"].items() if value]
    rows = [
        f"| {_plain(name)} | "
        + " | ".join(_score(fold["scores"].get("labels", {}).get(name, {}).get("Dice")) for fold in scored)
        + " |"
        for name in names
    ]
    head = "| Dice | " + " | ".join(f"fold {fold['fold']}" for fold in scored) + " |"
    return [head, "|---" * (len(scored) + 1) + "|", *rows, ""]


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{_plain(name)} {_plain(text)}" for name, text in versions.items()) or "unknown"


def _plain(text: Any) -> str:
    """``text`` in Markdown: shown as it is."""
    return "".join(f"\\{letter}" if letter in "\\`*[]<>|#" else letter for letter in str(text))
