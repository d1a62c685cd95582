"""Try the exercises that close the notebooks 01 and 04 to 08, and keep what came out in results/exercises.json.

    python scripts/exercises.py 01 05

Each exercise is a change of a line or two. It is made in a copy of the project, where the notebook then runs to its
end; what the cell to watch printed before (in the notebook as it is) and prints now is kept, and which figures changed.
The exercises of 02 and 03 are experiments by folds: `make experiment` tries them and keeps what came out in
results/experiments.json.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import utils
from scripts import run_study

# notebook: [(what is changed, {old source: new source}, a text in the cell to watch, None for figures alone)]
EXERCISES = {
    "01_data_extraction": [
        ("the mean colours of 4x4 patches in place of the image's", {
            "colours = x_train.mean(axis=(1, 2)) / 255":
            "colours = x_train.reshape(-1, 4, 8, 4, 8, 3).mean(axis=(2, 4)).reshape(-1, 48) / 255"}, "three mean colours"),
        ("three tenths of the images for validation", {
            "utils.split_indices(y_train)": "utils.split_indices(y_train, validation_fraction=0.3)"},
         "three mean colours")],
    "04_learning_curves": [
        ("the claims 97.5 % and 98.5 %", {'{"three_block_cnn": 0.80, "vgg16_transfer": 0.97}':
                                          '{"three_block_cnn": 0.975, "vgg16_transfer": 0.985}'}, "whole interval above"),
        ("time on a linear axis", {'axis.set(xscale="log",': 'axis.set(xscale="linear",'}, None)],
    "05_luck_and_leaks": [
        ("images drawn anew, but not seeds", {
            "right[name][random.integers(0, len(right[name]), len(right[name]))]": "right[name]"}, "resampled = ["),
        ("no shifts when details are compared", {"most=3": "most=0"}, "TWIN = ")],
    "06_confidence_and_errors": [
        ("the temperature fitted on the test set", {
            'fit_temperature(y_validation, results[name]["probability"]["validation"])':
            "fit_temperature(y_test, probability[name])"}, "right, temperature"),
        ("a middle of 24x24 pixels", {"middle[8:24, 8:24]": "middle[4:28, 4:28]"}, "middle covered")],
    "07_strangers_and_damage": [
        ("C = 1 in the rule", {"LogisticRegression(C=0.001,": "LogisticRegression(C=1,"}, "choice = {"),
        ("a tenth of the validation images refused", {'np.quantile(found["validation"], 0.98)':
                                                      'np.quantile(found["validation"], 0.9)'}, 'abstention = {"choice"')],
    "08_photographs": [
        ("photographs of 2:1", {'{"wide, 3:2": (32, 21), "tall, 2:3": (21, 32)}':
                                '{"wide, 2:1": (32, 16), "tall, 1:2": (16, 32)}'}, "def judge("),
        ("a third of the noise", {"random.normal(0, 30,": "random.normal(0, 10,"}, "REDUCTIONS = ")]}


def changed(notebook, replacements):
    """Replace source text in a notebook. Raises ValueError unless each old text stands in it exactly once."""
    for old, new in replacements.items():
        cells = [cell for cell in notebook.cells if cell.cell_type == "code" and old in cell.source]
        if len(cells) != 1 or cells[0].source.count(old) != 1:
            raise ValueError(f"{old!r} stands in {len(cells)} cells of the notebook, expected once in one")
        cells[0].source = cells[0].source.replace(old, new)
    return notebook


def shown(notebook, text):
    """Return the lines that the code cell with a text in its source prints. Raises ValueError unless just one has it."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and text in cell.source]
    if len(cells) != 1:
        raise ValueError(f"{text!r} stands in {len(cells)} cells of the notebook, expected one")
    text = "".join(output.text for output in cells[0].outputs if output.get("name") == "stdout")
    return [line for line in text.splitlines() if not line.startswith("[")]  # without progress bars


def figures_in(folder):
    return {path.stem: path.read_bytes() for path in (folder / "figures").glob("*.svg")}


def attempt(path, replacements, watched):
    """Run a changed notebook in a copy of the project; return what came out."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for item in ("notebooks", "scripts", "service", "results", "models", "figures"):
            shutil.copytree(utils.ROOT / item, copy / item)
        for item in ("utils.py", "photo.py", "README.md"):
            shutil.copy(utils.ROOT / item, copy)
        for item in ("data", "cache"):
            (utils.ROOT / item).mkdir(exist_ok=True)
            (copy / item).symlink_to(utils.ROOT / item)
        notebook, there = nbformat.read(path, as_version=4), copy / "notebooks" / path.name
        before, figures = shown(notebook, watched) if watched else [], figures_in(copy)
        nbformat.write(changed(notebook, replacements), there)
        started = time.monotonic()
        subprocess.run([sys.executable, copy / "scripts" / "run_study.py", path.stem], cwd=copy, check=True,
                       stdout=subprocess.DEVNULL)
        after = shown(nbformat.read(there, as_version=4), watched) if watched else []
        return {"before": before, "after": after, "seconds": round(time.monotonic() - started),
                "figures": sorted(name for name, found in figures_in(copy).items() if found != figures.get(name))}


def main():
    kept_in, wanted = utils.OUTPUT / "results" / "exercises.json", tuple(sys.argv[1:] or [""])
    if utils.QUICK or not any(name.startswith(wanted) for name in EXERCISES):
        sys.exit(f"exercises are done in the full profile, in {', '.join(name[:2] for name in EXERCISES)}")
    for path in run_study.NOTEBOOKS:
        for what, replacements, watched in EXERCISES.get(path.stem, []) if path.name.startswith(wanted) else []:
            print(f"{path.stem}: {what}", flush=True)
            found = attempt(path, replacements, watched)
            print(*found["before"], f"became, in {found['seconds']} s,", *found["after"], *found["figures"], sep="\n    ",
                  flush=True)
            kept = utils.read_json(kept_in) if kept_in.is_file() else {}
            utils.save_json(kept_in, kept | {path.stem: kept.get(path.stem, {}) | {what: found}})


if __name__ == "__main__":
    main()
