"""What a change of settings is worth: `make experiment`, and the log of the training runs in notebooks 02 and 03.

    python scripts/experiment.py vgg16_transfer "hidden_units=64,128,512 dropout=0.3" --workers 2

judges each combination of the values by the same folds inside the training set as the ladder, paired with the
committed settings on the same folds and seeds. No test image is read. The gains go to results/experiments.json, and a
figure of all of them to figures/. What was computed before is not computed again.
"""

import argparse
import ast
import csv
import datetime
import io
import itertools
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import binomtest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import utils
from scripts import sweep

# --- The log -------------------------------------------------------------------------------------

def committed(path):
    """Return the bytes of a file as the last commit has it, None where there is none, or no git."""
    try:
        done = subprocess.run(["git", "show", f"HEAD:./{path}"], cwd=utils.ROOT, capture_output=True)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


COLUMNS = ("when", "model", "changes", "seed", "accuracy", "n", "seconds", "machine", "settings")


def committed_run(name):
    """Return a model's committed results, with "probability" of the validation images; None where there are none."""
    results, arrays = (committed(f"results/{name}{suffix}") for suffix in (".json", ".npz"))
    if not results or not arrays:
        return None
    with np.load(io.BytesIO(arrays)) as file:
        return json.loads(results) | {"probability": file["validation"]}


def committed_settings(name):
    """Return the settings of a model's committed run; those of its notebook where there is none, and in the quick
    profile."""
    settings, run = sweep.definitions(name)["SETTINGS"], committed_run(name)
    if utils.QUICK or run is None:
        return settings
    return {key: run["settings"].get(key, value) for key, value in settings.items()}


def read_log():
    """Return the lines of the log as dicts, the oldest first. Raises ValueError where it has another layout."""
    path = utils.OUTPUT / "results" / "runs.csv"
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        lines = [line for line in csv.DictReader(file) if line.get("when") != "when"]  # two may have begun it
    if any(set(line) != set(COLUMNS) for line in lines):
        raise ValueError(f"{utils.relative(path)} has other columns than {', '.join(COLUMNS)}; move it out of the way")
    return lines


def log_run(name, results, probability, seconds):
    """Add a training run of a notebook to results/runs.csv, its validation probabilities to results/runs/.

    results: as save_results() returns them; probability: (n, 1) or (n,), of truck.
    """
    when = datetime.datetime.now().isoformat(timespec="milliseconds")
    run, validation, settings = committed_run(name), results["validation"], results["settings"]
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}"
    changes = "no commit to compare with" if run is None else utils.differences(settings, run["settings"])
    folder = utils.OUTPUT / "results"
    with utils.atomic_write(folder / "runs" / f"{name}_{when.replace(':', '')}.npy") as temporary:
        np.save(temporary, np.ravel(probability))
    line = io.StringIO(newline="")
    writer = csv.writer(line)
    if not read_log():
        writer.writerow(COLUMNS)
    writer.writerow((when, name, changes, settings["seed"], validation["accuracy"], validation["n"], round(seconds, 1),
                     machine, json.dumps(settings)))
    with open(folder / "runs.csv", "a", encoding="utf-8", newline="") as file:
        file.write(line.getvalue())  # at once: the other notebook may write as well


def mcnemar(y, probability, other):
    """Return (difference in right answers, exact p of McNemar's test) between two models on the same images."""
    right, before = ((np.ravel(p) >= 0.5) == y for p in (probability, other))
    gained, lost = int((right & ~before).sum()), int((before & ~right).sum())
    return gained - lost, binomtest(gained, gained + lost).pvalue if gained + lost else 1.0


def format_log(name, last=8):
    """Return the last runs of a model beside the committed one as a table in text, and how often the test was read."""
    run, lines = committed_run(name), [line for line in read_log() if line["model"] == name]
    y = utils.load_splits()[1][1]
    rows = [("run", "validation", "images", "p", "seconds", "what was changed")]
    if run:
        rows.append(("the committed one", "{accuracy:.2%} of {n:,}".format(**run["validation"]), "", "", "", ""))
    for line in lines[-last:]:
        path = utils.OUTPUT / "results" / "runs" / f"{name}_{line['when'].replace(':', '')}.npy"
        images = p = "-"  # where the images are others, or the probabilities are gone
        if run and path.is_file() and len(run["probability"]) == len(y) == int(line["n"]):
            difference, p = mcnemar(y, np.load(path), run["probability"])
            images, p = f"{difference:+d}", f"{p:.2g}"
        changed = (utils.differences(json.loads(line["settings"]), run["settings"]) or "nothing") if run else line["changes"]
        rows.append((line["when"][:19].replace("T", " "), f"{float(line['accuracy']):.2%} of {int(line['n']):,}", images, p,
                     line["seconds"], changed + (f", seed {line['seed']}" if line["seed"] != "0" else "")))
    widths = [max(map(len, column)) for column in zip(*rows)]
    table = "\n".join("  ".join(part.ljust(width) for part, width in zip(row, widths)).rstrip() for row in rows)
    times = len(lines) + bool(run)
    return (f"{table}\n\nIn this clone the test set has been read {times} time{'s' if times != 1 else ''} for this "
            f"model: {'once for the committed run, ' if run else ''}{len(lines)} by the runs in results/runs.csv.")


# --- By folds ------------------------------------------------------------------------------------


def parse_changes(text, settings, possible):
    """Turn "a=1,2 b=0.5" into the combinations [{"a": 1, "b": 0.5}, {"a": 2, "b": 0.5}].

    settings: the present ones; possible: the notebook's POSSIBLE. Raises ValueError, listing all settings with their
    present values, for a name that is none of them or stands twice, and for a combination that is not possible.
    """
    there = "there are " + ", ".join(f"{name}={value}" for name, value in settings.items() if name != "seed")
    values = {}
    for part in text.split():
        name, _, listed = part.partition("=")
        if name not in settings or name == "seed" or not listed:
            raise ValueError(f"{part!r} is not of the form name=value or names no setting; {there}")
        if name in values:
            raise ValueError(f"{name} stands twice; write {name}=value,value; {there}")
        try:
            found = ast.literal_eval(f"[{listed}]")
        except (ValueError, SyntaxError):
            found = [{"true": True, "false": False}.get(word.lower(), word) for word in listed.split(",")]
        if isinstance(settings[name], str):
            found = listed.split(",")
        values[name] = list(dict.fromkeys(found)) if not isinstance(settings[name], list) else found
    if not values:
        raise ValueError(f'say what to change, as in SET="name=value,value name=value"; {there}')
    combinations = [dict(zip(values, combination)) for combination in itertools.product(*values.values())]
    for changes in combinations:
        try:
            sweep.check_settings(settings | changes, possible)
        except ValueError as error:
            raise ValueError(f"{error}; {there}") from None
    return [changes for changes in combinations if settings | changes != settings]


def experiments():
    """Return {model: its entries} of results/experiments.json, {} where there is none yet."""
    path = utils.OUTPUT / "results" / "experiments.json"
    return utils.read_json(path, "make experiment") if path.is_file() else {}


def experiment(name, combinations, folds, submit=None):
    """Judge combinations of changed settings against the committed ones; save them to results/experiments.json.

    Returns the entries {"changes", "folds", "n", "accuracy", "base", "base_settings", "gain", "seconds"}, one a
    combination, in which "base" are the accuracies with the committed settings.
    """
    settings = committed_settings(name)
    tasks = [sweep.new_task(name, fold, settings | changes, fold) for changes in [{}, *combinations] for fold in folds]
    results = sweep.sweep(tasks, submit)
    base, *others = [results[start:start + len(folds)] for start in range(0, len(results), len(folds))]
    entries = []
    for changes, found in zip(combinations, others):
        before, after = ([result["validation"]["accuracy"] for result in part] for part in (base, found))
        entries.append({"changes": changes, "folds": list(folds), "n": found[0]["validation"]["n"],
                        "base_settings": sweep.without_seed(settings),
                        "base": before, "accuracy": after, "gain": sweep.gain_of(before, after),
                        "seconds": round(float(np.mean([result["seconds"] for result in found])), 1)})
    kept = experiments()
    new = [(entry["changes"], entry["base_settings"], entry["folds"]) for entry in entries]
    old = [entry for entry in kept.get(name, [])
           if (entry["changes"], entry["base_settings"], entry["folds"]) not in new]
    utils.save_json(utils.OUTPUT / "results" / "experiments.json", kept | {name: old + entries})
    return entries


def label(changes):
    """Return changes as a short label: "hidden_units 512, dropout 0.3"."""
    return ", ".join(f"{name} {value}" for name, value in changes.items())


def plot_experiments(name):
    """Draw all experiments of a model in results/experiments.json against the committed run; return the figure."""
    entries = experiments()[name]
    base = entries[-1]["base_settings"]  # what was compared with other settings is another story
    entries = sorted((entry for entry in entries if entry["base_settings"] == base), key=lambda e: e["gain"]["mean"])
    note = utils.note(base, sweep.without_seed(committed_settings(name))).replace(" [", "\n[")
    figure, axis = plt.subplots(figsize=(9, 1.4 + 0.45 * len(entries)))
    for row, entry in enumerate(entries):
        gain = entry["gain"]
        low, high = gain["interval95"] or (gain["mean"], gain["mean"])
        axis.plot([100 * low, 100 * high], [row, row], color=utils.COLOURS[name], alpha=0.5)
        axis.plot(100 * gain["mean"], row, "o", color=utils.COLOURS[name])
    axis.axvline(0, color="black", linewidth=1)
    labels = [f"{label(entry['changes'])} ({len(entry['folds'])} folds)" for entry in entries]
    axis.set(yticks=range(len(entries)), yticklabels=labels,
             ylim=(-0.6, len(entries) - 0.4), xlabel="gain over the committed settings (points); 95 % interval",
             title=f"{utils.LABELS[name]}: what changes of settings are worth{note}")
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=sweep.NOTEBOOKS)
    parser.add_argument("changes", help='such as "hidden_units=64,128 dropout=0.3"')
    parser.add_argument("--folds", type=int, nargs="+", choices=range(sweep.FOLDS))
    sweep.add_backend_arguments(parser)
    arguments = parser.parse_args()
    try:
        settings, possible = committed_settings(arguments.model), sweep.definitions(arguments.model)["POSSIBLE"]
        combinations = parse_changes(arguments.changes, settings, possible)
        if not combinations:
            sys.exit("these are the committed settings; there is nothing to compare with them")
        run = committed_run(arguments.model)
        if run and (other := utils.differences(settings, run["settings"])) and not utils.QUICK:
            print(f"The committed run has other settings than the notebook knows; taken from the notebook: {other}")
        folds = arguments.folds or sweep.LADDER_FOLDS[arguments.model]
        with sweep.backend(arguments) as submit:
            entries = experiment(arguments.model, combinations, folds, submit)
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(str(error))
    first = entries[0]
    print(f"\n{len(folds)} folds, {first['n']:,} held-out images each; gain in points over the committed settings, "
          f"which have {np.mean(first['base']):.2%}")
    for entry in entries:
        print(f"{label(entry['changes'])}: {np.mean(entry['accuracy']):.2%}, {sweep.format_gain(entry['gain'])}")
    utils.set_plot_style()
    utils.save_figure(plot_experiments(arguments.model), f"experiments_{arguments.model}")


if __name__ == "__main__":
    main()
