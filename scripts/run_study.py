"""Execute the notebooks in place, and compare the new accuracies with the committed ones.

`make run` calls this; `python scripts/run_study.py 04` executes only the notebook whose name begins so. Two notebooks
run side by side where neither needs the other; each is written only after it has run to its end, and only whole.
The exit status is 1 where an accuracy moved by more than its tolerance with the same settings. Where the settings are
others, old and new are shown with what was changed.
"""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import utils
from scripts import experiment

NOTEBOOKS = sorted(path for path in (utils.ROOT / "notebooks").glob("*.ipynb") if re.fullmatch(r"\d\d_\w+", path.stem))
# What each takes from others, in the order in which they are started: first what most has to wait for. 04, which alone
# writes to the README, comes after those whose claims it puts there.
NEEDS = {"03": (), "02": (), "07": ("02", "03"), "06": ("02", "03"), "05": ("02", "03"), "08": ("03", "06", "07"),
         "01": (), "04": ("02", "03", "05", "06", "07")}
TOLERANCE = 0.007  # accuracy: 0.7 points, about what another machine's rounding changes


def committed_results():
    """Return {model: its results} as git has them; as they lie in results/ where there is no git."""
    found = {name: experiment.committed(f"results/{name}.json") for name in utils.LABELS}
    if not any(found.values()):
        print("No git here: the new results are compared with those in results/, which an earlier run may have left.")
        return current_results()
    return {name: json.loads(text) for name, text in found.items() if text}


def current_results():
    """Return {model: its results} as they lie in results/."""
    paths = {name: utils.OUTPUT / "results" / f"{name}.json" for name in utils.LABELS}
    return {name: utils.read_json(path) for name, path in paths.items() if path.is_file()}


def execute(path):
    """Execute one notebook in its own folder and write it back, in the quick profile to scratch/notebooks/."""
    notebook = nbformat.read(path, as_version=4)
    cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    started, done = time.monotonic(), 0

    def show(cell, cell_index):
        nonlocal done
        if cell.cell_type == "code":
            done += 1
            line = f"{path.stem}: cell {done} of {cells}, {time.monotonic() - started:4.0f} s  {cell.source[:200]}"
            print(line.splitlines()[0][:110], flush=True)

    NotebookClient(notebook, timeout=None, kernel_name="python3", record_timing=False, on_cell_start=show,
                   coalesce_streams=True,
                   extra_arguments=["--IPKernelApp.log_level=ERROR"],  # it warns of loopback traffic
                   resources={"metadata": {"path": str(path.parent)}}).execute()
    # The kernel adds its patch version here; without it an unchanged notebook stays an unchanged file.
    notebook.metadata.language_info = {"name": "python"}
    with utils.atomic_write(utils.OUTPUT / "notebooks" / path.name if utils.QUICK else path) as temporary:
        nbformat.write(notebook, temporary)
    print(f"{path.stem}: done in {time.monotonic() - started:.0f} s", flush=True)


def start(path):
    """Begin to execute a notebook in a process of its own; return the process."""
    return subprocess.Popen([sys.executable, __file__, "--execute", path])


def execute_all(paths, at_a_time=2):
    """Execute notebooks, some at a time, each after those among them that it needs.

    The first that fails ends the others, as Ctrl-C does; then SystemExit names it.
    """
    order, names = [*NEEDS, *(path.name[:2] for path in paths)], {path.name[:2] for path in paths}
    waiting, running, done = sorted(paths, key=lambda path: order.index(path.name[:2])), {}, set()
    try:
        while waiting or running:
            ready = [path for path in waiting if set(NEEDS.get(path.name[:2], NEEDS)) & names <= done]
            for path in ready[:at_a_time - len(running)]:
                running[path] = start(path)
                waiting.remove(path)
            ended = [path for path, process in running.items() if process.poll() is not None]
            for path in ended:
                done.add(path.name[:2])
                if running.pop(path).returncode:
                    sys.exit(f"{path.stem} failed; its error stands above, and the notebook is as it was")
            if not ended:
                time.sleep(0.1)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()


def compare(old, new):
    """Print a line an accuracy; return how many are outside the tolerance, or gone, with the settings unchanged."""
    outside = 0
    print(f"\n{'accuracy':34} {'old':>8} {'new':>8}   tolerance {TOLERANCE:.4f}")
    for name in sorted(old | new):
        before, after = old.get(name), new.get(name)
        changed = ""
        if before and after and before["settings"] != after["settings"]:
            changed = utils.differences(after["settings"], before["settings"]) or "another seed"
        for split in ("validation", "test"):
            values = [found[split]["accuracy"] if found else None for found in (before, after)]
            shown = " ".join(f"{'-' if value is None else f'{value:.4f}':>8}" for value in values)
            bad = before is not None and not changed and (after is None or abs(values[1] - values[0]) > TOLERANCE)
            outside += bad
            print(f"{name + ', ' + split:34} {shown}   {changed or ('OUTSIDE' if bad else 'ok')}")
    return outside


def main():
    if sys.argv[1:2] == ["--execute"]:
        execute(Path(sys.argv[2]))
        return
    old, wanted = committed_results(), tuple(sys.argv[1:] or [""])
    chosen = [path for path in NOTEBOOKS if path.name.startswith(wanted)]
    if not chosen:
        sys.exit(f"no notebook begins with {' or '.join(wanted)}; there are {', '.join(p.stem for p in NOTEBOOKS)}")
    execute_all(chosen)
    outside = compare(old, current_results())
    if outside:
        sys.exit(f"{outside} accuracies moved by more than {TOLERANCE} from the committed ones, with the same "
                 "settings; look at what changed before you commit the new ones")


if __name__ == "__main__":
    main()
