"""What the notebooks share, in the order in which they use it: load, split, score, draw, keep.

Images are uint8 RGB arrays (n, 32, 32, 3) with values 0 to 255, labels uint8 (n,) with 0 = ship and 1 = truck, and a
probability is that of "truck", 0 to 1. TensorFlow takes seconds to load, so only the functions that need it import it.
"""

import ast
import contextlib
import functools
import hashlib
import json
import os
import platform
import shutil
import subprocess
import zipfile
from importlib.metadata import version
from pathlib import Path

import filelock
import matplotlib.pyplot as plt
import numpy as np
from scipy.special import expit, logit
from scipy.stats import binomtest
from sklearn.metrics import ConfusionMatrixDisplay
from sklearn.model_selection import train_test_split

ROOT = Path(__file__).resolve().parent
OUTPUT = Path(os.environ.get("SHIP_TRUCK_OUTPUT") or ROOT).resolve()  # where results, models and figures are written
if "SHIP_TRUCK_OUTPUT" in os.environ:
    os.environ["SHIP_TRUCK_OUTPUT"] = str(OUTPUT)  # for what is started from here in another folder
if not os.access(OUTPUT, os.W_OK):
    raise PermissionError(
        f"nothing can be written to {OUTPUT}, where the notebooks keep what they find; copy the repository to a folder of"
        " your own, or set SHIP_TRUCK_OUTPUT to one that is there"
    )
CACHE = (ROOT if os.access(ROOT, os.W_OK) else OUTPUT) / "cache"  # what can be computed again
if os.environ.get("SHIP_TRUCK_TRAIN", "1") not in ("0", "1"):
    raise ValueError(f"SHIP_TRUCK_TRAIN is {os.environ['SHIP_TRUCK_TRAIN']!r}; set it to 0 or 1, or unset it")
TRAIN = os.environ.get("SHIP_TRUCK_TRAIN") != "0"  # 0: load what the last run kept instead of computing it
CLASS_NAMES = ("ship", "truck")
LABELS = {
    "original_network": "original network",
    "three_block_cnn": "three-block CNN",
    "vgg16_transfer": "VGG16, frozen",
}
# Okabe & Ito's colour-blind safe palette
COLOURS = {"original_network": "#D55E00", "three_block_cnn": "#0072B2", "vgg16_transfer": "#009E73"}
PACKAGES = ("tensorflow", "keras", "numpy", "scikit-learn")  # whose versions can change a result
WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "text in quotes"}
WAY_BACK = "`git checkout -- {}` restores it in a clone, otherwise take it from a fresh copy"
# Of the arrays in each data file, however the file packs them
SHA256 = {
    "ship_truck.npz": "3f50be9c42b0478864cda7b2d9fad4555e57c6d7521080a8ad5fe49ffd84e6a7",
    "other_classes.npz": "bb87212b0ea6ffecf8b7d39b4aa75677ccfea5d439a58af28480f3a63c2a6b08",
}


def check_parameters(variables, **ranges):
    """Refuse parameters that a notebook can't use: of another type than annotated, outside their range, or unknown to it.

    variables: the notebook's globals(); its cell of parameters annotates their types. ranges: name=(lowest, highest).
    Papermill puts what its command line says into a cell of its own, and passes as text what it can't read otherwise.
    Raises ValueError, which names all of them.
    """
    kinds = {name: kind for name, kind in variables.get("__annotations__", {}).items() if kind in WORDS.keys()}
    papermill = next((cell for cell in reversed(variables.get("In", [])) if cell.startswith("# Parameters\n")), "")
    names = [node for node in ast.walk(ast.parse(papermill)) if isinstance(node, ast.Name)]
    given = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    problems = [f"there is no {name}, only {', '.join(kinds)}" for name in sorted(given - kinds.keys())]
    problems += [f"{name} has lost its type; write it as in `seed: int = 0`" for name in ranges if name not in kinds]
    for name, kind in kinds.items():
        value, (lowest, highest) = variables[name], ranges.get(name, (None, None))
        fits = type(value) is kind or (kind is float and type(value) is int)
        if not fits or (name in ranges and not lowest <= value <= highest):
            within = f" from {lowest:,} to {highest:,}" if name in ranges else ""
            problems.append(f"{name} is {value!r}; expected {WORDS[kind]}{within}")
    if problems:
        raise ValueError("; ".join(problems))


# --- Images ----------------------------------------------------------------------------------


def sha256(arrays):
    """Return the SHA-256 over some arrays, one after another, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def load_images(path=ROOT / "data" / "ship_truck.npz"):
    """Return (x_train, y_train, x_test, y_test) of a data file, after comparing their checksum with the known one.

    x: (n, 32, 32, 3) uint8, y: (n,) uint8, both in CIFAR-10's own order. Raises FileNotFoundError or ValueError where
    the file is missing or damaged, or holds other images.
    """
    path = Path(path)
    way_back = f"{WAY_BACK.format(f'data/{path.name}')}, or rebuild it as notebook 01 shows"
    if not path.is_file():
        raise FileNotFoundError(f"data/{path.name} is missing: {way_back}")
    try:
        with np.load(path) as file:
            arrays = [file[name] for name in ("x_train", "y_train", "x_test", "y_test")]
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"data/{path.name} is damaged ({error}): {way_back}") from None
    if sha256(arrays) != SHA256[path.name]:
        raise ValueError(f"data/{path.name} holds other images than those of the study: {way_back}")
    return arrays


def split_indices(y, seed=0):
    """Return (training, validation): indices into y, nine tenths and one tenth, with as many ships as trucks in each."""
    return train_test_split(np.arange(len(y)), test_size=0.1, stratify=y, random_state=seed)


def split(x, y, seed=0):
    """Return (x_train, y_train, x_validation, y_validation), by split_indices()."""
    training, validation = split_indices(y, seed)
    return x[training], y[training], x[validation], y[validation]


def plot_images(images, titles=None, columns=10, size=0.9):
    """Draw images in a grid, enlarged so that a pixel stays a pixel; return the figure.

    images: (n, height, width[, 3]), uint8, or floats from 0 to 1. titles: n texts, or None. size: of an image, in inches.
    """
    rows = max(1, -(-len(images) // columns))
    lines = max(title.count("\n") + 1 for title in titles) if titles else 0
    height = rows * (size + 0.2 * lines)
    figure, axes = plt.subplots(rows, columns, squeeze=False, layout="constrained", figsize=(columns * size, height))
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    for axis in axes.flat:
        axis.axis("off")
    for index, (axis, image) in enumerate(zip(axes.flat, images)):
        axis.imshow(image, interpolation="nearest", cmap="gray")
        if titles:
            axis.set_title(titles[index], fontsize=9, pad=2)
    return figure


# --- Scores ----------------------------------------------------------------------------------


def confidence(probability):
    """Return the probability that a model gives to its own answer, 0.5 to 1."""
    return np.maximum(probability, 1 - probability)


def score(y, probability):
    """Return {"accuracy", "n", "interval95"}: the share classified correctly at 0.5, with its 95 % interval.

    y: (n,) of 0 and 1; probability: (n,) or (n, 1), 0 to 1. The interval is Wilson's (1927), as SciPy computes it.
    Raises ValueError for sizes that differ and for values that are no probabilities.
    """
    probability = np.ravel(probability)
    if len(y) != len(probability) or len(y) == 0:
        raise ValueError(f"{len(y)} labels and {len(probability)} probabilities; expected as many of each, at least 1")
    if not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError("probabilities must be numbers from 0 to 1; the network may have diverged")
    correct, n = int(((probability >= 0.5) == y).sum()), len(y)
    interval = binomtest(correct, n).proportion_ci(method="wilson")
    return {"accuracy": correct / n, "n": n, "interval95": [float(interval.low), float(interval.high)]}


def format_score(score):
    """Return a score in one line: "98.20% of 1,000 (95 % interval 97.17% to 98.86%)"."""
    low, high = score["interval95"]
    return f"{score['accuracy']:.2%} of {score['n']:,} (95 % interval {low:.2%} to {high:.2%})"


def show_guess(guess, result, unit="%"):
    """Print a reader's guess, a number, beside the result; nothing where it is None."""
    if guess is not None:
        print(f"your guess: {guess:g} {unit}; the result: {result:.3g} {unit}")


def format_seeds(accuracies):
    """Return accuracies of several training runs as mean ± standard deviation: "98.30% ± 0.15% (5 seeds)"."""
    return f"{np.mean(accuracies):.2%} ± {np.std(accuracies, ddof=1):.2%} ({len(accuracies)} seeds)"


def mcnemar(correct, other):
    """Compare two models on the same images by McNemar's exact test (1947).

    correct, other: (n,) bool, whether each answer is correct. Returns (only, only_other, p): how many images only the
    first and only the second classifies correctly, and the probability of a difference at least as large by chance.
    """
    only, only_other = int((correct & ~other).sum()), int((other & ~correct).sum())
    return only, only_other, float(binomtest(only, only + only_other).pvalue) if only + only_other else 1.0


def resampled_accuracies(correct, draws):
    """Return accuracies (draws, models), 0 to 1, for training runs and images drawn anew: the bootstrap (Efron 1979).

    correct: for each model (runs, n) bool, whether its answers to the same n images are correct. In a draw all models
    get the same images, so that their differences are paired.
    """
    random = np.random.default_rng(0)
    accuracies = np.empty((draws, len(correct)))
    for draw in accuracies:
        images = random.integers(0, correct[0].shape[1], correct[0].shape[1])
        draw[:] = [runs[random.integers(0, len(runs), len(runs))][:, images].mean() for runs in correct]
    return accuracies


def lead(correct, other, draws=2000):
    """Return (mean, low, high): by how many points of accuracy one way of training is ahead of another on the same n
    images, with the bootstrap's 95 % interval over runs and images. correct, other: (runs, n) bool."""
    low, high = np.quantile(np.diff(resampled_accuracies([other, correct], draws), axis=1), [0.025, 0.975])
    return 100 * (np.mean(correct) - np.mean(other)), 100 * low, 100 * high


def ensemble(probabilities):
    """Return the answers (n,), 0 to 1, of an ensemble: the mean of its members' logits, again as a probability.

    probabilities: (members, n), 0 to 1; those of 0 and 1 are moved by a millionth, since their logits are infinite.
    """
    return expit(logit(np.clip(probabilities, 1e-6, 1 - 1e-6)).mean(axis=0))


def plot_confusion(y, probability):
    """Draw the confusion matrix: how many images of each class (rows) were called which (columns); return the figure."""
    figure, axis = plt.subplots(figsize=(4.2, 3.4))
    called = np.ravel(probability) >= 0.5
    ConfusionMatrixDisplay.from_predictions(
        y, called, display_labels=CLASS_NAMES, cmap="Blues", colorbar=False, ax=axis
    )
    axis.grid(False)
    return figure


def plot_errors(x, y, probability, most=20):
    """Draw misclassified images, the most confident errors first, titled with the wrong answer and its probability;
    return the figure."""
    probability = np.ravel(probability)
    stated = confidence(probability)
    wrong = np.flatnonzero((probability >= 0.5) != y)
    wrong = wrong[np.argsort(-stated[wrong], kind="stable")][:most]
    return plot_images(x[wrong], [f"{CLASS_NAMES[1 - y[i]]}? {stated[i]:.2f}" for i in wrong])


def plot_curves(axis, history, measure, colour):
    """Draw "loss" or "accuracy" of a Keras history by epoch on an axis: training dashed, validation solid."""
    factor, label = (100, "accuracy (%)") if measure == "accuracy" else (1, "loss (cross-entropy)")
    for key, style, name in ((measure, "--", "training"), (f"val_{measure}", "-", "validation")):
        values = factor * np.array(history[key])
        axis.plot(range(1, len(values) + 1), values, style, color=colour, label=name)
    axis.set(xlabel="epoch", ylabel=label)
    axis.xaxis.get_major_locator().set_params(integer=True)


def plot_history(history, title, colour):
    """Draw loss (left) and accuracy (right) of a Keras history under a title; return the figure."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
    for axis, measure in zip(axes, ("loss", "accuracy")):
        plot_curves(axis, history, measure, colour)
    axes[0].legend()
    figure.suptitle(title)
    return figure


def plot_scores(rows, title, share_of="classified correctly"):
    """Draw shares with their 95 % intervals, a row each; return the figure. rows: [(label, score(), colour)]."""
    figure, axis = plt.subplots(figsize=(9, 1.2 + 0.36 * len(rows)))
    for row, (_, score, colour) in enumerate(rows):
        share, (low, high) = 100 * score["accuracy"], 100 * np.array(score["interval95"])
        axis.errorbar(share, -row, xerr=[[share - low], [high - share]], fmt="o", color=colour, capsize=4)
    axis.set(yticks=[-row for row in range(len(rows))], yticklabels=[label for label, _, _ in rows])
    axis.set(ylim=(0.5 - len(rows), 0.5), title=title, xlabel=f"{share_of} (%), n = {rows[0][1]['n']:,}, 95 % interval")
    return figure


# --- TensorFlow ------------------------------------------------------------------------------


@functools.cache  # once, also where a reader runs the first cell again
def load_tensorflow():
    """Load TensorFlow without its start-up notes, which would stand in red under the first cell, and without the tuner of
    its input queue: at the end of an epoch TensorFlow 2.21 often waits for it, as long again as the epoch took."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Without oneDNN the CNN took three times as long to train on a processor without AVX-512 (AMD Zen 3).
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)  # some notes ignore the log level
    try:
        import tensorflow
        from keras.src.trainers.data_adapters.array_data_adapter import ArrayDataAdapter

        tensorflow.get_logger().setLevel("ERROR")  # it warns of graphs built anew, which is meant here
        queue, options = ArrayDataAdapter.get_tf_dataset, tensorflow.data.Options()
        options.autotune.enabled = False
        ArrayDataAdapter.get_tf_dataset = lambda arrays: queue(arrays).with_options(options)
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def precision(cpuinfo=Path("/proc/cpuinfo")):
    """Return the Keras dtype policy in which this machine trains fast: "mixed_bfloat16" or "float32".

    bfloat16 pays on Intel processors with AMX and on AMD's with avx512_bf16 (Zen 4), not on Intel's without AMX.
    SHIP_TRUCK_PRECISION overrides; raises ValueError for another value of it.
    """
    policies, wanted = ("float32", "mixed_bfloat16"), os.environ.get("SHIP_TRUCK_PRECISION")
    if wanted and wanted not in policies:
        raise ValueError(f"SHIP_TRUCK_PRECISION is {wanted!r}; set it to {' or '.join(policies)}, or unset it")
    flags = cpuinfo.read_text(encoding="utf-8").split() if cpuinfo.is_file() else []
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()  # what oneDNN may use
    amx = "amx_bf16" in flags and (allowed in ("ALL", "DEFAULT") or "AMX" in allowed)
    zen4 = "AuthenticAMD" in flags and "avx512_bf16" in flags and allowed in ("ALL", "DEFAULT")
    return wanted or ("mixed_bfloat16" if amx or zen4 else "float32")


def predict_once(model, x):
    """Return model.predict(x) as float16 from cache/, where the first call with these images and this model leaves it.

    The file's name is a checksum of the images, of the weights, and of what the model makes of the first eight images.
    """
    depends_on = [x, model.predict(x[:8], verbose=0), *model.get_weights()]
    path = CACHE / f"{model.name}_{len(x)}_{sha256(depends_on)[:20]}.npy"
    with filelock.FileLock(path.with_suffix(".lock")):  # a second notebook that needs the same waits for the first
        if not path.is_file():
            with atomic_write(path) as temporary:
                verbose = "auto" if len(x) > 2000 else 0  # progress, where it takes more than some seconds
                np.save(temporary, model.predict(x, batch_size=100, verbose=verbose).astype("float16"))
    return np.load(path)


def vgg16_extractor(image_size=64, layer="block4_pool"):
    """Return the extractor of notebook 03: a frozen model from images (n, 32, 32, 3), 0 to 255, to VGG16's features.

    VGG16 is Simonyan & Zisserman's (2015); its convolutions come from data/. The features are (n, d) float32.
    """
    import keras

    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Resizing(image_size, image_size)(inputs)
    # As a layer its constants are a part of each graph that is made of it; otherwise an export to ONNX would ask for them.
    x = keras.layers.Lambda(keras.applications.vgg16.preprocess_input, name="preprocess")(x)
    weights = kept("data/vgg16_imagenet_notop.weights.h5")
    base = keras.applications.VGG16(include_top=False, weights=str(weights), input_tensor=x)
    outputs = keras.layers.Flatten(dtype="float32")(base.get_layer(layer).output)
    extractor = keras.Model(inputs, outputs, name=f"vgg16_{layer}_{image_size}px")
    extractor.trainable = False
    return extractor


def centre_and_spread(features):
    """Return mean and standard deviation of each feature (n, d), to standardise by; a hundredth of the mean deviation is
    added to it, so that a feature that is nearly always 0 does not count most."""
    spread = features.std(axis=0)
    return features.mean(axis=0), spread + 0.01 * spread.mean()


def save_model(model, name):
    """Write models/NAME.keras, all of it or nothing."""
    with atomic_write(OUTPUT / "models" / f"{name}.keras") as temporary:
        model.save(temporary)


def load_model(name):
    """Load models/NAME.keras as it was saved. Raises FileNotFoundError, or ValueError where it is no such file."""
    import keras

    path = kept(f"models/{name}.keras")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"models/{path.name} is damaged: {WAY_BACK.format(f'models/{path.name}')}")
    return keras.saving.load_model(path, compile=False)


def load_vgg16_transfer():
    """Return notebook 03's model, from images (n, 32, 32, 3), 0 to 255, to the probability of truck (n, 1), in float32:
    its extractor and the head in models/vgg16_head.keras, the mean of the logits for an image and its mirror image."""
    import keras

    extractor = vgg16_extractor(load_result("vgg16_transfer")["settings"]["image_size"])
    head = load_model("vgg16_head")
    images = keras.Input((32, 32, 3), name="image")
    logits = (head(extractor(images)) + head(extractor(keras.ops.flip(images, axis=2)))) / 2
    return keras.Model(images, keras.ops.sigmoid(logits), name="vgg16_transfer")


# --- Files -----------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_write(path):
    """Yield a temporary path beside `path`, which it replaces if the block ends well: nothing is ever half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".unfinished-{os.getpid()}-{path.name}")  # NumPy and Matplotlib go by the ending
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def kept(name):
    """Return the path of a file: that in OUTPUT if there is one, otherwise that in the repository. Raises
    FileNotFoundError where both are missing."""
    paths = [folder / name for folder in (OUTPUT, ROOT) if (folder / name).is_file()]
    if not paths:
        raise FileNotFoundError(f"{name} is missing: {WAY_BACK.format(name)}")
    return paths[0]


def machine():
    """Return where a result comes from: processor, its instructions that matter here, precision, versions, commit."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    instructions = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    commit = None
    if (ROOT / ".git").exists() and shutil.which("git"):
        git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        commit = git.stdout.strip() or None
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "instructions": instructions,
        "cores": os.cpu_count(),
        "precision": precision(),
        "versions": {"python": platform.python_version()} | {package: version(package) for package in PACKAGES},
        "commit": commit,
    }


def save_result(name, **result):
    """Write results/NAME.json, all of it or nothing, with machine(); arrays become lists. NaN, which JSON lacks, is
    refused with a ValueError."""

    def plain(array):  # what JSON can't write: NumPy's arrays and numbers
        array = np.asarray(array)
        return (array.astype(float).round(7) if array.dtype.kind == "f" else array).tolist()

    lines = [
        f"{json.dumps(key)}: {json.dumps(value, allow_nan=False, default=plain)}"
        for key, value in (result | {"machine": machine()}).items()
    ]
    with atomic_write(OUTPUT / "results" / f"{name}.json") as temporary:
        temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def load_result(name):
    """Return results/NAME.json as a dict. Raises FileNotFoundError, or ValueError where it is no JSON."""
    path = kept(f"results/{name}.json")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"results/{path.name} is damaged ({error}): {WAY_BACK.format(f'results/{path.name}')}"
        ) from None


def load_recipes(*experiments):
    """Return {recipe: {fold: its run}} of some experiments with notebook 09. Raises as load_result()."""
    runs = {}
    for experiment in experiments:
        for run in load_result(experiment)["recipe"]:
            runs.setdefault(run["parameters"]["recipe"], {})[run["parameters"]["fold"]] = run
    return runs


def save_figure(figure, name):
    """Write figures/NAME.png at 200 dots an inch, free of dates: the same numbers give the same bytes."""
    with atomic_write(OUTPUT / "figures" / f"{name}.png") as temporary:
        figure.savefig(temporary, dpi=200, metadata={"Software": None})
