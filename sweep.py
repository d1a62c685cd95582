"""Train the chosen models with several seeds: `make seeds`, or `python sweep.py --seeds 0 1 2 --workers 2`.

Models and settings are those of the notebooks: the cells tagged "define" are executed here, so that
each is defined once. The tasks of a sweep are independent of each other; joblib runs them one after
another or in worker processes of this machine (--workers).
"""

import argparse

import utils  # first: it keeps TensorFlow's start-up notes quiet
import joblib
import keras
import nbformat
import numpy as np

NOTEBOOKS = {"three_block_cnn": "02_three_block_cnn", "vgg16_transfer": "03_vgg16_transfer_learning"}


def definitions(name):
    """Execute the cells tagged "define" in a model's notebook; return what they define, by name."""
    notebook = nbformat.read(utils.ROOT / "notebooks" / f"{NOTEBOOKS[name]}.ipynb", as_version=4)
    namespace = {}
    for cell in notebook.cells:
        if "define" in cell.metadata.get("tags", []):
            exec(cell.source, namespace)
    return namespace


def run(name, seed, changes=None):
    """Train one model with one seed, with the notebook's settings or some of them changed.

    Returns {"name", "seed", "validation": score, "test": score, "probability": (n_test,) float32 of truck}.
    """
    study = definitions(name)
    settings = {**study["SETTINGS"], **(changes or {}), "seed": seed}
    training, (x_validation, y_validation), (x_test, y_test) = utils.load_splits()
    if name == "three_block_cnn":
        network, _ = study["train"](settings, training, (x_validation, y_validation))
        model = utils.classifier(network, name)
        validation, test = (model.predict(x, verbose=0) for x in (x_validation, x_test))
    else:
        base = utils.load_vgg16()
        features = [study["features_of"](base, x, settings) for x in (training[0], x_validation, x_test)]
        head, _ = study["train_head"](settings, features[0], training[1], features[1], y_validation)
        validation, test = (study["predict"](head, *views) for views in features[1:])
    keras.backend.clear_session()
    return {"name": name, "seed": seed, "validation": utils.score(y_validation, validation),
            "test": utils.score(y_test, test), "probability": np.asarray(test, np.float32).reshape(-1)}


def sweep(tasks):
    """Run tasks, tuples of run()'s arguments, wherever joblib's active backend puts them; return the
    results in the order of the tasks. Raises ValueError for a task that stands twice."""
    if len({repr(task) for task in tasks}) < len(tasks):
        raise ValueError(f"the sweep repeats a task: {tasks}; every seed counts once")
    return joblib.Parallel()(joblib.delayed(run)(*task) for task in tasks)


def save(results, seeds):
    """Write results/seeds.json and, beside it, the test probabilities (seeds, n_test) as seeds.npz."""
    names = sorted({result["name"] for result in results})
    summary, probabilities = {"seeds": seeds, "data_sha256": utils.SHA256[utils.DATA_FILE.name]}, {}
    for name in names:
        own = [result for result in results if result["name"] == name]
        summary[name] = {"settings": {key: value for key, value in definitions(name)["SETTINGS"].items() if key != "seed"}}
        for split in ("validation", "test"):
            accuracies = [result[split]["accuracy"] for result in own]
            summary[name][split] = {"accuracy": accuracies, "n": own[0][split]["n"], "mean": float(np.mean(accuracies)),
                                    "standard_deviation": float(np.std(accuracies, ddof=1)) if len(own) > 1 else None}
        probabilities[name] = np.stack([result["probability"] for result in own])
    with utils.atomic_write(utils.OUTPUT / "results" / "seeds.npz") as temporary:
        np.savez_compressed(temporary, **probabilities)
    utils.save_json(utils.OUTPUT / "results" / "seeds.json", summary)
    return summary


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--models", nargs="+", choices=NOTEBOOKS, default=list(NOTEBOOKS))
    parser.add_argument("--workers", type=int, default=1, help="processes on this machine")
    arguments = parser.parse_args()
    with joblib.parallel_config("loky", n_jobs=arguments.workers, verbose=10):
        results = sweep([(name, seed) for name in arguments.models for seed in arguments.seeds])
    for name, found in save(results, arguments.seeds).items():
        if name in NOTEBOOKS:
            print(f"{name}: test {found['test']['mean']:.2%}, validation {found['validation']['mean']:.2%}, "
                  f"mean of {len(arguments.seeds)} seeds")


if __name__ == "__main__":
    main()
