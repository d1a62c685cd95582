"""Measure what the study costs on this machine: `make bench` writes results/benchmark.json; notebook 04 shows it.

Everything is measured in one run, one thing after another, on an otherwise idle machine: VGG16's features at several
sizes, and the three-block CNN within several budgets of time, each an execution of notebook 02. Training times include
the tracing of the graph and leave out the loading of TensorFlow and data.
"""

import json
import os
import platform
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # or the runs would find no memory on a GPU
import keras
import numpy as np
import tensorflow as tf

import utils
from scripts import sweep

BUDGETS = (1 / 36, 1 / 9, 1 / 3, 1)  # shares of the notebook's epochs
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


def extraction(base, image_size, settings, peak):
    """Return what VGG16's features cost: the best of four measurements of 200 images."""
    extractor = utils.vgg16_extractor(base, image_size, settings["layer"], 1)
    compute = tf.function(lambda images: extractor(images, training=False), jit_compile=False)
    images = tf.random.uniform((100, 32, 32, 3), 0, 255)
    seconds = min(call_times(lambda: [compute(images).numpy() for _ in range(2)], 4)) / 200
    gflops = convolution_operations(base, image_size, settings["layer"]) / seconds / 1e9
    return {"image_size": image_size, "ms_an_image": 1000 * seconds, "gflops": gflops, "share_of_peak": gflops / peak}


def main():
    settings = utils.load_results("vgg16_transfer", utils.ROOT / "results")["settings"]
    base, peak = utils.load_vgg16(), peak_gflops()
    print(f"peak of a float32 matrix product: {peak:.0f} GFLOPS", flush=True)
    extractions = []
    for size in SIZES:
        extractions.append(extraction(base, size, settings, peak))
        print("features at {image_size} px: {ms_an_image:.1f} ms an image".format(**extractions[-1]), flush=True)
    notebook, budgets = sweep.read_notebook("three_block_cnn"), []
    parameters = sweep.with_changes(notebook, {})
    for budget in BUDGETS:
        epochs, crop_epochs = (int(budget * parameters[name]) for name in ("epochs", "crop_epochs"))
        changes = {"epochs": max(1, epochs), "crop_epochs": crop_epochs}
        run = sweep.new_run("three_block_cnn", notebook, changes, seed=0)
        results = json.loads(
            sweep.execute(0, run, utils.ROOT)[2]
        )  # whatever cache/runs/ holds: time is what is measured
        budgets.append({key: results[key] for key in ("seconds", "validation", "test")} | {"epochs": changes["epochs"]})
        accuracy = results["test"]["accuracy"]
        print(f"CNN, {changes['epochs']} epochs: {results['seconds']:.1f} s, test {accuracy:.2%}", flush=True)
    made_from = {
        "three_block_cnn": utils.without_seed(results["settings"]),
        "vgg16_transfer": utils.without_seed(settings),
    }
    benchmark = {"made_from": made_from, "machine": machine(), "peak_gflops": peak, "extraction": extractions}
    utils.save_results("benchmark", benchmark | {"three_block_cnn": budgets})


if __name__ == "__main__":
    main()
