"""Tests of the benchmark's arithmetic, and of what the README says of it."""

import json

import keras
import pytest

import benchmark
import utils


def test_vgg16_operations_are_those_of_the_literature():
    """VGG16's convolutions take 15.35 thousand million multiply-adds for 224x224 pixels."""
    base = keras.applications.VGG16(include_top=False, weights=None)
    assert benchmark.convolution_operations(base, 224, "block5_pool") == pytest.approx(2 * 15.35e9, rel=0.01)
    assert benchmark.convolution_operations(base, 112, "block5_pool") == pytest.approx(2 * 15.35e9 / 4, rel=0.01)


def test_a_short_training_run_is_timed_and_judged():
    run = benchmark.train_cnn(1, 200)
    assert (run["epochs"], run["images"]) == (1, 200) and run["seconds"] > 0
    assert run["validation"]["n"] == 100 and run["test"]["n"] == 200


def test_the_first_call_is_not_counted():
    calls = []
    assert len(benchmark.call_times(lambda: calls.append(1), 3)) == 3 and len(calls) == 4


def test_the_readme_shows_the_committed_benchmark():
    found = json.loads((utils.ROOT / "results" / "benchmark.json").read_text())
    assert benchmark.readme_section(found) in (utils.ROOT / "README.md").read_text()
    for key in ("with_xla", "without_xla"):
        recipe = found["recipe_2021"][key]
        assert recipe["extrapolated_seconds"] == pytest.approx(recipe["seconds_a_step"] * benchmark.STEPS_2021)
    assert found["three_block_cnn"][-1]["epochs"] == utils.load_results(
        "three_block_cnn", utils.ROOT / "results")["settings"]["epochs"]
