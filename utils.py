"""What the notebooks share: data, photos, evaluation, VGG16, results and figures.

The sections stand in the order in which the notebooks use them. Images are uint8 RGB arrays
(n, 32, 32, 3), labels uint8 (0 = ship, 1 = truck), a probability is that of "truck".
"""

import contextlib
import functools
import hashlib
import json
import os
import platform
import re
import sys
import time
import warnings
import zipfile
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read when TensorFlow is imported
# Two start-up notes ignore that variable. They would stand in red under the first cell of every
# notebook, so the process's stderr is closed while TensorFlow is imported (exceptions still show).
_stderr = os.dup(2)
with open(os.devnull, "w") as _nowhere:
    os.dup2(_nowhere.fileno(), 2)
try:
    import tensorflow as tf

    tf.constant(0)  # the second note comes with the first tensor
finally:
    os.dup2(_stderr, 2)
    os.close(_stderr)

import keras
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from IPython import get_ipython
from IPython.display import display
from PIL import Image
from scipy.stats import binomtest
from sklearn.metrics import ConfusionMatrixDisplay
from sklearn.model_selection import train_test_split

from photo import answer, load_photo, to_thumbnail

# --- Where things are, and the two profiles --------------------------------------------------

ROOT = Path(__file__).resolve().parent
PROFILE = os.environ.get("SHIP_TRUCK_PROFILE", "full")
if PROFILE not in ("full", "quick"):
    raise ValueError(f"SHIP_TRUCK_PROFILE is {PROFILE!r}; set it to 'full' or 'quick', or unset it")
QUICK = PROFILE == "quick"
# A quick run only proves that the code works, so it must never touch what a full run made.
OUTPUT = ROOT / "scratch" if QUICK else ROOT
CACHE = OUTPUT / "cache"

DATA_FILE = ROOT / "data" / "ship_truck.npz"
OTHER_FILE = ROOT / "data" / "other_classes.npz"
WEIGHTS_FILE = ROOT / "data" / "vgg16_imagenet_notop.weights.h5"
SHA256 = {
    DATA_FILE.name: "af28da5ffb90eb5a8b23477a6cd05ba27e142e4aef7e84e7b02358c91c00c527",
    OTHER_FILE.name: "9792bf1bab0bfec25efaa1842628cc5de35bd779f13af13da57f3ecb7f2cfc0d",
    WEIGHTS_FILE.name: "9b8947ba611ca122d68a25ec0ae3a39afd995bd7b6a63d022f7522f1b5999448",
}
CLASS_NAMES = ("ship", "truck")
OTHER_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse")  # CIFAR-10's 0 to 7


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


def set_seed(seed):
    """Seed Python, NumPy and TensorFlow and ask for deterministic kernels: same seed, same numbers."""
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def strategy():
    """Return how training is spread: over all GPUs where there are several, else over TensorFlow's default device.

    Keras 3 has no strategy for several machines on TensorFlow; sweep.py spreads whole training runs instead.
    """
    several = len(tf.config.list_logical_devices("GPU")) > 1
    return tf.distribute.MirroredStrategy() if several else tf.distribute.get_strategy()


# --- The images ------------------------------------------------------------------------------


def file_sha256(path):
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_file(path, sha256):
    """Raise unless `path` exists and has this SHA-256 (a tenth of a second for 37 MB).

    Raises FileNotFoundError or ValueError; the message names the file, both sums and the way back.
    """
    path = Path(path)
    way_back = f"Restore it with `git checkout -- data/{path.name}`, or rebuild it as data/README.md says."
    if not path.is_file():
        raise FileNotFoundError(f"{relative(path)} is missing. {way_back}")
    found = file_sha256(path)
    if found != sha256:
        raise ValueError(f"{relative(path)} is damaged: its SHA-256 is {found}, expected {sha256}. {way_back}")


def check_images(x, y, name="images"):
    """Raise ValueError unless x is (n, 32, 32, 3) uint8 and y is (n,) uint8 of zeros and ones."""
    if x.ndim != 4 or x.shape[1:] != (32, 32, 3) or x.dtype != np.uint8:
        raise ValueError(f"{name}: got {x.dtype} {x.shape}, expected uint8 (n, 32, 32, 3)")
    if y.shape != (len(x),) or y.dtype != np.uint8:
        raise ValueError(f"{name}: got labels {y.dtype} {y.shape}, expected uint8 ({len(x)},)")
    if not np.isin(y, (0, 1)).all():
        raise ValueError(f"{name}: labels {np.unique(y)}, expected only 0 (ship) and 1 (truck)")


def read_arrays(path, sha256):
    """Return {"x_train": …, "y_train": …, "x_test": …, "y_test": …} of a data file, verified."""
    verify_file(path, sha256)
    wanted = ("x_train", "y_train", "x_test", "y_test")
    with np.load(path) as arrays:
        if set(arrays) != set(wanted):
            raise ValueError(f"{relative(path)} holds {sorted(arrays)}, expected {sorted(wanted)}")
        return {name: arrays[name] for name in wanted}


def load_ship_truck(path=DATA_FILE, sha256=SHA256[DATA_FILE.name]):
    """Load the ships and trucks of CIFAR-10, verified.

    Returns x_train (10000, 32, 32, 3) uint8, y_train (10000,) uint8, x_test (2000, 32, 32, 3),
    y_test (2000,), in the order of the official files. For a file of your own, give its sum too.
    Raises FileNotFoundError or ValueError where the file is missing, damaged or of another shape.
    """
    x_train, y_train, x_test, y_test = read_arrays(path, sha256).values()
    check_images(x_train, y_train, f"{relative(path)}, training set")
    check_images(x_test, y_test, f"{relative(path)}, test set")
    return x_train, y_train, x_test, y_test


def read_cifar10_binary(folder):
    """Read the official "CIFAR-10 binary version": data_batch_1.bin to data_batch_5.bin, test_batch.bin.

    A record is 3073 bytes: the label (0 to 9), then 1024 red, 1024 green and 1024 blue pixels, row
    by row. Returns (x_train, y_train), (x_test, y_test) of all ten classes, as Keras does.
    Raises FileNotFoundError for a missing file and ValueError for one that is cut short or garbled.
    """

    def read(name):
        path = Path(folder) / name
        if not path.is_file():
            raise FileNotFoundError(f"{relative(path)} is missing; expected the six .bin files of "
                                    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz in this folder")
        data = path.read_bytes()
        if not data or len(data) % 3073:
            raise ValueError(f"{relative(path)} has {len(data):,} bytes, expected a multiple of 3,073; "
                             "it is cut short: download it again")
        records = np.frombuffer(data, np.uint8).reshape(-1, 3073)
        labels = records[:, 0]
        if labels.max() > 9:
            raise ValueError(f"{relative(path)} holds label {labels.max()}, expected 0 to 9; "
                             "it is not CIFAR-10's binary version")
        return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels

    batches = [read(f"data_batch_{number}.bin") for number in range(1, 6)]
    x_train, y_train = (np.concatenate(parts) for parts in zip(*batches))
    return (x_train, y_train), read("test_batch.bin")


def select_ships_and_trucks(x, y):
    """Keep CIFAR-10's classes 8 (ship, becomes 0) and 9 (truck, becomes 1), in their order.

    x: (n, 32, 32, 3) uint8, y: (n,) or (n, 1) integers 0 to 9.
    """
    y = np.asarray(y).reshape(-1)
    keep = (y == 8) | (y == 9)
    images, labels = np.ascontiguousarray(x[keep]), (y[keep] == 9).astype(np.uint8)
    check_images(images, labels, "selected images")
    return images, labels


def rebuild_ship_truck(source, path):
    """Write the data file anew, to `path`, from an official copy of CIFAR-10.

    source: "keras" downloads through keras.datasets.cifar10.load_data(); anything else is a folder
    with the official binary batches. The bytes depend on nothing but the images (no time, no
    compression, no platform), so that the SHA-256 proves the result identical. Returns that sum.
    """
    (x_train, y_train), (x_test, y_test) = (select_ships_and_trucks(x, y) for x, y in official_cifar10(source))
    return write_arrays(path, {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test})


def official_cifar10(source):
    """Return (x_train, y_train), (x_test, y_test) of all ten classes; source as in rebuild_ship_truck()."""
    return keras.datasets.cifar10.load_data() if source == "keras" else read_cifar10_binary(source)


def write_arrays(path, arrays):
    """Write a dict of arrays as .npz whose bytes depend on nothing but them; return its SHA-256."""
    with atomic_write(path) as temporary:
        with zipfile.ZipFile(temporary, "w") as archive:
            for name, array in arrays.items():
                entry = zipfile.ZipInfo(f"{name}.npy")
                entry.create_system = 3  # Python writes 0 here on Windows, which would change the sum
                with archive.open(entry, "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array)
    return file_sha256(path)


def rebuild_other_classes(source, path, each=(125, 250)):
    """Write the file of images that are neither ship nor truck anew; source as in rebuild_ship_truck().

    It takes the first each[0] training and each[1] test images of CIFAR-10's classes 0 to 7, in the order of the
    official files. Returns the file's SHA-256.
    """
    arrays = {}
    for split, (x, y), count in zip(("train", "test"), official_cifar10(source), each):
        y = np.asarray(y).reshape(-1)
        keep = np.sort(np.concatenate([np.flatnonzero(y == label)[:count] for label in range(len(OTHER_CLASSES))]))
        arrays |= {f"x_{split}": np.ascontiguousarray(x[keep]), f"y_{split}": y[keep].astype(np.uint8)}
    return write_arrays(path, arrays)


def load_other_classes(path=OTHER_FILE, sha256=SHA256[OTHER_FILE.name]):
    """Load CIFAR-10 images that are neither ship nor truck, verified; the quick profile keeps every 25th.

    Returns x_train (1000, 32, 32, 3) uint8, y_train (1000,) uint8 (the place in OTHER_CLASSES), x_test (2000, …),
    y_test. Raises FileNotFoundError or ValueError where the file is missing, damaged, of another layout or
    without images of one class.
    """
    arrays = read_arrays(path, sha256)
    for split in ("train", "test"):
        empty = sorted(set(range(len(OTHER_CLASSES))) - set(arrays[f"y_{split}"].tolist()))
        if empty:
            raise ValueError(f"{relative(path)} has no {OTHER_CLASSES[empty[0]]} in y_{split}; "
                             "rebuild it as data/README.md says")
    every = full_or_quick(1, 25)
    return tuple(arrays[name][::every] for name in ("x_train", "y_train", "x_test", "y_test"))


def split_indices(y_train, validation_fraction=0.1, seed=0):
    """Return indices (training, validation) of the stratified split that every notebook uses."""
    return train_test_split(np.arange(len(y_train)), test_size=validation_fraction, stratify=y_train,
                            random_state=seed)


def load_splits():
    """Return ((x_train, y_train), (x_validation, y_validation), (x_test, y_test)), as uint8.

    9,000, 1,000 and 2,000 images in the full profile; a stratified 400, 100 and 200 in the quick one.
    """
    x, y, x_test, y_test = load_ship_truck()
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


# --- A photo of one's own (photo.py reads it) -------------------------------------------------


def save_photo(image):
    """Write one image (height, width, 3) uint8 as cache/example.png, to have a photo to try; return its path."""
    path = CACHE / "example.png"
    with atomic_write(path) as temporary:
        Image.fromarray(image).save(temporary)
    return path


def classify_photo(model, path):
    """Return ("ship" or "truck", its probability) for the photo at `path`, of one of the study's models."""
    probability = float(model.predict(to_thumbnail(load_photo(path))[None], verbose=0)[0, 0])
    return (CLASS_NAMES[1], probability) if probability >= 0.5 else (CLASS_NAMES[0], 1 - probability)


def predict(source):
    """Return what the service answers to a photo (a path, or a file's bytes), as a dict; photo.answer() explains it."""
    outputs = detector().predict(to_thumbnail(load_photo(source))[None], verbose=0)
    return answer(outputs["probability"][0, 0], outputs["strangeness"][0, 0])


# --- Training and judging --------------------------------------------------------------------


def progress_line(total, unit):
    """Show a progress bar and return update(done, note=""), which redraws it.

    A notebook keeps only its last state, as one line of output; a terminal redraws one line; a log gets
    the last state only.
    """
    def text(done, note):
        filled = 30 * done // total
        return f"[{'#' * filled}{'.' * (30 - filled)}] {done:,} of {total:,} {unit}{note}"

    handle = display({"text/plain": text(0, "")}, raw=True, display_id=True) if get_ipython() else None
    last = 0.0

    def update(done, note=""):
        nonlocal last
        if done < total and time.monotonic() - last < 0.1:  # ten redraws a second are enough
            return
        last = time.monotonic()
        if handle:
            handle.update({"text/plain": text(done, note)}, raw=True)
        elif done == total or sys.stdout.isatty():
            print("\r" + text(done, note), end="" if done < total else "\n", flush=True)

    return update


def training_progress(epochs):
    """Return a Keras callback that shows training as one line, for fit(verbose=0, callbacks=[…])."""
    update = progress_line(epochs, "epochs")

    def on_epoch_end(epoch, logs):
        update(epoch + 1, f", accuracy {logs['accuracy']:.4f} (validation {logs['val_accuracy']:.4f})")

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


def plot_confusion(y, probability):
    """Draw the confusion matrix in counts (scikit-learn's); return the figure."""
    figure, axis = plt.subplots(figsize=(3.2, 3))
    ConfusionMatrixDisplay.from_predictions(y, np.asarray(probability).reshape(-1) >= 0.5, display_labels=CLASS_NAMES,
                                            cmap="Blues", colorbar=False, ax=axis)
    axis.set(xlabel="predicted", ylabel="true")
    axis.grid(False)
    return figure


def plot_errors(x, y, probability, most=30):
    """Draw the images on the wrong side of 0.5, the surest errors first, with the probability given
    to the wrong class; return the figure."""
    probability = np.asarray(probability).reshape(-1)
    surety = np.abs(probability - 0.5)
    wrong = np.flatnonzero((probability >= 0.5) != y)
    wrong = wrong[np.argsort(-surety[wrong], kind="stable")][:most]
    titles = [f"{CLASS_NAMES[1 - y[i]]}? {0.5 + surety[i]:.2f}" for i in wrong]
    return plot_images(x[wrong], titles, size=0.95)


# --- VGG16 -----------------------------------------------------------------------------------


def load_vgg16(weights=WEIGHTS_FILE, sha256=SHA256[WEIGHTS_FILE.name]):
    """Return VGG16's 13 frozen convolutions (Simonyan & Zisserman 2015), input (None, None, 3).

    weights: the shipped file, verified, or "imagenet" for Keras's own download.
    Raises FileNotFoundError or ValueError where the file is missing, damaged or of another network.
    """
    if weights != "imagenet":
        verify_file(weights, sha256)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Keras only warns of layers that it leaves at random
            base = keras.applications.VGG16(include_top=False, weights=str(weights))
    except (ValueError, UserWarning) as error:
        raise ValueError(f"{relative(weights)} doesn't hold the weights of VGG16's convolutions; "
                         f"use data/{WEIGHTS_FILE.name}. Keras says: {str(error).splitlines()[0]}") from error
    base.trainable = False
    return base


def save_vgg16_weights(base, path):
    """Write VGG16's convolutions as float16, in a file that keras.applications.VGG16 loads by itself."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float16")
    try:
        half = keras.applications.VGG16(include_top=False, weights=None)
    finally:
        keras.config.set_dtype_policy(policy)
    half.set_weights(base.get_weights())
    with atomic_write(path) as temporary:
        half.save_weights(temporary)


def weights_sha256(model):
    """Return the SHA-256 of a model's weights as 64 hexadecimal digits, to show that none has changed."""
    digest = hashlib.sha256()
    for array in model.get_weights():
        digest.update(array.tobytes())
    return digest.hexdigest()


def vgg16_extractor(base, image_size, layer_names, grid):
    """Return a model from 32x32 RGB images (n, 32, 32, 3), 0 to 255, to VGG16's features.

    The images are enlarged to image_size x image_size (bilinear) and get VGG16's own preprocessing (BGR,
    ImageNet's mean subtracted). Each named layer's output is averaged over windows of width // grid, which
    leaves grid x grid cells where grid divides the width, and flattened. One name gives one output
    (n, cells * channels), several give a list.
    """
    trunk = keras.Model(base.input, [base.get_layer(name).output for name in layer_names], name="vgg16_convolutions")
    trunk.trainable = False
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Resizing(image_size, image_size)(inputs)
    # As a layer the mean is a part of each graph that is made of it; otherwise an export to ONNX would ask for it.
    outputs = trunk(keras.layers.Lambda(keras.applications.vgg16.preprocess_input, name="preprocess")(x))
    outputs = [keras.layers.AveragePooling2D(max(1, x.shape[1] // grid))(x) for x in outputs]
    outputs = [keras.layers.Flatten()(x) for x in outputs]
    return keras.Model(inputs, outputs[0] if len(outputs) == 1 else outputs)


def vgg16_features(base, x, image_size, layer_names, grid, batch_size=100):
    """Return {layer name: features (n, cells * channels) float16} of images x (n, 32, 32, 3) uint8.

    They are computed once, with a progress bar, and kept in the ignored folder cache/. A file's name holds
    a SHA-256 over images, weights, size, layer, grid and versions, so that a stale file is never found.
    """
    key = hashlib.sha256(x.tobytes())
    key.update(f"{weights_sha256(base)} {image_size} {grid} {tf.__version__} {keras.__version__}".encode())
    paths = {name: CACHE / f"vgg16_{name}_{image_size}px_{len(x)}_{key.hexdigest()[:20]}.npy" for name in layer_names}
    missing = [name for name in layer_names if not paths[name].is_file()]
    if missing:
        extractor = vgg16_extractor(base, image_size, missing, grid)
        compute = tf.function(lambda images: keras.tree.flatten(extractor(images, training=False)), jit_compile=False)
        parts = {name: [] for name in missing}
        update = progress_line(len(x), f"images at {image_size} px")
        for start in range(0, len(x), batch_size):
            images = tf.constant(x[start:start + batch_size], tf.float32)
            for name, values in zip(missing, compute(images)):
                parts[name].append(values.numpy().astype(np.float16))
            update(min(start + batch_size, len(x)))
        for name in missing:
            with atomic_write(paths[name]) as temporary:
                np.save(temporary, np.concatenate(parts[name]))
    return {name: np.load(path) for name, path in paths.items()}


# --- Models and results ----------------------------------------------------------------------


def classifier(network, name, mirror=True):
    """Turn a network from 32x32 pixels to a logit into the model to keep.

    It takes uint8 RGB (n, any height, any width, 3), reduces it to the 32x32 thumbnails that the network was
    trained on (a CIFAR-10 image passes unchanged), averages the logits of the image and, unless mirror is False,
    its mirror image, and returns the probability of truck (n, 1).
    """
    inputs = keras.Input((None, None, 3), dtype="uint8", name="image")
    images = keras.layers.Resizing(32, 32, antialias=True)(inputs)
    logits = network(images)
    if mirror:
        logits = keras.layers.Average()([logits, network(keras.ops.flip(images, axis=2))])
    return keras.Model(inputs, keras.layers.Activation("sigmoid")(logits), name=name)


def vgg16_classifier(base, head, settings):
    """Put the frozen convolutions before a head trained on their features, and make it the model to keep."""
    extractor = vgg16_extractor(base, settings["image_size"], [settings["layer"]], settings["grid"])
    network = keras.Model(extractor.input, head(extractor.output), name="vgg16_network")
    return classifier(network, "vgg16_transfer", settings["mirror"])


def save_model(model, name):
    """Save a model to models/NAME.keras, without optimizer state."""
    bare = keras.Model(model.input, model.output, name=model.name)  # Keras would save a compiled model's optimizer
    with atomic_write(OUTPUT / "models" / f"{name}.keras") as temporary:
        bare.save(temporary)


def load_model(name):
    """Load "three_block_cnn" or "vgg16_transfer": uint8 RGB images in, probability of truck out.

    The file of "vgg16_transfer" holds the head only; the convolutions come from data/.
    """
    path = OUTPUT / "models" / f"{name}.keras"
    if not path.is_file():
        raise FileNotFoundError(f"{relative(path)} is missing; `git checkout -- {relative(path)}` restores it, "
                                "`make run` trains it anew")
    model = keras.saving.load_model(path, compile=False)
    if name == "vgg16_transfer":
        model = vgg16_classifier(load_vgg16(), model, load_results(name, OUTPUT / "results")["settings"])
    return model


@functools.cache
def detector():
    """Return the whole model that the service runs, put together from what notebooks 03 and 05 keep.

    It takes 32x32 RGB images (n, 32, 32, 3) uint8 and returns a dict: "probability" (n, 1), of truck, with the
    temperature of notebook 05; "strangeness" (n, 1), above 0 for what is neither; "places" (n, height, width), how
    much each place of the feature map speaks for the answer, 0 to 1 (Grad-CAM, Selvaraju et al. 2017).
    """
    settings = load_results("vgg16_transfer", OUTPUT / "results")["settings"]
    evaluation = json.loads((OUTPUT / "results" / "evaluation.json").read_text())
    temperature = evaluation["calibration"]["vgg16_transfer"]["temperature"]
    head, neither = (keras.saving.load_model(OUTPUT / "models" / f"{name}.keras", compile=False)
                     for name in ("vgg16_transfer", "neither"))
    # The head is built anew with the standardisation in its weights, and without dropout: an export could not do with
    # either. Its weights read backwards are the gradient of the logit, which Grad-CAM needs.
    standardise, hidden, last = (layer for layer in head.layers
                                 if isinstance(layer, (keras.layers.Normalization, keras.layers.Dense)))
    kernel = np.asarray(hidden.kernel) / np.sqrt(np.asarray(standardise.variance)).reshape(-1, 1)
    bias = np.asarray(hidden.bias) - np.asarray(standardise.mean).reshape(-1) @ kernel
    folded = keras.layers.Dense(len(bias), activation="relu", name="folded")
    folded.build((None, len(kernel)))
    folded.set_weights([kernel, bias])
    backwards = kernel.reshape(settings["grid"] ** 2, -1, len(bias)).mean(axis=0).T * np.asarray(last.kernel)

    extractor = vgg16_extractor(load_vgg16(), settings["image_size"], [settings["layer"]], settings["grid"])
    pooling = next(layer for layer in extractor.layers if isinstance(layer, keras.layers.AveragePooling2D))
    trunk = keras.Model(extractor.input, [pooling.input, extractor.output])
    images = keras.Input((32, 32, 3), dtype="uint8", name="image")
    pixels = keras.ops.cast(images, "float32")
    (maps, features), (_, mirrored) = trunk(pixels), trunk(keras.ops.flip(pixels, axis=2))
    hidden_units = folded(features)
    logits = (last(hidden_units) + last(folded(mirrored))) / 2
    weights = keras.ops.matmul(keras.ops.cast(hidden_units > 0, "float32"), backwards)
    places = keras.ops.sum(maps * weights[:, None, None, :], axis=-1) * keras.ops.sign(logits)[:, :, None]
    places = keras.ops.relu(places)
    return keras.Model(images, {
        "probability": keras.ops.sigmoid(logits / temperature),
        "strangeness": neither((features + mirrored) / 2),
        "places": places / (keras.ops.max(places, axis=(1, 2), keepdims=True) + 1e-9)})


RESULT_KEYS = ("settings", "data_sha256", "versions", "history", "validation", "test", "parameters")
HISTORY_KEYS = ("loss", "accuracy", "val_loss", "val_accuracy")
SCORE_KEYS = ("accuracy", "n", "interval95")


def count_parameters(*models):
    """Return {"trainable": …, "frozen": …} over the weights of all the models together."""
    trainable = sum(int(np.prod(w.shape)) for model in models for w in model.trainable_weights)
    return {"trainable": trainable, "frozen": sum(model.count_params() for model in models) - trainable}


def save_json(path, value):
    """Write a value as indented JSON, all of it or nothing. NaN is refused: JSON has none."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")


def save_results(name, *, settings, history, validation, test, parameters):
    """Write results/NAME.json: what was run, on which data, with which versions, and what came out."""
    save_json(OUTPUT / "results" / f"{name}.json", {
        "settings": settings,
        "data_sha256": SHA256[DATA_FILE.name],
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in ("tensorflow", "keras", "numpy", "scikit-learn")},
        "history": {key: history[key] for key in HISTORY_KEYS},
        "validation": validation, "test": test, "parameters": parameters})


def save_timing(name, **times):
    """Put wall times in seconds into results/timing.json, under NAME; other names stay.

    They stand apart from the results, because no two runs agree on them.
    """
    path = OUTPUT / "results" / "timing.json"
    timing = json.loads(path.read_text()) if path.is_file() else {}
    timing[name] = {key: round(value, 1) for key, value in times.items()}
    save_json(path, timing)


def load_results(name, folder):
    """Read NAME.json in the folder results/. Raises FileNotFoundError, or ValueError where it is no JSON or of an older layout."""
    path = Path(folder) / f"{name}.json"
    if not path.is_file():
        raise FileNotFoundError(f"{relative(path)} is missing; `make run` makes it")
    try:
        results = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{relative(path)} is not JSON ({error}); `make run` makes it anew") from None
    missing = [key for key in RESULT_KEYS if key not in results]
    if not missing:
        parts = {"history": HISTORY_KEYS, "validation": SCORE_KEYS, "test": SCORE_KEYS}
        missing = [f"{key}.{part}" for key in parts for part in parts[key] if part not in results[key]]
    if missing:
        raise ValueError(f"{relative(path)} has an older layout, without {', '.join(missing)}; `make run` makes it anew")
    return results


def check_settings(found, expected, what):
    """Raise ValueError, naming the settings that differ, unless two dicts of settings agree (the seed aside)."""
    different = sorted(key for key in (found | expected).keys() - {"seed"} if found.get(key) != expected.get(key))
    if different:
        key = different[0]
        raise ValueError(f"{what} from other settings ({', '.join(different)}): {key} is {found.get(key)}, "
                         f"expected {expected.get(key)}; make them anew")


def load_seeds(folder):
    """Read the seed sweep in the folder results/: {model: its entry in seeds.json, with "probability" beside}.

    "probability" is (seeds, n_test), of truck; the standard deviation of a single seed is NaN. Raises
    FileNotFoundError, or ValueError where settings differ from those of the model's own run, a seed is repeated, or
    a probability is not a number from 0 to 1.
    """
    folder = Path(folder)
    for path in (folder / "seeds.json", folder / "seeds.npz"):
        if not path.is_file():
            raise FileNotFoundError(f"{relative(path)} is missing; `make seeds` makes it")
    seeds, place = json.loads((folder / "seeds.json").read_text()), relative(folder)
    with np.load(folder / "seeds.npz") as arrays:
        probabilities = dict(arrays)
    for name, entry in seeds.items():
        check_settings(entry["settings"], load_results(name, folder)["settings"], f"{place}/seeds.json: {name} is")
        if len(set(entry["seeds"])) < len(entry["seeds"]):
            raise ValueError(f"{place}/seeds.json repeats a seed of {name}: {entry['seeds']}; "
                             "every seed counts once, run `make seeds`")
        entry["probability"] = probabilities[name]
        if not ((entry["probability"] >= 0) & (entry["probability"] <= 1)).all():
            raise ValueError(f"{place}/seeds.npz holds values for {name} that are no probabilities; "
                             "the network may have diverged, run `make seeds`")
        for split in ("validation", "test"):
            if entry[split]["standard_deviation"] is None:
                entry[split]["standard_deviation"] = float("nan")
    return seeds


def format_ladder(name):
    """Return a model's rungs in the committed results/ladder.json as a table in text.

    A line has the held-out accuracy, mean ± standard deviation over the folds, and the gain over the line above,
    mean ± standard error over the folds.
    """
    path = ROOT / "results" / "ladder.json"
    if not path.is_file():
        raise FileNotFoundError(f"{relative(path)} is missing; `make ladder` makes it")
    ladder = json.loads(path.read_text())[name]
    unknown = float("nan")  # one fold alone has no spread
    lines = [f"{len(ladder['folds'])} folds, {ladder['steps'][0]['n']:,} held-out images each\n",
             f"{'':58} accuracy         gain (points)"]
    for rung in ladder["steps"]:
        line = f"{rung['step']:58} {rung['mean']:.2%} ± {rung['standard_deviation'] or unknown:.2%}"
        if "gain" in rung:
            line += f"  {100 * rung['gain']['mean']:+.2f} ± {100 * (rung['gain']['standard_error'] or unknown):.2f}"
        lines.append(line)
    return "\n".join(lines)


# --- Figures and the README ------------------------------------------------------------------

MODELS = {  # name: (what readers call it, its colour: Okabe & Ito's colour-blind safe palette)
    "baseline_2021": ("2021 network, as it was", "#D55E00"),
    "three_block_cnn": ("three-block CNN", "#0072B2"),
    "vgg16_transfer": ("VGG16, frozen", "#009E73"),
}


def set_plot_style():
    """Set Matplotlib's sizes once: text in a 9-inch figure then matches GitHub's body text."""
    matplotlib.rcParams.update({
        "figure.figsize": (9, 3.6), "figure.dpi": 100, "figure.constrained_layout.use": True,
        "font.size": 12, "axes.titlesize": 13, "legend.frameon": False,
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3})


def draw_history(axis, history, key, colour):
    """Draw history[key] ("loss" or "accuracy", in %) by epoch: training dashed, validation solid."""
    for name, style, label in ((key, "--", "training"), (f"val_{key}", "-", "validation")):
        values = np.array(history[name]) * (100 if key == "accuracy" else 1)
        axis.plot(range(1, len(values) + 1), values, style, color=colour, label=label)
    axis.xaxis.get_major_locator().set_params(integer=True)


def plot_history(history, name):
    """Draw loss and accuracy by epoch of the model with this name in MODELS; return the figure."""
    label, colour = MODELS[name]
    figure, axes = plt.subplots(1, 2)
    for axis, key, title in zip(axes, ("loss", "accuracy"), ("loss (cross-entropy)", "accuracy (%)")):
        draw_history(axis, history, key, colour)
        axis.set(ylabel=title, xlabel="epoch")
    axes[1].legend()
    figure.suptitle(label)
    return figure


def save_figure(figure, name):
    """Write figures/NAME.png (200 dots an inch) and .svg, free of dates: same numbers, same bytes."""
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
        # Without a fixed salt an SVG's identifiers would differ from run to run.
        with plt.rc_context({"svg.hashsalt": name}), atomic_write(OUTPUT / "figures" / (name + suffix)) as temporary:
            figure.savefig(temporary, dpi=200, metadata=metadata)


def replace_between(path, marker, text):
    """Replace what stands between <!-- MARKER --> and <!-- /MARKER --> in a text file.

    Raises ValueError unless the file holds exactly one such pair.
    """
    old = Path(path).read_text(encoding="utf-8")
    pattern = f"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)"
    new, found = re.subn(pattern, lambda match: match[1] + text + match[2], old, flags=re.DOTALL)
    if found != 1:
        raise ValueError(f"{relative(path)} has {found} pairs of <!-- {marker} --> and <!-- /{marker} -->, expected 1")
    with atomic_write(path) as temporary:
        temporary.write_text(new, encoding="utf-8")
