"""Tests of the model that serves: the same numbers as its parts, and what `make export` does with the file."""

import keras
import numpy as np
import pytest
from helpers import some_images

import utils
from service import export
from service.serving import serving_model

COMMITTED = utils.ROOT / "service" / "model.onnx"


@pytest.fixture(scope="module")
def images():
    return utils.load_images()[2][:40]


@pytest.fixture(scope="module")
def model():
    return serving_model()


def test_the_exported_model_answers_nearly_as_the_committed_models_do(model, images):
    """In 8 bits, on a sample; `make export` compares more."""
    there, here = export.run(COMMITTED, images), model.predict(images, verbose=0)
    assert np.abs(there["probability"] - here["probability"]).mean() < 0.01
    assert np.corrcoef(there["neither"].ravel(), here["neither"].ravel())[0, 1] > 0.99
    assert np.abs(there["places"] - here["places"]).mean() < 0.05


def test_the_serving_model_equals_its_parts(model, images):
    outputs = model.predict(images, verbose=0)
    p = utils.load_vgg16_transfer().predict(images, verbose=0).astype("float64")
    logits = np.log(p / (1 - p)) / utils.load_result("calibration")["temperature"]["vgg16_transfer"]
    assert np.abs(outputs["probability"] - 1 / (1 + np.exp(-logits))).max() < 1e-4
    extractor = utils.vgg16_extractor()
    views = [extractor.predict(x, verbose=0) for x in (images, images[:, :, ::-1])]
    neither = utils.load_model("neither").predict(sum(views) / 2, verbose=0)
    assert np.abs(outputs["neither"] - neither).max() < 1e-2


@pytest.mark.parametrize("damaged", [b"", b"not a model"])
def test_a_damaged_export_is_named(tmp_path, damaged):
    path = tmp_path / "model.onnx"
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="model.onnx can't be run.*make export"):
        export.run(path, np.zeros((1, 32, 32, 3), np.uint8))


def test_a_model_is_exported_in_8_bits(tmp_path, monkeypatch):
    """A small one of the same form: the export of the real one takes a quarter of a minute."""
    images = keras.Input((32, 32, 3), dtype="uint8", name="image")
    maps = keras.layers.Conv2D(4, 3)(keras.ops.cast(images, "float32") / 255)
    means = keras.ops.mean(maps, axis=(1, 2))
    outputs = {"probability": means[:, :1], "neither": means[:, 1:2], "places": maps[..., 0]}
    small, x = keras.Model(images, outputs), some_images(3)[0]
    monkeypatch.setattr(export, "PATH", tmp_path / "model.onnx")
    export.write(small)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    kinds = {node.op_type for node in export.onnx.load(export.PATH).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= kinds
    for name, values in export.run(export.PATH, x).items():
        assert np.abs(values - small.predict(x, verbose=0)[name]).mean() < 0.02


def test_weights_are_halved_only_where_nothing_is_lost():
    onnx, exact, inexact = export.onnx, np.arange(2048, dtype=np.float32), np.full(2048, 0.1, np.float32)
    tensors = [onnx.numpy_helper.from_array(values, name) for values, name in ((exact, "exact"), (inexact, "inexact"))]
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], tensors))
    export.halve(model)
    kept = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert kept["exact_float16"].dtype == np.float16 and (kept["exact_float16"] == exact).all()
    assert kept["inexact"].dtype == np.float32 and [node.op_type for node in model.graph.node] == ["Cast"]
