"""Unit tests of utils.py: writing, judging, models, results, figures."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers import copy_project, git, some_images

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


def test_tests_take_the_quick_profile_and_write_to_scratch():
    assert utils.QUICK and utils.OUTPUT == utils.ROOT / "scratch" and utils.CACHE.is_relative_to(utils.OUTPUT)


@pytest.mark.parametrize(
    "variables, output",
    [
        ({}, "."),
        ({"SHIP_TRUCK_PROFILE": "quick"}, "scratch"),
        ({"SHIP_TRUCK_OUTPUT": "elsewhere"}, "elsewhere"),
    ],
)
def test_where_a_run_writes(variables, output):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SHIP_TRUCK")}
    code = "import utils; print(utils.relative(utils.OUTPUT), utils.relative(utils.CACHE))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=utils.ROOT, env=environment | variables, capture_output=True, text=True
    )
    cache = "scratch/cache" if output == "scratch" else "cache"
    assert done.stdout.split() == [output, cache], done.stderr


def test_importing_utils_loads_no_tensorflow_and_says_nothing():
    code = "import os; before = os.fstat(2); import utils, sys; assert os.fstat(2) == before; print('keras' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=utils.ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "False" and not done.stderr


def test_tensorflow_starts_without_a_word_and_stderr_is_as_before():
    code = "import utils, sys; utils.start_tensorflow(); print('still here', file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], cwd=utils.ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "still here\n"


def test_score_is_wilson():
    # 81 right of 263: the worked example of Newcombe (1998), Wilson without continuity correction.
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


def test_mcnemar_counts_where_just_one_is_right():
    right, before = (
        np.repeat([True, True, False, False], [50, 9, 1, 5]),
        np.repeat([True, False, True, False], [50, 9, 1, 5]),
    )
    gained, lost, p = utils.mcnemar(right, before)
    assert (gained, lost) == (9, 1) and p == pytest.approx(22 / 1024)  # two tails of ten throws of a coin
    assert utils.mcnemar(right, right) == (0, 0, 1.0)


def test_errors_are_drawn_most_confident_first():
    figure = utils.plot_errors(some_images(4)[0], np.array([0, 0, 1, 1]), np.array([0.6, 0.9, 0.95, 0.4]))
    assert [axis.get_title() for axis in figure.axes[:4]] == ["truck? 0.90", "truck? 0.60", "ship? 0.60", ""]


def test_a_seed_gives_the_same_numbers():
    draws = []
    for seed in (3, 3, 4):
        utils.set_seed(seed)
        draws.append(keras.random.normal((3,)).numpy().tolist())
    assert draws[0] == draws[1] != draws[2]


# --- Models --------------------------------------------------------------------------------------


def tiny_network():
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(2, 3)(keras.layers.Rescaling(1 / 255)(inputs))
    return keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Flatten()(x)))


def test_a_saved_model_takes_images_of_any_size_and_gives_the_same_answer_without_its_optimizer(output):
    model, x = utils.classifier(tiny_network(), "tiny"), some_images(4)[0]
    model.compile("adam", "binary_crossentropy", jit_compile=False)
    model.fit(x, np.array([0, 1, 0, 1]), verbose=0)
    utils.save_model(model, "tiny")
    loaded = keras.saving.load_model(output / "models" / "tiny.keras")
    assert loaded.input.dtype == "uint8" and getattr(loaded, "optimizer", None) is None
    probability = loaded.predict(x, verbose=0)
    assert (probability == model.predict(x, verbose=0)).all() and probability.shape == (4, 1)
    plain = [np.full((1, *size, 3), 80, np.uint8) for size in ((32, 32), (1, 1), (90, 400))]
    answers = [loaded.predict(image, verbose=0).item() for image in plain]
    assert answers == pytest.approx(answers[:1] * 3, abs=1e-5)


def test_the_mirror_image_counts_if_asked_for():
    x, network = some_images(4)[0], tiny_network()
    both, one = (utils.classifier(network, "tiny", mirror).predict(x, verbose=0) for mirror in (True, False))
    assert utils.classifier(network, "tiny").predict(x[:, :, ::-1], verbose=0) == pytest.approx(both, abs=1e-6)
    expected = keras.ops.sigmoid(network.predict(x.astype("float32"), verbose=0))
    assert one == pytest.approx(np.asarray(expected), abs=1e-6) and one != pytest.approx(both, abs=1e-3)


def test_a_missing_model_says_how_to_get_it(output):
    with pytest.raises(FileNotFoundError, match="three_block_cnn.keras is missing.*make run"):
        utils.load_model("three_block_cnn")


@pytest.mark.parametrize("name, n", [("three_block_cnn", 500), ("vgg16_transfer", 50)])
def test_committed_models_give_the_committed_probabilities(name, n, monkeypatch):
    monkeypatch.setattr(utils, "OUTPUT", utils.ROOT)
    x_test = utils.load_images(utils.DATA / "ship_truck.npz")[2][:n]
    committed = utils.load_results(name)["probability"]["test"][:n]
    model = utils.load_vgg16_transfer() if name == "vgg16_transfer" else utils.load_model(name)
    probability = model.predict(x_test, verbose=0).ravel()
    # The stored features are rounded to 16 bits, and another processor rounds otherwise.
    assert np.abs(probability - committed).max() < 0.01
    assert np.mean((probability >= 0.5) == (committed >= 0.5)) >= 0.99


# --- Results -------------------------------------------------------------------------------------


def save_some_run(name="three_block_cnn", probability=(0.1, 0.8, 0.4, 0.9), settings=None, history=HISTORY, test=True):
    y, probability = np.array([0, 1, 1, 1]), np.float32(probability)
    settings = settings or {"seed": 0, "epochs": 2}
    tested = (y[:3], np.float32([[0.25], [0.5], [1]])) if test else None
    return utils.save_run(name, settings, history, 1.26, {"trainable": 1, "frozen": 0}, (y, probability), tested)


def test_results_come_back_as_written(output):
    written = save_some_run()
    results = utils.load_results("three_block_cnn")
    probability = results.pop("probability")
    assert results == {key: value for key, value in written.items() if key != "probability"}
    assert results["test"]["accuracy"] == 1 and results["validation"]["accuracy"] == 0.75 and results["seconds"] == 1.3
    assert (probability["validation"] == np.float32([0.1, 0.8, 0.4, 0.9])).all()
    assert (
        results["data_sha256"] == utils.SHA256["ship_truck.npz"] and results["versions"]["keras"] == keras.__version__
    )
    assert "test" not in save_some_run(test=False)


@pytest.mark.parametrize(
    "content, error, complaint",
    [
        (None, FileNotFoundError, "three_block_cnn.json is missing: run notebook 02"),
        ("{", ValueError, "three_block_cnn.json is not JSON.*run notebook 02"),
    ],
)
def test_missing_or_damaged_results_say_what_to_run(tmp_path, content, error, complaint):
    if content is not None:
        (tmp_path / "three_block_cnn.json").write_text(content)
    with pytest.raises(error, match=complaint):
        utils.load_results("three_block_cnn", tmp_path)


def test_results_made_by_another_run_say_so(output, capsys):
    run = save_some_run()["run"]
    utils.save_results("calibration", {"made_from": {"three_block_cnn": run}})
    utils.save_results("seeds", {"made_from": {"three_block_cnn": {"epochs": 2}}})
    for name in ("calibration", "seeds"):
        utils.load_results(name)
    assert capsys.readouterr().out == ""
    save_some_run(probability=(0.1, 0.8, 0.4, 0.91), settings={"seed": 1, "epochs": 3})
    for name, what in (("calibration", "run notebook 06"), ("seeds", "run `make seeds`")):
        utils.load_results(name)
        assert f"{name}.json was made by another run of three-block CNN: {what}" in capsys.readouterr().out


@pytest.mark.parametrize("change", [{"history": {"loss": [float("nan")]}}, {"probability": (0.1, 0.8, np.nan, 0.9)}])
def test_a_diverged_run_is_not_written(output, change):
    with pytest.raises(ValueError):
        save_some_run(**change)
    assert not list(output.rglob("*.json"))


def test_the_table_of_runs_tells_what_was_changed_and_what_it_was_worth(tmp_path, monkeypatch, capsys):
    folder = copy_project(tmp_path / "copy")
    monkeypatch.setattr(utils, "ROOT", folder)
    monkeypatch.setattr(utils, "OUTPUT", folder / "scratch")
    monkeypatch.setattr(utils, "load_training_images", lambda: (None, np.tile(np.uint8([0, 1]), 20)))
    y = np.tile(np.uint8([0, 1]), 20)[utils.split_indices(np.tile(np.uint8([0, 1]), 20))[1]]  # four validation images
    monkeypatch.setattr(utils, "OUTPUT", folder)
    committed = utils.save_run("three_block_cnn", {"seed": 0, "epochs": 2}, {}, 1.0, {}, (y, 1 - y), (y, y))
    git(folder, "commit", "-qam", "a run")
    monkeypatch.setattr(utils, "OUTPUT", folder / "scratch")
    utils.log_run("three_block_cnn", committed | {"settings": {"seed": 1, "epochs": 2}})
    better = utils.save_run("three_block_cnn", {"seed": 0, "epochs": 3}, {}, 2.0, {}, (y, y), (y, y))
    capsys.readouterr()
    utils.log_run("three_block_cnn", better)
    header, first, same, changed, *_ = capsys.readouterr().out.splitlines()
    assert "the committed one" in first and "0.00% of 4" in first
    assert same.split()[-3:] == ["nothing,", "seed", "1"] and changed.endswith("epochs 3 (not 2)")
    assert changed.split()[5:8] == ["4", "0", "0.12"]  # gained, lost, p


def test_git_s_refusal_is_passed_on(tmp_path, monkeypatch):
    monkeypatch.setattr(utils, "ROOT", tmp_path)
    with pytest.raises(RuntimeError, match="git can't show the committed results/three_block_cnn.json: .+"):
        utils.committed_results("three_block_cnn")


def test_seeds_are_summarised_and_one_alone_has_no_spread():
    scores = [{"accuracy": accuracy, "n": 10} for accuracy in (0.9, 0.8)]
    assert utils.format_seeds(utils.summarise(scores)) == "85.00% ± 7.07% (n = 2 seeds)"
    assert utils.format_seeds(utils.summarise(scores[:1])) == "90.00% (one seed)"


def test_the_bootstrap_draws_runs_and_images_and_keeps_pairs_together():
    right = np.random.default_rng(1).random((3, 400)) < 0.8
    first, perfect = utils.resampled_accuracies([right, np.ones((1, 400), bool)], draws=300).T
    assert (perfect == 1).all() and first.mean() == pytest.approx(right.mean(), abs=0.01)
    assert first.std() == pytest.approx((0.8 * 0.2 / 400) ** 0.5, rel=0.3)
    alone = utils.resampled_accuracies([right[:1], right[:1]], draws=50).T
    assert (alone[0] == alone[1]).all()  # one run each, and the same images


# --- Figures -------------------------------------------------------------------------------------


def test_unchanged_numbers_give_unchanged_figures(output):
    sums = []
    for _ in range(2):
        utils.save_figure(utils.plot_histories({"three_block_cnn": HISTORY}), "curves")
        sums.append((output / "figures" / "curves.png").read_bytes())
    assert sums[0] == sums[1]


def test_learning_curves_show_what_the_history_says():
    histories = {name: {key: [number + 0.25, 0.5] for key in HISTORY} for number, name in enumerate(utils.LABELS)}
    axes = utils.plot_histories(histories).axes
    assert [axis.get_title() for axis in axes[::2]] == list(utils.LABELS.values())
    losses, accuracies = axes[2].lines, axes[3].lines
    assert [line.get_linestyle() for line in losses] == ["--", "-"]
    assert losses[0].get_ydata().tolist() == [1.25, 0.5] and accuracies[0].get_ydata().tolist() == [125, 50]


def test_a_network_is_drawn_as_high_as_its_maps_and_wider_with_more_channels_and_what_is_frozen_is_grey():
    parts = [("image", (32, 32, 3)), ("maps", (16, 16, 64)), ("hidden", (9,)), ("logit", (1,))]
    image, maps, hidden, logit = utils.plot_network("title", parts, "#ff0000", frozen=1).axes[0].patches
    assert image.get_height() == 2 * maps.get_height() > 2 * logit.get_height() and maps.get_width() > image.get_width()
    assert image.get_facecolor() == maps.get_facecolor() != hidden.get_facecolor() == (1, 0, 0, 1)


def test_scores_are_drawn_from_top_to_bottom_with_their_intervals():
    scores = [utils.score(np.zeros(10), np.full(10, probability)) for probability in (0.1, 0.9)]
    axis = utils.plot_scores([("right", scores[0], "black"), ("wrong", scores[1], "black")], "title").axes[0]
    right, wrong = (container.lines[0].get_xydata()[0].tolist() for container in axis.containers)
    assert right == [100, 0] and wrong == [0, -1]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["right", "wrong"]
    ends = axis.containers[1].lines[2][0].get_segments()[0][:, 0]
    assert ends == pytest.approx([0, 100 * scores[1]["interval95"][1]])


def test_a_ladder_is_printed_and_drawn_with_what_is_known(capsys):
    by_image = {"gained": 30, "lost": 10, "n": 200, "p": 0.002, "smallest": 0.07}
    entries = [{"step": "start", "accuracy": [0.8, 0.9]}]
    entries += [{"step": "next", "accuracy": [0.9, 1.0], "gain": {"mean": 0.1, "interval95": [0.05, 0.15]} | by_image}]
    entries += [{"step": "older", "accuracy": [0.9], "gain": {"mean": -0.05, "interval95": None}}]
    entries += [{"step": "all steps together", "gain": {"mean": 0.05, "interval95": [0.0, 0.1]} | by_image}]
    utils.print_ladder(entries)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == ["start", "85.00%"] and lines[3] == ["older", "90.00%", "-5.00", "one", "fold"]
    assert lines[2] == ["next", "95.00%", "+10.00", "+5.00", "to", "+15.00", "30", "10", "0.002", "7.00"]
    bars = utils.plot_ladder(entries, "three_block_cnn", "title").axes[0].patches
    assert [bar.get_width() for bar in bars] == pytest.approx([-5, 10])


@pytest.mark.parametrize(
    "cpuinfo, environment, expected",
    [
        ("flags: avx512f amx_bf16 amx_tile", {}, "mixed_bfloat16"),
        ("flags: avx512f avx512_bf16", {}, "float32"),
        (None, {}, "float32"),  # no Linux
        ("flags: amx_bf16", {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, "float32"),
        ("flags: amx_bf16", {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX"}, "mixed_bfloat16"),
        ("flags: amx_bf16", {"TF_ENABLE_ONEDNN_OPTS": "0"}, "float32"),
        ("flags: amx_bf16", {"SHIP_TRUCK_PRECISION": "float32"}, "float32"),
        ("flags: avx2", {"SHIP_TRUCK_PRECISION": "mixed_bfloat16"}, "mixed_bfloat16"),
    ],
)
def test_bfloat16_is_chosen_where_the_processor_is_made_for_it(monkeypatch, tmp_path, cpuinfo, environment, expected):
    monkeypatch.setattr("tensorflow.config.list_physical_devices", lambda kind: [])
    monkeypatch.setattr(utils, "CPUINFO", tmp_path / "cpuinfo")
    if cpuinfo:
        utils.CPUINFO.write_text(cpuinfo)
    for name in ("ONEDNN_MAX_CPU_ISA", "TF_ENABLE_ONEDNN_OPTS", "SHIP_TRUCK_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    policy, reason = utils.precision()
    assert policy == expected and ("SHIP_TRUCK_PRECISION" in reason) == ("SHIP_TRUCK_PRECISION" in environment)


@pytest.mark.parametrize(
    "capabilities, expected",
    [([(8, 0)], "mixed_bfloat16"), ([(7, 5)], "float32"), ([(9, 0), (7, 5)], "float32"), ([None], "float32")],
)
def test_of_the_gpus_all_must_be_made_for_bfloat16(monkeypatch, capabilities, expected):
    details = [{"compute_capability": each} if each else {} for each in capabilities]
    monkeypatch.delenv("SHIP_TRUCK_PRECISION", raising=False)
    monkeypatch.setattr("tensorflow.config.list_physical_devices", lambda kind: range(len(details)))
    monkeypatch.setattr("tensorflow.config.experimental.get_device_details", lambda gpu: details[gpu])
    assert utils.precision()[0] == expected


def test_another_precision_is_refused_with_those_that_there_are(monkeypatch):
    monkeypatch.setenv("SHIP_TRUCK_PRECISION", "float16")
    with pytest.raises(ValueError, match="'float16'; set it to float32 or mixed_bfloat16, or unset it"):
        utils.precision()
