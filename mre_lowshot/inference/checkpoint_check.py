"""Whether a checkpoint's content fits its own plan: first the shapes that it claims, then the values."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import torch

from mre_lowshot.atlas.atlas import MAX_ATLASES
from mre_lowshot.config import Plan
from mre_lowshot.config.recipe import MAX_ITERATIONS
from mre_lowshot.errors import UserError
from mre_lowshot.grid import IGNORE
from mre_lowshot.inference.archive import TensorClaim, not_a_checkpoint
from mre_lowshot.network.build import outline, require_patch_memory
from mre_lowshot.plain import require_plain, shown

_KINDS = {torch.float32: "FloatStorage", torch.int64: "LongStorage"}


def check_claims(claims: dict[str, Any], plan: Plan, path: Path) -> None:
    """Compare the tensors that a checkpoint claims to hold with those of the plan's network and atlases.

    Raises:
        UserError: a name, shape or type differs, or the training state has another form.
    """
    expected = {
        name: TensorClaim(_KINDS[t.dtype], tuple(t.shape)) for name, t in outline(plan.network).state_dict().items()
    }
    _compare(claims["weights"], expected, f"{path}: weights")
    require_patch_memory(plan.network, plan.patch.size, batch=1, what=str(path))
    training = claims["training"]
    if not isinstance(training, dict) or not {"iteration", "history"} <= training.keys():
        _refuse(path, "training lacks iteration or history")
    iteration, history = training["iteration"], training["history"]
    if not isinstance(iteration, int) or isinstance(iteration, bool) or not 0 <= iteration <= MAX_ITERATIONS:
        _refuse(path, f"iteration is {shown(iteration)}")
    if not isinstance(history, dict) or not all(isinstance(values, list) for values in history.values()):
        _refuse(path, "the training history is no table of numbers")
    for name, values in history.items():
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        if not isinstance(name, str) or not numbers or len(values) > MAX_ITERATIONS:
            _refuse(path, "the training history is no table of numbers")
    if "network" in training:
        _compare(training["network"], expected, f"{path}: training.network")
    for name in ("dataset", "versions"):
        require_plain(claims.get(name), f"{path}: {name}")
    _check_atlases(claims["atlases"], plan, path)


def _compare(found: Any, expected: dict[str, TensorClaim], where: str) -> None:
    if not isinstance(found, dict):
        raise UserError(f"{where} are not those of the plan's network; the file is damaged, train again")
    for name in [*expected, *found]:
        if found.get(name) != expected.get(name):
            raise UserError(
                f"{where}: {shown(name)} is {_described(found.get(name))}, the plan's network has "
                f"{_described(expected.get(name))}; the plan was changed or the file is damaged, train again"
            )


def _described(claim: Any) -> str:
    if not isinstance(claim, TensorClaim):
        return "none" if claim is None else f"a {type(claim).__name__}"
    return f"a {claim.kind.removesuffix('Storage').lower()} tensor of shape {list(claim.shape)}"


def _check_atlases(atlases: Any, plan: Plan, path: Path) -> None:
    axes, channels = plan.network.axes, plan.network.in_channels
    needed = plan.recipe.atlas.registration != "none" or plan.network.atlas_prior
    if not isinstance(atlases, list) or not int(needed) <= len(atlases) <= MAX_ATLASES:
        _refuse(path, f"it must hold {int(needed)} to {MAX_ATLASES} atlases")
    for atlas in atlases:
        data = atlas if isinstance(atlas, dict) else {}
        image, label, spacing = data.get("image"), data.get("label"), data.get("spacing")
        if not isinstance(image, TensorClaim) or not isinstance(label, TensorClaim):
            _refuse(path, "an atlas lacks its image or label map")
        fits = image.kind == "HalfStorage" and label.kind == "ShortStorage" and len(label.shape) == axes
        if not fits or image.shape != (channels, *label.shape) or min(label.shape) < 1:
            _refuse(path, f"an atlas has {_described(image)} and {_described(label)} for {channels} channels")
        listed = spacing if isinstance(spacing, list) else []
        if len(listed) != axes or not all(isinstance(s, int | float) and 1e-9 < s < 1e9 for s in listed):
            _refuse(path, f"an atlas has the spacing {shown(spacing)}")


def check_values(content: dict[str, Any], plan: Plan, path: Path) -> None:
    """Check the values of a loaded checkpoint: weights and atlases are finite, atlas labels are classes.

    Raises:
        UserError: they are not.
    """
    for name, weight in content["weights"].items():
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            _refuse(path, f"weights: {name} holds NaN or infinite values")
    for atlas in content["atlases"]:
        if not bool(torch.isfinite(atlas["image"]).all()):
            _refuse(path, "the image of an atlas holds NaN or infinite values")
        low, high = int(atlas["label"].min()), int(atlas["label"].max())
        if low < IGNORE or high >= plan.network.classes:
            _refuse(path, f"an atlas has labels {low} to {high}, the plan {plan.network.classes} classes")


def _refuse(path: Path, reason: str) -> NoReturn:
    raise not_a_checkpoint(path, reason)
