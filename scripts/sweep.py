"""Train the notebooks' models many times: `make seeds` and `make ladder`.

    python scripts/sweep.py seeds --seeds 0 1 2 --models three_block_cnn --workers 2
    python scripts/sweep.py ladder --models vgg16_transfer
    python scripts/sweep.py seeds --dask tcp://scheduler:8786

Models and settings are those of the notebooks: the cells tagged "define" are executed here, so that
each is defined once. The training runs are independent of each other. joblib hands them out: one after
another, to some processes of this machine (--workers) or to a Dask cluster (--dask). What they found is read here
as well: load_seeds(), format_ladder().
"""

import argparse
import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import joblib
import numpy as np
from sklearn.model_selection import StratifiedKFold

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import utils

NOTEBOOKS = {"three_block_cnn": "02_three_block_cnn", "vgg16_transfer": "03_vgg16_transfer_learning"}
FOLDS = 5  # the ladder holds out a fifth of the training set at a time


def definitions(name):
    """Return what the notebook of a model defines, by name."""
    return utils.definitions(NOTEBOOKS[name])


def run(name, seed, changes=None, fold=None):
    """Train one model with one seed, with the notebook's settings or some of them changed.

    Without a fold it trains on the training split and is judged on validation and test. With a fold (0 to
    FOLDS - 1) it trains on four fifths of the 10,000 training images and is judged on the rest; the test set
    is not read. Returns {"name", "seed", "settings", "seconds", "validation": score} and, without a fold, "test":
    score, "probability": n_test probabilities of truck, and "watched": the test accuracy after each epoch (without
    the mirror image), which notebook 05 needs to show what it would mean to choose by it.
    """
    study = definitions(name)
    settings = {**study["SETTINGS"], **(changes or {}), "seed": seed}
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
    result = {"name": name, "seed": seed, "settings": settings, "seconds": time.perf_counter() - started}
    for split, (x, y) in zip(("validation", "test"), parts[1:]):
        probability = study["predict"](network, x, settings).reshape(-1)
        result[split] = utils.score(y, probability)
    if fold is None:
        result |= {"probability": probability.tolist(), "watched": history["val_accuracy"]}
    return result


def run_apart(*task):
    """Call run(*task) in a process of its own; return what it returns.

    Keras draws seeds from Python's global random generator. In a Dask worker other threads draw from it too,
    so that only a process of its own gives the same numbers everywhere.
    """
    done = subprocess.run([sys.executable, Path(__file__).resolve(), "task", json.dumps(task)],
                          cwd=utils.ROOT, capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip() or f"exit status {done.returncode}"  # a killed process says nothing
        raise RuntimeError(f"{task} failed: {reason.splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def sweep(tasks):
    """Run tasks, tuples of run()'s arguments, wherever joblib's active backend puts them; yield each result
    in the order of the tasks. Raises ValueError for a task that stands twice."""
    if len({repr(task) for task in tasks}) < len(tasks):
        raise ValueError(f"the sweep repeats a task: {tasks}; every seed counts once")
    return joblib.Parallel(return_as="generator")(joblib.delayed(run_apart)(*task) for task in tasks)


def spread(scores):
    """Summarise scores of several runs: their accuracies, mean and standard deviation (None for a single run)."""
    accuracies = [score["accuracy"] for score in scores]
    return {"accuracy": accuracies, "n": scores[0]["n"], "mean": float(np.mean(accuracies)),
            "standard_deviation": float(np.std(accuracies, ddof=1)) if len(scores) > 1 else None}


def save_seeds(results):
    """Put one model's results into results/seeds.json, and its test probabilities (seeds, n_test) into
    results/seeds.npz; another model's stay as they are."""
    name, folder = results[0]["name"], utils.OUTPUT / "results"
    settings = {key: value for key, value in results[0]["settings"].items() if key != "seed"}
    entry = {"settings": settings, "data_sha256": utils.SHA256["ship_truck.npz"],
             "seeds": [result["seed"] for result in results]}
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


def sweep_seeds(names, seeds):
    """Train the chosen models with each seed; save after every run, so that a sweep cut short keeps what it has."""
    done = {name: [] for name in names}
    for result in sweep([(name, seed) for name in names for seed in seeds]):
        done[result["name"]].append(result)
        entry = save_seeds(done[result["name"]])
        print(f"{result['name']}, seed {result['seed']}: test {result['test']['accuracy']:.2%}, mean of "
              f"{len(entry['seeds'])}: {entry['test']['mean']:.2%}", flush=True)


def sweep_ladder(names, folds):
    """Judge every step of the notebooks' ladders on each fold; save after every step, to results/ladder.json."""
    path = utils.OUTPUT / "results" / "ladder.json"
    for name in names:
        steps, entries, changes = definitions(name)["LADDER"], [], {}
        tasks = []
        for _, change in steps:
            changes = {**changes, **change}
            tasks += [(name, fold, changes, fold) for fold in folds]
        results = sweep(tasks)
        for step, change in steps:
            found = [next(results) for _ in folds]
            entry = {"step": step, "change": change, "seconds": float(np.mean([result["seconds"] for result in found]))}
            entry |= spread([result["validation"] for result in found])
            if entries:
                entry["gain"] = spread_of_gain(entries[-1]["accuracy"], entry["accuracy"])
            entries.append(entry)
            ladder = utils.read_json(path, "make ladder") if path.is_file() else {}
            utils.save_json(path, ladder | {name: {"folds": list(folds), "steps": entries}})
            print(f"{name}, {step}: {entry['mean']:.2%}, {entry['seconds']:.0f} s", flush=True)


def spread_of_gain(before, after):
    """Return the mean gain, fold by fold, and its standard error (None for one fold)."""
    gains = np.subtract(after, before)
    error = float(gains.std(ddof=1) / len(gains) ** 0.5) if len(gains) > 1 else None
    return {"mean": float(gains.mean()), "standard_error": error}


def check_settings(found, expected, what):
    """Raise ValueError, naming the settings that differ, unless two dicts of settings agree (the seed aside)."""
    different = sorted(key for key in (found | expected).keys() - {"seed"} if found.get(key) != expected.get(key))
    if different:
        key = different[0]
        raise ValueError(f"{what} from other settings ({', '.join(different)}): {key} is {found.get(key)}, "
                         f"expected {expected.get(key)}; make them anew")


def load_seeds(folder):
    """Read the seed sweep in the folder results/: {model: its entry in seeds.json, with "probability" beside}.

    "probability" is (seeds, n_test), of truck; the standard deviation of a single seed is NaN. Raises
    FileNotFoundError, or ValueError where settings differ from those of the model's own run, a seed is repeated, or
    a probability is not a number from 0 to 1.
    """
    folder = Path(folder)
    seeds, place = utils.read_json(folder / "seeds.json", "make seeds"), utils.relative(folder)
    if not (folder / "seeds.npz").is_file():
        raise FileNotFoundError(f"{place}/seeds.npz is missing; `make seeds` makes it")
    with np.load(folder / "seeds.npz") as arrays:
        probabilities = dict(arrays)
    for name, entry in seeds.items():
        settings = utils.load_results(name, folder)["settings"]
        check_settings(entry["settings"], settings, f"{place}/seeds.json: {name} is")
        if len(set(entry["seeds"])) < len(entry["seeds"]):
            raise ValueError(f"{place}/seeds.json repeats a seed of {name}: {entry['seeds']}; "
                             "every seed counts once, run `make seeds`")
        entry["probability"] = probabilities[name]
        if not ((entry["probability"] >= 0) & (entry["probability"] <= 1)).all():
            raise ValueError(f"{place}/seeds.npz holds values for {name} that are no probabilities; "
                             "the network may have diverged, run `make seeds`")
        for split in ("validation", "test"):
            if entry[split]["standard_deviation"] is None:
                entry[split]["standard_deviation"] = float("nan")
    return seeds


def format_ladder(name):
    """Return a model's rungs in the committed results/ladder.json as a table in text.

    A line has the held-out accuracy, mean ± standard deviation over the folds, and the gain over the line above,
    mean ± standard error over the folds.
    """
    ladder = utils.read_json(utils.ROOT / "results" / "ladder.json", "make ladder")[name]
    unknown = float("nan")  # one fold alone has no spread
    lines = [f"{len(ladder['folds'])} folds, {ladder['steps'][0]['n']:,} held-out images each\n",
             f"{'':58} accuracy         gain (points)"]
    for rung in ladder["steps"]:
        line = f"{rung['step']:58} {rung['mean']:.2%} ± {rung['standard_deviation'] or unknown:.2%}"
        if "gain" in rung:
            line += f"  {100 * rung['gain']['mean']:+.2f} ± {100 * (rung['gain']['standard_error'] or unknown):.2f}"
        lines.append(line)
    return "\n".join(lines)


def backend(arguments):
    """Return joblib's context for --dask or --workers."""
    if arguments.dask:
        import dask.distributed  # needed for a cluster only

        dask.distributed.Client(arguments.dask)
        return joblib.parallel_config("dask")
    # Threads do, because each only waits for the process that trains.
    return joblib.parallel_config("threading", n_jobs=arguments.workers)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["seeds", "ladder", "task"])
    parser.add_argument("task", nargs="?", help="for `task`: run()'s arguments as JSON; prints its result as JSON")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--folds", type=int, nargs="+", default=list(range(FOLDS)), choices=range(FOLDS))
    parser.add_argument("--models", nargs="+", choices=NOTEBOOKS, default=list(NOTEBOOKS))
    parser.add_argument("--workers", type=int, default=1, help="processes on this machine")
    parser.add_argument("--dask", metavar="ADDRESS", help="scheduler of a Dask cluster; its workers start in a clone")
    arguments = parser.parse_args()
    if arguments.what == "task":
        with contextlib.redirect_stdout(sys.stderr):
            result = run(*json.loads(arguments.task))
        print(json.dumps(result))
        return
    with backend(arguments):
        if arguments.what == "seeds":
            sweep_seeds(arguments.models, arguments.seeds)
        else:
            sweep_ladder(arguments.models, arguments.folds)


if __name__ == "__main__":
    main()
