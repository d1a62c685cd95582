"""Measure what the study costs on this machine: `make bench` writes results/benchmark.json; notebook 04 shows it.

Everything is measured in one run, one thing after another, on an otherwise idle machine: VGG16's features at several
sizes, then trainings by several recipes, seed by seed, so that a machine that slows down slows all of them. Where the
machine has both precisions (utils.precision), each comes in both. Training times include the tracing of the graph and
leave out the loading of TensorFlow and data.
"""

import json
import os
import platform
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import utils

utils.start_tensorflow()

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from scripts import sweep

SEEDS = (0, 1, 2)
SIZES = utils.full_or_quick((32, 64, 96, 128), (32, 48))


def call_times(function, repeats):
    """Return the wall times of some calls in seconds, after one that is not counted."""
    function()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return times


def machine():
    """Describe the machine: processor, logical cores, GPUs, system, versions."""
    processor = platform.processor() or platform.machine()
    if utils.CPUINFO.exists():
        lines = utils.CPUINFO.read_text(encoding="utf-8").splitlines()
        processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), processor)
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "gpus": len(tf.config.list_physical_devices("GPU")),
        "system": platform.system(),
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }


def peak_gflops(size=4096):
    """Return the best rate of a float32 matrix product, in 10^9 operations a second."""
    matrix = tf.random.normal((size, size))
    product = tf.function(lambda: tf.linalg.matmul(matrix, matrix), jit_compile=False)
    return 2 * size**3 / min(call_times(lambda: product().numpy(), 8)) / 1e9


def convolution_operations(base, image_size, layer):
    """Return the multiplications and additions that VGG16's convolutions up to a layer need for one image."""
    operations, width = 0, image_size
    for part in base.layers:
        if "conv" in part.name:
            operations += 2 * width**2 * int(np.prod(part.kernel.shape))
        elif "pool" in part.name:
            width //= 2
        if part.name == layer:
            return operations


def extraction(policy, image_size, layer, peak):
    """Return what VGG16's features cost: the best of four measurements of 200 images."""
    base = utils.load_vgg16(policy=policy)
    extractor = utils.vgg16_extractor(base, image_size, layer, 1)
    compute = tf.function(lambda images: extractor(images, training=False), jit_compile=False)
    images = tf.random.uniform((100, 32, 32, 3), 0, 255)
    seconds = min(call_times(lambda: [compute(images).numpy() for _ in range(2)], 4)) / 200
    gflops = convolution_operations(base, image_size, layer) / seconds / 1e9
    cost = {"ms_an_image": 1000 * seconds, "gflops": gflops, "share_of_peak": gflops / peak}
    return {"precision": policy, "image_size": image_size, **cost}


def tutorial_cnn():
    """The network of TensorFlow's tutorial "Convolutional Neural Network (CNN)", with one output in place of ten."""
    inputs = keras.Input((32, 32, 3))
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(32, 3, activation="relu")(x)
    x = layers.MaxPooling2D()(x)
    x = layers.Conv2D(64, 3, activation="relu")(x)
    x = layers.MaxPooling2D()(x)
    x = layers.Conv2D(64, 3, activation="relu")(x)
    x = layers.Flatten()(x)
    x = layers.Dense(64, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(1, dtype="float32")(x))


def train_tutorial(policy, seed):
    """Train it as the tutorial does, 10 epochs with Adam in batches of 32; return {"seconds", "validation", "test"}."""
    x, y = utils.load_training_images()
    training, validation = utils.split_indices(y)
    utils.set_seed(seed)
    with utils.computing_in(policy):
        network = tutorial_cnn()
    network.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True), jit_compile=False)
    started = time.perf_counter()
    network.fit(x[training], y[training], epochs=utils.full_or_quick(10, 1), verbose=0)
    results = {"seconds": time.perf_counter() - started}
    for split, images, labels in (
        ("validation", x[validation], y[validation]),
        ("test", *utils.load_test_images()),
    ):
        probability = np.asarray(keras.ops.sigmoid(network.predict(images, verbose=0)))
        results[split] = utils.score(labels, probability)
    return results


def recipes(notebooks):
    """Return what is trained: {recipe: (model, function of precision and seed that trains it)}.

    notebooks: {model: notebook}. They are executed whatever cache/runs/ holds, since time is what is measured.
    """
    parameters = sweep.with_changes(notebooks["three_block_cnn"], {})

    def of(model, **changes):
        def train(policy, seed):
            run = sweep.new_run(model, notebooks[model], changes, seed) | {"precision": policy}
            return json.loads(sweep.execute(0, run, utils.ROOT)[2])

        return model, train

    def cnn_for(share):
        epochs, crop_epochs = (max(1, int(share * parameters[name])) for name in ("epochs", "crop_epochs"))
        return of("three_block_cnn", epochs=epochs, crop_epochs=min(epochs, crop_epochs))

    (_, changes_2021), *_ = sweep.steps_of(notebooks["three_block_cnn"], "ladder")
    return {
        utils.LABELS["baseline_2021"]: of("three_block_cnn", **changes_2021),
        "TensorFlow's tutorial CNN": ("three_block_cnn", train_tutorial),
        f"{utils.LABELS['three_block_cnn']}, a ninth of the epochs": cnn_for(1 / 9),
        f"{utils.LABELS['three_block_cnn']}, a third of the epochs": cnn_for(1 / 3),
        utils.LABELS["three_block_cnn"]: of("three_block_cnn"),
        utils.LABELS["vgg16_transfer"]: of("vgg16_transfer"),
    }


def main():
    notebooks = {model: sweep.read_notebook(model) for model in sweep.NOTEBOOKS}
    layer, peak = sweep.with_changes(notebooks["vgg16_transfer"], {})["layer"], peak_gflops()
    print(f"peak of a float32 matrix product: {peak:.0f} GFLOPS", flush=True)
    fastest, reason = utils.precision()
    policies = ["float32"] if fastest == "float32" else ["float32", fastest]
    print(f"{fastest}: {reason}", flush=True)
    extractions = []
    for size in SIZES:
        for policy in policies:
            extractions.append(extraction(policy, size, layer, peak))
            print("features at {image_size} px, {precision}: {ms_an_image:.1f} ms an image".format(**extractions[-1]))
    chosen = recipes(notebooks)
    trainings = {(recipe, policy): [] for recipe in chosen for policy in policies}
    for seed in SEEDS:
        for (recipe, policy), runs in trainings.items():
            _, train = chosen[recipe]
            runs.append(train(policy, seed))
            line = "{}, {}, seed {}: {:.1f} s, test {:.2%}"
            print(line.format(recipe, policy, seed, runs[-1]["seconds"], runs[-1]["test"]["accuracy"]), flush=True)
    entries = []
    for (recipe, policy), runs in trainings.items():
        entry = {"recipe": recipe, "model": chosen[recipe][0], "precision": policy}
        entry |= {"seconds": [round(run["seconds"], 1) for run in runs]}
        entry |= {split: utils.summarise([run[split] for run in runs]) for split in ("validation", "test")}
        entries.append(entry)
    full = {model: trainings[utils.LABELS[model], policies[0]][0] for model in notebooks}
    made_from = {model: utils.without_seed(run["settings"]) for model, run in full.items()}
    costs = {"peak_gflops": peak, "extraction": extractions, "trainings": entries}
    utils.save_results("benchmark", {"made_from": made_from, "machine": machine(), **costs})


if __name__ == "__main__":
    main()
