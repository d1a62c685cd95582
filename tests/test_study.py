"""Tests of `make run`: the order of the notebooks, what a failing one leaves, and the comparison at the end."""

import json
import types

import nbformat
import pytest
from helpers import NOTEBOOKS, git

import utils
from scripts import run_study


@pytest.fixture
def executed(monkeypatch):
    """Pretend to execute notebooks; return the numbers of those that were, and a list of those that shall fail."""
    log, failing = [], []

    def run(command):
        log.append(command[-1].name[:2])
        return types.SimpleNamespace(returncode=int(log[-1] in failing))

    monkeypatch.setattr(run_study.subprocess, "run", run)
    return log, failing


def test_each_notebook_comes_once_and_after_those_that_it_needs(executed, tmp_path):
    own = tmp_path / "09_mine.ipynb"
    run_study.execute_all([*NOTEBOOKS, own])
    log = executed[0]
    assert sorted(log[:-1]) == [path.name[:2] for path in NOTEBOOKS] and log[-1] == "09"
    assert {"02", "03"} <= set(log[:3]) and {"06", "07"} <= set(log[: log.index("08")])


def test_after_a_failure_nothing_that_needs_it_is_started(executed):
    log, failing = executed
    failing.append("03")
    with pytest.raises(SystemExit, match="03_vgg16_transfer_learning failed"):
        run_study.execute_all(NOTEBOOKS)
    assert set(log) == {"01", "02", "03"}


def test_a_failing_notebook_is_not_overwritten(tmp_path):
    path = tmp_path / "01_fails.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")]), path)
    before = path.read_bytes()
    with pytest.raises(Exception, match="ZeroDivisionError"):
        run_study.execute(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def results_of(validation, test, **settings):
    return {"settings": settings, "validation": {"accuracy": validation}, "test": {"accuracy": test}}


def test_the_comparison_fails_outside_its_tolerance_where_the_settings_are_the_same(capsys):
    old = {"a": results_of(0.97, 0.97, epochs=2), "b": results_of(0.5, 0.5)}
    new = {"a": results_of(0.976, 0.964, epochs=2), "b": results_of(0.5, 0.5), "c": results_of(1, 1)}
    assert run_study.compare(old, new) == 0
    assert "OUTSIDE" not in capsys.readouterr().out
    assert run_study.compare(old, {"a": results_of(0.962, 0.97, epochs=2)}) == 3  # and both of b are gone
    assert "OUTSIDE" in capsys.readouterr().out
    assert run_study.compare(old, {"a": results_of(0.5, 0.5, epochs=3), "b": results_of(0.5, 0.5)}) == 0
    assert capsys.readouterr().out.count("epochs 3 (not 2)") == 2
    new["a"]["precision"] = "mixed_bfloat16"
    assert run_study.compare(old, new) == 0
    assert "in mixed_bfloat16" in capsys.readouterr().out


def test_a_run_is_compared_with_what_git_has(tmp_path, monkeypatch, capsys):
    """A failing run leaves its results in the working tree; the next one must fail as well."""
    monkeypatch.setattr(utils, "ROOT", tmp_path)
    monkeypatch.setattr(utils, "OUTPUT", tmp_path)
    (tmp_path / "results").mkdir()
    for name in utils.LABELS:
        (tmp_path / "results" / f"{name}.json").write_text(json.dumps(results_of(0.9, 0.9)))
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "."]):
        git(tmp_path, *command)
    for name in utils.LABELS:
        (tmp_path / "results" / f"{name}.json").write_text(json.dumps(results_of(0.5, 0.5)))
    for _ in range(2):
        assert run_study.compare(run_study.committed_results(), run_study.current_results()) == 6
    monkeypatch.setattr(utils, "ROOT", tmp_path / "results")  # where git knows nothing of it
    capsys.readouterr()
    assert run_study.committed_results() == run_study.current_results()
    assert "git can't show" in capsys.readouterr().out
