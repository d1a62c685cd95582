"""Tests of what is committed: notebooks, environment, sizes, and the README's numbers."""

import json
import re
import subprocess
import sys
from importlib.metadata import version

import nbformat
import numpy as np
import pytest

import run_study
import sweep
import utils

NOTEBOOKS = run_study.NOTEBOOKS


def test_the_notebooks_are_found_in_order():
    assert [path.stem[:2] for path in NOTEBOOKS] == [f"{number:02}" for number in range(1, len(NOTEBOOKS) + 1)]
    assert len(NOTEBOOKS) >= 4


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_hygiene(path):
    """Executed top to bottom, no errors, nothing on stderr, no machine's path, under 2 MB."""
    text = path.read_text(encoding="utf-8")
    assert len(text) < 2_000_000
    assert not re.search(r"/(?:work|root|tmp|home|Users|private|opt)/\w|[A-Z]:\\\\", text)
    code = [cell for cell in nbformat.reads(text, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        for output in cell.outputs:
            assert output.output_type != "error" and output.get("name") != "stderr", cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_has_compared_cells(path):
    cells = nbformat.read(path, as_version=4).cells
    assert any("nbval-check-output" in cell.metadata.get("tags", []) for cell in cells)


def environment():
    """Return [(name, reason)] of the direct dependencies in environment.yml."""
    lines = re.findall(r"^      - (?!--)(.+)$", (utils.ROOT / "environment.yml").read_text(), re.MULTILINE)
    return [tuple(part.strip() for part in line.partition("#")[::2]) for line in lines]


def pins():
    """Return {normalised name: version} of requirements.txt; every line must be a pin."""
    lines = (utils.ROOT / "requirements.txt").read_text().split()
    return dict(re.fullmatch(r"([\w.-]+)==([\w.]+)", line).groups() for line in lines)


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_environment_and_requirements_cannot_drift_apart():
    pinned = {normal(name) for name in pins()}
    assert "--constraint requirements.txt" in (utils.ROOT / "environment.yml").read_text()
    for name, reason in environment():
        assert re.fullmatch(r"[\w-]+", name), f"{name}: versions stand in requirements.txt alone"
        assert normal(name) in pinned, f"{name} has no version in requirements.txt; run `make lock`"
        assert reason, f"{name} has no reason beside it"


def test_what_is_installed_is_what_is_pinned():
    assert {name: version(name) for name in pins()} == pins()


def test_every_import_is_a_direct_dependency():
    modules = {"PIL": "pillow", "sklearn": "scikit-learn", "IPython": "ipython"}
    sources = [path.read_text() for path in utils.ROOT.glob("*.py")]
    sources += [cell.source for path in NOTEBOOKS for cell in nbformat.read(path, as_version=4).cells
                if cell.cell_type == "code"]
    imported = {name for source in sources for name in re.findall(r"^(?:import|from) (\w+)", source, re.MULTILINE)}
    own = {path.stem for path in utils.ROOT.glob("*.py")}
    outside = {modules.get(name, name) for name in imported - sys.stdlib_module_names - own}
    assert outside <= {name for name, _ in environment()}


def tracked():
    listed = subprocess.run(["git", "ls-files"], cwd=utils.ROOT, capture_output=True, text=True, check=True).stdout
    return [utils.ROOT / line for line in listed.splitlines() if (utils.ROOT / line).is_file()]


def test_sizes():
    assert max(path.stat().st_size for path in tracked()) < 45e6
    assert sum(path.stat().st_size for path in (utils.ROOT / "models").iterdir()) < 10e6


@pytest.mark.parametrize("name", utils.MODELS)
def test_the_readme_shows_the_committed_results(name):
    table = (utils.ROOT / "README.md").read_text().split("<!-- results -->")[1].split("<!-- /results -->")[0]
    test = utils.load_results(name, utils.ROOT / "results")["test"]
    row = next(line for line in table.splitlines() if utils.MODELS[name][0] in line)
    assert f"{test['accuracy']:.2%}" in row and f"{test['interval95'][0]:.2%}" in row and f"{test['n']:,}" in row


def committed_seeds():
    return json.loads((utils.ROOT / "results" / "seeds.json").read_text())


@pytest.mark.parametrize("name", sweep.NOTEBOOKS)
def test_the_committed_seeds_agree_with_their_probabilities_and_the_readme(name):
    found = committed_seeds()[name]["test"]
    y_test = utils.load_ship_truck()[3]
    with np.load(utils.ROOT / "results" / "seeds.npz") as file:
        assert [utils.score(y_test, row)["accuracy"] for row in file[name]] == found["accuracy"]
    assert f"{found['mean']:.2%} ± {found['standard_deviation']:.2%}" in (utils.ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", sweep.NOTEBOOKS)
def test_the_committed_seeds_have_the_settings_of_the_committed_run(name):
    settings = utils.load_results(name, utils.ROOT / "results")["settings"]
    assert committed_seeds()[name]["settings"] | {"seed": 0} == settings


def committed_rungs(name):
    return json.loads((utils.ROOT / "results" / "ladder.json").read_text())[name]["steps"]


@pytest.mark.parametrize("name", sweep.NOTEBOOKS)
def test_the_settings_are_those_of_the_best_rung(name):
    rungs, reached, settings = committed_rungs(name), {}, utils.load_results(name, utils.ROOT / "results")["settings"]
    best = max(range(len(rungs)), key=lambda number: rungs[number]["mean"])
    for rung in rungs[:best + 1]:
        reached |= rung["change"]
    assert reached | {"seed": 0} == settings


@pytest.mark.parametrize("name", sweep.NOTEBOOKS)
def test_the_committed_ladder_is_the_notebook_s(name):
    rungs = committed_rungs(name)
    assert [(rung["step"], rung["change"]) for rung in rungs] == sweep.definitions(name)["LADDER"]
    for before, rung in zip(rungs, rungs[1:]):
        assert rung["gain"]["mean"] == pytest.approx(rung["mean"] - before["mean"])


def test_committed_results_are_of_the_shipped_data_and_a_full_run():
    for name in utils.MODELS:
        results = utils.load_results(name, utils.ROOT / "results")
        assert results["data_sha256"] == utils.SHA256["ship_truck.npz"]
        assert (results["validation"]["n"], results["test"]["n"]) == (1000, 2000)
        assert len(results["history"]["loss"]) == results["settings"]["epochs"]


def committed_evaluation():
    return json.loads((utils.ROOT / "results" / "evaluation.json").read_text())


@pytest.mark.parametrize("name", sweep.NOTEBOOKS)
def test_the_evaluation_is_of_the_committed_models_and_data(name):
    evaluation, run = committed_evaluation(), utils.load_results(name, utils.ROOT / "results")
    assert evaluation["settings"][name] == run["settings"]
    assert evaluation["data_sha256"] == {path.name: utils.SHA256[path.name]
                                         for path in (utils.DATA_FILE, utils.OTHER_FILE)}
    answers = evaluation["abstention"]["scores"]["examples"]["models"][name]
    assert answers["right"] + answers["wrong"] == 2000
    assert answers["right"] / 2000 == run["test"]["accuracy"]


def test_the_readme_shows_the_claims_of_the_evaluation():
    path = next(path for path in NOTEBOOKS if path.stem == "05_evaluation")
    claims = next(cell for cell in nbformat.read(path, as_version=4).cells if "claims = [" in cell.source)
    shown = (utils.ROOT / "README.md").read_text().split("<!-- evaluation -->\n")[1].split("<!-- /evaluation -->")[0]
    assert shown == "".join(f"- {line}\n" for line in claims.outputs[0]["text"].splitlines())


def test_the_readme_shows_what_serving_was_measured_to_cost():
    measured = json.loads((utils.ROOT / "results" / "serve.json").read_text())
    table = (utils.ROOT / "README.md").read_text().split("<!-- serve -->")[1].split("<!-- /serve -->")[0]
    for clients in ("one_client_one_core", "eight_clients"):
        found = measured[clients]
        assert f"{found['median_ms']:.0f} / {found['p95_ms']} ms" in table and f"of {found['requests']:,}" in table
    assert f"{measured['eight_clients']['failures']} of" in table


def test_the_comparison_fails_outside_its_tolerance(capsys):
    assert run_study.compare({"a": 0.97, "b": 0.5}, {"a": 0.976, "b": 0.5, "new": 1.0}) == 0
    assert run_study.compare({"a": 0.97}, {"a": 0.962}) == 1
    assert run_study.compare({"a": 0.97}, {}) == 1
    assert "OUTSIDE" in capsys.readouterr().out


def test_a_failing_notebook_is_not_overwritten(tmp_path):
    path = tmp_path / "01_fails.ipynb"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    nbformat.write(notebook, path)
    before = path.read_bytes()
    with pytest.raises(Exception, match="ZeroDivisionError"):
        run_study.execute(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
