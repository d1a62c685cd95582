"""Tests of the sweep: the same numbers wherever it runs, and nothing computed twice. The quick profile keeps it short."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import copy_project

import utils
from scripts import sweep
from service.bench import free_port

TINY = {"filters": [4, 4, 4], "epochs": 1, "crop_epochs": 0}


def tiny(seed, fold=None, **changes):
    return sweep.new_task("three_block_cnn", seed, TINY | changes, fold)


@pytest.fixture(scope="module")
def serial():
    """What two runs give here, one after the other, in this process."""
    return [json.loads(json.dumps(sweep.run(tiny(seed)))) for seed in (0, 1)]


def without_time(results):
    return [{key: value for key, value in result.items() if key != "seconds"} for result in results]


# --- The same numbers everywhere -----------------------------------------------------------------


def test_two_processes_at_a_time_give_the_numbers_of_one(serial, output):
    with sweep.backend(argparse.Namespace(dask=None, workers=2)) as submit:
        assert without_time(sweep.sweep([tiny(0), tiny(1)], submit)) == without_time(serial)


def test_the_command_line_takes_a_dask_worker_whose_clone_lies_elsewhere(tmp_path):
    """Client and worker are two copies of the project; the worker's leaves a mark when it trains."""
    client, worker = (copy_project(tmp_path / name) for name in ("client", "worker"))
    with open(worker / "scripts" / "sweep.py", "a", encoding="utf-8") as script:
        script.write(f"\nif __name__ == '__main__':\n    open({str(worker / 'trained')!r}, 'a').write('.')\n")
    for folder in (client, worker):  # settings as small as the other tests'
        notebook = folder / "notebooks" / "02_three_block_cnn.ipynb"
        text = notebook.read_text(encoding="utf-8")
        changed = text.replace('\\"filters\\": [32, 64, 128], \\"conv', '\\"filters\\": [4, 4, 4], \\"conv')
        assert changed != text
        notebook.write_text(changed, encoding="utf-8")
    address = f"tcp://127.0.0.1:{free_port()}"
    cluster = [subprocess.Popen([sys.executable, "-m", f"distributed.cli.dask_{what}", *options], cwd=worker,
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
               for what, options in (("scheduler", ["--port", address.rpartition(":")[2], "--no-dashboard"]),
                                     ("worker", [address, "--nthreads", "1", "--no-dashboard"]))]
    try:
        done = subprocess.run([sys.executable, client / "scripts" / "sweep.py", "seeds", "--models", "three_block_cnn",
                               "--seeds", "0", "1", "--dask", address], cwd=tmp_path, capture_output=True, text=True)
    finally:
        for process in cluster:
            process.terminate()
            process.wait()
    assert done.returncode == 0, done.stderr[-800:]
    assert (worker / "trained").read_text(encoding="utf-8") == ".." and "mean of 2 seeds" in done.stdout
    assert utils.read_json(client / "scratch" / "results" / "seeds.json")["three_block_cnn"]["seeds"] == [0, 1]


@pytest.mark.parametrize("key, value", [("code", "0"), ("profile", "full"), ("versions", {"keras": "2.0"})])
def test_a_clone_in_another_state_refuses_a_run(key, value):
    with pytest.raises(RuntimeError, match=f"another clone \\({key}\\)"):
        sweep.run(tiny(0) | {key: value})


def test_the_code_s_sum_takes_no_notice_of_settings_and_comments(tmp_path, monkeypatch):
    path = copy_project(tmp_path / "copy") / "notebooks" / "02_three_block_cnn.ipynb"
    monkeypatch.setattr(utils, "ROOT", tmp_path / "copy")
    sums = [sweep.code_sha256("three_block_cnn")]
    for old, new in (('\\"learning_rate\\": 0.02, \\"sched', '\\"learning_rate\\": 0.03, \\"sched'),
                     ("# one device, or", "# a device, or"), ("he_normal", "he_uniform")):
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")
        sums.append(sweep.code_sha256("three_block_cnn"))
    assert sums[0] == sums[1] == sums[2] != sums[3]


def test_seeds_differ_and_every_epoch_is_watched(serial):
    assert serial[0]["probability"] != serial[1]["probability"]
    assert all(len(result["watched"]) == TINY["epochs"] for result in serial)


def test_a_fold_holds_out_images_and_leaves_the_test_set_alone():
    result = sweep.run(tiny(0, fold=1))
    assert "test" not in result and "probability" not in result
    assert result["validation"]["n"] == 500 / sweep.FOLDS  # the quick profile has 400 + 100 images


# --- Nothing twice, nothing half -------------------------------------------------------------------


@pytest.fixture
def pretended(output, monkeypatch):
    """Runs that take no time; returns the list of those that were asked for."""
    asked = []

    def run_apart(task, folder):
        asked.append(task["settings"]["seed"])
        if task["settings"]["seed"] == 13:
            raise RuntimeError("out of luck")
        score = {"accuracy": 0.9 + task["settings"]["seed"] / 1000, "n": 100}
        return task | {"seconds": 1.0, "validation": score, "test": score, "probability": [0.5] * 4, "watched": [0.5]}

    monkeypatch.setattr(sweep, "run_apart", run_apart)
    return asked


def test_what_is_there_is_not_computed_again(pretended):
    first = sweep.sweep([tiny(0), tiny(1)])
    again = sweep.sweep([tiny(1), tiny(2), tiny(0)])
    assert pretended == [0, 1, 2] and [again[2], again[0]] == first
    sweep.sweep([tiny(0, learning_rate=0.1)])
    assert pretended == [0, 1, 2, 0]


def test_a_stopped_sweep_keeps_what_it_has_and_publishes_nothing(pretended, output):
    sweep.sweep_seeds(["three_block_cnn"], [0, 1])
    published = (output / "results" / "seeds.json").read_bytes()
    with pytest.raises(RuntimeError, match="out of luck"):
        sweep.sweep_seeds(["three_block_cnn"], [0, 1, 2, 13])
    assert (output / "results" / "seeds.json").read_bytes() == published
    sweep.sweep_seeds(["three_block_cnn"], [0, 1, 2])
    assert pretended == [0, 1, 2, 13]


def test_what_runs_beside_a_failing_run_is_kept(output, monkeypatch):
    begun, failed = threading.Event(), threading.Event()

    def run_apart(task, folder):
        if task["settings"]["seed"] == 13:
            assert begun.wait(60)
            failed.set()
            raise RuntimeError("out of luck")
        begun.set()
        assert failed.wait(60)
        return task | {"seconds": 1.0, "validation": {"accuracy": 0.9, "n": 100}}

    monkeypatch.setattr(sweep, "run_apart", run_apart)
    with sweep.processes(2) as submit, pytest.raises(RuntimeError, match="out of luck"):
        sweep.sweep([tiny(13), tiny(1)], submit)
    assert sweep.kept(tiny(1)).is_file() and not sweep.kept(tiny(13)).exists()


def test_a_damaged_result_is_named(pretended):
    sweep.sweep([tiny(0)])
    sweep.kept(tiny(0)).write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="runs/three_block_cnn_.*json is damaged; delete it"):
        sweep.sweep([tiny(0)])


def test_a_repeated_seed_is_refused():
    with pytest.raises(ValueError, match="every seed counts once"):
        sweep.sweep([tiny(0), tiny(1), tiny(0)])


def test_an_impossible_setting_is_refused_before_anything_is_trained(pretended):
    with pytest.raises(ValueError, match="crop_epochs is 5, expected a whole number from 0 to 1"):
        sweep.sweep([tiny(0), tiny(0, crop_epochs=5)])
    assert pretended == []


def test_a_failing_run_says_what_failed(output):
    with pytest.raises(RuntimeError, match=r"run of three_block_cnn.*'epochs': 1.*failed in .*another clone \(code\)"):
        sweep.sweep([tiny(0) | {"code": "0"}])


def test_a_ladder_keeps_every_rung_and_its_gain(monkeypatch, output):
    found = {0: [0.5, 0.7], 1: [0.6, 0.6]}  # by fold and rung
    monkeypatch.setattr(sweep, "definitions", lambda name: {"LADDER": [("a", {"x": 1}), ("b", {"y": 2})]})
    monkeypatch.setattr(sweep, "new_task", lambda name, seed, changes, fold: (fold, len(changes) - 1))
    monkeypatch.setattr(sweep, "sweep", lambda tasks, submit: [
        {"seconds": 1.0, "validation": {"accuracy": found[fold][rung], "n": 10}} for fold, rung in tasks])
    sweep.sweep_ladder(["three_block_cnn"], [0, 1])
    first, second = utils.read_json(output / "results" / "ladder.json")["three_block_cnn"]["steps"]
    assert first["mean"] == pytest.approx(0.55) and "gain" not in first
    assert second["gain"]["mean"] == pytest.approx(0.1)
    assert second["gain"]["standard_error"] == pytest.approx(0.1)


def test_the_summary_holds_every_seed_and_leaves_other_models_alone(serial, output):
    sweep.save_seeds([{**result, "model": "vgg16_transfer"} for result in serial])
    found = sweep.save_seeds(serial)["test"]
    assert found["accuracy"] == [result["test"]["accuracy"] for result in serial]
    assert found["mean"] == pytest.approx(np.mean(found["accuracy"]))
    summary = utils.read_json(output / "results" / "seeds.json")
    assert list(summary) == ["three_block_cnn", "vgg16_transfer"] and summary["three_block_cnn"]["seeds"] == [0, 1]
    with np.load(output / "results" / "seeds.npz") as file:
        for name in summary:
            assert (file[name] == np.float32([result["probability"] for result in serial])).all()


# --- Several devices -------------------------------------------------------------------------------

TWO_DEVICES = """
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import numpy as np
import utils
from scripts import sweep

x = np.random.default_rng(0).normal(size=(256, 1, 20)).astype("float16")
y = (x[:, 0, 0] > 0).astype("uint8")
study = sweep.definitions("vgg16_transfer")
settings = {**study["SETTINGS"], "hidden_units": 8, "dropout": 0.0, "epochs": 3, "batch_size": 64}
def head():
    network, _ = study["train"](settings, (x, y), (x, y))
    return study["predict"](network, x, settings)
def cnn():
    task = sweep.new_task("three_block_cnn", 0, {"filters": [8, 8, 8], "epochs": 4, "crop_epochs": 0})
    return sweep.run(task)["validation"]["accuracy"]
one, one_cnn = head(), cnn()
mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
utils.strategy = lambda: mirrored
two, two_cnn = head(), cnn()
print(mirrored.num_replicas_in_sync, float(np.ptp(one)), float(np.abs(one - two).max()), one_cnn, two_cnn)
"""


def test_two_devices_give_the_numbers_of_one():
    """The head without dropout: the same numbers. The CNN, whose replicas augment apart: the same accuracy, about."""
    done = subprocess.run([sys.executable, "-c", TWO_DEVICES], cwd=utils.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    replicas, spread, difference, one_cnn, two_cnn = map(float, done.stdout.splitlines()[-1].split())
    assert replicas == 2 and spread > 0.1 and difference < 1e-3
    assert abs(one_cnn - two_cnn) < 0.1


# --- What sweeps wrote ---------------------------------------------------------------------------


def test_a_missing_ladder_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(utils, "ROOT", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"ladder\.json is missing; `make ladder`"):
        sweep.format_ladder("vgg16_transfer", {})


def test_a_ladder_says_where_the_settings_are_no_rung_of_it():
    settings = utils.load_results("vgg16_transfer", utils.ROOT / "results")["settings"]
    assert "no rung" not in sweep.format_ladder("vgg16_transfer", settings)
    assert "no rung of it; beside the last one: hidden_units 128 (not 256)." in sweep.format_ladder(
        "vgg16_transfer", settings | {"hidden_units": 128})


@pytest.fixture
def committed_seeds(tmp_path):
    """A copy of the committed results, and what may be damaged of it: a function of the entry and its probabilities."""
    for path in (utils.ROOT / "results").glob("[!.]*"):
        if path.stem.removesuffix("_seconds") in (*sweep.NOTEBOOKS, "seeds"):
            shutil.copy(path, tmp_path)

    def damage(change):
        seeds = utils.read_json(tmp_path / "seeds.json")
        with np.load(tmp_path / "seeds.npz") as file:
            probabilities = dict(file)
        change(seeds["vgg16_transfer"], probabilities)
        utils.save_json(tmp_path / "seeds.json", seeds)
        np.savez(tmp_path / "seeds.npz", **probabilities)

    return tmp_path, damage


@pytest.mark.parametrize("change, complaint", [
    (lambda entry, arrays: entry.update(seeds=[0, 1, 1, 3, 4]), "repeats a seed"),
    (lambda entry, arrays: arrays["vgg16_transfer"].__setitem__((0, 0), np.nan), "no probabilities"),
    (lambda entry, arrays: arrays.update(vgg16_transfer=arrays["vgg16_transfer"][:, :-1]), r"array \(5, 1999\)"),
    (lambda entry, arrays: arrays.update(vgg16_transfer=1 - arrays["vgg16_transfer"]), "doesn't belong to"),
    (lambda entry, arrays: arrays.pop("vgg16_transfer"), r"array \(0,\) for vgg16_transfer, expected \(5, 2000\)")])
def test_damaged_seeds_are_refused(committed_seeds, change, complaint):
    folder, damage = committed_seeds
    damage(change)
    with pytest.raises(ValueError, match=complaint):
        sweep.load_seeds(folder)


def test_seeds_of_other_settings_are_read_and_named(committed_seeds):
    folder, damage = committed_seeds
    damage(lambda entry, arrays: entry["settings"].update(epochs=99))
    seeds = sweep.load_seeds(folder)
    assert seeds["vgg16_transfer"]["note"] == " [of other settings: epochs 99 (not 16)]"
    assert seeds["three_block_cnn"]["note"] == ""
