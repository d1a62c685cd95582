"""What several notebooks share, in the order in which they use it.

Images are uint8 RGB arrays (n, 32, 32, 3), labels uint8 (0 = ship, 1 = truck), a probability is that of "truck".
TensorFlow takes seconds to load, so only the functions that need it import it.
"""

import builtins
import contextlib
import hashlib
import json
import os
import platform
import symtable
import sys
from importlib.metadata import version
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import numpy as np
from IPython import get_ipython
from scipy.stats import binomtest
from sklearn.model_selection import train_test_split
from tqdm import tqdm

os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # several processes may share a GPU
IN_NOTEBOOK = hasattr(get_ipython(), "kernel")
if IN_NOTEBOOK:
    # TensorFlow's start-up notes would stand in red in every notebook, and some ignore the log level.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    _stderr = os.dup(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        import tensorflow
        tensorflow.constant(0)  # the last note comes with the first tensor
        tensorflow.get_logger().setLevel("ERROR")  # a new graph for each set of features is meant, no need to warn
    finally:
        os.dup2(_stderr, 2)

# --- Where things are, and the two profiles --------------------------------------------------

ROOT = Path(__file__).resolve().parent
PROFILE = os.environ.get("SHIP_TRUCK_PROFILE", "full")
if PROFILE not in ("full", "quick"):
    raise ValueError(f"SHIP_TRUCK_PROFILE is {PROFILE!r}; set it to 'full' or 'quick', or unset it")
QUICK = PROFILE == "quick"
# A quick run only proves that the code works, so it must never touch what a full run made.
OUTPUT = ROOT / "scratch" if QUICK else ROOT
CACHE = OUTPUT / "cache"

DATA = ROOT / "data"
SHA256 = {
    "ship_truck.npz": "af28da5ffb90eb5a8b23477a6cd05ba27e142e4aef7e84e7b02358c91c00c527",
    "other_classes.npz": "9792bf1bab0bfec25efaa1842628cc5de35bd779f13af13da57f3ecb7f2cfc0d",
    "vgg16_imagenet_notop.weights.h5": "9b8947ba611ca122d68a25ec0ae3a39afd995bd7b6a63d022f7522f1b5999448",
}
CLASS_NAMES = ("ship", "truck")


def full_or_quick(full, quick):
    """Return `full`, or `quick` when SHIP_TRUCK_PROFILE=quick asks for a fast check of the code."""
    return quick if QUICK else full


def relative(path):
    """Return `path` as a string as seen from the project's folder, so that no output names a machine."""
    path = Path(path)
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.as_posix()


@contextlib.contextmanager
def atomic_write(path):
    """Yield a temporary path beside `path`; it replaces `path` only if the block ends well.

    An error or Ctrl-C inside the block leaves the old file as it was and nothing half-written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The temporary name keeps the ending, because NumPy, Keras and Matplotlib go by it.
    temporary = path.with_name(f".unfinished-{os.getpid()}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# --- The images ------------------------------------------------------------------------------

def verify_file(path):
    """Raise FileNotFoundError or ValueError unless a data file exists and has the SHA-256 that belongs to its name."""
    path = Path(path)
    way_back = f"Restore it with `git checkout -- data/{path.name}`, or rebuild it as data/README.md says."
    if not path.is_file():
        raise FileNotFoundError(f"{relative(path)} is missing. {way_back}")
    with open(path, "rb") as file:
        found, expected = hashlib.file_digest(file, "sha256").hexdigest(), SHA256[path.name]
    if found != expected:
        raise ValueError(f"{relative(path)} is damaged: its SHA-256 is {found}, expected {expected}. {way_back}")


def load_images(path):
    """Load a data file, verified: x_train (n, 32, 32, 3) uint8, y_train (n,) uint8, x_test, y_test, in official order.

    Raises FileNotFoundError or ValueError where the file is missing or damaged.
    """
    verify_file(path)
    with np.load(path) as arrays:
        return tuple(arrays[name] for name in ("x_train", "y_train", "x_test", "y_test"))


def split_indices(y_train, validation_fraction=0.1, seed=0):
    """Return indices (training, validation) of the stratified split that every notebook uses."""
    return train_test_split(np.arange(len(y_train)), test_size=validation_fraction, stratify=y_train,
                            random_state=seed)


def load_splits():
    """Return ((x_train, y_train), (x_validation, y_validation), (x_test, y_test)), as uint8.

    9,000, 1,000 and 2,000 images in the full profile; a stratified 400, 100 and 200 in the quick one.
    """
    x, y, x_test, y_test = load_images(DATA / "ship_truck.npz")
    training, validation = split_indices(y)
    test = np.arange(len(y_test))
    if QUICK:
        def some(indices, labels, n):
            return train_test_split(indices, train_size=n, stratify=labels[indices], random_state=0)[0]
        training, validation, test = some(training, y, 400), some(validation, y, 100), some(test, y_test, 200)
    return (x[training], y[training]), (x[validation], y[validation]), (x_test[test], y_test[test])


def plot_images(images, titles=None, columns=10, size=0.9):
    """Draw images in a grid, enlarged so that a pixel stays a pixel; return the figure.

    size: width of one image in inches. titles: one short line an image, or None.
    """
    rows = max(1, -(-len(images) // columns))
    figure, axes = plt.subplots(rows, columns, squeeze=False, layout="constrained",
                                figsize=(columns * size, rows * (size + (0.22 if titles else 0))))
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    for axis in axes.flat:
        axis.axis("off")
    for index, (axis, image) in enumerate(zip(axes.flat, images)):
        axis.imshow(image, interpolation="nearest")
        if titles:
            axis.set_title(titles[index], fontsize=8, pad=2)
    return figure


def progress(total, unit):
    """Return a progress bar (tqdm's) of one line: bar.update(n) moves it, `with` closes it. A log gets few states."""
    live = IN_NOTEBOOK or sys.stdout.isatty()
    return tqdm(total=total, unit=unit, file=sys.stdout, ascii=".#", mininterval=0.1 if live else 60,
                bar_format="[{bar:30}] {n:,} of {total:,} {unit}{postfix}")


# --- Training and judging --------------------------------------------------------------------

def set_seed(seed):
    """Seed Python, NumPy and TensorFlow and ask for deterministic kernels: same seed, same numbers."""
    import keras
    import tensorflow as tf
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def strategy():
    """Return how training is spread: over all GPUs where there are several, else over TensorFlow's default device."""
    import tensorflow as tf
    several = len(tf.config.list_logical_devices("GPU")) > 1
    return tf.distribute.MirroredStrategy() if several else tf.distribute.get_strategy()


def training_progress(epochs):
    """Return a Keras callback that shows training as one line, for fit(verbose=0, callbacks=[…])."""
    import keras
    bar = progress(epochs, "epochs")

    def on_epoch_end(epoch, logs):
        bar.set_postfix_str("accuracy {accuracy:.4f} (validation {val_accuracy:.4f})".format(**logs), refresh=False)
        bar.update()
        if epoch + 1 == epochs:
            bar.close()

    return keras.callbacks.LambdaCallback(on_epoch_end=on_epoch_end)


def score(y, probability):
    """Return {"accuracy", "n", "interval95"}: the share right at threshold 0.5, with Wilson's interval.

    y: (n,) of 0 and 1; probability: (n,) or (n, 1) of truck, 0 to 1. The interval (Wilson 1927) is
    SciPy's. Raises ValueError for sizes that differ or values that are no probabilities.
    """
    probability = np.asarray(probability).reshape(-1)
    if len(y) != len(probability) or len(y) == 0:
        raise ValueError(f"{len(y)} labels and {len(probability)} probabilities; expected as many of each, at least 1")
    if not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError("probabilities must be numbers from 0 to 1; the network may have diverged")
    right, n = int(((probability >= 0.5) == y).sum()), len(y)
    interval = binomtest(right, n).proportion_ci(method="wilson")
    return {"accuracy": right / n, "n": n, "interval95": [float(interval.low), float(interval.high)]}


def format_score(score):
    """Return a score in one line: "98.20% of 1,000 (95 % interval 97.17% to 98.86%)"."""
    low, high = score["interval95"]
    return f"{score['accuracy']:.2%} of {score['n']:,} (95 % interval {low:.2%} to {high:.2%})"


def plot_errors(x, y, probability, most=30):
    """Draw the images on the wrong side of 0.5, surest first, with the wrong class's probability; return the figure."""
    probability = np.asarray(probability).reshape(-1)
    surety = np.abs(probability - 0.5)
    wrong = np.flatnonzero((probability >= 0.5) != y)
    wrong = wrong[np.argsort(-surety[wrong], kind="stable")][:most]
    titles = [f"{CLASS_NAMES[1 - y[i]]}? {0.5 + surety[i]:.2f}" for i in wrong]
    return plot_images(x[wrong], titles, size=0.95)


# --- VGG16 and the models to keep ------------------------------------------------------------

def load_vgg16(weights=DATA / "vgg16_imagenet_notop.weights.h5"):
    """Return VGG16's 13 frozen convolutions (Simonyan & Zisserman 2015), input (None, None, 3).

    weights: the shipped file, verified, or "imagenet" for Keras's own download. Raises FileNotFoundError or
    ValueError where the file is missing or damaged.
    """
    import keras
    if weights != "imagenet":
        verify_file(weights)
    base = keras.applications.VGG16(include_top=False, weights=str(weights))
    base.trainable = False
    return base


def vgg16_extractor(base, image_size, layer, grid):
    """Return a model from 32x32 RGB images (n, 32, 32, 3), 0 to 255, to VGG16's features (n, cells * channels).

    The images are enlarged to image_size x image_size (bilinear) and get VGG16's own preprocessing (BGR, ImageNet's
    mean subtracted). The layer's output is averaged over grid x grid cells (grid divides its width) and flattened.
    """
    import keras
    trunk = keras.Model(base.input, base.get_layer(layer).output, name="vgg16_convolutions")
    trunk.trainable = False
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Resizing(image_size, image_size)(inputs)
    # As a layer the mean is a part of each graph that is made of it; otherwise an export to ONNX would ask for it.
    x = trunk(keras.layers.Lambda(keras.applications.vgg16.preprocess_input, name="preprocess")(x))
    x = keras.layers.AveragePooling2D(max(1, x.shape[1] // grid))(x)
    return keras.Model(inputs, keras.layers.Flatten()(x))


def centre_and_spread(features):
    """Return the mean and the standard deviation of each feature over an array (n, d), to standardise it by.

    A hundredth of the mean deviation is added, so that a feature that is nearly always 0 is not blown up.
    """
    spread = features.std(axis=0)
    return features.mean(axis=0), spread + 0.01 * spread.mean()


def classifier(network, name, mirror=True):
    """Turn a network from 32x32 pixels to a logit into the model to keep.

    It takes uint8 RGB (n, any height, any width, 3), reduces it to 32x32 (a CIFAR-10 image passes unchanged),
    averages the logits of the image and, if mirror, its mirror image, and returns the probability of truck (n, 1).
    """
    import keras
    network = keras.Model(network.input, network.output, name=network.name)  # Keras would save an optimizer, too
    inputs = keras.Input((None, None, 3), dtype="uint8", name="image")
    images = keras.layers.Resizing(32, 32, antialias=True)(inputs)
    logits = network(images)
    if mirror:
        logits = keras.layers.Average()([logits, network(keras.ops.flip(images, axis=2))])
    return keras.Model(inputs, keras.layers.Activation("sigmoid")(logits), name=name)


def save_model(model, name):
    """Save a model to models/NAME.keras, without optimizer state."""
    import keras
    bare = keras.Model(model.input, model.output, name=model.name)
    with atomic_write(OUTPUT / "models" / f"{name}.keras") as temporary:
        bare.save(temporary)


def load_model(name):
    """Load models/NAME.keras. The study's models take uint8 RGB images and give the probability of truck.

    The file of "vgg16_transfer" holds the head only; the convolutions come from data/.
    """
    import keras
    path = OUTPUT / "models" / f"{name}.keras"
    if not path.is_file():
        raise FileNotFoundError(f"{relative(path)} is missing; `git checkout -- {relative(path)}` restores it, "
                                "`make run` trains it anew")
    model = keras.saving.load_model(path, compile=False)
    if name == "vgg16_transfer":
        settings = load_results(name)["settings"]
        extractor = vgg16_extractor(load_vgg16(), settings["image_size"], settings["layer"], settings["grid"])
        network = keras.Model(extractor.input, model(extractor.output), name="vgg16_network")
        model = classifier(network, name, settings["mirror"])
    return model


def count_parameters(*models):
    """Return {"trainable": …, "frozen": …} over the weights of all models; a normalisation's statistics are neither."""
    def count(weights):
        return sum(int(np.prod(weight.shape)) for weight in weights if not weight.name.startswith("moving_"))
    return {"trainable": sum(count(model.trainable_weights) for model in models),
            "frozen": sum(count(model.non_trainable_weights) for model in models)}


# --- Results ---------------------------------------------------------------------------------

HISTORY_KEYS = ("loss", "accuracy", "val_loss", "val_accuracy")
RESULT_KEYS = ("settings", "run", "data_sha256", "versions", "history", "validation", "test", "parameters")


def save_json(path, value):
    """Write a value as indented JSON, all of it or nothing. NaN, which JSON lacks, is refused."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path, made_by="make run"):
    """Return what a JSON file holds. Raises FileNotFoundError, or ValueError where it is no JSON."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{relative(path)} is missing; `{made_by}` makes it")
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{relative(path)} is not JSON ({error}); `{made_by}` makes it anew") from None


def save_results(name, *, settings, history, parameters, seconds, validation, test):
    """Write results/NAME.json: what was run, on which data, with which versions, and what came out; return it.

    validation, test: (labels (n,), probabilities of truck (n,) or (n, 1)); the probabilities go to NAME.npz, and a mark
    of them, "run", into the JSON. seconds: of training; in a file of its own, because no two runs agree on them.
    """
    folder = OUTPUT / "results"
    with atomic_write(folder / f"{name}.npz") as arrays:  # which replaces the old one after the JSON is written
        np.savez(arrays, validation=np.ravel(validation[1]), test=np.ravel(test[1]))
        results = {
            "settings": settings, "run": hashlib.sha256(arrays.read_bytes()).hexdigest()[:16],
            "data_sha256": SHA256["ship_truck.npz"], "versions": {"python": platform.python_version()}
            | {package: version(package) for package in ("tensorflow", "keras", "numpy", "scikit-learn")},
            "history": {key: history[key] for key in HISTORY_KEYS},
            "validation": score(*validation), "test": score(*test), "parameters": parameters}
        save_json(folder / f"{name}.json", results)
    save_json(folder / f"{name}_seconds.json", round(seconds, 1))
    return results


def load_results(name, folder=None):
    """Read what save_results() wrote, with "probability": {"validation": (n,), "test": (n,)} and "seconds".

    Raises FileNotFoundError, or ValueError where a file is of an older layout or the two don't belong together.
    """
    path = Path(folder or OUTPUT / "results") / f"{name}.json"
    results, arrays = read_json(path), path.with_suffix(".npz")
    missing = [key for key in RESULT_KEYS if key not in results]
    if missing or not arrays.is_file():
        raise ValueError(f"{relative(path)} is incomplete, without {', '.join(missing) or relative(arrays)}; "
                         "`make run` makes it anew")
    if hashlib.sha256(arrays.read_bytes()).hexdigest()[:16] != results["run"]:
        raise ValueError(f"{relative(arrays)} doesn't belong to {relative(path)}; `make run` makes both anew")
    with np.load(arrays) as file:
        results["probability"] = {split: file[split] for split in ("validation", "test")}
    return results | {"seconds": read_json(path.with_name(f"{name}_seconds.json"))}


def differences(settings, others):
    """Return in words what is different about some settings, the seed aside: "epochs 36 (not 72)"; "" for nothing."""
    names = [name for name in settings | others if name != "seed" and settings.get(name) != others.get(name)]
    return ", ".join(f"{name} {settings.get(name)} (not {others.get(name)})" for name in names)


def note(settings, others):
    """Return what to put behind a number that was found with settings where others stand: "" if they are the same."""
    found = differences(settings, others)
    return f" [of other settings: {found}]" if found else ""


def definitions(notebook):
    """Execute the cells tagged "define" of a notebook, named without its ending; return what they define, by name.

    Raises NameError, with the cell and the name, where such a cell uses what none of them defines.
    """
    def used(table):
        top = table.get_type() == "module"
        return {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global() or top}.union(
            *map(used, table.get_children()))

    cells = nbformat.read(ROOT / "notebooks" / f"{notebook}.ipynb", as_version=4).cells
    sources = [cell.source for cell in cells if "define" in cell.metadata.get("tags", [])]
    tables, namespace = [symtable.symtable(source, notebook, "exec") for source in sources], {"__name__": notebook}
    defined = {symbol.get_name() for table in tables for symbol in table.get_symbols()
               if symbol.is_assigned() or symbol.is_imported()}.union(dir(builtins))
    for source, table in zip(sources, tables):
        for name in sorted(used(table) - defined):
            raise NameError(f"notebooks/{notebook}.ipynb: the cell {source.splitlines()[0]!r} is tagged define and "
                            f"needs {name!r}, which no cell with this tag defines; tag the one that does")
    for source in sources:
        exec(source, namespace)
    return namespace


# --- Figures and the README ------------------------------------------------------------------

LABELS = {"baseline_2021": "2021 network, as it was", "three_block_cnn": "three-block CNN",
          "vgg16_transfer": "VGG16, frozen"}
# Okabe & Ito's colour-blind safe palette
COLOURS = {"baseline_2021": "#D55E00", "three_block_cnn": "#0072B2", "vgg16_transfer": "#009E73"}


def set_plot_style():
    """Set Matplotlib's sizes once: text in a 9-inch figure then matches GitHub's body text."""
    matplotlib.rcParams.update({
        "figure.figsize": (9, 3.6), "figure.dpi": 100, "figure.constrained_layout.use": True,
        "font.size": 12, "axes.titlesize": 13, "legend.frameon": False,
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3})


def plot_histories(histories):
    """Draw learning curves of {model: history}, a column each: training dashed, validation solid; return the figure."""
    columns = len(histories)
    figure, axes = plt.subplots(2, columns, figsize=(9 if columns > 1 else 6, 5.6), sharex="col", squeeze=False)
    for column, (name, history) in zip(axes.T, histories.items()):
        for axis, key, factor in zip(column, ("loss", "accuracy"), (1, 100)):
            for part, style, label in ((key, "--", "training"), (f"val_{key}", "-", "validation")):
                epochs, values = range(1, len(history[part]) + 1), factor * np.array(history[part])
                axis.plot(epochs, values, style, color=COLOURS[name], label=label)
        column[0].set(title=LABELS[name])
        column[1].set(xlabel="epoch")
        column[1].xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].set(ylabel="loss (cross-entropy)")
    axes[1, 0].set(ylabel="accuracy (%)")
    axes[0, 0].legend()
    return figure


def save_figure(figure, name):
    """Write figures/NAME.png (200 dots an inch) and .svg, free of dates: same numbers, same bytes."""
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
        # Without a fixed salt an SVG's identifiers would differ from run to run.
        with plt.rc_context({"svg.hashsalt": name}), atomic_write(OUTPUT / "figures" / (name + suffix)) as temporary:
            figure.savefig(temporary, dpi=200, metadata=metadata)
