"""Tests of the exported model: the same numbers as the notebooks' parts, and what `make export` does with the file."""

import numpy as np
import pytest
import requests
from conftest import encode, large_photo

import photo
import utils
from service import export


@pytest.fixture
def committed(monkeypatch):
    """Take the committed models and results, in the quick profile too."""
    monkeypatch.setattr(utils, "OUTPUT", utils.ROOT)


@pytest.fixture(scope="module")
def model():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "OUTPUT", utils.ROOT)
        return export.whole_model()


COMMITTED = utils.ROOT / "service" / "model.onnx"


def test_the_exported_model_equals_keras(model, test_images):
    """On a sample; `make export` compares all 2,000 test images with what the notebooks found."""
    there, here = export.run(COMMITTED, test_images[:40]), model.predict(test_images[:40], verbose=0)
    assert np.abs(there["probability"] - here["probability"]).max() < 1e-4
    assert np.abs(there["strangeness"] - here["strangeness"]).max() < 1e-3
    assert np.abs(there["places"] - here["places"]).mean() < 1e-3


def test_the_whole_model_equals_its_parts(committed, model, test_images):
    x, kept = test_images[:40], utils.ROOT / "results"
    p = utils.load_model("vgg16_transfer").predict(x, verbose=0).astype("float64")
    temperature = utils.read_json(kept / "confidence_and_errors.json")["calibration"]["vgg16_transfer"]["temperature"]
    logits = np.log(p / (1 - p)) / temperature
    assert np.abs(model.predict(x, verbose=0)["probability"] - 1 / (1 + np.exp(-logits))).max() < 1e-4


def test_the_committed_export_is_what_the_notebooks_measured():
    found = utils.read_json(utils.ROOT / "results" / "export.json", made_by="make export")
    assert found["settings"] == utils.load_results("vgg16_transfer", utils.ROOT / "results")["settings"]
    probability, cam = (found["largest_difference"][name] for name in ("probability", "Grad-CAM"))
    assert probability["n"] == 2000 and probability["value"] < 5e-3 and cam["n"] == 200 and cam["value"] < 0.05
    for refused in found["refused"].values():
        assert refused["n"] == 2000 and abs(refused["exported"] - refused["notebook"]) <= 4


def test_a_server_answers_what_the_parts_say(server, model, test_images):
    small = [encode(image) for image in test_images[:30]]
    large = [encode(large_photo(image, size), form) for image, form, size in zip(
        test_images[30:50], ["JPEG", "PNG", "WEBP", "TIFF"] * 5, [(3000, 2000), (900, 1600), (333, 77), (640, 480)] * 5)]
    thumbnails = np.stack([photo.to_thumbnail(photo.load_photo(data)) for data in small + large])
    outputs = model.predict(thumbnails, verbose=0)
    for data, probability, strangeness in zip(small + large, outputs["probability"], outputs["strangeness"]):
        over_http = requests.post(f"{server}/detect", files={"image": data}).json()
        here = photo.answer(probability[0], strangeness[0])
        assert over_http["class"] == here["class"] and over_http["model"] == here["model"]
        assert over_http["probabilities"] == pytest.approx(here["probabilities"], abs=1e-4)


def test_a_thumbnail_passes_unchanged(test_images):
    for image in test_images[:20]:
        assert (photo.to_thumbnail(photo.load_photo(encode(image))) == image).all()


@pytest.mark.parametrize("damaged", [b"", b"not a model"])
def test_a_damaged_export_is_named_and_made_anew(tmp_path, monkeypatch, capsys, damaged):
    path = tmp_path / "model.onnx"
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="model.onnx can't be run.*make export"):
        export.run(path, np.zeros((1, 32, 32, 3), np.uint8))
    monkeypatch.setattr(export, "PATH", path)
    assert not export.is_up_to_date(None) and "can't be run" in capsys.readouterr().out


def test_a_model_is_exported_and_found_up_to_date(tmp_path, monkeypatch, test_images):
    """A small one of the same form: the export of the real one takes a quarter of a minute."""
    import keras
    images = keras.Input((32, 32, 3), dtype="uint8", name="image")
    means = keras.ops.mean(keras.ops.cast(images, "float32"), axis=(1, 2)) / 255
    small = keras.Model(images, {"probability": keras.layers.Dense(1)(means), "strangeness": means[:, :1],
                                 "places": keras.ops.cast(images[:, :6, :6, 0], "float32")})
    monkeypatch.setattr(export, "PATH", tmp_path / "model.onnx")
    assert not export.is_up_to_date(small)
    export.write(small)
    assert export.is_up_to_date(small) and [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    for name, found in export.run(export.PATH, test_images[:3]).items():
        assert found == pytest.approx(small.predict(test_images[:3], verbose=0)[name], abs=1e-5)


def test_weights_are_halved_only_where_nothing_is_lost():
    exact, inexact = np.arange(2048, dtype=np.float32), np.full(2048, 0.1, np.float32)
    onnx = export.onnx
    graph = onnx.helper.make_graph([], "g", [], [], [onnx.numpy_helper.from_array(exact, "exact"),
                                                     onnx.numpy_helper.from_array(inexact, "inexact")])
    model = onnx.helper.make_model(graph)
    export.halve(model)
    kept = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert kept["exact_float16"].dtype == np.float16 and (kept["exact_float16"] == exact).all()
    assert kept["inexact"].dtype == np.float32 and [node.op_type for node in model.graph.node] == ["Cast"]
