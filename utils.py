"""What several notebooks share, in the order in which they use it.

Images are uint8 RGB arrays (n, 32, 32, 3), labels uint8 (0 = ship, 1 = truck), a probability is that of "truck".
TensorFlow takes seconds to load, so only the functions that need it import it.
"""

import contextlib
import datetime
import hashlib
import inspect
import json
import os
import platform
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import ConfusionMatrixDisplay
from sklearn.model_selection import StratifiedKFold, train_test_split
from tqdm import tqdm

# --- Where things are, and the two profiles --------------------------------------------------

ROOT = Path(__file__).resolve().parent
PROFILE = os.environ.get("SHIP_TRUCK_PROFILE", "full")
if PROFILE not in ("full", "quick"):
    raise ValueError(f"SHIP_TRUCK_PROFILE is {PROFILE!r}; set it to 'full' or 'quick', or unset it")
QUICK = PROFILE == "quick"
# A quick run only proves that the code works, so it must never touch what a full run made.
CACHE = (ROOT / "scratch" if QUICK else ROOT) / "cache"
# Sweeps give each of their runs a folder of its own.
OUTPUT = Path(os.environ.get("SHIP_TRUCK_OUTPUT", CACHE.parent))

DATA = ROOT / "data"
# Of the arrays in each file: however it packs them, nobody's images and weights differ in a single bit
SHA256 = {
    "ship_truck.npz": "3f50be9c42b0478864cda7b2d9fad4555e57c6d7521080a8ad5fe49ffd84e6a7",
    "other_classes.npz": "bb87212b0ea6ffecf8b7d39b4aa75677ccfea5d439a58af28480f3a63c2a6b08",
    "vgg16_imagenet_notop.weights.h5": "b436d216aaced47ce93513eba2f17a8ed7efe26c68eaa1a88f16821abbbc35f6",
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


IMAGE_ARRAYS = ("x_train", "y_train", "x_test", "y_test")


def images_sha256(arrays):
    """Return the SHA-256 over arrays, one after another; how a file packs them makes no difference."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def load_images(path):
    """Load a data file, verified: x_train (n, 32, 32, 3) uint8, y_train (n,) uint8, x_test, y_test, in official order.

    Raises FileNotFoundError or ValueError where the file is missing or damaged.
    """
    path = Path(path)
    way_back = f"Restore it with `git checkout -- data/{path.name}`, or rebuild it as data/README.md says."
    if not path.is_file():
        raise FileNotFoundError(f"{relative(path)} is missing. {way_back}")
    try:
        with np.load(path) as file:
            arrays = tuple(file[name] for name in IMAGE_ARRAYS)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{relative(path)} is damaged ({error}). {way_back}") from None
    sha256, expected = images_sha256(arrays), SHA256[path.name]
    if sha256 != expected:
        raise ValueError(
            f"{relative(path)} holds other images: their SHA-256 is {sha256}, expected {expected}. {way_back}"
        )
    return arrays


def load_training_images():
    """Return the 10,000 training images (n, 32, 32, 3) uint8 and their labels (n,); 500 of them in the quick profile."""
    x, y, _, _ = load_images(DATA / "ship_truck.npz")
    every = full_or_quick(1, 20)
    return x[::every], y[::every]


def load_test_images(fold=-1):
    """Return the 2,000 test images (n, 32, 32, 3) uint8 and their labels (n,); 200 of them in the quick profile.

    Raises ValueError in a run by folds, which must not read them: sweeps leave out the cells that do.
    """
    fold = int(os.environ.get("SHIP_TRUCK_FOLD", fold))
    if fold != -1:
        raise ValueError(
            f"fold is {fold}, and a run by folds must not read the test set: `make experiment` leaves out the cells "
            "tagged test-set; set fold to -1, or end the run before this cell"
        )
    _, _, x, y = load_images(DATA / "ship_truck.npz")
    every = full_or_quick(1, 10)
    return x[::every], y[::every]


FOLDS = 5


def split_indices(y, fold=-1, validation_fraction=0.1, seed=0):
    """Return indices (training, validation) into the training images, both with as many ships as trucks.

    y: their labels (n,). fold: -1 for the split that every notebook uses, a tenth for validation; 0 to 4 for a fold of
    cross-validation, whose validation images are a fifth. Raises ValueError for another fold.
    """
    if fold not in range(-1, FOLDS):
        raise ValueError(
            f"fold is {fold!r}, expected 0 to {FOLDS - 1} for a fold, or -1 for the split of the notebooks"
        )
    split = train_test_split(np.arange(len(y)), test_size=validation_fraction, stratify=y, random_state=seed)
    if fold == -1:
        return split
    indices = np.concatenate(split)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(indices, y[indices])
    training, validation = list(folds)[fold]
    return indices[training], indices[validation]


def draw_training(training, y, images, seed):
    """Return a random draw of so many of the training images, half of each class, repeated to the length of them all.

    So an epoch has as many steps, however few the images are. training: their indices (n,) into y, the labels; images:
    an even number, or 0 for all of them. Raises ValueError where there are not so many.
    """
    if not images:
        return training
    if images % 2 or not 2 <= images < len(training):
        raise ValueError(
            f"training_images is {images}, expected an even number from 2, below {len(training)}, or 0 for all"
        )
    drawn, _ = train_test_split(training, train_size=images, stratify=y[training], random_state=seed)
    return np.resize(drawn, len(training))


def plot_images(images, titles=None, columns=10, size=0.9):
    """Draw images in a grid, enlarged so that a pixel stays a pixel; return the figure.

    size: width of one image in inches. titles: a short text of a line or more for each image, or None.
    """
    rows = max(1, -(-len(images) // columns))
    lines = max(title.count("\n") + 1 for title in titles) if titles else 0
    height = rows * (size + 0.2 * lines)
    figure, axes = plt.subplots(rows, columns, squeeze=False, layout="constrained", figsize=(columns * size, height))
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    for axis in axes.flat:
        axis.axis("off")
    for index, (axis, image) in enumerate(zip(axes.flat, images, strict=False)):
        axis.imshow(image, interpolation="nearest")
        if titles:
            axis.set_title(titles[index], fontsize=9, pad=2)
    return figure


def progress(total, unit):
    """Return a progress bar (tqdm's) of one line: bar.update(n) moves it, `with` closes it. A log gets few states."""
    live = sys.stdout.isatty() or "ipykernel" in sys.modules
    layout = "[{bar:30}] {n:,} of {total:,} {unit}{postfix}"
    return tqdm(total=total, unit=unit, file=sys.stdout, ascii=".#", mininterval=0.1 if live else 60, bar_format=layout)


# --- Training and judging --------------------------------------------------------------------


def start_tensorflow():
    """Load TensorFlow, set for speed, without its start-up notes, which would stand in red under the first cell."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # oneDNN's convolutions. TensorFlow takes them by itself only on processors with AVX-512 VNNI or newer; on one
    # without (AMD Zen 3) the CNN took three times as long to train without them.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # several processes may share a GPU
    # Some notes ignore the log level, so the process's stderr is turned away for this moment.
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        import tensorflow as tf

        tf.constant(0)  # the last note comes with the first tensor
        tf.get_logger().setLevel("ERROR")  # a new graph for each set of features is meant, no need to warn
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


CPUINFO = Path("/proc/cpuinfo")  # where Linux says what the processor is and can do


def precision():
    """Return (policy, reason): the Keras dtype policy that this machine computes networks in, and why, in words.

    "mixed_bfloat16" (weights float32, products of bfloat16) where the hardware is made for it: on a processor with AMX,
    or GPUs of compute capability 8.0 or more (not tried). Elsewhere "float32", also where avx512_bf16 is the only sign:
    an Intel processor held to it took 1.8 times as long in bfloat16. SHIP_TRUCK_PRECISION overrides; raises ValueError
    for another value of it.
    """
    policies, wanted = ("float32", "mixed_bfloat16"), os.environ.get("SHIP_TRUCK_PRECISION")
    if wanted in policies:
        return wanted, "SHIP_TRUCK_PRECISION asks for it"
    if wanted:
        raise ValueError(f"SHIP_TRUCK_PRECISION is {wanted!r}; set it to {' or '.join(policies)}, or unset it")
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
        if all(each.get("compute_capability", (0, 0)) >= (8, 0) for each in details):
            return "mixed_bfloat16", "the GPU multiplies bfloat16"
        return "float32", "not every GPU is known to multiply bfloat16"
    if not CPUINFO.is_file() or "amx_bf16" not in CPUINFO.read_text(encoding="utf-8").split():
        return "float32", "the processor has no AMX, or does not report it"
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    if os.environ.get("TF_ENABLE_ONEDNN_OPTS") == "0" or not (allowed in ("ALL", "DEFAULT") or "AMX" in allowed):
        return "float32", "the processor has AMX, but oneDNN is not allowed to use it"
    return "mixed_bfloat16", "the processor has AMX"


@contextlib.contextmanager
def computing_in(policy):
    """While this context lasts, the layers that are made compute in a Keras dtype policy, such as "mixed_bfloat16"."""
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


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
    """Return a Keras callback that shows training as one line, for fit(verbose=0, callbacks=[…]).

    It raises RuntimeError where the network was trained before: with its cell run again in Jupyter, training would go on
    after the end of its schedule, and be taken for an ordinary run.
    """
    import keras

    bar, began = progress(epochs, "epochs"), False

    def on_train_begin(logs):
        nonlocal began
        if not began and int(callback.model.optimizer.iterations) > 0:
            raise RuntimeError("this network has been trained already: run the cells again from where it is made")
        began = True

    def on_epoch_end(epoch, logs):
        bar.set_postfix_str("accuracy {accuracy:.4f} (validation {val_accuracy:.4f})".format(**logs), refresh=False)
        bar.update()
        if epoch + 1 == epochs:
            bar.close()

    callback = keras.callbacks.LambdaCallback(on_train_begin=on_train_begin, on_epoch_end=on_epoch_end)
    return callback


def watch_accuracy(network, x, y, accuracies):
    """Return a Keras callback that appends the network's accuracy on (x, y) to a list after each epoch."""
    import keras

    def on_epoch_end(epoch, logs):
        logits = network.predict(x, batch_size=500, verbose=0)
        accuracies.append(float(((logits.ravel() >= 0) == y).mean()))

    return keras.callbacks.LambdaCallback(on_epoch_end=on_epoch_end)


def count_parameters(*models):
    """Return {"trainable": …, "frozen": …} over the weights of all models; a normalisation's statistics are neither."""

    def count(weights):
        return sum(int(np.prod(weight.shape)) for weight in weights if not weight.name.startswith("moving_"))

    return {
        "trainable": sum(count(model.trainable_weights) for model in models),
        "frozen": sum(count(model.non_trainable_weights) for model in models),
    }


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
    """Draw how often each class was called which, as a confusion matrix; return the figure."""
    called = np.asarray(probability).reshape(-1) >= 0.5
    figure, axis = plt.subplots()
    ConfusionMatrixDisplay.from_predictions(
        y, called, display_labels=CLASS_NAMES, cmap="Blues", colorbar=False, ax=axis
    )
    axis.grid(False)
    return figure


def plot_errors(x, y, probability, most=30):
    """Draw the images on the wrong side of 0.5, the most confident errors first, with the probability of the wrong
    class; return the figure."""
    probability = np.asarray(probability).reshape(-1)
    margin = np.abs(probability - 0.5)
    wrong = np.flatnonzero((probability >= 0.5) != y)
    wrong = wrong[np.argsort(-margin[wrong], kind="stable")][:most]
    titles = [f"{CLASS_NAMES[1 - y[i]]}? {0.5 + margin[i]:.2f}" for i in wrong]
    return plot_images(x[wrong], titles, size=0.95)


# --- VGG16's features ------------------------------------------------------------------------


def load_vgg16(weights=DATA / "vgg16_imagenet_notop.weights.h5", policy=None):
    """Return VGG16's 13 frozen convolutions (Simonyan & Zisserman 2015), input (None, None, 3).

    weights: the shipped file, verified, or "imagenet" for Keras's own download. policy: of what they compute in, None
    for precision(); the weights are float32 in both. Raises FileNotFoundError or ValueError where the file is missing
    or damaged.
    """
    import keras

    way_back = f"Restore it with `git checkout -- {relative(weights)}`, or make it anew as notebook 03 says."
    if weights != "imagenet" and not Path(weights).is_file():
        raise FileNotFoundError(f"{relative(weights)} is missing. {way_back}")
    try:
        with computing_in(policy or precision()[0]):
            base = keras.applications.VGG16(include_top=False, weights=str(weights))
    except OSError as error:
        raise ValueError(f"{relative(weights)} is damaged ({error}). {way_back}") from None
    sha256, expected = weights_sha256(base), SHA256["vgg16_imagenet_notop.weights.h5"]
    if weights != "imagenet" and sha256 != expected:
        raise ValueError(
            f"{relative(weights)} holds other weights: their SHA-256 is {sha256}, expected {expected}. {way_back}"
        )
    base.trainable = False
    return base


def weights_sha256(model):
    """Return the SHA-256 over a model's weights."""
    digest = hashlib.sha256()
    for array in model.get_weights():
        digest.update(array.tobytes())
    return digest.hexdigest()


def vgg16_extractor(base, image_size, layer, grid):
    """Return a model from 32x32 RGB images (n, 32, 32, 3), 0 to 255, to VGG16's features (n, cells * channels).

    The images are enlarged to image_size x image_size (bilinear) and get VGG16's own preprocessing (BGR, ImageNet's
    mean subtracted). The layer's output is averaged over grid x grid cells and flattened. Raises ValueError where
    there is no such layer, or the grid does not divide its width.
    """
    import keras

    layers = [part.name for part in base.layers if part.name.startswith("block")]
    if layer not in layers:
        raise ValueError(f"layer is {layer!r}, expected one of VGG16's: {', '.join(layers)}")
    trunk = keras.Model(base.input, base.get_layer(layer).output, name="vgg16_convolutions")
    trunk.trainable = False
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Resizing(image_size, image_size)(inputs)
    # As a layer the mean is a part of each graph that is made of it; otherwise an export to ONNX would ask for it.
    x = trunk(keras.layers.Lambda(keras.applications.vgg16.preprocess_input, name="preprocess")(x))
    width = x.shape[1]
    grids = [cells for cells in range(1, width + 1) if width % cells == 0]
    if grid not in grids:
        possible = ", ".join(map(str, grids))
        raise ValueError(f"grid is {grid!r}; at {image_size} px {layer} is {width} cells wide, divided by {possible}")
    x = keras.layers.AveragePooling2D(width // grid, dtype="float32")(x)
    return keras.Model(inputs, keras.layers.Flatten(dtype="float32")(x))


def vgg16_features(base, x, image_size, layer, grid, mirror):
    """Return features (n, 1, d) float16 of images (n, 32, 32, 3) uint8, or (n, 2, d) with their mirror images.

    They are computed once, with a progress bar, and kept in cache/. The file's name holds a checksum of all that they
    depend on (images, weights, settings, precision, versions, the extractor's code), so a stale file is never found.
    """
    views = [x, x[:, :, ::-1]] if mirror else [x]
    return np.stack([_cached_features(base, view, image_size, layer, grid) for view in views], axis=1)


def _cached_features(base, x, image_size, layer, grid):
    code, policy = inspect.getsource(vgg16_extractor), base.layers[-1].dtype_policy.name
    key = hashlib.sha256(x.tobytes())
    for part in (weights_sha256(base), code, policy, image_size, layer, grid, version("tensorflow"), version("keras")):
        key.update(f"{part}\n".encode())
    path = CACHE / f"vgg16_{layer}_{image_size}px_{len(x)}_{key.hexdigest()[:20]}.npy"
    if not path.is_file():
        extractor = vgg16_extractor(base, image_size, layer, grid)
        features = _compute_features(extractor, x, f"images at {image_size} px")
        with atomic_write(path) as temporary:
            np.save(temporary, features)
    return np.load(path)


def _compute_features(extractor, x, unit, batch_size=100):
    import tensorflow as tf

    # XLA, Keras's default compiler, only slows this down on a CPU.
    compute = tf.function(lambda images: extractor(images, training=False), jit_compile=False)
    parts = []
    with progress(len(x), unit) as bar:
        for start in range(0, len(x), batch_size):
            images = tf.constant(x[start : start + batch_size], tf.float32)
            parts.append(compute(images).numpy().astype(np.float16))
            bar.update(len(images))
    return np.concatenate(parts)


def centre_and_spread(features):
    """Return the mean and the standard deviation of each feature over an array (n, d), to standardise it by.

    A hundredth of the mean deviation is added, so that a feature that is nearly always 0 is not blown up.
    """
    spread = features.std(axis=0)
    return features.mean(axis=0), spread + 0.01 * spread.mean()


def head_probability(head, features):
    """Return the probability of truck (n, 1) that a head gives to vgg16_features(): sigmoid of the mean logit."""
    import keras

    logits = [head.predict(features[:, view], batch_size=500, verbose=0) for view in range(features.shape[1])]
    return np.asarray(keras.ops.sigmoid(sum(logits) / len(logits)))


# --- The models to keep ----------------------------------------------------------------------


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
    """Load models/NAME.keras, as it was saved. Raises FileNotFoundError where it is missing.

    "three_block_cnn" takes uint8 RGB images and gives the probability of truck; "vgg16_head" takes VGG16's features
    and gives a logit; "neither" takes their mean over the views and gives more than 0 for what is neither.
    """
    import keras

    path = OUTPUT / "models" / f"{name}.keras"
    if not path.is_file():
        way_back = f"`git checkout -- {relative(path)}` restores it, `make run` trains it anew"
        raise FileNotFoundError(f"{relative(path)} is missing; {way_back}")
    return keras.saving.load_model(path, compile=False)


def load_vgg16_transfer():
    """Return the model of notebook 03, from uint8 RGB images to the probability of truck.

    models/vgg16_head.keras holds the head only; the convolutions come from data/.
    """
    import keras

    settings = load_results("vgg16_transfer")["settings"]
    base = load_vgg16(policy="float32")  # whatever the features were computed in, it answers alike anywhere
    extractor = vgg16_extractor(base, settings["image_size"], settings["layer"], settings["grid"])
    logits = load_model("vgg16_head")(extractor.output)
    network = keras.Model(extractor.input, logits, name="vgg16_network")
    return classifier(network, "vgg16_transfer", settings["mirror"])


# --- Results ---------------------------------------------------------------------------------

LABELS = {
    "baseline_2021": "2021 network, as it was",
    "three_block_cnn": "three-block CNN",
    "vgg16_transfer": "VGG16, frozen",
}
# What makes each file in results/, for who has to make it anew.
MADE_BY = {
    "baseline_2021": "run notebook 02",
    "three_block_cnn": "run notebook 02",
    "vgg16_transfer": "run notebook 03",
    "calibration": "run notebook 06",
    "strangers": "run notebook 07",
    "seeds": "run `make seeds`",
    "ladder": "run `make ladder`",
    "controls": "run `make controls`",
    "finetuning": "run `make finetuning`",
    "experiments": "run `make experiment`",
    "benchmark": "run `make bench`",
    "export": "run `make export`",
}


PACKAGES = ("tensorflow", "keras", "numpy", "scikit-learn")  # whose versions can change a result


def save_results(name, results):
    """Write results/NAME.json, all of it or nothing: a dict, one of its keys a line. NaN, which JSON lacks, is refused."""
    lines = [f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in results.items()]
    with atomic_write(OUTPUT / "results" / f"{name}.json") as temporary:
        temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def load_results(name, folder=None):
    """Read results/NAME.json, probabilities as arrays; print a sentence where it was made from another run.

    folder: another one than the profile's results/. Raises FileNotFoundError, or ValueError where it is no JSON.
    """
    path = Path(folder or OUTPUT / "results") / f"{name}.json"
    if not path.is_file():
        raise FileNotFoundError(f"{relative(path)} is missing: {MADE_BY[name]}")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{relative(path)} is not JSON ({error}): {MADE_BY[name]}") from None
    for model, made_from in results.get("made_from", {}).items():
        current = load_results(model, folder)
        if made_from not in (current["run"], without_seed(current["settings"])):
            print(f"{relative(path)} was made by another run of {LABELS[model]}: {MADE_BY[name]}")
    results["probability"] = {
        split: np.array(probability, np.float32) for split, probability in results.get("probability", {}).items()
    }
    return results


def without_seed(settings):
    """Return settings without the seed, which differs from run to run."""
    return {key: value for key, value in settings.items() if key != "seed"}


def save_run(name, settings, history, seconds, parameters, validation, test=None):
    """Write results/NAME.json of a training run: settings, scores, history, probabilities, versions; return it.

    seconds: of training; validation, test: (labels (n,), probabilities of truck (n,) or (n, 1)), test None in a run by
    folds. "run" is a sum over the probabilities, by which other results say from which run they were made.
    """
    splits = {"validation": validation} | ({} if test is None else {"test": test})
    probability = {split: np.ravel(p).astype(np.float32) for split, (_, p) in splits.items()}
    results = {
        "settings": settings,
        "run": hashlib.sha256(b"".join(p.tobytes() for p in probability.values())).hexdigest()[:16],
        **{split: score(*judged) for split, judged in splits.items()},
        "parameters": parameters,
        "seconds": round(seconds, 1),
        "precision": precision()[0],
        "history": history,
        # as many digits as tell one float32 from another
        "probability": {split: [float(str(value)) for value in p] for split, p in probability.items()},
        "data_sha256": SHA256["ship_truck.npz"],
        "versions": {"python": platform.python_version()} | {package: version(package) for package in PACKAGES},
    }
    save_results(name, results)
    return results


def differences(settings, others):
    """Return in words what is different about some settings, the seed aside: "epochs 36 (not 72)"; "" for nothing."""
    names = [name for name in settings | others if name != "seed" and settings.get(name) != others.get(name)]
    return ", ".join(f"{name} {settings.get(name)} (not {others.get(name)})" for name in names)


def committed_results(name):
    """Return a model's results as the last commit has them.

    Raises RuntimeError, with git's own words, where git can't show them: no repository, no commit, a folder of
    another owner.
    """
    try:
        command = ["git", "show", f"HEAD:./results/{name}.json"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
        complaint = done.stderr.strip() if done.returncode else None
    except OSError as error:
        complaint = str(error)
    if complaint is not None:
        raise RuntimeError(f"git can't show the committed results/{name}.json: {complaint}")
    return json.loads(done.stdout)


def mcnemar(right, before):
    """Compare two models on the same images by McNemar's exact test (1947).

    right, before: (n,) bool, whether each answer is right. Returns (gained, lost, p): how many only the first gets
    right, how many only the second, and the probability of a difference at least as large if both were equally good.
    """
    gained, lost = int((right & ~before).sum()), int((before & ~right).sum())
    return gained, lost, float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def resampled_accuracies(right, draws):
    """Return accuracies (draws, models), 0 to 1, for training runs and images drawn anew, with replacement.

    The bootstrap (Efron 1979). right: of each model (runs, n) bool, whether its answers to the same n images are right;
    all models get the same images in a draw, so that their differences are paired.
    """
    random = np.random.default_rng(0)
    accuracies = np.empty((draws, len(right)))
    for draw in accuracies:
        images = random.integers(0, right[0].shape[1], right[0].shape[1])
        draw[:] = [answers[random.integers(0, len(answers), len(answers))][:, images].mean() for answers in right]
    return accuracies


def log_run(name, results, last=8):
    """Add a training run to results/runs/ and print the last ones beside the committed one, on validation images."""
    when = datetime.datetime.now().isoformat(timespec="milliseconds").replace(":", "")
    folder, text, pattern = OUTPUT / "results" / "runs", json.dumps(results), f"{name}_????-??-??T*.json"
    earlier = sorted(folder.glob(pattern))
    if not earlier or earlier[-1].read_text(encoding="utf-8") != text:  # otherwise this cell was run again
        with atomic_write(folder / f"{name}_{when}.json") as temporary:
            temporary.write_text(text, encoding="utf-8")
    paths = sorted(folder.glob(pattern))
    try:
        committed = committed_results(name)
    except RuntimeError as error:
        print(error)
        committed = None
    _, y = load_training_images()
    y = y[split_indices(y)[1]]
    print(f"{'run':19}  {'validation':15}  gained  lost  {'p':>6}  {'seconds':>7}  what was changed")
    if committed:
        print(f"{'the committed one':19}  {'{accuracy:.2%} of {n:,}'.format(**committed['validation'])}")
    for path in paths[-last:]:
        run = json.loads(path.read_text(encoding="utf-8"))
        day, time = path.stem.removeprefix(f"{name}_").split("T")
        when = f"{day} {time[:2]}:{time[2:4]}:{time[4:6]}"
        compared, changed = f"{'-':>6}  {'-':>4}  {'-':>6}", ""
        if committed:
            changed = differences(run["settings"], committed["settings"]) or "nothing"
            seed = run["settings"]["seed"]
            changed += f", seed {seed}" if seed != committed["settings"]["seed"] else ""
            both = [np.array(found["probability"]["validation"]) for found in (run, committed)]
            if len(both[0]) == len(both[1]) == len(y):  # a quick run has other images
                gained, lost, p = mcnemar(*((probability >= 0.5) == y for probability in both))
                compared = f"{gained:6}  {lost:4}  {p:6.2g}"
        validation = "{accuracy:.2%} of {n:,}".format(**run["validation"])
        print(f"{when:19}  {validation:15}  {compared}  {run['seconds']:7.1f}  {changed}")
    print(
        f"\nRuns of this notebook in results/runs/, each of which has read the test set: {len(paths)}. Not counted: the\n"
        "committed run, the other commands that read the test set (README.md), and notebooks 05 to 07."
    )


def summarise(scores):
    """Return what several seeds' scores come to: {"accuracy": […], "n", "mean", "standard_deviation" (None for one)}."""
    accuracies = [score["accuracy"] for score in scores]
    deviation = float(np.std(accuracies, ddof=1)) if len(scores) > 1 else None
    return {
        "accuracy": accuracies,
        "n": scores[0]["n"],
        "mean": float(np.mean(accuracies)),
        "standard_deviation": deviation,
    }


def format_seeds(summary):
    """Return summarise()'s numbers in words: "98.30% ± 0.15% (n = 5 seeds)", or "98.30% (one seed)"."""
    if summary["standard_deviation"] is None:
        return f"{summary['mean']:.2%} (one seed)"
    return f"{summary['mean']:.2%} ± {summary['standard_deviation']:.2%} (n = {len(summary['accuracy'])} seeds)"


# --- Figures ---------------------------------------------------------------------------------

# Okabe & Ito's colour-blind safe palette
COLOURS = {"baseline_2021": "#D55E00", "three_block_cnn": "#0072B2", "vgg16_transfer": "#009E73"}


def set_plot_style():
    """Set Matplotlib's sizes once: text in a 9-inch figure then matches GitHub's body text."""
    matplotlib.rcParams.update(
        {
            "figure.figsize": (9, 3.6),
            "figure.dpi": 100,
            "figure.constrained_layout.use": True,
            "font.size": 12,
            "axes.titlesize": 13,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.3,
        }
    )


def plot_network(title, parts, colour, frozen=0):
    """Draw a network as what goes from layer to layer, left to right; return the figure.

    parts: [(name, shape)], the shape (height, width, channels) of feature maps, drawn as high as they are and the wider
    the more channels there are, or (values,). The image and what comes from so many frozen layers after it is grey.
    """
    figure, axis = plt.subplots(figsize=(9, 2.4))
    tallest, left = max(shape[0] for _, shape in parts if len(shape) == 3), 0.0
    for number, (name, shape) in enumerate(parts):
        height = shape[0] / tallest if len(shape) == 3 else 0.04
        width = 0.35 + 0.06 * shape[-1] ** 0.5
        fill = "#CCCCCC" if number <= frozen else colour
        axis.add_patch(plt.Rectangle((left, -height / 2), width, height, color=fill, ec="black"))
        axis.text(left + width / 2, 0.56, name, ha="center", va="bottom", fontsize=9)
        axis.text(left + width / 2, -0.56, "×".join(map(str, shape)), ha="center", va="top", fontsize=9)
        left += width + 0.75
    axis.set(xlim=(-0.4, left), ylim=(-0.8, 0.85), title=title)
    axis.axis("off")
    return figure


def plot_curves(axis, history, measure, colour):
    """Draw a measure of a Keras history, "loss" or "accuracy", by epoch on an axis: training dashed, validation solid."""
    factor, label = (100, "accuracy (%)") if measure == "accuracy" else (1, "loss (cross-entropy)")
    axis.set(xlabel="epoch", ylabel=label)
    for key, style, label in ((measure, "--", "training"), (f"val_{measure}", "-", "validation")):
        values = factor * np.array(history[key])
        axis.plot(range(1, len(values) + 1), values, style, color=colour, label=label)
    axis.xaxis.get_major_locator().set_params(integer=True)


def plot_histories(histories):
    """Draw learning curves of {model: history}, a row each: loss and accuracy; return the figure."""
    rows = len(histories)
    figure, axes = plt.subplots(rows, 2, figsize=(9, 0.4 + 2.8 * rows), squeeze=False)
    for row, (name, history) in zip(axes, histories.items()):
        for axis, measure in zip(row, ("loss", "accuracy")):
            plot_curves(axis, history, measure, COLOURS[name])
            axis.set(title=LABELS[name])
    axes[0, 0].legend()
    return figure


def plot_scores(rows, title, share_of="right"):
    """Draw shares with their 95 % intervals, a row each; return the figure.

    rows: [(label, score(), colour)], of as many images each; share_of: what is counted, for the axis.
    """
    figure, axis = plt.subplots(figsize=(9, 1.2 + 0.36 * len(rows)))
    for row, (_, score, colour) in enumerate(rows):
        share, (low, high) = 100 * score["accuracy"], 100 * np.array(score["interval95"])
        axis.errorbar(share, -row, xerr=[[share - low], [high - share]], fmt="o", color=colour, capsize=4)
    axis.set(yticks=[-row for row in range(len(rows))], yticklabels=[label for label, _, _ in rows])
    axis.set(ylim=(0.5 - len(rows), 0.5), title=title, xlabel=f"{share_of} (%), n = {rows[0][1]['n']:,}, 95 % interval")
    return figure


def save_figure(figure, name):
    """Write figures/NAME.png, 200 dots an inch, free of dates: same numbers, same bytes."""
    with atomic_write(OUTPUT / "figures" / f"{name}.png") as temporary:
        figure.savefig(temporary, dpi=200, metadata={"Software": None})


def print_ladder(entries, first_column="step"):
    """Print the rungs of a ladder, or experiments, as a table.

    A line has the accuracy on held-out images (mean over the folds); the gain over the line above (for experiments:
    over the notebook as it stands) in points, with its 95 % interval over the folds; and, by image, how many were
    gained and lost, McNemar's exact p, and the smallest gain or loss in points that would have had p below 0.05.

    entries: [{"step", "accuracy" by fold, "gain"}] as scripts/sweep.py writes them into results/; the gain is a dict of
    "mean", "interval95" and "smallest" (shares, 0 to 1), "gained", "lost" and "p"; the first line has none.
    """
    width = max(len(entry["step"]) for entry in entries)
    columns = f"{'gain':>6}  {'95 % interval':>15}  {'gained':>6}  {'lost':>5}  {'p':>7}  {'smallest':>8}"
    print(f"{first_column:{width}}  accuracy  {columns}")
    for entry in entries:
        accuracy = f"{np.mean(entry['accuracy']):.2%}" if "accuracy" in entry else ""
        line, gain = f"{entry['step']:{width}}  {accuracy:>8}", entry.get("gain")
        if gain:
            interval = "one fold"
            if gain["interval95"]:
                low, high = (100 * end for end in gain["interval95"])
                interval = f"{low:+.2f} to {high:+.2f}"
            line += f"  {100 * gain['mean']:+6.2f}  {interval:>15}"
            if "gained" in gain:  # older sweeps kept no answers by image
                line += f"  {gain['gained']:6,}  {gain['lost']:5,}  {gain['p']:7.1g}  {100 * gain['smallest']:8.2f}"
        print(line)


def print_controls(entries):
    """Print the test accuracy of each control, mean and standard deviation over its seeds.

    entries: [{"step", "test": what summarise() returns}] as scripts/sweep.py writes them into results/.
    """
    width = max(len(entry["step"]) for entry in entries)
    for entry in entries:
        print(f"{entry['step']:{width}}  test {format_seeds(entry['test'])}")


def plot_ladder(entries, name, title):
    """Draw the gains of a ladder's rungs, or of experiments, as bars with 95 % intervals over the folds; return the
    figure. entries: as print_ladder() takes them (its last line, for all steps, is left out), name: of the model."""
    entries = [entry for entry in entries if "gain" in entry and "accuracy" in entry][::-1]
    figure, axis = plt.subplots(figsize=(9, 1.3 + 0.42 * len(entries)))
    for row, entry in enumerate(entries):
        axis.barh(row, 100 * entry["gain"]["mean"], color=COLOURS[name])
        if entry["gain"]["interval95"]:
            axis.plot([100 * end for end in entry["gain"]["interval95"]], [row, row], color="black", linewidth=1)
    axis.axvline(0, color="black", linewidth=1)
    axis.set(yticks=range(len(entries)), yticklabels=[entry["step"] for entry in entries])
    axis.set(xlabel="gain (points of accuracy), 95 % interval over the folds", title=title)
    return figure


# --- Neither ship nor truck, and the model that serves ---------------------------------------

OTHER_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse")


def confidence(probability):
    """Return the probability that a model gives to its own answer, 0.5 to 1."""
    return np.maximum(probability, 1 - probability)


def serving_model():
    """Return the model that answers: 32x32 RGB images (n, 32, 32, 3) uint8 in, a dict of arrays out.

    "probability" (n, 1), of truck, with the temperature of notebook 06; "strangeness" (n, 1), above 0 for what is
    neither; "places" (n, height, width), how much each place of the feature map speaks for the answer, 0 to 1
    (Grad-CAM, Selvaraju et al. 2017). Raises ValueError where temperature or rule were fitted for another head.
    """
    import keras

    results = load_results("vgg16_transfer")
    settings = results["settings"]
    calibration, strangers = load_results("calibration"), load_results("strangers")
    for notebook, fitted in (("06", calibration), ("07", strangers)):
        if fitted["made_from"]["vgg16_transfer"] != results["run"]:
            raise ValueError(f"what notebook {notebook} fitted is for another run of notebook 03: run {notebook} again")
    temperature = calibration["temperature"]["vgg16_transfer"]
    # The head is built anew with the standardisation in its weights, and without dropout: an export could not do with
    # either. Its weights read backwards are the gradient of the logit, which Grad-CAM needs.
    kinds = (keras.layers.Normalization, keras.layers.Dense)
    standardise, first, *second = (layer for layer in load_model("vgg16_head").layers if isinstance(layer, kinds))
    kernel = np.asarray(first.kernel) / np.sqrt(np.asarray(standardise.variance)).reshape(-1, 1)
    bias = np.asarray(first.bias) - np.asarray(standardise.mean).reshape(-1) @ kernel
    folded = keras.layers.Dense(len(bias), activation="relu" if second else None, name="folded")
    folded.build((None, len(kernel)))
    folded.set_weights([kernel, bias])
    backwards = kernel.reshape(settings["grid"] ** 2, -1, len(bias)).mean(axis=0).T  # (units, channels)

    base = load_vgg16(policy="float32")  # it is exported, to answer alike anywhere
    extractor = vgg16_extractor(base, settings["image_size"], settings["layer"], settings["grid"])
    pooling = next(layer for layer in extractor.layers if isinstance(layer, keras.layers.AveragePooling2D))
    trunk = keras.Model(extractor.input, [pooling.input, extractor.output])
    images = keras.Input((32, 32, 3), dtype="uint8", name="image")
    pixels = keras.ops.cast(images, "float32")
    maps, features = trunk(pixels)
    views = [features, trunk(keras.ops.flip(pixels, axis=2))[1]] if settings["mirror"] else [features]
    logits = sum(second[0](folded(view)) if second else folded(view) for view in views) / len(views)
    if second:  # a hidden unit passes the gradient on where it is above 0
        active = keras.ops.cast(folded(features) > 0, "float32")
        backwards = keras.ops.matmul(active, backwards * np.asarray(second[0].kernel))
    places = keras.ops.sum(maps * backwards[:, None, None, :], axis=-1) * keras.ops.sign(logits)[:, :, None]
    places = keras.ops.relu(places)
    outputs = {
        "probability": keras.ops.sigmoid(logits / temperature),
        "strangeness": load_model("neither")(sum(views) / len(views)),
        "places": places / (keras.ops.max(places, axis=(1, 2), keepdims=True) + 1e-9),
    }
    return keras.Model(images, outputs)
