"""Say whether the committed results, notebooks and README belong together: `make check-results`.

Tests judge code; this judges what runs have left. It lists what to run where a file in results/ was made by another run
than those now there, where the README's table or a notebook does not show what results/ holds, and where a notebook was
not run from top to bottom. The exit status is 1 where there is anything to do.
"""

import contextlib
import io
import sys
from pathlib import Path

import nbformat

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import utils
from scripts.run_study import NOTEBOOKS

RESULTS = utils.ROOT / "results"
RUN = ".venv/bin/python scripts/run_study.py"


def printed(function, *arguments):
    """Return the lines that a function prints, and what it returns."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        value = function(*arguments)
    return said.getvalue().splitlines(), value


def complaints_of_results():
    """Yield what load_results() says of each file, where it was made by another run or can't be read."""
    for name in utils.MADE_BY:
        if name == "experiments" and not (RESULTS / "experiments.json").is_file():
            continue
        try:
            said, results = printed(utils.load_results, name, RESULTS)
            yield from said
            if name in utils.LABELS and len(results["history"]["loss"]) != results["settings"]["epochs"]:
                yield f"results/{name}.json holds the learning curves of another run: {utils.MADE_BY[name]}"
        except (OSError, ValueError) as error:
            yield str(error)


def complaints_of_notebooks():
    """Yield which of the notebooks were not executed from top to bottom, or show an error or a warning."""
    for path in NOTEBOOKS:
        code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        outputs = [output for cell in code for output in cell.outputs]
        if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
            yield f"{path.name} was not executed from top to bottom: {RUN} {path.name[:2]}"
        if any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs):
            yield f"{path.name} shows an error or a warning: mend its cause and run it again"


def shown(number):
    """Return all text in the outputs of a notebook, its tables included."""
    path = next(path for path in NOTEBOOKS if path.name.startswith(number))
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    return "".join(output.get("text", "") + output.get("data", {}).get("text/markdown", "") for output in outputs)


def complaints_of_numbers():
    """Yield which notebooks, the README's table among them, don't show the numbers in results/."""
    names = (*utils.LABELS, "seeds", "ladder", "controls", "finetuning")
    load = {name: printed(utils.load_results, name, RESULTS)[1] for name in names}
    expected = {"02": [], "03": [], "04": [], "05": []}
    for name, number in (("baseline_2021", "02"), ("three_block_cnn", "02"), ("vgg16_transfer", "03")):
        expected[number].append(utils.format_score(load[name]["test"]))
        expected["04"].append(f"{utils.LABELS[name]} | **{load[name]['test']['accuracy']:.2%}**")
        if name in load["ladder"]:
            expected[number] += printed(utils.print_ladder, load["ladder"][name])[0]
        if name in load["controls"]:
            expected[number] += printed(utils.print_controls, load["controls"][name])[0]
        if name in load["seeds"]:
            seeds = utils.format_seeds(load["seeds"][name]["test"])
            expected["04"].append(seeds)
            expected["05"].append(seeds)
    finetuning = load["finetuning"]["vgg16_transfer"]
    expected["03"] += printed(utils.print_ladder, [finetuning["frozen"], finetuning["tuned"]])[0]
    expected["04"].append(f"fine-tuned | **{finetuning['test']['accuracy']:.2%}**")
    readme = (utils.ROOT / "README.md").read_text(encoding="utf-8")
    if not all(text in readme for text in expected["04"]):
        yield f"README.md doesn't show the numbers in results/: {RUN} 04"
    for number, texts in expected.items():
        outputs = shown(number)
        if not all(text.strip() in outputs for text in texts):
            yield f"notebook {number} doesn't show the numbers in results/: {RUN} {number}"


def main():
    found = [*complaints_of_results(), *complaints_of_notebooks()]
    with contextlib.suppress(OSError, ValueError):  # which complaints_of_results() has listed
        found += complaints_of_numbers()
    found = list(dict.fromkeys(found))
    print("\n".join(found) or "Results, notebooks and README belong together.")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
