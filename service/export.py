"""Write service/model.onnx, with which the service answers without TensorFlow: `make export`.

The model is that of service/serving.py, its convolutions in integers of 8 bits (Jacob et al. 2018). What that costs, on
validation images, goes to results/export.json; notebook 08 shows it.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime import quantization

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import utils
from service.serving import serving_model

PATH = utils.OUTPUT / "service" / "model.onnx"
OUTPUTS = ("probability", "neither", "places")


class Examples(quantization.CalibrationDataReader):
    """200 training images, from which the range of each layer's values is taken."""

    def __init__(self):
        x = utils.load_images()[0]
        chosen = x[np.random.default_rng(0).choice(len(x), 200, replace=False)]
        self.batches = iter([{"image": chosen[start : start + 20]} for start in range(0, 200, 20)])

    def get_next(self):
        return next(self.batches, None)


def quantize(path):
    """Have a model's convolutions computed in integers of 8 bits; a scale for each channel of the weights.

    The weights stay in the file as they were, and are rounded when it is loaded.
    """
    convolutions = [node.name for node in onnx.load(path).graph.node if node.op_type == "Conv"]
    quantization.quantize_static(
        path,
        path,
        Examples(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        # Weights of 7 bits: with 8, processors without VNNI instructions would clip some sums, and answer differently.
        reduce_range=True,
        nodes_to_quantize=convolutions,
        extra_options={"AddQDQPairToWeight": True},
    )


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


def write(model):
    """Export a Keras model to PATH."""
    model(np.zeros((1, 32, 32, 3), np.uint8))  # Keras exports only what has been called
    with utils.atomic_write(PATH) as temporary:
        model.export(temporary, format="onnx", verbose=False)
        quantize(temporary)
        exported = onnx.load(temporary)
        halve(exported)
        onnx.checker.check_model(exported)
        onnx.save(exported, temporary)


def compare(model):
    """Return how the file does beside the Keras model on the validation images, and beside notebook 07 on the test images."""
    x, y, x_test, _ = utils.load_images()
    others = utils.load_images(utils.ROOT / "data" / "other_classes.npz")[2]
    refused = utils.load_result("other_images")["refused"]
    _, _, images, labels = utils.split(x, y)
    there, here = run(PATH, images)["probability"].ravel(), model.predict(images, verbose=0)["probability"].ravel()
    counts = {"ships and trucks": (x_test, refused["test"]), "other classes": (others, refused["other test"])}
    return {
        "validation": {
            name: {
                "right": int(((p >= 0.5) == labels).sum()),
                "nll": float(-np.log(np.where(labels == 1, p, 1 - p).clip(1e-7)).mean()),
            }
            for name, p in (("TensorFlow", here), ("the file", there))
        },
        "n": len(labels),
        "different_answers": int(((there >= 0.5) != (here >= 0.5)).sum()),
        "refused": {
            name: {"exported": int((run(PATH, x)["neither"] > 0).sum()), "notebook": notebook, "n": len(x)}
            for name, (x, notebook) in counts.items()
        },
    }


def main():
    utils.load_tensorflow()
    model = serving_model()
    write(model)
    print(f"{PATH.name}: {PATH.stat().st_size / 1e6:.1f} MB")
    compared = compare(model)
    utils.save_result("export", **compared)
    for name, found in compared["validation"].items():
        print(
            "{:10} is right on {right:,} of {n:,} validation images, NLL {nll:.4f}".format(
                name, n=compared["n"], **found
            )
        )
    for name, refused in compared["refused"].items():
        print("{}: refused {exported:,} of {n:,}, in notebook 07 {notebook:,}".format(name, **refused))


if __name__ == "__main__":
    try:
        main()
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
