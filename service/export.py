"""Write service/model.onnx, with which the service answers without TensorFlow: `make export`.

The model is put together from what notebooks 03, 06 and 07 keep: the convolutions, the head, the temperature, the
rule for saying neither, and Grad-CAM. Then the file is compared with what these notebooks found, image by image; the
differences go to results/export.json, and notebook 08 shows them.
"""

import sys
from pathlib import Path

import keras
import numpy as np
import onnx
import onnxruntime

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import utils

PATH = utils.OUTPUT / "service" / "model.onnx"
OUTPUTS = ("probability", "strangeness", "places")


def whole_model():
    """Return the model that the service runs: 32x32 RGB images (n, 32, 32, 3) uint8 in, a dict of arrays out.

    "probability" (n, 1), of truck, with the temperature of notebook 06; "strangeness" (n, 1), above 0 for what is
    neither; "places" (n, height, width), how much each place of the feature map speaks for the answer, 0 to 1
    (Grad-CAM, Selvaraju et al. 2017). Raises ValueError where temperature or rule were fitted for another head.
    """
    results = utils.load_results("vgg16_transfer")
    settings = results["settings"]
    found = utils.read_json(utils.OUTPUT / "results" / "confidence_and_errors.json")
    rule = utils.read_json(utils.OUTPUT / "results" / "strangers_and_damage.json")
    for kept, notebook in ((found, "06"), (rule, "07")):
        if kept["run"]["vgg16_transfer"] != results["run"]:
            raise ValueError(f"what notebook {notebook} fitted is for another run of notebook 03 than the head in "
                             f"models/; run notebook {notebook} first")
    temperature = found["calibration"]["vgg16_transfer"]["temperature"]
    head = keras.saving.load_model(utils.OUTPUT / "models" / "vgg16_transfer.keras", compile=False)
    neither = utils.load_model("neither")
    # The head is built anew with the standardisation in its weights, and without dropout: an export could not do with
    # either. Its weights read backwards are the gradient of the logit, which Grad-CAM needs.
    standardise, first, *second = (layer for layer in head.layers
                                   if isinstance(layer, (keras.layers.Normalization, keras.layers.Dense)))
    kernel = np.asarray(first.kernel) / np.sqrt(np.asarray(standardise.variance)).reshape(-1, 1)
    bias = np.asarray(first.bias) - np.asarray(standardise.mean).reshape(-1) @ kernel
    folded = keras.layers.Dense(len(bias), activation="relu" if second else None, name="folded")
    folded.build((None, len(kernel)))
    folded.set_weights([kernel, bias])
    backwards = kernel.reshape(settings["grid"] ** 2, -1, len(bias)).mean(axis=0).T  # (units, channels)

    extractor = utils.vgg16_extractor(utils.load_vgg16(), settings["image_size"], settings["layer"], settings["grid"])
    pooling = next(layer for layer in extractor.layers if isinstance(layer, keras.layers.AveragePooling2D))
    trunk = keras.Model(extractor.input, [pooling.input, extractor.output])
    images = keras.Input((32, 32, 3), dtype="uint8", name="image")
    pixels = keras.ops.cast(images, "float32")
    maps, features = trunk(pixels)
    views = [features, trunk(keras.ops.flip(pixels, axis=2))[1]] if settings["mirror"] else [features]
    logits = sum(second[0](folded(view)) if second else folded(view) for view in views) / len(views)
    if second:  # a hidden unit passes the gradient on where it is above 0
        backwards = keras.ops.matmul(keras.ops.cast(folded(features) > 0, "float32"),
                                     backwards * np.asarray(second[0].kernel))
    places = keras.ops.sum(maps * backwards[:, None, None, :], axis=-1) * keras.ops.sign(logits)[:, :, None]
    places = keras.ops.relu(places)
    return keras.Model(images, {
        "probability": keras.ops.sigmoid(logits / temperature),
        "strangeness": neither(sum(views) / len(views)),
        "places": places / (keras.ops.max(places, axis=(1, 2), keepdims=True) + 1e-9)})


def halve(model):
    """Store an ONNX model's weights as float16 where that loses nothing, as with VGG16's convolutions.

    A Cast node brings each back to float32, once, when the model is loaded.
    """
    for tensor in list(model.graph.initializer):
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size > 1000 and (values == values.astype(np.float16)).all():
            name = tensor.name + "_float16"
            model.graph.initializer.remove(tensor)
            model.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float16), name))
            model.graph.node.insert(0, onnx.helper.make_node("Cast", [name], [tensor.name], to=onnx.TensorProto.FLOAT))


def run(path, images):
    """Return what the exported model answers to images (n, 32, 32, 3) uint8: {output: array (n, …)}.

    Raises ValueError where the file can't be loaded or has other outputs.
    """
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        batches = [session.run(OUTPUTS, {"image": images[start:start + 100]}) for start in range(0, len(images), 100)]
    except Exception as error:  # ONNX Runtime's own exceptions share no other base
        raise ValueError(f"{utils.relative(path)} can't be run ({str(error).splitlines()[0]}); delete it, and "
                         "`make export` makes it anew") from error
    return {name: np.concatenate(parts) for name, parts in zip(OUTPUTS, zip(*batches))}


def is_up_to_date(model):
    """Whether the file there gives the same answers already: 20 MB that say the same are not written anew."""
    if not PATH.is_file():
        return False
    images = utils.load_images(utils.DATA / "ship_truck.npz")[0][:50]
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


def compare():
    """Return how far the exported model is from what notebooks 03, 06 and 07 found."""
    x_test, y_test = utils.load_splits()[2]
    strangers = utils.definitions("07_strangers_and_damage")["load_other_classes"]()[2]
    results = utils.load_results("vgg16_transfer")
    kept = utils.OUTPUT / "results"
    temperature = utils.read_json(kept / "confidence_and_errors.json")["calibration"]["vgg16_transfer"]["temperature"]
    rule = utils.read_json(kept / "strangers_and_damage.json")["abstention"]["scores"]["examples"]
    here, stranger = run(PATH, x_test), run(PATH, strangers)

    p = results["probability"]["test"].astype("float64")
    calibrated = 1 / (1 + (1 / p - 1) ** (1 / temperature))
    some = x_test[:200]
    network = utils.load_model("vgg16_transfer").get_layer("vgg16_network")
    cams = utils.definitions("06_confidence_and_errors")["grad_cam"](network, some)
    models = rule["models"]["vgg16_transfer"]
    own = int((here["strangeness"] > 0).sum())
    return {
        "settings": results["settings"], "run": results["run"],
        "largest_difference": {
            "probability": {"value": float(np.abs(here["probability"].ravel() - calibrated).max()), "n": len(x_test)},
            "Grad-CAM": {"value": float(np.abs(here["places"][:len(some)] - cams).max()), "n": len(some)}},
        "refused": {
            "ships and trucks": {"exported": own, "notebook": models["wrong_avoided"] + models["right_lost"],
                                 "n": len(x_test)},
            "other classes": {"exported": int((stranger["strangeness"] > 0).sum()), "notebook": rule["others_refused"],
                              "n": len(strangers)}}}


def main():
    model = whole_model()
    if is_up_to_date(model):
        print(f"{utils.relative(PATH)} is up to date")
    else:
        write(model)
        print(f"{utils.relative(PATH)}: {PATH.stat().st_size / 1e6:.1f} MB")
    found = compare()
    utils.save_json(utils.OUTPUT / "results" / "export.json", found)
    for name, difference in found["largest_difference"].items():
        print("{} differs by at most {value:.0e} over {n:,} test images".format(name, **difference))
    for name, refused in found["refused"].items():
        print("{}: refused {exported:,} of {n:,}, in notebook 07 {notebook:,}".format(name, **refused))


if __name__ == "__main__":
    try:
        main()
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
