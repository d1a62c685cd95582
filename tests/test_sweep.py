"""Tests of the sweeps: a run is an execution of its notebook, by folds without the test set; nothing is done twice."""

import json
import re
import subprocess
import sys

import nbformat
import numpy as np
import pytest
from helpers import copy_project

import utils
from scripts import sweep
from service.bench import free_port

TINY = {"filters": [4, 4, 4], "epochs": 1, "crop_epochs": 0}


@pytest.fixture(scope="module")
def notebook():
    return sweep.read_notebook("three_block_cnn")


# --- Parameters ----------------------------------------------------------------------------------


def test_a_notebook_s_parameters_are_known_with_type_default_and_comment(notebook):
    for parameters in (sweep.known_parameters(notebook), sweep.known_parameters(sweep.read_notebook("vgg16_transfer"))):
        assert {"seed", "fold", "epochs", "learning_rate", "mirror", "watch_test"} <= parameters.keys()
        assert all(kind in sweep.TYPES and text for kind, _, text in parameters.values())
        assert parameters["fold"][:2] == ("int", -1) and type(parameters["learning_rate"][1]) is float


def test_what_a_run_keeps_of_its_settings_are_its_parameters():
    for model in sweep.NOTEBOOKS:
        notebook = sweep.read_notebook(model)
        source = "\n".join(cell.source for cell in notebook.cells if "settings = {" in cell.source)
        for name in sweep.known_parameters(notebook).keys() - {"fold", "watch_test"}:
            assert f'"{name}": {name}' in source


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"epoch": 3}, "there is no parameter 'epoch'"),
        ({"epochs": "3"}, "epochs is '3', expected int"),
        ({"epochs": [3, 4]}, r"epochs is \[3, 4\], expected int"),
        ({"mirror": 1}, "mirror is 1, expected bool"),
        ({"epochs": True}, "epochs is True, expected int"),
    ],
)
def test_a_parameter_that_cannot_be_is_refused_with_a_list_of_all(notebook, changes, complaint):
    with pytest.raises(ValueError, match=complaint) as error:
        sweep.new_run("three_block_cnn", notebook, changes, seed=0)
    assert "crop_epochs: int = " in str(error.value) and "  # how many of them" in str(error.value)


def test_changes_are_read_as_all_combinations(notebook):
    read = sweep.parse_changes('epochs=3,4 learning_rate=1,1e-2 filters=[8,8],[9] architecture="2021"', notebook)
    assert len(read) == 8 and read[0] == {"epochs": 3, "learning_rate": 1.0, "filters": [8, 8], "architecture": "2021"}
    assert read[-1] == {"epochs": 4, "learning_rate": 0.01, "filters": [9], "architecture": "2021"}
    now = sweep.with_changes(notebook, {})["epochs"]
    assert sweep.parse_changes(f"epochs={now},{now + 1}", notebook) == [{"epochs": now + 1}]


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("epochs", "'epochs' is not of the form"),
        ("epochs=", "not of the form"),
        ("epochs=3 epochs=4", "not of the form"),
        ("epochs=[3,4]", r"epochs is \[3, 4\], expected int"),
        ("hidden_units=3", "no parameter 'hidden_units'"),
        ("epochs=[3", "can't be read"),
        ("seed=1,2", "seed is set by the sweeps"),
    ],
)
def test_changes_that_make_no_sense_are_refused(notebook, text, complaint):
    with pytest.raises(ValueError, match=complaint):
        sweep.parse_changes(text, notebook)


# --- What a run is kept under --------------------------------------------------------------------


def edited(notebook, old, new):
    text = nbformat.writes(notebook)
    assert old in text
    return nbformat.reads(text.replace(old, new), as_version=4)


def test_prose_does_not_count_and_code_does(notebook, monkeypatch):
    def folder(notebook, changes=TINY, **kind):
        return sweep.new_run("three_block_cnn", notebook, changes, **({"seed": 0, "fold": 1} | kind))["folder"]

    first = folder(notebook)
    for old, new in (
        ("## Training", "## How it trains"),
        ("  # passes over the training images", "  # how often it sees all images"),
        ('\\"\\"\\"One epoch of', '\\"\\"\\"An epoch of'),
        ("most confident errors first", "others first"),
        ("plot_errors(x_test", "plot_errors(x_validation"),  # not a part of the run
    ):
        assert folder(edited(notebook, old, new)) == first, old
    assert folder(edited(notebook, "he_normal", "he_uniform")) != first
    assert (
        len({first, folder(notebook, TINY | {"mirror": False}), folder(notebook, seed=1), folder(notebook, fold=2)})
        == 4
    )
    in_other = {"float32": "mixed_bfloat16", "mixed_bfloat16": "float32"}[utils.precision()[0]]
    with monkeypatch.context() as patch:
        patch.setenv("SHIP_TRUCK_PRECISION", in_other)
        assert folder(notebook) != first
    monkeypatch.setattr(sweep, "version", lambda package: "0")
    assert folder(notebook) != first


def test_code_is_what_remains_without_docstrings_comments_and_empty_lines():
    source = '"""A module."""\n\nx = 1  # kept\n# gone\ndef f():\n    """A\n    function."""\n    return """\n# a string"""\n'
    assert sweep.without_prose(source) == 'x = 1  # kept\ndef f():\n    return """\n# a string"""'
    assert sweep.without_prose('def f(): "doc"; return 1') == 'def f(): "doc"; return 1'


def test_a_run_by_folds_holds_no_cell_that_reads_the_test_set(notebook):
    by_fold, by_seed = (sweep.new_run("three_block_cnn", notebook, TINY, 0, fold)["notebook"] for fold in (0, -1))
    assert "load_test_images" in by_seed and "load_test_images" not in by_fold
    for name in sweep.NOTEBOOKS:
        for cell in sweep.read_notebook(name).cells:
            if "load_test_images" in cell.source and cell.cell_type == "code":
                assert "test-set" in cell.metadata["tags"], cell.source


# --- Real runs -----------------------------------------------------------------------------------


def test_two_runs_at_a_time_leave_notebooks_and_results_and_are_not_done_again(output, notebook, monkeypatch):
    runs = [sweep.new_run("three_block_cnn", notebook, TINY, seed, fold=1) for seed in (0, 1)]
    first = sweep.execute_all(runs, workers=2)
    for run, results in zip(runs, first):
        assert results["validation"]["n"] == 100 and "test" not in results  # a fifth of the quick profile's 500
        assert results["settings"]["seed"] == run["changes"]["seed"] and results["settings"]["filters"] == [4, 4, 4]
        executed = nbformat.read(run["folder"] / "notebook.ipynb", as_version=4)
        assert any("image/png" in out.get("data", {}) for cell in executed.cells for out in cell.get("outputs", []))
    assert first[0]["probability"] != first[1]["probability"]
    monkeypatch.setattr(sweep, "execute", None)
    assert sweep.execute_all(runs) == first
    (runs[0]["folder"] / "results.json").write_text("{")
    with pytest.raises(ValueError, match="results.json is damaged; delete it"):
        sweep.execute_all(runs)


def test_a_run_in_bfloat16_keeps_a_model_in_float32(output, notebook):
    notebook = nbformat.from_dict(notebook)
    check = "assert 'bfloat16' in network.to_json() and 'bfloat16' not in model.to_json()"
    notebook.cells.append(nbformat.v4.new_code_cell(check))
    run = sweep.new_run("three_block_cnn", notebook, TINY, seed=0, fold=1) | {"precision": "mixed_bfloat16"}
    (results,) = sweep.execute_all([run])
    assert results["precision"] == "mixed_bfloat16" and results["validation"]["n"] == 100


def test_a_failing_run_says_what_failed(output, notebook):
    run = sweep.new_run("three_block_cnn", notebook, TINY | {"crop_epochs": 5}, seed=0)
    with pytest.raises(
        RuntimeError, match=r"run of three_block_cnn with .* failed: .*crop_epochs is 5, expected 0 to 1"
    ):
        sweep.execute_all([run])
    assert not list(output.rglob("results.json"))


def test_what_was_done_before_a_failure_is_kept_and_nothing_is_published(output, monkeypatch):
    def execute(number, run, clone):
        seed = run["changes"]["seed"]
        if seed == 13:
            raise RuntimeError("out of luck")
        asked.append(seed)
        score, history = {"accuracy": 0.9, "n": 10}, {"test_accuracy": [0.9]}
        scores = {"validation": score, "test": score, "probability": {"test": [0.5]}}
        costs = {"seconds": 1, "precision": run["precision"]}
        return number, "{}", json.dumps({"settings": run["changes"], "history": history} | costs | scores)

    asked = []
    monkeypatch.setattr(sweep, "execute", execute)
    with pytest.raises(RuntimeError, match="out of luck"):
        sweep.sweep_seeds(["three_block_cnn"], [0, 1, 13])
    assert asked == [0, 1] and not (output / "results").exists()
    sweep.sweep_seeds(["three_block_cnn"], [0, 1, 2])
    assert asked == [0, 1, 2]
    assert json.loads((output / "results" / "seeds.json").read_text())["three_block_cnn"]["seeds"] == [0, 1, 2]
    with pytest.raises(ValueError, match="every seed counts once"):
        sweep.sweep_seeds(["three_block_cnn"], [0, 1, 0])


def test_a_dask_worker_whose_clone_lies_elsewhere_does_the_same(tmp_path):
    """Client and worker are two copies of the project; the notebook with its small network is the client's."""
    client, worker = (copy_project(tmp_path / name) for name in ("client", "worker"))
    path = client / "notebooks" / "02_three_block_cnn.ipynb"
    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub(r"filters: list = \[[\d, ]+\]", "filters: list = [4, 4, 4]", text), encoding="utf-8")
    address = f"tcp://127.0.0.1:{free_port()}"
    silent = {"cwd": worker, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    commands = [["scheduler", "--port", address.rpartition(":")[2], "--no-dashboard"]]
    commands += [["worker", address, "--nthreads", "2", "--no-dashboard"]]
    cluster = [
        subprocess.Popen([sys.executable, "-m", f"distributed.cli.dask_{what}", *options], **silent)
        for what, *options in commands
    ]
    sweep_py = client / "scripts" / "sweep.py"
    command = [sys.executable, sweep_py, "seeds", "--models", "three_block_cnn", "--seeds", "0", "1", "--dask", address]
    try:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        other = worker / "utils.py"
        other.write_text(other.read_text(encoding="utf-8") + "\n", encoding="utf-8")
        refused = subprocess.run([*command[:-3], "2", *command[-2:]], cwd=tmp_path, capture_output=True, text=True)
    finally:
        for process in cluster:
            process.terminate()
            process.wait()
    assert done.returncode == 0, done.stderr[-800:]
    seeds = json.loads((client / "scratch" / "results" / "seeds.json").read_text(encoding="utf-8"))["three_block_cnn"]
    assert seeds["seeds"] == [0, 1] and len(seeds["test"]["accuracy"]) == 2
    assert len(list((client / "scratch" / "cache" / "runs").glob("*/notebook.ipynb"))) == 2
    assert [len(watched) for watched in seeds["watched"]] == [2, 2] and len(seeds["probability"][0]) == 200
    assert refused.returncode == 1 and "is another than that of the clone" in refused.stderr


def test_vgg16_runs_by_folds_and_watches_the_test_set_if_asked(output):
    tiny = {
        "image_size": 32,
        "layer": "block3_pool",
        "grid": 1,
        "mirror": False,
        "hidden_units": 0,
        "weight_decay": 1e-05,
    }
    notebook = sweep.read_notebook("vgg16_transfer")
    runs = [sweep.new_run("vgg16_transfer", notebook, tiny, 0, fold=2)]
    runs += [sweep.new_run("vgg16_transfer", notebook, tiny | {"watch_test": True}, 0)]
    by_fold, watched = sweep.execute_all(runs)
    assert by_fold["validation"]["n"] == 100 and "test" not in by_fold and by_fold["settings"]["weight_decay"] == 1e-05
    assert len(watched["history"]["test_accuracy"]) == 2 and watched["test"]["n"] == 200


def test_a_fine_tuned_run_trains_block_4_and_keeps_its_results_apart(output):
    run = sweep.new_run("vgg16_finetuned", sweep.read_notebook("vgg16_transfer"), {"finetune_epochs": 1}, 0, fold=1)
    (tuned,) = sweep.execute_all([run])
    frozen, head = json.loads((utils.ROOT / "results" / "vgg16_transfer.json").read_text())["parameters"].values()
    assert tuned["settings"]["finetune_epochs"] == 1 and tuned["validation"]["n"] == 100
    assert sum(tuned["parameters"].values()) == frozen + head and tuned["parameters"]["frozen"] == 1_735_488


def test_a_cell_without_the_tag_cannot_read_the_test_set_either(output, notebook):
    notebook = nbformat.from_dict(notebook)
    notebook.cells = [
        nbformat.v4.new_code_cell(source)
        for source in ("import sys; sys.path.insert(0, '..'); import utils", "utils.load_test_images()")
    ]
    run = sweep.new_run("three_block_cnn", sweep.read_notebook("three_block_cnn"), TINY, 0, fold=1)
    run["notebook"] = nbformat.writes(notebook)
    with pytest.raises(RuntimeError, match="must not read the test set"):
        sweep.execute_all([run])


# --- What they say -------------------------------------------------------------------------------


def pretended(monkeypatch, accuracy_of):
    """Have runs take no time: accuracy_of(parameters) is the share of held-out images that a run gets right."""
    _, y = utils.load_training_images()

    def execute_all(runs, **_):
        results = []
        for run in runs:
            labels = y[utils.split_indices(y, run["changes"]["fold"])[1]]
            right = np.arange(len(labels)) < round(accuracy_of(run["changes"]) * len(labels))
            probability = np.where(right, labels, 1 - labels).astype(float)
            model = run["model"] if run["model"] in sweep.NOTEBOOKS else "vgg16_transfer"
            settings = sweep.with_changes(sweep.read_notebook(model), run["changes"])
            scores = dict.fromkeys(("validation", "test"), utils.score(labels, probability))
            answers = {"probability": {"validation": probability.tolist()}, "parameters": {"trainable": 2, "frozen": 1}}
            costs = {"seconds": 1.0, "precision": run["precision"], "history": {"loss": [1.0]}}
            results.append({"settings": settings} | costs | scores | answers)
        return results

    monkeypatch.setattr(sweep, "execute_all", execute_all)


def test_a_ladder_compares_each_rung_with_the_one_before_by_fold_and_by_image(output, monkeypatch, capsys):
    last = sweep.with_changes(sweep.read_notebook("three_block_cnn"), {})["epochs"]
    steps = [("a", {"epochs": 1}), ("b", {"epochs": 2}), ("c", {"epochs": last})]
    monkeypatch.setattr(sweep, "steps_of", lambda notebook, tag: steps)
    accuracy = {1: 0.7, 2: 0.8, last: 0.78}
    pretended(monkeypatch, lambda changes: accuracy[changes["epochs"]] + 0.01 * changes["fold"])
    sweep.sweep_ladder(["three_block_cnn"], [0, 1])
    ladder = json.loads((output / "results" / "ladder.json").read_text())
    first, second, third, together = ladder["three_block_cnn"]
    assert first["accuracy"] == [0.7, 0.71] and "gain" not in first and first["n"] == 100
    assert first["history"] == {"loss": [1.0]}  # the learning curves of the first fold
    assert second["gain"]["mean"] == pytest.approx(0.1) and second["gain"]["interval95"] == pytest.approx([0.1, 0.1])
    assert (second["gain"]["gained"], second["gain"]["lost"], second["gain"]["n"]) == (20, 0, 200)
    assert (third["gain"]["gained"], third["gain"]["lost"]) == (0, 4) and together["gain"]["gained"] == 16
    assert third["gain"]["p"] == pytest.approx(0.125) and third["gain"]["smallest"] == 6 / 200
    assert "all steps together" in capsys.readouterr().out


def test_a_ladder_that_does_not_end_at_the_notebook_s_parameters_is_refused(monkeypatch):
    monkeypatch.setattr(sweep, "steps_of", lambda notebook, tag: [("a", {"epochs": 1}), ("b", {"mirror": True})])
    with pytest.raises(ValueError, match=r"LADDER in 02_three_block_cnn.ipynb must end at .* not at epochs 1 \(not"):
        sweep.sweep_ladder(["three_block_cnn"])


@pytest.mark.parametrize("disagreements, smallest", [(0, 6), (6, 6), (10, 8), (100, 22)])
def test_the_smallest_difference_that_shows(disagreements, smallest):
    assert sweep.smallest_difference(disagreements) == smallest


def test_experiments_are_kept_beside_each_other_while_the_notebook_stays(output, monkeypatch, notebook):
    pretended(monkeypatch, lambda changes: 0.9 if changes.get("epochs") == 3 else 0.8)
    sweep.experiment("three_block_cnn", "epochs=3", [0, 1])
    sweep.experiment("three_block_cnn", "epochs=3,4", [0, 1])
    kept = json.loads((output / "results" / "experiments.json").read_text())["three_block_cnn"]
    assert [(entry["step"], round(entry["gain"]["mean"], 3)) for entry in kept] == [
        ("epochs 3", 0.1),
        ("epochs 4", 0.0),
    ]
    assert (output / "figures" / "experiments_three_block_cnn.png").is_file()
    with pytest.raises(ValueError, match="the notebook's own parameters"):
        sweep.experiment("three_block_cnn", f"epochs={sweep.with_changes(notebook, {})['epochs']}")


def test_changes_are_labelled_in_words():
    changes = {"mirror": False, "batch_normalization": True, "hidden_units": 64}
    assert sweep.in_words(changes) == "no mirror, batch normalization, hidden units 64"


def test_what_is_published_of_one_model_leaves_the_other_alone(output):
    sweep.publish("seeds", "vgg16_transfer", {"seed": 3, "epochs": 1}, {"seeds": [3]})
    sweep.publish("seeds", "three_block_cnn", {"seed": 0, "epochs": 2}, {"seeds": [0]})
    kept = json.loads((output / "results" / "seeds.json").read_text())
    assert kept["vgg16_transfer"] == {"seeds": [3]} and kept["three_block_cnn"] == {"seeds": [0]}
    assert kept["made_from"] == {"vgg16_transfer": {"epochs": 1}, "three_block_cnn": {"epochs": 2}}


def test_controls_are_compared_with_the_run_that_is_kept(output, monkeypatch, notebook):
    controls = [("few", {"training_images": 90}), ("as sure as it likes", {"label_smoothing": 0.0})]
    monkeypatch.setattr(sweep, "steps_of", lambda notebook, tag: controls)

    def execute_all(runs, **_):
        score = {"accuracy": 0.9, "n": 10}
        answers = {"validation": score, "test": score, "probability": {"validation": [0.5], "test": [0.5]}}
        costs = {"seconds": 1.0, "precision": "float32"}
        return [{"settings": sweep.with_changes(notebook, run["changes"])} | answers | costs for run in runs]

    monkeypatch.setattr(sweep, "execute_all", execute_all)
    with pytest.raises(FileNotFoundError, match="three_block_cnn.json is missing: run notebook 02"):
        sweep.sweep_controls(["three_block_cnn"], [0, 1])
    settings = sweep.with_changes(notebook, {"fold": -1})
    utils.save_results("three_block_cnn", {"settings": settings | {"epochs": 1}})
    with pytest.raises(ValueError, match=r"is of another run .*: epochs \d+ \(not 1\); run notebook 02 first"):
        sweep.sweep_controls(["three_block_cnn"], [0, 1])
    utils.save_results("three_block_cnn", {"settings": settings})
    sweep.sweep_controls(["three_block_cnn"], [0, 1])
    few, _ = json.loads((output / "results" / "controls.json").read_text())["three_block_cnn"]
    assert few["changes"] == {"training_images": 90} and few["seeds"] == [0, 1] and few["test"]["mean"] == 0.9


def test_fine_tuning_is_compared_with_the_frozen_network_by_fold_and_tested_once(output, monkeypatch):
    tuned = [("tuned", {"finetune_epochs": 1})]
    monkeypatch.setattr(sweep, "steps_of", lambda notebook, tag: tuned)
    pretended(monkeypatch, lambda changes: 0.9 if "finetune_epochs" in changes else 0.8)
    sweep.sweep_finetuning([0, 1])
    kept = json.loads((output / "results" / "finetuning.json").read_text())["vgg16_transfer"]
    assert kept["frozen"]["accuracy"] == [0.8, 0.8] and kept["tuned"]["accuracy"] == [0.9, 0.9]
    assert kept["tuned"]["gain"]["mean"] == pytest.approx(0.1) and kept["tuned"]["gain"]["gained"] == 20
    assert kept["test"]["accuracy"] == 0.9


def test_few_images_are_as_many_of_each_class_drawn_by_the_seed_and_repeated():
    _, y = utils.load_training_images()
    training, _ = utils.split_indices(y)
    few = utils.draw_training(training, y, 10, seed=0)
    drawn = np.unique(few)
    assert len(few) == len(training) and len(drawn) == 10 and y[drawn].sum() == 5 and set(drawn) <= set(training)
    assert set(utils.draw_training(training, y, 10, seed=1)) != set(drawn)
    assert utils.draw_training(training, y, 0, seed=0) is training
    for images in (7, len(training), -2):
        with pytest.raises(ValueError, match=f"training_images is {images}, expected an even number"):
            utils.draw_training(training, y, images, seed=0)
