"""What several test files share: images, the notebooks, what one of them defines."""

import nbformat
import numpy as np

from scripts.run_study import NOTEBOOKS

PATIENCE = 120_000  # milliseconds: a busy machine takes long to load a model, and that is no mistake


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
