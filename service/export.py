"""Write service/model.onnx, with which the service answers without TensorFlow: `make export`.

The model is that of service/serving.py. Then the file is compared with what the notebooks found, image by image; the
differences go to results/export.json, and notebook 08 shows them.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import utils
from service.serving import serving_model

PATH = utils.OUTPUT / "service" / "model.onnx"
OUTPUTS = ("probability", "strangeness", "places")


def halve(model):
    """Store as float16 what float16 holds exactly, the convolutions above all; it is cast when the model is loaded."""
    for tensor in list(model.graph.initializer):
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size > 1000 and (values == values.astype(np.float16)).all():
            name = tensor.name + "_float16"
            model.graph.initializer.remove(tensor)
            model.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float16), name))
            cast = onnx.helper.make_node("Cast", [name], [tensor.name], to=onnx.TensorProto.FLOAT)
            model.graph.node.insert(0, cast)


def run(path, images):
    """Return what the exported model answers to images (n, 32, 32, 3) uint8: {output: array (n, …)}.

    Raises ValueError where the file can't be loaded or has other outputs.
    """
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        batches = [session.run(OUTPUTS, {"image": images[start : start + 100]}) for start in range(0, len(images), 100)]
    except Exception as error:  # ONNX Runtime's own exceptions share no other base
        way_back = "delete it, and `make export` makes it anew"
        raise ValueError(f"{path.name} can't be run ({str(error).splitlines()[0]}); {way_back}") from error
    return {name: np.concatenate(parts) for name, parts in zip(OUTPUTS, zip(*batches, strict=True), strict=True)}


def is_up_to_date(model):
    """Whether the file there gives the same answers already: 20 MB that say the same are not written anew."""
    if not PATH.is_file():
        return False
    images = utils.load_images()[0][:50]
    try:
        there = run(PATH, images)
    except ValueError as error:
        print(error)
        return False
    here = model.predict(images, verbose=0)
    return all(np.allclose(there[name], here[name], atol=1e-4) for name in OUTPUTS)


def write(model):
    """Export a Keras model to PATH."""
    model(np.zeros((1, 32, 32, 3), np.uint8))  # Keras exports only what has been called
    with utils.atomic_write(PATH) as temporary:
        model.export(temporary, format="onnx", verbose=False)
        exported = onnx.load(temporary)
        halve(exported)
        onnx.checker.check_model(exported)
        onnx.save(exported, temporary)


def compare(model):
    """Return how far the exported model is from the Keras model, and from what notebook 07 refused."""
    _, _, images, _ = utils.load_images()
    others = utils.load_images(utils.ROOT / "data" / "other_classes.npz")[2]
    refused = utils.load_result("other_images")["refused"]
    temperature = utils.load_result("calibration")["temperature"]["vgg16_transfer"]
    there, sample = run(PATH, images), images[:200]
    p = np.array(utils.load_result("vgg16_transfer")["probability"]["test"]).clip(1e-7, 1 - 1e-7)
    calibrated = 1 / (1 + (1 / p - 1) ** (1 / temperature))
    places = model.predict(sample, verbose=0)["places"]
    differences = {
        "probability": (there["probability"].ravel() - calibrated, len(images)),
        "Grad-CAM": (there["places"][: len(sample)] - places, len(sample)),
    }
    counts = {
        "ships and trucks": (there["strangeness"], refused["test"]),
        "other classes": (run(PATH, others)["strangeness"], refused["other test"]),
    }
    return {
        "largest_difference": {name: {"value": float(np.abs(d).max()), "n": n} for name, (d, n) in differences.items()},
        "refused": {
            name: {"exported": int((strangeness > 0).sum()), "notebook": notebook, "n": len(strangeness)}
            for name, (strangeness, notebook) in counts.items()
        },
    }


def main():
    utils.load_tensorflow()
    model = serving_model()
    if is_up_to_date(model):
        print(f"{PATH.name} is up to date")
    else:
        write(model)
        print(f"{PATH.name}: {PATH.stat().st_size / 1e6:.1f} MB")
    compared = compare(model)
    utils.save_result("export", **compared)
    for name, difference in compared["largest_difference"].items():
        print("{} differs by at most {value:.0e} over {n:,} test images".format(name, **difference))
    for name, refused in compared["refused"].items():
        print("{}: refused {exported:,} of {n:,}, in notebook 07 {notebook:,}".format(name, **refused))


if __name__ == "__main__":
    try:
        main()
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
