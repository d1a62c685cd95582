"""Draw every figure, and fill in the README, from results/: `make figures`. Nothing is trained.

For who has changed a label or a colour. Two runs give the same bytes.
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import utils
from scripts import experiment, run_study

CLAIMS = {"luck": "05_luck_and_leaks", "confidence": "06_confidence_and_errors", "strangers": "07_strangers_and_damage"}
FIGURES = {"calibration": "06_confidence_and_errors", "robustness": "07_strangers_and_damage"}


def fill_in(path, marker, text):
    """Replace what stands between <!-- MARKER --> and <!-- /MARKER --> in a text file, named as seen from the project.

    The quick profile fills in a copy in scratch/. Raises ValueError unless the file holds exactly one such pair.
    """
    target = utils.OUTPUT / path
    copied = target.is_file() and target.stat().st_mtime >= (utils.ROOT / path).stat().st_mtime
    source = target if copied else utils.ROOT / path
    pattern = f"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)"
    old = source.read_text(encoding="utf-8")
    new, found = re.subn(pattern, lambda match: match[1] + text + match[2], old, flags=re.DOTALL)
    if found != 1:
        raise ValueError(f"{path} has {found} pairs of <!-- {marker} --> and <!-- /{marker} -->, expected 1")
    with utils.atomic_write(target) as temporary:
        temporary.write_text(new, encoding="utf-8")


def whose(kept, name, folder=utils.ROOT / "results"):
    """Return what to put behind numbers of a model that a notebook kept: "" if they are of its run in a folder.

    kept: a dict with "settings" and "run" by model, as notebooks 05 to 07 write it.
    """
    results = utils.load_results(name, folder)
    another = " [of another run]" if kept["run"][name] != results["run"] else ""
    return utils.note(kept["settings"][name], results["settings"]) or another


def fill_in_claims():
    """Put what the notebooks 05 to 07 claim into the README: the results of their last run, and of which settings."""
    for marker, notebook in CLAIMS.items():
        fill_in("README.md", marker, "".join(f"- {claim}\n" for claim in utils.definitions(notebook)["claims"]()))


def fill_in_serve():
    """Put what serving was measured to cost into the README, and of which settings the exported model was."""
    results = utils.ROOT / "results"
    found = utils.read_json(results / "serve.json", made_by="make bench-serve")
    note = utils.note(found["settings"], utils.load_results("vgg16_transfer", results)["settings"])
    one, eight = found["one_client_one_core"], found["eight_clients"]
    speed = f"{one['median_ms']} ms a photo on one core" if one else f"{eight['a_second']} photos a second"
    fill_in("README.md", "serve", f"Measured: {speed}, {found['rss_mb'][1]} MB of memory{note}.\n")


def main():
    run_study.execute(next(path for path in run_study.NOTEBOOKS if path.name.startswith("04")))
    utils.set_plot_style()
    for name, notebook in FIGURES.items():
        utils.save_figure(utils.definitions(notebook)[f"plot_{name}"](), name)
    for name in experiment.experiments():
        utils.save_figure(experiment.plot_experiments(name), f"experiments_{name}")


if __name__ == "__main__":
    main()
