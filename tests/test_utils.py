"""Unit tests of utils.py."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from test_data import some_images

import utils
from scripts import figures


# --- Writing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, interruption):
    path = tmp_path / "results.json"
    path.write_text("old")
    with pytest.raises(interruption):
        with utils.atomic_write(path) as temporary:
            temporary.write_text("half")
            raise interruption
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_quick_runs_write_to_scratch():
    assert utils.QUICK, "run the tests with `make test`, which sets SHIP_TRUCK_PROFILE=quick"
    assert utils.OUTPUT == utils.ROOT / "scratch" and utils.CACHE.is_relative_to(utils.OUTPUT)


# --- Importing -----------------------------------------------------------------------------------


def python(code, **options):
    """Run some code in a fresh interpreter in the project's folder."""
    return subprocess.run([sys.executable, "-c", code], cwd=utils.ROOT, capture_output=True, text=True, **options)


def test_importing_utils_loads_no_tensorflow_and_leaves_stderr_alone():
    done = python("import os; before = os.fstat(2); import utils, sys; assert os.fstat(2) == before; "
                  "print('tensorflow' in sys.modules, os.environ['TF_FORCE_GPU_ALLOW_GROWTH'])")
    assert done.stdout.split() == ["False", "true"], done.stderr


def test_a_script_shows_what_tensorflow_says():
    environment = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"}
    done = python("import utils; utils.set_seed(0)", env=environment)
    assert done.returncode == 0 and "oneDNN" in done.stderr


def test_utils_can_be_imported_where_stderr_is_closed():
    done = python("import os; os.close(2); import utils; utils.set_seed(0); print('fine')")
    assert done.stdout == "fine\n"


# --- Judging -------------------------------------------------------------------------------------


def test_score_is_wilson():
    # 81 right of 263: the worked example of Newcombe (1998), Wilson without continuity correction.
    result = utils.score(np.ones(263), np.r_[np.ones(81), np.zeros(182)])
    assert result["accuracy"] == 81 / 263 and result["n"] == 263
    assert result["interval95"] == pytest.approx([0.2553, 0.3662], abs=5e-5)


@pytest.mark.parametrize("probability, complaint", [
    ([0.5], "2 labels and 1 probabilities"), ([0.5, np.nan], "numbers from 0 to 1"), ([0.5, 1.1], "numbers from 0 to 1")])
def test_score_refuses_what_is_no_probability(probability, complaint):
    with pytest.raises(ValueError, match=complaint):
        utils.score(np.array([0, 1]), probability)


def test_errors_are_drawn_surest_first():
    figure = utils.plot_errors(some_images(4)[0], np.array([0, 0, 1, 1]), np.array([0.6, 0.9, 0.95, 0.4]))
    assert [axis.get_title() for axis in figure.axes[:4]] == ["truck? 0.90", "truck? 0.60", "ship? 0.60", ""]


def test_a_seed_gives_the_same_numbers():
    draws = []
    for seed in (3, 3, 4):
        utils.set_seed(seed)
        draws.append(keras.random.normal((3,)).numpy().tolist())
    assert draws[0] == draws[1] != draws[2]


# --- Models and results --------------------------------------------------------------------------


def tiny_classifier():
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(2, 3)(keras.layers.Rescaling(1 / 255)(inputs))
    return utils.classifier(keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Flatten()(x))), "tiny")


def test_a_saved_model_takes_images_of_any_size_and_gives_the_same_answer(output):
    model, x = tiny_classifier(), some_images(4)[0]
    utils.save_model(model, "tiny")
    loaded = utils.load_model("tiny")
    assert loaded.input.dtype == "uint8"
    probability = loaded.predict(x, verbose=0)
    assert (probability == model.predict(x, verbose=0)).all() and probability.shape == (4, 1)
    plain = [np.full((1, *size, 3), 80, np.uint8) for size in ((32, 32), (1, 1), (90, 400))]
    answers = [loaded.predict(image, verbose=0).item() for image in plain]
    assert answers == pytest.approx(answers[:1] * 3, abs=1e-5)


def test_a_model_is_saved_without_its_optimizer(output):
    model = tiny_classifier()
    model.compile("adam", "binary_crossentropy", jit_compile=False)
    model.fit(some_images(4)[0], np.array([0, 1, 0, 1]), verbose=0)
    utils.save_model(model, "tiny")
    loaded = keras.saving.load_model(output / "models" / "tiny.keras")
    assert model.optimizer and getattr(loaded, "optimizer", None) is None


def test_the_mirror_image_gets_the_same_answer():
    x, model = some_images(4)[0], tiny_classifier()
    assert model.predict(x[:, :, ::-1], verbose=0) == pytest.approx(model.predict(x, verbose=0), abs=1e-6)


def test_without_mirroring_the_answer_is_the_network_s():
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    inputs = keras.Input((32, 32, 3))
    network = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))))
    plain = utils.classifier(network, "plain", mirror=False).predict(images, verbose=0)
    expected = keras.ops.sigmoid(network.predict(images.astype("float32"), verbose=0))
    assert plain == pytest.approx(np.asarray(expected), abs=1e-6)
    assert utils.classifier(network, "both").predict(images, verbose=0) != pytest.approx(plain, abs=1e-3)


def test_a_missing_model_says_how_to_get_it(output):
    with pytest.raises(FileNotFoundError, match="three_block_cnn.keras is missing.*make run"):
        utils.load_model("three_block_cnn")


@pytest.mark.parametrize("name, n", [("three_block_cnn", 500), ("vgg16_transfer", 50)])
def test_committed_models_give_the_committed_probabilities(name, n, monkeypatch):
    monkeypatch.setattr(utils, "OUTPUT", utils.ROOT)
    x_test = utils.load_images(utils.DATA / "ship_truck.npz")[2][:n]
    committed = utils.load_results(name)["probability"]["test"][:n]
    found = utils.load_model(name).predict(x_test, verbose=0).ravel()
    # The stored features are rounded to 16 bits, and another processor rounds otherwise.
    assert np.abs(found - committed).max() < 0.01 and np.mean((found >= 0.5) == (committed >= 0.5)) >= 0.99


def some_results(**changes):
    y = np.array([0, 1, 1, 1])
    return {"settings": {"seed": 0}, "history": {key: [0.5, 0.25] for key in utils.HISTORY_KEYS}, "seconds": 1.26,
            "parameters": {"trainable": 1, "frozen": 0}, "validation": (y, np.float32([0.1, 0.8, 0.4, 0.9])),
            "test": (y[:3], np.float32([[0.25], [0.5], [1]]))} | changes


def test_results_come_back_as_written(output):
    written = utils.save_results("run", **some_results())
    results = utils.load_results("run")
    probability, seconds = results.pop("probability"), results.pop("seconds")
    assert results == written and seconds == 1.3 and results["test"]["accuracy"] == 1 and results["validation"]["accuracy"] == 0.75
    assert probability["test"].tolist() == [0.25, 0.5, 1] and len(probability["validation"]) == 4
    assert results["data_sha256"] == utils.SHA256["ship_truck.npz"] and results["versions"]["keras"] == keras.__version__
    assert utils.load_results("run", output / "results")["settings"] == {"seed": 0}


def test_the_same_results_give_the_same_bytes(output):
    files = []
    for _ in range(2):
        utils.save_results("run", **some_results())
        files.append({path.name: path.read_bytes() for path in (output / "results").iterdir()})
    assert files[0] == files[1] and files[0].keys() == {"run.json", "run.npz", "run_seconds.json"}


@pytest.mark.parametrize("content, error, complaint", [
    (None, FileNotFoundError, "run.json is missing; `make run`"),
    ("{", ValueError, "run.json is not JSON"),
    ("\udcff", ValueError, "run.json is not JSON"),
    ("[1]", ValueError, "run.json is incomplete"),
    (json.dumps({"accuracy": 0.97}), ValueError, "run.json is incomplete, without settings, run, data_sha256"),
    (json.dumps(dict.fromkeys(utils.RESULT_KEYS, 0)), ValueError, "incomplete, without .*run.npz"),
])
def test_missing_or_older_results_are_refused(tmp_path, content, error, complaint):
    if content is not None:
        (tmp_path / "run.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(error, match=complaint):
        utils.load_results("run", tmp_path)


def test_probabilities_of_another_run_are_refused(output):
    utils.save_results("run", **some_results())
    np.savez(output / "results" / "run.npz", validation=np.zeros(4), test=np.zeros(3))
    with pytest.raises(ValueError, match="run.npz doesn't belong to .*run.json"):
        utils.load_results("run")


@pytest.mark.parametrize("changes", [{"history": {key: [float("nan")] for key in utils.HISTORY_KEYS}},
                                     {"test": (np.array([1]), np.array([np.nan]))}])
def test_a_diverged_run_is_not_written(output, changes):
    with pytest.raises(ValueError):
        utils.save_results("run", **some_results(**changes))
    assert not (output / "results").exists() or not list((output / "results").iterdir())


def test_a_notebook_s_definitions_can_be_used_without_running_it(output, monkeypatch):
    monkeypatch.setattr(utils, "ROOT", output)
    (output / "notebooks").mkdir()
    cells = [{"cell_type": "code", "source": source, "metadata": {"tags": tags}, "outputs": [], "execution_count": None,
              "id": name} for name, source, tags in (("a", "x = 1", ["define"]), ("b", "1 / 0", []),
                                                     ("c", "y = x + 1", ["define", "other"]))]
    (output / "notebooks" / "n.ipynb").write_text(json.dumps(
        {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8")
    assert utils.definitions("n")["y"] == 2


# --- Figures and the README ----------------------------------------------------------------------


def test_unchanged_numbers_give_unchanged_figures(output):
    files = []
    for _ in range(2):
        figure = utils.plot_histories({"three_block_cnn": some_results()["history"]})
        utils.save_figure(figure, "curves")
        files.append([(output / "figures" / f"curves{suffix}").read_bytes() for suffix in (".png", ".svg")])
    assert files[0] == files[1]


def test_learning_curves_show_what_the_history_says():
    histories = {name: {key: [number + 0.25, 0.5] for key in utils.HISTORY_KEYS}
                 for number, name in enumerate(utils.LABELS)}
    axes = utils.plot_histories(histories).axes
    assert [axis.get_title() for axis in axes[:3]] == list(utils.LABELS.values())
    losses, accuracies = axes[1].lines, axes[4].lines
    assert [line.get_linestyle() for line in losses] == ["--", "-"]
    assert losses[0].get_ydata().tolist() == [1.25, 0.5] and accuracies[0].get_ydata().tolist() == [125, 50]


@pytest.fixture
def readme(tmp_path, monkeypatch):
    """A project with a README of its own, and its scratch folder."""
    monkeypatch.setattr(utils, "ROOT", tmp_path)
    monkeypatch.setattr(utils, "OUTPUT", tmp_path / "scratch")
    path = tmp_path / "README.md"
    path.write_text("Größe\n<!-- results -->\nold\n<!-- /results -->\n<!-- b -->\n<!-- /b -->\n", encoding="utf-8")
    return path


def test_a_quick_run_fills_in_a_copy(readme):
    before = readme.read_bytes()
    figures.fill_in("README.md", "results", "| new |\n")
    figures.fill_in("README.md", "b", "- more\n")
    filled = "Größe\n<!-- results -->\n| new |\n<!-- /results -->\n<!-- b -->\n- more\n<!-- /b -->\n"
    assert (utils.OUTPUT / "README.md").read_text(encoding="utf-8") == filled and readme.read_bytes() == before


def test_a_full_run_fills_in_the_file(readme, monkeypatch):
    monkeypatch.setattr(utils, "OUTPUT", utils.ROOT)
    figures.fill_in("README.md", "results", "| new |\n")
    assert "| new |" in readme.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="README.md has 0 pairs of <!-- gone -->"):
        figures.fill_in("README.md", "gone", "x")
    assert "| new |" in readme.read_text(encoding="utf-8")
