"""Tests of the benchmark's arithmetic, and of what is committed of it."""

import keras
import pytest

import utils
from scripts import benchmark


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


@pytest.mark.parametrize("accuracy, sooner", [(0.9, 785.0), (0.5, None)])
def test_a_benchmark_that_reaches_no_level_is_kept_all_the_same(output, monkeypatch, accuracy, sooner):
    """Everything that takes time is replaced; a run takes 1 s, a step of the recipe too."""
    score = {"accuracy": accuracy}
    for name, result in (("peak_gflops", 1.0), ("step_2021", 1.0), ("extraction", (1.0, 1.0)), ("sweep_times", [1.0]), ("step_cnn", 0.01),
                         ("train_cnn", {"images": 9, "seconds": 1.0, "test": score})):
        monkeypatch.setattr(benchmark, name, lambda *_, result=result: result)
    monkeypatch.setattr(utils, "load_vgg16", lambda: None)
    benchmark.main()
    recipe = utils.read_json(output / "results" / "benchmark.json")["recipe_2021"]
    assert recipe["with_xla"]["times_sooner"] == recipe["without_xla"]["times_sooner"] == sooner


def test_the_committed_benchmark_is_of_the_committed_settings():
    found = utils.read_json(utils.ROOT / "results" / "benchmark.json")
    for key in ("with_xla", "without_xla"):
        recipe = found["recipe_2021"][key]
        assert recipe["extrapolated_seconds"] == pytest.approx(recipe["seconds_a_step"] * benchmark.STEPS_2021)
    settings = utils.load_results("three_block_cnn", utils.ROOT / "results")["settings"]
    assert found["three_block_cnn"][-1]["epochs"] == settings["epochs"]
    assert f"{found['three_block_cnn'][-1]['seconds']:.0f} s" in (utils.ROOT / "README.md").read_text(encoding="utf-8")
