"""Tests of what is committed: notebooks, environment, sizes, and the README's numbers."""

import ast
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version

import nbformat
import numpy as np
import pytest
from packaging.markers import default_environment

import utils
from scripts import exercises, experiment, lock, run_study, sweep

NOTEBOOKS = run_study.NOTEBOOKS
RESULTS = utils.ROOT / "results"


def read(name):
    return (utils.ROOT / name).read_text(encoding="utf-8")


def code_of(path):
    """Return the code of a notebook or of a Python file."""
    if path.suffix == ".py":
        return path.read_text(encoding="utf-8")
    return "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")


def test_the_notebooks_are_found_in_order():
    assert [path.stem[:2] for path in NOTEBOOKS] == [f"{number:02}" for number in range(1, len(NOTEBOOKS) + 1)]
    assert len(NOTEBOOKS) >= 4


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_fits_a_lecture(path):
    cells = nbformat.read(path, as_version=4).cells
    assert len(cells) <= 35
    assert max(len(cell.source.splitlines()) for cell in cells if cell.cell_type == "code") <= 25
    opening = cells[0].source
    assert "**Question.**" in opening and "**Needs.**" in opening and re.search(r"minute|second", opening)
    assert "What we learnt" in cells[-1].source
    assert cells[1].source.startswith('import sys\n\nsys.path.insert(0, "..")') and not cells[1].metadata.get("tags")


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
            assert "WARNING" not in output.get("text", ""), cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_has_compared_cells(path):
    cells = nbformat.read(path, as_version=4).cells
    assert any("nbval-check-output" in cell.metadata.get("tags", []) for cell in cells)


# --- utils.py ------------------------------------------------------------------------------------


def test_utils_is_small():
    assert len(read("utils.py").splitlines()) <= 450


def test_utils_holds_only_what_is_shared():
    """Each public function is used by two notebooks, or a notebook and a script, or by another that is."""
    tree = ast.parse(read("utils.py"))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    notebooks = [code_of(path) for path in NOTEBOOKS]
    scripts = [code_of(path) for folder in ("scripts", "service") for path in (utils.ROOT / folder).glob("*.py")]

    def users(name, sources):
        return sum(bool(re.search(rf"\butils\.{name}\b", source)) for source in sources)

    shared = {name for name in functions
              if users(name, notebooks) >= 2 or users(name, notebooks) and users(name, scripts)}
    used_by = {name: {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
               for name, function in functions.items()}
    while more := {name for name in set(functions) - shared if any(name in used_by[other] for other in shared)}:
        shared |= more
    assert set(functions) - shared == set()


def test_utils_knows_no_script_no_notebook_and_no_service():
    assert not re.search(r"\b(scripts|service)\b|\b0\d_[a-z]", read("utils.py"))


def test_what_needs_no_tensorflow_does_not_import_it():
    code = "import sys; from scripts import run_study; from service import bench; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=utils.ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_another_clone_with_the_same_environment_runs_its_own_code(tmp_path):
    """A notebook, a script and a module of a copy find the copy's utils.py, wherever they are started."""
    for name in ("utils.py", "photo.py"):
        shutil.copy(utils.ROOT / name, tmp_path)
    for folder in ("scripts", "service"):
        shutil.copytree(utils.ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.onnx", "*.png"))
    (tmp_path / "notebooks").mkdir()
    first = nbformat.read(NOTEBOOKS[0], as_version=4).cells[1].source
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in (
        first, "import utils\nprint(utils.ROOT)\n(utils.ROOT / 'seen').write_text('')")])
    nbformat.write(notebook, tmp_path / "notebooks" / "01_first.ipynb")
    done = subprocess.run([sys.executable, tmp_path / "scripts" / "run_study.py"], cwd=utils.ROOT.parent,
                          capture_output=True, text=True)
    assert done.returncode == 0 and "01_first: done" in done.stdout, done.stderr
    written = tmp_path / ("scratch/notebooks" if utils.QUICK else "notebooks") / "01_first.ipynb"
    assert (tmp_path / "seen").exists() and str(tmp_path) in written.read_text(encoding="utf-8")


def test_a_leftover_of_a_killed_run_stops_nothing(output):
    (output / "results").mkdir()
    shutil.copy(RESULTS / "three_block_cnn.json", output / "results")
    (output / "results" / ".unfinished-1-three_block_cnn.json").write_text("{", encoding="utf-8")
    assert set(run_study.current_results()) == {"three_block_cnn"}


# --- The environment -----------------------------------------------------------------------------


def environment():
    """Return [(name, reason)] of the direct dependencies in environment.yml."""
    lines = re.findall(r"^      - (?!--)(.+)$", read("environment.yml"), re.MULTILINE)
    return [tuple(part.strip() for part in line.partition("#")[::2]) for line in lines]


def groups():
    """Return [(name, reason)] of all dependency groups in pyproject.toml."""
    return re.findall(r'^    "([^"]+)",(?:  # (.+))?$', read("pyproject.toml"), re.MULTILINE)


def pins():
    """Return {name: version} of the lines in requirements.txt that hold here; every line must be a pin."""
    marks = default_environment()
    here = lock.pins_for(lock.LOCK, marks["python_full_version"], [marks[name] for name in lock.MARKERS])
    return dict(pin.split("==") for pin in here)


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_line_of_the_lock_is_a_pin_and_every_dependency_has_one_and_a_reason():
    lines = read("requirements.txt").splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+(?: ; .+)?", line) for line in lines)
    pinned = {normal(line.split("==")[0]) for line in lines}
    assert {normal(name) for name in lock.wanted()} <= pinned
    assert "--constraint requirements.txt" in read("environment.yml")
    assert environment() and groups()
    for name, reason in environment() + groups():
        assert re.fullmatch(r"[\w-]+", name), f"{name}: versions stand in requirements.txt alone"
        assert reason, f"{name} has no reason beside it"


def test_what_is_installed_is_what_is_pinned():
    for name, expected in pins().items():
        if name not in ("appnope", "uv"):  # of another system, or of another group than the tests'
            assert version(name) == expected, name


def test_the_lock_is_for_the_oldest_python_supported():
    assert lock.PYTHONS == ("3.11.0", "3.12.0", "3.13.0")
    oldest = lock.pins_for(lock.LOCK, "3.11.0", ("linux", "Linux", "posix", "x86_64"))
    newest = lock.pins_for(lock.LOCK, "3.13.0", ("win32", "Windows", "nt", "AMD64"))
    assert "soupsieve==2.10" in oldest or any(pin.startswith("soupsieve") for pin in oldest)
    assert any(pin.startswith("pywinpty") for pin in newest) and not any(pin.startswith("pywinpty") for pin in oldest)


def test_a_pin_without_a_wheel_is_named(monkeypatch):
    """pip names one at a time; it is asked again without it."""
    asked = []

    def pip(command, **_):
        left = command[-1].read_text(encoding="utf-8").split()
        asked.append(left)
        bad = [pin for pin in ("b==2", "d==4") if pin in left]
        error = f"ERROR: No matching distribution found for {bad[0]}" if bad else ""
        return subprocess.CompletedProcess(command, len(bad), "", error)

    monkeypatch.setattr(lock.subprocess, "run", pip)
    assert lock.without_wheel(["a==1", "b==2", "c==3", "d==4"], "3.13.0", ["win_amd64"]) == ["b==2", "d==4"]
    assert asked[-1] == ["a==1", "c==3"]


def imported(paths):
    """Return the packages that some files import, as they are called on the index."""
    modules = {"PIL": "pillow", "sklearn": "scikit-learn", "IPython": "ipython", "xdist": "pytest-xdist"}
    statement = re.compile(r"^ *(?:import (\w+)|from (\w+)[\w.]* import)", re.MULTILINE)
    names = {name for path in paths for found in statement.findall(code_of(path)) for name in found if name}
    own = {"utils", "photo", "scripts", "service", "conftest", *(path.stem for path in (utils.ROOT / "tests").glob("*.py"))}
    return {modules.get(name, name) for name in names - sys.stdlib_module_names - own}


def test_every_import_is_a_direct_dependency():
    study, more = {name for name, _ in environment()}, {name for name, _ in groups()}
    scripts, tests = (list((utils.ROOT / folder).glob("*.py")) for folder in ("scripts", "tests"))
    sweeps = {"cloudpickle", "dask", "packaging"}  # of the groups cluster and lock, imported only where asked for
    assert imported([*NOTEBOOKS, utils.ROOT / "utils.py", utils.ROOT / "photo.py", *scripts]) <= study | sweeps
    service = set(re.findall(r"^(\w+)", read("service/requirements.txt"), re.MULTILINE))
    assert imported([utils.ROOT / "service" / "app.py", utils.ROOT / "photo.py"]) <= service
    assert imported(tests) | imported((utils.ROOT / "service").glob("*.py")) <= study | more


# --- Files ---------------------------------------------------------------------------------------


def test_files_are_read_and_written_as_utf_8(tmp_path):
    """Whatever the system's own encoding is: Python warns of each place that depends on it."""
    shutil.copy(utils.ROOT / "README.md", tmp_path)
    code = ("import utils; utils.OUTPUT = utils.ROOT / 'scratch'; utils.load_results('vgg16_transfer', 'results'); "
            "from scripts import benchmark, experiment, figures, lock, run_study, sweep; sweep.load_seeds('results'); "
            "sweep.format_ladder('vgg16_transfer', {}); lock.wanted(); benchmark.machine(); "
            "utils.definitions('07_strangers_and_damage'); import service.app, service.bench, service.export")
    done = subprocess.run([sys.executable, "-X", "warn_default_encoding", "-W", "error::EncodingWarning:utils",
                           "-c", code], cwd=utils.ROOT, capture_output=True, text=True,
                          env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"})
    assert done.returncode == 0, done.stderr[-2000:]
    own = [line for line in done.stderr.splitlines() if "EncodingWarning" in line and "site-packages" not in line
           and str(utils.ROOT) in line]
    assert not own


def tracked():
    listed = subprocess.run(["git", "ls-files"], cwd=utils.ROOT, capture_output=True, text=True, check=True).stdout
    return [utils.ROOT / line for line in listed.splitlines() if (utils.ROOT / line).is_file()]


def test_sizes():
    assert max(path.stat().st_size for path in tracked()) < 45e6
    assert sum(path.stat().st_size for path in (utils.ROOT / "models").iterdir()) < 10e6


def shown(marker, name="README.md"):
    """Return what stands between a pair of markers."""
    return read(name).split(f"<!-- {marker} -->\n")[1].split(f"<!-- /{marker} -->")[0]


@pytest.mark.parametrize("name", utils.LABELS)
def test_the_readme_shows_the_committed_results(name):
    test = utils.load_results(name, RESULTS)["test"]
    row = next(line for line in shown("results").splitlines() if utils.LABELS[name] in line)
    assert f"{test['accuracy']:.2%}" in row and f"{test['interval95'][0]:.2%}" in row and f"{test['n']:,}" in row


def committed_seeds():
    return utils.read_json(RESULTS / "seeds.json")


@pytest.mark.parametrize("name", sweep.NOTEBOOKS)
def test_the_committed_seeds_agree_with_their_probabilities_and_the_readme(name):
    found = committed_seeds()[name]["test"]
    y_test = utils.load_images(utils.DATA / "ship_truck.npz")[3]
    with np.load(RESULTS / "seeds.npz") as file:
        assert [utils.score(y_test, row)["accuracy"] for row in file[name]] == found["accuracy"]
    assert f"{found['mean']:.2%} ± {found['standard_deviation']:.2%}" in shown("seeds")


@pytest.mark.parametrize("name", sweep.NOTEBOOKS)
def test_the_committed_seeds_have_the_settings_of_the_committed_run(name):
    settings = utils.load_results(name, RESULTS)["settings"]
    assert committed_seeds()[name]["settings"] | {"seed": 0} == settings


def committed_rungs(name):
    return utils.read_json(RESULTS / "ladder.json")[name]["steps"]


@pytest.mark.parametrize("name", sweep.NOTEBOOKS)
def test_the_settings_are_those_of_the_last_rung(name):
    reached, settings = {}, utils.load_results(name, RESULTS)["settings"]
    for rung in committed_rungs(name):
        reached |= rung["change"]
    assert reached | {"seed": 0} == settings


@pytest.mark.parametrize("name", sweep.NOTEBOOKS)
def test_the_committed_ladder_is_the_notebook_s(name):
    rungs = committed_rungs(name)
    assert [(rung["step"], rung["change"]) for rung in rungs] == sweep.definitions(name)["LADDER"]
    for before, rung in zip(rungs, rungs[1:]):
        assert rung["gain"]["mean"] == pytest.approx(rung["mean"] - before["mean"])


def test_committed_results_are_of_the_shipped_data_and_a_full_run():
    y_test = utils.load_images(utils.DATA / "ship_truck.npz")[3]
    for name in utils.LABELS:
        results = utils.load_results(name, RESULTS)
        assert results["data_sha256"] == utils.SHA256["ship_truck.npz"]
        assert (results["validation"]["n"], results["test"]["n"]) == (1000, 2000)
        assert len(results["history"]["loss"]) == results["settings"]["epochs"]
        assert utils.score(y_test, results["probability"]["test"]) == results["test"]


@pytest.mark.parametrize("name", sweep.NOTEBOOKS)
def test_what_was_found_further_is_of_the_committed_models_and_data(name):
    run = utils.load_results(name, RESULTS)
    for kept in ("luck_and_leaks", "confidence_and_errors", "strangers_and_damage"):
        assert utils.read_json(RESULTS / f"{kept}.json")["settings"][name] == run["settings"]
    strangers = utils.read_json(RESULTS / "strangers_and_damage.json")
    assert strangers["data_sha256"]["other_classes.npz"] == utils.SHA256["other_classes.npz"]
    answers = strangers["abstention"]["scores"]["examples"]["models"][name]
    assert answers["right"] + answers["wrong"] == 2000
    assert answers["right"] / 2000 == run["test"]["accuracy"]


@pytest.mark.parametrize("stem, marker", [("05_luck_and_leaks", "luck"), ("06_confidence_and_errors", "confidence"),
                                          ("07_strangers_and_damage", "strangers")])
def test_the_readme_shows_the_claims_of_the_notebooks(stem, marker):
    path = next(path for path in NOTEBOOKS if path.stem == stem)
    claims = next(cell for cell in nbformat.read(path, as_version=4).cells if cell.source.startswith("print(") and "claims()" in cell.source)
    assert shown(marker) == "".join(f"- {line}\n" for line in claims.outputs[0]["text"].splitlines())


def test_the_readmes_show_what_serving_was_measured_to_cost():
    found = utils.read_json(RESULTS / "serve.json")
    table = shown("serve", "service/README.md")
    for clients in ("one_client_one_core", "eight_clients"):
        assert "{median_ms} / {p95_ms} ms".format(**found[clients]) in table
    assert "{failures} of {requests:,}".format(**found["eight_clients"]) in table
    assert f"{found['slow_clients']['rss_mb']} MB" in table and found["slow_clients"]["rss_mb"] < 300
    assert f"{found['one_client_one_core']['median_ms']} ms" in shown("serve")


def test_the_readme_is_short():
    assert len(read("README.md")) <= 9000


def test_links_lead_somewhere():
    for name in ("README.md", "data/README.md", "service/README.md"):
        folder = (utils.ROOT / name).parent
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", read(name)):
            assert (folder / target).exists(), f"{name}: {target}"
    for path in NOTEBOOKS:
        for target in re.findall(r"\]\(([\w./]+\.ipynb)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


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


def test_a_run_is_compared_with_what_git_has(tmp_path, monkeypatch):
    """A failing run leaves its results in the working tree; the next one must fail as well."""
    monkeypatch.setattr(utils, "ROOT", tmp_path)
    monkeypatch.setattr(utils, "OUTPUT", tmp_path)
    path = tmp_path / "results" / "three_block_cnn.json"
    utils.save_json(path, results_of(0.9, 0.9))
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "."]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    utils.save_json(path, results_of(0.5, 0.5))
    for _ in range(2):
        assert run_study.compare(run_study.committed_results(), run_study.current_results()) == 2


def test_a_failing_notebook_is_not_overwritten(tmp_path):
    path = tmp_path / "01_fails.ipynb"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    nbformat.write(notebook, path)
    before = path.read_bytes()
    with pytest.raises(Exception, match="ZeroDivisionError"):
        run_study.execute(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


# --- The exercises ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_proposes_changes_that_were_tried(path):
    """What came out of them is kept, for the notebooks as they are now; those of 02 and 03 are experiments."""
    closing = nbformat.read(path, as_version=4).cells[-1].source
    assert "## Try it" in closing
    names = {notebook: name for name, notebook in sweep.NOTEBOOKS.items()}
    if path.stem in names:
        name = names[path.stem]
        kept = utils.read_json(RESULTS / "experiments.json")[name]
        settings = sweep.without_seed(utils.load_results(name, RESULTS)["settings"])
        there = [entry["changes"] for entry in kept if entry["base_settings"] == settings]
        proposed = re.findall(rf'make experiment MODEL={name} SET="([^"]+)"', closing)
        assert len(proposed) >= 2
        possible, settings = sweep.definitions(name)["POSSIBLE"], {"seed": 0} | settings
        tried = [changes for text in proposed for changes in experiment.parse_changes(text, settings, possible)]
        assert tried and all(changes in there for changes in tried)
        return
    notebook, kept = nbformat.read(path, as_version=4), utils.read_json(RESULTS / "exercises.json")[path.stem]
    assert len(exercises.EXERCISES[path.stem]) >= 2
    for what, replacements, watched in exercises.EXERCISES[path.stem]:
        found = kept[what]
        if watched:
            assert found["before"] == exercises.shown(notebook, watched) != found["after"]
        else:
            assert found["figures"]
        exercises.changed(notebook, replacements)
