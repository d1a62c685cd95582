"""Tests of a reader's first steps: each ends well, or with one clear sentence."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import filelock
import nbformat
import pytest
from helpers import NOTEBOOKS

import utils
from scripts import run_study


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy without git and cache/, in a folder with a space and an umlaut, with a utils.py above and a notebook more."""
    above = tmp_path_factory.mktemp("above")
    (above / "utils.py").write_text("raise ImportError('not this one')")
    root = above / "Schiff oder Lkw ä"
    shutil.copytree(
        utils.ROOT, root, ignore=shutil.ignore_patterns(".*", "cache", "data", "models", "node_modules", "public")
    )
    for folder in ("data", "models"):
        (root / folder).symlink_to(utils.ROOT / folder)
    mine = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import sys,os\n1/0")])
    nbformat.write(mine, root / "notebooks" / "10_mine.ipynb")
    return root


def run(folder, *command, **environment):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SHIP_TRUCK")} | environment
    return subprocess.run(
        [sys.executable, "-m", *map(str, command)], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_one_notebook_is_tested_alone_in_a_copy_without_git(copy):
    done = run(copy, "pytest", "notebooks/09_the_last_percent.ipynb")
    assert done.returncode == 0, done.stdout


def test_a_notebook_of_one_s_own_is_neither_tested_nor_judged(copy):
    done = run(copy, "pytest", "--collect-only", "--quiet", "--ignore=tests")
    assert done.returncode == 0 and "01_data_extraction" in done.stdout and "mine" not in done.stdout
    for arguments in (["check"], ["format", "--check"]):
        done = run(copy, "ruff", *arguments, "--no-cache")
        assert done.returncode == 0, done.stdout


def papermill(folder, number, *parameters):
    path = next(path for path in NOTEBOOKS if path.name.startswith(number))
    done = run(folder, "papermill", path.relative_to(utils.ROOT), os.devnull, "--kernel", "python3", *parameters)
    return done.stderr.strip().splitlines()[-1]


def test_papermill_from_the_root_is_told_of_every_bad_parameter(copy):
    given = {"epochs": "36.0", "label_smoothing": "lots", "training_images": "2", "seed": "a", "filters": "[32, 64]"}
    complaint = papermill(
        copy, "02", "-p", "train", "false", *(word for pair in given.items() for word in ("-p", *pair))
    )
    for said in (
        "ValueError: there is no filters, only seed, epochs,",
        "epochs is 36.0; expected a whole number from 1 to 1,000",
        "label_smoothing is 'lots'; expected a number from 0 to 0.5",
        "training_images is 2; expected a whole number from 20 to 9,000",
        "seed is 'a'; expected a whole number",
        "train is 'false'; expected True or False",
    ):
        assert said in complaint


def test_a_photo_named_to_papermill_is_the_one_that_is_read(copy):
    assert "no photo at" in papermill(copy, "08", "-p", "PHOTO", "gone.jpg")


def test_a_folder_that_can_t_be_written_to_is_said_at_once():
    code = "import os; os.access = lambda *_: False; import utils"
    done = subprocess.run([sys.executable, "-c", code], cwd=utils.ROOT, capture_output=True, text=True)
    assert "PermissionError: nothing can be written to" in done.stderr and "copy the repository" in done.stderr


def test_a_second_run_is_kept_out(tmp_path, monkeypatch):
    monkeypatch.setattr(run_study.utils, "CACHE", tmp_path)
    with run_study.alone():
        pass
    with (
        filelock.FileLock(tmp_path / "running.lock"),
        pytest.raises(SystemExit, match="another run is under way"),
    ):
        with run_study.alone():
            pytest.fail("it ran beside another")


@pytest.mark.parametrize("number", ["01", "02", "03", "04"])
def test_on_colab_the_first_cell_fetches_the_study_and_elsewhere_it_does_nothing(tmp_path, monkeypatch, number):
    path = next(path for path in NOTEBOOKS if path.name.startswith(number))
    cell = next(cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code").source
    monkeypatch.chdir(tmp_path)
    exec(cell, {})
    assert not list(tmp_path.iterdir())
    commands = []
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    monkeypatch.setattr("builtins.input", lambda _: "https://example.org/study")

    def run(command, check):
        commands.append(command)
        if command[0] == "git":
            Path(command[-1], "notebooks").mkdir(parents=True)

    monkeypatch.setattr(subprocess, "run", run)
    exec(cell, {})
    assert commands[0][:2] == ["git", "clone"] and "https://example.org/study" in commands[0]
    assert commands[1][1:4] == ["-m", "pip", "install"] and Path.cwd() == tmp_path / "ship-truck" / "notebooks"
