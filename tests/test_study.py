"""Tests of `make run`: the order in which the notebooks are executed, and of the exercises."""

import nbformat
import pytest

from scripts import exercises, run_study


class Process:
    """Pretends to execute a notebook: it ends when it is looked at for the second time."""

    def __init__(self, path, log, fails):
        self.name, self.log, self.looks, self.returncode = path.name[:2], log, 0, None
        self.code = int(self.name == fails)
        log.append(("start", self.name))

    def poll(self):
        self.looks += 1
        if self.looks > 1 and self.returncode is None:
            self.returncode = self.code
            self.log.append(("end", self.name))
        return self.returncode

    def terminate(self):
        self.log.append(("terminated", self.name))

    def wait(self):
        pass


@pytest.fixture
def executed(monkeypatch):
    """Pretend to execute notebooks; returns the starts and ends in their order, and a function that lets one fail."""
    log, failing = [], []
    monkeypatch.setattr(run_study, "start", lambda path: Process(path, log, *failing or [None]))
    monkeypatch.setattr(run_study.time, "sleep", lambda seconds: None)
    return log, failing.append


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


def test_an_error_ends_the_run_and_what_runs_beside(executed):
    log, fail = executed
    fail("03")
    with pytest.raises(SystemExit, match="03_vgg16_transfer_learning failed"):
        run_study.execute_all(run_study.NOTEBOOKS)
    assert ("terminated", "02") in log and ("start", "04") not in log and ("start", "08") not in log


def test_ctrl_c_ends_what_runs(executed, monkeypatch):
    log, _ = executed
    monkeypatch.setattr(run_study.time, "sleep", lambda seconds: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_study.execute_all(run_study.NOTEBOOKS)
    assert sorted(log) == [("start", "02"), ("start", "03"), ("terminated", "02"), ("terminated", "03")]


def test_copies_that_jupyter_makes_are_not_executed():
    assert all(path.stem.count("-") == 0 and path.stem[2] == "_" for path in run_study.NOTEBOOKS)
    assert not run_study.re.fullmatch(r"\d\d_\w+", "02_three_block_cnn-Copy1")


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
        nbformat.v4.new_output("stream", text="[###] 3 of 3\n1\n")]), nbformat.v4.new_code_cell("print(2)")])
    assert exercises.shown(notebook, "(1)") == ["1"]
    with pytest.raises(ValueError, match="stands in 2 cells"):
        exercises.shown(notebook, "print")


def test_a_notebook_waits_for_those_whose_files_it_reads():
    makers = {"three_block_cnn": "02", "vgg16_transfer": "03", "luck_and_leaks": "05", "confidence_and_errors": "06",
              "strangers_and_damage": "07", '"neither"': "07"}
    for path in run_study.NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        source = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        read = {maker for word, maker in makers.items() if word in source} - {path.name[:2]}
        assert read <= set(run_study.NEEDS[path.name[:2]]), path.name
