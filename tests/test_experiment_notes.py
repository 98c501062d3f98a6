"""What stands below and beside the figures of a table: notes on crops and on numbers of scans, asterisks; and that the
methods of one table are given the same crop."""

from dataclasses import replace

import numpy as np
import pytest
from test_experiment_layouts import made
from test_planners import CT, GPU80, numbered

from mre_lowshot.evaluation.bus import BUS_METRICS
from mre_lowshot.experiments.baselines import registry
from mre_lowshot.experiments.layouts import layout
from mre_lowshot.experiments.notes import count_notes, crop_notes
from mre_lowshot.experiments.panels import left_out, panels_of
from mre_lowshot.experiments.runner import Setting, plan_row
from mre_lowshot.experiments.significance import image_stars
from mre_lowshot.experiments.tables import TABLES
from mre_lowshot.files import write_json
from mre_lowshot.planners.facts import DatasetFacts
from mre_lowshot.planners.fingerprint import dataset_fingerprint
from mre_lowshot.planners.hardware import Device

ORGANS = ("spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach", "pancreas")


def changed(rows, **more):
    """``rows`` by name with changed runs."""
    return [
        replace(r, runs={key: replace(run, **more.get(r.row.name, {})) for key, run in r.runs.items()}) for r in rows
    ]


def test_rows_of_two_tasks_are_named():
    content = made("table8", {"ants_1": (0.5,), "mre_1": (0.6,)}, ORGANS)

    def notes(**given):
        rows = changed(content.rows, **{name: {"crop_given": value} for name, value in given.items()})
        return crop_notes(content.table, rows, ORGANS)

    assert "no row was" in notes()[0]
    assert "all rows were" in notes(ants_1=True, mre_1=True)[0]
    assert "only these rows were (crops.json): MRE-Net-1. The others have another task" in notes(mre_1=True)[0]
    assert notes()[0] in layout(content).notes
    assert crop_notes(content.table, content.rows, ("liver", "spleen")) == []  # not the paper's dataset
    brain = made("table7", {"mre_1": (0.5,)}, ORGANS)
    assert crop_notes(brain.table, brain.rows, ORGANS) == []


def test_the_number_of_scans_is_noted_where_it_is_not_that_of_the_label():
    content = made("table8", {"unet_20_aug": (0.5, 0.6), "mre_1": (0.6, 0.7)})
    ten = tuple(f"scan{n}" for n in range(10))
    rows = changed(content.rows, unet_20_aug={"train": ten})
    assert count_notes(rows) == ["Aug. + U-Net-20 was trained on 10 scans here, not 20."]
    content = made("table11", {"dataaug_sas_20": (0.5,), "dataaug_sas_5": (0.5,), "mre": (0.5,)})
    assert count_notes(content.rows) == []  # of an earlier version, which did not keep the number
    rows = changed(content.rows, dataaug_sas_20={"unlabelled": 9}, dataaug_sas_5={"unlabelled": 5})
    assert count_notes(rows) == ["SAS-aug-20 used 9 unlabelled scans here, not 20."]


def test_table_4_names_the_other_half_of_the_papers_table():
    notes = layout(made("table4", {"m1": (0.5,)})).notes
    assert any("with 1shot and 3shot; --level chooses one" in note for note in notes)
    assert not any("--level" in note for note in layout(made("table5", {"average": (0.5,)})).notes)


def test_hd95_has_asterisks_of_its_own():
    """Seven folds, all better: p of the sign-flip test is 2 / 2^7."""
    values = {"cosine": tuple(np.linspace(0.5, 0.6, 7)), "euclidean": tuple(np.linspace(0.5, 0.6, 7) - 0.05)}
    content = made("table6", values)
    lines = layout(content).lines
    assert lines[1].cells[1].startswith("*")
    assert lines[1].cells[2].startswith("*")
    equal = [replace(r, runs={k: replace(run, value={**run.value, "HD95": 3.0}) for k, run in r.runs.items()})
             for r in content.rows]  # fmt: skip
    cells = layout(replace(content, rows=equal)).lines[1].cells
    assert (cells[1][0], cells[2]) == ("*", "3.00 (0.00)")
    for name in ("cosine", "euclidean"):  # the mean of a row that missed a structure is of other structures
        rows = changed(content.rows, **{name: {"missed": 1}})
        assert layout(replace(content, rows=rows)).lines[1].cells[1:3] == (lines[1].cells[1], lines[1].cells[2][1:])


@pytest.mark.parametrize("method", ["default", "paper"])
def test_ultrasound_is_compared_over_images_within_a_group(tmp_path, method):
    """FCN with 1 % is worse on every image, FCN with 5 % is not; with 70 % there is no MRE-Net to compare with."""
    content = made("table12", {"mre_1": (0.5,), "fcn_1": (0.5,), "mre_5": (0.5,), "fcn_5": (0.5,), "fcn_all": (0.5,),
                               "scs_all": (0.5,)})  # fmt: skip
    rng = np.random.default_rng(0)
    of_image = rng.uniform(0.6, 0.8, 12)
    shift = {"mre_1": 0, "fcn_1": -0.1, "mre_5": 0, "fcn_5": 0, "fcn_all": 0, "scs_all": -0.3}
    rows = []
    for r in content.rows:
        folder = tmp_path / r.row.name
        (folder / "validation").mkdir(parents=True)
        noise = rng.normal(0, 0.01, 12)
        values = of_image + shift.get(r.row.name, 0) + noise - noise.mean()
        cases = [{"case": f"i{n}", "bus": {"1": dict.fromkeys(BUS_METRICS, v)}} for n, v in enumerate(values)]
        write_json(folder / "validation/summary.json", {"metric_per_case": cases})
        rows.append(replace(r, runs={key: replace(run, folder=folder) for key, run in r.runs.items()}))
    assert image_stars(rows, method) == {("fcn_1", metric): "*" for metric in BUS_METRICS}
    assert image_stars(rows[::-1], method) == image_stars(rows, method)
    twice = [replace(r, runs={**r.runs, (0, 1): replace(r.runs[(0, 0)], fold=1)}) if r.runs else r for r in rows]
    assert image_stars(twice, method) == image_stars(rows, method)  # an image of two runs counts once
    lines = layout(replace(content, rows=rows, statistics=method)).lines
    cells = [line.cells[2] for line in lines if line.cells[0] == "FCN"]
    assert [cell.startswith("*") for cell in cells] == [True, False, False, False]


def test_all_rows_of_a_table_are_given_the_same_crop(monkeypatch):
    monkeypatch.setattr(registry, "require_programs", lambda method: None)  # planning needs no ANTs
    facts = DatasetFacts("Dataset001_X", ("CT",), numbered("organ"), None, ".nii.gz", has_crops=True)
    fingerprint = dataset_fingerprint("Dataset001_X", {str(n): c for n, c in enumerate(CT)})

    def crops(base):
        rows = [row for name in ("table8", "table11") for row in TABLES[name].rows_at(base)]
        setting = Setting(base)
        plans = [plan_row(row, setting, facts, fingerprint, Device(*GPU80)) for row in rows]
        return {plan.preprocessing.crop for plan in plans}

    assert crops("paper") == {"given"}
    assert crops("small") == {"body"}


def test_dataaugs_segmenter_is_trained_as_the_u_net_beside_it():
    table = TABLES["table11"]
    assert table.row("dataaug_sas_5").recipe_at("paper") == table.row("unet_aug_literal").recipe_at("paper")
    assert table.row("dataaug_ids_20").recipe_at("small") == table.row("unet_aug").recipe_at("small")


def test_ants_has_rows_with_several_atlases():
    for name in ("table7", "table8"):
        row = TABLES[name].row("ants_3")
        assert row.baseline == "ants"
        assert Setting("small", "1shot_seven").level_of(row) == "3shot_seven"


def test_the_plan_of_a_baseline_states_why_its_scans_are_cropped(monkeypatch):
    monkeypatch.setattr(registry, "require_programs", lambda method: None)
    facts = DatasetFacts("Dataset001_X", ("CT",), numbered("organ"), None, ".nii.gz", has_crops=True)
    fingerprint = dataset_fingerprint("Dataset001_X", {str(n): c for n, c in enumerate(CT)})
    row = TABLES["table8"].row("ants_1")
    plan = plan_row(row, Setting("paper", iterations=300), facts, fingerprint, Device(*GPU80))
    assert plan.reasons["crop"].startswith("boxes of crops.json")


def test_rows_of_one_label_are_told_apart_in_pictures(tmp_path):
    """MRE-Net with 1 % and with 5 % of the images, which tested other images."""
    content = made("table12", {"mre_1": (0.5,), "fcn_1": (0.5,), "mre_5": (0.5,)})
    rows = []
    for r in content.rows:
        folder = tmp_path / r.row.name
        (folder / "validation").mkdir(parents=True)
        name = "other" if r.row.name == "mre_5" else "x"
        cases = [{"case": name, "prediction_file": f"{name}.png"}]
        write_json(folder / "validation/summary.json", {"metric_per_case": cases})
        runs = {k: replace(run, folder=folder, cases={name: {"Dice": 0.5}}) for k, run in r.runs.items()}
        rows.append(replace(r, runs=runs))
    found = panels_of(rows)
    assert {name: [p.title for p in panels] for name, panels in found.items()} == {"x": ["MRE-Net, 1 %", "FCN"]}
    assert left_out(rows, found) == ["MRE-Net"]
