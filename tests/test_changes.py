"""Tests of what follows where a reader changes settings: a copy of the project, run in the quick profile."""

import hashlib
import shutil
import subprocess
import sys

import nbformat
import pytest
from conftest import copy_project, git

import utils

CHANGES = {"02_three_block_cnn": ('[32, 64, 128], "convolutions": 2', '[8, 16], "convolutions": 1', "three_block_cnn",
                                  "filters [8, 16] (not [32, 64, 128])"),
           "03_vgg16_transfer_learning": ('"hidden_units": 256', '"hidden_units": 0', "vgg16_transfer",
                                          "hidden_units 0 (not 256)")}


def study(folder, *notebooks):
    """Run notebooks of a copy; return what run_study.py printed."""
    done = subprocess.run([sys.executable, folder / "scripts" / "run_study.py", *notebooks], cwd=folder,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout


def outputs(folder, name, source=""):
    """Return the text that an executed notebook of a copy shows, in cells with some source."""
    notebook = nbformat.read(folder / "scratch" / "notebooks" / f"{name}.ipynb", as_version=4)
    return "".join(output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" and source in cell.source
                   for output in cell.outputs)


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """A copy, committed, in which both models then got other settings and were trained, as a full run would leave it."""
    folder = copy_project(tmp_path_factory.mktemp("changed") / "copy", commit=True)
    for name, (old, new, _, _) in CHANGES.items():
        path = folder / "notebooks" / f"{name}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        settings = next(cell for cell in notebook.cells if cell.source.startswith("SETTINGS = "))
        assert settings.source.count(old) == 1
        settings.source = settings.source.replace(old, new)
        nbformat.write(notebook, path)
    printed = study(folder, "02", "03")
    for path in (folder / "scratch" / "results").glob("[!.]*.*"):  # a full run would have written them there
        shutil.copy(path, folder / "results")
    study(folder, "04", "05", "06", "07", "08")
    return folder, printed


@pytest.mark.parametrize("name", CHANGES)
def test_the_comparison_tells_what_was_changed_and_does_not_fail(changed, name):
    _, _, model, words = CHANGES[name]
    line = next(line for line in changed[1].splitlines() if line.startswith(f"{model}, test"))
    assert words in line and "OUTSIDE" not in changed[1]


@pytest.mark.parametrize("name", CHANGES)
def test_the_notebook_shows_the_run_beside_the_committed_one(changed, name):
    _, _, model, words = CHANGES[name]
    assert words in outputs(changed[0], name, "sweep.format_ladder(")
    table = outputs(changed[0], name, "experiment.format_log(").splitlines()
    assert "the committed one" in table[1] and words in table[2]
    assert words in (changed[0] / "scratch" / "results" / "runs.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", CHANGES)
def test_notebook_04_and_the_readme_say_whose_the_other_numbers_are(changed, name):
    folder, (_, _, model, words) = changed[0], CHANGES[name]
    results = utils.load_results(model, folder / "results")
    readme = (folder / "scratch" / "README.md").read_text(encoding="utf-8")
    row = next(line for line in readme.splitlines() if line.startswith(f"| {utils.LABELS[model]}"))
    assert f"{results['test']['accuracy']:.2%}" in row
    old = utils.differences(utils.load_results(model, utils.ROOT / "results")["settings"], results["settings"])
    seeds = next(line for line in readme.splitlines() if line.startswith(f"- {utils.LABELS[model]}: ") and "seeds" in line)
    assert f"[of other settings: {old}]" in seeds and f"[of other settings: {old}]" in outputs(folder, "04_learning_curves")


@pytest.mark.parametrize("name", CHANGES)
def test_the_figure_takes_this_run_where_the_seeds_are_of_other_settings(changed, name):
    """Matplotlib writes the text of an SVG into comments."""
    label = f"<!-- ours: {utils.LABELS[CHANGES[name][2]]}"
    svg = (changed[0] / "scratch" / "figures" / "where_this_stands.svg").read_text(encoding="utf-8")
    committed = (utils.ROOT / "figures" / "where_this_stands.svg").read_text(encoding="utf-8")
    assert f"{label}, one run -->" in svg and f"{label}, mean of 5 seeds -->" in committed


def test_every_later_notebook_runs_to_its_end(changed):
    folder = changed[0] / "scratch" / "notebooks"
    assert sorted(path.name[:2] for path in folder.iterdir()) == [f"{number:02}" for number in range(2, 9)]
    assert "is of the run of notebook 03" not in outputs(changed[0], "08_photographs")


def test_figures_are_drawn_from_results_alone_with_the_same_bytes_as_by_the_notebooks(changed):
    def sums():
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()
                for path in (folder / "scratch" / "figures").iterdir()}

    folder = changed[0]
    shutil.copy(folder / "results" / "experiments.json", folder / "scratch" / "results")
    drawn = sums()
    subprocess.run([sys.executable, folder / "scripts" / "figures.py"], cwd=folder, check=True, capture_output=True)
    assert len(drawn) > 10 and drawn.items() <= sums().items()
    assert {path.name for path in (utils.ROOT / "figures").iterdir()} == set(sums())


def test_the_change_taken_back_all_is_as_before(changed):
    folder = changed[0]
    git(folder, "checkout", "--", "results", "notebooks", "README.md")
    (folder / "scratch" / "README.md").unlink()
    study(folder, "04")
    readme = (folder / "scratch" / "README.md").read_text(encoding="utf-8")
    assert readme == (utils.ROOT / "README.md").read_text(encoding="utf-8") and "[of other settings" not in readme
    assert not git(folder, "status", "--porcelain")
    shutil.rmtree(folder)
