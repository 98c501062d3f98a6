"""Training that begins with the weights of an earlier one: what it starts from, what is refused, what is recorded."""

import json

import pytest
import torch
from conftest import Space, iterations

import mre_lowshot
from mre_lowshot.data.synthetic import write_dataset
from mre_lowshot.errors import UserError
from mre_lowshot.files import sha256
from mre_lowshot.inference import checkpoint
from mre_lowshot.trainers.trainer import MRETrainer

pytestmark = pytest.mark.usefixtures("one_thread_only", "no_settings")
CPU = torch.device("cpu")
TINY = {"dataset": "Synthetic", "plans_name": "Tiny", "device": "cpu", "score": False}


def test_a_training_begins_with_the_given_weights_and_a_new_optimizer(space, monkeypatch):
    source = space.model() / "fold_0" / checkpoint.FINAL
    weights = checkpoint.load(source, CPU)[1]["weights"]
    begun = []
    begin = MRETrainer.begin_with

    def noted(self, pretrained):
        begin(self, pretrained)
        begun.append({name: value.clone() for name, value in self.network.state_dict().items()})
        assert not self.optimizer.state_dict()["state"]
        assert self.iteration == 0
        average = self.average.module.state_dict() if self.average else weights
        assert all(torch.equal(average[name], value) for name, value in weights.items())

    monkeypatch.setattr(MRETrainer, "begin_with", noted)
    result = mre_lowshot.train(level="2shot", fold=0, pretrained_weights=source, workspace=space.root, **TINY)
    assert all(torch.equal(begun[0][name], value) for name, value in weights.items())
    folder = result.folds[0].folder
    assert iterations(folder) == [1, 2, 3]
    run = json.loads((folder / "run.json").read_text())["runs"][-1]
    origin = run["pretrained_weights"]
    assert origin["file"] == "fold_0/checkpoint_final.pth"
    assert origin["sha256"] == sha256(source)
    assert (origin["level"], origin["cases"], origin["iterations"]) == ("1shot", ["phantom_001"], 3)
    assert str(space.root) not in json.dumps(run)


def test_a_fold_may_be_trained_again_from_its_own_weights(space):
    fold = space.model() / "fold_0"
    before = checkpoint.load(fold / checkpoint.FINAL, CPU)[1]["weights"]
    assert space.train("--overwrite", "--no_val", "--pretrained_weights", fold, "--iterations", 1) == 0
    after = checkpoint.load(fold / checkpoint.FINAL, CPU)[1]
    assert after["training"]["iteration"] == 1
    assert any(not torch.equal(before[name], value) for name, value in after["weights"].items())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pretrained_weights", "none.pth"], "--pretrained_weights none.pth: is missing"),
        (["--pretrained_weights", ""], "the path is empty"),
        (["--pretrained_weights", "results", "--c"], "is for a training from its beginning"),
        (["-pretrained_weights", "results", "--val"], "is for a training from its beginning"),
    ],
)
def test_wrong_use(trained, capfd, arguments, words):
    try:
        code = trained.train(*arguments, fold="1")
    except SystemExit as ended:  # of the parser
        code = ended.code
    assert code == 2
    assert words in capfd.readouterr().err


def test_a_checkpoint_that_does_not_fit_is_refused_before_anything_is_deleted(space, tmp_path, capfd):
    fold = space.model() / "fold_0"
    content = (fold / checkpoint.FINAL).read_bytes()
    with pytest.raises(UserError, match=r"holds no checkpoint_final\.pth; give one of its folds"):
        mre_lowshot.train(
            level="1shot", pretrained_weights=space.model(), workspace=space.root, mode="overwrite", **TINY
        )
    assert space.train("--no_val", "--pretrained_weights", fold, fold="1") == 2
    assert "was trained on phantom_001, a test case of this fold" in capfd.readouterr().err
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(content[:-100])
    changed = tmp_path / "other.pth"
    for name, change, words in (
        (changed, {"embedding_dim": 8}, "its network differs"),
        (changed, {"labels": "liver"}, "its labels differ"),
        (damaged, None, "damaged"),
    ):
        if change is not None:
            other_checkpoint(fold / checkpoint.FINAL, name, change)
        assert space.train("--overwrite", "--no_val", "--pretrained_weights", name) == 2
        error = capfd.readouterr().err
        assert words in error, error
        assert (fold / checkpoint.FINAL).read_bytes() == content


def other_checkpoint(source, path, change):
    """A copy whose plan has another network (with weights for it), or other names of labels."""
    from mre_lowshot.config import FORMAT_VERSION
    from mre_lowshot.config.json import from_json, to_json
    from mre_lowshot.network.build import build

    plan, content = checkpoint.load(source, CPU)
    data = to_json(plan)
    if "labels" in change:
        data["labels"] = {("organ" if name == change["labels"] else name): v for name, v in data["labels"].items()}
    else:
        data["network"] |= change
    made = from_json(type(plan), data, "plan")
    if "labels" not in change:
        weights = build(made.network).state_dict()
        content = {**content, "weights": weights, "training": {"iteration": 3, "history": {}}}
    checkpoint.write_content(path, {**content, "plan": to_json(made), "format_version": FORMAT_VERSION})


def test_the_lines_of_the_measure_survive_a_kill_and_are_compared_draw_by_draw(tmp_path):
    from benchmarks import pretrained

    path = tmp_path / "out/results.jsonl"
    line = {"draw": 0, "train": ["a", "b"], "start": "scratch", "iterations": 9, "dice": 0.5}
    rows = [line, {**line, "start": "pretrained", "dice": 0.7}, {**line, "draw": 1}]
    for row in rows:
        pretrained.add_line(path, row)
    with path.open("a") as file:
        file.write('{"cut off')
    pretrained.add_line(path, {**line, "draw": 2})
    assert pretrained.read_lines(path) == [*rows, {**line, "draw": 2}]
    (text,) = pretrained.report(rows)
    assert text.startswith("2 scan(s), 9 iterations: pretrained 0.7000; scratch 0.5000; pretrained - scratch +0.2000")


@pytest.mark.slow
def test_the_measure_trains_each_start_and_goes_on(tmp_path, monkeypatch, capsys):
    from benchmarks import pretrained

    space = Space(tmp_path / "space")
    write_dataset(space.root / "raw", subjects=4, shape=(20, 36, 44), spacing=(8.0, 8.0, 8.0))
    assert space.plan() == 0
    names = [f"phantom_{number:03}" for number in (1, 2, 3, 4)]
    monkeypatch.setattr(pretrained, "read_cohort", lambda *_: names)
    monkeypatch.setattr(pretrained.random.Random, "shuffle", lambda *_: None)
    arguments = [str(space.prepared), "-p", "Tiny", "--draws", "1", "--test", "1", "--out", str(tmp_path / "out")]
    assert pretrained.main(arguments) == 0
    lines = pretrained.read_lines(tmp_path / "out/results.jsonl")
    assert [(len(line["train"]), line["start"], line["iterations"]) for line in lines] == [
        (1, "scratch", 3), (2, "pretrained", 3), (2, "pretrained", 1), (2, "scratch", 3), (2, "scratch", 1),
        (3, "pretrained", 3), (3, "pretrained", 1), (3, "scratch", 3), (3, "scratch", 1),
    ]  # fmt: skip
    capsys.readouterr()
    assert pretrained.main(arguments) == 0
    assert "trained in" not in capsys.readouterr().out
