"""Tests of the sweep: the same numbers wherever it runs. The quick profile keeps them short."""

import argparse
import json
import shutil
import subprocess
import sys

import joblib
import numpy as np
import pytest
from dask.distributed import Client, LocalCluster

import utils
from scripts import sweep

TINY = {"filters": [4, 4, 4], "epochs": 1, "crop_epochs": 0}
TASKS = [("three_block_cnn", seed, TINY) for seed in (0, 1)]


@pytest.fixture(scope="module")
def serial():
    """What the runs give here, one after the other, in this process."""
    return [json.loads(json.dumps(sweep.run(*task))) for task in TASKS]


def without_time(results):
    return [{key: value for key, value in result.items() if key != "seconds"} for result in results]


def test_two_dask_workers_give_the_numbers_of_the_serial_run(serial):
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster):
        with joblib.parallel_config("dask"):
            assert without_time(sweep.sweep(TASKS)) == without_time(serial)


def test_two_processes_at_a_time_do_too(serial):
    with sweep.backend(argparse.Namespace(dask=None, workers=2)):
        assert without_time(sweep.sweep(TASKS)) == without_time(serial)


def test_seeds_differ(serial):
    assert serial[0]["probability"] != serial[1]["probability"]


def test_every_epoch_is_watched(serial):
    assert all(len(result["watched"]) == TASKS[0][2]["epochs"] for result in serial)
    assert serial[0]["watched"] != serial[1]["watched"]


def test_a_repeated_seed_is_refused():
    with pytest.raises(ValueError, match="every seed counts once"):
        sweep.sweep(TASKS + TASKS[:1])


def test_a_failing_run_says_what_failed():
    with pytest.raises(RuntimeError, match=r"three_block_cnn.*epochz"):
        list(sweep.sweep([("three_block_cnn", 0, {"filters": "epochz"})]))


def test_a_fold_holds_out_images_and_leaves_the_test_set_alone():
    result = sweep.run("three_block_cnn", 0, TINY, 1)
    assert "test" not in result and "probability" not in result
    assert result["validation"]["n"] == 500 / sweep.FOLDS  # the quick profile has 400 + 100 images


def test_a_ladder_keeps_every_rung_and_its_gain(monkeypatch, tmp_path):
    found = {0: [0.5, 0.7], 1: [0.6, 0.6]}  # by fold and rung
    monkeypatch.setattr(utils, "OUTPUT", tmp_path)
    monkeypatch.setattr(sweep, "definitions", lambda name: {"LADDER": [("a", {"x": 1}), ("b", {"y": 2})]})
    monkeypatch.setattr(sweep, "sweep", lambda tasks: iter(
        [{"seconds": 1.0, "validation": {"accuracy": found[fold][len(changes) - 1], "n": 10}}
         for _, _, changes, fold in tasks]))
    sweep.sweep_ladder(["three_block_cnn"], [0, 1])
    first, second = json.loads((tmp_path / "results" / "ladder.json").read_text(encoding="utf-8"))["three_block_cnn"]["steps"]
    assert first["mean"] == pytest.approx(0.55) and "gain" not in first
    assert second["gain"]["mean"] == pytest.approx(0.1)
    assert second["gain"]["standard_error"] == pytest.approx(0.1)


def test_the_summary_holds_every_seed_and_leaves_other_models_alone(serial, tmp_path, monkeypatch):
    monkeypatch.setattr(utils, "OUTPUT", tmp_path)
    sweep.save_seeds([{**result, "name": "vgg16_transfer"} for result in serial])
    found = sweep.save_seeds(serial)["test"]
    assert found["accuracy"] == [result["test"]["accuracy"] for result in serial]
    assert found["mean"] == pytest.approx(np.mean(found["accuracy"]))
    summary = json.loads((tmp_path / "results" / "seeds.json").read_text(encoding="utf-8"))
    assert list(summary) == ["three_block_cnn", "vgg16_transfer"] and summary["three_block_cnn"]["seeds"] == [0, 1]
    with np.load(tmp_path / "results" / "seeds.npz") as file:
        for name in summary:
            assert (file[name] == np.float32([result["probability"] for result in serial])).all()


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
    return sweep.run("three_block_cnn", 0, {"filters": [8, 8, 8], "epochs": 6, "crop_epochs": 0})["validation"]["accuracy"]
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


def test_a_missing_ladder_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(utils, "ROOT", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"ladder\.json is missing; `make ladder`"):
        sweep.format_ladder("vgg16_transfer")


@pytest.mark.parametrize("damage, complaint", [
    (lambda entry, probability: entry["settings"].update(epochs=99),
     r"vgg16_transfer is from other settings \(epochs\): epochs is 99, expected 16"),
    (lambda entry, probability: entry.update(seeds=[0, 1, 1, 3, 4]), "repeats a seed"),
    (lambda entry, probability: probability.__setitem__((0, 0), np.nan), "no probabilities")])
def test_bad_seeds_are_refused(tmp_path, damage, complaint):
    committed = utils.ROOT / "results"
    for name in sweep.NOTEBOOKS:
        for suffix in (".json", ".npz"):
            shutil.copy(committed / (name + suffix), tmp_path)
    seeds = utils.read_json(committed / "seeds.json")
    with np.load(committed / "seeds.npz") as file:
        probabilities = dict(file)
    damage(seeds["vgg16_transfer"], probabilities["vgg16_transfer"])
    utils.save_json(tmp_path / "seeds.json", seeds)
    np.savez(tmp_path / "seeds.npz", **probabilities)
    with pytest.raises(ValueError, match=complaint):
        sweep.load_seeds(tmp_path)
