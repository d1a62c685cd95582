"""Tests of what is committed: the study's notebooks as files, links, sizes."""

import re
import subprocess
import tomllib

import nbformat
import pytest
from helpers import NOTEBOOKS

import utils


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_opens_with_its_question_and_holds_nothing_of_a_machine(path):
    text = path.read_text(encoding="utf-8")
    assert len(text) < 2_000_000
    assert not re.search(r"/(?:work|root|tmp|home|Users|private|opt)/\w|[A-Z]:\\\\", text)
    cells = nbformat.reads(text, as_version=4).cells
    assert "**Question.**" in cells[0].source and "**Needs.**" in cells[0].source
    assert any("What we learnt" in cell.source for cell in cells)
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run it from top to bottom"
    for output in (output for cell in code for output in cell.outputs):
        assert output.output_type != "error" and output.get("name") != "stderr"


def test_the_solutions_differ_from_the_exercise_in_its_repairs_only():
    exercise, solved = (
        nbformat.read(utils.ROOT / "notebooks" / path, as_version=4).cells
        for path in ("10_repair_the_lab.ipynb", "solutions/10_repair_the_lab.ipynb")
    )
    repairs = [cell for cell in exercise if "repair" in cell.metadata.get("tags", ())]
    assert len(repairs) == 6 and all("write your repair here" in cell.source for cell in repairs)
    for left, right in zip(exercise[2:-1], solved[2:-1], strict=True):
        assert (left.source == right.source) == (left not in repairs)


def test_all_solutions_stand_in_one_place():
    collected = (utils.ROOT / "notebooks" / "solutions" / "README.md").read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, as_version=4).cells:
            folded = re.findall(
                r"<details><summary>(?:Answers|Solutions?)</summary>\s*(.*?)\s*</details>", cell.source, re.S
            )
            assert all(text in collected for text in folded), f"{path.name}: {folded}"


def test_links_lead_somewhere():
    cards = [
        utils.ROOT / folder / "README.md"
        for folder in (".", "data", "models", "notebooks", "notebooks/solutions", "scripts", "service", "site")
    ]
    pages = {path: path.read_text(encoding="utf-8") for path in cards}
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        pages[path] = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    for path, text in pages.items():
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_no_file_is_too_large_to_commit():
    if not (utils.ROOT / ".git").exists():
        pytest.skip("a copy without git")
    listed = subprocess.run(["git", "ls-files"], cwd=utils.ROOT, capture_output=True, text=True, check=True)
    paths = [utils.ROOT / line for line in listed.stdout.splitlines()]
    assert max(path.stat().st_size for path in paths if path.is_file()) < 45e6


def test_every_notebook_of_the_study_is_tested_and_linted():
    tools = tomllib.loads((utils.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    names = {path.relative_to(utils.ROOT).as_posix() for path in NOTEBOOKS}
    assert names <= set(tools["pytest"]["ini_options"]["testpaths"]) and names <= set(tools["ruff"]["include"])
