"""Train the notebooks' models many times: `make seeds` and `make ladder`; `make experiment` uses it too.

    python scripts/sweep.py seeds --seeds 0 1 2 --models three_block_cnn --workers 2
    python scripts/sweep.py ladder --models vgg16_transfer
    python scripts/sweep.py seeds --dask tcp://scheduler:8786

Models and settings are those of the notebooks: the cells tagged "define" are executed here, so that each is defined
once. Settings are read once, when a sweep begins, and handed to each training run. The runs are independent of each
other: they go on one after another, in some processes of this machine (--workers) or on a Dask cluster (--dask),
whose workers were started in the folder of a clone. Each result is kept in cache/runs/ as it comes, so that a sweep
that was stopped goes on where it was. What sweeps found is read here as well: load_seeds(), format_ladder().
"""

import argparse
import ast
import contextlib
import functools
import hashlib
import inspect
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path

import nbformat
import numpy as np
from scipy.stats import t
from sklearn.model_selection import StratifiedKFold

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import utils

NOTEBOOKS = {"three_block_cnn": "02_three_block_cnn", "vgg16_transfer": "03_vgg16_transfer_learning"}
FOLDS = 5  # a fold is a fifth of the training set
LADDER_FOLDS = {"three_block_cnn": [0, 1, 2], "vgg16_transfer": [0, 1, 2, 3, 4]}  # a fold of the CNN takes minutes


def definitions(name):
    """Return what the notebook of a model defines, by name."""
    path = utils.ROOT / "notebooks" / f"{NOTEBOOKS[name]}.ipynb"
    return _definitions(NOTEBOOKS[name], path.stat().st_mtime_ns)


@functools.cache
def _definitions(notebook, changed):
    return utils.definitions(notebook)


def check_settings(settings, possible):
    """Raise ValueError, naming the setting, its value and what is possible, unless all settings are possible.

    possible: {name: a list of values, or (int or float, least, most), or (list, least, most, length at most) of whole
    numbers, or a function from settings to one of these}; what a rule depends on stands before it.
    """
    for name in sorted(settings.keys() ^ possible.keys()):
        raise ValueError(f"SETTINGS {'lacks' if name in possible else 'has an unknown setting,'} {name}; "
                         f"there are {', '.join(possible)}")
    for name, rule in possible.items():
        value, rule = settings[name], rule(settings) if callable(rule) else rule
        if isinstance(rule, list):
            fits, expected = value in rule and type(value) is type(rule[0]), f"one of {', '.join(map(repr, rule))}"
        else:
            kind, least, most, *length = rule
            parts = value if kind is list and type(value) is list and 0 < len(value) <= length[0] else [value]
            kinds = {int: (int,), float: (int, float), list: (int,) if parts is value else ()}[kind]
            fits = all(type(part) in kinds and least <= part <= most for part in parts)
            expected = {int: "a whole number", float: "a number"}.get(kind) or f"a list of 1 to {length[0]} whole numbers"
            expected += f" from {least:,} to {most:,}"
        if not fits:
            raise ValueError(f"SETTINGS: {name} is {value!r}, expected {expected}")


# --- One training run ----------------------------------------------------------------------------


def code_sha256(name):
    """Return a sum over the code that a run of a model goes through, without its comments: what the notebook defines
    besides SETTINGS and LADDER, run(), and what these use of utils.py."""
    path = utils.ROOT / "notebooks" / f"{NOTEBOOKS[name]}.ipynb"
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if "define" in cell.metadata.get("tags", [])]
    parts = [part for source in [*cells, inspect.getsource(run)] for part in ast.parse(source).body
             if not (isinstance(part, ast.Assign) and getattr(part.targets[0], "id", "") in ("SETTINGS", "LADDER"))]
    shared = {part.name: part for part in ast.parse((utils.ROOT / "utils.py").read_text(encoding="utf-8")).body
              if isinstance(part, ast.FunctionDef)}
    for part in parts:  # which grows
        used = {getattr(node, "attr", getattr(node, "id", None)) for node in ast.walk(part)}
        parts += [shared.pop(function) for function in sorted(used & shared.keys())]
    return hashlib.sha256("\n".join(map(ast.dump, parts)).encode()).hexdigest()


def circumstances(name):
    """Return what the result of a run depends on besides its settings."""
    return {"profile": utils.PROFILE, "code": code_sha256(name), "data_sha256": utils.SHA256["ship_truck.npz"],
            "weights_sha256": utils.SHA256["vgg16_imagenet_notop.weights.h5"], "folds": FOLDS,
            "versions": {package: version(package) for package in ("tensorflow", "keras", "numpy")}}


def new_task(name, seed, changes=None, fold=None):
    """Return a training run to be done, as a dict that can go into JSON.

    The settings are the notebook's, some of them changed. Raises ValueError where they are not possible.
    """
    study = definitions(name)
    settings = {**study["SETTINGS"], **(changes or {}), "seed": seed}
    check_settings(settings, study["POSSIBLE"])
    return {"model": name, "settings": settings, "fold": fold, **circumstances(name)}


def run(task):
    """Train one model; return its result.

    Without a fold it trains on the training split and is judged on validation and test. With a fold (0 to
    FOLDS - 1) it trains on four fifths of the 10,000 training images and is judged on the rest; the test set
    is not read. Returns the task with "seconds", "validation": score and, without a fold, "test": score,
    "probability": n_test probabilities of truck, and "watched": the test accuracy after each epoch (without the
    mirror image), which notebook 05 needs to show what it would mean to choose by it. Raises RuntimeError where
    the task was made under other circumstances than are found here.
    """
    name, settings, fold = task["model"], task["settings"], task["fold"]
    here = circumstances(name)
    different = [key for key in here if here[key] != task[key]]
    if different:
        raise RuntimeError(f"notebook, utils.py or sweep.py were edited since the sweep began, or this is another clone "
                           f"({', '.join(different)}): {different[0]} is {here[different[0]]}, "
                           f"expected {task[different[0]]}")
    study = definitions(name)
    training, validation, test = utils.load_splits()
    parts = [training, validation] if fold is not None else [training, validation, test]
    if name == "vgg16_transfer":  # the head learns from features, which are computed once and cached
        base = utils.load_vgg16()
        parts = [(study["features_of"](base, x, settings), y) for x, y in parts]
    if fold is not None:
        x, y = (np.concatenate(arrays) for arrays in zip(*parts))
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(y, y)
        parts = [(x[part], y[part]) for part in list(folds)[fold]]
    started = time.perf_counter()
    network, history = study["train"](settings, parts[0], parts[-1])  # the last part is watched, no more
    result = task | {"seconds": time.perf_counter() - started}
    for split, (x, y) in zip(("validation", "test"), parts[1:]):
        probability = study["predict"](network, x, settings).reshape(-1)
        result[split] = utils.score(y, probability)
    if fold is None:
        result |= {"probability": probability.tolist(), "watched": history["val_accuracy"]}
    return result


def run_apart(task, folder):
    """Call run(task) in a process of its own, in the clone in a folder (None: the working folder); return its result.

    Keras draws seeds from Python's global random generator. In a Dask worker other threads draw from it too,
    so that only a process of its own gives the same numbers everywhere. This function is sent to such workers as it
    is, so it needs the standard library only.
    """
    done = subprocess.run([sys.executable, "scripts/sweep.py", "task", json.dumps(task)], cwd=folder,
                          capture_output=True, encoding="utf-8",
                          env={**os.environ, "SHIP_TRUCK_PROFILE": task["profile"]})
    if done.returncode:
        reason = done.stderr.strip() or f"exit status {done.returncode}"  # a killed process says nothing
        raise RuntimeError(f"a run of {task['model']} with {task['settings']} failed in {folder or os.getcwd()}: "
                           f"{reason.splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


# --- Many of them --------------------------------------------------------------------------------


def kept(task):
    """Return the path where the result of a task is kept: cache/runs/, under a sum over the task."""
    key = hashlib.sha256(json.dumps(task, sort_keys=True).encode()).hexdigest()[:20]
    return utils.CACHE / "runs" / f"{task['model']}_{key}.json"


def read_kept(path):
    """Return a result that is kept. Raises ValueError where the file is damaged."""
    try:
        return utils.read_json(path)
    except ValueError:
        raise ValueError(f"{utils.relative(path)} is damaged; delete it and start again") from None


@contextlib.contextmanager
def processes(workers=1):
    """Yield a function that takes a task to a process of this machine, some at a time, and returns its future."""
    with ThreadPoolExecutor(workers) as pool:  # each thread waits for the process that trains
        yield lambda task: pool.submit(run_apart, task, utils.ROOT)


@contextlib.contextmanager
def cluster(address):
    """Yield a function that takes a task to a worker of a Dask cluster and returns its future."""
    import cloudpickle  # needed for a cluster only, as Dask is
    import dask.distributed

    # A worker's clone may lie elsewhere, so what is sent is the function itself and not where it is found here.
    cloudpickle.register_pickle_by_value(sys.modules[run_apart.__module__])
    with dask.distributed.Client(address) as client:
        executor = client.get_executor(pure=False)
        yield lambda task: executor.submit(run_apart, task, None)


def sweep(tasks, submit=None):
    """Run tasks where submit() takes them, by default here, one after another; return their results in order.

    Results that are kept are not computed again; each new one is kept as it comes, with a line that says how many
    are left. Raises ValueError for a task that stands twice.
    """
    if submit is None:
        with processes() as submit:
            return sweep(tasks, submit)
    paths = [kept(task) for task in tasks]
    if len(set(paths)) < len(tasks):
        raise ValueError("the sweep repeats a task; every seed counts once")
    missing = [task for task, path in zip(tasks, paths) if not path.is_file()]
    print(f"{len(missing)} of {len(tasks)} training runs to do; the others are in cache/runs/", flush=True)
    started, futures, errors = time.monotonic(), {submit(task): task for task in missing}, []
    try:
        for number, future in enumerate(as_completed(futures), 1):
            if future.cancelled():
                continue
            if error := future.exception():
                errors.append(error)
                for other in futures:
                    other.cancel()  # those that have begun go on, and are kept
                continue
            task, result = futures[future], future.result()
            utils.save_json(kept(task), result)
            left = (len(missing) - number) * (time.monotonic() - started) / number
            part = f"seed {task['settings']['seed']}" if task["fold"] is None else f"fold {task['fold']}"
            print(f"{task['model']}, {part}: validation {result['validation']['accuracy']:.2%}, "
                  f"{result['seconds']:.0f} s; {number} of {len(missing)} runs done"
                  + (f", about {left / 60:.0f} min left" if number < len(missing) else ""), flush=True)
    finally:
        for future in futures:
            future.cancel()
    if errors:
        raise errors[0]
    return [read_kept(path) for path in paths]


def spread(scores):
    """Summarise scores of several runs: their accuracies, mean and standard deviation (None for a single run)."""
    accuracies = [score["accuracy"] for score in scores]
    return {"accuracy": accuracies, "n": scores[0]["n"], "mean": float(np.mean(accuracies)),
            "standard_deviation": float(np.std(accuracies, ddof=1)) if len(scores) > 1 else None}


def without_seed(settings):
    """Return settings without the seed, which differs from run to run."""
    return {key: value for key, value in settings.items() if key != "seed"}


def save_seeds(results):
    """Put one model's results into results/seeds.json, and its test probabilities (seeds, n_test) into
    results/seeds.npz; another model's stay as they are."""
    name, folder = results[0]["model"], utils.OUTPUT / "results"
    entry = {"settings": without_seed(results[0]["settings"]), "data_sha256": results[0]["data_sha256"],
             "seeds": [result["settings"]["seed"] for result in results]}
    entry |= {split: spread([result[split] for result in results]) for split in ("validation", "test")}
    entry["watched"] = [result["watched"] for result in results]
    probabilities = {}
    if (folder / "seeds.npz").is_file():
        with np.load(folder / "seeds.npz") as file:
            probabilities = dict(file)
    probabilities[name] = np.array([result["probability"] for result in results], np.float32)
    with utils.atomic_write(folder / "seeds.npz") as temporary:
        np.savez_compressed(temporary, **dict(sorted(probabilities.items())))
    path = folder / "seeds.json"
    seeds = utils.read_json(path, "make seeds") if path.is_file() else {}
    utils.save_json(path, dict(sorted((seeds | {name: entry}).items())))
    return entry


def sweep_seeds(names, seeds, submit=None):
    """Train the chosen models with each seed; publish a model's summary when all its seeds are there."""
    for name in names:
        entry = save_seeds(sweep([new_task(name, seed) for seed in seeds], submit))
        print(f"{name}: test {entry['test']['mean']:.2%}, mean of {len(seeds)} seeds", flush=True)


def sweep_ladder(names, folds=None, submit=None):
    """Judge every step of the notebooks' ladders on each fold; publish a model's ladder when it is complete."""
    for name in names:
        steps, changes, tasks = definitions(name)["LADDER"], {}, []
        chosen = folds or LADDER_FOLDS[name]
        for _, change in steps:
            changes = {**changes, **change}
            tasks += [new_task(name, fold, changes, fold) for fold in chosen]
        results, entries = sweep(tasks, submit), []
        for number, (step, change) in enumerate(steps):
            found = results[number * len(chosen):(number + 1) * len(chosen)]
            entry = {"step": step, "change": change, "seconds": float(np.mean([result["seconds"] for result in found]))}
            entry |= spread([result["validation"] for result in found])
            if entries:
                entry["gain"] = gain_of(entries[-1]["accuracy"], entry["accuracy"])
            entries.append(entry)
            print(f"{name}, {step}: {entry['mean']:.2%}, {entry['seconds']:.0f} s", flush=True)
        path = utils.OUTPUT / "results" / "ladder.json"
        ladder = utils.read_json(path, "make ladder") if path.is_file() else {}
        utils.save_json(path, ladder | {name: {"folds": list(chosen), "steps": entries}})


def gain_of(before, after):
    """Return what paired accuracies say of a change: {"mean", "standard_error", "interval95"}, 0 to 1.

    before, after: accuracies of the same folds with the same seeds. The interval is Student's for so few folds; it is a
    rough one, since folds share training images. One fold has neither error nor interval: None.
    """
    gains = np.subtract(after, before)
    mean, error = float(gains.mean()), float(gains.std(ddof=1) / len(gains) ** 0.5) if len(gains) > 1 else None
    half = None if error is None else float(t.ppf(0.975, len(gains) - 1)) * error
    return {"mean": mean, "standard_error": error,
            "interval95": None if half is None else [mean - half, mean + half]}


def format_gain(gain):
    """Return a gain in points in a line: "+0.12 ± 0.06 (95 % interval -0.04 to +0.28): no gain shown"."""
    if gain["interval95"] is None:
        return f"{100 * gain['mean']:+.2f} (one fold)"
    low, high = gain["interval95"]
    verdict = "" if low > 0 else ": a loss" if high < 0 else ": no gain shown"
    return (f"{100 * gain['mean']:+.2f} ± {100 * gain['standard_error']:.2f} "
            f"(95 % interval {100 * low:+.2f} to {100 * high:+.2f}){verdict}")


# --- What sweeps wrote ---------------------------------------------------------------------------


def load_seeds(folder):
    """Read the seed sweep in the folder results/: {model: its entry in seeds.json, with "probability" and "note"}.

    "probability" is (seeds, n_test), of truck. "note" is empty, or says in brackets how the settings of the seeds differ
    from those of the model's own run in that folder. Raises FileNotFoundError, or ValueError where a seed is repeated, or
    the probabilities are of another shape, no numbers from 0 to 1, or of other accuracies.
    """
    folder = Path(folder)
    seeds, place = utils.read_json(folder / "seeds.json", "make seeds"), utils.relative(folder)
    if not (folder / "seeds.npz").is_file():
        raise FileNotFoundError(f"{place}/seeds.npz is missing; `make seeds` makes it")
    with np.load(folder / "seeds.npz") as arrays:
        probabilities = dict(arrays)
    y_test = utils.load_images(utils.DATA / "ship_truck.npz")[3]
    for name, entry in seeds.items():
        entry["note"] = utils.note(entry["settings"], utils.load_results(name, folder)["settings"])
        if len(set(entry["seeds"])) < len(entry["seeds"]):
            raise ValueError(f"{place}/seeds.json repeats a seed of {name}: {entry['seeds']}; "
                             "every seed counts once, run `make seeds`")
        entry["probability"] = found = probabilities.get(name, np.empty(0))
        if found.shape != (len(entry["seeds"]), entry["test"]["n"]):
            raise ValueError(f"{place}/seeds.npz holds an array {found.shape} for {name}, expected "
                             f"({len(entry['seeds'])}, {entry['test']['n']}); run `make seeds`")
        if not ((found >= 0) & (found <= 1)).all():
            raise ValueError(f"{place}/seeds.npz holds values for {name} that are no probabilities; "
                             "the network may have diverged, run `make seeds`")
        if len(y_test) == entry["test"]["n"] and [((p >= 0.5) == y_test).mean() for p in found] != entry["test"]["accuracy"]:
            raise ValueError(f"{place}/seeds.npz doesn't belong to {place}/seeds.json; run `make seeds`")
    return seeds


def format_spread(scores):
    """Return scores of several seeds in words: "98.30% ± 0.15% (n = 5 seeds)", or "98.30% (one seed)"."""
    if scores["standard_deviation"] is None:
        return f"{scores['mean']:.2%} (one seed)"
    return f"{scores['mean']:.2%} ± {scores['standard_deviation']:.2%} (n = {len(scores['accuracy'])} seeds)"


def format_ladder(name, settings):
    """Return a model's rungs in the committed results/ladder.json as a table in text.

    A line has the held-out accuracy, mean over the folds, and the gain over the line above, as format_gain() says it.
    A last line says where the settings at hand are none of the rungs'.
    """
    ladder = utils.read_json(utils.ROOT / "results" / "ladder.json", "make ladder")[name]
    reached, rungs, width = {}, [], max(len(rung["step"]) for rung in ladder["steps"])
    lines = [f"{len(ladder['folds'])} folds, {ladder['steps'][0]['n']:,} held-out images each; gain over the line above, "
             "in points\n"]
    for number, rung in enumerate(ladder["steps"]):
        reached = reached | rung["change"]
        rungs.append(reached)
        gain = gain_of(ladder["steps"][number - 1]["accuracy"], rung["accuracy"]) if number else None
        lines.append(f"{rung['step']:{width}}  {rung['mean']:.2%}  {format_gain(gain) if number else ''}".rstrip())
    if without_seed(settings) not in rungs:
        lines.append("\nThe settings of this notebook are no rung of it; beside the last one: "
                     f"{utils.differences(settings, reached)}.")
    return "\n".join(lines)


# --- The command line ----------------------------------------------------------------------------


def add_backend_arguments(parser):
    """Give a parser of arguments those that backend() takes."""
    parser.add_argument("--workers", type=int, default=1, help="processes on this machine")
    parser.add_argument("--dask", metavar="ADDRESS", help="scheduler of a Dask cluster; its workers start in a clone")


def backend(arguments):
    """Return the context that --dask or --workers ask for; it yields a function for sweep()."""
    return cluster(arguments.dask) if arguments.dask else processes(arguments.workers)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["seeds", "ladder", "task"])
    parser.add_argument("task", nargs="?", help="for `task`: a task as JSON; prints its result as JSON")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--folds", type=int, nargs="+", choices=range(FOLDS))
    parser.add_argument("--models", nargs="+", choices=NOTEBOOKS, default=list(NOTEBOOKS))
    add_backend_arguments(parser)
    arguments = parser.parse_args()
    if arguments.what == "task":
        with contextlib.redirect_stdout(sys.stderr):
            result = run(json.loads(arguments.task))
        print(json.dumps(result))
        return
    try:
        with backend(arguments) as submit:
            if arguments.what == "seeds":
                sweep_seeds(arguments.models, arguments.seeds, submit)
            else:
                sweep_ladder(arguments.models, arguments.folds, submit)
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
