"""Tests of what is committed: the study's notebooks as files, links, sizes; and of the check of what runs have left."""

import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from helpers import NOTEBOOKS, copy_project

import utils


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_opens_with_its_question_and_holds_nothing_of_a_machine(path):
    text = path.read_text(encoding="utf-8")
    assert len(text) < 2_000_000
    assert not re.search(r"/(?:work|root|tmp|home|Users|private|opt)/\w|[A-Z]:\\\\", text)
    cells = nbformat.reads(text, as_version=4).cells
    assert "**Question.**" in cells[0].source and "**Needs.**" in cells[0].source
    assert "What we learnt" in cells[-1].source
    for output in (output for cell in cells if cell.cell_type == "code" for output in cell.outputs):
        assert output.output_type != "error" and output.get("name") != "stderr"


def test_links_lead_somewhere():
    cards = [
        utils.ROOT / folder / "README.md"
        for folder in (".", "data", "models", "notebooks", "scripts", "service", "site")
    ]
    pages = {path: path.read_text(encoding="utf-8") for path in cards}
    for path in NOTEBOOKS:
        pages[path] = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
    for path, text in pages.items():
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text):
            assert (path.parent / target).exists(), f"{utils.relative(path)}: {target}"


def test_no_file_is_too_large_to_commit():
    listed = subprocess.run(["git", "ls-files"], cwd=utils.ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip(f"git can't list the files: {listed.stderr}")
    paths = [utils.ROOT / line for line in listed.stdout.splitlines()]
    assert max(path.stat().st_size for path in paths if path.is_file()) < 45e6


@pytest.fixture
def check(tmp_path):
    """A copy of the project; a function that changes a text in a file of it and returns what the check then says."""
    folder = copy_project(tmp_path / "copy")

    def changed(name, old, new):
        shutil.copy(utils.ROOT / name, folder / name)
        text = (folder / name).read_text(encoding="utf-8")
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1), encoding="utf-8")
        done = subprocess.run([sys.executable, "scripts/check_results.py"], cwd=folder, capture_output=True, text=True)
        shutil.copy(utils.ROOT / name, folder / name)
        return done.stdout

    return changed


def test_results_that_do_not_belong_together_are_listed_with_what_to_run(check):
    run = utils.load_results("vgg16_transfer", utils.ROOT / "results")["run"]
    said = check("results/vgg16_transfer.json", f'"run": "{run}"', '"run": "another"')
    assert "calibration.json was made by another run of VGG16, frozen: run notebook 06" in said
    said = check("results/three_block_cnn.json", '"epochs": ', '"epochs": 1')
    assert "seeds.json was made by another run of three-block CNN: run `make seeds`" in said and "ladder.json" in said
    assert "three_block_cnn.json holds the learning curves of another run: run notebook 02" in said
    assert "02_three_block_cnn.ipynb shows an error or a warning" in check(
        "notebooks/02_three_block_cnn.ipynb", '"name": "stdout"', '"name": "stderr"'
    )
    said = check("README.md", f"| {utils.LABELS['three_block_cnn']} | **", f"| {utils.LABELS['three_block_cnn']} | **1")
    assert "README.md doesn't show the numbers in results/" in said
