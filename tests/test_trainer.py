"""Training a fold: it learns, repeats, continues after an interruption, and stops at values that are not finite."""

from __future__ import annotations

import os
import pickle
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from references import TINY, TINY_2D, single_thread, tiny_case, tiny_plan  # noqa: F401

from mre_lowshot.config import AugmentationConfig, InferenceConfig, Plan
from mre_lowshot.errors import NumericalError, UserError
from mre_lowshot.inference import checkpoint
from mre_lowshot.sampling import TrainingCase
from mre_lowshot.trainers.trainer import MRETrainer
from mre_lowshot.trainers.training_log import TrainingLog

CPU = torch.device("cpu")
SPATIAL = AugmentationConfig(spatial_probability=0.8, elastic=0.05, gamma_probability=0.5, mirror_axes=(2,))


@pytest.fixture(autouse=True)
def no_picture(request, monkeypatch):
    """Drawing the curves takes longer than training here."""
    if "progress" not in request.node.name:
        monkeypatch.setattr(TrainingLog, "draw", lambda self: None)


def make(folder: Path, **settings) -> MRETrainer:
    return MRETrainer(tiny_plan(**settings), [tiny_case()], folder=folder, device=CPU)


def content(folder: Path, name: str = checkpoint.LATEST) -> dict:
    return checkpoint.load(folder / name, CPU)[1]


def assert_same(one: object, other: object, where: str = "") -> None:
    """Bit for bit, through dicts and lists."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for n, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}[{n}]")
    else:
        assert one == other or (one != one and other != other), where


@pytest.mark.parametrize("ohem", [True, False])
def test_the_loss_falls_and_the_labels_are_learned(tmp_path, ohem):
    trainer = make(tmp_path, iterations=60, batch_size=4, learning_rate=1e-2, ohem=ohem)
    trainer.fit()
    loss, dice = trainer.training_log.history["loss"], trainer.training_log.history["dice"]
    assert len(loss) == 60
    assert np.mean(loss[-10:]) < 0.6 * np.mean(loss[:5])
    assert np.nanmean(dice[-10:]) > np.nanmean(dice[:5]) + 0.15


def test_the_files_of_a_fold_and_its_progress_picture(tmp_path):
    trainer = make(tmp_path, iterations=2)
    trainer.fit()
    assert {p.suffix for p in tmp_path.iterdir()} >= {".pth", ".png"}
    assert (tmp_path / "progress.png").stat().st_size > 1000
    assert_same(content(tmp_path, checkpoint.FINAL), content(tmp_path))
    assert checkpoint.load(tmp_path / checkpoint.FINAL, CPU)[0] == trainer.plan
    assert not list(tmp_path.glob("*partial*"))


def test_the_same_seed_gives_the_same_weights(tmp_path):
    results = []
    for n, seed in enumerate((0, 0, 1)):
        torch.manual_seed(n)  # the state of torch's generator must not matter
        plan = tiny_plan(seed=seed, augmentation=SPATIAL, ema=0.9)
        trainer = MRETrainer(plan, [tiny_case()], folder=tmp_path / str(n), device=CPU)
        trainer.fit(workers=n % 2)
        results.append(content(tmp_path / str(n)))
    assert_same(results[0]["weights"], results[1]["weights"])
    assert_same(results[0]["training"], results[1]["training"])
    assert not torch.equal(results[0]["weights"]["head.prototypes"], results[2]["weights"]["head.prototypes"])


RECIPES = {
    "paper": {"step_every": 2},
    "cosine, moving average, augmentation": {"schedule": "cosine", "ema": 0.8, "augmentation": SPATIAL},
}


def raise_at(iteration: int):
    def on_step(trainer: MRETrainer) -> None:
        if trainer.iteration == iteration:
            signal.raise_signal(signal.SIGINT)

    return on_step


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, recipe):
    make(tmp_path / "whole", **recipe).fit()
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "parts", **recipe).fit(on_step=raise_at(3))
    assert content(tmp_path / "parts")["training"]["iteration"] == 3
    torch.manual_seed(123)
    again = make(tmp_path / "parts", **recipe)
    again.resume()
    again.fit()
    assert again.iteration == 6
    for name in (checkpoint.LATEST, checkpoint.FINAL):
        assert_same(content(tmp_path / "whole", name), content(tmp_path / "parts", name))


def test_ctrl_c_within_a_step_loses_nothing(tmp_path):
    """A signal arrives within an iteration: running statistics must not count its patches twice."""
    make(tmp_path / "whole").fit()
    first = make(tmp_path / "parts")
    calls = []

    def interrupt(*_):
        calls.append(1)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)

    first.network.backbone.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        first.fit()
    again = make(tmp_path / "parts")
    again.resume()
    assert again.iteration in (3, 4)
    again.fit()
    assert_same(content(tmp_path / "whole"), content(tmp_path / "parts"))


def test_a_finished_fold_resumed_stays_as_it_is(tmp_path):
    make(tmp_path).fit()
    before = content(tmp_path)
    again = make(tmp_path)
    again.resume()
    again.fit(on_step=lambda trainer: pytest.fail("no iteration is left"))
    assert_same(content(tmp_path), before)


def test_resuming_needs_a_checkpoint_of_the_same_plan(tmp_path):
    with pytest.raises(UserError, match="missing"):
        make(tmp_path).resume()
    make(tmp_path).fit()
    with pytest.raises(UserError, match="another plan"):
        make(tmp_path, learning_rate=1e-4).resume()


def test_the_weights_saved_are_the_moving_average(tmp_path):
    trainer, average = make(tmp_path, ema=0.7), {}

    def follow(trainer: MRETrainer) -> None:
        for name, value in trainer.network.state_dict().items():
            old = average.get(name, value)
            average[name] = 0.7 * old.double() + 0.3 * value.double()

    trainer.fit(on_step=follow)
    saved = content(tmp_path)
    for name, value in saved["weights"].items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), average[name], rtol=1e-5, atol=1e-6)
    assert not torch.equal(saved["weights"]["head.prototypes"], saved["training"]["network"]["head.prototypes"])
    assert_same(saved["weights"], trainer.inference_network.state_dict())


def test_without_a_moving_average_the_weights_saved_are_the_networks(tmp_path):
    trainer = make(tmp_path)
    trainer.fit()
    assert_same(content(tmp_path)["weights"], trainer.network.state_dict())


def test_schedules(tmp_path):
    for recipe, wanted in (
        ({"step_every": 2, "step_factor": 0.1}, [1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5]),
        ({"schedule": "cosine"}, [1e-3 * (1 + np.cos(np.pi * n / 6)) / 2 for n in range(6)]),
    ):
        trainer = make(tmp_path / str(len(recipe)), **recipe)
        trainer.fit()
        assert trainer.training_log.history["learning_rate"] == pytest.approx(wanted)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_values_that_are_not_finite_stop_training_and_keep_the_last_checkpoint(tmp_path, what):
    trainer = make(tmp_path, iterations=20)

    def spoil(trainer: MRETrainer) -> None:
        if trainer.iteration == 3:
            trainer.save(checkpoint.LATEST)
            weight = trainer.network.backbone.encoder[0][0].weight
            if what == "loss":
                weight.data[0] = float("nan")
            else:
                weight.register_hook(lambda gradient: gradient * float("inf"))

    with pytest.raises(NumericalError, match=r"iteration 4\b.*not finite"):
        trainer.fit(on_step=spoil)
    saved = content(tmp_path)
    assert saved["training"]["iteration"] == 3
    assert all(torch.isfinite(value).all() for value in saved["weights"].values())
    assert not (tmp_path / checkpoint.FINAL).exists()
    again = make(tmp_path, iterations=20)
    again.resume()
    again.fit()
    assert again.iteration == 20


def test_a_save_that_fails_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    trainer = make(tmp_path)
    trainer.save(checkpoint.LATEST)
    before = (tmp_path / checkpoint.LATEST).read_bytes()

    def full_disk(_, file):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(UserError, match="No space"):
        trainer.save(checkpoint.LATEST)
    assert (tmp_path / checkpoint.LATEST).read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".pth"] == [checkpoint.LATEST]


class Bomb:
    """Creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_with_code_in_it_is_refused_and_not_run(tmp_path):
    good = make(tmp_path)
    good.save("good.pth")
    fine = torch.load(tmp_path / "good.pth", weights_only=True)
    armed = tmp_path / "bomb.pth"
    for write in (
        lambda: torch.save({**fine, "training": Bomb(tmp_path / "harm")}, armed),
        lambda: torch.save(Bomb(tmp_path / "harm"), armed, _use_new_zipfile_serialization=False),
        lambda: armed.write_bytes(pickle.dumps(Bomb(tmp_path / "harm"), protocol=2)),
    ):
        write()
        with pytest.raises(UserError, match=r"bomb\.pth"):
            checkpoint.load(armed, CPU)
        assert not (tmp_path / "harm").exists()
    pickle.loads(armed.read_bytes())  # the code in it does run when unpickled
    assert (tmp_path / "harm").exists()


def test_foreign_and_damaged_files_are_refused(tmp_path):
    make(tmp_path).save("good.pth")
    whole, bad = (tmp_path / "good.pth").read_bytes(), tmp_path / "bad.pth"
    fine = torch.load(tmp_path / "good.pth", weights_only=True)
    for damaged in (b"", b"hello", whole[: len(whole) // 2], whole[:-30]):
        bad.write_bytes(damaged)
        with pytest.raises(UserError, match=r"bad\.pth"):
            checkpoint.load(bad, CPU)
    for foreign in (
        [1, 2],
        {"state_dict": {}},
        {**fine, "format_version": 99},
        {"format_version": fine["format_version"]},
        {name: value for name, value in fine.items() if name != "weights"},
        {**fine, "plan": {**fine["plan"], "recipe": "paper"}},
    ):
        torch.save(foreign, bad)
        with pytest.raises(UserError, match=r"bad\.pth"):
            checkpoint.load(bad, CPU)


def test_a_fold_of_two_dimensional_images(tmp_path):
    plan = tiny_plan(TINY_2D, iterations=3, augmentation=replace(SPATIAL, mirror_axes=(1,)))
    case = tiny_case()
    flat = TrainingCase(np.ascontiguousarray(case.image[:, 3]), case.label[3], (1.0, 1.0))
    trainer = MRETrainer(plan, [flat], folder=tmp_path, device=CPU)
    trainer.fit()
    assert np.isfinite(trainer.training_log.history["loss"]).all()


def test_one_patch_a_batch_needs_the_image_levels_norm_switched_off(tmp_path):
    """That norm receives one vector per patch, so one patch leaves nothing to normalise over."""
    without = tiny_plan(replace(TINY, image_level_norm=False), batch_size=1)
    MRETrainer(without, [tiny_case()], folder=tmp_path, device=CPU).fit()
    with pytest.raises(UserError, match="batch_size"):
        tiny_plan(batch_size=1)


@pytest.mark.parametrize("where", ["augmentation", "inference"])
def test_a_plan_cannot_mirror_an_axis_that_its_images_lack(where):
    kind = {"augmentation": AugmentationConfig, "inference": InferenceConfig}[where]
    assert isinstance(tiny_plan(TINY_2D, **{where: kind(mirror_axes=(1,))}), Plan)
    with pytest.raises(UserError, match="mirror_axes"):
        tiny_plan(TINY_2D, **{where: kind(mirror_axes=(2,))})
