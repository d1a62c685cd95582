"""Try the exercises that close the notebooks 01 and 04 to 08, and keep what came out in results/exercises.json.

    python scripts/exercises.py 01 05

Each exercise is a change of a line or two. It is made in a copy of the project, where the notebook then runs to its
end; what the cell to watch printed before (in the committed notebook) and prints now is kept. The exercises of 02
and 03 are experiments by folds: `make experiment` tries them and keeps what came out in results/experiments.json.
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

# notebook: [(what is changed, {old source: new source}, the first line of the cell to watch)]
EXERCISES = {}


def changed(notebook, replacements):
    """Replace source text in a notebook. Raises ValueError unless each old text stands in it exactly once."""
    for old, new in replacements.items():
        cells = [cell for cell in notebook.cells if cell.cell_type == "code" and old in cell.source]
        if len(cells) != 1 or cells[0].source.count(old) != 1:
            raise ValueError(f"{old!r} stands in {len(cells)} cells of the notebook, expected once in one")
        cells[0].source = cells[0].source.replace(old, new)
    return notebook


def shown(notebook, first_line):
    """Return the text that the cell with this first line shows."""
    cell, = (cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.splitlines()[:1] == [first_line])
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def attempt(path, replacements, first_line):
    """Run a changed notebook in a copy of the project; return what the watched cell shows, before and after."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for item in ("notebooks", "scripts", "service", "results", "models", "utils.py", "photo.py", "README.md"):
            here = utils.ROOT / item
            shutil.copytree(here, copy / item) if here.is_dir() else shutil.copy(here, copy)
        for item in ("data", "cache"):
            (utils.ROOT / item).mkdir(exist_ok=True)
            (copy / item).symlink_to(utils.ROOT / item)
        notebook = nbformat.read(path, as_version=4)
        before, there = shown(notebook, first_line), copy / "notebooks" / path.name
        nbformat.write(changed(notebook, replacements), there)
        started = time.monotonic()
        subprocess.run([sys.executable, copy / "scripts" / "run_study.py", path.stem], cwd=copy, check=True,
                       stdout=subprocess.DEVNULL)
        return {"before": before, "after": shown(nbformat.read(there, as_version=4), first_line),
                "seconds": round(time.monotonic() - started)}


def main():
    wanted = tuple(sys.argv[1:] or [""])
    for path in run_study.NOTEBOOKS:
        if not path.name.startswith(wanted):
            continue
        for what, replacements, first_line in EXERCISES.get(path.stem, []):
            print(f"{path.stem}: {what}", flush=True)
            found = attempt(path, replacements, first_line)
            print(f"{found['before']}    became, in {found['seconds']} s,\n{found['after']}", flush=True)
            kept_in = utils.OUTPUT / "results" / "exercises.json"
            kept = utils.read_json(kept_in) if kept_in.is_file() else {}
            kept[path.stem] = kept.get(path.stem, {}) | {what: found}
            utils.save_json(kept_in, kept)


if __name__ == "__main__":
    main()
