"""Tests of `make run`: the order of the notebooks, what a failing one leaves, and the comparison at the end; and that
notebooks 02 and 03 train."""

import json
import os
import subprocess
import sys
import types

import nbformat
import pytest
from helpers import NOTEBOOKS

import utils
from scripts import experiments, run_study


@pytest.fixture
def executed(monkeypatch):
    """Pretend to execute notebooks; return the numbers of those that were, and a list of those that shall fail."""
    log, failing = [], []

    def run(command):
        log.append(command[-1].name[:2])
        return types.SimpleNamespace(returncode=int(log[-1] in failing))

    monkeypatch.setattr(run_study.subprocess, "run", run)
    return log, failing


def test_each_notebook_comes_once_and_after_those_that_it_needs(executed):
    run_study.execute_all(NOTEBOOKS)
    log = executed[0]
    assert sorted(log) == [path.name[:2] for path in NOTEBOOKS] and all(path.is_file() for path in NOTEBOOKS)
    assert log[:2] == ["02", "03"] and {"06", "07"} <= set(log[: log.index("08")])


def test_after_a_failure_nothing_that_needs_it_is_started(executed):
    log, failing = executed
    failing.append("03")
    with pytest.raises(SystemExit, match="03_vgg16_transfer_learning failed"):
        run_study.execute_all(NOTEBOOKS)
    assert log == ["02", "03"]


def test_a_failing_notebook_is_not_overwritten(tmp_path):
    path = tmp_path / "01_fails.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")]), path)
    before = path.read_bytes()
    with pytest.raises(Exception, match="ZeroDivisionError"):
        run_study.execute(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def result(test, **settings):
    return {"test": {"accuracy": test}, "settings": settings}


def test_an_accuracy_outside_what_the_seeds_allow_fails(capsys):
    seeds = {"a": [result(accuracy, seed=n, epochs=2) for n, accuracy in enumerate((0.96, 0.97, 0.98))]}  # 0.97 ± 0.04
    for accuracy, outside in ((0.935, 0), (1.0, 0), (0.925, 1)):
        assert run_study.compare({"a": result(accuracy, seed=7, epochs=2)}, seeds) == outside
    assert "OUTSIDE" in capsys.readouterr().out
    assert run_study.compare({"a": result(0.5, seed=0, epochs=3)}, seeds) == 0
    assert "other settings" in capsys.readouterr().out


def test_equal_seeds_still_allow_three_tenths_of_a_point():
    assert run_study.allowed([0.98, 0.98]) == pytest.approx((0.977, 0.983))


@pytest.mark.parametrize(
    "number, parameters, result",
    [("02", {"epochs": 1}, "three_block_cnn"), ("03", {"epochs": 1, "image_size": 32}, "vgg16_transfer")],
)
def test_a_notebook_trains(tmp_path, number, parameters, result):
    """With every twentieth image, and without the cells that only teach."""
    path = next(path for path in NOTEBOOKS if path.name.startswith(number))
    notebook = experiments.without_lesson(path)
    few = "images = utils.load_images()\nutils.load_images = lambda: [array[::20] for array in images]"
    notebook.cells.insert(2, nbformat.v4.new_code_cell(few))
    nbformat.write(notebook, tmp_path / "source.ipynb")
    command = [sys.executable, "-m", "papermill", tmp_path / "source.ipynb", tmp_path / "executed.ipynb"]
    for name, value in parameters.items():
        command += ["-p", name, str(value)]
    environment = os.environ | {"SHIP_TRUCK_TRAIN": "1", "SHIP_TRUCK_OUTPUT": str(tmp_path)}
    subprocess.run([*command, "--kernel", "python3"], cwd=path.parent, env=environment, check=True, capture_output=True)
    written = json.loads((tmp_path / "results" / f"{result}.json").read_text())
    assert written["test"]["n"] == 100 and len(written["history"]["loss"]) == 1 and written["settings"]["epochs"] == 1
    assert written["machine"]["versions"].keys() >= {"tensorflow", "keras"}
    assert list((tmp_path / "models").iterdir()) and utils.OUTPUT != tmp_path
