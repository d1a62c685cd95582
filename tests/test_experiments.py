"""Tests of `make experiments`, with a small notebook in place of 02 and 03."""

import json

import nbformat
import pytest
import yaml

from scripts import experiments


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A project with one notebook and one experiment of four runs; returns its notebook's path."""
    path = tmp_path / "notebooks" / "05_small.ipynb"
    cells = [
        nbformat.v4.new_code_cell("n: int = 1  # a number", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("raise ValueError('only teaches')", metadata={"tags": ["lesson"]}),
        nbformat.v4.new_code_cell(
            "import json, os, pathlib\n"
            "folder = pathlib.Path(os.environ['SHIP_TRUCK_OUTPUT']) / 'results'\n"
            "folder.mkdir()\n"
            "(folder / 'doubled.json').write_text(json.dumps({'n': 2 * n, 'parameters': 7, 'among': pathlib.Path.cwd().name}))"
        ),
    ]
    (tmp_path / "results").mkdir()
    (tmp_path / "scripts").mkdir()
    path.parent.mkdir()
    metadata = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)
    listed = {"doubling": {"notebook": "05_small", "keeps": ["doubled"], "parameters": {"n": [1, 5]}}}
    (tmp_path / "scripts" / "experiments.yaml").write_text(yaml.safe_dump(listed))
    monkeypatch.setattr(experiments, "ROOT", tmp_path)
    monkeypatch.setattr(experiments, "FOLDER", tmp_path / "cache")
    monkeypatch.setattr(experiments.utils, "CACHE", tmp_path / "cache")  # whose lock is taken
    experiments.source_of.cache_clear()
    return path


def main(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["experiments.py", *arguments])
    experiments.main()


def test_every_run_is_done_once_and_collected(small, monkeypatch, capsys):
    main(monkeypatch, "--workers", "2")
    assert "2 of 2 runs to do" in capsys.readouterr().out
    result = json.loads((small.parents[1] / "results" / "doubling.json").read_text())
    assert [run["n"] for run in result["doubled"]] == [2, 10]
    assert result["doubled"][1]["parameters"] == {"n": 5} and result["doubled"][1]["among"] == "notebooks"
    main(monkeypatch)
    assert "0 of 2 runs to do" in capsys.readouterr().out


def test_other_code_is_another_run_and_other_prose_is_not(small):
    before = experiments.folder_of("05_small", {"n": 1})
    notebook = nbformat.read(small, as_version=4)
    notebook.cells.append(nbformat.v4.new_markdown_cell("Prose."))
    notebook.cells[1].source = "raise ValueError('teaches otherwise')"
    nbformat.write(notebook, small)
    experiments.source_of.cache_clear()
    assert experiments.folder_of("05_small", {"n": 1}) == before != experiments.folder_of("05_small", {"n": 2})
    notebook.cells[2].source += "\n%time n += 1"
    nbformat.write(notebook, small)
    experiments.source_of.cache_clear()
    assert experiments.folder_of("05_small", {"n": 1}) != before


def test_a_failing_run_says_why_and_the_others_are_kept(small, monkeypatch, capsys):
    notebook = nbformat.read(small, as_version=4)
    notebook.cells[2].source = "assert n < 5, 'too large'\n" + notebook.cells[2].source
    nbformat.write(notebook, small)
    with pytest.raises(SystemExit, match="1 runs failed"):
        main(monkeypatch)
    assert "too large" in capsys.readouterr().out
    assert not (small.parents[1] / "results" / "doubling.json").exists()
    with pytest.raises(SystemExit, match="1 runs failed"):
        main(monkeypatch)
    assert "1 of 2 runs to do" in capsys.readouterr().out


def test_an_unknown_experiment_is_refused_with_those_that_there_are(small, monkeypatch):
    with pytest.raises(SystemExit, match="no experiment tripling; there are doubling"):
        main(monkeypatch, "tripling")


def test_the_list_names_parameters_that_the_notebooks_have():
    import papermill

    for experiment in experiments.read_list([]).values():
        path = experiments.ROOT / "notebooks" / f"{experiment['notebook']}.ipynb"
        assert experiment["parameters"].keys() <= papermill.inspect_notebook(path).keys()


def test_the_check_finds_other_code_other_processors_and_what_is_missing(small, monkeypatch, capsys):
    results = small.parents[1] / "results"
    listed = experiments.read_list([])

    def write(code, *processors):
        runs = [{"machine": {"processor": name, "instructions": ["avx2"]}} for name in processors]
        (results / "doubling.json").write_text(json.dumps({"code": code, "doubled": runs}))

    with pytest.raises(SystemExit, match="doubling.json is missing"):
        experiments.check(listed)
    write("0123", "A", "A")
    with pytest.raises(SystemExit, match="other code than stands in 05_small"):
        experiments.check(listed)
    write(experiments.source_of("05_small")[1], "A", "B")
    with pytest.raises(SystemExit, match="A avx2, B avx2|B avx2, A avx2"):
        experiments.check(listed)
    write(experiments.source_of("05_small")[1], "A", "A")
    experiments.check(listed)
    assert "1 results, of one processor" in capsys.readouterr().out
