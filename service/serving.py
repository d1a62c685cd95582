"""The model that answers: what notebooks 03, 06 and 07 left, put together. `make export` writes it for the service."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import utils


def serving_model():
    """Return a model from 32x32 RGB images (n, 32, 32, 3) uint8 to a dict of arrays.

    "probability" (n, 1), of truck, with the temperature of notebook 06; "neither" (n, 1), above 0 for what is
    neither; "places" (n, height, width), how much each place of the feature map counts as evidence for the answer, 0 to
    1 (Grad-CAM, Selvaraju et al. 2017).
    """
    import keras

    temperature = utils.load_result("calibration")["temperature"]["vgg16_transfer"]
    # The head is built anew with the standardisation in its weights, and without dropout: an export could not do with
    # either. Its weights read backwards are the gradient of the logit, which Grad-CAM needs.
    kinds = (keras.layers.Normalization, keras.layers.Dense)
    standardise, first, second = (layer for layer in utils.load_model("vgg16_head").layers if isinstance(layer, kinds))
    kernel = np.asarray(first.kernel) / np.sqrt(np.asarray(standardise.variance)).reshape(-1, 1)
    bias = np.asarray(first.bias) - np.asarray(standardise.mean).reshape(-1) @ kernel
    folded = keras.layers.Dense(len(bias), activation="relu", name="folded")
    folded.build((None, len(kernel)))
    folded.set_weights([kernel, bias])

    extractor = utils.vgg16_extractor(utils.load_result("vgg16_transfer")["settings"]["image_size"])
    maps = extractor.layers[-2].output  # before they are flattened
    trunk = keras.Model(extractor.inputs, [maps, extractor.outputs[0]])
    images = keras.Input((32, 32, 3), dtype="uint8", name="image")
    pixels = keras.ops.cast(images, "float32")
    maps, features = trunk(pixels)
    views = [features, trunk(keras.ops.flip(pixels, axis=2))[1]]
    logits = sum(second(folded(view)) for view in views) / 2
    cells = maps.shape[1] * maps.shape[2]
    backwards = kernel.reshape(cells, -1, len(bias)).mean(axis=0).T  # (units, channels), a mean over the cells
    active = keras.ops.cast(folded(features) > 0, "float32")  # a hidden unit passes the gradient on where it is above 0
    weights = keras.ops.matmul(active, backwards * np.asarray(second.kernel))
    places = keras.ops.sum(maps * weights[:, None, None, :], axis=-1) * keras.ops.sign(logits)[:, :, None]
    places = keras.ops.relu(places)
    outputs = {
        "probability": keras.ops.sigmoid(logits / temperature),
        "neither": utils.load_model("neither")(sum(views) / 2),
        "places": places / (keras.ops.max(places, axis=(1, 2), keepdims=True) + 1e-9),
    }
    return keras.Model(images, outputs)
