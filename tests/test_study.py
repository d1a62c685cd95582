"""Tests of `make run`: the order in which the notebooks are executed, and of the exercises."""

import nbformat
import pytest

from scripts import exercises, run_study


@pytest.fixture
def executed(monkeypatch):
    """Pretend to execute notebooks; returns the starts and ends in their order."""
    log = []

    def execute(path):
        log.append(("start", path.name[:2]))
        if path.name.startswith("03") and getattr(execute, "fails", False):
            raise RuntimeError("03 failed")
        log.append(("end", path.name[:2]))

    monkeypatch.setattr(run_study, "execute", execute)
    return log, execute


@pytest.mark.parametrize("at_a_time", [1, 2, 8])
def test_each_notebook_comes_once_and_after_those_that_it_needs(executed, at_a_time):
    log, _ = executed
    run_study.execute_all(run_study.NOTEBOOKS, at_a_time)
    assert sorted(log) == sorted((what, path.name[:2]) for what in ("start", "end") for path in run_study.NOTEBOOKS)
    for name, needed in run_study.NEEDS.items():
        assert all(log.index(("end", other)) < log.index(("start", name)) for other in needed)


def test_a_notebook_alone_waits_for_nobody(executed):
    log, _ = executed
    run_study.execute_all([path for path in run_study.NOTEBOOKS if path.name.startswith("08")])
    assert log == [("start", "08"), ("end", "08")]


def test_an_error_ends_the_run(executed):
    log, execute = executed
    execute.fails = True
    with pytest.raises(RuntimeError, match="03 failed"):
        run_study.execute_all(run_study.NOTEBOOKS)
    assert ("start", "04") not in log and ("start", "08") not in log


def test_only_one_notebook_writes_to_the_readme():
    """Two that run side by side would lose what the other wrote."""
    writers = [path.name[:2] for path in run_study.NOTEBOOKS if "figures.fill_in" in path.read_text(encoding="utf-8")]
    assert writers == ["04"]


def test_the_change_of_an_exercise_must_stand_in_the_notebook_once():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in ("a = 1", "b = 1", "c, c")])
    assert [cell.source for cell in exercises.changed(notebook, {"a = 1": "a = 2"}).cells] == ["a = 2", "b = 1", "c, c"]
    for text in (" = ", "c", "d"):
        with pytest.raises(ValueError, match="expected once in one"):
            exercises.changed(notebook, {text: ""})


def test_what_a_cell_shows_is_found_by_a_text_in_it():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print(1)", outputs=[
        nbformat.v4.new_output("stream", text="1\n")]), nbformat.v4.new_code_cell("print(2)")])
    assert exercises.shown(notebook, "(1)") == "1\n"
    with pytest.raises(ValueError, match="stands in 2 cells"):
        exercises.shown(notebook, "print")
