"""What several test files share: images, a notebook's definitions, copies of the project."""

import shutil
import subprocess

import nbformat
import numpy as np

import utils
from scripts.run_study import NOTEBOOKS

PATIENCE = 120_000  # milliseconds: a busy machine takes long to load a model or to start a kernel, and is no mistake


def some_images(n, classes=10, seed=0):
    """Return n random images (n, 32, 32, 3) uint8, and labels that take turns."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (n, 32, 32, 3), np.uint8), (np.arange(n) % classes).astype(np.uint8)


def defined_in(number, *names, **already):
    """Execute those cells of a notebook that define some functions or classes; return all that is then defined.

    number: "02", say; already: what they use, and the notebook would have imported or defined before.
    """
    path = next(path for path in NOTEBOOKS if path.name.startswith(number))
    beginnings = tuple(f"{word} {name}" for name in names for word in ("def", "class"))
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code" and any(line.startswith(beginnings) for line in cell.source.splitlines()):
            exec(cell.source, already)
    assert set(names) <= already.keys(), f"{path.name} defines no {set(names) - already.keys()}"
    return already


def git(folder, *command):
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", *command]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def copy_project(folder):
    """Copy notebooks, scripts, results and README into a folder, with a link to the data, and commit all; return it."""
    folder.mkdir()
    for name in ("utils.py", "photo.py", "README.md", ".gitignore"):
        shutil.copy(utils.ROOT / name, folder)
    for name in ("notebooks", "scripts", "results"):
        shutil.copytree(utils.ROOT / name, folder / name, ignore=shutil.ignore_patterns("runs", "__pycache__", ".*"))
    (folder / "data").symlink_to(utils.ROOT / "data")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "as it was"]):
        git(folder, *command)
    return folder
