"""The paper's tables by name: the plans of their rows, and mre_experiment on three tiny phantoms."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import Space, command, interrupt_after, iterations, one_thread
from test_planners import BRAIN, GPU80, numbered, planned

from mre_lowshot.config.plan_files import same_plan
from mre_lowshot.experiments import report, tables
from mre_lowshot.experiments.results import RowResult, Run
from mre_lowshot.experiments.runner import Setting, plan_row, prepare_row
from mre_lowshot.experiments.tables import TABLES, named, plan_name
from mre_lowshot.planners import hardware
from mre_lowshot.planners.facts import DatasetFacts
from mre_lowshot.planners.fingerprint import dataset_fingerprint

pytestmark = pytest.mark.usefixtures("one_thread_only", "no_settings")
FACTS = DatasetFacts("Dataset001_X", ("MRI",), numbered("organ", "vessel"), None, ".nii.gz")
FINGERPRINT = dataset_fingerprint("Dataset001_X", {str(n): c for n, c in enumerate(BRAIN)})


def row_plan(table, row, base="small", **setting):
    made = Setting(base, **setting)
    return plan_row(TABLES[table].row(row), made, FACTS, FINGERPRINT, hardware.Device(*GPU80))


# Rows of `parts` that add or remove what these facts are planned with or without; they are not run (test_equal_rows).
PLANNED_ANYWAY = ("no_ams", "with_dml", "with_ohem", "with_all")


@pytest.mark.parametrize("base", ["small", "paper"])
def test_every_row_is_a_plan_and_no_two_trainings_share_a_name(base):
    plans = {}
    for table in TABLES.values():
        assert any(row.name == table.reference for row in table.rows)
        for row in table.rows_at(base):
            if row.baseline or row.name in PLANNED_ANYWAY:
                continue
            plan = row_plan(table.name, row.name, base)
            recipe = replace(plan.recipe, name="any")
            for name, (other, other_recipe) in plans.items():
                # rows without a size of their own (recipe default on the same device) may be alike under two recipes
                assert (plan.network, recipe) != (other.network, other_recipe) or name == plan.plans_name
            assert plans.setdefault(plan.plans_name, (plan, recipe))[0] == plan


def test_rows_of_table_two_remove_the_parts_in_their_labels():
    rows = {name: row_plan("table2", name, "paper") for name in "abcdefg"}
    switches = {
        name: (p.network.prototype_head, p.network.coordinates != "none", p.network.multiscale, p.recipe.loss.ohem)
        for name, p in rows.items()
    }
    no, yes = False, True
    assert switches == {
        "a": (no, no, no, no), "b": (yes, no, no, no), "c": (yes, yes, no, no), "d": (yes, yes, yes, no),
        "e": (yes, yes, yes, yes), "f": (no, yes, yes, yes), "g": (yes, no, yes, yes),
    }  # fmt: skip
    full = planned(BRAIN, recipe="paper", device=GPU80)
    assert (rows["e"].network, rows["e"].recipe) == (full.network, full.recipe)
    assert rows["a"].network == planned(BRAIN, recipe="unet", device=GPU80).network
    for name, plan in rows.items():
        restored = replace(plan.network, prototype_head=True, coordinates="volume", multiscale=True, embedding_dim=2048)
        assert (restored, replace(plan.recipe, loss=replace(plan.recipe.loss, ohem=True))) == (
            full.network,
            full.recipe,
        ), name


def test_fields_changed_in_all_rows_come_before_those_of_a_row():
    changes = (("network.embedding_dim", "16"), ("preprocessing.spacing", "[3,3,3]"))
    full, unet = (row_plan("table2", name, changes=changes) for name in "ea")
    assert full.network.embedding_dim == 16
    assert unet.network.embedding_dim == 0
    assert {full.preprocessing.spacing, unet.preprocessing.spacing} == {(3.0, 3.0, 3.0)}
    names = {row_plan("table2", "e", changes=c).plans_name for c in ((), changes, changes[:1])}
    assert len(names) == 3
    assert full.plans_name == row_plan("table2", "e", changes=changes[::-1]).plans_name
    assert all("preprocessing.spacing=[3,3,3]" in plan.reasons["set"] for plan in (full, unet))


def test_the_other_tables_change_one_thing_each():
    paper, small = ([row_plan("table3", r.name, b).network.embedding_dim for r in TABLES["table3"].rows]
                    for b in ("paper", "small"))  # fmt: skip
    assert paper == [512, 1024, 2048, 4096]
    assert [f"N_e {n} (small: {s})" for n, s in zip(paper, small, strict=True)] == [
        r.label for r in TABLES["table3"].rows
    ]
    assert [row_plan("table4", f"m{m}").network.prototypes_per_class for m in range(1, 6)] == [1, 2, 3, 4, 5]
    mixings = ("one_hot", "average", "adaptive")
    assert tuple(row_plan("table5", name).network.mixing for name in mixings) == mixings
    assert row_plan("table6", "euclidean").network.distance == "euclidean"
    assert row_plan("baselines", "default").recipe.name == "default"
    assert row_plan("baselines", "unet_aug").recipe.augmentation.brightness_probability == 0.5
    assert row_plan("readings", "paper_dilations").network.dilations[0] == (6, 6, 6)
    assert row_plan("readings", "patch_dilations", "paper").network.dilations[0] == (2, 6, 6)


def test_tables_share_the_full_method_and_lengths_have_plans_of_their_own():
    of_the_paper = [t for t in TABLES.values() if t.name not in ("candidates", "parts")]
    full = {plan_name(t.row(t.reference), "small", None) for t in of_the_paper}
    assert full == {"table2_e"}
    row = TABLES["table4"].row("m1")
    assert (plan_name(row, "paper", None), plan_name(row, "small", 300)) == ("table4_m1_paper", "table4_m1_300")
    assert plan_name(row, "small", None, seed=2, quick=True) == "table4_m1_quick_seed2"
    assert row_plan("table4", "m1", iterations=7).recipe.optimizer.iterations == 7
    assert same_plan(row_plan("baselines", "unet"), row_plan("table2", "a"))


@pytest.mark.parametrize("name", ["table2", "II", "2", " Table2 ", "table_2"])
def test_a_table_has_several_names(name):
    assert named(name) is tables.TABLE2


def test_the_papers_figures_are_data():
    """Table II, IV and VI as printed, a spot check each; the full method has the same figure everywhere."""
    dice = {r.name: {f.dataset: f.dice for f in r.paper} for r in TABLES["table2"].rows}
    assert dice["f"] == {"MRBrainS18": 38.17, "BTCV": 31.23}
    assert [dice[r]["MRBrainS18"] for r in "abcdefg"] == [14.86, 65.38, 69.41, 74.47, 78.39, 38.17, 70.67]
    for table in ("table3", "table4", "table5", "table6", "baselines"):
        figures = TABLES[table].row(TABLES[table].reference).paper
        found = next(f for f in figures if f.dataset == "MRBrainS18" and f.level == "1shot")
        assert replace(found, memory="", time="") == replace(tables.FULL[0], memory="", time="")
    assert next(f.dice for r in TABLES["table4"].rows for f in r.paper if f.level == "3shot") == 79.21


def made_run(fold, dice, cases):
    value = {"Dice": dice, "HD95": 1.0}
    return Run(fold, ("t",), 0, value, {name: {"Dice": d, "HD95": 1.0} for name, d in cases.items()}, 0, 5)


def test_differences_are_paired_by_fold_and_by_scan():
    row, reference = TABLES["table2"].row("a"), TABLES["table2"].row("e")
    one = RowResult(row, "a", {(0, 0): made_run(0, 0.5, {"x": 0.4, "y": 0.6}), (0, 2): made_run(2, 0.9, {"x": 0.9})})
    other = RowResult(reference, "e", {
        (0, 0): made_run(0, 0.7, {"x": 0.7, "y": 0.7}), (0, 1): made_run(1, 0.1, {"x": 0.1}),
        (0, 2): made_run(2, 0.8, {"z": 0.8}),
    })  # fmt: skip
    runs, pairs = report.differences(one, other, "Dice")
    assert runs == pytest.approx([-0.2, 0.1])
    np.testing.assert_allclose(pairs, [[-0.3, -0.1], [np.nan, np.nan]])
    found = report.comparisons([one, other], "e", "Dice", "default")
    assert list(found) == ["a"]
    assert (found["a"].difference, found["a"].runs, found["a"].pairs) == pytest.approx((-0.05, 2, 2))
    assert report.comparisons([one], "e", "Dice", "default") == {}
    assert one.mean_sd("Dice") == pytest.approx((0.7, 0.4 / 2**0.5))
    # a second seed of fold 0 that both have is averaged with the first; one that the reference lacks is left out
    one.runs[(1, 0)], other.runs[(1, 0)] = (
        made_run(0, 0.8, {"x": 0.5, "y": 0.7}),
        made_run(0, 0.8, {"x": 0.6, "y": 0.7}),
    )
    one.runs[(2, 0)] = made_run(0, 0.0, {"x": 0.0})
    runs, pairs = report.differences(one, other, "Dice")
    assert runs == pytest.approx([-0.1, 0.1])
    np.testing.assert_allclose(pairs[0], [-0.2, -0.05])


@pytest.fixture(scope="module")
def tiny():
    """The small network of the planner, made tiny."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "SMALL_SIZE", replace(
            hardware.SMALL_SIZE, widths=(4, 4, 4), aspp_channels=4, embedding_dim=8, mixing_dim=4, batch_size=2,
            patch_voxels=1024,
        ))  # fmt: skip
        yield


def experiment(space, *arguments):
    dataset = () if "-d" in arguments else ("-d", "900")
    return command("experiment", *arguments, *dataset, "--workspace", space.root, "-device", "cpu")


RUN = ("table2", "--rows", "a", "e", "--folds", 0, 1, "--iterations", 2)


@pytest.fixture(scope="module")
def ran(trained, tmp_path_factory, tiny):
    space = Space(tmp_path_factory.mktemp("experiment") / "space")
    shutil.copytree(trained.root / "raw", space.root / "raw")
    with one_thread():
        assert experiment(space, *RUN) == 0
    return space


@pytest.fixture
def again(ran, tmp_path):
    shutil.copytree(ran.root, tmp_path / "space")
    return Space(tmp_path / "space")


def results(space, name="table2__1shot_small_2"):
    return space.root / "results/Dataset900_Synthetic/experiments" / name


def test_a_table_is_trained_scored_and_written(ran):
    data = json.loads((results(ran) / "results.json").read_text())
    rows = {row["name"]: row for row in data["rows"]}
    assert [len(rows[name]["runs"]) for name in "abcdefg"] == [2, 0, 0, 0, 2, 0, 0]
    means = {}
    for name in "ae":
        summaries = [json.loads((ran.model(f"table2_{name}_2") / f"fold_{fold}/validation/summary.json").read_text())
                     for fold in (0, 1)]  # fmt: skip
        means[name] = [s["foreground_mean"]["Dice"] for s in summaries]
        assert rows[name]["Dice"]["mean"] == pytest.approx(np.mean(means[name]))
        assert rows[name]["Dice"]["sd"] == pytest.approx(np.std(means[name], ddof=1))
        assert [run["iterations"] for run in rows[name]["runs"]] == [2, 2]
    compared = rows["a"]["against_reference"]
    assert compared["default"]["Dice"]["difference"] == pytest.approx(np.subtract(means["a"], means["e"]).mean())
    assert compared["default"]["Dice"]["p"] >= 0.5
    assert set(compared) == {"default", "paper"}
    assert rows["e"]["against_reference"] == {"default": {}, "paper": {}}
    with (results(ran) / "pairs.csv").open() as file:
        pairs = list(csv.DictReader(file))
    assert len(pairs) == 2 * 2 * 2
    assert {(p["training_scans"], p["test_scan"]) for p in pairs if p["fold"] == "0"} == {
        ("phantom_001", "phantom_002"), ("phantom_001", "phantom_003"),
    }  # fmt: skip
    with (results(ran) / "results.csv").open() as file:
        assert {r["row"]: r["runs"] for r in csv.DictReader(file)}["e"] == "2"
    text = (results(ran) / "table.txt").read_text()
    assert "78.39 (1.07)" in text
    assert "Holm over 1 comparison; the smallest p that 2 runs can give is 0.5" in text
    assert "no run yet: b, c, d, f, g" in text


def test_every_field_of_the_recipe_is_saved_with_the_fold(ran):
    fold = ran.model("table2_a_2") / "fold_0"
    plan, debug = (json.loads((fold / name).read_text()) for name in ("plans.json", "debug.json"))
    assert debug["recipe"] == plan["recipe"]
    assert debug["network"] == plan["network"]
    assert plan["recipe"]["loss"]["ohem"] is False
    assert "mre_experiment" in plan["reasons"]["set"]


def test_rows_that_preprocess_alike_share_their_cases(ran):
    one, other = (ran.prepared / f"table2_{name}_2" for name in "ae")
    assert (one / "phantom_001.npz").samefile(other / "phantom_001.npz")
    assert (one / "preprocessing.json").read_text() == (other / "preprocessing.json").read_text()


def test_cases_of_other_preprocessing_are_not_shared(ran, tmp_path):
    from mre_lowshot.config.plan_files import load_plan
    from mre_lowshot.data.dataset import Dataset

    shutil.copytree(ran.prepared, tmp_path / "prepared")
    plan = load_plan(ran.prepared / "table2_a_2.json")
    other = replace(plan, plans_name="Other", preprocessing=replace(plan.preprocessing, crop_margin_mm=9.0))
    prepare_row(other, Dataset.load(ran.raw), tmp_path / "prepared")
    mine = tmp_path / "prepared/Other/phantom_001.npz"
    assert mine.is_file()
    assert mine.stat().st_nlink == 1


def test_finished_rows_are_skipped_and_shared_between_tables(again, capsys):
    checkpoint = again.model("table2_e_2") / "fold_0/checkpoint_final.pth"
    before = checkpoint.stat().st_mtime_ns
    assert experiment(again, *RUN) == 0
    assert capsys.readouterr().out.count("already complete") == 4
    assert checkpoint.stat().st_mtime_ns == before
    assert experiment(again, "table5", "--iterations", 2, "--print") == 0
    (line,) = [ln for ln in capsys.readouterr().out.splitlines() if ln.startswith("adaptive")]
    assert line.split()[2] == "2"  # runs
    assert not results(again, "table5__1shot_small_2").exists()
    assert experiment(again, "table2", "--iterations", 2, "--print", "--folds", 1, "--labels", "spleen") == 0
    out = capsys.readouterr().out
    assert out.endswith("labels scored: spleen\n")
    summary = json.loads((again.model("table2_e_2") / "fold_1/validation/summary.json").read_text())
    value = summary["mean"][str(summary["labels"]["spleen"])]["Dice"]
    (line,) = [ln for ln in out.splitlines() if ln.startswith("e  ")]
    assert f" 1  {value:.4f}" in " ".join(line.split()).replace(" 1 ", " 1  ")


@pytest.mark.parametrize(("table", "words"), [("table6", "memory"), ("table7", "spleen"), ("table9", "inference per")])
def test_times_memory_and_labels_are_printed_where_the_papers_table_has_them(ran, capsys, table, words):
    assert experiment(ran, table, "--iterations", 2, "--print") == 0
    layout, plain = capsys.readouterr().out.split("\n\n", 1)
    assert words in layout
    assert plain.startswith(f"{table}: ")


def test_an_interrupted_fold_is_continued(again, monkeypatch, capsys):
    shutil.rmtree(again.model("table2_a_2") / "fold_1")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        assert experiment(again, *RUN) == 130
    assert iterations(again.model("table2_a_2") / "fold_1") == [1]
    capsys.readouterr()
    assert experiment(again, *RUN) == 0
    assert iterations(again.model("table2_a_2") / "fold_1") == [1, 2]
    assert capsys.readouterr().out.count("already complete") == 3


def test_a_row_that_equals_the_reference_is_left_out_and_said_so(again, capsys):
    chosen = ("parts", "--rows", "registration", "with_ams", "default", "--folds", 0, "--iterations", 1)
    assert experiment(again, *chosen) == 0
    assert "row with_ams: trains what row default trains here; not run again" in capsys.readouterr().out
    data = json.loads((results(again, "parts__1shot_small_1") / "results.json").read_text())
    assert [row["name"] for row in data["rows"] if row["runs"]] == ["registration", "default"]


@pytest.mark.slow
def test_candidates_on_a_cohort_of_each_dataset_are_reported_in_one_table(ran, tmp_path, capsys):
    space = Space(tmp_path / "space")
    for number in (900, 901):
        shutil.copytree(ran.raw, space.root / f"raw/Dataset{number}_Synthetic")
    half = ["phantom_001", "phantom_003"]
    cohorts = tmp_path / "dev_report_split.json"
    cohorts.write_text(json.dumps({f"Dataset{n}_Synthetic": {"develop": half} for n in (900, 901)}))
    chosen = ("candidates", "-d", "900", "901", "--rows", "default", "no_dice", "--folds", 0, "--iterations", 2,
              "--cohort", "develop")  # fmt: skip
    assert experiment(space, *chosen, "--cohorts", cohorts) == 0
    out = capsys.readouterr().out
    overview = out[out.index("all datasets") :].splitlines()
    assert overview[1].split() == ["row", "Dataset900_Synthetic", "Dataset901_Synthetic"]
    scores = {}
    for number in (900, 901):
        made = space.root / f"results/Dataset{number}_Synthetic"
        data = json.loads((made / "experiments/candidates__1shot_develop_small_2/results.json").read_text())
        assert [run["train"] for run in data["rows"][0]["runs"]] == [["phantom_001"]]
        scores[number] = {row["name"]: row["Dice"]["mean"] for row in data["rows"] if row["runs"]}
        fold = made / "MRETrainer__baselines_default_small_2__1shot_develop/fold_0"
        summary = json.loads((fold / "validation/summary.json").read_text())
        assert [case["case"] for case in summary["metric_per_case"]] == ["phantom_003"]
    (line,) = [ln for ln in overview if ln.startswith("no_dice")]
    for number in (900, 901):
        difference = scores[number]["no_dice"] - scores[number]["default"]
        assert f"{scores[number]['no_dice']:.4f} ({difference:+.4f}, n 1)" in line
    assert experiment(space, *chosen, "--print") == 0  # the saved splits hold the cohort
    assert "already complete" not in capsys.readouterr().out


def test_a_candidate_of_another_length_keeps_its_ratio():
    lengths = {
        row: row_plan("candidates", row, iterations=300).recipe.optimizer.iterations
        for row in ("default", "twice_as_long")
    }
    assert lengths == {"default": 300, "twice_as_long": 600}
    planned, longer = (row_plan("candidates", row).recipe.optimizer.iterations for row in ("default", "twice_as_long"))
    assert longer == 2 * planned


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("tabel2",), "did you mean 'table2'?"),
        (("table2", "--rows", "h"), "table table2 has no row 'h'"),
        (("table2", "--reference", "z"), "has no row 'z'"),
        (("baselines", "--rows", "unet_spread"), "--base paper only"),
        (("table2", "--folds", "3"), "level 1shot has folds 0 to 2"),
        (("table2", "--folds", "-1"), "must be at least 0"),
        (
            ("table7", "--rows", "mre_1", "--folds", "9"),
            "row mre_1 is left out: --folds 9: level 1shot has folds 0 to 2",
        ),
        (("figure6",), "did you mean"),
        (
            ("table9", "--level", "split", "--cohort", "twenty"),
            "rows ants_1, unet_1_aug, mre_1 of table9 have their own",
        ),
        (
            ("table12", "--level", "split_x", "--print", "--rows", "mre_5"),
            "rows mre_5 of table12 have their own number",
        ),
        (("table2", "--level", "3shot"), "--level 3shot: leaves no test scan"),
        (("table2", "--level", "shot"), "level 'shot'"),
        (("table2", "--level", "1shot_a", "--cohort", "b"), "names a cohort already"),
        (("table2", "--cohort", "develop"), "cohorts.json: is missing"),
        (("table2", "--iterations", "0"), "must be at least 1"),
        (("table2", "--set", "network.width=[8,16]"), "--set: 'network.width' is not a field"),
        (("table2", "--labels", "splen"), "did you mean 'spleen'?"),
        (("table2", "--labels", "paper"), "are not those of MRBrainS18 or BTCV"),
    ],
)
def test_wrong_use_is_reported_in_one_line(ran, arguments, words, capsys):
    assert experiment(ran, *arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_row_edited_by_hand_is_refused(again, capsys):
    path = again.prepared / "table2_a_2.json"
    path.write_text(path.read_text().replace('"batch_size": 2', '"batch_size": 3'))
    assert experiment(again, *RUN) == 2
    assert "differs from the plan of the table's row" in capsys.readouterr().err


def test_the_list_needs_no_dataset(capsys):
    assert command("experiment", "--list") == 0
    out = capsys.readouterr().out
    assert all(f"{name}:" in out for name in TABLES)
    assert command("experiment") == 2
    assert "name a table and a dataset" in capsys.readouterr().err
