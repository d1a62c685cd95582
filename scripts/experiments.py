"""Execute notebooks 02, 03, 07 and 09 many times with other parameters: `make experiments`.

    python scripts/experiments.py                          all of scripts/experiments.yaml
    python scripts/experiments.py cnn_seeds vgg16_seeds    some of it
    python scripts/experiments.py --workers 2              so many runs at a time
    python scripts/experiments.py --dask tcp://host:8786   on a Dask cluster whose workers see this folder
    python scripts/experiments.py --check                  fail if results/ is not of one processor and of today's code

Papermill executes each run, without the cells tagged "lesson", into a folder in cache/experiments/. A run that is there
already is not done again, so the command can be stopped and started again. A run is known by its notebook's code, its
parameters and the versions of the packages that compute.
"""

import argparse
import ast
import functools
import hashlib
import itertools
import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import joblib
import nbformat
import yaml
from IPython.core.inputtransformer2 import TransformerManager

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import utils
from scripts.run_study import alone

ROOT = utils.ROOT
FOLDER = utils.CACHE / "experiments"


def read_list(names):
    """Return {name: experiment} of scripts/experiments.yaml: all, or those named. Ends the program at an unknown name."""
    experiments = yaml.safe_load((ROOT / "scripts" / "experiments.yaml").read_text(encoding="utf-8"))
    unknown = set(names) - experiments.keys()
    if unknown:
        sys.exit(f"no experiment {', '.join(sorted(unknown))}; there are {', '.join(experiments)}")
    return {name: experiments[name] for name in names or experiments}


def combinations(parameters):
    """Return every combination of the values that are lists: [{parameter: value}]."""
    values = [value if isinstance(value, list) else [value] for value in parameters.values()]
    return [dict(zip(parameters, chosen)) for chosen in itertools.product(*values)]


def without_lesson(path):
    """Return a notebook without the cells that only teach."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if "lesson" not in cell.metadata.get("tags", [])]
    return notebook


@functools.cache  # once: what is executed is what the checksum was taken of, also where somebody edits it meanwhile
def source_of(name):
    """Return (text, checksum) of a notebook's runs; comments and layout don't change the checksum."""
    notebook = without_lesson(ROOT / "notebooks" / f"{name}.ipynb")
    sources = [TransformerManager().transform_cell(cell.source) for cell in notebook.cells if cell.cell_type == "code"]
    code = "\n".join(ast.unparse(ast.parse(source)) for source in sources)
    return nbformat.writes(notebook), hashlib.sha256(code.encode()).hexdigest()[:16]


def folder_of(name, parameters):
    """Return where the run of a notebook with some parameters is kept."""
    versions = [version(package) for package in utils.PACKAGES]
    key = hashlib.sha256(json.dumps([source_of(name)[1], parameters, versions], sort_keys=True).encode()).hexdigest()
    return FOLDER / f"{name}_{key[:16]}"


def execute(name, parameters, threads):
    """Execute a notebook with some parameters into its folder; return None, or what went wrong."""
    folder = folder_of(name, parameters)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "source.ipynb").write_text(source_of(name)[0], encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "papermill",
        folder / "source.ipynb",
        folder / "executed.ipynb",
        "--no-progress-bar",
    ]
    command += ["--cwd", ROOT / "notebooks", "--kernel", "python3", "--parameters_yaml", yaml.safe_dump(parameters)]
    environment = os.environ | {"SHIP_TRUCK_OUTPUT": str(folder), "SHIP_TRUCK_TRAIN": "1"}
    environment |= {"TF_NUM_INTRAOP_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", env=environment)
    if done.returncode:
        return f"{name} with {parameters} failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}"
    (folder / "done").touch()


def execute_all(runs, workers, dask):
    """Execute runs, [(notebook, parameters)], and say how many are left. Ends the program after the last if some failed."""
    missing = [run for run in runs if not (folder_of(*run) / "done").is_file()]
    print(f"{len(missing)} of {len(runs)} runs to do; the others are in cache/experiments/", flush=True)
    if dask:
        import dask.distributed

        workers = sum(dask.distributed.Client(dask).nthreads().values())
        joblib.parallel_config(backend="dask")
    parallel = joblib.Parallel(workers, backend=None if dask else "threading", return_as="generator_unordered")
    started, failures, threads = time.monotonic(), [], max(1, os.cpu_count() // (1 if dask else workers))
    for done, failure in enumerate(parallel(joblib.delayed(execute)(*run, threads) for run in missing), 1):
        failures += [failure] if failure else []
        minutes = (time.monotonic() - started) / done * (len(missing) - done) / 60
        print(failure or f"{done} of {len(missing)} runs done, about {minutes:.0f} min left", flush=True)
    if failures:
        sys.exit(f"{len(failures)} runs failed; start again to repeat them")


def collect(experiment):
    """Return what the runs of an experiment left: {"code": its checksum, result: [its JSON, with the parameters]}."""
    found = {"code": source_of(experiment["notebook"])[1]} | {result: [] for result in experiment["keeps"]}
    for parameters in combinations(experiment["parameters"]):
        folder = folder_of(experiment["notebook"], parameters)
        for result in experiment["keeps"]:
            left = json.loads((folder / "results" / f"{result}.json").read_text(encoding="utf-8"))
            found[result].append(left | {"parameters": parameters})
    return found


def machines(result):
    """Return (processor, instructions) of all that a result, or the runs in it, say of their machine."""
    runs = [run for value in result.values() if isinstance(value, list) for run in value if isinstance(run, dict)]
    found = [each["machine"] for each in (result, *runs) if isinstance(each.get("machine"), dict)]
    return {(machine["processor"], *machine["instructions"]) for machine in found}


def check(experiments):
    """Print what keeps results/ from being one study; end the program with an error if there is anything."""
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / "results").glob("*.json")}
    problems = [f"{name}.json is missing" for name in experiments if name not in results]
    problems += [
        f"{name}.json comes from other code than stands in {experiment['notebook']}"
        for name, experiment in experiments.items()
        if name in results and results[name].get("code") != source_of(experiment["notebook"])[1]
    ]
    processors = {name: machines(result) for name, result in sorted(results.items())}
    if len(set().union(*processors.values())) > 1:
        problems += [f"{name}.json: {', '.join(map(' '.join, found))}" for name, found in processors.items() if found]
    if problems:
        sys.exit("results/ is not of one processor and of today's code:\n" + "\n".join(problems))
    print(f"{len(results)} results, of one processor and of the code that stands")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", help="experiments of scripts/experiments.yaml; all of them if none is named"
    )
    parser.add_argument("--workers", type=int, default=1, help="runs at a time on this machine")
    parser.add_argument("--dask", metavar="ADDRESS", help="scheduler of a Dask cluster")
    parser.add_argument("--check", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    experiments = read_list(arguments.names)
    if arguments.check:
        return check(experiments)
    runs = [
        (experiment["notebook"], parameters)
        for experiment in experiments.values()
        for parameters in combinations(experiment["parameters"])
    ]
    try:
        with alone():
            execute_all(runs, arguments.workers, arguments.dask)
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")
    for name, experiment in experiments.items():
        path = ROOT / "results" / f"{name}.json"
        lines = ",\n".join(f'"{result}": {json.dumps(found)}' for result, found in collect(experiment).items())
        with utils.atomic_write(path) as temporary:
            temporary.write_text("{\n" + lines + "\n}\n", encoding="utf-8")
        print(path.relative_to(ROOT), flush=True)


if __name__ == "__main__":
    main()
