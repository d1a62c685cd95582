"""Unit tests of utils.py: writing, scoring, models, results, figures."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers import some_images

import utils

HISTORY = {key: [0.5, 0.25] for key in ("loss", "accuracy", "val_loss", "val_accuracy")}


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, interruption):
    path = tmp_path / "results.json"
    path.write_text("old")
    with pytest.raises(interruption), utils.atomic_write(path) as temporary:
        temporary.write_text("half")
        raise interruption
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def python(code):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SHIP_TRUCK")}
    done = subprocess.run([sys.executable, "-c", code], cwd=utils.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def test_importing_utils_loads_no_tensorflow_and_by_default_trains_and_writes_here():
    done = python("import utils, sys; print('keras' in sys.modules, utils.TRAIN, utils.OUTPUT == utils.ROOT)")
    assert done.stdout.split() == ["False", "True", "True"] and not done.stderr


def test_tensorflow_loads_without_a_word_and_stderr_is_as_before():
    done = python("import utils, sys; utils.load_tensorflow(); import keras; print('still here', file=sys.stderr)")
    assert done.stderr == "still here\n"


def test_tensorflow_s_tuner_is_off_however_often_the_first_cell_is_run():
    from keras.src.trainers.data_adapters.array_data_adapter import ArrayDataAdapter

    utils.load_tensorflow()
    patched = ArrayDataAdapter.get_tf_dataset
    utils.load_tensorflow()
    assert ArrayDataAdapter.get_tf_dataset is patched
    assert ArrayDataAdapter(np.zeros((4, 1))).get_tf_dataset().options().autotune.enabled is False


def test_an_ensemble_averages_logits_and_bears_certainty():
    assert utils.ensemble([[0.5, 0.9], [0.5, 0.1]]) == pytest.approx([0.5, 0.5])
    assert utils.ensemble([[0.9, 1.0], [0.99, 1.0]])[0] == pytest.approx(0.9676, abs=1e-4)
    assert 0.999 < utils.ensemble([[1.0], [1.0]])[0] < 1


def test_settings_of_the_environment_are_checked_and_a_relative_folder_is_made_absolute(tmp_path):
    for name, value, said in (("OUTPUT", tmp_path.name, str(tmp_path)), ("TRAIN", "false", "set it to 0 or 1")):
        code = "import utils, os; print(os.environ['SHIP_TRUCK_OUTPUT'])"
        environment = os.environ | {f"SHIP_TRUCK_{name}": value, "PYTHONPATH": str(utils.ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path.parent, env=environment, capture_output=True, text=True
        )
        assert said in done.stdout + done.stderr


def test_a_damaged_model_names_the_way_back(tmp_path, monkeypatch):
    monkeypatch.setattr(utils, "OUTPUT", tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "some.keras").write_bytes(b"PK")
    with pytest.raises(ValueError, match="models/some.keras is damaged: `git checkout"):
        utils.load_model("some")


def test_score_is_wilson():
    # 81 of 263: the worked example of Newcombe (1998), Wilson without continuity correction.
    result = utils.score(np.ones(263), np.r_[np.ones(81), np.zeros(182)])
    assert result["accuracy"] == 81 / 263 and result["n"] == 263
    assert result["interval95"] == pytest.approx([0.2553, 0.3662], abs=5e-5)


@pytest.mark.parametrize(
    "probability, complaint",
    [
        ([0.5], "2 labels and 1 probabilities"),
        ([0.5, np.nan], "numbers from 0 to 1"),
        ([0.5, 1.1], "numbers from 0 to 1"),
    ],
)
def test_score_refuses_what_is_no_probability(probability, complaint):
    with pytest.raises(ValueError, match=complaint):
        utils.score(np.array([0, 1]), probability)


def test_mcnemar_counts_where_just_one_is_correct():
    correct, other = (
        np.repeat([True, True, False, False], [50, 9, 1, 5]),
        np.repeat([True, False, True, False], [50, 9, 1, 5]),
    )
    only, only_other, p = utils.mcnemar(correct, other)
    assert (only, only_other) == (9, 1) and p == pytest.approx(22 / 1024)  # two tails of ten tosses of a coin
    assert utils.mcnemar(correct, correct) == (0, 0, 1.0)


def test_the_bootstrap_draws_runs_and_images_and_keeps_pairs_together():
    correct = np.random.default_rng(1).random((3, 400)) < 0.8
    first, perfect = utils.resampled_accuracies([correct, np.ones((1, 400), bool)], draws=300).T
    assert (perfect == 1).all() and first.mean() == pytest.approx(correct.mean(), abs=0.01)
    assert first.std() == pytest.approx((0.8 * 0.2 / 400) ** 0.5, rel=0.3)
    alone = utils.resampled_accuracies([correct[:1], correct[:1]], draws=50).T
    assert (alone[0] == alone[1]).all()  # one run each, and the same images


def test_a_lead_is_in_points_and_lies_in_its_interval():
    correct, other = np.arange(400) < np.array([[396], [392]]), np.arange(400) < np.array([[360], [352], [364]])
    mean, low, high = utils.lead(correct, other, draws=300)
    assert mean == pytest.approx(8.833, abs=0.001) and 5 < low < mean < high < 13
    assert utils.lead(other, correct, draws=300)[0] == -mean


def test_seeds_are_given_with_their_spread():
    assert utils.format_seeds([0.9, 0.8]) == "85.00% ± 7.07% (2 seeds)"


def test_errors_are_drawn_most_confident_first():
    figure = utils.plot_errors(some_images(4)[0], np.array([0, 0, 1, 1]), np.array([0.6, 0.9, 0.95, 0.4]))
    assert [axis.get_title() for axis in figure.axes[:4]] == ["truck? 0.90", "truck? 0.60", "ship? 0.60", ""]


# --- Models --------------------------------------------------------------------------------------


def test_a_missing_model_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(utils, "ROOT", tmp_path)
    with pytest.raises(FileNotFoundError, match="three_block_cnn.keras is missing.*git checkout"):
        utils.load_model("three_block_cnn")


@pytest.mark.parametrize("name, n", [("three_block_cnn", 2000), ("vgg16_transfer", 40)])
def test_committed_models_give_the_committed_probabilities(name, n):
    x_test = utils.load_images()[2][:n]
    committed = np.array(utils.load_result(name)["probability"]["test"][:n])
    model = utils.load_vgg16_transfer() if name == "vgg16_transfer" else utils.load_model(name)
    # The CNN's are to the last digits; VGG16's features were rounded to 16 bits, and perhaps computed in bfloat16.
    assert np.abs(model.predict(x_test, verbose=0).ravel() - committed).max() < (1e-5 if n == 2000 else 0.01)


def test_the_saved_cnn_takes_pixels_and_looks_at_the_mirror_image():
    model, x = utils.load_model("three_block_cnn"), some_images(4)[0]
    assert model.predict(x, verbose=0) == pytest.approx(model.predict(x[:, :, ::-1], verbose=0), abs=1e-5)
    assert {layer.compute_dtype for layer in model.layers} == {"float32"} and getattr(model, "optimizer", None) is None


# --- Results -------------------------------------------------------------------------------------


def test_results_come_back_as_written_with_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(utils, "OUTPUT", tmp_path)
    utils.save_result("some", probability=np.float32([0.1, 0.5]), n=np.int64(3), history=HISTORY)
    monkeypatch.setattr(utils, "ROOT", tmp_path)
    result = utils.load_result("some")
    assert result["probability"] == [0.1, 0.5] and result["n"] == 3 and result["history"] == HISTORY
    machine = result["machine"]
    assert machine["processor"] and machine["versions"]["keras"] == keras.__version__
    assert machine["precision"] in ("float32", "mixed_bfloat16")


def test_a_diverged_run_is_not_written(output):
    with pytest.raises(ValueError):
        utils.save_result("some", history={"loss": [float("nan")]})
    assert not list(output.rglob("*.json"))


@pytest.mark.parametrize(
    "content, error, complaint",
    [
        (None, FileNotFoundError, "some.json is missing: `git checkout"),
        ("{", ValueError, "some.json is damaged.*git checkout"),
    ],
)
def test_missing_or_damaged_results_say_how_to_get_them(tmp_path, monkeypatch, content, error, complaint):
    monkeypatch.setattr(utils, "ROOT", tmp_path)
    (tmp_path / "results").mkdir()
    if content is not None:
        (tmp_path / "results" / "some.json").write_text(content)
    with pytest.raises(error, match=complaint):
        utils.load_result("some")


def test_committed_results_are_strict_json():
    for path in (utils.ROOT / "results").glob("*.json"):
        json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)


# --- Figures -------------------------------------------------------------------------------------


def test_unchanged_numbers_give_unchanged_figures(output):
    sums = []
    for _ in range(2):
        utils.save_figure(utils.plot_history(HISTORY, "title", "black"), "curves")
        sums.append((output / "figures" / "curves.png").read_bytes())
    assert sums[0] == sums[1]


def test_learning_curves_show_what_the_history_says():
    history = {key: [number + 0.25, 0.5] for number, key in enumerate(HISTORY)}
    loss, accuracy = utils.plot_history(history, "title", "black").axes
    assert [line.get_linestyle() for line in loss.lines] == ["--", "-"]
    assert loss.lines[0].get_ydata().tolist() == [0.25, 0.5] and accuracy.lines[1].get_ydata().tolist() == [325, 50]


def test_scores_are_drawn_from_top_to_bottom_with_their_intervals():
    scores = [utils.score(np.zeros(10), np.full(10, probability)) for probability in (0.1, 0.9)]
    axis = utils.plot_scores([("right", scores[0], "black"), ("wrong", scores[1], "black")], "title").axes[0]
    right, wrong = (container.lines[0].get_xydata()[0].tolist() for container in axis.containers)
    assert right == [100, 0] and wrong == [0, -1]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["right", "wrong"]
    ends = axis.containers[1].lines[2][0].get_segments()[0][:, 0]
    assert ends == pytest.approx([0, 100 * scores[1]["interval95"][1]])


# --- Precision -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cpuinfo, environment, expected",
    [
        ("vendor_id : GenuineIntel flags: avx512f amx_bf16 amx_tile", {}, "mixed_bfloat16"),
        ("vendor_id : GenuineIntel flags: avx512f avx512_bf16", {}, "float32"),
        ("vendor_id : AuthenticAMD flags: avx512f avx512_bf16", {}, "mixed_bfloat16"),
        ("vendor_id : AuthenticAMD flags: avx2", {}, "float32"),
        (None, {}, "float32"),  # no Linux
        ("flags: amx_bf16", {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, "float32"),
        ("flags: amx_bf16", {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX"}, "mixed_bfloat16"),
        ("AuthenticAMD avx512_bf16", {"ONEDNN_MAX_CPU_ISA": "AVX2"}, "float32"),
        ("flags: amx_bf16", {"SHIP_TRUCK_PRECISION": "float32"}, "float32"),
        ("flags: avx2", {"SHIP_TRUCK_PRECISION": "mixed_bfloat16"}, "mixed_bfloat16"),
    ],
)
def test_bfloat16_is_chosen_where_the_processor_is_made_for_it(monkeypatch, tmp_path, cpuinfo, environment, expected):
    path = tmp_path / "cpuinfo"
    if cpuinfo:
        path.write_text(cpuinfo)
    for name in ("ONEDNN_MAX_CPU_ISA", "SHIP_TRUCK_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert utils.precision(path) == expected


def test_another_precision_is_refused_with_those_that_there_are(monkeypatch):
    monkeypatch.setenv("SHIP_TRUCK_PRECISION", "float16")
    with pytest.raises(ValueError, match="'float16'; set it to float32 or mixed_bfloat16, or unset it"):
        utils.precision()
