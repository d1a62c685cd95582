"""Tests of the seed sweep: the same numbers wherever it runs. The quick profile keeps them short."""

import joblib
import numpy as np
import pytest

import sweep
import utils

TASKS = [("three_block_cnn", seed, {"filters": [4, 4, 4], "epochs": 1}) for seed in (0, 1)]


@pytest.fixture(scope="module")
def serial():
    return sweep.sweep(TASKS)


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert (one["name"], one["seed"], one["test"]) == (other["name"], other["seed"], other["test"])
        assert (one["probability"] == other["probability"]).all()


def test_two_local_workers_give_the_numbers_of_the_serial_run(serial):
    with joblib.parallel_config("loky", n_jobs=2):
        assert_same(sweep.sweep(TASKS), serial)


def test_seeds_differ_and_repeat(serial):
    assert (serial[0]["probability"] != serial[1]["probability"]).any()
    assert_same([sweep.run(*TASKS[0])], serial[:1])


def test_a_repeated_seed_is_refused():
    with pytest.raises(ValueError, match="every seed counts once"):
        sweep.sweep(TASKS + TASKS[:1])


def test_the_summary_holds_every_seed(serial, tmp_path, monkeypatch):
    monkeypatch.setattr(utils, "OUTPUT", tmp_path)
    found = sweep.save(serial, [0, 1])["three_block_cnn"]["test"]
    assert found["accuracy"] == [result["test"]["accuracy"] for result in serial]
    assert found["mean"] == pytest.approx(np.mean(found["accuracy"]))
    with np.load(tmp_path / "results" / "seeds.npz") as file:
        assert (file["three_block_cnn"] == np.stack([result["probability"] for result in serial])).all()
