"""Execute the notebooks in place, then compare their accuracies with what the committed seeds allow: `make run`.

`python scripts/run_study.py 04` executes only the notebooks whose names begin so. A notebook is written only after it
has run to its end, and only whole. The exit status is 1 where an accuracy lies outside what the seeds allow.
"""

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import filelock
import joblib
import nbformat
import numpy as np
from nbclient import NotebookClient

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import utils

# Each stage needs those before it. 02 and 03 have the machine to themselves, since their times are results.
STAGES = (
    ("02_three_block_cnn",),
    ("03_vgg16_transfer_learning",),
    (
        "07_other_and_damaged_images",
        "06_confidence_and_errors",
        "05_luck_and_leaks",
        "04_learning_curves",
        "01_data_extraction",
        "09_the_last_percent",
        "10_repair_the_lab",
        "solutions/10_repair_the_lab",
    ),
    ("08_photographs",),
)
NOTEBOOKS = sorted(utils.ROOT / "notebooks" / f"{name}.ipynb" for name in sum(STAGES, ()))  # of the study
SEEDS = {"original_network": "cnn_seeds", "three_block_cnn": "cnn_seeds", "vgg16_transfer": "vgg16_seeds"}


def execute(path):
    """Execute one notebook in its own folder and write it back."""
    notebook = nbformat.read(path, as_version=4)
    cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    started, done = time.monotonic(), 0

    def show(cell, cell_index):
        nonlocal done
        if cell.cell_type == "code":
            done += 1
            line = f"{path.stem}: cell {done} of {cells}, {time.monotonic() - started:4.0f} s"
            print(f"{line}  {cell.source.partition(chr(10))[0]}"[:110], flush=True)

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
    with utils.atomic_write(path) as temporary:
        nbformat.write(notebook, temporary)
    print(f"{path.stem}: done in {time.monotonic() - started:.0f} s", flush=True)


@contextlib.contextmanager
def alone():
    """Keep a second run out of this folder, whose results would mix with ours. Ends the program where one is under way."""
    try:
        with filelock.FileLock(utils.CACHE / "running.lock", timeout=0):
            yield
    except filelock.Timeout:
        sys.exit("another run is under way in this folder; wait until it has ended, or work in a second clone")


def execute_all(paths):
    """Execute notebooks stage by stage, two at a time, each in a process of its own. Ends the program after a stage in
    which some failed, with their names."""
    for stage in STAGES:
        stage = [path for name in stage for path in paths if path.stem == name]
        commands = [[sys.executable, __file__, "--execute", path] for path in stage]
        parallel = joblib.Parallel(n_jobs=2, backend="threading")  # a thread only waits for its process
        done = parallel(joblib.delayed(subprocess.run)(command) for command in commands)
        failed = [path.stem for path, process in zip(stage, done) if process.returncode]
        if failed:
            sys.exit(f"{', '.join(failed)} failed; the error stands above, and the notebook is as it was")


def allowed(accuracies):
    """Return (lowest, highest): the mean of some seeds ± 4 standard deviations, at least ± 0.3 points."""
    margin = max(4 * np.std(accuracies, ddof=1), 0.003)
    return np.mean(accuracies) - margin, np.mean(accuracies) + margin


def compare(results, seeds):
    """Print a line an accuracy; return how many lie outside what the seeds allow, where the settings are theirs.

    results: {network: its result}; seeds: {network: the results of its seeds}.
    """
    outside = 0
    for name, result in results.items():
        same = [
            {key: value for key, value in each.get("settings", {}).items() if key != "seed"}
            for each in (result, seeds[name][0])
        ]
        for split in ("validation", "test") if "validation" in result else ("test",):
            low, high = allowed([run[split]["accuracy"] for run in seeds[name]])
            accuracy = result[split]["accuracy"]
            verdict = "ok" if low <= accuracy <= high else "OUTSIDE"
            verdict = verdict if same[0] == same[1] else "other settings than the seeds'"
            outside += verdict == "OUTSIDE"
            print(f"{name + ', ' + split:28} {accuracy:.2%}   seeds allow {low:.2%} to {high:.2%}   {verdict}")
    return outside


def main():
    if sys.argv[1:2] == ["--execute"]:
        execute(Path(sys.argv[2]))
        return
    beginnings = tuple(sys.argv[1:] or [""])
    chosen = [path for path in NOTEBOOKS if path.name.startswith(beginnings)]
    if not chosen:
        names = ", ".join(path.stem for path in NOTEBOOKS)
        sys.exit(f"no notebook of the study begins with {' or '.join(beginnings)}; there are {names}")
    try:
        with alone():
            execute_all(chosen)
    except KeyboardInterrupt:
        sys.exit("stopped; the notebooks that had ended are written, the others are as they were")
    results = {name: utils.load_result(name) for name in SEEDS}
    outside = compare(results, {name: utils.load_result(file)[name] for name, file in SEEDS.items()})
    if outside:
        sys.exit(f"{outside} accuracies lie outside what the seeds allow; look at what changed before you commit them")


if __name__ == "__main__":
    main()
