"""Execute the notebooks in order, in place, and compare the new metrics with those found before.

`make run` calls this; `python scripts/run_study.py 04` executes only the notebook whose name begins so.
Each notebook is written only after it has run to its end, and only whole.
The exit status is 1 where a metric moved by more than its tolerance.
"""

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import utils

NOTEBOOKS = sorted((utils.ROOT / "notebooks").glob("[0-9]*.ipynb"))
TOLERANCE = 0.007  # accuracy: 0.7 points, about what another machine's rounding changes


def read_metrics():
    """Return {"NAME SPLIT accuracy": value} over the results of the three networks; empty where there are none."""
    metrics = {}
    for name in utils.LABELS:
        path = utils.OUTPUT / "results" / f"{name}.json"
        if path.is_file():
            results = utils.read_json(path)
            metrics |= {f"{name} {split} accuracy": results[split]["accuracy"] for split in ("validation", "test")}
    return metrics


def execute(path):
    """Execute one notebook in its own folder and write it back; a line on the terminal shows the cell."""
    notebook = nbformat.read(path, as_version=4)
    cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    started, done = time.monotonic(), 0

    def show(cell, cell_index):
        nonlocal done
        if cell.cell_type == "code":
            done += 1
            first_line = cell.source.splitlines()[0] if cell.source else ""
            line = f"{path.stem}: cell {done} of {cells}, {time.monotonic() - started:4.0f} s  {first_line}"
            print(f"\r{line[:110]:110}" if sys.stdout.isatty() else line[:110], end="" if sys.stdout.isatty() else "\n",
                  flush=True)

    NotebookClient(notebook, timeout=None, kernel_name="python3", record_timing=False, on_cell_start=show,
                   coalesce_streams=True,
                   extra_arguments=["--IPKernelApp.log_level=ERROR"],  # it warns of loopback traffic
                   resources={"metadata": {"path": str(path.parent)}}).execute()
    # The kernel adds its patch version here; without it an unchanged notebook stays an unchanged file.
    notebook.metadata.language_info = {"name": "python"}
    with utils.atomic_write(path) as temporary:
        nbformat.write(notebook, temporary)
    print(f"\n{path.stem}: done in {time.monotonic() - started:.0f} s", flush=True)


def compare(old, new):
    """Print a line a metric and return how many are outside the tolerance or gone."""
    outside = 0
    print(f"\n{'metric':40} {'old':>8} {'new':>8}   tolerance {TOLERANCE:.4f}")
    for name in sorted(old | new):
        before, after = old.get(name), new.get(name)
        bad = before is not None and (after is None or abs(after - before) > TOLERANCE)
        outside += bad
        print(f"{name:40} {'-' if before is None else f'{before:.4f}':>8} {'-' if after is None else f'{after:.4f}':>8}"
              f"   {'OUTSIDE' if bad else 'ok'}")
    return outside


def main():
    old, wanted = read_metrics(), tuple(sys.argv[1:] or [""])
    chosen = [path for path in NOTEBOOKS if path.name.startswith(wanted)]
    if not chosen:
        sys.exit(f"no notebook begins with {' or '.join(wanted)}; there are {', '.join(p.stem for p in NOTEBOOKS)}")
    for path in chosen:
        execute(path)
    outside = compare(old, read_metrics())
    if outside:
        sys.exit(f"{outside} metrics moved by more than {TOLERANCE}: results/ as found are in git; "
                 "look at what changed before you commit the new ones")


if __name__ == "__main__":
    main()
