"""Execute notebooks 02 and 03 many times with other parameters: `make seeds`, `ladder`, `controls`, `finetuning`,
`experiment`.

    python scripts/sweep.py seeds --seeds 0 1 2 --workers 2
    python scripts/sweep.py ladder --models vgg16_transfer --dask tcp://scheduler:8786
    python scripts/sweep.py experiment vgg16_transfer "hidden_units=64,128 dropout=0.3"

A run is an execution of its notebook by papermill, in a process of its own. It leaves the executed notebook and its
results in cache/runs/, where a sweep that was stopped finds them again. Runs go on one after another, some at a time
(--workers), or on a Dask cluster (--dask), whose workers were started in the folder of a clone.

A run by folds learns from four fifths of the training images and is judged on the fifth; cells that read the test set
are left out of its notebook before it is executed.
"""

import argparse
import ast
import hashlib
import io
import itertools
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
import tokenize
from importlib.metadata import version
from pathlib import Path

import joblib
import nbformat
import numpy as np
import papermill
import yaml
from IPython.core.inputtransformer2 import TransformerManager
from scipy.stats import binomtest, ttest_rel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import utils

NOTEBOOKS = {"three_block_cnn": "02_three_block_cnn", "vgg16_transfer": "03_vgg16_transfer_learning"}
LADDER_FOLDS = {"three_block_cnn": [0, 1, 2], "vgg16_transfer": [0, 1, 2, 3, 4]}  # a fold of the CNN takes minutes
TYPES = {"int": (int,), "float": (float, int), "str": (str,), "bool": (bool,), "list": (list,)}


# --- Notebooks and their parameters --------------------------------------------------------------


def read_notebook(model):
    """Return the notebook of a model. A sweep reads it once, when it begins."""
    return nbformat.read(utils.ROOT / "notebooks" / f"{NOTEBOOKS[model]}.ipynb", as_version=4)


def tags(cell):
    return cell.metadata.get("tags", [])


def known_parameters(notebook):
    """Return the parameters in the notebook's cell tagged `parameters`: {name: (type's name, default, comment)}.

    Raises ValueError for one without a type or a plain value.
    """
    known = {}
    for parameter in papermill.inspect_notebook(notebook).values():
        name, kind = parameter["name"], parameter["inferred_type_name"]
        try:
            known[name] = (kind, ast.literal_eval(parameter["default"]), parameter["help"])
        except ValueError:
            kind = None
        if kind not in TYPES:
            types = ", ".join(TYPES)
            raise ValueError(
                f"parameter {name}: write it as `name: type = value  # what it does`, the type one of {types}"
            )
    return known


def with_changes(notebook, changes):
    """Return all parameters of a notebook, {name: value}, some of them changed.

    Raises ValueError, with a list of all parameters, where there is none of that name or it has another type.
    """
    known = known_parameters(notebook)
    listed = "\n".join(f"    {name}: {kind} = {default!r}  # {text}" for name, (kind, default, text) in known.items())
    for name, value in changes.items():
        if name not in known:
            raise ValueError(f"there is no parameter {name!r}; there are\n{listed}")
        kind = known[name][0]
        if type(value) not in TYPES[kind]:
            raise ValueError(f"{name} is {value!r}, expected {kind}; the parameters are\n{listed}")
    return {name: default for name, (_, default, _) in known.items()} | changes


def as_number(value):
    """Return a whole number, or a text like 1e-3, which YAML takes for a word, as a float; anything else as it is."""
    try:
        return float(value) if type(value) in (int, str) else value
    except ValueError:
        return value


def parse_changes(text, notebook):
    """Read "name=value,value name=value": return the combinations of these values, a dict of changes each.

    Raises ValueError where it can't be read, or with_changes() refuses a value.
    """
    values, known = {}, known_parameters(notebook)
    for part in shlex.split(text):
        name, separator, listed = part.partition("=")
        if not separator or not listed or name in values:
            raise ValueError(
                f'{part!r} is not of the form name=value,value; write SET="hidden_units=64,128 dropout=0.3"'
            )
        if name in ("seed", "fold", "watch_test"):
            raise ValueError(f"{name} is set by the sweeps themselves; choose another parameter to change")
        try:
            values[name] = yaml.safe_load(f"[{listed}]")
        except yaml.YAMLError:
            raise ValueError(f"{part!r} can't be read; write lists as filters=[8,16],[16,32]") from None
        if name in known and known[name][0] == "float":
            values[name] = [as_number(value) for value in values[name]]
        if name in known and known[name][0] == "str":
            values[name] = listed.split(",")
    combinations = [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]
    defaults = with_changes(notebook, {})
    return [changes for changes in combinations if with_changes(notebook, changes) != defaults]


def steps_of(notebook, tag):
    """Return [(step, changes)], the list in the notebook's cell with that tag: `ladder`, `controls` or `finetuning`."""
    source = next(cell.source for cell in notebook.cells if tag in tags(cell))
    return ast.literal_eval(ast.parse(source).body[0].value)


# --- One run -------------------------------------------------------------------------------------


def without_prose(source):
    """Return Python code without docstrings, lines of comment and empty lines, which change no result."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        row, column = token.start
        if token.type == tokenize.COMMENT and not lines[row - 1][:column].strip():
            lines[row - 1] = ""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            first, last = node.body[0].lineno - 1, node.body[0].end_lineno
            if "\n".join(lines[first:last]).strip() == ast.get_source_segment(source, node.body[0]):  # alone there
                lines[first:last] = [""] * (last - first)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def new_run(model, notebook, changes, seed, fold=-1):
    """Return a run to be done: a dict of a model's name, notebook and parameters, and of what it is kept under.

    The key is a sum over all that can change its result: code cells and utils.py (which knows the sums of the data),
    parameters, versions, precision, profile. Raises ValueError where with_changes() refuses a parameter.
    """
    changes = changes | {"seed": seed, "fold": fold}
    parameters = with_changes(notebook, changes)
    left_out = {"not-in-sweeps"} | ({"test-set"} if fold >= 0 else set())
    cells = [cell for cell in notebook.cells if not left_out & set(tags(cell))]
    plain = TransformerManager().transform_cell  # %magic is no Python
    code = [without_prose(plain(c.source)) for c in cells if c.cell_type == "code" and "parameters" not in tags(c)]
    code.append(without_prose((utils.ROOT / "utils.py").read_text(encoding="utf-8")))
    versions, precision = {package: version(package) for package in utils.PACKAGES}, utils.precision()[0]
    depends_on = json.dumps([code, parameters, versions, precision, utils.PROFILE], sort_keys=True)
    key = hashlib.sha256(depends_on.encode()).hexdigest()[:20]
    return {
        "model": model,
        "notebook": nbformat.writes(nbformat.from_dict({**notebook, "cells": cells})),
        "changes": changes,
        "changes_yaml": yaml.safe_dump(changes),  # JSON's 1e-05 would be a text in YAML
        "profile": utils.PROFILE,
        "precision": precision,
        "versions": versions,
        "utils_sha256": hashlib.sha256((utils.ROOT / "utils.py").read_bytes()).hexdigest(),
        "folder": utils.CACHE / "runs" / f"{model}_{key}",
    }


def execute(number, run, clone=None):
    """Execute a run by papermill in a clone (None: the working folder); return its number, notebook and results, as
    text. Raises RuntimeError where it fails, or the clone's utils.py is another than this one's.

    It is sent to the workers of a cluster as it is, so it uses nothing of this module.
    """
    clone = Path(clone or os.getcwd())
    if hashlib.sha256((clone / "utils.py").read_bytes()).hexdigest() != run["utils_sha256"]:
        raise RuntimeError(f"{clone / 'utils.py'} is another than that of the clone in which the sweep began")
    with tempfile.TemporaryDirectory() as folder:
        source, executed = Path(folder) / "source.ipynb", Path(folder) / "executed.ipynb"
        source.write_text(run["notebook"], encoding="utf-8")
        command = [sys.executable, "-m", "papermill", source, executed, "--cwd", clone / "notebooks"]
        command += ["--kernel", "python3", "--no-progress-bar", "--parameters_yaml", run["changes_yaml"]]
        environment = {**os.environ, "SHIP_TRUCK_PROFILE": run["profile"], "SHIP_TRUCK_OUTPUT": folder}
        # In a run by folds any reading of the test set is refused, that of a cell without the tag too.
        environment |= {"SHIP_TRUCK_FOLD": str(run["changes"]["fold"]), "PYTHONUTF8": "1"}
        environment["SHIP_TRUCK_PRECISION"] = run["precision"]  # on each worker of a cluster the same
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", env=environment)
        if done.returncode:
            reason = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise RuntimeError(f"the run of {run['model']} with {run['changes']} failed: {reason[-1]}")
        results = (Path(folder) / "results" / f"{run['model']}.json").read_text(encoding="utf-8")
        versions = json.loads(results)["versions"]
        if not run["versions"].items() <= versions.items():
            raise RuntimeError(f"{clone} has {versions}, and the clone in which the sweep began {run['versions']}")
        return number, executed.read_text(encoding="utf-8"), results


def attempt(number, run, clone):
    """Return what execute() returns; where it fails, the run's number, None and the reason, so that the others go on."""
    try:
        return execute(number, run, clone)
    except RuntimeError as error:
        return number, None, str(error)


# --- Many runs -----------------------------------------------------------------------------------


def connect(address):
    """Have joblib give its work to a Dask cluster; return the number of runs at a time."""
    import cloudpickle
    import dask.distributed

    client = dask.distributed.Client(address)
    # A worker's clone may lie elsewhere, so what is sent is the function itself and not where it is found here.
    cloudpickle.register_pickle_by_value(sys.modules[execute.__module__])
    joblib.parallel_config(backend="dask", wait_for_workers_timeout=60)
    return sum(client.nthreads().values())


def execute_all(runs, workers=1, dask=None):
    """Execute runs, some at a time or on a Dask cluster; return their results in order.

    Runs that are in cache/runs/ are not done again; each new one is kept there as it comes, with a line that says how
    many are left. Raises RuntimeError after the last where some failed.
    """
    missing = {run["folder"]: run for run in runs if not (run["folder"] / "results.json").is_file()}
    missing = list(missing.values())
    print(
        f"{len(missing)} of {len(runs)} runs to do; the others are in {utils.relative(utils.CACHE)}/runs/", flush=True
    )
    at_once, clone = (connect(dask), None) if dask else (workers, utils.ROOT)
    # A thread each is enough, since it only waits for the process that trains.
    parallel = joblib.Parallel(
        at_once, backend=None if dask else "threading", return_as="generator_unordered", pre_dispatch="all"
    )
    started, failures = time.monotonic(), []
    jobs = (joblib.delayed(attempt)(number, run, clone) for number, run in enumerate(missing))
    for done, (number, notebook, results) in enumerate(parallel(jobs), 1):
        run = missing[number]
        if notebook is None:
            print(results, flush=True)
            failures.append(results)
            continue
        for name, text in (("notebook.ipynb", notebook), ("results.json", results)):
            with utils.atomic_write(run["folder"] / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
        found, fold = json.loads(results), run["changes"]["fold"]
        minutes = (len(missing) - done) * (time.monotonic() - started) / done / 60
        which = f"seed {run['changes']['seed']}" if fold == -1 else f"fold {fold}"
        accuracy, seconds = found["validation"]["accuracy"], found["seconds"]
        print(
            f"{run['model']}, {which}: validation {accuracy:.2%}, {seconds:.0f} s; "
            f"{done} of {len(missing)} runs done, about {minutes:.0f} min left",
            flush=True,
        )
    if failures:
        raise RuntimeError(f"{len(failures)} of {len(missing)} runs failed, the first like this: {failures[0]}")
    return [read_kept(run["folder"] / "results.json") for run in runs]


def read_kept(path):
    """Return the results of a run that is kept. Raises ValueError where the file is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"{utils.relative(path)} is damaged; delete it and start again") from None


# --- What they say -------------------------------------------------------------------------------


def smallest_difference(disagreements):
    """Return by how many images two models must differ for McNemar's p to be below 0.05, if they disagree so often."""
    disagreements = max(disagreements, 6)  # with five even 5 : 0 has p = 0.06
    differences = range(disagreements % 2, disagreements + 1, 2)
    return next(d for d in differences if binomtest((disagreements + d) // 2, disagreements).pvalue < 0.05)


def gain_of(before, after, folds):
    """Return what runs by folds say of a change, as utils.print_ladder() takes it.

    before, after: results of runs on the same folds with the same seeds. By image McNemar's exact test, over all
    held-out images; by fold Student's 95 % interval (None for a single fold).
    """
    _, y = utils.load_training_images()
    labels = np.concatenate([y[utils.split_indices(y, fold)[1]] for fold in folds])
    right_before, right_after = (
        (np.concatenate([run["probability"]["validation"] for run in runs]) >= 0.5) == labels
        for runs in (before, after)
    )
    gained, lost, p = utils.mcnemar(right_after, right_before)
    accuracies = [[run["validation"]["accuracy"] for run in runs] for runs in (after, before)]
    mean, interval = float(np.mean(accuracies[0]) - np.mean(accuracies[1])), None
    if len(folds) > 1:
        with np.errstate(all="ignore"):  # where all folds gain the same
            interval = [float(end) for end in ttest_rel(*accuracies).confidence_interval()]
    smallest = smallest_difference(gained + lost) / len(labels)
    counts = {"gained": gained, "lost": lost, "n": len(labels), "p": p, "smallest": smallest}
    return counts | {"mean": mean, "interval95": interval}


def in_groups(results, size):
    """Return results in groups of so many, in order: the runs of one rung, control or experiment each."""
    return [results[start : start + size] for start in range(0, len(results), size)]


def entry_of(step, changes, folds, runs):
    """Return what results/ keeps of a rung or an experiment, its gain aside."""
    return {
        "step": step,
        "changes": changes,
        "folds": list(folds),
        "n": runs[0]["validation"]["n"],
        "accuracy": [run["validation"]["accuracy"] for run in runs],
        "seconds": round(float(np.mean([run["seconds"] for run in runs])), 1),
        "precision": runs[0]["precision"],
    }


def published(name):
    """Return what results/NAME.json holds, {} where there is none."""
    path = utils.OUTPUT / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def publish(name, model, settings, value):
    """Put what was found for a model into results/NAME.json; another model's stays as it is."""
    kept = published(name)
    made_from = kept.get("made_from", {}) | {model: utils.without_seed(settings)}
    utils.save_results(
        name, {"made_from": made_from} | {k: v for k, v in kept.items() if k != "made_from"} | {model: value}
    )


def refuse_repeated(seeds):
    """Raise ValueError where a seed stands twice."""
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"the seeds {seeds} repeat one; every seed counts once")


def sweep_seeds(models, seeds, **backend):
    """Train the models with each seed, noting the test accuracy after each epoch; write results/seeds.json."""
    refuse_repeated(seeds)
    for model in models:
        notebook = read_notebook(model)
        runs = execute_all([new_run(model, notebook, {"watch_test": True}, seed) for seed in seeds], **backend)
        entry = {"seeds": list(seeds), "precision": runs[0]["precision"]}
        entry |= {split: utils.summarise([run[split] for run in runs]) for split in ("validation", "test")}
        entry["watched"] = [run["history"]["test_accuracy"] for run in runs]
        entry["probability"] = [run["probability"]["test"] for run in runs]
        publish("seeds", model, runs[0]["settings"], entry)
        print(f"{model}: test {utils.format_seeds(entry['test'])}", flush=True)


def sweep_controls(models, seeds, **backend):
    """Train and test what is in the notebooks' CONTROLS, with each seed; write results/controls.json.

    Raises ValueError where a model's committed run has other parameters than the notebook, a control's own aside.
    """
    refuse_repeated(seeds)
    for model in models:
        notebook = read_notebook(model)
        controls, settings = steps_of(notebook, "controls"), utils.load_results(model)["settings"]
        runs = [new_run(model, notebook, changes, seed) for _, changes in controls for seed in seeds]
        results, entries = in_groups(execute_all(runs, **backend), len(seeds)), []
        for (step, changes), found in zip(controls, results, strict=True):
            others = {name: value for name, value in found[0]["settings"].items() if name not in changes}
            before = {name: value for name, value in settings.items() if name not in changes}
            different = utils.differences(others, before)
            if different:
                raise ValueError(
                    f"results/{model}.json is of another run than the notebook's parameters would give: "
                    f"{different}; {utils.MADE_BY[model]} first"
                )
            entry = {"step": step, "changes": changes, "seeds": list(seeds), "precision": found[0]["precision"]}
            entry["seconds"] = round(float(np.mean([run["seconds"] for run in found])), 1)
            entry |= {split: utils.summarise([run[split] for run in found]) for split in ("validation", "test")}
            entry["probability"] = {
                split: [run["probability"][split] for run in found] for split in ("validation", "test")
            }
            entries.append(entry)
        publish("controls", model, settings, entries)
        print(f"\n{model}, {len(seeds)} seeds:")
        utils.print_controls(entries)


def sweep_ladder(models, folds=None, **backend):
    """Judge every step of the notebooks' ladders by folds; write results/ladder.json."""
    for model in models:
        notebook, chosen = read_notebook(model), folds or LADDER_FOLDS[model]
        steps, reached, runs = steps_of(notebook, "ladder"), {}, []
        last = {name: value for _, changes in steps for name, value in changes.items()}
        different = utils.differences(with_changes(notebook, last), with_changes(notebook, {}))
        if different:
            raise ValueError(
                f"LADDER in {NOTEBOOKS[model]}.ipynb must end at the notebook's parameters, not at {different}"
            )
        for _, changes in steps:
            reached = reached | changes
            runs += [new_run(model, notebook, reached, fold, fold) for fold in chosen]
        rungs = in_groups(execute_all(runs, **backend), len(chosen))
        entries = [entry_of(*step, chosen, rung) for step, rung in zip(steps, rungs, strict=True)]
        for number in range(1, len(rungs)):
            entries[number]["gain"] = gain_of(rungs[number - 1], rungs[number], chosen)
        for entry, (run, *_) in zip(entries, rungs, strict=True):
            entry["history"] = run["history"]  # of the first fold
        entries.append({"step": "all steps together", "gain": gain_of(rungs[0], rungs[-1], chosen)})
        publish("ladder", model, rungs[-1][0]["settings"], entries)
        print(f"\n{model}, {len(chosen)} folds:")
        utils.print_ladder(entries)


def sweep_finetuning(folds=None, **backend):
    """Judge VGG16 frozen and fine-tuned by the same folds, and fine-tuned once on the test set; write
    results/finetuning.json."""
    model, tuned = "vgg16_transfer", "vgg16_finetuned"
    notebook, chosen = read_notebook(model), folds or [0, 1, 2]
    ((step, changes),) = steps_of(notebook, "finetuning")
    seed = with_changes(notebook, {})["seed"]
    runs = [new_run(model, notebook, {}, fold, fold) for fold in chosen]
    runs += [new_run(tuned, notebook, changes, fold, fold) for fold in chosen]
    *by_folds, tested = execute_all([*runs, new_run(tuned, notebook, changes, seed)], **backend)
    before, after = in_groups(by_folds, len(chosen))
    entry = {
        "frozen": entry_of("frozen", {}, chosen, before),
        "tuned": entry_of(step, changes, chosen, after) | {"gain": gain_of(before, after, chosen)},
    }
    kept = ("validation", "test", "parameters", "seconds", "probability", "history")
    publish("finetuning", model, before[0]["settings"], entry | {name: tested[name] for name in kept})
    utils.print_ladder([entry["frozen"], entry["tuned"]])
    print("test:", utils.format_score(tested["test"]))


def in_words(changes):
    """Return changes of parameters as a label: "no mirror, hidden units 64"."""
    words = []
    for name, value in changes.items():
        name = name.replace("_", " ")
        words.append(f"{'' if value else 'no '}{name}" if isinstance(value, bool) else f"{name} {value}")
    return ", ".join(words)


def plot_experiments(entries, model):
    """Draw what all experiments of a model gained into figures/."""
    utils.set_plot_style()
    labelled = [entry | {"step": in_words(entry["changes"])} for entry in entries]
    figure = utils.plot_ladder(labelled, model, f"{utils.LABELS[model]}: what changes are worth")
    utils.save_figure(figure, f"experiments_{model}")


def experiment(model, text, folds=None, **backend):
    """Judge changes of parameters by folds against the notebook as it stands; write results/experiments.json and a
    figure of all that was tried against the same parameters."""
    notebook, chosen = read_notebook(model), folds or LADDER_FOLDS[model]
    combinations = parse_changes(text, notebook)
    if not combinations:
        raise ValueError("these are the notebook's own parameters; there is nothing to compare with them")
    runs = [new_run(model, notebook, changes, fold, fold) for changes in [{}, *combinations] for fold in chosen]
    base, *others = in_groups(execute_all(runs, **backend), len(chosen))
    entries = []
    for changes, found in zip(combinations, others, strict=True):
        step = ", ".join(f"{name} {value}" for name, value in changes.items())
        entries.append(entry_of(step, changes, chosen, found) | {"gain": gain_of(base, found, chosen)})
    print(f"\n{model}, {len(chosen)} folds; the notebook as it stands:")
    utils.print_ladder([entry_of("as it stands", {}, chosen, base), *entries], "change")
    kept, settings = published("experiments"), base[0]["settings"]
    if kept.get("made_from", {}).get(model) != utils.without_seed(settings):
        earlier = len(kept.get(model, []))
        print(f"{earlier} earlier experiments, against other parameters, are replaced; their runs stay in cache/runs/")
    else:
        new = [(entry["changes"], entry["folds"]) for entry in entries]
        entries = [entry for entry in kept[model] if (entry["changes"], entry["folds"]) not in new] + entries
    publish("experiments", model, settings, entries)
    plot_experiments(entries, model)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    for name in ("seeds", "ladder", "controls", "finetuning", "experiment"):
        command = what.add_parser(name)
        command.add_argument("--workers", type=int, default=1, help="runs at a time on this machine")
        command.add_argument("--dask", metavar="ADDRESS", help="scheduler of a Dask cluster")
        if name in ("seeds", "controls"):
            default = [0, 1, 2, 3, 4] if name == "seeds" else [0, 1, 2]
            command.add_argument("--seeds", type=int, nargs="+", default=default)
        else:
            command.add_argument("--folds", type=int, nargs="+", choices=range(utils.FOLDS))
        if name == "experiment":
            command.add_argument("model", choices=NOTEBOOKS)
            command.add_argument("text", metavar="CHANGES", help='such as "hidden_units=64,128 dropout=0.3"')
        elif name != "finetuning":
            command.add_argument("--models", nargs="+", choices=NOTEBOOKS, default=list(NOTEBOOKS))
    arguments = vars(parser.parse_args())
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # utils.precision() loads TensorFlow
    functions = {
        "seeds": sweep_seeds,
        "ladder": sweep_ladder,
        "controls": sweep_controls,
        "finetuning": sweep_finetuning,
        "experiment": experiment,
    }
    function = functions[arguments.pop("what")]
    try:
        function(**arguments)
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("stopped; what was finished is in cache/runs/, and the same command goes on from there")


if __name__ == "__main__":
    main()
