"""Tests of settings, of the log of training runs, and of experiments by folds."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

import utils
from scripts import experiment, sweep

VGG16 = sweep.definitions("vgg16_transfer")
CNN = sweep.definitions("three_block_cnn")


# --- Settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("study, changes, complaint", [
    (VGG16, {"layer": "block6_pool"}, "layer is 'block6_pool', expected one of 'block1_pool', .*'block5_conv3'"),
    (VGG16, {"image_size": 96, "grid": 4}, "grid is 4, expected one of 1, 2, 3, 6$"),
    (VGG16, {"image_size": 96, "layer": "block5_pool", "grid": 2}, "grid is 2, expected one of 1, 3$"),
    (VGG16, {"image_size": 96, "layer": "block5_conv3", "grid": 4}, "grid is 4, expected one of 1, 2, 3, 6$"),
    (VGG16, {"mirror": 1}, "mirror is 1, expected one of True, False"),
    (VGG16, {"dropout": 1.0}, "dropout is 1.0, expected a number from 0 to 0.99"),
    (VGG16, {"hidden_units": "256"}, "hidden_units is '256', expected a whole number from 0 to 10,000"),
    (CNN, {"epochs": -1}, "epochs is -1, expected a whole number from 1"),
    (CNN, {"epochs": 2.0}, "epochs is 2.0, expected a whole number"),
    (CNN, {"epochs": True}, "epochs is True, expected a whole number"),
    (CNN, {"crop_pixels": 40}, "crop_pixels is 40, expected a whole number from 8 to 32"),
    (CNN, {"crop_epochs": 100}, "crop_epochs is 100, expected a whole number from 0 to 2"),
    (CNN, {"filters": [32, -1]}, r"filters is \[32, -1\], expected a list of 1 to 5 whole numbers"),
    (CNN, {"filters": 32}, "filters is 32, expected a list"), (CNN, {"filters": []}, r"filters is \[\], expected a list"),
    (CNN, {"filtres": [32]}, "has an unknown setting, filtres; there are seed, network, filters")])
def test_what_is_not_possible_is_named_with_what_is(study, changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        sweep.check_settings(study["SETTINGS"] | changes, study["POSSIBLE"])


def test_a_missing_setting_is_named():
    settings = {key: value for key, value in CNN["SETTINGS"].items() if key != "mirror"}
    with pytest.raises(ValueError, match="lacks mirror"):
        sweep.check_settings(settings, CNN["POSSIBLE"])


@pytest.mark.parametrize("changes", [{"learning_rate": 1}, {"filters": [16, 32]}, {"crop_epochs": 0, "crop_pixels": 32},
                                     {"mirror": False, "seed": 7}])
def test_what_is_possible_is_taken(changes):
    sweep.check_settings(CNN["SETTINGS"] | changes, CNN["POSSIBLE"])


def test_differences_are_told_in_words():
    assert utils.differences({"a": 1, "b": 2, "seed": 1}, {"a": 1, "b": 2, "seed": 0}) == ""
    assert utils.differences({"a": 1, "c": [4]}, {"a": 2, "b": 0}) == "a 1 (not 2), c [4] (not None), b None (not 0)"
    assert utils.note({"a": 1}, {"a": 1}) == "" and utils.note({"a": 1}, {"a": 2}) == " [of other settings: a 1 (not 2)]"


# --- The log -------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A repository whose committed run has 3 of 4 validation images right; its root."""
    monkeypatch.setattr(utils, "ROOT", tmp_path)
    monkeypatch.setattr(utils, "OUTPUT", tmp_path)
    y = np.array([0, 0, 1, 1], np.uint8)
    monkeypatch.setattr(utils, "load_splits", lambda: (None, (None, y), None))
    history = {key: [0.5] for key in utils.HISTORY_KEYS}

    def run(settings, probability):
        results = utils.save_results("vgg16_transfer", settings=settings, history=history, parameters={}, seconds=2,
                                     validation=(y, np.array(probability)), test=(y, np.array(probability)))
        return results, probability

    run({"seed": 0, "epochs": 16, "dropout": 0.5}, [0.1, 0.2, 0.9, 0.3])
    for command in (["init", "-q"], ["add", "results"],
                    ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a run"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return run


def test_each_run_is_added_and_shown_beside_the_committed_one(project, tmp_path):
    for settings, probability in (({"seed": 0, "epochs": 16, "dropout": 0.5}, [0.1, 0.2, 0.9, 0.3]),
                                  ({"seed": 2, "epochs": 8, "dropout": 0.5}, [0.1, 0.2, 0.9, 0.8])):
        results, p = project(settings, probability)
        experiment.log_run("vgg16_transfer", results, p, seconds=1.26)
    lines = experiment.read_log()
    assert [line["changes"] for line in lines] == ["", "epochs 8 (not 16)"] and lines[0]["seconds"] == "1.3"
    assert [line["accuracy"] for line in lines] == ["0.75", "1.0"] and lines[1]["n"] == "4"
    table = experiment.format_log("vgg16_transfer").splitlines()
    assert "committed" in table[1] and "75.00% of 4" in table[1]
    assert "75.00% of 4" in table[2] and "+0" in table[2] and "nothing" in table[2]
    assert "100.00% of 4" in table[3] and "+1" in table[3] and "epochs 8 (not 16), seed 2" in table[3]
    assert "has been read 3 times" in table[-1]
    assert len(experiment.format_log("three_block_cnn").splitlines()) == 3  # no run of another model
    # Once the second is committed, the words are about it.
    for command in (["add", "results/vgg16_transfer.json", "results/vgg16_transfer.npz"],
                    ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "another run"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    table = experiment.format_log("vgg16_transfer").splitlines()
    assert "-1" in table[2] and "epochs 16 (not 8)" in table[2] and "nothing" in table[3]


def test_a_project_inside_another_repository_finds_its_commit(project, tmp_path, monkeypatch):
    inside = tmp_path / "inside"
    shutil.copytree(tmp_path / "results", inside / "results")
    for command in (["add", "inside"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "inside"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(utils, "ROOT", inside)
    (inside / "results" / "vgg16_transfer.json").write_text("{}", encoding="utf-8")
    assert experiment.committed_run("vgg16_transfer")["settings"]["epochs"] == 16


def test_two_notebooks_may_write_to_the_log_at_once(project, tmp_path, monkeypatch):
    """Both find no log and begin one; no line is lost and the second heading is none."""
    results, p = project({"seed": 0, "epochs": 16, "dropout": 0.5}, [0.1, 0.2, 0.9, 0.3])
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "read_log", lambda: [])
        for name in ("vgg16_transfer", "three_block_cnn"):
            experiment.log_run(name, results, p, seconds=1)
    assert [line["model"] for line in experiment.read_log()] == ["vgg16_transfer", "three_block_cnn"]


def test_experiments_are_compared_with_the_committed_settings(project, monkeypatch):
    """Not with those that stand in the notebook at the moment."""
    monkeypatch.setattr(utils, "QUICK", False)
    monkeypatch.setattr(sweep, "definitions", lambda name: {"SETTINGS": {"seed": 0, "epochs": 3, "dropout": 0.1, "new": 1}})
    assert experiment.committed_settings("vgg16_transfer") == {"seed": 0, "epochs": 16, "dropout": 0.5, "new": 1}


def test_without_git_the_runs_are_shown_all_the_same(project, tmp_path):
    results, p = project({"seed": 0, "epochs": 16, "dropout": 0.5}, [0.1, 0.2, 0.9, 0.3])
    shutil.rmtree(tmp_path / ".git")
    experiment.log_run("vgg16_transfer", results, p, seconds=1)
    assert "no commit to compare with" in experiment.format_log("vgg16_transfer")


def test_a_log_of_another_layout_is_not_overwritten(project, tmp_path):
    path = tmp_path / "results" / "runs.csv"
    path.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="runs.csv has other columns"):
        experiment.log_run("vgg16_transfer", *project({"seed": 0}, [0.1, 0.2, 0.9, 0.3]), seconds=1)
    assert path.read_text(encoding="utf-8") == "a,b\n1,2\n"


def test_mcnemar_is_exact():
    """8 of 9 discordant pairs for one side: p = 2 (1 + 9) / 2^9."""
    y = np.ones(20)
    one, other = np.r_[np.ones(8), np.zeros(1), np.ones(11)], np.r_[np.zeros(8), np.ones(12)]
    assert experiment.mcnemar(y, one, other) == (7, pytest.approx(2 * 10 / 2**9))
    assert experiment.mcnemar(y, one, one) == (0, 1.0)


# --- Experiments by folds ------------------------------------------------------------------------


SETTINGS = {"seed": 0, "units": 256, "dropout": 0.5, "filters": [1, 2], "mirror": True, "layer": "block4_pool",
            "network": "2020"}
POSSIBLE = {"seed": (int, 0, 9), "units": (int, 0, 999), "dropout": (float, 0, 1), "filters": (list, 1, 16, 5),
            "mirror": [True, False], "layer": ["block3_pool", "block4_pool"], "network": ["2020", "2021"]}


def parse(text):
    return experiment.parse_changes(text, SETTINGS, POSSIBLE)


def test_changes_are_combined():
    assert parse("units=64,128 dropout=0.3") == [{"units": 64, "dropout": 0.3}, {"units": 128, "dropout": 0.3}]
    assert parse("filters=[4,8],[8,16] mirror=false layer=block3_pool dropout=0 network=2021") == [
        {"filters": filters, "mirror": False, "layer": "block3_pool", "dropout": 0, "network": "2021"}
        for filters in ([4, 8], [8, 16])]


def test_what_is_committed_already_and_what_stands_twice_is_left_out():
    assert parse("units=64,256,64") == [{"units": 64}] and parse("units=256") == []


@pytest.mark.parametrize("text, complaint", [
    ("hidden=3", "'hidden=3' is not of the form name=value or names no setting"), ("seed=3", "'seed=3' is not"),
    ("units=", "'units=' is not of the form"), ("", "say what to change"), ("units=a", "units is 'a', expected a whole"),
    ("units=64 units=128", "units stands twice"), ("dropout=x", "dropout is 'x', expected a number"),
    ("layer=3", "layer is '3', expected one of 'block3_pool', 'block4_pool'"), ("mirror=3", "mirror is 3, expected one of"),
    ("filters=[4, 8]", "'8.' is not of the form name=value"), ("units=1000", "units is 1000, expected .* from 0 to 999")])
def test_a_wrong_change_gets_the_settings_with_their_present_values(text, complaint):
    with pytest.raises(ValueError, match=f"{complaint}.*there are units=256, dropout=0.5"):
        parse(text)


def test_a_gain_comes_with_its_error_and_the_interval_of_so_few_folds():
    gain = sweep.gain_of([0.9, 0.8, 0.7], [0.91, 0.82, 0.73])
    assert gain["mean"] == pytest.approx(0.02) and gain["standard_error"] == pytest.approx(0.01 / 3**0.5)
    half = 4.302653 * 0.01 / 3**0.5  # Student's t with two degrees of freedom
    assert gain["interval95"] == pytest.approx([0.02 - half, 0.02 + half])
    assert sweep.format_gain(gain) == "+2.00 ± 0.58 (95 % interval -0.48 to +4.48): no gain shown"
    assert "one fold" in sweep.format_gain(sweep.gain_of([0.9], [0.91]))


@pytest.fixture
def pretended(output, monkeypatch):
    """Training runs of no time: 90 %, a point more for 64 hidden units, and a bit by fold."""
    def sweep_(tasks, submit):
        assert all(task["fold"] == task["settings"]["seed"] for task in tasks)  # paired: the same seed on a fold
        return [task | {"seconds": 2.0, "validation": {"n": 100, "accuracy":
                0.9 + 0.01 * (task["settings"]["hidden_units"] == 64) * (1 + task["fold"])}} for task in tasks]
    monkeypatch.setattr(sweep, "sweep", sweep_)


def test_an_experiment_is_judged_against_the_notebook_s_settings_on_the_same_folds(pretended, output):
    entry, = experiment.experiment("vgg16_transfer", [{"hidden_units": 64}], [0, 1])
    assert entry["base"] == [0.9, 0.9] and entry["accuracy"] == pytest.approx([0.91, 0.92])
    assert entry["gain"]["mean"] == pytest.approx(0.015) and entry["n"] == 100 and "test" not in json.dumps(entry)
    experiment.experiment("vgg16_transfer", [{"dropout": 0.3}], [0, 1])
    experiment.experiment("vgg16_transfer", [{"hidden_units": 64}], [0, 1])  # again: replaces, does not repeat
    kept = utils.read_json(output / "results" / "experiments.json")["vgg16_transfer"]
    assert [entry["changes"] for entry in kept] == [{"dropout": 0.3}, {"hidden_units": 64}]


def test_the_figure_shows_all_experiments_with_the_same_settings_beside(pretended, output):
    experiment.experiment("vgg16_transfer", [{"hidden_units": 64}, {"dropout": 0.3}], [0, 1])
    kept = utils.read_json(output / "results" / "experiments.json")
    other = kept["vgg16_transfer"][0] | {"base_settings": {"epochs": 1}, "changes": {"of": "another story"}}
    utils.save_json(output / "results" / "experiments.json", {"vgg16_transfer": [other, *kept["vgg16_transfer"]]})
    axis, = experiment.plot_experiments("vgg16_transfer").axes
    assert [text.get_text() for text in axis.get_yticklabels()] == ["dropout 0.3 (2 folds)", "hidden_units 64 (2 folds)"]
    assert axis.lines[1].get_xdata().tolist() == [0] and axis.lines[3].get_xdata() == pytest.approx([1.5])


def test_the_command_line_refuses_before_it_trains():
    done = subprocess.run([sys.executable, "scripts/experiment.py", "vgg16_transfer", "hidden_unit=3"], cwd=utils.ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 1 and "hidden_units=256" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
