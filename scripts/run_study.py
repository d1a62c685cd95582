"""Execute the notebooks in place, and compare the new accuracies with the committed ones: `make run`.

`python scripts/run_study.py 04` executes only the notebooks whose names begin so. Two run side by side where neither
needs the other; each is written only after it has run to its end, and only whole. The exit status is 1 where an
accuracy moved by more than TOLERANCE with the same settings.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import joblib
import nbformat
from nbclient import NotebookClient

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import utils

# The study's own; a reader may add others.
NOTEBOOKS = tuple(
    utils.ROOT / "notebooks" / f"{name}.ipynb"
    for name in (
        "01_data_extraction",
        "02_three_block_cnn",
        "03_vgg16_transfer_learning",
        "04_learning_curves",
        "05_luck_and_leaks",
        "06_confidence_and_errors",
        "07_strangers_and_damage",
        "08_photographs",
    )
)
# What each stage needs is made by those before it, and what takes longest is started first. Other notebooks, a
# reader's own, come last, one after another.
STAGES = (("03", "02", "01"), ("07", "06", "05", "04"), ("08",))
TOLERANCE = 0.007  # accuracy: 0.7 points, about what rounding changes, another machine's or in another precision


def execute(path):
    """Execute one notebook in its own folder and write it back, in the quick profile to scratch/notebooks/."""
    notebook = nbformat.read(path, as_version=4)
    cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    started, done = time.monotonic(), 0

    def show(cell, cell_index):
        nonlocal done
        if cell.cell_type == "code":
            done += 1
            seconds = time.monotonic() - started
            line = f"{path.stem}: cell {done} of {cells}, {seconds:4.0f} s  {cell.source.partition(chr(10))[0]}"
            print(line[:110], flush=True)

    NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        record_timing=False,
        on_cell_start=show,
        coalesce_streams=True,
        extra_arguments=["--IPKernelApp.log_level=ERROR"],  # it warns of loopback traffic
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    # The kernel adds its patch version here; without it an unchanged notebook stays an unchanged file.
    notebook.metadata.language_info = {"name": "python"}
    with utils.atomic_write(utils.OUTPUT / "notebooks" / path.name if utils.QUICK else path) as temporary:
        nbformat.write(notebook, temporary)
    print(f"{path.stem}: done in {time.monotonic() - started:.0f} s", flush=True)


def execute_all(paths):
    """Execute notebooks stage by stage, each in a process of its own. Ends the program after a stage in which some
    failed, with their names."""
    stages = [[path for number in stage for path in paths if path.name.startswith(number)] for stage in STAGES]
    stages += [[path] for path in paths if path not in sum(stages, [])]
    for stage in stages:
        commands = [[sys.executable, __file__, "--execute", path] for path in stage]
        parallel = joblib.Parallel(n_jobs=2, backend="threading")  # a thread only waits for its process
        done = parallel(joblib.delayed(subprocess.run)(command) for command in commands)
        failed = [path.stem for path, process in zip(stage, done, strict=True) if process.returncode]
        if failed:
            sys.exit(f"{', '.join(failed)} failed; the error stands above, and the notebook is as it was")


def committed_results():
    """Return {model: its results} as git has them, or as they lie in results/ where git can't show them."""
    try:
        return {name: utils.committed_results(name) for name in utils.LABELS}
    except RuntimeError as error:
        print(f"{error}\nThe new results are compared with those in results/, which an earlier run may have left.")
        return current_results()


def current_results():
    """Return {model: its results} as they lie in results/."""
    paths = {name: utils.OUTPUT / "results" / f"{name}.json" for name in utils.LABELS}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.is_file()}


def compare(old, new):
    """Print a line an accuracy; return how many are outside the tolerance, or gone, with the settings unchanged."""
    outside = 0
    print(f"\n{'accuracy':34} {'old':>8} {'new':>8}   tolerance {TOLERANCE:.4f}")
    for name in sorted(old | new):
        before, after = old.get(name), new.get(name)
        changed = note = ""
        if before and after and before["settings"] != after["settings"]:
            changed = utils.differences(after["settings"], before["settings"]) or "another seed"
        in_32 = "float32"  # in what results were made that don't say so
        if before and after and before.get("precision", in_32) != after.get("precision", in_32):
            note = f", in {after.get('precision', in_32)} (was {before.get('precision', in_32)})"
        for split in ("validation", "test"):
            values = [results[split]["accuracy"] if results else None for results in (before, after)]
            shown = " ".join(f"{'-' if value is None else f'{value:.4f}':>8}" for value in values)
            bad = before is not None and not changed and (after is None or abs(values[1] - values[0]) > TOLERANCE)
            outside += bad
            print(f"{name + ', ' + split:34} {shown}   {changed or ('OUTSIDE' if bad else 'ok')}{note}")
    return outside


def main():
    if sys.argv[1:2] == ["--execute"]:
        execute(Path(sys.argv[2]))
        return
    beginnings = tuple(sys.argv[1:] or [""])
    notebooks = sorted((utils.ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    chosen = [path for path in notebooks if path.name.startswith(beginnings)]
    if not chosen:
        names = ", ".join(path.stem for path in notebooks)
        sys.exit(f"no notebook begins with {' or '.join(beginnings)}; there are {names}")
    old = committed_results()
    execute_all(chosen)
    outside = compare(old, current_results())
    if outside:
        sys.exit(
            f"{outside} accuracies moved by more than {TOLERANCE} from the committed ones, with the same settings; "
            "look at what changed before you commit the new ones"
        )


if __name__ == "__main__":
    main()
