"""Build the website of the study in site/public/: `make site`.

The start page is README.md; every file of the repository that it links to, and those that they link to, come along:
notebooks and Markdown as pages, others as they are. demo/ holds the page on which the model runs in the browser.
npm has brought ONNX Runtime for the browser before.
"""

import gzip
import hashlib
import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

import jinja2
import nbformat
import numpy as np
import onnxruntime
from bs4 import BeautifulSoup
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html
from PIL import Image
from pygments.formatters import HtmlFormatter
from sklearn.datasets import load_sample_images

SITE = Path(__file__).resolve().parent
ROOT = SITE.parent
sys.path.insert(0, str(ROOT))
import utils  # noqa: E402
from scripts.run_study import NOTEBOOKS  # noqa: E402

RUNTIME = SITE / "node_modules" / "onnxruntime-web"
RUNTIME_SCRIPT, RUNTIME_BINARY = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"


# --- Pages -----------------------------------------------------------------------------------


def address_of(path):
    """Return where a file of the repository stands on the site; both relative, as POSIX text."""
    if path == "README.md":
        return "index.html"
    return posixpath.splitext(path)[0] + ".html" if path.endswith((".md", ".ipynb")) else path


def html_of(path):
    """Return a notebook or Markdown file as HTML, parsed."""
    if path.endswith(".ipynb"):
        exporter = HTMLExporter(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)
        body, _ = exporter.from_filename(ROOT / path)
    else:
        text = (ROOT / path).read_text(encoding="utf-8")
        body = markdown2html(re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL))  # without metadata
    return BeautifulSoup(body, "html.parser")


def show_formulas(soup):
    """Turn paragraphs of LaTeX, $$…$$, into MathML, which needs no script and no fonts."""
    for part in soup.find_all("p"):
        formula = re.fullmatch(r"\$\$(.*)\$\$", part.get_text().strip(), re.DOTALL)
        if formula:
            part.clear()
            part.append(BeautifulSoup(convert(formula[1], display="block"), "html.parser"))


def describe_figures(soup):
    """Give figures of a notebook an alternative text: the section, and the sentence that introduces the figure."""
    for image in soup.find_all("img"):
        if image.get("src", "").startswith("data:"):
            heading, text = image.find_previous(["h1", "h2", "h3"]), image.find_previous("p")
            sentences = re.split(r"(?<=[.:?!]) ", text.get_text(" ", strip=True)) if text else [""]
            image["alt"] = f"Figure, {heading.get_text(strip=True).rstrip('¶')}: {sentences[-1]}"


def follow_links(soup, path):
    """Point a page's links and images to where their files stand on the site; return these files."""
    found, here = [], posixpath.dirname(address_of(path))
    for tag, attribute in [(tag, "href") for tag in soup.find_all("a", href=True)] + [
        (tag, "src") for tag in soup.find_all("img", src=True)
    ]:
        parts = urlsplit(tag[attribute])
        if parts.scheme or not parts.path:
            continue
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), unquote(parts.path)))
        if (ROOT / target).is_dir():
            target = posixpath.join(target, "README.md")
        if not (ROOT / target).is_file():
            sys.exit(f"{path} links to {tag[attribute]}, which is not there")
        address = posixpath.relpath(address_of(target), here or ".")
        tag[attribute] = parts._replace(path=address).geturl()
        found.append(target)
    return found


def write_pages(public):
    """Write the start page and all that it leads to."""
    frame = jinja2.Template((SITE / "frame.html.j2").read_text(encoding="utf-8"), autoescape=True)
    notebooks, source = [], repository()
    for notebook in NOTEBOOKS:
        if notebook.parent.name == "solutions":
            continue
        heading = nbformat.read(notebook, as_version=4).cells[0].source.splitlines()[0].lstrip("# ")
        address = address_of(notebook.relative_to(ROOT).as_posix())
        notebooks.append({"path": address, "number": notebook.name[:2], "title": heading})
    waiting, done = ["README.md", "models/README.md"], set()
    while waiting:
        path = waiting.pop()
        if path in done:
            continue
        done.add(path)
        target = public / address_of(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not path.endswith((".md", ".ipynb")):
            shutil.copyfile(ROOT / path, target)
            continue
        soup = html_of(path)
        show_formulas(soup)
        describe_figures(soup)
        waiting += follow_links(soup, path)
        for table in soup.find_all("table"):
            table.wrap(soup.new_tag("div", attrs={"class": "scroll"}))
        for anchor in soup.find_all("a", class_="anchor-link"):
            anchor.decompose()
        contents = [{"id": part["id"], "text": part.get_text()} for part in soup.find_all("h2", id=True)]
        page = frame.render(
            title=soup.find("h1").get_text(),
            body=jinja2.filters.Markup(str(soup)),
            path=address_of(path),
            root="../" * path.count("/"),
            notebooks=notebooks,
            contents=contents,
            repository=source,
            colab=colab(path, source),
        )
        target.write_text(page, encoding="utf-8")


def repository():
    """Return the address of the repository on GitHub, or None where neither GitHub nor git says it."""
    if "GITHUB_REPOSITORY" in os.environ:
        return f"https://github.com/{os.environ['GITHUB_REPOSITORY']}"
    command = ["git", "remote", "get-url", "origin"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8").stdout.strip()
    return said.removesuffix(".git") if said.startswith("https://github.com/") else None


def colab(path, source):
    """Return the address at which Colab opens a notebook of the lab, or None: for others, or an unknown repository."""
    if not re.match(r"notebooks/0[1-4]_", path) or not source:
        return None
    name = source.removeprefix("https://github.com/")
    return f"https://colab.research.google.com/github/{name}/blob/main/{path}"


def write_style(public):
    light, dark = (HtmlFormatter(style=style).get_style_defs(".highlight") for style in ("default", "github-dark"))
    own = (SITE / "style.css").read_text(encoding="utf-8")
    code = f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n"
    (public / "style.css").write_text(code + own, encoding="utf-8")


# --- The demo --------------------------------------------------------------------------------


def write_demo(folder):
    folder.mkdir()
    shutil.copyfile(SITE / "demo.html", folder / "index.html")
    for name in ("demo.js", "common.js", "pixels.js", "ownset.js", "worker.js", "demo.css", "ONNX_RUNTIME_LICENSE.txt"):
        shutil.copyfile(SITE / name, folder / name)
    shutil.copyfile(RUNTIME / "dist" / RUNTIME_SCRIPT, folder / RUNTIME_SCRIPT)
    files = []
    runtime = (RUNTIME / "dist" / RUNTIME_BINARY).read_bytes()
    for name, data in (("runtime.bin", runtime), ("cnn.bin", cnn(folder)), ("vgg16.bin", vgg16())):
        packed = gzip.compress(data, mtime=0)  # called .bin, since some servers unpack .gz files on the way
        (folder / name).write_bytes(packed)
        files.append({"name": name, "bytes": len(packed), "sha256": hashlib.sha256(packed).hexdigest()})
    version = hashlib.sha256("".join(file["sha256"] for file in files).encode()).hexdigest()[:16]
    (folder / "files.json").write_text(json.dumps({"version": version, "files": files}), encoding="utf-8")
    known = {"cnn": "three_block_cnn", "vgg16": "vgg16_transfer"}
    study = {name: utils.load_result(result)["test"] for name, result in known.items()}
    (folder / "study.json").write_text(json.dumps(study), encoding="utf-8")
    write_examples(folder)


def cnn(folder):
    """Return notebook 02's CNN as ONNX: calibrated probability, and the feature maps after each block. Draw its filters."""
    utils.load_tensorflow()
    import keras

    network = utils.load_model("three_block_cnn").get_layer("three_block_cnn")
    temperature = utils.load_result("calibration")["temperature"]["three_block_cnn"]
    training_only = (keras.layers.RandomFlip, keras.layers.RandomTranslation, keras.layers.Dropout)
    chain = [layer for layer in network.layers[1:] if not isinstance(layer, training_only)]

    def run(pixels):
        """Return the logit, and the feature maps after each block."""
        maps = {}
        for layer in chain:
            pixels = layer(pixels)
            if layer.name.startswith("block"):
                maps[layer.name] = pixels
        return pixels, maps

    image = keras.Input((32, 32, 3), dtype="uint8", name="image")
    logit, maps = run(keras.ops.cast(image, "float32"))
    mirrored, _ = run(keras.ops.flip(keras.ops.cast(image, "float32"), axis=2))
    probability = keras.ops.sigmoid((logit + mirrored) / 2 / temperature)
    whole = keras.Model(image, {"probability": probability} | maps)
    whole(np.zeros((1, 32, 32, 3), np.uint8))
    kernels = np.asarray(next(layer for layer in network.layers if isinstance(layer, keras.layers.Conv2D)).kernel)
    lowest, highest = kernels.min(axis=(0, 1, 2)), kernels.max(axis=(0, 1, 2))
    filters = np.moveaxis(255 * (kernels - lowest) / (highest - lowest), -1, 0).astype(np.uint8)
    rows = [
        np.hstack([np.pad(one, ((0, 1), (0, 1), (0, 0)), constant_values=255) for one in filters[start : start + 16]])
        for start in (0, 16)
    ]
    Image.fromarray(np.vstack(rows)).resize((640, 80), Image.Resampling.NEAREST).save(folder / "filters.png")
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "cnn.onnx"
        whole.export(path, format="onnx", verbose=False)
        return path.read_bytes()


def vgg16():
    """Return service/model.onnx with the weights of the convolutions rounded to the 8 bits in which they are used."""
    with tempfile.TemporaryDirectory() as folder:
        path, options = Path(folder) / "model.onnx", onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC  # whatever the processor
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(ROOT / "service" / "model.onnx", options, providers=["CPUExecutionProvider"])
        return path.read_bytes()


def write_examples(folder):
    """Write the images that a visitor can try, and examples.json, which lists them."""
    _, _, x, y = utils.load_images()
    _, _, others, kinds = utils.load_images(utils.ROOT / "data" / "other_classes.npz")
    horse = others[kinds == kinds.max()][0]
    photographs = load_sample_images()
    numbers = np.concatenate([np.flatnonzero(y == label)[:3] for label in (0, 1)])
    chosen = [(x[number], f"Test image {number}: a {utils.CLASS_NAMES[y[number]]}") for number in numbers]
    chosen.append((horse, "A test image of a horse"))
    for image, name in zip(photographs.images, photographs.filenames):
        chosen.append((image, f"Photograph {Path(name).name}"))
    listed = []
    for number, (image, text) in enumerate(chosen):
        name = f"example_{number}.png" if image.shape[0] == 32 else f"example_{number}.jpg"
        Image.fromarray(image).save(folder / name, quality=90)
        listed.append({"file": name, "text": text})
    (folder / "examples.json").write_text(json.dumps(listed), encoding="utf-8")


def main():
    if not RUNTIME.is_dir():
        sys.exit("ONNX Runtime for the browser is missing: `make site` has npm install it")
    new, public = SITE / ".unfinished-public", SITE / "public"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    write_pages(new)
    write_style(new)
    write_demo(new / "demo")
    shutil.rmtree(public, ignore_errors=True)
    new.rename(public)
    size = sum(path.stat().st_size for path in public.rglob("*") if path.is_file())
    print(
        f"{public.relative_to(utils.ROOT).as_posix()}: {size / 1e6:.0f} MB; `make serve` shows it on http://127.0.0.1:8000/site/index.html"
    )


if __name__ == "__main__":
    main()
