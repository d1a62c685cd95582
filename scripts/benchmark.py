"""Measure what the study costs on this machine: `make bench` writes results/benchmark.json; notebook 04 shows it.

Everything is measured in one run, in turn, on an otherwise idle machine, with the notebooks' models and
settings. Training times include the tracing of the graph and leave out the loading of TensorFlow and data.
"""

import os
import platform
import sys
import time
from concurrent.futures import as_completed
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import utils
from scripts import sweep

STEPS_2021 = 5 * -(-10_000 // 64)  # 5 epochs of 10,000 images in batches of 64
LEVEL_2021 = 0.7775  # the test accuracy that the 2021 outputs show
# What the CNN's settings were before it had Muon.
BEFORE = {"network": "three-block", "optimizer": "adamw", "learning_rate": 0.004, "epochs": utils.full_or_quick(72, 2),
          "crop_epochs": utils.full_or_quick(54, 1), "crop_pixels": 20}


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
    """Describe the machine: processor, logical cores, GPUs, memory in GiB, system, versions."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    found = {"processor": model, "cores": os.cpu_count(), "gpus": len(tf.config.list_physical_devices("GPU")),
             "system": platform.system(), "python": platform.python_version(),
             "tensorflow": tf.__version__, "keras": keras.__version__}
    if hasattr(os, "sysconf"):  # not on Windows
        found["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    return found


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


def extraction(base, image_size, settings, n=200):
    """Return (ms an image, 10^9 operations a second) of VGG16's features, the best of four measurements."""
    extractor = utils.vgg16_extractor(base, image_size, settings["layer"], settings["grid"])
    compute = tf.function(lambda images: extractor(images, training=False), jit_compile=False)
    images = tf.random.uniform((100, 32, 32, 3), 0, 255)
    best = min(call_times(lambda: [compute(images).numpy() for _ in range(n // 100)], 4))
    return 1000 * best / n, convolution_operations(base, image_size, settings["layer"]) * n / best / 1e9


def step_2021(jit_compile):
    """Return the median time of a training step of the 2021 recipe (200x200 pixels, batch 64), with or without XLA."""
    network = sweep.definitions("three_block_cnn")["network_2021"](200)
    network.compile(keras.optimizers.SGD(0.001, momentum=0.9), keras.losses.BinaryCrossentropy(from_logits=True),
                    jit_compile=jit_compile)
    x, y = np.random.default_rng(0).uniform(0, 255, (64, 200, 200, 3)).astype("float32"), np.arange(64) % 2
    return float(np.median(call_times(lambda: network.train_on_batch(x, y), 4)))


def step_cnn(optimizer, pixels):
    """Return the median time of a training step of the three-block CNN with one of its optimisers."""
    study = sweep.definitions("three_block_cnn")
    settings, random = study["SETTINGS"] | {"optimizer": optimizer}, np.random.default_rng(0)
    network = study["three_block_cnn"](settings)
    network.compile(study["new_optimizer"](settings, 1000), keras.losses.BinaryCrossentropy(from_logits=True),
                    jit_compile=False)
    x = random.integers(0, 256, (settings["batch_size"], pixels, pixels, 3), np.uint8)
    y = random.integers(0, 2, len(x), np.uint8)
    return float(np.median(call_times(lambda: network.train_on_batch(x, y), utils.full_or_quick(40, 2))))


def train_cnn(epochs, images, changes=None):
    """Train the three-block CNN for some epochs on the first so many images; return its time and scores."""
    study, ((x, y), validation, test) = sweep.definitions("three_block_cnn"), utils.load_splits()
    settings = study["SETTINGS"] | (changes or {})
    share = settings["crop_epochs"] / settings["epochs"]
    settings = {**settings, "epochs": epochs, "crop_epochs": int(epochs * share)}
    started = time.perf_counter()
    network, _ = study["train"](settings, (x[:images], y[:images]), validation)
    run = {"epochs": epochs, "images": len(x[:images]), "seconds": time.perf_counter() - started}
    for split, (x, y) in (("validation", validation), ("test", test)):
        run[split] = utils.score(y, study["predict"](network, x, settings))
    return run


def sweep_times(workers, seeds, changes):
    """Return the seconds after which each of some short training runs of the CNN was done, in order."""
    started, tasks = time.perf_counter(), [sweep.new_task("three_block_cnn", seed, changes) for seed in seeds]
    with sweep.processes(workers) as submit:
        times = []
        for future in as_completed([submit(task) for task in tasks]):
            future.result()  # raises where a run failed
            times.append(time.perf_counter() - started)
        return times


def main():
    settings = sweep.definitions("vgg16_transfer")["SETTINGS"]
    full = sweep.definitions("three_block_cnn")["SETTINGS"]["epochs"]
    base = utils.load_vgg16()
    result = {"machine": machine(), "peak_gflops": peak_gflops(), "image_size": settings["image_size"],
              "settings": {name: sweep.definitions(name)["SETTINGS"] for name in sweep.NOTEBOOKS}, "extraction": []}
    print(f"peak of a float32 matrix product: {result['peak_gflops']:.0f} GFLOPS", flush=True)
    for size in utils.full_or_quick((32, 64, 96, 128), (32, 96)):
        milliseconds, gflops = extraction(base, size, settings)
        result["extraction"].append({"image_size": size, "ms_an_image": milliseconds, "gflops": gflops,
                                     "share_of_peak": gflops / result["peak_gflops"]})
        print(f"features at {size} px: {milliseconds:.1f} ms an image, "
              f"{gflops / result['peak_gflops']:.0%} of the peak", flush=True)
    result["recipe_2021"] = {"steps": STEPS_2021}
    for key, jit_compile in (("with_xla", True), ("without_xla", False)):
        step = step_2021(jit_compile)
        result["recipe_2021"][key] = {"seconds_a_step": step, "extrapolated_seconds": step * STEPS_2021}
        print(f"2021 recipe, {key}: {step:.1f} s a step, {step * STEPS_2021 / 60:.0f} min in all (extrapolated)",
              flush=True)
    result["three_block_cnn"] = []
    for epochs, images in utils.full_or_quick(((1, 3000), (1, 6000), (1, 9000), (4, 9000), (12, 9000), (full, 9000)),
                                              ((1, 200), (1, 400))):
        run = train_cnn(epochs, images)
        result["three_block_cnn"].append(run)
        print(f"CNN, {epochs} epochs of {run['images']:,} images: {run['seconds']:.1f} s, "
              f"test {run['test']['accuracy']:.2%}", flush=True)
    result["before"] = {"settings": BEFORE, **train_cnn(BEFORE["epochs"], 9000, BEFORE)}
    print("with the settings of before: {seconds:.1f} s".format(**result["before"]), flush=True)
    result["step_ms"] = {str(pixels): {optimizer: 1000 * step_cnn(optimizer, pixels) for optimizer in ("adamw", "muon")}
                         for pixels in (sweep.definitions("three_block_cnn")["SETTINGS"]["crop_pixels"], 32)}
    print("a step with AdamW / Muon:", ", ".join(f"{pixels} px {found['adamw']:.1f} / {found['muon']:.1f} ms"
                                                 for pixels, found in result["step_ms"].items()), flush=True)
    reached = [run["seconds"] for run in result["three_block_cnn"] if run["test"]["accuracy"] >= LEVEL_2021]
    for key in ("with_xla", "without_xla"):
        recipe = result["recipe_2021"][key]
        recipe["times_sooner"] = recipe["extrapolated_seconds"] / min(reached) if reached else None
    print(f"{LEVEL_2021:.2%} of the test set",
          "{:.0f} times sooner than the 2021 recipe with XLA, {:.0f} times without".format(
              *(result["recipe_2021"][key]["times_sooner"] for key in ("with_xla", "without_xla")))
          if reached else "is not reached in any of these runs")
    short = {"epochs": utils.full_or_quick(2, 1), "crop_epochs": 0}
    result["seeds"] = {"settings": short, "seconds": {
        str(workers): sweep_times(workers, range(utils.full_or_quick(4, 2)), short) for workers in (1, 2)}}
    utils.save_json(utils.OUTPUT / "results" / "benchmark.json", result)


if __name__ == "__main__":
    main()
